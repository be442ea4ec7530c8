"""A body that the kernel sends straight from a file: http.response.pathsend and http.response.zerocopysend.

It owns the file's descriptor while it is sent and a duplicate of the connection's. Rules: never more bytes than were
announced; a file is only read while everything written before is with the kernel, so that the order is kept; the loop
never waits for the client. It must not know how the body is framed.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from typing import Any, Final, Protocol

from serve_asgi.http.client_socket import duplicate
from serve_asgi.http.worker_context import Message
from serve_asgi.http.write_buffer import WriteBuffer

AT_ONCE: Final = 1 << 20
"""Bytes that one connection sends before others have their turn."""

SMALL: Final = 65536
"""Up to this size (bytes) a file is read and written like any body: that costs less than a duplicate."""


class PieceOutput(Protocol):
    """What a file is written through, piece by piece."""

    @property
    def paused(self) -> bool:
        """It takes no more for now: whoever writes waits in `writable`."""

    def write_large(self, data: bytes, /) -> None:
        """Write a piece."""

    async def writable(self) -> None:
        """Wait until it takes more, or is closed."""

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""

    def abort(self) -> None:
        """End at once, so that the client sees that what was announced is not whole."""

    def release_writers(self) -> None:
        """Let those who wait in `writable` go on although it takes no more: they will not write more."""


class FileSink(Protocol):
    """The connection, as far as a file that is sent needs it."""

    output: WriteBuffer

    def pause_writing(self) -> None:
        """The client reads more slowly than the file is sent."""

    def resume_writing(self) -> None:
        """It has caught up."""


class FileBody:
    """`left` bytes of a file from `offset` on; a context manager that closes the descriptor if it is its own."""

    __slots__ = ("_owned", "fd", "left", "offset")

    def __init__(self, fd: int, offset: int, left: int, owned: bool) -> None:
        self.fd = fd
        self.offset = offset
        self.left = left
        self._owned = owned

    def __enter__(self) -> FileBody:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            os.close(self.fd)

    async def send(self, connection: FileSink) -> None:
        """Send it after what is written; some is `left` if the file ends early or the connection does.

        What waits ends with the client's reading or `write_timeout`. Raises OSError if the file cannot be read.
        """
        in_clear = connection.output.transport.get_extra_info("tls") is None
        if self.left <= SMALL or not in_clear or sys.platform != "linux":
            await self.send_pieces(connection.output)  # what the kernel sent past TLS would not be encrypted
            return
        output = connection.output
        await output.written()
        if output.transport.is_closing():
            return
        try:
            socket = duplicate(output.transport)
        except OSError:  # no descriptor is left: like this it costs more, and works
            await self.send_pieces(connection.output)
            return
        lent = output.worker.lent
        lent.add(socket)
        try:
            await self._send_through(socket, connection)
        finally:
            lent.discard(socket)
            os.close(socket)

    async def send_pieces(self, output: PieceOutput) -> None:
        """The same for whatever is no socket of the kernel's to send to."""
        while self.left and not output.is_closing():
            data = self._read(min(self.left, SMALL))
            if not data:
                return  # the file has become shorter
            self.offset += len(data)
            self.left -= len(data)
            output.write_large(data)
            if output.paused:
                await output.writable()
            elif (
                self.left and self.left % AT_ONCE < SMALL
            ):  # a client that takes it as fast as it is read: others have their turn
                await asyncio.sleep(0)

    def _read(self, most: int) -> bytes:
        if sys.platform == "win32":
            os.lseek(self.fd, self.offset, os.SEEK_SET)
            return os.read(self.fd, most)
        return os.pread(self.fd, most, self.offset)

    async def _send_through(self, socket: int, connection: FileSink) -> None:
        if sys.platform != "linux":
            raise NotImplementedError
        output = connection.output
        loop = output.worker.loop
        while self.left and not output.transport.is_closing():
            try:
                size = os.sendfile(socket, self.fd, self.offset, min(self.left, AT_ONCE))
            except BlockingIOError:
                size = -1
            except (ConnectionError, TimeoutError):  # the client has gone, and its end may have been read long ago
                output.transport.abort()
                return
            if size == 0:
                return  # the file has become shorter
            if size > 0:
                self.offset += size
                self.left -= size
                output.worker.sent += size
            output.file_left = self.left
            if self.left:
                os.posix_fadvise(self.fd, self.offset, AT_ONCE, os.POSIX_FADV_WILLNEED)
                connection.pause_writing()
                loop.add_writer(socket, connection.resume_writing)
                try:
                    await output.writable()
                finally:
                    loop.remove_writer(socket)
                    output.file_left = 0


def path_of(message: Message, length: int) -> FileBody:
    """What http.response.pathsend names (ASGI extensions, "Path Send"): the whole file, or as much as was announced.

    `length` is the Content-Length that the application gave, or -1. A file that has grown since is sent up to it. The
    specification asks for an absolute path, but Starlette passes on whatever its FileResponse was given: it is opened
    as the application itself would open it. Raises TypeError, ValueError or OSError.
    """
    path = message.get("path")
    if not isinstance(path, str):
        raise TypeError(f"The path of http.response.pathsend must be a str, not {type(path).__name__}.")
    if sys.platform == "win32":
        flags = os.O_RDONLY | os.O_BINARY
    else:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(path, flags)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ValueError(f"{path!r} is not a file.")
    size = status.st_size
    return FileBody(fd, 0, min(size, length) if length >= 0 else size, owned=True)


def file_of(message: Message) -> FileBody:
    """What http.response.zerocopysend names (ASGI extensions, "Zero Copy Send"): a file object with a descriptor.

    Without `offset` it begins where the file stands, without `count` it goes to the end. The application keeps the
    file. Raises TypeError, ValueError or OSError.
    """
    file: Any = message.get("file")
    if not hasattr(file, "fileno"):
        raise TypeError("The file of http.response.zerocopysend must be an open file with a descriptor.")
    fd = file.fileno()
    offset, count = message.get("offset"), message.get("count")
    for number in (offset, count):
        if number is not None and (not isinstance(number, int) or number < 0):
            raise ValueError("offset and count of http.response.zerocopysend must be numbers of bytes.")
    start = file.tell() if offset is None else offset
    size = max(0, os.fstat(fd).st_size - start)
    if count is not None:
        size = min(size, count)
    if offset is None:
        file.seek(start + size)
    return FileBody(fd, start, size, owned=False)
