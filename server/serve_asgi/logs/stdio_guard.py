"""Keeps standard output and error from ever blocking or killing a process, whether or not anybody reads them.

A write to a full pipe, a stopped terminal or a socket blocks; one to a closed pipe or a vanished terminal fails. So
such a descriptor 1 or 2 is replaced by a pipe of our own (`guarded`), which a thread empties into a sink
(`serve_asgi.logs.nonblocking_sink`), which writes to the original without blocking. Regular files never block and are
left alone.

A worker's pipes are created by the listener (`serve_asgi.logs.child_output`); the worker empties them itself (`adopt`).
A write by code that holds the interpreter lock (in a C library) blocks only if it is larger than the pipe, 1 MiB where
the kernel allows it. It knows nothing of logs or workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

if sys.platform == "linux":
    import fcntl
else:  # where nothing uses it
    fcntl: Any = None

from serve_asgi.logs.nonblocking_sink import LIMIT, READ, Sink, SplicePipe, all_sinks, blocks, last_moment

MOST_ORPHANS: Final = 64
"""Most pipes of dead processes that processes left behind by them still write to."""
ORPHANS_REST: Final = 0.01
"""Seconds between two reads of such pipes, so that nobody keeps this process busy by writing much."""
SHARED: Final = "*"  # marks an original whose open file is shared, in the argument of `adopt`


@dataclasses.dataclass(frozen=True, slots=True)
class GuardedStream:
    """One pipe of ours: it replaces the descriptors `targets` of its process, and its output goes to `sink`."""

    targets: tuple[int, ...]
    read_end: int
    sink: Sink


class OutputGuard:
    """The pipes of one process, and the thread that empties them."""

    __slots__ = ("_moving", "_news", "_orphans", "_splice", "_stopped", "_streams", "_thread")

    def __init__(self, streams: list[GuardedStream]) -> None:
        self._streams = streams
        self._orphans: dict[int, Sink] = {}
        self._splice: SplicePipe | None = None
        self._news = _event() if streams else -1
        self._moving = threading.Lock()  # held while a pipe or a sink is being emptied
        self._stopped = False
        self._thread = threading.Thread(target=self._write_queued, name="serve-output", daemon=True)
        for stream in streams:
            for target in stream.targets:
                _by_lines(target)
        if streams:
            self._thread.start()

    @property
    def streams(self) -> list[GuardedStream]:
        return self._streams

    def finish(self) -> None:
        """Restore the original descriptors, and wait a bounded time until everything is written."""
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
        """Read the pipe `read_end` of a dead process, until the processes that it has left behind have ended as well.

        Otherwise SIGPIPE would kill them at their next line. Returns False if there are already too many of these.
        """
        if not self._streams or len(self._orphans) >= MOST_ORPHANS:
            return False
        try:
            self._splice = self._splice or SplicePipe()
        except OSError:  # EMFILE
            return False
        with self._moving:
            self._orphans[read_end] = sink
        _set(self._news)
        return True

    def _empty(self) -> None:
        """Empty the pipes, without waiting for their end: children of this process may hold the other ends."""
        if sys.platform != "linux":
            raise NotImplementedError
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

    # For a template, which must have no threads when it forks

    def stop(self) -> None:
        """End the thread; from here on the pipes are emptied by `drain` only."""
        self._stopped = True
        if self._streams:
            _set(self._news)
            self._thread.join()
        self.drain()

    def drain(self) -> None:
        """Write what is in the pipes."""
        for text in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                text.flush()
        for stream in self._streams:
            while data := _read(stream.read_end):
                stream.sink.write(data)
            stream.sink.pump()

    def close(self) -> None:
        """In a process that has been forked from one whose guard was stopped: close what belongs to that one."""
        for stream in self._streams:
            stream.sink.let_go()
            stream.sink.close()
            os.close(stream.read_end)
        if self._news >= 0:
            os.close(self._news)

    # For a re-exec

    def stand_still(self) -> None:
        """Stop emptying the pipes, so that their contents stay there and the rest can be handed over."""
        for text in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                text.flush()
        self._moving.acquire()

    def go_on(self) -> None:
        """Continue: the re-exec failed."""
        self._moving.release()

    def argument(self) -> str:
        """The argument of `adopt`."""
        return _argument(self._streams)

    def descriptors(self) -> list[int]:
        """Descriptors that must stay open, besides 1 and 2."""
        return [fd for stream in self._streams for fd in (stream.read_end, stream.sink.fileno())]

    def pending(self) -> dict[int, bytes]:
        """What has not been written yet, by target descriptor."""
        return {stream.sink.fileno(): stream.sink.pending() for stream in self._streams if stream.sink.waiting}

    def restore(self, pending: dict[int, bytes]) -> None:
        """Take over what an earlier program had not written."""
        for stream in self._streams:
            stream.sink.write(pending.get(stream.sink.fileno(), b""))

    def _write_queued(self) -> None:
        """The thread: runs until the pipes end, which a process's own descriptors 1 and 2 prevent while it is alive."""
        if sys.platform != "linux":
            raise NotImplementedError
        reading = {stream.read_end: stream.sink for stream in self._streams}
        rest = 0.0  # until when (CLOCK_MONOTONIC, s) orphans are not read
        while reading and not self._stopped:
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
            with self._moving:  # nobody else writes what `pending` has returned
                for sink in reading.values():
                    sink.pump()

    def _move_orphan(self, read_end: int) -> None:
        """Forward its contents, a piece at a time; close it at its end."""
        assert self._splice is not None
        data = b""
        with self._moving:
            try:
                data = self._splice.read(read_end)
            except BlockingIOError:
                return
            except OSError:
                pass
            if data:
                self._orphans[read_end].write(data)
            else:
                del self._orphans[read_end]
                os.close(read_end)


def _event() -> int:
    if sys.platform != "linux":
        raise NotImplementedError
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _set(event: int) -> None:
    if sys.platform != "linux":
        raise NotImplementedError
    os.eventfd_write(event, 1)


def _read(fd: int) -> bytes | None:
    """Read the pipe: b"" at its end, None if it is empty (the listener and a worker share the reading end)."""
    try:
        return os.read(fd, READ)
    except BlockingIOError:
        return None


def _by_lines(target: int) -> None:
    """Make printed text appear line by line: Python buffers output to a pipe, even if a person reads it."""
    for text in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if isinstance(text, io.TextIOWrapper) and text.fileno() == target:
                text.reconfigure(line_buffering=True)


def make_pipe() -> tuple[int, int]:
    """A pipe, as large as the kernel allows, whose reading end does not block."""
    if sys.platform != "linux":
        raise NotImplementedError
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    with contextlib.suppress(OSError):  # EPERM: beyond the user's limit (pipe(7))
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, LIMIT)
    return read_end, write_end


def _fill_standard_descriptors() -> None:
    """Open /dev/null on 0, 1 and 2 where they are closed: otherwise the first socket would become stdout."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def _targets() -> list[tuple[int, ...]]:
    """The descriptors to be guarded; 1 and 2 together if they are the same file, so that their order is preserved."""
    needed = [fd for fd in (1, 2) if blocks(fd)]
    if len(needed) == 2 and os.path.sameopenfile(1, 2):
        return [(1, 2)]
    return [(fd,) for fd in needed]


_current: OutputGuard | None = None


def current() -> OutputGuard:
    """This process's guard; one without streams if its output is not guarded."""
    return _current if _current is not None else OutputGuard([])


def _argument(streams: list[GuardedStream]) -> str:
    """The streams as `adopt` reads them."""
    return ",".join(as_text(each.targets, each.read_end, each.sink.fileno(), each.sink.shared) for each in streams)


def as_text(targets: tuple[int, ...], read_end: int, sink: int, shared: bool) -> str:
    return f"{'+'.join(map(str, targets))}{SHARED if shared else ''}:{read_end}:{sink}"


def guard_self() -> OutputGuard:
    """Start to guard this process's descriptors 1 and 2."""
    global _current
    last_moment.cache_clear()
    _fill_standard_descriptors()
    streams = []
    for targets in _targets():
        sink = Sink.onto(targets[0])
        read_end, write_end = make_pipe()
        for target in targets:
            os.dup2(write_end, target)
        os.close(write_end)
        streams.append(GuardedStream(targets, read_end, sink))
    _current = OutputGuard(streams)
    return _current


def original(fd: int) -> Sink:
    """A sink for the original file of descriptor `fd` (1 or 2), bypassing the guard's thread."""
    stream = _stream_of(fd)
    return Sink.onto(fd) if stream is None else stream.sink.again()


def _stream_of(fd: int) -> GuardedStream | None:
    streams = [] if _current is None else _current.streams
    return next((stream for stream in streams if fd in stream.targets), None)


def is_terminal(fd: int) -> bool:
    """Whether descriptor `fd` (1 or 2) is a terminal, or was one before it was guarded."""
    stream = _stream_of(fd)
    return os.isatty(fd if stream is None else stream.sink.fileno())


@contextlib.contextmanager
def guarded() -> Iterator[OutputGuard]:
    """Guard this process's output within the block; all of it is written, or dropped, when the block ends."""
    guard = guard_self()
    try:
        yield guard
    finally:
        guard.finish()


def write(fd: int, data: bytes) -> None:
    """Write to descriptor `fd` (1 or 2), bypassing a guard of this process: others may hold the other end of its pipe.

    Raises OSError, and may block, if `fd` is not guarded: it is a file then.
    """
    stream = _stream_of(fd)
    if stream is not None:
        stream.sink.write(data)
        return
    while data:
        data = data[os.write(fd, data) :]


def given(argument: str) -> list[int]:
    """The descriptors in `argument` (`ChildOutput.argument()`), besides the guarded ones."""
    return [int(fd) for part in filter(None, argument.split(",")) for fd in part.split(":")[1:]]


def replace(streams: list[tuple[str, int, int, int]]) -> str:
    """In a worker that has just been forked: take these pipes in place of those of the template.

    `streams` are, for each: the targets, as in the argument of `adopt`, the reading end, the original, and the writing
    end. Returns the argument of `adopt`.
    """
    global _current
    current().close()
    _current = None
    last_moment.cache_clear()
    for targets, _, _, write_end in streams:
        for target in targets.removesuffix(SHARED).split("+"):
            os.dup2(write_end, int(target))
        os.close(write_end)
    return ",".join(f"{targets}:{read_end}:{original}" for targets, read_end, original, _ in streams)


def let_go() -> None:
    """In a forked child: write to the parent's original output, without the parent's thread and pipe.

    What the parent has not written yet is left to the parent. If this user cannot open the original, the parent's pipe
    stays, which the listener reads when the parent has ended.
    """
    global _current
    guard, _current = _current, None
    for sink in all_sinks():
        sink.let_go()
    for stream in guard.streams if guard is not None else ():
        pipe = os.fstat(stream.read_end)
        for target in stream.targets:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(target), pipe):  # not if it is a new terminal (forkpty(3))
                    _restore(stream.sink.fileno(), target)


def _restore(original: int, target: int) -> None:
    """Make `target` write to the file of `original`, without its O_NONBLOCK. Raises OSError."""
    if sys.platform != "linux":
        raise NotImplementedError
    if stat.S_ISSOCK(os.fstat(original).st_mode):  # a sink never makes it non-blocking
        os.dup2(original, target)
        return
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # O_NONBLOCK: a pipe may have no reader
    fresh = os.open(f"/proc/self/fd/{original}", flags)
    os.set_blocking(fresh, True)
    os.dup2(fresh, target)
    os.close(fresh)


def adopt(argument: str) -> OutputGuard:
    """In the child: start to empty the pipes that the listener created. `argument` is `ChildOutput.argument()`."""
    global _current
    streams = []
    for part in filter(None, argument.split(",")):
        targets, read_end, original = part.split(":")
        for fd in (int(read_end), int(original)):
            os.set_inheritable(fd, False)
        sink = Sink(int(original), shared=targets.endswith(SHARED))
        numbers = targets.removesuffix(SHARED).split("+")
        streams.append(GuardedStream(tuple(map(int, numbers)), int(read_end), sink))
    _current = OutputGuard(streams)
    return _current
