"""What a run of the load test is, and what it has found."""

from __future__ import annotations

import dataclasses
import sys

from loadtest.ledger import Accounts, Execution, Ledger
from loadtest.tls import ClientTls


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run."""

    server: str = "serve"
    workers: int = 2
    reloads: int = 10
    interval: float = 3.0
    """Least time between two HUPs, in seconds; a HUP is only sent when the reload before it is complete."""
    http: str = "httptools"
    loop: str = "uvloop"
    scale: float = 1.0
    """Factor for the request rates; 1.0 is about 500 requests/s."""
    stretch: float = 1.0
    """Factor for how long slow requests and answers, streams and WebSockets take."""
    python: str = sys.executable
    """The interpreter that runs the server."""
    warmup: float = 2.0
    """Seconds of load before the first HUP and after the last reload."""
    seed: int = 1
    rollbacks: int = 0
    """How many further reloads are each taken back by `serve rollback`, while the workers before stand by."""
    listener: bool = False
    """Replace the listener's own program as well, before each reload."""
    tls: str | None = None
    """The version of TLS that all connections speak: 1.2 or 1.3."""
    http2: bool = False
    """Speak HTTP/2: in clear text with prior knowledge, over TLS by ALPN."""
    h2_hold: float | None = None
    """--h2-hold, in seconds; the server's own if None."""
    renew: bool = False
    """Replace the certificate before each reload, and have it taken up without one; of this project's server."""
    behind: str | None = None
    """The proxy in front of it (`loadtest.proxies`)."""
    unix: bool = False
    """Connect to a socket of the file system."""
    deflate: bool | None = None
    """Whether WebSockets that survive offer compression; half of them if None."""
    survive_window: float | None = None
    """--survive-window, in seconds; the server's own if None."""
    kinds: tuple[str, ...] = ()
    """Names of the kinds of load; all, if empty."""


@dataclasses.dataclass(slots=True)
class Reload:
    """One HUP, or one roll-back. Times on the monotonic clock, s; `complete` is 0 if it was never seen to complete."""

    sent: float
    complete: float = 0.0
    answered: float = 0.0
    """When the control socket replied that the roll-back was done; 0 for a HUP."""


@dataclasses.dataclass(slots=True)
class Measures:
    """What was counted in /proc around the load."""

    descriptors_before: int = 0
    descriptors_after: int = 0
    memory: list[int] = dataclasses.field(default_factory=list)
    """Resident bytes of the listener: before the load, after each reload, at the end."""
    exit_status: int | None = None


@dataclasses.dataclass(slots=True)
class Result:
    """What a run has found."""

    settings: Settings
    ledger: Ledger
    accounts: Accounts
    executions: list[Execution]
    reloads: list[Reload]
    measures: Measures
    problems: list[str]
    """Sentences about everything else that must not be."""
    tls: ClientTls | None
    began: float
    ended: float

    @property
    def lost(self) -> int:
        """Requests and messages that were sent and not answered rightly and wholly."""
        return len(self.accounts.lost)

    @property
    def duplicated(self) -> int:
        """Ids that were executed more than once."""
        return len(self.accounts.duplicated)

    @property
    def reconnects(self) -> int:
        """Keep-alive connections that the server ended without having been asked to."""
        return len(self.ledger.reconnects)

    @property
    def spotless(self) -> bool:
        """Nothing lost, duplicated, reconnected, odd."""
        return not (self.lost or self.duplicated or self.reconnects or self.problems)
