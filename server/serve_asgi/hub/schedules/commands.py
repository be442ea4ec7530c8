"""What people and code ask of the schedules: to pause, resume and run one, and what there is.

A pause is an entry of the shared state, so that it is in force for all processes at once, outlives reloads and, with a
store, restarts. Who asked for a run is answered when it has ended.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from serve_asgi.hub.core import Member, MemberOrder
from serve_asgi.hub.schedules.schedule import (
    HISTORY_LENGTH,
    HistoryEntry,
    PendingTick,
    RunKind,
    ScheduleState,
    to_plain,
)
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import pack_value
from serve_asgi.ipc.schedule_frames import RunOutcome

if TYPE_CHECKING:
    from serve_asgi.hub.schedules.scheduler import Scheduler

MAX_LISTED: Final = 1000
"""Schedules in one report."""
MAX_REPLY_RUNS: Final = 50
"""Runs that the answer to who has asked for them tells of."""
MAX_NAME: Final = 200
"""Characters of a name; no schedule has a longer one, so that none is like it."""
MAX_COMPARED: Final = 200
"""Names that a misspelt one is compared with."""
MAX_REQUESTS: Final = 1000
"""Runs that one process may have asked for, and questions before there is an answer to any."""
MAX_PER_FRAME: Final = 10
"""Schedules in one report that goes to a process: it has to fit into a frame."""
NOT_SERVING_YET: Final = "the server does not serve yet: ask again when it is ready"
PAUSE_PREFIX: Final = "serve:schedule:"
"""Key of a schedule's pause in the shared state, before its name."""
CommandReply = Callable[[bool, str, Any], None]
"""Told whether it was done, a sentence, and what was found."""


@dataclasses.dataclass(slots=True, eq=False)
class _RunRequest:
    """Somebody waits for the runs that a tick of theirs becomes."""

    name: str
    answer: CommandReply
    member: int = 0
    id: int = 0
    open: int = 1
    entries: list[HistoryEntry] = dataclasses.field(default_factory=list)


class ScheduleCommands:
    """All that is asked of one hub's schedules."""

    def __init__(self, ticks: Scheduler, state: SharedState) -> None:
        self._ticks = ticks
        self._state = state
        self._asks: dict[int, _RunRequest] = {}
        self._early: list[tuple[Member, int, str, str]] = []
        self._number = 0
        state.follow(PAUSE_PREFIX, self._paused)

    # ---- commands

    def take(self, member: Member, id: int, do: str, name: str) -> None:
        """A process asks; to `next`, for those after a name.

        Before the first switch nothing holds: who is told to serve (local mode) waits for it, others cannot.
        """
        if not self._ticks.begun and do in ("next", "list", "run"):
            if member.order is MemberOrder.SERVE and len(self._early) < MAX_REQUESTS:
                self._early.append((member, id, do, name))
            else:
                self._answer_to(member, id)(False, NOT_SERVING_YET, None)
            return
        if do == "next":
            self._answer_to(member, id)(True, "", self.report(after=name, most=MAX_PER_FRAME))
            return
        self.do(do, name, self._answer_to(member, id), by=str(member), asker=(member.id, id))

    def begin(self) -> None:
        """The first definitions hold: answer those who could not wait."""
        early, self._early = self._early, []
        for each in early:
            self.take(*each)

    def _answer_to(self, member: Member, id: int) -> CommandReply:
        def answer(ok: bool, text: str, found: Any) -> None:
            if member.id in self._ticks.hub.members:
                body = pack_value(found, "the answer")
                self._ticks.hub.send(member, "schedule.reply", {"id": id, "ok": ok, "text": text}, body)

        return answer

    def do(self, do: str, name: str, answer: CommandReply, by: str, asker: tuple[int, int] = (0, 0)) -> None:
        """Pause, resume, run or list; `answer` is called once, now or when it is done."""
        if do == "list":
            found = self.report(name)
            answer(bool(found or not name), self._unknown(name), found)
            return
        line = self._ticks.lines.get(name)
        if do == "pause" and self._ticks.known(name):
            self._set(name, {"at": round(self._ticks.hub.wall(), 3), "by": by}, answer)
        elif do == "resume" and self._ticks.known(name):
            self._set(name, None, answer)
        elif do == "run" and line is not None and line.definition is not None:
            if asker[0] and sum(ask.member == asker[0] for ask in self._asks.values()) >= MAX_REQUESTS:
                answer(False, f"{MAX_REQUESTS} runs that this process has asked for have not ended", None)
                return
            self._number += 1
            self._asks[self._number] = _RunRequest(name, answer, *asker)
            now = self._ticks.now
            self._ticks.add(line, PendingTick(now, now, RunKind.ASKED, ask=self._number))
        else:
            answer(False, self._unknown(name), None)

    def _unknown(self, name: str) -> str:
        if not self._ticks.begun:
            return NOT_SERVING_YET
        known = sorted(line.name for line in self._ticks.lines.values() if line.definition is not None)
        name = name[:MAX_NAME]
        near = difflib.get_close_matches(name, known[:MAX_COMPARED], 1)
        if near:
            return f"there is no schedule {name!r}: did you mean {near[0]!r}?"
        some = ", ".join(known[:20])
        return f"there is no schedule {name!r}" + (f"; there are: {some}" if known else ": the application has none")

    def report(self, name: str = "", after: str = "", most: int = MAX_LISTED) -> list[dict[str, Any]]:
        """Schedules that hold, by name, with times in unix seconds: the one of this name with its whole history, or
        `most` of them after a name, with the newest of it.
        """
        if name:
            line = self._ticks.lines.get(name)
            return [] if line is None or line.definition is None else [self._described(line, HISTORY_LENGTH)]
        lines = sorted(self._ticks.lines.items())
        found = [line for each, line in lines if each > after and line.definition is not None]
        return [self._described(line, 1) for line in found[:most]]

    def _described(self, line: ScheduleState, most: int) -> dict[str, Any]:
        definition = line.definition
        assert definition is not None
        return {
            "name": line.name,
            "when": definition.when(),
            "on": definition.on.value,
            "overlap": definition.overlap.value,
            "where": definition.where,
            "state": line.state(),
            "disabled": definition.disabled,
            "paused": line.paused,
            "next": line.next / 1000 if line.next is not None and line.paused is None else None,
            "running": [run.entry.shown() for run in line.runs.values()][:most],
            "runs": len(line.runs),
            "waiting": len(line.waiting),
            "since": line.since / 1000,  # ticks after it, up to `decided`, are counted
            "decided": line.decided / 1000,
            "counts": dict(line.counts),
            "history": [entry.shown() for entry in self._ticks.past.of(line, self._ticks.seed, most)],
        }

    # ---- pauses

    def pause_of(self, name: str) -> dict[str, Any] | None:
        """The pause that is in force."""
        found = self._state.value(PAUSE_PREFIX + name)
        return found if isinstance(found, dict) else None

    def _set(self, name: str, pause: dict[str, Any] | None, answer: CommandReply) -> None:
        if (self.pause_of(name) is None) is (pause is None):
            answer(True, f"{name} is {'not paused' if pause is None else 'paused already'}", None)
            return

        def done(trouble: str) -> None:
            what = "paused" if pause is not None else "resumed"
            text = f"the schedule {name!r} is not {what}: {trouble}" if trouble else f"{name} is {what}"
            answer(not trouble, text, None)

        self._state.put(PAUSE_PREFIX + name, pause, done)

    def _paused(self, key: str, value: Any) -> None:
        """It is so: here, or by way of the store."""
        line = self._ticks.lines.get(key.removeprefix(PAUSE_PREFIX))
        if line is None:
            return
        self._ticks.advance(line, self._ticks.now)
        pause = value if isinstance(value, dict) else None
        if (line.paused is None) is (pause is None):
            line.paused = pause
            return
        passed = line.pause(pause)
        if pause is None:
            ticks = {0: "no tick", 1: "1 tick"}.get(passed, f"{passed} ticks")
            text = f"resumed; {ticks} passed by" + (" without a run" if passed else "")
            self._say("schedule_resumed", line, text, ticks=passed)
        else:
            self._ticks.runs.withdraw(line)
            self._say("schedule_paused", line, "paused" + (f" by {pause['by']}" if pause.get("by") else ""))

    def _say(self, event: str, line: ScheduleState, text: str, **about: Any) -> None:
        text = f"the schedule {line.name!r} is {text}"
        self._ticks.hub.port.say(logging.INFO, event, text, name=line.name, **about)

    # ---- runs that somebody waits for

    def more(self, ask: int) -> None:
        """One more run of what was asked for."""
        if ask in self._asks:
            self._asks[ask].open += 1

    def less(self, ask: int) -> None:
        """One less; the last one answers."""
        found = self._asks.get(ask)
        if found is None:
            return
        found.open -= 1
        if not found.open:
            del self._asks[ask]
            ok = all(entry.outcome is RunOutcome.OK for entry in found.entries)
            shown = found.entries[:MAX_REPLY_RUNS]
            text = f"{found.name}: " + ("; ".join(map(_said, shown)) or "no run")
            found.answer(ok, text, [entry.shown() for entry in shown])

    def ended(self, tick: PendingTick, entry: HistoryEntry) -> None:
        """A tick has come to its end."""
        if (found := self._asks.get(tick.ask)) is not None:
            found.entries.append(entry)
            self.less(tick.ask)

    def left(self, member: Member) -> None:
        """Who has gone needs no answer."""
        for number in [number for number, ask in self._asks.items() if ask.member == member.id]:
            del self._asks[number]

    # ---- a new program of the listener

    def to_state(self) -> list[Any]:
        """What processes wait for; the connections of those who asked by a command end with the program."""
        return [
            [number, ask.name, ask.member, ask.id, ask.open, [to_plain(entry) for entry in ask.entries]]
            for number, ask in self._asks.items()
            if ask.member
        ]

    def load(self, state: list[Any], ticks: Iterable[PendingTick]) -> None:
        """The reverse; `ticks` are all there are, of which some may have been asked for by who is not answered now."""
        self._number = max((tick.ask for tick in ticks), default=0)
        for number, name, member, id, left, entries in state:
            answer = self._answer_to(self._ticks.hub.members[member], id)
            self._asks[number] = _RunRequest(
                name, answer, member, id, left, [HistoryEntry.load(entry) for entry in entries]
            )
            self._number = max(self._number, number)


def _said(entry: HistoryEntry) -> str:
    where = f" in {entry.worker}" if entry.worker else ""
    time = f" after {entry.seconds:.2f} s" if entry.seconds is not None else ""
    return f"{entry.outcome.value}{where}{time}" + (f": {entry.text}" if entry.text else "")
