"""The deploys of one server: when, by whom, from what to what, how each ended, and what it cost the clients.

A deploy is what a start or a request for a reload leads to. It begins with `begin`; what follows is learned from the
events of the server (docs/reference/events.md), which `take` gets in order. One deploy is under way at a time: if the
next one begins before its end, it has been superseded. The numbers of the generation that it replaced come later, when
the last worker of that one has ended.

The list is bounded. It knows no process, no socket and no file: deploys of earlier servers are given to it and kept by
`serve_asgi.listener.stored_deploys`.
"""

from __future__ import annotations

import collections
import enum
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec

from serve_asgi.ipc.lifecycle_states import OPEN_DEPLOYS, DeployOutcome
from serve_asgi.ipc.untrusted_input import Count, Seconds, Sentence, Short, sayable

KEPT: Final = 50
"""Most deploys in the list, and most of this server."""
LONGEST_TEXT: Final = 500
"""Characters of a reason."""
LONGEST_OPTION: Final = 200
MOST_OPTIONS: Final = 20
"""Most changed options that are named."""
LONGEST_PATH: Final = 1_000

PathText = Annotated[str, msgspec.Meta(max_length=LONGEST_PATH)]
Figure = bool | int | float | Short | None


class DeployKind(enum.Enum):
    """What was requested."""

    START = "start"
    RELOAD = "reload"
    CANARY = "canary"  # a reload with a trial before the switch
    ROLLBACK = "rollback"  # the previous generation serves again


_REPLACED: Final = frozenset(
    {DeployOutcome.DONE, DeployOutcome.PROMOTED, DeployOutcome.INCONCLUSIVE, DeployOutcome.ROLLED_BACK}
)
"""Outcomes after which another generation serves than before."""
_TOOK_EFFECT: Final = _REPLACED | {DeployOutcome.STARTED}
_INCONCLUSIVE: Final = "inconclusive"


class DeployedVersion(msgspec.Struct, frozen=True):
    """What a generation runs: enough to see what a deploy has changed."""

    generation: Count
    app: Sentence = ""
    directory: PathText = ""
    """That of the application's code, links resolved: the release."""
    python: PathText = ""
    commit: Short = ""
    """What is checked out there, if that is known."""


class Deploy(msgspec.Struct, rename={"before": "from"}):
    """One deploy; msgspec makes it JSON-compatible and validates it, since a store may hold anything."""

    kind: DeployKind
    by: Short
    """What requested it: "start", "HUP", "serve reload" …"""
    at: Seconds
    """When it began (unix time, s)."""
    who: Sentence = ""
    """The user, and the program that ran the command, if that is known."""
    server: Short = ""
    """The host."""
    place: PathText = ""
    """The directory of the server there, links and all; "" from an earlier version."""
    before: DeployedVersion | None = None
    to: DeployedVersion | None = None
    """None if it was refused before a generation began."""
    options: Annotated[list[Sentence], msgspec.Meta(max_length=MOST_OPTIONS)] = []
    """The options that it changed, with their new values."""
    outcome: DeployOutcome = DeployOutcome.UNDER_WAY
    text: Sentence = ""
    """Why it did not succeed; of a roll-back by the server itself: why."""
    seconds: Seconds | None = None
    """From the request to the outcome."""
    handed_over: Count | None = None
    """Connections that the old generation has handed over; None while it has not ended, and at a start."""
    cut: Count | None = None
    """Requests of the old generation that were cut or lost; None as for `handed_over`."""
    trial: dict[Short, Figure] | None = None
    """The figures of a canary."""


class DeployHistory:
    """The last deploys of one server, and of those before it."""

    place = ""
    """The directory of this server: several on one host have one each, and may share a store."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` is the time of day (unix time, s)."""
        self.life = uuid.uuid4().hex
        """Identifies the deploys of this server, until it ends."""
        self.own: collections.deque[Deploy] = collections.deque(maxlen=KEPT)
        """This server's, oldest first; the last one may be under way."""
        self.others: dict[str, list[Deploy]] = {}
        """Those of earlier servers, and of others with the same store, by where they are stored."""
        self.outcomes: collections.Counter[str] = collections.Counter()
        """Deploys of this server that have ended, by outcome."""
        self.changes = 0
        """How often a deploy that has ended was added or changed."""
        self._current: DeployedVersion | None = None
        self._requests: dict[str, str] = {}
        self._host = socket.gethostname()[:200]
        self._clock = clock

    # What happens

    def requested(self, by: str, who: str) -> None:
        """Note who runs the command `by`, for the deploy that it leads to; the first one counts."""
        self._requests.setdefault(by, who)

    def begin(self, by: str, kind: DeployKind = DeployKind.RELOAD, who: str = "", reason: str = "") -> None:
        """A deploy begins; `reason` is why the server rolls back by itself."""
        self._end(DeployOutcome.SUPERSEDED, f"{by} came before its end")
        who = who or self._requests.get(by, "")
        self._requests.clear()
        if kind is DeployKind.START:
            self._current = self._before_the_start()
        at, place = round(self._clock(), 3), sayable(self.place)[:LONGEST_PATH]
        self.own.append(Deploy(kind, by[:200], at, _cut(who), self._host, place, before=self._current))
        self.own[-1].text = _cut(reason)

    def generation_begins(self, version: DeployedVersion, options: list[str]) -> None:
        """The deploy under way starts this generation, and changes these options (each with its value)."""
        if (deploy := self._under_way()) is not None:
            deploy.to = version
            deploy.options = [_cut(each, LONGEST_OPTION) for each in options[:MOST_OPTIONS]]

    def take(self, record: Mapping[str, Any]) -> None:
        """Learn from an event; other events than those of deploys are ignored."""
        match record["event"]:
            case "server_started":
                self._end(DeployOutcome.STARTED, seconds=record.get("seconds"))
            case "reload_finished":
                self._succeeded(record)
            case "reload_refused" if "reason" in record:
                self._end(DeployOutcome.REFUSED, record["reason"], record.get("seconds"))
            case "canary_started" | "canary_undecided" | "canary_promoted" | "canary_withdrawn":
                self._tried(record)
            case "rollback_finished":
                self._rolled_back(record)
            case "rollback_refused" if (deploy := self._under_way()) and deploy.kind is DeployKind.ROLLBACK:
                self._end(DeployOutcome.REFUSED, record["reason"])
            case "generation_ended":
                self._count(record["generation"], record["handed_over"], record["cut"])

    def server_ends(self, failure: str) -> None:
        """The server ends; `failure` says why it could not start, if so."""
        deploy = self._under_way()
        if deploy is not None and deploy.kind is DeployKind.START and failure:
            self._end(DeployOutcome.REFUSED, failure)
        else:
            self._end(DeployOutcome.GIVEN_UP, "the server was stopped")

    def _succeeded(self, record: Mapping[str, Any]) -> None:
        deploy, seconds = self._under_way(), record.get("seconds")
        if deploy is None:
            return
        if deploy.trial is None:
            self._end(
                DeployOutcome.ROLLED_BACK if deploy.kind is DeployKind.ROLLBACK else DeployOutcome.DONE, seconds=seconds
            )
        elif deploy.text.startswith(_INCONCLUSIVE):
            self._end(DeployOutcome.INCONCLUSIVE, deploy.text.removeprefix(f"{_INCONCLUSIVE}: "), seconds)
        else:
            self._end(DeployOutcome.PROMOTED, deploy.text, seconds)

    def _tried(self, record: Mapping[str, Any]) -> None:
        """What becomes of a canary."""
        if (deploy := self._under_way()) is None:
            return
        trial = deploy.trial or {}
        trial |= {name: record[name] for name in ("share", "seconds", "workers") if name in record}
        for side in ("canary", "current"):
            trial |= {f"{side}_{name}": number for name, number in record.get(side, {}).items()}
        deploy.kind, deploy.trial, deploy.text = DeployKind.CANARY, trial, _cut(record.get("reason", ""))
        match record["event"]:
            case "canary_started":
                deploy.outcome = DeployOutcome.TRIAL
            case "canary_promoted":
                deploy.outcome = DeployOutcome.UNDER_WAY
            case "canary_withdrawn":
                self._end(DeployOutcome.TAKEN_BACK, deploy.text)

    def _rolled_back(self, record: Mapping[str, Any]) -> None:
        """The version before serves again; or still, if a deploy was given up that was under way."""
        deploy = self._under_way()
        if deploy is None:
            return
        if deploy.kind is not DeployKind.ROLLBACK:
            self._end(DeployOutcome.GIVEN_UP, f"it was given up by {record.get('by', 'a roll-back')}")
        else:
            self._end(DeployOutcome.ROLLED_BACK, deploy.text, record.get("seconds"))

    def _before_the_start(self) -> DeployedVersion | None:
        """What an earlier server in this directory of this host ran last, if that was kept."""
        theirs = [each for found in self.others.values() for each in found if each.server == self._host]
        theirs = [each for each in theirs if each.place in ("", sayable(self.place)[:LONGEST_PATH])]
        effective = [each for each in theirs if each.outcome in _TOOK_EFFECT]
        return sorted(effective, key=lambda each: each.at)[-1].to if effective else None

    def _under_way(self) -> Deploy | None:
        return self.own[-1] if self.own and self.own[-1].outcome in OPEN_DEPLOYS else None

    def _end(self, outcome: DeployOutcome, text: str = "", seconds: float | None = None) -> None:
        """The deploy under way has ended, if there is one."""
        deploy = self._under_way()
        if deploy is None:
            return
        deploy.outcome, deploy.text = outcome, _cut(text)
        deploy.seconds = round(self._clock() - deploy.at, 3) if seconds is None else seconds
        if outcome in _TOOK_EFFECT:
            self._current = deploy.to
        self.outcomes[outcome.value] += 1
        self.changes += 1

    def _count(self, generation: int, handed_over: int, cut: int) -> None:
        """A generation has ended: its numbers belong to the deploy that replaced it."""
        for deploy in reversed(self.own):
            if deploy.outcome in _REPLACED and deploy.before and deploy.before.generation == generation:
                deploy.handed_over, deploy.cut = handed_over, cut
                self.changes += 1
                return

    # The list

    def last(self, most: int = KEPT) -> list[dict[str, Any]]:
        """The last deploys, the newest first, JSON-compatible: this server's and those of others."""
        found = [*(deploy for deploys in self.others.values() for deploy in deploys), *self.own]
        found.sort(key=lambda deploy: deploy.at)  # stable: of two at one time the later one stays the later one
        return [msgspec.to_builtins(deploy) for deploy in found[::-1][: max(0, min(most, KEPT))]]

    def newest(self) -> dict[str, Any] | None:
        """This server's newest one, JSON-compatible."""
        return msgspec.to_builtins(self.own[-1]) if self.own else None

    def ended(self) -> list[Deploy]:
        """This server's that have ended, oldest first."""
        return [deploy for deploy in self.own if deploy.outcome not in OPEN_DEPLOYS]

    # A new program of the listener

    def to_state(self) -> dict[str, Any] | None:
        """All of it, JSON-compatible; None before the first deploy."""
        if not self.own:
            return None
        return {
            "life": self.life,
            "own": [msgspec.to_builtins(deploy) for deploy in self.own],
            "outcomes": dict(self.outcomes),
            "current": msgspec.to_builtins(self._current),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any] | None) -> DeployHistory:
        """The reverse; None is also from a program that kept no such list. Raises LookupError or ValueError."""
        history = cls()
        if state is not None:
            history.life = state["life"]
            history.own.extend(msgspec.convert(each, Deploy) for each in state["own"])
            history.outcomes.update(state["outcomes"])
            history._current = msgspec.convert(state["current"], DeployedVersion | None)
        return history


def _cut(text: str, most: int = LONGEST_TEXT) -> str:
    text = sayable(text)
    return text if len(text) <= most else text[: most - 1] + "…"
