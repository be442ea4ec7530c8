"""The output pipes of a child, made by its parent: the child empties them, and its parent what is left after its death.

So the last words of a crash are not lost, and if the parent dies nothing changes for the child.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Final

from serve_asgi.logs.nonblocking_sink import LIMIT, SplicePipe, open_again
from serve_asgi.logs.stdio_guard import GuardedStream, OutputGuard, as_text, current, make_pipe

MOST_LEFT: Final = 4 * LIMIT  # bytes that are read from the pipe of a child that has died: others may go on filling it


class ChildOutput:
    """The pipes of a child, made before it is started, and read once more after its death."""

    __slots__ = ("_given", "_streams", "_write_ends")

    def __init__(self, guard: OutputGuard | None) -> None:
        """Raises OSError (EMFILE)."""
        self._streams: list[GuardedStream] = []
        self._write_ends: list[int] = []
        self._given: list[tuple[int, bool]] = []
        """What the child writes to, by stream: a descriptor, and whether its open file is shared."""
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
        """What the child passes to `adopt`; "" if its descriptors 1 and 2 are to be left as they are."""
        streams = zip(self._streams, self._given, strict=True)
        return ",".join(as_text(each.targets, each.read_end, *given) for each, given in streams)

    def to_state(self, descriptors: list[int]) -> list[tuple[list[int], int, int]]:
        """What `from_state` needs in a program that takes this one's place; `descriptors` gets what must stay open."""
        descriptors += [stream.read_end for stream in self._streams]
        return [(list(stream.targets), stream.read_end, stream.sink.fileno()) for stream in self._streams]

    @classmethod
    def from_state(cls, state: list[tuple[list[int], int, int]]) -> ChildOutput:
        """The output of a child that this very process has started before; its sinks are those of the guard."""
        sinks = {stream.sink.fileno(): stream.sink for stream in current().streams}
        output = cls(None)
        for targets, read_end, sink in state:
            _splice()
            os.set_inheritable(read_end, False)
            output._streams.append(GuardedStream(tuple(targets), read_end, sinks[sink]))
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
                    data = _splice().read(stream.read_end)
                    stream.sink.write(data)
                    left -= len(data)
                    ended = not data
            if ended or not current().take_over(stream.read_end, stream.sink):
                os.close(stream.read_end)
        self._streams.clear()


@functools.cache
def _splice() -> SplicePipe:
    """For the pipes of children that have died; made with the first child: later there may be no descriptor left."""
    return SplicePipe()


def for_child() -> ChildOutput:
    """The output of a child that is about to be started by a guarded process; of an unguarded one: nothing to do."""
    return ChildOutput(current())
