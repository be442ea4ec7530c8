"""Sinks: bounded buffers that are written to a pipe, terminal, socket or file without ever blocking.

When a buffer is full the oldest whole lines go; when whoever reads is gone everything goes; either way the bytes are
counted.

O_NONBLOCK belongs to the open file (fcntl(2)), which other processes share: whoever of them clears it could have us
wait. So the original is opened again, by each process for itself, which also lets the others keep their mode; and where
an open file is shared nevertheless (the pipe of a child that has died, an original that cannot be opened again), bytes
move by splice(2), which is told with each call not to wait. It knows nothing of logs or workers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import socket
import stat
import threading
import time
from typing import Final

LIMIT: Final = 1 << 20  # bytes that a sink holds
ATOMIC: Final = 4096  # PIPE_BUF (pipe(7)): a write of no more is never mixed with another process's
READ: Final = 65536
MEMORY: Final = 1  # major number of /dev/null and its like (Linux, devices.txt)
FINISH_TIME: Final = 1.0  # seconds that the end of a process waits for its output to be written, all of it together

_sinks: Final[set[Sink]] = set()
_dropped_by_closed = 0


@functools.cache
def last_moment() -> float:
    """Until when (CLOCK_MONOTONIC, s) the end of this process waits: the time runs from the first that asks."""
    return time.monotonic() + FINISH_TIME


def dropped() -> int:
    """Bytes of output that this process has dropped since its start, because nobody read them."""
    return _dropped_by_closed + sum(sink.dropped for sink in list(_sinks))


class SplicePipe:
    """A pipe of our own, through which bytes move out of a pipe or into one without waiting, whatever its mode is."""

    __slots__ = ("_read_end", "_write_end")

    def __init__(self) -> None:
        """Raises OSError (EMFILE)."""
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def read(self, fd: int) -> bytes:
        """What is in the pipe `fd`, as far as this one holds it; b"" at its end. Raises BlockingIOError, OSError."""
        if not os.splice(fd, self._write_end, READ, flags=os.SPLICE_F_NONBLOCK):
            return b""
        return os.read(self._read_end, READ)

    def write(self, fd: int, piece: bytes) -> int:
        """Write the beginning of `piece` to the pipe `fd`; how much of it. Raises BlockingIOError, OSError."""
        held = os.write(self._write_end, piece)
        try:
            return os.splice(self._read_end, fd, held, flags=os.SPLICE_F_NONBLOCK)
        finally:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._read_end, READ):
                    pass  # what has not gone is kept by who called

    def descriptors(self) -> list[int]:
        """What is open here."""
        return [self._read_end, self._write_end]

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


class Sink:
    """Where output goes. `write` never waits and never raises; threads may share a sink."""

    __slots__ = (
        "_fd",
        "_gone",
        "_in_pieces",
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
        """Take over `fd`. `shared`: others share the open file, so that its mode is theirs to change and not ours."""
        self._fd = fd
        self.shared = shared
        mode = os.fstat(fd).st_mode
        self._is_socket = stat.S_ISSOCK(mode)
        self._in_pieces = blocks(fd)
        self._unblocks = self._in_pieces and not self._is_socket and not shared
        self._splice = SplicePipe() if shared and stat.S_ISFIFO(mode) else None
        self._needs_poll = self._in_pieces and shared and not self._is_socket and self._splice is None
        self._gone = False
        self._mid_line = False
        self._pending = bytearray()
        self._lock = threading.Lock()
        self.dropped = 0
        _sinks.add(self)

    @classmethod
    def onto(cls, fd: int) -> Sink:
        """A sink that writes to the same thing as `fd` and changes nothing about `fd`."""
        anew, shared = open_again(fd)
        return cls(anew, shared=shared)

    def again(self) -> Sink:
        """Another sink of this process onto the same thing."""
        return Sink(fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 3), shared=self.shared)

    def fileno(self) -> int:
        return self._fd

    def descriptors(self) -> list[int]:
        """What is open here."""
        return [self._fd, *(self._splice.descriptors() if self._splice is not None else ())]

    @property
    def waiting(self) -> bool:
        """Whether something is left to be written later (`pump`)."""
        return bool(self._pending)

    def pending(self) -> bytes:
        """What was kept and is not written yet."""
        return bytes(self._pending)

    def write(self, data: bytes) -> None:
        """Write what can be written now, keep the rest, drop the oldest lines if that is too much."""
        with self._lock:
            self._pending += data
            self._pump()
            if len(self._pending) > LIMIT:
                self._drop_oldest()

    def pump(self) -> None:
        """Write what can be written now of what was kept."""
        with self._lock:
            self._pump()

    def take_lines(self) -> bytes:
        """Take away what was kept and has not been begun: whole lines, for another sink to write."""
        with self._lock:
            start = self._pending.find(b"\n") + 1 if self._mid_line else 0
            lines = bytes(self._pending[start:])
            del self._pending[start:]
        return lines

    def finish(self, deadline: float) -> None:
        """Write what was kept, waiting until `deadline` (CLOCK_MONOTONIC, s); what is left then is dropped.

        A full disk is not waited for: nothing tells of room.
        """
        self.pump()
        while self._pending and self._in_pieces and (left := deadline - time.monotonic()) > 0:
            wait_writable(self._fd, left)
            self.pump()
        with self._lock:
            self._drop_all()

    def let_go(self) -> None:
        """In a forked child: nothing is written any more. The lock may be held by a thread that there is not."""
        self._lock = threading.Lock()
        self._pending.clear()
        self._gone = True

    def close(self) -> None:
        """Close the descriptor; what was kept is dropped."""
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
            self._mid_line = self._pending[written - 1] != 0x0A
            del self._pending[:written]
        if self._gone:
            self._drop_all()

    def _write(self, piece: bytes) -> int:
        if self._is_socket:
            with socket.socket(fileno=os.dup(self._fd)) as end:
                return end.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._splice is not None:
            return self._splice.write(self._fd, piece)
        if self._unblocks:
            os.set_blocking(self._fd, False)  # again and again: the application may have come across it
        elif self._needs_poll and not wait_writable(self._fd, 0):
            raise BlockingIOError
        return os.write(self._fd, piece)

    def _cut(self) -> int:
        """How much to write at once: whole lines, and no more than is written in one go."""
        if len(self._pending) <= ATOMIC or not self._in_pieces:
            return len(self._pending)
        return self._pending.rfind(b"\n", 0, ATOMIC) + 1 or ATOMIC

    def _drop_oldest(self) -> None:
        """Make room down to the limit by dropping whole lines, but not one that has been begun."""
        start = self._pending.find(b"\n") + 1 if self._mid_line else 0
        end = self._pending.find(b"\n", max(start, len(self._pending) - LIMIT)) + 1 or len(self._pending)
        del self._pending[start:end]
        self.dropped += end - start

    def _drop_all(self) -> None:
        self.dropped += len(self._pending)
        self._pending.clear()


def blocks(fd: int) -> bool:
    """Whether a write to `fd` may block or fail because of who reads it: pipes, sockets, terminals."""
    # Not isatty(3): that says no to a terminal that has vanished.
    status = os.fstat(fd)
    mode = status.st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and os.major(status.st_rdev) != MEMORY)


def wait_writable(fd: int, seconds: float) -> bool:
    """Wait until `fd` is writable (or broken), at most so long; False if it is not."""
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
    """A descriptor for what `fd` is open on, with an O_NONBLOCK of its own where that is possible, and whether not."""
    mode = os.fstat(fd).st_mode
    if blocks(fd) and not stat.S_ISSOCK(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # ENXIO: a pipe without a reader. EACCES: another user's terminal. The copy tells either, later.
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", flags), False
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), True


def descriptors() -> list[int]:
    """What the sinks of this process write to."""
    return [fd for sink in _sinks for fd in sink.descriptors()]


def all_sinks() -> list[Sink]:
    """Those that this process has open."""
    return list(_sinks)
