"""The output pipes of a child, created by its parent: the child reads them, and its parent the rest after its death.

So the last output before a crash is not lost, and the death of the parent does not affect the child.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from typing import Final

from serve_asgi.logs.nonblocking_sink import LIMIT, SplicePipe, open_again
from serve_asgi.logs.stdio_guard import SHARED, GuardedStream, OutputGuard, as_text, current, make_pipe

MOST_LEFT: Final = 4 * LIMIT  # most bytes read from a dead child's pipe: other processes may keep filling it


class ChildOutput:
    """The pipes of a child, created before it is started, and read once more after its death."""

    __slots__ = ("_given", "_streams", "_write_ends")

    def __init__(self, guard: OutputGuard | None) -> None:
        """Raises OSError (EMFILE)."""
        self._streams: list[GuardedStream] = []
        self._write_ends: list[int] = []
        self._given: list[tuple[int, bool]] = []
        """The child's output for each stream: a descriptor, and whether its open file is shared."""
        try:
            for stream in guard.streams if guard else ():
                _splice()
                read_end, write_end = make_pipe()
                self._streams.append(GuardedStream(stream.targets, read_end, stream.sink))
                self._write_ends.append(write_end)
                self._given.append(open_again(stream.sink.fileno()))
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
        """The argument for `adopt` in the child; "" if its descriptors 1 and 2 are to be left alone."""
        streams = zip(self._streams, self._given, strict=True)
        return ",".join(as_text(each.targets, each.read_end, *given) for each, given in streams)

    def give(self) -> tuple[list[str], list[int]]:
        """For a template that forks the child: the targets of each stream, and three descriptors for each.

        These are the reading end, the original and the writing end; they belong to the caller. Raises OSError (EMFILE).
        """
        read_ends: list[int] = []
        try:
            for stream in self._streams:
                read_ends.append(fcntl.fcntl(stream.read_end, fcntl.F_DUPFD_CLOEXEC, 3))  # noqa: PERF401 (those before a failure are closed)
        except OSError:
            for fd in read_ends:
                os.close(fd)
            raise
        targets, descriptors = [], []
        for stream, read_end, write_end, given in zip(
            self._streams, read_ends, self._write_ends, self._given, strict=True
        ):
            original, shared = given
            targets.append("+".join(map(str, stream.targets)) + SHARED * shared)
            descriptors += [read_end, original, write_end]
        self._write_ends.clear()
        self._given.clear()
        return targets, descriptors

    def to_state(self, descriptors: list[int]) -> list[tuple[list[int], int, int]]:
        """What `from_state` needs in a program that replaces this one; adds to `descriptors` those that must stay
        open."""
        descriptors += [stream.read_end for stream in self._streams]
        return [(list(stream.targets), stream.read_end, stream.sink.fileno()) for stream in self._streams]

    @classmethod
    def from_state(cls, state: list[tuple[list[int], int, int]]) -> ChildOutput:
        """The output of a child started by an earlier program of this process; its sinks are the guard's."""
        sinks = {stream.sink.fileno(): stream.sink for stream in current().streams}
        output = cls(None)
        for targets, read_end, sink in state:
            _splice()
            os.set_inheritable(read_end, False)
            output._streams.append(GuardedStream(tuple(targets), read_end, sinks[sink]))
        return output

    def started(self) -> None:
        """The child has its descriptors (or was not started after all): close the child's ends here."""
        for fd in [*self._write_ends, *(sink for sink, _ in self._given)]:
            os.close(fd)
        self._write_ends.clear()
        self._given.clear()

    def read_rest(self) -> None:
        """The child has been reaped: forward what is left in its pipes, without blocking, and close them.

        Processes that the child has left behind may hold both ends, clear O_NONBLOCK, and keep writing.
        """
        self.started()
        for stream in self._streams:
            left, ended = MOST_LEFT, False
            with contextlib.suppress(OSError):  # EAGAIN: it is empty
                while left > 0 and not ended:
                    data = _splice().read(stream.read_end)
                    stream.sink.write(data)
                    left -= len(data)
                    ended = not data
            if ended or not current().take_over(stream.read_end, stream.sink):
                os.close(stream.read_end)
        self._streams.clear()


@functools.cache
def _splice() -> SplicePipe:
    """For the pipes of dead children; created with the first child: later there may be no descriptor left."""
    return SplicePipe()


def for_child() -> ChildOutput:
    """The output of a child that is about to be started by a guarded process; an unguarded one has nothing to do."""
    return ChildOutput(current())
