"""The control socket's server: it accepts connections, reads one request from each and sends the reply.

It runs in the listener's loop and responds while workers are busy or blocked; `serve_asgi.listener.control_commands`
performs the requests. Clients must be root or the listener's own user (SO_PEERCRED, unix(7)). If the socket cannot be
created there is a warning, and the server runs without it.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from serve_asgi.errors import ServeError
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.ipc.leftovers import remove_dead_servers
from serve_asgi.ipc.shut_out_clients import Identity, unlink_own
from serve_asgi.listener.control_commands import REQUEST_TIMEOUT, ControlCommands, Controlled, ControlRequest, send
from serve_asgi.logs.server_log import about

REQUEST_LIMIT: Final = 1_048_576
"""Bytes of a request: a value of the shared state fits, escaped for JSON."""
PAUSE: Final = 0.2
"""Seconds until the next attempt to accept, when the process or the machine is out of descriptors."""
AT_LEAST: Final = 4
"""Connections that are served however few descriptors are left."""
log = logging.getLogger("serve")

_REQUEST: Final = msgspec.json.Decoder(ControlRequest)


class ControlServer:
    """Serves the control socket of one listener."""

    def __init__(self, path: Path | None, server: Controlled) -> None:
        """`path` of the socket, or None for the default."""
        self._wanted_path = path
        self.commands = ControlCommands(server)
        self._path: Path | None = None
        self._listening: SocketListener | None = None
        self._identity: Identity | None = None
        self._busy = 0
        self._idle = anyio.Event()

    @property
    def path(self) -> Path | None:
        """Where the socket is, once it exists."""
        return self._path

    @property
    def answering(self) -> int:
        """How many requests are in progress, without clients that only follow events."""
        return self._busy - sum(each.outcome is None for each in self.commands.waiting)

    def to_state(self, kept: list[int]) -> dict[str, Any] | None:
        """What `serve` needs in a program that replaces this one; adds to `kept` the descriptors that must stay
        open."""
        if self._listening is None:
            return None
        fd = self._listening.extra(SocketAttribute.raw_socket).fileno()
        kept.append(fd)
        return {"fd": fd, "path": str(self._path), "identity": self._identity}

    async def serve(
        self, inherited: dict[str, Any] | None = None, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, on an `inherited` or a new socket; return at once if it cannot be created."""
        try:
            path = await (self._make() if inherited is None else self._take(inherited))
        except (OSError, ValueError) as error:
            log.warning(
                "no control socket: %s; give --control a path that can be written, or --no-control-socket",
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
        if self._wanted_path is None:
            remove_dead_servers(path.parent)
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
        """Accept until cancelled; half of the descriptors are kept for a reload, and clients wait meanwhile."""
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
        """The server has ended: reply to those who wait, and wait at most a second for replies being written."""
        self.commands.finish()
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
            pass  # the client disconnected; what it requested continues
        except Exception:
            log.exception("a control request failed; the server continues")
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
            answer = await self.commands.do(_REQUEST.decode(line), stream)
        except ServeError as error:
            answer = {"ok": False, "text": str(error)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            answer = {"ok": False, "text": "the request was not understood; use the serve command of this version"}
        await send(stream, answer)


def _check_free(path: Path) -> None:
    """Leave another server's control socket alone. Raises FileExistsError if a server listens at `path`."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass  # its queue is full: it is alive
        except OSError:
            return
    raise FileExistsError(f"another server listens at {path}")
