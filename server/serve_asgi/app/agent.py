"""`agent`: who and where the server's one agent is, for the application's code in any of its processes.

Where no server of ours runs the application (another server, a test) the process is alone and its own agent: `here` and
`present` are true, and `running` runs an agent as the server would (docs/guides/agent.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from serve_asgi.app.agent_task import AgentTarget, AgentTask
from serve_asgi.app.hub_link import current, run_on_link_loop
from serve_asgi.app.hub_link import current_or_none as link_present
from serve_asgi.app.messenger import TIMEOUT, NotDelivered, messenger
from serve_asgi.app.presence import presence
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.ipc.membership_frames import Role


class AgentAccess:
    """What an application may ask about its agent, and of it."""

    def __init__(self) -> None:
        self.sync = AgentSync(self)
        """The calls that wait, for code that is not asynchronous."""

    @property
    def here(self) -> bool:
        """Whether this process is the agent; always the same from the import of the application on."""
        link = link_present()
        return link is None or link.identity.local or link.identity.role is Role.AGENT

    @property
    def present(self) -> bool:
        """Whether an agent is active at the moment, as far as this process has been told."""
        link = link_present()
        return link is None or link.identity.local or presence.agent() is not None

    async def wait(self, *, timeout: float | None = None) -> None:
        """Wait until an agent is active; without `--agent` none ever is.

        Args:
            timeout: Seconds; None waits as long as it takes.

        Raises:
            TimeoutError: There was none by then.

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
            NoReceiver: There is no agent, or it does not handle the topic; and the others of `messenger.broadcast`.

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
            timeout: Seconds until the reply is there.

        Returns:
            What the handler returned.

        Raises:
            CallFailed: The handler raised, or the agent died; and the others of `messenger.call`.

        Example:
            ```python
            price = await agent.call("price", "EURUSD")
            ```
        """
        return await messenger.call(topic, payload, to="agent", timeout=timeout)

    @contextlib.asynccontextmanager
    async def running(self, agent: Any) -> AsyncIterator[None]:
        """Run `agent` (what `--agent` would name, the thing itself) in this process while the block runs: for tests.

        It is prepared and entered before the block, and finishes after it. What its code raises is raised: also after
        the block, what it raised meanwhile.

        Args:
            agent: An async function, or a function that makes an async context manager.

        Raises:
            RuntimeError: A server of ours runs this process, and runs its agent itself.

        Example:
            ```python
            async with agent.running(consume):
                await queue.put(order)
            ```
        """
        if not current().identity.local:
            raise RuntimeError("this server runs the agent itself: name it with --agent")
        name = getattr(agent, "__qualname__", None) or f"the {type(agent).__name__}"
        life = AgentTask(subject := AgentTarget(agent, name, None))
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
