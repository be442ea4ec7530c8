"""Sinks: bounded buffers that are written to a pipe, terminal, socket or file without ever blocking.

When a buffer is full the oldest whole lines are dropped; when the reader is gone everything is; either way the bytes
are counted.

O_NONBLOCK belongs to the open file (fcntl(2)), which other processes share: any of them that clears it could make us
block. So each process reopens the original for itself, which also leaves the others' mode alone; and where an open file
is shared nevertheless (the pipe of a dead child, an original that cannot be reopened), bytes are moved by splice(2),
which has a non-blocking flag per call. It knows nothing of logs or workers.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import socket
import stat
import sys
import threading
import time
from typing import Any, Final

if sys.platform == "linux":
    import fcntl
else:  # where nothing uses it
    fcntl: Any = None

LIMIT: Final = 1 << 20  # bytes that a sink buffers
ATOMIC: Final = 4096  # PIPE_BUF (pipe(7)): writes up to this size are never mixed with another process's
READ: Final = 65536
MEMORY: Final = 1  # major number of /dev/null and its like (Linux, devices.txt)
FINISH_TIME: Final = 1.0  # seconds that a process waits at its exit for all its output to be written

_sinks: Final[set[Sink]] = set()
_dropped_by_closed = 0


@functools.cache
def last_moment() -> float:
    """Until when (CLOCK_MONOTONIC, s) the exit of this process waits, counted from the first call."""
    return time.monotonic() + FINISH_TIME


def dropped() -> int:
    """Bytes of output that this process has dropped since its start: nobody read them, or the disk was full."""
    return _dropped_by_closed + sum(sink.dropped for sink in list(_sinks))


def lost_at_exit() -> int:
    """The same of a process that is about to end, with what it could not write up to now either."""
    for sink in list(_sinks):
        sink.pump()
    return dropped() + sum(len(sink.pending()) for sink in list(_sinks))


class SplicePipe:
    """A pipe of our own, through which bytes are moved from or to another pipe without blocking, whatever its mode."""

    __slots__ = ("_read_end", "_write_end")
    _read_end: int
    _write_end: int

    def __init__(self) -> None:
        """Raises OSError (EMFILE)."""
        if sys.platform != "linux":
            raise NotImplementedError
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def read(self, fd: int) -> bytes:
        """Read the pipe `fd`, as much as this one holds; b"" at its end. Raises BlockingIOError, OSError."""
        if sys.platform != "linux":
            raise NotImplementedError
        if not os.splice(fd, self._write_end, READ, flags=os.SPLICE_F_NONBLOCK):
            return b""
        return os.read(self._read_end, READ)

    def write(self, fd: int, piece: bytes) -> int:
        """Write the beginning of `piece` to the pipe `fd`; return how much. Raises BlockingIOError, OSError."""
        if sys.platform != "linux":
            raise NotImplementedError
        held = os.write(self._write_end, piece)
        try:
            return os.splice(self._read_end, fd, held, flags=os.SPLICE_F_NONBLOCK)
        finally:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._read_end, READ):
                    pass  # the caller keeps the rest

    def descriptors(self) -> list[int]:
        """The open descriptors."""
        return [self._read_end, self._write_end]

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


class Sink:
    """A destination of output. `write` never blocks and never raises; thread-safe."""

    __slots__ = (
        "_fd",
        "_gone",
        "_in_pieces",
        "_is_file",
        "_is_socket",
        "_lock",
        "_mid_line",
        "_needs_poll",
        "_pending",
        "_splice",
        "_unblocks",
        "dropped",
        "shared",
    )

    def __init__(self, fd: int, *, shared: bool = False) -> None:
        """Take over `fd`. `shared`: other processes share the open file, so that its mode is not ours to change."""
        self._fd = fd
        self.shared = shared
        mode = os.fstat(fd).st_mode
        self._is_socket = stat.S_ISSOCK(mode)
        self._is_file = stat.S_ISREG(mode) and not shared
        self._in_pieces = blocks(fd)
        self._unblocks = self._in_pieces and not self._is_socket and not shared
        splices = sys.platform == "linux" and shared and stat.S_ISFIFO(mode)
        self._splice = SplicePipe() if splices else None
        self._needs_poll = self._in_pieces and shared and not self._is_socket and self._splice is None
        self._gone = False
        self._mid_line = False
        self._pending = bytearray()
        self._lock = threading.Lock()
        self.dropped = 0
        _sinks.add(self)

    @classmethod
    def onto(cls, fd: int) -> Sink:
        """A sink that writes to the same file as `fd`, and leaves `fd` alone."""
        anew, shared = open_again(fd)
        return cls(anew, shared=shared)

    def again(self) -> Sink:
        """Another sink of this process for the same file."""
        return Sink(duplicate(self._fd), shared=self.shared)

    def fileno(self) -> int:
        return self._fd

    def descriptors(self) -> list[int]:
        """The open descriptors."""
        return [self._fd, *(self._splice.descriptors() if self._splice is not None else ())]

    @property
    def waiting(self) -> bool:
        """Whether something is buffered, to be written later (`pump`)."""
        return bool(self._pending)

    def pending(self) -> bytes:
        """What is buffered."""
        return bytes(self._pending)

    def write(self, data: bytes) -> None:
        """Write what can be written now, buffer the rest, and drop the oldest lines if that is too much."""
        with self._lock:
            self._pending += data
            self._pump()
            if len(self._pending) > LIMIT:
                self._drop_oldest()

    def pump(self) -> None:
        """Write as much of the buffer as can be written now."""
        with self._lock:
            self._pump()

    def take_lines(self) -> bytes:
        """Remove and return the buffered whole lines, except a partly written one, for another sink."""
        with self._lock:
            start = self._pending.find(b"\n") + 1 if self._mid_line else 0
            lines = bytes(self._pending[start:])
            del self._pending[start:]
        return lines

    def finish(self, deadline: float) -> None:
        """Write the buffer, waiting until `deadline` (CLOCK_MONOTONIC, s); what is left then is dropped.

        A full disk is not waited for: there is no event for room.
        """
        self.pump()
        while self._pending and self._in_pieces and (left := deadline - time.monotonic()) > 0:
            wait_writable(self._fd, left)
            self.pump()
        with self._lock:
            self._drop_all()

    def forget(self) -> None:
        """In a forked process that writes on: what is buffered is the parent's to write."""
        self._lock = threading.Lock()
        self._is_file = False  # its position is that of all who write to this open file
        self._pending.clear()
        self._mid_line, self.dropped = False, 0

    def let_go(self) -> None:
        """In a forked child: write nothing any more. The lock may be held by a thread that no longer exists."""
        self._lock = threading.Lock()
        self._pending.clear()
        self._gone = True

    def close(self) -> None:
        """Close the descriptor; the buffer is dropped."""
        global _dropped_by_closed
        with self._lock:
            self._drop_all()
            if self._fd >= 0:
                os.close(self._fd)
            if self._splice is not None:
                self._splice.close()
            self._fd, self._splice = -1, None
            self._gone = True
            if self in _sinks:
                _sinks.discard(self)
                _dropped_by_closed += self.dropped

    def _pump(self) -> None:
        while self._pending and not self._gone:
            end = self._cut()
            try:
                written = self._write(bytes(self._pending[:end]))
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk may have room again
                    return
                self._gone = True  # EPIPE, EIO: nobody will ever read it
                break
            is_short = self._is_file and written < end
            if is_short:
                written -= self._taken_back(written)
            if written:
                self._mid_line = self._pending[written - 1] != 0x0A
                del self._pending[:written]
            if is_short:
                return  # the disk is full; each further try would leave a piece of a line
        if self._gone:
            self._drop_all()

    def _taken_back(self, written: int) -> int:
        """A full disk has taken `written` bytes of the buffer: take half a line back, before another process appends to
        it; return how many bytes. Not if another one has done so already."""
        half = written - (self._pending.rfind(b"\n", 0, written) + 1)
        if sys.platform == "win32" or not half or self._mid_line:
            return 0
        with contextlib.suppress(OSError):
            end = os.lseek(self._fd, 0, os.SEEK_CUR)  # where this write has ended (O_APPEND, open(2))
            if os.fstat(self._fd).st_size == end:
                os.ftruncate(self._fd, end - half)
                return half
        return 0

    def _write(self, piece: bytes) -> int:
        if sys.platform != "linux":  # whoever develops there reads what is written
            return os.write(self._fd, piece)
        if self._is_socket:
            with socket.socket(fileno=os.dup(self._fd)) as end:
                return end.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._splice is not None:
            return self._splice.write(self._fd, piece)
        if self._unblocks:
            os.set_blocking(self._fd, False)  # each time: the application may have changed it
        elif self._needs_poll and not wait_writable(self._fd, 0):
            raise BlockingIOError
        return os.write(self._fd, piece)

    def _cut(self) -> int:
        """How much to write at once: whole lines, and no more than is written atomically."""
        if len(self._pending) <= ATOMIC or not self._in_pieces:
            return len(self._pending)
        return self._pending.rfind(b"\n", 0, ATOMIC) + 1 or ATOMIC

    def _drop_oldest(self) -> None:
        """Drop whole lines down to the limit, but not a partly written one."""
        start = self._pending.find(b"\n") + 1 if self._mid_line else 0
        end = self._pending.find(b"\n", max(start, len(self._pending) - LIMIT)) + 1 or len(self._pending)
        del self._pending[start:end]
        self.dropped += end - start

    def _drop_all(self) -> None:
        self.dropped += len(self._pending)
        self._pending.clear()


def blocks(fd: int) -> bool:
    """Whether a write to `fd` may block or fail because of its reader: pipes, sockets, terminals."""
    if sys.platform != "linux":
        return False
    # Not isatty(3): that is false for a terminal that has vanished.
    status = os.fstat(fd)
    mode = status.st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.major(status.st_rdev) != MEMORY)


def wait_writable(fd: int, seconds: float) -> bool:
    """Wait until `fd` is writable (or broken), at most `seconds`; return False if it is not."""
    if sys.platform == "win32":
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def say(fd: int, text: str) -> None:
    """Write a last message to `fd` within a bounded time; raises nothing."""
    with contextlib.suppress(OSError):
        sink = Sink.onto(fd)
        sink.write(text.encode(errors="backslashreplace"))
        sink.finish(time.monotonic() + FINISH_TIME)
        sink.close()


def open_again(fd: int) -> tuple[int, bool]:
    """Reopen the file of `fd`, for an O_NONBLOCK of its own; return the descriptor, and whether it is shared
    instead."""
    if sys.platform != "linux":
        return duplicate(fd), True
    mode = os.fstat(fd).st_mode
    if blocks(fd) and not stat.S_ISSOCK(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # ENXIO: a pipe without a reader. EACCES: another user's terminal. The duplicate will show either, later.
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", flags), False
    return duplicate(fd), True


def duplicate(fd: int) -> int:
    """A duplicate that is not inherited; where that is possible, none of the standard descriptors, even if one is
    closed."""
    if sys.platform != "linux":
        return os.dup(fd)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def descriptors() -> list[int]:
    """The descriptors of this process's sinks."""
    return [fd for sink in _sinks for fd in sink.descriptors()]


def all_sinks() -> list[Sink]:
    """The open sinks of this process."""
    return list(_sinks)
