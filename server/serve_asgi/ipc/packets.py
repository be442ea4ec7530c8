"""The packets that the listener's children may send, and workers to each other, over a channel.

Each struct is one type of packet. The listener's own packets have none, since it is trusted. The encoding is JSON
(`serve_asgi.ipc.channel`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from serve_asgi.ipc.untrusted_input import Count, Packets, Seconds, Sentence, Short, Text


class Packet(msgspec.Struct, frozen=True, tag_field="type"):
    """One type of packet."""


class Abilities(msgspec.Struct, frozen=True):
    """How to obtain the stacks of a process (`serve_asgi.listener.stack_dumps`)."""

    signal: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    loop_thread: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


# From a worker or an agent


class Hello(Packet, frozen=True, tag="hello"):
    """It is alive, and speaks this version."""

    protocol: Annotated[list[Count], msgspec.Meta(max_length=8)] = []
    window: Abilities | None = None


class Failed(Packet, frozen=True, tag="failed"):
    """It has failed to start."""

    message: Sentence
    detail: Text = ""
    usage: bool = False


class CountsMetrics(Packet, frozen=True, tag="counts metrics"):
    """Its application has metrics: it needs a memory for them, and those of the others."""


class Ready(Packet, frozen=True, tag="ready"):
    """A worker: imported, its lifespan has started."""

    stands_by: bool = False
    """It knows the order to stand by; one of an earlier version does not."""
    compiled_modules: Count = 0
    """How many it runs (`serve_asgi.compiled_core`); an earlier version has none."""


class Accepts(Packet, frozen=True, tag="accepts"):
    """A worker: it accepts connections from now on. Once for each order to serve."""


class StandsBy(Packet, frozen=True, tag="stands by"):
    """A worker: it has no connection left, and waits. Once for each order to stand by."""


class Recycle(Packet, frozen=True, tag="recycle"):
    """A worker: it requests to be replaced."""

    reason: Sentence
    too_large: bool = False


class CanaryVote(Packet, frozen=True, tag="canary_refused"):
    """A worker: its application says that its version is bad."""

    reason: Sentence
    detail: Text = ""


class WorkerEnded(Packet, frozen=True, tag="finished"):
    """A worker has ended normally."""

    cut: Count = 0
    handed_over: Count = 0


class Withdrawn(Packet, frozen=True, tag="withdrawn"):
    """A worker withdraws its offers over a pair."""

    pair: Count


class Lost(Packet, frozen=True, tag="lost"):
    """A worker has not received the descriptors of a pair: it requests another one."""

    pair: Count


class Orphaned(Packet, frozen=True, tag="orphaned"):
    """A worker asks for a verdict on the offers of a pair."""

    pair: Count


class TlsTaken(Packet, frozen=True, tag="tls taken"):
    """A worker: new handshakes use this version of what is needed for TLS, or it could not be used."""

    version: Count
    trouble: Sentence = ""


class TlsLost(Packet, frozen=True, tag="tls lost"):
    """A worker has not got the descriptor of what is needed for TLS: it asks for it again."""


class Prepared(Packet, frozen=True, tag="prepared"):
    """An agent: imported, its prepare() has returned."""


class Waits(Packet, frozen=True, tag="waits"):
    """An agent: another server's agent has the lock."""

    holder: Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class Entered(Packet, frozen=True, tag="entered"):
    """An agent is active."""


class Returned(Packet, frozen=True, tag="returned"):
    """An agent's function has returned."""


class AgentEnded(Packet, frozen=True, tag="finished"):
    """An agent has ended normally."""


FROM_WORKER: Final[Packets[Packet]] = Packets(
    *(Hello, Failed, Ready, Accepts, StandsBy, Recycle, CanaryVote, WorkerEnded),
    *(Withdrawn, Lost, Orphaned, TlsTaken, TlsLost, CountsMetrics),
)
FROM_AGENT: Final[Packets[Packet]] = Packets(
    *(Hello, Failed, Prepared, Waits, Entered, Returned, AgentEnded, CountsMetrics)
)
ONCE: Final = (
    Hello,
    Failed,
    Ready,
    Accepts,
    StandsBy,
    Recycle,
    CanaryVote,
    WorkerEnded,
    CountsMetrics,
    Prepared,
    Entered,
    Returned,
    AgentEnded,
)
"""Packets that a process may send only once, or once for each order that they reply to."""


# From a template (`serve_asgi.template_process`)


class Imported(Packet, frozen=True, tag="imported"):
    """It has imported the application; `findings` say why it must not be forked, if so."""

    findings: Annotated[list[Sentence], msgspec.Meta(max_length=100)] = []


class Forked(Packet, frozen=True, tag="forked"):
    """A worker has been forked, and is the listener's child."""

    number: Count
    pid: Annotated[int, msgspec.Meta(ge=2, le=2**31)]


class NotForked(Packet, frozen=True, tag="not forked"):
    """A worker could not be forked."""

    number: Count
    reason: Sentence


FROM_TEMPLATE: Final[Packets[Packet]] = Packets(Hello, Failed, Imported, Forked, NotForked)


# From the watchdog of a worker or an agent


class Thread(msgspec.Struct, frozen=True, omit_defaults=True):
    """A thread, or a task, and its stack."""

    name: Sentence
    stack: Annotated[list[Sentence], msgspec.Meta(max_length=1_000)]
    request: Sentence = ""
    note: Sentence = ""
    coro: Sentence = ""
    awaits: Sentence = ""
    running: bool = False


class Stacks(Packet, frozen=True, tag="stacks"):
    """What the process is doing."""

    threads: Annotated[list[Thread], msgspec.Meta(max_length=1_000)]
    threads_total: Count
    tasks: Annotated[list[Thread], msgspec.Meta(max_length=10_000)]
    tasks_total: Count
    blocked: Seconds
    id: Count = 0


FROM_WATCHDOG: Final[Packets[Packet]] = Packets(Stacks)


# From one worker to another (`serve_asgi.worker.hand_over_sender`)

Address: TypeAlias = tuple[Annotated[str, msgspec.Meta(max_length=1_000)], int | None] | None
MOST_IN_RECORD: Final = 100_000
"""Characters of the leftover in a record; a longer one travels in a memfd."""


Secret = Annotated[str, msgspec.Meta(max_length=200)]
Certificate = Annotated[str, msgspec.Meta(max_length=MOST_IN_RECORD)]


class NegotiatedTls(msgspec.Struct, frozen=True):
    """What was negotiated for a TLS connection (`serve_asgi.tls.moved_session`)."""

    version: Count
    cipher_suite: Count
    cipher_name: Short
    server_name: Sentence | None = None
    alpn: Short | None = None
    client_certificates: Annotated[list[Certificate], msgspec.Meta(max_length=100)] = []
    client_name: Sentence | None = None
    client_error: Sentence | None = None
    server_certificate: Certificate | None = None
    resumed: bool = False


class MovedTls(msgspec.Struct, frozen=True):
    """A TLS connection that travels; its secrets are never shown."""

    format: Count
    suite: Count
    read_secret: Secret
    read_sequence: Count
    write_secret: Secret
    write_sequence: Count
    info: NegotiatedTls
    partial: Annotated[str, msgspec.Meta(max_length=MOST_IN_RECORD // 4)]
    message: Annotated[str, msgspec.Meta(max_length=MOST_IN_RECORD // 4)]
    max_fragment: Count

    def __repr__(self) -> str:
        return "MovedTls(…)"


class Surviving(msgspec.Struct, frozen=True):
    """That the connection is in use. Its TLS stands here: a version that knows nothing of this refuses what stands in
    its place (`serve_asgi.http.hand_over_record`)."""

    tls: MovedTls | None = None


class MovedHttp2(msgspec.Struct, frozen=True):
    """That the connection is one of HTTP/2, with its TLS, which stands here for the same reason."""

    state: dict[Short, Any]
    """As `Http2State`, which is checked later: another version's is refused, and the pair goes on."""
    tls: MovedTls | None = None

    def __repr__(self) -> str:
        return "MovedHttp2(…)"


StreamNumber = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Window = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""One may fall below 0 when the client makes all of them smaller (RFC 9113 6.9.2)."""
Entries = Annotated[list[tuple[Text, Text]], msgspec.Meta(max_length=1_000)]
"""Of a header table: names and values, in base64."""


class Http2Ended(msgspec.Struct, frozen=True):
    """The streams that have ended (`serve_asgi.http.h2.streams`)."""

    last: StreamNumber
    gaps: Annotated[list[tuple[StreamNumber, StreamNumber]], msgspec.Meta(max_length=1_000)]
    reset: Annotated[list[StreamNumber], msgspec.Meta(max_length=10_000)]
    forgotten: StreamNumber


Urgency = Annotated[int, msgspec.Meta(ge=0, le=7)]
ReceiveWindows = tuple[Window, StreamNumber, StreamNumber]
OpenStream = tuple[StreamNumber, Literal[1, 2], Window, ReceiveWindows | None, Urgency, bool]
"""One that another worker goes on with: its number, state (open, half-closed), windows and priority."""


class Http2State(msgspec.Struct, frozen=True):
    """An HTTP/2 connection on which nothing is in progress, or nothing that cannot go on in another worker
    (`serve_asgi.http.h2.connection_value`)."""

    version: Count
    begun: bool
    settled: bool
    settings: tuple[Size, StreamNumber, Annotated[int, msgspec.Meta(ge=2**14, le=2**24 - 1)], Size]
    decoder: tuple[Size, Entries]
    encoder: tuple[Size, Size, Entries]
    send_window: Window
    receive_window: ReceiveWindows
    ended: Http2Ended
    floods: dict[Short, Seconds]
    requests: Count
    priorities: Annotated[list[tuple[StreamNumber, Urgency, bool]], msgspec.Meta(max_length=1_000)]
    leaving: bool
    """The client has been told which stream is the last."""
    streams: Annotated[list[OpenStream], msgspec.Meta(max_length=10_000)]


def check_http2_state(state: dict[str, Any]) -> None:
    """Raise ValueError for what is no `Http2State`."""
    msgspec.convert(state, Http2State)


class Record(msgspec.Struct, frozen=True):
    """What travels with a connection (`serve_asgi.http.hand_over_record`)."""

    leftover: Annotated[str, msgspec.Meta(max_length=MOST_IN_RECORD)]
    client: Address
    server: Address
    deadline: Seconds | None
    requests: Count
    scheme: Short = "http"
    trusted: bool | None = None
    awaits_proxy: bool = False
    awaits_tls: bool = False
    tls: MovedTls | None = None
    survives: Surviving | None = None
    http2: MovedHttp2 | None = None


class Offer(Packet, frozen=True, tag="offer"):
    """A connection; its descriptor comes with the packet."""

    offer: Count
    record: Record


class Commit(Packet, frozen=True, tag="commit"):
    """The connection belongs to the receiver from here on."""

    offer: Count


class Take(Packet, frozen=True, tag="take"):
    """The receiver has it, and waits for the commit."""

    offer: Count


class Refuse(Packet, frozen=True, tag="refuse"):
    """The receiver refuses it."""

    offer: Count
    not_understood: bool = False
    """It could not go on with this connection, but may with others; else it has no room, or takes no more."""


FROM_SENDER: Final[Packets[Packet]] = Packets(Offer, Commit)
FROM_RECEIVER: Final[Packets[Packet]] = Packets(Take, Refuse)


def tag(kind: type[Packet]) -> str:
    """The packet's `type`."""
    return str(kind.__struct_config__.tag)


def members(packet: msgspec.Struct) -> dict[str, Any]:
    """The packet's members as plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(packet)
    return plain
