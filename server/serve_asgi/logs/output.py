"""Output that never stops or blocks a process, whoever reads it, or does not.

A write to a full pipe, a stopped terminal or a socket blocks; one to a closed pipe or a vanished terminal fails. So
where descriptor 1 or 2 is such a thing, it is replaced by a pipe of our own (`guarded`), which a thread empties into
a `Sink`: a bounded buffer written to the original without blocking. When the buffer is full the oldest whole lines
go; when the original is gone everything goes; either way the bytes are counted. Regular files never block and are
left alone.

A worker's pipes are made by the listener (`for_child`): the worker empties them itself, and when it has died the
listener reads what was left in them, so that the last words of a crash are not lost. If the listener dies, nothing
changes for the worker. A write by code that holds the interpreter lock for all of it (a C library's) can wait for the
thread only if it is larger than the pipe, 1 MiB where the kernel grants that.

O_NONBLOCK belongs to the open file (fcntl(2)), which other processes share: whoever of them clears it could have us
wait. So the original is opened anew, by each process for itself, which also lets the others keep their mode; and where
an open file is shared nevertheless (the pipe of a child that has died, an original that cannot be opened anew), bytes
move by splice(2), which is told with each call not to wait. It knows nothing of logs or workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import io
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

LIMIT: Final = 1 << 20  # bytes that a sink holds
ATOMIC: Final = 4096  # PIPE_BUF (pipe(7)): a write of no more is never mixed with another process's
READ: Final = 65536
MEMORY: Final = 1  # major number of /dev/null and its like (Linux, devices.txt)
FINISH_TIME: Final = 1.0  # seconds that the end of a process waits for its output to be taken, all of it together

MOST_LEFT: Final = 4 * LIMIT  # bytes that are read from the pipe of a child that has died: others may go on filling it
MOST_ORPHANS: Final = 64
"""Pipes of processes that have ended, which those that they have left behind write to."""
ORPHANS_REST: Final = 0.01
"""Seconds between two pieces out of such pipes, so that nobody keeps this process busy by writing much."""
SHARED: Final = "*"  # marks an original whose open file is shared, in what `adopt` takes

_sinks: Final[set[Sink]] = set()
_dropped_by_closed = 0


@functools.cache
def last_moment() -> float:
    """Until when (CLOCK_MONOTONIC, s) the end of this process waits: the time runs from the first that asks."""
    return time.monotonic() + FINISH_TIME


def dropped() -> int:
    """Bytes of output that this process has thrown away since its start, because nobody took them."""
    return _dropped_by_closed + sum(sink.dropped for sink in list(_sinks))


class Siphon:
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
        "_siphon",
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
        self._siphon = Siphon() if shared and stat.S_ISFIFO(mode) else None
        self._needs_poll = self._in_pieces and shared and not self._is_socket and self._siphon is None
        self._gone = False
        self._mid_line = False
        self._pending = bytearray()
        self._lock = threading.Lock()
        self.dropped = 0
        _sinks.add(self)

    @classmethod
    def onto(cls, fd: int) -> Sink:
        """A sink that writes to the same thing as `fd` and changes nothing about `fd`."""
        anew, shared = _opened_anew(fd)
        return cls(anew, shared=shared)

    def again(self) -> Sink:
        """Another sink of this process onto the same thing."""
        return Sink(fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 3), shared=self.shared)

    def fileno(self) -> int:
        return self._fd

    def descriptors(self) -> list[int]:
        """What is open here."""
        return [self._fd, *(self._siphon.descriptors() if self._siphon is not None else ())]

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
            if self._siphon is not None:
                self._siphon.close()
            self._fd, self._siphon = -1, None
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
        if self._siphon is not None:
            return self._siphon.write(self._fd, piece)
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
    """Wait until `fd` takes a write (or says that it never will), at most so long; False if it does not."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def say(fd: int, text: str) -> None:
    """Write a last word to `fd`, a person's, within a bounded time; raises nothing."""
    with contextlib.suppress(OSError):
        sink = Sink.onto(fd)
        sink.write(text.encode(errors="backslashreplace"))
        sink.finish(time.monotonic() + FINISH_TIME)
        sink.close()


def _opened_anew(fd: int) -> tuple[int, bool]:
    """A descriptor for what `fd` is open on, with an O_NONBLOCK of its own where that is possible, and whether not."""
    mode = os.fstat(fd).st_mode
    if blocks(fd) and not stat.S_ISSOCK(mode):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        # ENXIO: a pipe without a reader. EACCES: another user's terminal. The copy tells either, later.
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", flags), False
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), True


@dataclasses.dataclass(frozen=True, slots=True)
class _Stream:
    """One pipe of ours: it stands at the descriptors `targets` of its process, and what comes out goes to `sink`."""

    targets: tuple[int, ...]
    read_end: int
    sink: Sink


class Guard:
    """The pipes of one process, and the thread that empties them."""

    __slots__ = ("_moving", "_news", "_orphans", "_siphon", "_streams", "_thread")

    def __init__(self, streams: list[_Stream]) -> None:
        self._streams = streams
        self._orphans: dict[int, Sink] = {}
        self._siphon: Siphon | None = None
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if streams else -1
        self._moving = threading.Lock()  # held while anything moves out of a pipe or a sink
        self._thread = threading.Thread(target=self._write_queued, name="serve-output", daemon=True)
        for stream in streams:
            for target in stream.targets:
                _by_lines(target)
        if streams:
            self._thread.start()

    @property
    def streams(self) -> list[_Stream]:
        return self._streams

    def finish(self) -> None:
        """Give the descriptors their originals back, and wait a bounded time until everything is written."""
        for text in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                text.flush()
        for stream in self._streams:
            for target in stream.targets:
                os.dup2(stream.sink.fileno(), target)
        if self._streams:
            self._empty()
            for stream in self._streams:
                stream.sink.finish(last_moment())

    def take_over(self, read_end: int, sink: Sink) -> bool:
        """Read the pipe `read_end` of a process that has ended, until those that it has left behind have as well.

        They would be killed by their next line otherwise (SIGPIPE). False if there are too many of these already.
        """
        if not self._streams or len(self._orphans) >= MOST_ORPHANS:
            return False
        try:
            self._siphon = self._siphon or Siphon()
        except OSError:  # EMFILE
            return False
        with self._moving:
            self._orphans[read_end] = sink
        os.eventfd_write(self._news, 1)
        return True

    def _empty(self) -> None:
        """Move what is in the pipes. Their end is not waited for: children of this process may hold the other ends."""
        poll = select.poll()
        for stream in self._streams:
            poll.register(stream.read_end, select.POLLIN)
        with self._moving:
            while (ready := poll.poll(0)) and time.monotonic() < last_moment():
                for stream in self._streams:
                    if any(fd == stream.read_end for fd, _ in ready):
                        data = _read(stream.read_end)
                        if data:
                            stream.sink.write(data)
                        else:
                            poll.unregister(stream.read_end)

    # For a program that takes this one's place in the same process

    def stand_still(self) -> None:
        """Move nothing any more, so that what is in the pipes stays there and all else can be told."""
        for text in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                text.flush()
        self._moving.acquire()

    def go_on(self) -> None:
        """Nothing came of it."""
        self._moving.release()

    def argument(self) -> str:
        """What `adopt` takes."""
        return _argument(self._streams)

    def descriptors(self) -> list[int]:
        """What must stay open; 1 and 2 are so anyway."""
        return [fd for stream in self._streams for fd in (stream.read_end, stream.sink.fileno())]

    def pending(self) -> dict[int, bytes]:
        """What has not been written yet, by the descriptor that it is to be written to."""
        return {stream.sink.fileno(): stream.sink.pending() for stream in self._streams if stream.sink.waiting}

    def restore(self, pending: dict[int, bytes]) -> None:
        """Write first what another had not."""
        for stream in self._streams:
            stream.sink.write(pending.get(stream.sink.fileno(), b""))

    def _write_queued(self) -> None:
        """The thread: until the pipes end, which a process's own descriptors 1 and 2 prevent while it lives."""
        reading = {stream.read_end: stream.sink for stream in self._streams}
        rest = 0.0  # until when (CLOCK_MONOTONIC, s) orphans are not looked at
        while reading:
            poll = select.poll()
            poll.register(self._news, select.POLLIN)
            for read_end, sink in reading.items():
                poll.register(read_end, select.POLLIN)
                if sink.waiting:
                    poll.register(sink.fileno(), select.POLLOUT)
            resting = bool(self._orphans) and rest > time.monotonic()
            for read_end in () if resting else list(self._orphans):
                poll.register(read_end, select.POLLIN)
            for ready, _ in poll.poll(ORPHANS_REST * 1000 if resting else None):
                if ready == self._news:
                    os.eventfd_read(self._news)
                elif ready in self._orphans:
                    rest = time.monotonic() + ORPHANS_REST
                    self._move_orphan(ready)
                if (sink_to := reading.get(ready)) is None:
                    continue
                with self._moving:
                    data = _read(ready)
                    if data:
                        sink_to.write(data)
                if data is not None and not data:
                    del reading[ready]
            with self._moving:  # what `pending` has told is written by nobody else
                for sink in reading.values():
                    sink.pump()

    def _move_orphan(self, read_end: int) -> None:
        """Move what is there, a piece at a time; at its end close it."""
        assert self._siphon is not None
        data = b""
        with self._moving:
            try:
                data = self._siphon.read(read_end)
            except BlockingIOError:
                return
            except OSError:
                pass
            if data:
                self._orphans[read_end].write(data)
            else:
                del self._orphans[read_end]
                os.close(read_end)


def _read(fd: int) -> bytes | None:
    """What is in the pipe: b"" at its end, None if it is empty (the listener and a worker share the reading end)."""
    try:
        return os.read(fd, READ)
    except BlockingIOError:
        return None


def _by_lines(target: int) -> None:
    """Let what is printed appear line by line: Python holds back what goes to a pipe, also if a person reads it."""
    for text in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if isinstance(text, io.TextIOWrapper) and text.fileno() == target:
                text.reconfigure(line_buffering=True)


def _pipe() -> tuple[int, int]:
    """A pipe, as large as the kernel grants, whose reading end does not block."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    with contextlib.suppress(OSError):  # EPERM: over the user's share (pipe(7))
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, LIMIT)
    return read_end, write_end


def _fill_standard_descriptors() -> None:
    """Open /dev/null on 0, 1 and 2 where they are closed: or else the first socket would be taken for stdout."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def _targets() -> list[tuple[int, ...]]:
    """The descriptors to be guarded; 1 and 2 together where they are the same thing, so that their order is kept."""
    needed = [fd for fd in (1, 2) if blocks(fd)]
    if len(needed) == 2 and os.path.sameopenfile(1, 2):
        return [(1, 2)]
    return [(fd,) for fd in needed]


_current: Guard | None = None


def current() -> Guard:
    """This process's guard; one without any streams, if its output is not guarded."""
    return _current if _current is not None else Guard([])


def _argument(streams: list[_Stream]) -> str:
    """The streams as `adopt` reads them."""
    return ",".join(_as_text(each.targets, each.read_end, each.sink.fileno(), each.sink.shared) for each in streams)


def _as_text(targets: tuple[int, ...], read_end: int, sink: int, shared: bool) -> str:
    return f"{'+'.join(map(str, targets))}{SHARED if shared else ''}:{read_end}:{sink}"


def guard_self() -> Guard:
    """Guard this process's descriptors 1 and 2 from here on."""
    global _current
    last_moment.cache_clear()
    _fill_standard_descriptors()
    streams = []
    for targets in _targets():
        sink = Sink.onto(targets[0])
        read_end, write_end = _pipe()
        for target in targets:
            os.dup2(write_end, target)
        os.close(write_end)
        streams.append(_Stream(targets, read_end, sink))
    _current = Guard(streams)
    return _current


def original(fd: int) -> Sink:
    """A sink of its own onto what descriptor `fd` (1 or 2) was before it was guarded: a way around the thread."""
    stream = _stream_of(fd)
    return Sink.onto(fd) if stream is None else stream.sink.again()


def _stream_of(fd: int) -> _Stream | None:
    streams = [] if _current is None else _current.streams
    return next((stream for stream in streams if fd in stream.targets), None)


def is_terminal(fd: int) -> bool:
    """Whether descriptor `fd` (1 or 2) is a terminal, or was one before it was guarded."""
    stream = _stream_of(fd)
    return os.isatty(fd if stream is None else stream.sink.fileno())


@contextlib.contextmanager
def guarded() -> Iterator[Guard]:
    """Guard this process's output inside the block; all of it is written, or dropped, when it ends."""
    guard = guard_self()
    try:
        yield guard
    finally:
        guard.finish()


class ChildOutput:
    """The pipes of a child, made before it is started, and read once more after its death."""

    __slots__ = ("_given", "_streams", "_write_ends")

    def __init__(self, guard: Guard | None) -> None:
        """Raises OSError (EMFILE)."""
        self._streams: list[_Stream] = []
        self._write_ends: list[int] = []
        self._given: list[tuple[int, bool]] = []
        """What the child writes to, by stream: a descriptor, and whether its open file is shared."""
        try:
            for stream in guard.streams if guard else ():
                _siphon()
                read_end, write_end = _pipe()
                self._streams.append(_Stream(stream.targets, read_end, stream.sink))
                self._write_ends.append(write_end)
                self._given.append(_opened_anew(stream.sink.fileno()))
        except BaseException:
            self.read_rest()
            raise

    def child_fds(self) -> list[tuple[int, int]]:
        """Pairs (descriptor here, there) for POSIX_SPAWN_DUP2; the same number twice makes it inheritable."""
        pairs = []
        for stream, write_end, (sink, _) in zip(self._streams, self._write_ends, self._given, strict=True):
            pairs += [(fd, fd) for fd in (stream.read_end, sink)]
            pairs += [(write_end, target) for target in stream.targets]
        return pairs

    def argument(self) -> str:
        """What the child passes to `adopt`; "" if its descriptors 1 and 2 are to be left as they are."""
        streams = zip(self._streams, self._given, strict=True)
        return ",".join(_as_text(each.targets, each.read_end, *given) for each, given in streams)

    def to_state(self, descriptors: list[int]) -> list[tuple[list[int], int, int]]:
        """What `inherited` needs in a program that takes this one's place; `descriptors` gets what must stay open."""
        descriptors += [stream.read_end for stream in self._streams]
        return [(list(stream.targets), stream.read_end, stream.sink.fileno()) for stream in self._streams]

    @classmethod
    def inherited(cls, state: list[tuple[list[int], int, int]]) -> ChildOutput:
        """The output of a child that this very process has started before; its sinks are those of the guard."""
        sinks = {stream.sink.fileno(): stream.sink for stream in _current.streams} if _current is not None else {}
        output = cls(None)
        for targets, read_end, sink in state:
            _siphon()
            os.set_inheritable(read_end, False)
            output._streams.append(_Stream(tuple(targets), read_end, sinks[sink]))
        return output

    def started(self) -> None:
        """The child has its descriptors (or was not started after all): close here what is the child's alone."""
        for fd in [*self._write_ends, *(sink for sink, _ in self._given)]:
            os.close(fd)
        self._write_ends.clear()
        self._given.clear()

    def read_rest(self) -> None:
        """The child has been reaped: pass on what it left in its pipes and close them. Waits for nothing.

        Processes that the child has left behind may hold both ends, clear O_NONBLOCK, and go on writing.
        """
        self.started()
        for stream in self._streams:
            left, ended = MOST_LEFT, False
            with contextlib.suppress(OSError):  # EAGAIN: it is empty
                while left > 0 and not ended:
                    data = _siphon().read(stream.read_end)
                    stream.sink.write(data)
                    left -= len(data)
                    ended = not data
            if ended or not current().take_over(stream.read_end, stream.sink):
                os.close(stream.read_end)
        self._streams.clear()


@functools.cache
def _siphon() -> Siphon:
    """For the pipes of children that have died; made with the first child: later there may be no descriptor left."""
    return Siphon()


def for_child() -> ChildOutput:
    """The output of a child that is about to be started by a guarded process; of an unguarded one: nothing to do."""
    return ChildOutput(_current)


def write(fd: int, data: bytes) -> None:
    """Write to descriptor `fd` (1 or 2), around a guard of this process: others may hold the other end of its pipe.

    Raises OSError, and may wait, if `fd` is not guarded: it is a file then.
    """
    stream = _stream_of(fd)
    if stream is not None:
        stream.sink.write(data)
        return
    while data:
        data = data[os.write(fd, data) :]


def given(argument: str) -> list[int]:
    """The descriptors that come with `argument` (`ChildOutput.argument()`), besides those that are guarded."""
    return [int(fd) for part in filter(None, argument.split(",")) for fd in part.split(":")[1:]]


def descriptors() -> list[int]:
    """What the sinks of this process write to."""
    return [fd for sink in _sinks for fd in sink.descriptors()]


def let_go() -> None:
    """In a forked child: write to what its parent's output goes to, and by no thread or pipe of the parent's.

    What the parent had not written yet is the parent's. Where the original cannot be opened by this user, the pipe of
    the parent stays, which the listener reads when the parent has gone.
    """
    global _current
    guard, _current = _current, None
    for sink in list(_sinks):
        sink.let_go()
    for stream in guard.streams if guard is not None else ():
        pipe = os.fstat(stream.read_end)
        for target in stream.targets:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(target), pipe):  # not if it is a new terminal's (forkpty(3))
                    _restore(stream.sink.fileno(), target)


def _restore(original: int, target: int) -> None:
    """Have `target` write to what `original` is open on, without its O_NONBLOCK. Raises OSError."""
    if stat.S_ISSOCK(os.fstat(original).st_mode):  # which a sink never makes non-blocking
        os.dup2(original, target)
        return
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # O_NONBLOCK: a pipe may have no reader
    fresh = os.open(f"/proc/self/fd/{original}", flags)
    os.set_blocking(fresh, True)
    os.dup2(fresh, target)
    os.close(fresh)


def adopt(argument: str) -> Guard:
    """In the child: empty the pipes that the listener made, from here on. `argument` is `ChildOutput.argument()`."""
    global _current
    streams = []
    for part in filter(None, argument.split(",")):
        targets, read_end, original = part.split(":")
        for fd in (int(read_end), int(original)):
            os.set_inheritable(fd, False)
        sink = Sink(int(original), shared=targets.endswith(SHARED))
        numbers = targets.removesuffix(SHARED).split("+")
        streams.append(_Stream(tuple(map(int, numbers)), int(read_end), sink))
    _current = Guard(streams)
    return _current
