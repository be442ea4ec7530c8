"""What another process may say, by type: decoded against a schema, within bounds, and nothing else gets in.

A process that runs the application is not trusted (SECURITY.md): the listener takes a packet or frame of such a process
only through one of these, so that whoever handles it has values of known types and sizes. msgspec counts
the depth while it decodes, makes nothing larger than what came, and takes neither NaN nor a float for an integer.
Members that are not known are passed over, and so are types that are not known (law 11: minor versions add some).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from serve_asgi.errors import ChannelError

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""How many, or which one."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""A time span or a point in CLOCK_MONOTONIC."""
Short = Annotated[str, msgspec.Meta(max_length=200)]
"""A word or a name."""
Sentence = Annotated[str, msgspec.Meta(max_length=4_000)]
"""A sentence; `serve_asgi.worker.bootstrap` sends none that is longer."""
Text = Annotated[str, msgspec.Meta(max_length=200_000)]
"""A traceback: as much as a packet holds."""

BAD: Final = (ValueError, RecursionError)
"""What msgspec raises for what is not of a schema (its errors and UnicodeDecodeError are ValueErrors)."""
MOST_WHY: Final = 200
"""Characters of what was wrong with a packet."""


def sayable(text: str) -> str:
    """The text without halves of surrogate pairs (from file names that are no UTF-8), which no schema takes."""
    return text.encode(errors="backslashreplace").decode()


def why(error: Exception) -> str:
    """What was wrong, as a line of the log can hold it."""
    return sayable(str(error)[:MOST_WHY])


class _Typed(msgspec.Struct):
    type: Short


class Packets(Generic[T]):
    """The JSON packets that one kind of peer may send; each struct's tag is the `type` of its packet."""

    def __init__(self, *kinds: type[T]) -> None:
        self._type = msgspec.json.Decoder(_Typed)
        self._decoders = {_tag(kind): msgspec.json.Decoder(kind) for kind in kinds}

    def decode(self, data: bytes) -> T | None:
        """The packet; None if it is of a type that this version does not know. Raises ChannelError for nonsense."""
        try:
            kind = self._type.decode(data).type
        except BAD as error:
            raise ChannelError(f"a packet that is none: {why(error)}") from None
        decoder = self._decoders.get(kind)
        if decoder is None:
            return None
        try:
            return decoder.decode(data)
        except BAD as error:
            raise ChannelError(f"a packet {kind!r}: {why(error)}") from None


def _tag(kind: type) -> str:
    config: Any = kind.__struct_config__  # type: ignore[attr-defined]
    return str(config.tag)


class Bodies(Generic[T]):
    """MessagePack values of one type, as bodies of frames hold them."""

    def __init__(self, kind: Any, what: str) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._what = what

    def decode(self, data: bytes) -> T:
        """Raises ChannelError for what is none."""
        try:
            return self._decoder.decode(data)
        except BAD as error:
            raise ChannelError(f"{self._what} that is none: {why(error)}") from None


class Heads:
    """The frames that one kind of peer may send: by kind, the struct of the head."""

    def __init__(self, kinds: Mapping[str, type]) -> None:
        self._decoders: dict[str, Callable[[msgspec.Raw], Any]] = {}
        self.add(kinds)

    def add(self, kinds: Mapping[str, type]) -> None:
        """Know some more."""
        self._decoders |= {kind: msgspec.msgpack.Decoder(head).decode for kind, head in kinds.items()}

    def decode(self, kind: str, head: msgspec.Raw) -> Any:
        """The head; None if the kind is not known. Raises ChannelError for nonsense."""
        decoder = self._decoders.get(kind)
        if decoder is None:
            return None
        try:
            return decoder(head)
        except BAD as error:
            raise ChannelError(f"a frame {kind!r}: {why(error)}") from None
