"""The control socket's server: it turns requests into events and answers when the outcome is known.

It runs in the listener's loop and answers while workers are busy or blocked. Peers must be root or the listener's own
user (SO_PEERCRED, unix(7)). A control socket that cannot be made is a warning: the server serves without it. Those who
follow what happens never hold it up: who does not take the records in time misses the oldest, then is let go.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import select
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import anyio
import msgspec
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from serve_asgi.config.options import MOST_WORKERS
from serve_asgi.errors import ServeError
from serve_asgi.hub.schedules.commands import CommandReply, ScheduleCommands
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.ipc.listening_socket import Identity, unlink_own
from serve_asgi.ipc.schema import Seconds, Sentence
from serve_asgi.logs.server_log import about
from serve_asgi.supervisor import events as e

REQUEST_TIMEOUT = 5.0
"""Seconds that a peer has to send its request, and to take each line of its answer."""
REQUEST_LIMIT: Final = 65_536
"""Bytes of a request."""
PAUSE: Final = 0.2
"""Seconds until the next try to accept, when the process or the machine is out of descriptors."""
AT_LEAST: Final = 4
"""Conversations that are held whatever descriptors are left."""
FOLLOWED: Final = 1000
"""Records that wait for a follower at most."""
LONGEST_DELAY: Final = 24 * 3600.0
"""Most seconds of draining that a stop may ask for."""
STACKS_TIME: Final = 60.0
"""Seconds that may be asked for at most, for workers to tell their stacks."""

log = logging.getLogger("serve")


class ControlRequest(msgspec.Struct):
    """What may be asked; members that are not known are passed over."""

    version: int
    command: Sentence
    follow: bool = False
    wait: bool = True
    off: bool = False
    delay: Seconds | None = None
    to: int | float | Sentence | bool | None = None
    timeout: Seconds = 5.0
    name: Sentence = ""
    do: Sentence = ""


_REQUEST: Final = msgspec.json.Decoder(ControlRequest)


class Controlled(Protocol):
    """What the control socket controls: the listener."""

    def post(self, event: e.Event) -> None:
        """Add an event to those that are handled, in order."""

    async def replace(self, asker: int) -> None:
        """Put the program of the new release in this one's place; whoever has the descriptor `asker` is told by it.

        Raises ServeError if it cannot be, and does not return otherwise.
        """

    def status(self) -> dict[str, Any]:
        """What `serve status --json` shows (`serve_asgi.listener.status`)."""

    def config_shown(self) -> dict[str, Any]:
        """What `serve config --json` shows: each option's value and where it came from."""

    def schedules(self) -> ScheduleCommands:
        """The schedules of the hub."""

    def ask_schedule(self, do: str, name: str, answer: CommandReply) -> None:
        """Pause, resume or run one; `answer` is called when it is done."""

    async def stacks(self, timeout: float) -> dict[str, Any]:
        """What `serve stacks --json` shows: every worker's Python stacks and tasks, waiting so many seconds at most."""


class _PendingAnswer:
    """Somebody who waits for an outcome, and perhaps for the records on the way to it."""

    __slots__ = ("_changed", "_records", "follows", "outcome")

    def __init__(self, *, follows: bool) -> None:
        self.follows = follows
        self.outcome: dict[str, Any] | None = None
        self._changed = anyio.Event()
        self._records: collections.deque[Mapping[str, Any]] = collections.deque(maxlen=FOLLOWED)

    def tell(self, record: Mapping[str, Any]) -> None:
        """Something has happened."""
        if self.follows and self.outcome is None:
            self._records.append(record)
            self._changed.set()

    def end(self, outcome: dict[str, Any]) -> None:
        """The outcome is known; the first one counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._changed.set()

    async def news(self) -> list[Mapping[str, Any]]:
        """Wait for records and return them; nothing, if the outcome is known and all records have been returned."""
        while not self._records and self.outcome is None:
            await self._changed.wait()
            self._changed = anyio.Event()
        found = list(self._records)
        self._records.clear()
        return found


class ControlServer:
    """Serves the control socket of one listener."""

    def __init__(self, path: Path | None, server: Controlled) -> None:
        """`path` of the socket, or None for the default."""
        self._wanted_path = path
        self._server = server
        self._tickets: dict[int, _PendingAnswer] = {}
        self._askers: set[_PendingAnswer] = set()
        self._next_ticket = 1
        self._path: Path | None = None
        self._listening: SocketListener | None = None
        self._identity: Identity | None = None
        self._busy = 0
        self._idle = anyio.Event()
        self._news = anyio.Event()
        """Set at the next record, and then another one."""

    @property
    def path(self) -> Path | None:
        """Where the socket is, once it is there."""
        return self._path

    @property
    def answering(self) -> int:
        """How many conversations have not come to their end, those not counted that only follow what happens."""
        return self._busy - sum(asker.outcome is None for asker in self._askers)

    def answer(self, ticket: int, ok: bool, text: str, detail: str) -> None:
        """The reload of this ticket has come to its end."""
        if (asker := self._tickets.pop(ticket, None)) is not None:
            asker.end({"ok": ok, "text": text, "detail": detail})

    def happened(self, record: Mapping[str, Any]) -> None:
        """Tell those who follow what has happened; `record` is JSON-compatible."""
        self._news.set()
        self._news = anyio.Event()
        for asker in self._askers:
            asker.tell(record)

    def to_state(self, kept: list[int]) -> dict[str, Any] | None:
        """What `serve` needs in a program that takes this one's place; `kept` gets what must stay open."""
        if self._listening is None:
            return None
        fd = self._listening.extra(SocketAttribute.raw_socket).fileno()
        kept.append(fd)
        return {"fd": fd, "path": str(self._path), "identity": self._identity}

    async def serve(
        self, inherited: dict[str, Any] | None = None, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, on a socket that is `inherited` or made; return at once if it cannot be made."""
        try:
            path = await (self._make() if inherited is None else self._take(inherited))
        except (OSError, ValueError) as error:
            log.warning(
                "no control socket: %s; give --control a path that can be written, or --no-control",
                error,
                extra=about("control_socket_failed"),
            )
            task_status.started()
            return
        self._path = path
        task_status.started()
        assert self._listening is not None
        assert self._identity is not None
        try:
            async with self._listening, anyio.create_task_group() as tasks:
                await self._accept(self._listening, tasks)
        finally:
            unlink_own(str(path), self._identity)

    async def _make(self) -> Path:
        path = self._wanted_path or control_protocol.default_socket(os.getpid())
        _check_free(path)
        self._listening = await anyio.create_unix_listener(path, mode=0o600)
        made = path.lstat()
        self._identity = (made.st_dev, made.st_ino)
        return path

    async def _take(self, inherited: dict[str, Any]) -> Path:
        self._listening = await SocketListener.from_socket(socket.socket(fileno=inherited["fd"]))
        self._identity = (inherited["identity"][0], inherited["identity"][1])
        return Path(inherited["path"])

    async def _accept(self, server: SocketListener, tasks: TaskGroup) -> None:
        """Accept until cancelled; half of the descriptors are kept for a reload, and those who ask wait meanwhile."""
        short = False
        while True:
            while self._busy >= AT_LEAST and not descriptors.available(descriptors.limit() // 2):
                await anyio.sleep(PAUSE)
            try:
                stream = await server.accept()
            except (anyio.BrokenResourceError, OSError) as error:
                if not short:
                    log.warning(
                        "cannot accept control connections: %s", error.__cause__ or error, extra=about("accept_failed")
                    )
                short = True
                await anyio.sleep(PAUSE)
            else:
                short = False
                tasks.start_soon(self._handle, stream)

    async def finish(self) -> None:
        """The server has ended: tell those who wait, and wait at most a second for answers that are being written."""
        cut = self._cut()
        for asker in self._askers:
            asker.end({"ok": True, "text": "stopped", "cut": cut})
        if self._busy:
            self._idle = anyio.Event()
            with anyio.move_on_after(1.0):
                await self._idle.wait()

    async def _handle(self, stream: SocketStream) -> None:
        self._busy += 1
        try:
            async with stream:
                if self._allowed(stream):
                    await self._converse(stream)
        except (
            anyio.BrokenResourceError,
            anyio.EndOfStream,
            anyio.IncompleteRead,
            anyio.DelimiterNotFound,
            TimeoutError,
        ):
            pass  # the peer left; what it asked for goes on
        except Exception:
            log.exception("a control request could not be answered; the server serves on")
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    def _allowed(self, stream: SocketStream) -> bool:
        raw = stream.extra(SocketAttribute.raw_socket)
        _, uid, _ = struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid in (0, os.geteuid())

    async def _converse(self, stream: SocketStream) -> None:
        with anyio.fail_after(REQUEST_TIMEOUT):
            line = await BufferedByteReceiveStream(stream).receive_until(b"\n", REQUEST_LIMIT)
        try:
            answer = await self._answer(_REQUEST.decode(line), stream)
        except ServeError as error:
            answer = {"ok": False, "text": str(error)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            answer = {"ok": False, "text": "the request was not understood; use the serve command of this version"}
        await _send(stream, answer)

    async def _answer(self, request: ControlRequest, stream: SocketStream) -> dict[str, Any]:
        if request.version != control_protocol.VERSION:
            return {"ok": False, "text": f"this server speaks control version {control_protocol.VERSION}"}
        follows = request.follow
        match request.command:
            case "reload":
                return await self._reload(stream, wait=request.wait, follows=follows)
            case "reload-listener":
                await self._server.replace(stream.extra(SocketAttribute.raw_socket).fileno())
                return {"ok": False, "text": "the listener was not replaced"}  # it has taken this task with it
            case "drain":
                on = not request.off
                self._server.post(e.DrainAsked(on=on, by_control=True))
                if not await self._drained(on):
                    return {"ok": True, "text": "requested; the hooks before it have not finished yet"}
                return {"ok": True, "text": "draining until `serve drain --off`" if on else "drain ended"}
            case "stop":
                return await self._stop(stream, request.delay, follows=follows)
            case "scale":
                return self._scale(request.to)
            case "logs-reopen":
                self._server.post(e.ReopenAsked())
                return {"ok": True, "text": "the log files are opened again"}
            case "status":
                return {"ok": True, "text": "", "status": self._server.status()}
            case "config":
                return {"ok": True, "text": "", "config": self._server.config_shown()}
            case "stacks":
                timeout = min(STACKS_TIME, max(0.0, request.timeout))
                return {"ok": True, "text": "", "stacks": await self._server.stacks(timeout)}
            case "schedules":
                found = self._server.schedules().report(request.name)
                return {"ok": True, "text": "", "schedules": found}
            case "schedule":
                return await self._schedule(stream, request.do, request.name)
            case "follow":
                return await self._tell(stream, _PendingAnswer(follows=True))
            case other:
                return {"ok": False, "text": f"this server does not know the command {other!r}"}

    async def _reload(self, stream: SocketStream, *, wait: bool, follows: bool) -> dict[str, Any]:
        ticket, asker = self._next_ticket, _PendingAnswer(follows=follows)
        self._next_ticket += 1
        if not wait:
            self._server.post(e.ReloadAsked(ticket, by="serve reload"))
            return {"ok": True, "text": "reload requested"}
        self._tickets[ticket] = asker
        self._server.post(e.ReloadAsked(ticket, by="serve reload"))
        return await self._tell(stream, asker)

    async def _drained(self, on: bool) -> bool:
        """Wait until the drain has begun or ended, as asked: the hooks pre_drain are done, or out of time."""
        with anyio.move_on_after(DRAIN_TIME):
            while (status := self._server.status())["state"] == "running" and (status["draining"] is None) is on:
                await self._news.wait()
            return True
        return False

    async def _stop(self, stream: SocketStream, delay: float | None, *, follows: bool) -> dict[str, Any]:
        """Begin a graceful stop, unless one is going on: a second TERM would make it a quick one."""
        state = self._server.status()["state"]
        if state in _NOT_STOPPING:
            self._server.post(e.StopAsked(None if delay is None else min(LONGEST_DELAY, max(0.0, float(delay)))))
            text = "stopping"
        else:
            text = f"the server is {state} already"
        if not follows:
            return {"ok": True, "text": text}
        return await self._tell(stream, _PendingAnswer(follows=True))

    async def _schedule(self, stream: SocketStream, do: str, name: str) -> dict[str, Any]:
        """Pause or resume one, or run it and wait for the end of that."""
        asker = _PendingAnswer(follows=False)

        def answer(ok: bool, text: str, found: Any) -> None:
            asker.end({"ok": ok, "text": text, "runs": found})

        self._server.ask_schedule(do, name, answer)
        return await self._tell(stream, asker)

    def _scale(self, to: object) -> dict[str, Any]:
        if not isinstance(to, int) or isinstance(to, bool) or to < 1:
            return {"ok": False, "text": f"{to!r} is not a number of workers; there must be at least one"}
        if to > MOST_WORKERS:
            return {"ok": False, "text": f"{to} workers are too many; the most is {MOST_WORKERS}"}
        found = self._server.status()
        if found["state"] not in _NOT_STOPPING:
            return {"ok": False, "text": f"the server is {found['state']}; the number of workers cannot be changed"}
        self._server.post(e.ScaleAsked(to=to))
        return {"ok": True, "text": f"workers: {found['size']} -> {to}"}

    async def _tell(self, stream: SocketStream, asker: _PendingAnswer) -> dict[str, Any]:
        """Send what happens as it happens, if that was asked for; return the outcome when it is known.

        Raises anyio.EndOfStream if the peer leaves before.
        """
        self._askers.add(asker)
        try:
            async with anyio.create_task_group() as tasks:
                if asker.follows:
                    tasks.start_soon(_watch, stream, tasks.cancel_scope)
                with contextlib.suppress(anyio.BrokenResourceError, TimeoutError):  # it left
                    while news := await asker.news():
                        for record in news:
                            await _send(stream, {"record": record})
                tasks.cancel_scope.cancel()
        finally:
            self._askers.discard(asker)
        if asker.outcome is None:
            raise anyio.EndOfStream
        return asker.outcome

    def _cut(self) -> int:
        return int(self._server.status()["lost"])


DRAIN_TIME: Final = 60.0
"""Seconds that `serve drain` waits for hooks."""
_NOT_STOPPING: Final = frozenset({"starting", "opening", "running"})


async def _send(stream: SocketStream, message: Mapping[str, Any]) -> None:
    with anyio.fail_after(REQUEST_TIMEOUT):
        await stream.send(json.dumps({"version": control_protocol.VERSION, **message}).encode() + b"\n")


async def _watch(stream: SocketStream, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the peer has left; one that has only ended its own sending (`nc -N`) still listens."""
    raw = stream.extra(SocketAttribute.raw_socket)
    # Not stream.receive(): cancelled in the very turn in which something comes, it puts a traceback into the log
    # (anyio 4.16, Future.set_result). What is cancelled here is a wait that knows of this.
    with contextlib.suppress(OSError):
        piece = b"-"
        while piece:
            await anyio.wait_readable(raw)
            with contextlib.suppress(BlockingIOError):
                piece = raw.recv(65536)
    poll = select.poll()
    poll.register(raw.fileno(), 0)
    if any(happened & (select.POLLHUP | select.POLLERR) for _, happened in poll.poll(0)):
        scope.cancel()


def _check_free(path: Path) -> None:
    """Leave another server's control socket alone. Raises FileExistsError if one answers at `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass  # its queue is full: it lives
        except OSError:
            return
    raise FileExistsError(f"another server answers at {path}")
