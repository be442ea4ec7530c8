"""The listener's side of the admin process: starts it, sends it what happens, restarts it when it dies.

It owns the sockets of --admin (bound before the server starts, and kept, so that the address outlives the process), the
process, and the channel to it. The listener never waits for it: a task of its own sends a bounded queue of records and
the latest state. The process only reads: its scoreboard is read-only, and nothing that it sends changes what the
listener does.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import anyio

from serve_asgi import __version__
from serve_asgi.config.options import Config
from serve_asgi.config.release import PRIVATE_VARIABLES, own_program
from serve_asgi.errors import ChannelError
from serve_asgi.ipc.channel import PROTOCOL, Channel, Packet, pair
from serve_asgi.ipc.scoreboard import Scoreboard
from serve_asgi.ipc.shut_out_clients import SocketKind
from serve_asgi.listener.child import Child
from serve_asgi.listener.event_history import History, Record
from serve_asgi.listener.exit_status import describe_code
from serve_asgi.listener.helper_processes import HelperProcess, HelperProcesses
from serve_asgi.listener.listening_sockets import ListeningSocket
from serve_asgi.listener.metric_memories import MetricMemory
from serve_asgi.listener.spawning import SAFE_PATH

QUEUED: Final = 200
"""Records that are queued for a process that does not read; older ones are dropped, and its counts stay correct."""
DETAIL: Final = 8_000
"""Characters of a traceback that are sent: its end, which says most."""
REASON: Final = 300
"""Characters of a past reload's reason that are sent."""
LEAST_PAUSE: Final = 0.2
"""Seconds between two updates."""
FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
"""Most seconds until a dead process is replaced; the delay doubles with each death."""
STEADY: Final = 60.0
"""Seconds of life after which the delay starts over."""
END_TIME: Final = 2.0
"""Seconds that it has to exit when the server ends; then it is killed."""

log = logging.getLogger("serve")

State = dict[str, Any]


class AdminProcess:
    """The admin process of one server."""

    def __init__(
        self,
        config: Config,
        listening: Sequence[ListeningSocket],
        served: Sequence[ListeningSocket],
        scoreboard: Scoreboard,
        processes: HelperProcesses,
        children: Callable[[], Iterable[Child]],
        memories: Callable[[], Iterable[MetricMemory]],
        state: Callable[[], State],
        history: History,
        started: float,
        earlier: int = 0,
    ) -> None:
        """`listening` are its own sockets, `served` the application's, which it only reports.

        `state` returns the server's present state for it, JSON-compatible (`serve_asgi.listener.status`). `started` is
        when the server started, in CLOCK_MONOTONIC (s). `earlier` is the PID of the admin process of the program that
        this one has replaced, or 0.
        """
        self._config = config
        self._listening = listening
        self._scoreboard = scoreboard
        self._processes = processes
        self._children = children
        self._told_of: set[int] = set()
        """Serials of the children whose rows the process has been given."""
        self._memories = memories
        self._memories_told: set[int] = set()
        """Numbers of the memories of metrics that the process has been given."""
        self._state = state
        self._history = history
        self._about = {
            "version": __version__,
            "pid": os.getpid(),
            "started": history.began,
            "since": started,
            "python": sys.version.split()[0],
            "app": config.app,
            "listening": [{"name": each.name, "inode": os.fstat(each.socket.fileno()).st_ino} for each in served],
        }
        self._records: collections.deque[Record] = collections.deque(maxlen=QUEUED)
        self._news = anyio.Event()
        self._end = anyio.Event()
        self._ended = anyio.Event()
        self._process: HelperProcess | None = None
        self._earlier = processes.adopt(earlier) if earlier else None
        self._reopen = False

    @property
    def names(self) -> list[str]:
        """The addresses that it listens on, as shown to the operator."""
        return [each.name for each in self._listening]

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return all(_local(each) for each in self._listening)

    @property
    def pid(self) -> int:
        """The PID of the process, or 0 while there is none."""
        return 0 if self._process is None or self._process.ended else self._process.pid

    def listen(self) -> None:
        """Listen; clients wait until the process accepts them. Raises UsageError if the port was taken meanwhile."""
        for each in self._listening:
            each.listen(128)
            if not _local(each):
                log.warning(
                    "the admin page at %s asks for no password and can be reached from other machines: bind it to "
                    "127.0.0.1 or to a unix socket, or keep others out",
                    each.name,
                )

    # What is sent to it: each of these returns at once

    def happened(self, record: Record) -> None:
        """Queue a record."""
        if record["level"] != "debug":
            self._records.append(_shown(record))
        self._news.set()

    def changed(self) -> None:
        """The state may have changed; it is compared later."""
        self._news.set()

    def reopen(self) -> None:
        """Have it reopen its log files."""
        self._reopen = True
        self._news.set()

    # Its life cycle

    async def run(self) -> None:
        """Keep a process alive until `finish`, if there is an address for it to serve."""
        if not self._listening:
            self._ended.set()
            return
        delay = FIRST_DELAY
        while not self._end.is_set():
            began = time.monotonic()
            try:
                how = await self._live()
            except Exception as error:  # such as EMFILE: the server continues
                how = f"it could not be started: {error}"
            if self._end.is_set():
                break
            delay = FIRST_DELAY if time.monotonic() - began >= STEADY else delay
            log.error("the admin process ended (%s); another one starts in %g s", how, delay)
            with anyio.move_on_after(delay):
                await self._end.wait()
            delay = min(LONGEST_DELAY, delay * 2)
        self._ended.set()

    async def end_earlier(self) -> None:
        """Wait for the earlier program's process, which exits when its channel closes; kill it if it was stopped."""
        if self._earlier is not None:
            with anyio.move_on_after(END_TIME):
                await self._earlier.wait()
            await self._kill(self._earlier)

    async def finish(self) -> None:
        """The server has ended: end the process, kill it if necessary, and wait for that."""
        self._end.set()
        with anyio.move_on_after(END_TIME):
            await self._ended.wait()
        for process in (self._process, self._earlier):
            if process is not None:
                await self._kill(process)

    async def _kill(self, process: HelperProcess) -> None:
        process.signal(signal.SIGKILL)
        with anyio.move_on_after(END_TIME):
            await process.wait()

    async def _live(self) -> str:
        """Start a process, serve its channel, and return how it ended."""
        ours, theirs = pair()
        channel = Channel(ours)
        try:
            with theirs:
                self._process = process = self._start(theirs)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell, channel)
                tasks.start_soon(self._close_at_end, channel)
                status = await process.wait()
                tasks.cancel_scope.cancel()
        finally:
            channel.close()
        self._process = None
        return describe_code(status)

    def _start(self, theirs: socket.socket) -> HelperProcess:
        environment = {name: text for name, text in os.environ.items() if name not in PRIVATE_VARIABLES}
        arguments = [own_program(), *SAFE_PATH, "-m", "serve_asgi.admin", "--channel", str(theirs.fileno())]
        return self._processes.start(arguments, environment, [(theirs.fileno(), theirs.fileno())])

    async def _close_at_end(self, channel: Channel) -> None:
        """Close the channel at the end, at which the process exits."""
        await self._end.wait()
        channel.close()

    async def _tell(self, channel: Channel) -> None:
        """Bring it up to date, then send what happens, for as long as it reads."""
        try:
            told = await self._welcome(channel)
            while True:
                self._news = anyio.Event()
                while self._records:
                    await channel.send({"type": "happened", "record": self._records.popleft()})
                if self._reopen:
                    self._reopen = False
                    await channel.send({"type": "reopen"})
                await self._give_rows(channel)
                await self._give_memories(channel)
                if (state := self._state()) != told:
                    await channel.send({"type": "state", "state": state})
                    told = state
                await anyio.sleep(LEAST_PAUSE)
                await self._news.wait()
        except (OSError, anyio.ClosedResourceError):
            pass  # it has exited, which SIGCHLD reports
        except ChannelError as error:
            log.error("the admin process receives no more events: %s", error)
        except Exception:  # a bug here must not affect the rest of the server
            log.exception("the admin process receives no more events; please report this")

    async def _welcome(self, channel: Channel) -> State:
        """Send all that it needs before it can show anything; return the state that was sent."""
        told = self._state()
        past = [_shown(record) for record in self._history.records]
        reloads = [{**each, "reason": str(each.get("reason", ""))[:REASON]} for each in self._history.reloads]
        self._records.clear()  # they are among the past ones
        board = self._scoreboard.read_only()
        packet: Packet = {
            "type": "welcome",
            "protocol": PROTOCOL,
            "config": own_config(self._config).to_json(),
            "about": self._about,
            "state": told,
            "sockets": [each.describe() for each in self._listening],
        }
        try:
            await channel.send(packet, [board, *(each.socket.fileno() for each in self._listening)])
        finally:
            os.close(board)
        self._told_of.clear()
        self._memories_told.clear()
        await self._give_rows(channel)
        await self._give_memories(channel)
        await channel.send({"type": "reloads", "reloads": reloads})
        for record in past:
            await channel.send({"type": "happened", "record": record, "past": True})
        return told

    async def _give_rows(self, channel: Channel) -> None:
        """Send it the rows of those children whose rows it does not have yet."""
        living = {child.serial: child for child in self._children()}
        self._told_of &= living.keys()
        for serial in living.keys() - self._told_of:
            if (child := living[serial]).closed:
                continue
            fd = child.counts.again()
            try:
                await channel.send({"type": "rows", "rows": [[child.row, serial]]}, [fd])
            finally:
                os.close(fd)
            self._told_of.add(serial)

    async def _give_memories(self, channel: Channel) -> None:
        """Send it the memories of the application's metrics that it does not have yet; have it forget what is gone."""
        memories = {each.number: each for each in self._memories()}
        if gone := sorted(self._memories_told - memories.keys()):
            await channel.send({"type": "memories gone", "memories": gone})
            self._memories_told -= set(gone)
        for memory in [each for number, each in memories.items() if number not in self._memories_told]:
            if memory.number not in {each.number for each in self._memories()}:
                continue  # it has been given up while another one was sent
            fd = memory.for_readers()
            try:
                await channel.send({"type": "memories", "memories": [memory.number]}, [fd])
            finally:
                os.close(fd)
            self._memories_told.add(memory.number)


def own_config(config: Config) -> Config:
    """The admin process's configuration: the server's own loop, parser, user and log, nothing else."""
    kept = ("loop", "http", "user", "group", "log_level", "log_file", "log_format")
    return dataclasses.replace(
        Config(),
        app="serve_asgi.admin.application:application",
        interface="asgi3",
        lifespan="off",
        health_path="/-/healthy",
        access_log=False,
        graceful_timeout=1.0,
        block_warning=0.0,
        **{name: getattr(config, name) for name in kept},
    )


def _shown(record: Record) -> Record:
    """What is sent of a record: not the PID of a worker, since nobody is to signal it."""
    shown = {name: value for name, value in record.items() if name != "pid"}
    return {**shown, "detail": str(record.get("detail", ""))[-DETAIL:]}


def _local(listening: ListeningSocket) -> bool:
    if listening.kind is SocketKind.UNIX:
        return True
    return ipaddress.ip_address(listening.socket.getsockname()[0]).is_loopback
