"""Frames of the shared state between a process and its hub: writes, changes, and how they are encoded.

member -> hub
    state.write  {id, op, key, version?, by?, timeout} body=value   -> done | failed
    state.read   {id, key, timeout}                        the authoritative value -> done | failed
    state.seen   {seq}                                     how many changes it has applied
    state.leave  {}                                        it exits, and applies no more changes
hub -> member
    state.limits  {value, total}                           in bytes
    state.changes {seq, whole?, more?} body=[[key, version, value], …]  a batch: the state after `seq` changes
    state.done    {id, version} body=value
    state.failed  {id, code, text, version, lagging?} body=value
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from serve_asgi.ipc.untrusted_input import Count

MAX_KEY: Final = 512
"""Bytes of a key in UTF-8."""
INT64: Final = range(-(2**63), 2**63)
RESERVED: Final = "serve:"
"""Prefix of the server's own keys: applications cannot use them, and they are not sent to processes."""
Key = Annotated[str, msgspec.Meta(max_length=1_000)]
"""Longer keys than allowed are refused with a sentence (`serve_asgi.hub.state.write_evaluation`)."""
Timeout = Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class WriteOp(enum.Enum):
    """What a write does; the values travel in frames (`op`)."""

    SET = "set"  # the value, whatever was there
    DELETE = "delete"
    INCR = "incr"  # add `by` to an integer; a missing key counts as 0
    CAS = "cas"  # set, if the key still has the version that the writer has seen (0: missing)


class Write(NamedTuple):
    """A requested write."""

    op: WriteOp
    key: str
    value: bytes = b""  # of SET and CAS: MessagePack
    version: int | None = None  # required for CAS, optional otherwise: refuse if the key has another version
    by: int = 0  # of INCR

    @classmethod
    def of(cls, head: dict[str, Any], body: bytes) -> Write:
        """From the head and body of a frame `state.write` or `store.write`.

        Raises LookupError, TypeError or ValueError if it is invalid.
        """
        op, key, version, by = WriteOp(head["op"]), head["key"], head.get("version"), head.get("by", 0)
        if not isinstance(key, str) or not isinstance(version, int | None) or not isinstance(by, int):
            raise TypeError("a write with a key, version or step of the wrong type")
        if op is WriteOp.CAS and version is None:
            raise ValueError("compare-and-set without a version")
        return cls(op, key, body, version, by)

    def head(self) -> dict[str, Any]:
        """The head of a frame; the value is its body."""
        head: dict[str, Any] = {"op": self.op.value, "key": self.key}
        if self.version is not None:
            head["version"] = self.version
        if self.op is WriteOp.INCR:
            head["by"] = self.by
        return head


class KeyChange(NamedTuple):
    """The newest change of a key."""

    key: str
    version: int
    value: bytes | None  # None: deleted


class StateReadFrame(msgspec.Struct):
    """`state.read`."""

    id: Count
    key: Key
    timeout: Timeout


class StateWriteFrame(msgspec.Struct):
    """`state.write`; the body is the value."""

    id: Count
    op: WriteOp
    key: Key
    timeout: Timeout
    version: Count | None = None
    by: Annotated[int, msgspec.Meta(ge=INT64[0], le=INT64[-1])] = 0


class StateSeenFrame(msgspec.Struct):
    """`state.seen`."""

    seq: Count


class StateLeaveFrame(msgspec.Struct):
    """`state.leave`."""


STATE_FRAMES: Final[Mapping[str, type]] = {
    "state.write": StateWriteFrame,
    "state.seen": StateSeenFrame,
    "state.read": StateReadFrame,
    "state.leave": StateLeaveFrame,
}
"""The kinds that a member may send, and the struct of each head."""
