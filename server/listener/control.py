"""The control socket's server: it turns requests into events and answers when the outcome is known.

It runs in the listener's loop and answers while workers are busy or blocked. Peers must be root or the listener's own
user (SO_PEERCRED, unix(7)). A control socket that cannot be made is a warning: the server serves without it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from server import control_protocol
from server.listener import events as e
from server.shut_out import unlink_own

REQUEST_TIMEOUT = 5.0
"""Seconds that a peer has to send its request, and to take its answer."""
PAUSE: Final = 0.2
"""Seconds until the next try to accept, when the process or the machine is out of descriptors."""

log = logging.getLogger("serve")


class _Outcome:
    """The place where the outcome of one reload arrives."""

    __slots__ = ("given", "message")

    def __init__(self) -> None:
        self.given = anyio.Event()
        self.message: dict[str, Any] = {}


class ControlServer:
    """Serves the control socket of one listener."""

    def __init__(
        self, path: Path | None, post: Callable[[e.Event], None], status: Callable[[], dict[str, Any]]
    ) -> None:
        """`path` of the socket, or None for the default; `post` takes events, `status` tells what is."""
        self._wanted_path = path
        self._post = post
        self._status = status
        self._outcomes: dict[int, _Outcome] = {}
        self._next_ticket = 1
        self._path: Path | None = None
        self._busy = 0
        self._idle = anyio.Event()

    def answer(self, ticket: int, ok: bool, text: str, detail: str) -> None:
        """The reload of this ticket has come to its end."""
        if (outcome := self._outcomes.pop(ticket, None)) is not None:
            outcome.message = {"ok": ok, "text": text, "detail": detail}
            outcome.given.set()

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; return at once if the socket cannot be made."""
        try:
            path = self._wanted_path or control_protocol.default_socket(os.getpid())
            _check_free(path)
            server = await anyio.create_unix_listener(path, mode=0o600)
            made = path.lstat()
        except (OSError, ValueError) as error:
            log.warning("no control socket: %s; give --control a path that can be written, or --no-control", error)
            task_status.started()
            return
        self._path = path
        task_status.started()
        try:
            async with server, anyio.create_task_group() as tasks:
                await self._accept(server, tasks)
        finally:
            unlink_own(str(path), (made.st_dev, made.st_ino))

    async def _accept(self, server: SocketListener, tasks: TaskGroup) -> None:
        """Accept until cancelled; without a descriptor to spare, those who ask wait until there is one."""
        short = False
        while True:
            try:
                stream = await server.accept()
            except (anyio.BrokenResourceError, OSError) as error:
                if not short:
                    log.warning("cannot accept control connections: %s", error.__cause__ or error)
                short = True
                await anyio.sleep(PAUSE)
            else:
                short = False
                tasks.start_soon(self._handle, stream)

    async def finish(self) -> None:
        """Wait at most a second for answers that are being written."""
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
            log.exception("a control request was not answered; the server serves on")
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
            line = await BufferedByteReceiveStream(stream).receive_until(b"\n", control_protocol.LINE_LIMIT)
        try:
            request = json.loads(line)
            answer = await self._answer(request)
        except (ValueError, TypeError, KeyError, AttributeError):
            answer = {"ok": False, "text": "the request was not understood; use the serve command of this version"}
        with anyio.fail_after(REQUEST_TIMEOUT):
            await stream.send(json.dumps({"version": control_protocol.VERSION, **answer}).encode() + b"\n")

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["version"] != control_protocol.VERSION:
            return {"ok": False, "text": f"this server speaks control version {control_protocol.VERSION}"}
        match request["command"]:
            case "reload":
                return await self._reload(wait=bool(request.get("wait", True)))
            case "drain":
                on = not request.get("off", False)
                self._post(e.LameDuckAsked(on=on, by_control=True))
                return {"ok": True, "text": "in lame duck until told off" if on else "lame duck is off"}
            case "status":
                return {"ok": True, "text": "", "status": self._status()}
            case other:
                return {"ok": False, "text": f"this server does not know the command {other!r}"}

    async def _reload(self, *, wait: bool) -> dict[str, Any]:
        ticket, outcome = self._next_ticket, _Outcome()
        self._next_ticket += 1
        self._outcomes[ticket] = outcome
        self._post(e.ReloadAsked(ticket))
        if not wait:
            return {"ok": True, "text": "reload asked for"}
        await outcome.given.wait()
        return outcome.message


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
