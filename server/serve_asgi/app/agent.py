"""`agent`: whether and where the server's one agent runs, for the application's code in any process.

Under another server, or in a test, the process is alone and is its own agent: `here` and `present` are true, and
`running` runs an agent as the server would (docs/guides/agent.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from serve_asgi.app.agent_task import AgentTarget, AgentTask
from serve_asgi.app.hub_link import current, is_template, run_on_link_loop
from serve_asgi.app.hub_link import current_or_none as link_present
from serve_asgi.app.messenger import TIMEOUT, NotDelivered, messenger
from serve_asgi.app.presence import presence
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.ipc.membership_frames import Role


class AgentAccess:
    """The agent, as the application sees it."""

    def __init__(self) -> None:
        self.sync = AgentSync(self)
        """Blocking versions of the calls that wait, for threads."""
        self._token = 0

    @property
    def here(self) -> bool:
        """Whether this process is the agent; constant from the import of the application on."""
        link = link_present()
        if link is None:
            return not is_template()  # from which workers are forked, but no agent
        return link.identity.local or link.identity.role is Role.AGENT

    @property
    def present(self) -> bool:
        """Whether an agent is active at the moment, as far as this process knows."""
        link = link_present()
        if link is None:
            return not is_template()
        return link.identity.local or presence.agent() is not None

    @property
    def token(self) -> int:
        """In the agent itself, with `--agent-scope cluster`: the fencing token of its server's lease, larger than that
        of every earlier lease; a reload keeps the lease. Otherwise 0."""
        return self._token

    async def wait(self, *, timeout: float | None = None) -> None:
        """Wait until an agent is active; without `--agent` there never is one.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            TimeoutError: No agent was active by then.

        Example:
            ```python
            await agent.wait(timeout=10)
            ```
        """
        link = current()
        if link.loop is not asyncio.get_running_loop():
            await run_on_link_loop(link, self.wait(timeout=timeout))
            return
        async with asyncio.timeout(timeout):
            while not self.present:
                await presence.change()

    async def send(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> None:
        """As `messenger.send_to_agent`.

        Args:
            topic: What it is about.
            payload: What the agent's handlers get.
            timeout: Seconds.

        Raises:
            NoReceiver: There is no agent, or it does not handle the topic. Also the errors of `messenger.broadcast`.

        Example:
            ```python
            await agent.send("subscribe", "room/7")
            ```
        """
        await messenger.send_to_agent(topic, payload, timeout=timeout)

    async def call(self, topic: str, payload: Any = None, *, timeout: float = TIMEOUT) -> Any:
        """As `messenger.call`, to the agent.

        Args:
            topic: What it is about.
            payload: What the agent's handler gets.
            timeout: Seconds until the reply has to arrive.

        Returns:
            What the handler returned.

        Raises:
            CallFailed: The handler raised, or the agent died. Also the errors of `messenger.call`.

        Example:
            ```python
            price = await agent.call("price", "EURUSD")
            ```
        """
        return await messenger.call(topic, payload, to="agent", timeout=timeout)

    @contextlib.asynccontextmanager
    async def running(self, agent: Any) -> AsyncIterator[None]:
        """Run an agent in this process during the block, for tests.

        It is prepared and entered before the block, and finished after it. What its code raises is raised here: before
        the block, or after it.

        Args:
            agent: An async function, or a function that makes an async context manager.

        Raises:
            RuntimeError: `serve` runs this process, and runs the agent itself.

        Example:
            ```python
            async with agent.running(consume):
                await queue.put(order)
            ```
        """
        if not current().identity.local:
            raise RuntimeError("this server runs the agent itself: name it with --agent")
        name = getattr(agent, "__qualname__", None) or f"the {type(agent).__name__}"
        subject = agent if isinstance(agent, AgentTarget) else AgentTarget(agent, name, None)
        life = AgentTask(subject)
        await subject.prepare()
        if (raised := await life.enter()) is not None:
            raise raised
        try:
            yield
        finally:
            raised = await life.finish()
        if raised is not None:
            raise raised


class AgentSync:
    """`agent.sync`: the calls of `agent` for threads that may wait, with the same results and errors."""

    def __init__(self, agent: AgentAccess) -> None:
        blocking = SyncCalls("agent", _late)
        self.wait = blocking(agent.wait)
        self.send = blocking(agent.send)
        self.call = blocking(agent.call)


def _late(text: str, begun: bool) -> Exception:
    return NotDelivered(text)


agent: Final = AgentAccess()


def lease_taken(token: int) -> None:
    """This process is the agent, and may begin with this lease (`AgentAccess.token`)."""
    agent._token = token
