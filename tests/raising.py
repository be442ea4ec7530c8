"""What applications may raise: graphs of exceptions of any shape, made of objects that behave as badly as they can."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from hypothesis import strategies as st

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.logs.exceptions import name_of


class Refusal(BaseException):
    """Of a special method. Not SystemExit, which would end the tests where pytest shows such an object."""


def _refuses(*given: Any, **more: Any) -> Any:
    raise Refusal


class Hostile(Exception):
    """Nothing can be asked of it."""

    __str__ = __repr__ = __bool__ = __len__ = __getattribute__ = __setattr__ = _refuses
    __eq__ = __ne__ = _refuses
    __hash__ = _refuses
    __class__ = property(_refuses)
    __cause__ = __context__ = __traceback__ = __notes__ = property(_refuses)


class HostileBase(BaseException):
    """The same, and no Exception; but a group asks what it holds for its class."""

    __str__ = __repr__ = __bool__ = _refuses
    __eq__ = _refuses
    __hash__ = _refuses


class Endless(Exception):
    """Has notes without an end."""

    class Notes(list[str]):
        def __iter__(self) -> Any:
            while True:
                yield "n" * 100

    __notes__ = Notes()


class Hidden(type):
    """A metaclass whose classes cannot be asked for their name."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__module__"):
            raise Refusal
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=Hidden):
    """Its kind cannot be named."""


class Namespace(dict[str, Any]):
    """Nothing can be asked of it either."""

    get = __getitem__ = __setitem__ = __contains__ = __iter__ = _refuses


class Unmarked(Exception):
    """Nothing can be noted at it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.__dict__ = Namespace()


KINDS: Final[tuple[type[BaseException], ...]] = (
    ValueError,
    SyntaxError,
    StopAsyncIteration,
    asyncio.CancelledError,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    ClientDisconnected,
    Hostile,
    HostileBase,
    Endless,
    Nameless,
    Unmarked,
)


def link(error: BaseException, name: str, other: BaseException | None) -> None:
    """Set `__cause__` or `__context__`, past what the class says of it."""
    BaseException.__dict__[name].__set__(error, other)


class Graph:
    """An exception and how it was made, which can be shown."""

    def __init__(self, error: BaseException, made: list[str]) -> None:
        self.error = error
        self._made = made

    def __repr__(self) -> str:
        return "; ".join(self._made)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """An exception, and whatever hangs on it."""
    made: list[BaseException] = []
    shown: list[str] = []
    for at in range(draw(st.integers(1, 6))):
        if made and draw(st.integers(0, 3)) == 0:
            members = draw(st.lists(st.sampled_from(range(len(made))), min_size=1, max_size=4))
            deep, wide = draw(st.sampled_from((0, 0, 0, 3, 600))), draw(st.sampled_from((1, 1, 1, 1, 20_000)))
            error: BaseException = BaseExceptionGroup("of several", [made[number] for number in members])
            for _ in range(deep):
                error = BaseExceptionGroup("one in another", [error])
            if wide > 1:
                error = BaseExceptionGroup("many", [error] * wide)
            shown.append(f"{at} = a group of {members}, {deep} deep, {wide} wide")
        else:
            kind, size = draw(st.sampled_from(KINDS)), draw(st.sampled_from((0, 1, 1, 1, 300_000)))
            error = kind("\x1b\n" * size)
            shown.append(f"{at} = {name_of(kind)} with {size}")
        made.append(error)
    numbers = st.sampled_from(range(len(made)))
    for _ in range(draw(st.integers(0, 6))):
        name = draw(st.sampled_from(("__cause__", "__context__", "__context__")))
        of, to = draw(numbers), draw(numbers)
        link(made[of], name, made[to])
        shown.append(f"{of}.{name} = {to}")
    return Graph(made[-1], shown)
