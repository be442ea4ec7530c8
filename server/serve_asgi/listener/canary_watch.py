"""The listener's part in the trial of a canary: it counts what both sides do, and runs the operator's checks.

Once a second, and as soon as the canary has failed a request, what it and the current generation have done since the
trial began is posted as an event; the supervisor judges it (`serve_asgi.supervisor.canary`). The hooks `canary_check`
run once the canary serves. They get the path of a unix socket on which it alone answers, and one that fails ends the
trial. The socket exists only for them, and is removed when the trial is over. After a switch a new generation may be
watched in the same way (`serve_asgi.supervisor.switch_watch`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from serve_asgi.config.hook_events import read_hook
from serve_asgi.config.listen_addresses import UnixAddress
from serve_asgi.config.options import Config
from serve_asgi.errors import InUseError, ServeError
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc.shut_out_clients import SocketKind
from serve_asgi.listener.event_history import Record
from serve_asgi.listener.generation_config import GenerationConfig
from serve_asgi.listener.hooks import Hooks
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.unix_socket import bind_unix
from serve_asgi.supervisor import events as e
from serve_asgi.supervisor.canary_verdict import TrafficSample
from serve_asgi.supervisor.lifecycles import Generation

PERIOD = 1.0
"""Seconds between two observations."""
LOOK = 0.02
"""Seconds between two checks whether the canary has failed another request: the fewer it fails, the better."""
CHECK = "canary_check"
BACKLOG = 128
"""Connections of checks that the kernel queues."""

log = logging.getLogger("serve")


class CanaryWatch:
    """Watches the canary of one server, if there is one."""

    def __init__(
        self,
        samples: Callable[[Generation], TrafficSample],
        post: Callable[[e.Event], None],
        hooks: Hooks,
        config_of: Callable[[Generation], GenerationConfig],
        control: Callable[[], Path | None],
    ) -> None:
        """`samples` counts what a generation has done since it was started. `control` returns the path of the control
        socket; that of the checks' socket begins with it.
        """
        self.tasks: TaskGroup
        """Set before the first trial."""
        self._samples = samples
        self._post = post
        self._hooks = hooks
        self._config_of = config_of
        self._control = control
        self._generation: Generation | None = None
        self._socket: ListeningSocket | None = None
        self._trouble = ""
        self._scope: anyio.CancelScope | None = None

    # The checks' socket

    def prepare(self, generation: Generation, config: Config) -> None:
        """A generation begins whose first workers will be on trial: open the socket, if there are checks."""
        self._close()
        if not any(hook.wants(CHECK) for hook in map(read_hook, config.hook)):
            return
        self._generation, self._trouble = generation, ""
        path = f"{self._control() or control_protocol.default_socket(os.getpid())}.canary"
        address = UnixAddress(path)
        try:
            made, identity, lock = bind_unix(address, config)
            self._socket = ListeningSocket(made, str(address), SocketKind.UNIX, True, path, identity, lock)
            self._socket.listen(BACKLOG)
        except (InUseError, ServeError, OSError) as error:
            self._trouble = str(error) or f"another program listens on {path}"

    def listening_for(self, generation: Generation) -> list[ListeningSocket]:
        """The sockets that a worker of this generation has besides the server's."""
        return [self._socket] if self._socket is not None and generation is self._generation else []

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # The trial

    def watch(self, canary: Generation | None, current: Generation | None) -> None:
        """Compare this canary with the current generation from now on, and have it checked; None: the trial is over."""
        if self._scope is not None:
            self._scope.cancel()
        if canary is None or current is None:
            self._close()
            return
        own, others = self._since(canary), self._since(current)
        scope = self._observe(lambda: own().errors, lambda: e.CanaryObserved(own(), others()))
        self.tasks.start_soon(self._check, scope, canary)

    def watch_switch(self, current: Generation | None, previous: Generation | None) -> None:
        """Compare the generation that is current from now on with what the previous one has done; None: no more."""
        if self._scope is not None:
            self._scope.cancel()
        if current is not None and previous is not None:
            own, before = self._since(current), self._samples(previous)
            self._observe(lambda: own().errors, lambda: e.SwitchObserved(current, own(), before))

    def _since(self, generation: Generation) -> Callable[[], TrafficSample]:
        """What it does from now on."""
        before = self._samples(generation)
        return lambda: self._samples(generation) - before

    def _observe(self, errors: Callable[[], int], observed: Callable[[], e.Event]) -> anyio.CancelScope:
        scope = self._scope = anyio.CancelScope()
        self.tasks.start_soon(self._keep_observing, scope, errors, observed)
        return scope

    async def _keep_observing(
        self, scope: anyio.CancelScope, errors: Callable[[], int], observed: Callable[[], e.Event]
    ) -> None:
        with scope:
            known, due = 0, time.monotonic() + PERIOD
            while True:
                await anyio.sleep(LOOK)
                if scope.cancel_called:
                    return
                now, failed = time.monotonic(), errors()
                if now >= due or failed > known:
                    known, due = failed, now + PERIOD
                    self._post(observed())

    async def _check(self, scope: anyio.CancelScope, canary: Generation) -> None:
        config = self._config_of(canary)
        if not any(hook.wants(CHECK) for hook in map(read_hook, config.settings.config.hook)):
            return
        if self._socket is None:
            self._post(e.CanaryRefused(f"there is no socket for the hook {CHECK}: {self._trouble}"))
            return
        record: Record = {"at": round(time.time(), 3), "level": "info", "event": CHECK, "generation": canary.number}
        record |= {"text": f"generation {canary.number} is on trial", "socket": self._socket.path}
        with anyio.CancelScope() as checking:
            trouble, output = await self._hooks.before(CHECK, record, config.settings.config, config.release)
        if trouble and not scope.cancel_called and not checking.cancelled_caught:
            self._post(e.CanaryRefused(trouble, output))
