"""The start of a process that runs the application's code: a worker or the agent, from its first instruction on.

It is a fresh interpreter, or a worker that has just been forked from a template (`serve_asgi.template_process`), where
what holds for the process as a whole has been set up already: signal handlers, hooks for exceptions, directory, user.

It takes orders over its channel only: signals are ignored while the listener is alive, and the end of the channel means
that the listener is dead. The first packet says what it is to do; then it changes to the directory, umask and user that
the application runs with.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

from serve_asgi.app import prometheus_values
from serve_asgi.app.metric_store import store
from serve_asgi.config.accounts import find_group, find_user
from serve_asgi.config.options import Config
from serve_asgi.errors import StartError, UsageError
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.channel import PROTOCOL, Channel, Packet, close_descriptors, speaks
from serve_asgi.ipc.scoreboard import Cell, Scoreboard, let_go, mapped_row
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.ipc.untrusted_input import sayable
from serve_asgi.logs import app_log, nonblocking_sink, stdio_guard
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.exceptions import shortened
from serve_asgi.worker import uncaught_exceptions as uncaught
from serve_asgi.worker.accept_balance import LoopFactory
from serve_asgi.worker.bytecode import keep_fresh
from serve_asgi.worker.event_loop import loop_factory
from serve_asgi.worker.loop_watchdog import Watchdog
from serve_asgi.worker.malloc_tuning import keep_large_blocks

if TYPE_CHECKING:
    from serve_asgi.tls.material import TlsMaterial

WELCOME_TIMEOUT = 30.0
"""Seconds to wait for the listener's first packet."""
PR_SET_NAME: Final = 15  # linux/prctl.h
DETAIL_LIMIT: Final = 100_000
"""Bytes of a traceback in a packet to the listener: its end, which says most."""
MESSAGE_LIMIT: Final = 4_000
"""Characters of a message in that packet; at most twelve bytes each (JSON's escapes)."""


@dataclasses.dataclass(frozen=True, slots=True)
class StartArguments:
    """What a process is started with."""

    channel: int
    """The descriptor of its end of the channel."""
    output: str
    """The argument of `stdio_guard.adopt`."""
    forked: bool = False
    """It has been forked from a template, and is no fresh interpreter."""


class Bootstrap:
    """What a process gets from its start and the listener's first packet."""

    def __init__(self, arguments: StartArguments, names: Callable[[Packet], tuple[str, str]]) -> None:
        """`names` returns the process's name (15 bytes, for top(1)) and that in its log lines. May exit the process."""
        self.forked = arguments.forked
        if not self.forked:
            ignore_signals()
        forks.begin({arguments.channel, *stdio_guard.given(arguments.output)})
        self.guard = stdio_guard.adopt(arguments.output)
        end = socket.socket(fileno=arguments.channel)
        end.set_inheritable(False)
        self.packet, descriptors = welcome(end)
        self.config = Config.from_json(self.packet["config"])
        self.channel = Channel(end)
        process, lines = names(self.packet)
        name_process(process)
        slot = {} if "slot" not in self.packet else {"slot": self.packet["slot"]}
        if self.forked:
            logs.continue_as(lines, generation=self.packet["generation"], **slot)
            app_log.inherit()
        else:
            try:
                logs.configure(self.config, lines, generation=self.packet["generation"], **slot)
                app_log.begin(self.config)
            except UsageError as error:
                self.refuse(str(error))
            uncaught.install()
        scoreboard_fd, sockets_fds, given = sorted_out(self.packet, descriptors)
        asked_over, dump = given.get("asked over"), given.get("dump")
        self.watchdog = Watchdog(None if asked_over is None else Channel(socket.socket(fileno=asked_over)), dump)
        self.watchdog.start()
        forks.in_child(stdio_guard.let_go)
        forks.own(nonblocking_sink.descriptors)
        forks.in_child(logs.let_go)
        forks.in_child(app_log.let_go)
        forks.in_child(self.watchdog.let_go)
        tell(self.channel, {"type": "hello", "protocol": PROTOCOL, "window": self.watchdog.abilities})
        self.scoreboard = Scoreboard(scoreboard_fd)
        self.cells = mapped_row(given["row"])
        forks.in_child(functools.partial(let_go, self.cells))
        if self.config.metrics_series:
            store.begin(self.config.metrics_series, self.packet["member"] + 1, self.scoreboard.living)
            forks.in_child(store.let_go)
            prometheus_values.install()
        self.sockets = [listening_socket(descriptor) for descriptor in sockets_fds]
        self.secure: list[bool] = self.packet.get("secure") or [False] * len(self.sockets)
        """Which of the sockets speak TLS."""
        self.redirects: list[bool] = self.packet.get("redirects") or [False] * len(self.sockets)
        """Which of them --https-redirect is for."""
        self.tls_material = self._tls_material(given.get("tls"))
        self.link = socket.socket(fileno=given["link"]) if "link" in given else None

    def _tls_material(self, descriptor: int | None) -> TlsMaterial | None:
        """What the listener gives for TLS; without it nothing of TLS is imported. May end the process."""
        if descriptor is None:
            if any(self.secure):  # never plain text where TLS is meant
                self.refuse("the worker did not get what it needs for TLS: raise the open-files limit (ulimit -Hn)")
            return None
        from serve_asgi.tls.material import TlsMaterial, stay_out_of_core_files

        stay_out_of_core_files()
        try:
            return TlsMaterial.from_memfd(descriptor)
        except (OSError, ValueError) as error:
            self.refuse(f"the worker could not take what it needs for TLS: {error}")

    def move_in(self) -> LoopFactory:
        """Set up the environment that the application runs in; return the loop factory. May exit the process."""
        if not self.forked:
            try:
                settle(self.config, self.packet)
                configure_logging(self.config)
            except UsageError as error:
                self.refuse(str(error))
            except (OSError, KeyError, ValueError) as error:
                self.refuse(f"the {self.packet.get('role', 'worker')} could not be set up: {error}")
        return LoopFactory(loop_factory(self.config.loop))

    def finish_output(self) -> None:
        """Write what has not been written, within a bounded time, and count what is lost when this process ends."""
        self.guard.finish()
        self.cells[Cell.DROPPED_OUTPUT] = nonblocking_sink.lost_at_exit()

    def let_go(self) -> None:
        """Leave closing the sockets to the kernel at exit, without warnings by the interpreter (-X dev)."""
        self.channel.detach()
        self.watchdog.detach()
        for each in [*self.sockets, *([self.link] if self.link is not None else [])]:
            each.detach()

    def refuse(self, message: str) -> NoReturn:
        """Report to the listener why this process cannot start, and exit."""
        refuse(self.channel, message)


def refuse(channel: Channel, message: str) -> NoReturn:
    """Report to the listener why this process cannot start, and exit."""
    tell(channel, {"type": "failed", "message": sayable(message)[:MESSAGE_LIMIT], "usage": True})
    channel.detach()
    sys.exit(1)


def failure(error: StartError | UsageError) -> Packet:
    """The packet that reports it to the listener."""
    detail, usage = _that_fits(getattr(error, "detail", "")), isinstance(error, UsageError)
    return {"type": "failed", "message": sayable(str(error))[:MESSAGE_LIMIT], "detail": detail, "usage": usage}


def canary_refused(reason: str, detail: str) -> Packet:
    """The packet that says why the application refuses the version that is on trial."""
    return {"type": "canary_refused", "reason": sayable(reason)[:MESSAGE_LIMIT], "detail": _that_fits(detail)}


def _that_fits(detail: str) -> str:
    """As much of a traceback as a packet takes."""
    detail = shortened(sayable(detail), DETAIL_LIMIT)
    while len(json.dumps(detail)) > DETAIL_LIMIT:
        detail = detail[len(detail) // 8 + 1 :]
    return detail


def leave_within(seconds: float, status: int) -> None:
    """Exit after so many seconds, unless the process has ended before; its output is flushed first."""

    def leave() -> None:
        with contextlib.suppress(BaseException):
            stdio_guard.current().finish()
        os._exit(status)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def ignore_signals() -> None:
    """Ignore the listener's signals; a handler, unlike SIG_IGN, is not inherited across exec.

    TTIN and TTOU are set to SIG_IGN if there is a terminal: with a handler, writing to it from the background would
    never return.
    """
    terminal = {signal.SIGTTIN, signal.SIGTTOU} if _has_terminal() else set()
    for number in LISTENER_SIGNALS - {signal.SIGCHLD}:
        handler = signal.SIG_IGN if number in terminal else _ignore
        forks.handles(number, handler, signal.signal(number, handler))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENER_SIGNALS)


def _ignore(*_: object) -> None:
    """Do nothing."""


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def read_arguments(program: str) -> StartArguments:
    """Read the command line of a fresh interpreter."""
    given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))  # --generation and --slot are for readers of ps(1)
    try:
        return StartArguments(int(given["--channel"]), given.get("--output", ""))
    except (KeyError, ValueError):
        sys.exit(f"{program} is started by the listener, not by hand: run serve")


def welcome(end: socket.socket) -> tuple[Packet, list[int]]:
    """Wait for the listener's first packet; exit if there is none, or if it has another version."""
    channel = Channel(end)
    end.settimeout(WELCOME_TIMEOUT)
    try:
        received = channel.try_receive()
    except (EOFError, TimeoutError):
        end.detach()
        sys.exit(1)
    assert received is not None
    if not speaks(received[0].get("protocol")):
        end.setblocking(False)
        tell(channel, {"type": "hello", "protocol": PROTOCOL})
        end.detach()
        sys.exit(1)
    return received


GIVEN: Final = frozenset({"link", "row", "asked over", "dump", "tls"})
"""Other descriptors from the listener: the link to the hub, the scoreboard row, the two of the watchdog channel, and
what TLS needs."""


def sorted_out(packet: Packet, descriptors: list[int]) -> tuple[int, list[int], dict[str, int]]:
    """The descriptors of the welcome: the scoreboard, the listening sockets, and the others by name."""
    end = 1 + len(packet["sockets"])
    given = dict(zip(packet.get("given", []), descriptors[end:], strict=False))
    close_descriptors(set(descriptors[end:]) - {given[name] for name in GIVEN & given.keys()})  # from a later version
    return descriptors[0], descriptors[1:end], {name: given[name] for name in GIVEN & given.keys()}


def tell(channel: Channel, packet: Packet) -> None:
    try:
        channel.try_send(packet)
    except OSError:
        channel.detach()
        sys.exit(1)


def name_process(name: str) -> None:
    """Show this name (15 bytes) in top(1) and the like (PR_SET_NAME, prctl(2))."""
    with contextlib.suppress(AttributeError):  # a C library without prctl
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode("ascii"), 0, 0, 0)


def settle(config: Config, packet: Packet) -> None:
    """Change to the directory, umask and user that the application runs with, and have its imports be what is on disk.

    Raises OSError, KeyError, ValueError.
    """
    if config.umask:
        os.umask(int(config.umask, 8))
    take_account(config)
    os.chdir(packet["directory"])
    sys.path.insert(0, packet["app_dir"])
    keep_large_blocks()
    keep_fresh(packet.get("since", time.time()))


def configure_logging(config: Config) -> None:
    """Apply the file of --log-config, which may name what the application has. Raises UsageError."""
    if config.log_config:
        from serve_asgi.logs import log_config

        log_config.apply(config.log_config)
        app_log.replace_console_handlers(config)


def take_account(config: Config) -> None:
    """Change to the configured user and group. Raises OSError, KeyError, OverflowError."""
    user = find_user(config.user) if config.user else None
    group = find_group(config.group) if config.group else (user.pw_gid if user else None)
    if group is not None:
        os.setgroups([])
        if user is not None:
            os.initgroups(user.pw_name, group)
        os.setgid(group)
    if user is not None:
        os.setuid(user.pw_uid)
        os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}


def listening_socket(descriptor: int) -> socket.socket:
    """The listening socket with this descriptor."""
    listening = socket.socket(fileno=descriptor)
    listening.setblocking(False)
    return listening
