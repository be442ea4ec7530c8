"""What all connections of one worker share, and what the worker asks of a connection.

The worker owns one `WorkerContext`; connections read it on every request, so it is flat: plain attributes, no
properties.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

from serve_asgi.config.options import Config
from serve_asgi.http.client_socket import descriptor_of
from serve_asgi.http.dropped_messages import DroppedBodyLog
from serve_asgi.http.forwarded import Forwarding
from serve_asgi.http.head_cache import BoundedCache, CachedHeadReader
from serve_asgi.http.head_parsers import Parser, parser_factory
from serve_asgi.http.request_head import BadRequest, Head, mentions
from serve_asgi.http.write_batching import WriteBatch
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, Cell, Header
from serve_asgi.logs.rare_line import RareLine
from serve_asgi.logs.request_ids import RequestIds
from serve_asgi.logs.server_log import about

if TYPE_CHECKING:
    from serve_asgi.http.request_timeouts import RequestTimeouts
    from serve_asgi.logs.access_log import RequestLog

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]


TLS_LINE_EVERY: Final = 60.0
"""Seconds between two log lines on clients that speak TLS to an address that does not."""

NOT_SURVIVED_EVERY: Final = 1.0
"""Seconds between two log lines on connections that were to survive and did not; the others are counted."""

KEEP_ALIVE_SLACK: Final = 1.0
"""An idle connection is closed a little later (s) than advertised, so that a client's last request finds it open."""


class WorkerPhase(enum.Enum):
    """What the worker does with a connection that has become idle."""

    SERVING = "serving"  # keep it
    LENDING = "lending"  # hand it over to a canary while `WorkerContext.to_lend` are left, and keep it otherwise
    HANDING_OVER = "handing over"  # retiring: hand it over (`WorkerContext.hand_over` is called)
    CLOSING = "closing"  # retiring and nobody to hand over to: announce the end and close


class Retiring(Protocol):
    """Whether the worker retires, and why: "reload", "rollback", "stop", "recycle", "scale"."""

    @property
    def reason(self) -> str | None: ...

    def is_set(self) -> bool: ...


class AppliedChanges(Protocol):
    """How many changes of the shared state this process has applied."""

    @property
    def applied(self) -> int: ...


class Board(Protocol):
    """What this process reads of the scoreboard's head (`serve_asgi.ipc.scoreboard.Header`)."""

    @property
    def words(self) -> memoryview: ...

    @property
    def draining_since(self) -> int: ...

    @property
    def agent_missing(self) -> bool: ...


class _NothingApplied:
    applied = 0


class ClientConnection(Protocol):
    """A client connection as the worker sees it. Everything else is private to it."""

    deadline: float
    """Loop time (CLOCK_MONOTONIC, s) at which `expire()` is due, or infinity. Compared once a second for all."""

    def asked_at(self) -> float:
        """When the request in progress began (time.perf_counter, s), or infinity; WebSockets have none."""

    def expire(self) -> None:
        """The deadline has passed."""

    def end_overdue(self, timeouts: RequestTimeouts) -> None:
        """End the requests in progress that have taken too long."""

    def retire(self) -> None:
        """The worker's phase has left SERVING: leave as soon as that loses nothing."""

    def resume(self) -> None:
        """The worker was to stand by and serves again: what was planned for its retirement is off."""

    def cut(self) -> bool:
        """At the graceful timeout: end at once, cancelling the application's task. True if anything was cut."""

    def let_go(self, instead: Any) -> asyncio.Transport:
        """In a forked child: return the transport; the connection has `instead` in its place from now on."""


class WorkerContext:
    """Shared by all connections of the worker."""

    __slots__ = (
        "_announce_close",
        "_default_headers",
        "access_log",
        "app",
        "catch_up",
        "cells",
        "config",
        "connections",
        "context",
        "dropped_bodies",
        "durations",
        "early_hints",
        "emptied",
        "encoded_headers",
        "forwarding",
        "gathers_writes",
        "generation",
        "hand_over",
        "heads",
        "health_path",
        "keep_alive",
        "keep_alive_lines",
        "last_call",
        "lent",
        "loop",
        "max_concurrency",
        "max_head_size",
        "most_linger",
        "new_parser",
        "not_survived",
        "numbered",
        "numbers",
        "persistent",
        "phase",
        "published",
        "raw_root_path",
        "received",
        "request_ids",
        "retire_deadline",
        "retiring",
        "root_path",
        "scoreboard",
        "sent",
        "shared",
        "slot",
        "state",
        "tasks",
        "time",
        "tls_at_plain_address",
        "to_lend",
        "took",
        "write_batch",
    )

    def __init__(
        self,
        app: ASGIApplication,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        scoreboard: Board,
        cells: memoryview,
        retiring: Retiring,
    ) -> None:
        self.app = app
        self.config = config
        self.loop = loop
        self.time: Callable[[], float] = loop.time
        """The loop's clock, for what asks it at every request."""
        self.write_batch = WriteBatch(loop)
        """The responses that wait for the end of the loop's turn."""
        self.gathers_writes = not isinstance(loop, asyncio.BaseEventLoop)
        """Whether its transports' `writelines` pauses the protocol, which asyncio's does not before 3.13.2."""
        self.scoreboard = scoreboard
        self.cells = cells
        """This process's row, indexed by `serve_asgi.ipc.scoreboard.Cell`; written by this process alone."""
        self.received = 0
        self.sent = 0
        """Bytes since the last tick, as they were on the wire; what is counted often waits here for the tick, since an
        attribute costs a tenth of a cell."""
        self.took = 0.0
        """Time (s) of the requests that have ended since the last tick."""
        self.durations = [0] * (len(DURATION_BOUNDS) + 1)
        """How many of them took as long as each bucket of `DURATION_BOUNDS` says."""
        self.retiring = retiring
        self.shared: AppliedChanges = _NothingApplied()
        """The shared state as this process has it; `shared.applied` is looked at before each request."""
        self.published = scoreboard.words[Header.STATE : Header.STATE + 1]
        """How many changes it has had: more than `shared.applied` means that this process is behind."""
        self.catch_up: Callable[[], None] = lambda: None
        """Apply what is missing before the request proceeds; never raises."""
        self.phase = WorkerPhase.SERVING
        self.to_lend = 0
        """In phase LENDING: how many more connections are to be handed over."""
        self.retire_deadline = math.inf
        """Loop time (s) of the graceful timeout; infinity until the worker retires (set before the phase changes)."""
        self._announce_close = False
        self._default_headers = b""
        self.persistent = b""
        """What follows the application's headers in a response after which the connection persists; empty if none."""
        self.connections: set[ClientConnection] = set()
        self.numbers = 0
        """Connections that have got a number."""
        self.numbered: dict[int, Any] = {}
        """Those that are open and in use by an application, or will be: it finds its own by
        `scope["extensions"]["serve"]["connection"]` (`serve_asgi.app.survive`)."""
        self.tasks: set[asyncio.Task[None]] = set()
        """The applications' running tasks: a strong reference each, so that none is collected."""
        self.lent: set[int] = set()
        """Duplicates of clients' descriptors through which files are being sent."""
        self.context = contextvars.copy_context()
        """Each request's task starts with a copy, so that none sees what another has set (a transport's callbacks run
        in the context of whoever resumed its reading: python/cpython#140947)."""
        self.state: dict[str, Any] = {}
        """The lifespan state; each request's scope gets a shallow copy (ASGI lifespan, "Lifespan State")."""
        self.generation = 0
        self.slot = 0
        """Which worker this is: `scope["extensions"]["serve"]`."""
        self.early_hints = config.early_hints
        self.last_call = False
        """The graceful timeout is near: idle connections that cannot move are closed."""
        self.hand_over: Callable[[Any], None] | None = None
        """In phase HANDING_OVER: called by a connection that has become idle, to be handed over."""
        self.access_log: RequestLog | None = None
        self.most_linger = math.inf
        """How long (s) a client may take at most to end its side of a closed connection: short where a stop waits."""
        self.emptied: Callable[[], None] | None = None
        """Set by a retiring worker: called when the last connection has gone."""
        self.new_parser: Callable[[], Parser] = parser_factory(config.http)
        self.health_path = config.health_path.encode() if config.health else None
        """The path that the worker answers itself, as a request has it; None if all go to the application."""
        self.keep_alive = config.keep_alive + KEEP_ALIVE_SLACK
        """How long an idle connection is really kept (s)."""
        advertised = int(config.keep_alive)
        self.keep_alive_lines = b"connection: keep-alive\r\n" + (
            b"keep-alive: timeout=%d\r\n" % advertised if advertised else b""
        )
        """What a response says of a connection that persists; the number is a hint for the client's pool."""
        self.root_path = config.root_path
        self.raw_root_path = quote(config.root_path, safe="/:@!$&'()*+,;=").encode()
        self.request_ids = RequestIds(config)
        """How requests are told apart in logs."""
        self.forwarding = Forwarding(config.forwarded_allow_ips, config.forwarded_headers)
        """Who is believed about the client's side of a proxy."""
        self.max_head_size = config.max_head_size
        self.max_concurrency = config.max_concurrency
        self.dropped_bodies = DroppedBodyLog()
        """What the application does wrong that does no harm."""
        self.tls_at_plain_address = RareLine(TLS_LINE_EVERY)
        """Clients that speak TLS to an address that does not."""
        self.not_survived = RareLine(NOT_SURVIVED_EVERY)
        """Connections that were to survive and did not."""
        self.heads = CachedHeadReader(self.new_parser, self.check_head, cells)
        self.encoded_headers = BoundedCache()
        """What `serve_asgi.http.response_head.encode_headers` made of the headers that applications sent recently."""

    @property
    def default_headers(self) -> bytes:
        """`date: …\\r\\nserver: …\\r\\n` as configured, made again each second by the housekeeping."""
        return self._default_headers

    @default_headers.setter
    def default_headers(self, lines: bytes) -> None:
        self._default_headers = lines
        self._join()

    @property
    def announce_close(self) -> bool:
        """Responses have `Connection: close`: `--drain-close-after` has passed, or nobody takes a retiring worker's
        connections. Kept by the housekeeping."""
        return self._announce_close

    @announce_close.setter
    def announce_close(self, close: bool) -> None:
        self._announce_close = close
        self._join()

    def _join(self) -> None:
        keeps = self.config.keep_alive and not self._announce_close
        self.persistent = b"\r\n" + self._default_headers + self.keep_alive_lines if keeps else b""

    def read_again(self, data: bytes) -> Head:
        """The head of a request that another worker has let in: the limits of this one are for requests that come."""
        head = self.new_parser().parse_head(data)
        head.forwarding = self.forwarding.mentioned(head.headers)
        return head

    def number(self, connection: Any) -> int:
        """A number for a connection, until `numbered` has lost it."""
        self.numbers += 1
        self.numbered[self.numbers] = connection
        return self.numbers

    def check_head(self, head: Head) -> None:
        """Raises BadRequest for a head that the configured limits refuse."""
        head.forwarding = mentions(head.headers, self.forwarding.fields)
        config = self.config
        if len(head.target) > config.max_target_size:
            raise BadRequest(414, f"The request target is longer than {config.max_target_size} bytes.")
        if len(head.headers) > config.max_headers:
            raise BadRequest(431, f"The request head has more than {config.max_headers} headers.")
        if config.max_body_size and head.body > config.max_body_size:
            raise BadRequest(413, f"The request body is larger than {config.max_body_size} bytes.")

    def tick(self) -> None:
        """Once per second."""
        self.heads.tick()
        self.encoded_headers.tick()
        self.note_counts()

    def note_counts(self) -> None:
        """Write into the row what has been counted since the last time."""
        cells = self.cells
        cells[Cell.BYTES_RECEIVED] += self.received
        cells[Cell.BYTES_SENT] += self.sent
        cells[Cell.DURATION_TOTAL] += int(self.took * 1e9)
        for number, count in enumerate(self.durations):
            if count:
                cells[Cell.DURATION_0 + number] += count
        self.received = self.sent = 0
        self.took = 0.0
        self.durations = [0] * len(self.durations)

    def let_go(self, instead: Any) -> list[int]:
        """In a forked child: the clients' descriptors. What uses the loop or a client from now on gets `instead`."""
        instead.kept = kept = [connection.let_go(instead) for connection in self.connections]
        self.loop = self.tasks = instead
        return [*self.lent, *map(descriptor_of, kept)]

    def has_room(self, coming: int) -> bool:
        """Whether one more connection may be accepted (--max-connections); `coming` are not attached yet."""
        limit = self.config.max_connections
        return not limit or len(self.connections) + coming < limit

    def did_not_survive(self, what: str, reason: str) -> None:
        """Count and log a connection that its application wished to survive, and that has got the ordinary end."""
        self.cells[Cell.NOT_SURVIVED] += 1
        text = "%s did not survive: %s"
        self.not_survived.info(text, what, reason, extra=about("connection_not_survived", what=what, reason=reason))

    def forget(self, connection: ClientConnection) -> None:
        """A connection has ended or has been handed over."""
        self.connections.discard(connection)
        if self.emptied is not None and not self.connections:
            self.emptied()
