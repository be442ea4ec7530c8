"""Decodes the input of untrusted processes against schemas, within bounds.

A process that runs the application is not trusted (SECURITY.md): the listener decodes its packets and frames only
through these classes, so that handlers get values of known types and sizes. msgspec limits the depth while it decodes,
creates nothing larger than the input, and accepts neither NaN nor a float as an integer. Unknown members and types are
ignored (law 11: minor versions add some).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from serve_asgi.errors import ChannelError

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A count, or a number of something."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""A time span or a point in CLOCK_MONOTONIC."""
Short = Annotated[str, msgspec.Meta(max_length=200)]
"""A word or a name."""
Sentence = Annotated[str, msgspec.Meta(max_length=4_000)]
"""A sentence; `serve_asgi.worker.bootstrap` sends none that is longer."""
Text = Annotated[str, msgspec.Meta(max_length=200_000)]
"""A traceback: as much as a packet holds."""

BAD: Final = (ValueError, RecursionError)
"""What msgspec raises for invalid input (its errors and UnicodeDecodeError are ValueErrors)."""
MOST_WHY: Final = 200
"""Most characters of an explanation."""


def sayable(text: str) -> str:
    """The text without lone surrogates (from file names that are not UTF-8), which no schema accepts."""
    return text.encode(errors="backslashreplace").decode()


def why(error: Exception) -> str:
    """What was wrong, on one line."""
    return sayable(str(error)[:MOST_WHY])


class _Typed(msgspec.Struct):
    type: Short


class Packets(Generic[T]):
    """The JSON packets that one kind of peer may send; each struct's tag is the `type` of its packet."""

    def __init__(self, *kinds: type[T]) -> None:
        self._type = msgspec.json.Decoder(_Typed)
        self._decoders = {_tag(kind): msgspec.json.Decoder(kind) for kind in kinds}

    def decode(self, data: bytes) -> T | None:
        """The packet; None if this version does not know its type. Raises ChannelError if it is invalid."""
        try:
            kind = self._type.decode(data).type
        except BAD as error:
            raise ChannelError(f"an invalid packet: {why(error)}") from None
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
    """Bodies of frames: MessagePack values of one type."""

    def __init__(self, kind: Any, what: str) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._what = what

    def decode(self, data: bytes) -> T:
        """Decode a body. Raises ChannelError if it is invalid."""
        try:
            return self._decoder.decode(data)
        except BAD as error:
            raise ChannelError(f"{self._what} that is invalid: {why(error)}") from None


class Heads:
    """The frames that one kind of peer may send: by kind, the struct of the head."""

    def __init__(self, kinds: Mapping[str, type]) -> None:
        self._decoders: dict[str, Callable[[msgspec.Raw], Any]] = {}
        self.add(kinds)

    def add(self, kinds: Mapping[str, type]) -> None:
        """Add further kinds."""
        self._decoders |= {kind: msgspec.msgpack.Decoder(head).decode for kind, head in kinds.items()}

    def decode(self, kind: str, head: msgspec.Raw) -> Any:
        """The head; None if the kind is unknown. Raises ChannelError if it is invalid."""
        decoder = self._decoders.get(kind)
        if decoder is None:
            return None
        try:
            return decoder(head)
        except BAD as error:
            raise ChannelError(f"a frame {kind!r}: {why(error)}") from None
