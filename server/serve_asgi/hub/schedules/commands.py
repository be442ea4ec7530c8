"""Commands for schedules, from people and code: pause, resume, run, list.

A pause is an entry of the shared state, so that it holds for all processes at once and outlives reloads and, with a
store, restarts. The reply to a request for a run is sent when the run has ended.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from serve_asgi.hub.core import Member, MemberOrder
from serve_asgi.hub.schedules.missed_ticks import PendingTick
from serve_asgi.hub.schedules.schedule_state import HISTORY_LENGTH, HistoryEntry, ScheduleState, to_plain
from serve_asgi.hub.state.shared_state import SharedState
from serve_asgi.ipc.frames import pack_value
from serve_asgi.ipc.schedule_frames import RunKind, RunOutcome

if TYPE_CHECKING:
    from serve_asgi.hub.schedules.scheduler import Scheduler

MAX_LISTED: Final = 1000
"""Schedules in one report."""
MAX_REPLY_RUNS: Final = 50
"""Runs in the reply to a request for them."""
MAX_NAME: Final = 200
"""Characters of a name that is looked up; no schedule has a longer one."""
MAX_COMPARED: Final = 200
"""Names with which a misspelt one is compared."""
MAX_REQUESTS: Final = 1000
"""Runs that one process may wait for, and requests that may wait for the first switch."""
MAX_PER_FRAME: Final = 10
"""Schedules in one report to a process, which has to fit into a frame."""
NOT_SERVING_YET: Final = "the server does not serve yet: ask again when it is ready"
PAUSE_PREFIX: Final = "serve:schedule:"
"""Key of a schedule's pause in the shared state, before its name."""
CommandReply = Callable[[bool, str, Any], None]
"""Called with whether it was done, a sentence, and what was found."""


@dataclasses.dataclass(slots=True, eq=False)
class _RunRequest:
    """Somebody waits for the runs that their request becomes."""

    name: str
    reply: CommandReply
    member: int = 0
    id: int = 0
    open: int = 1
    entries: list[HistoryEntry] = dataclasses.field(default_factory=list)


class ScheduleCommands:
    """The commands for the schedules of one hub."""

    def __init__(self, ticks: Scheduler, state: SharedState) -> None:
        self._scheduler = ticks
        self._state = state
        self._requests: dict[int, _RunRequest] = {}
        self._early_requests: list[tuple[Member, int, str, str]] = []
        self._number = 0
        state.follow(PAUSE_PREFIX, self._paused)

    # ---- commands

    def take(self, member: Member, id: int, do: str, name: str) -> None:
        """Handle a request of a process; `next` lists the schedules after a name.

        Before the first switch no definition is in force: a member that is to serve (local mode) waits for it, others
        are refused.
        """
        if not self._scheduler.serving and do in ("next", "list", "run"):
            if member.order is MemberOrder.SERVE and len(self._early_requests) < MAX_REQUESTS:
                self._early_requests.append((member, id, do, name))
            else:
                self._reply_to(member, id)(False, NOT_SERVING_YET, None)
            return
        if do == "next":
            self._reply_to(member, id)(True, "", self.report(after=name, most=MAX_PER_FRAME))
            return
        self.do(do, name, self._reply_to(member, id), by=str(member), requester=(member.id, id))

    def begin(self) -> None:
        """The first definitions are in force: handle the requests that came before."""
        early, self._early_requests = self._early_requests, []
        for each in early:
            self.take(*each)

    def _reply_to(self, member: Member, id: int) -> CommandReply:
        def reply(ok: bool, text: str, found: Any) -> None:
            if member.id in self._scheduler.hub.members:
                body = pack_value(found, "the reply")
                self._scheduler.hub.send(member, "schedule.reply", {"id": id, "ok": ok, "text": text}, body)

        return reply

    def do(self, do: str, name: str, reply: CommandReply, by: str, requester: tuple[int, int] = (0, 0)) -> None:
        """Pause, resume, run or list; `reply` is called once, now or when it is done."""
        if do == "list":
            found = self.report(name)
            reply(bool(found or not name), self._unknown(name), found)
            return
        schedule = self._scheduler.schedules.get(name)
        if do == "pause" and self._scheduler.known(name):
            self._set(name, {"at": round(self._scheduler.hub.wall(), 3), "by": by}, reply)
        elif do == "resume" and self._scheduler.known(name):
            self._set(name, None, reply)
        elif do == "run" and schedule is not None and schedule.definition is not None:
            member, id = requester
            if member and sum(request.member == member for request in self._requests.values()) >= MAX_REQUESTS:
                reply(False, f"{MAX_REQUESTS} runs that this process has asked for have not ended", None)
                return
            self._number += 1
            self._requests[self._number] = _RunRequest(name, reply, member, id)
            now = self._scheduler.now
            self._scheduler.add(schedule, PendingTick(now, now, RunKind.ASKED, ask=self._number))
        else:
            reply(False, self._unknown(name), None)

    def _unknown(self, name: str) -> str:
        if not self._scheduler.serving:
            return NOT_SERVING_YET
        known = sorted(
            schedule.name for schedule in self._scheduler.schedules.values() if schedule.definition is not None
        )
        name = name[:MAX_NAME]
        near = difflib.get_close_matches(name, known[:MAX_COMPARED], 1)
        if near:
            return f"there is no schedule {name!r}: did you mean {near[0]!r}?"
        some = ", ".join(known[:20])
        return f"there is no schedule {name!r}" + (f"; there are: {some}" if known else ": the application has none")

    def report(self, name: str = "", after: str = "", most: int = MAX_LISTED) -> list[dict[str, Any]]:
        """The schedules in force, by name, with times in unix seconds: the one of this name with its whole history, or
        `most` of them after a name, each with its newest entry.
        """
        if name:
            schedule = self._scheduler.schedules.get(name)
            return (
                [] if schedule is None or schedule.definition is None else [self._described(schedule, HISTORY_LENGTH)]
            )
        schedules = sorted(self._scheduler.schedules.items())
        found = [schedule for each, schedule in schedules if each > after and schedule.definition is not None]
        return [self._described(schedule, 1) for schedule in found[:most]]

    def count(self) -> int:
        """How many schedules are in force."""
        return sum(schedule.definition is not None for schedule in self._scheduler.schedules.values())

    def _described(self, schedule: ScheduleState, most: int) -> dict[str, Any]:
        definition = schedule.definition
        assert definition is not None
        return {
            "name": schedule.name,
            "when": definition.when(),
            "on": definition.on.value,
            "overlap": definition.overlap.value,
            "where": definition.where,
            "state": schedule.state(),
            "disabled": definition.disabled,
            "paused": schedule.paused,
            "next": schedule.next / 1000 if schedule.next is not None and schedule.paused is None else None,
            "running": [run.entry.shown() for run in schedule.runs.values()][:most],
            "runs": len(schedule.runs),
            "waiting": len(schedule.waiting),
            "since": schedule.since / 1000,  # ticks after it, up to `decided`, are counted
            "decided": schedule.decided / 1000,
            "counts": dict(schedule.counts),
            "history": [entry.shown() for entry in self._scheduler.history.of(schedule, self._scheduler.seed, most)],
        }

    # ---- pauses

    def pause_of(self, name: str) -> dict[str, Any] | None:
        """The pause in force, if there is one."""
        found = self._state.value(PAUSE_PREFIX + name)
        return found if isinstance(found, dict) else None

    def _set(self, name: str, pause: dict[str, Any] | None, reply: CommandReply) -> None:
        if (self.pause_of(name) is None) is (pause is None):
            reply(True, f"{name} is {'not paused' if pause is None else 'paused already'}", None)
            return

        def done(trouble: str) -> None:
            what = "paused" if pause is not None else "resumed"
            text = f"the schedule {name!r} is not {what}: {trouble}" if trouble else f"{name} is {what}"
            reply(not trouble, text, None)

        self._state.put(PAUSE_PREFIX + name, pause, done)

    def _paused(self, key: str, value: Any) -> None:
        """A pause has been written or deleted: on this server, or on another one with the same store."""
        schedule = self._scheduler.schedules.get(key.removeprefix(PAUSE_PREFIX))
        if schedule is None:
            return
        self._scheduler.advance(schedule, self._scheduler.now)
        pause = value if isinstance(value, dict) else None
        if (schedule.paused is None) is (pause is None):
            schedule.paused = pause
            return
        passed = schedule.pause(pause)
        if pause is None:
            ticks = {0: "no tick", 1: "1 tick"}.get(passed, f"{passed} ticks")
            text = f"resumed; {ticks} passed by" + (" without a run" if passed else "")
            self._report("schedule_resumed", schedule, text, ticks=passed)
        else:
            self._scheduler.runs.withdraw(schedule)
            self._report("schedule_paused", schedule, "paused" + (f" by {pause['by']}" if pause.get("by") else ""))

    def _report(self, event: str, schedule: ScheduleState, text: str, **about: Any) -> None:
        text = f"the schedule {schedule.name!r} is {text}"
        self._scheduler.hub.port.report(logging.INFO, event, text, name=schedule.name, **about)

    # ---- requested runs

    def add_run(self, request: int) -> None:
        """A requested run becomes one more run (on="all")."""
        if request in self._requests:
            self._requests[request].open += 1

    def run_finished(self, request: int) -> None:
        """One of them has ended; after the last one, reply."""
        found = self._requests.get(request)
        if found is None:
            return
        found.open -= 1
        if not found.open:
            del self._requests[request]
            ok = all(entry.outcome is RunOutcome.OK for entry in found.entries)
            shown = found.entries[:MAX_REPLY_RUNS]
            text = f"{found.name}: " + ("; ".join(map(_summary, shown)) or "no run")
            found.reply(ok, text, [entry.shown() for entry in shown])

    def tick_ended(self, tick: PendingTick, entry: HistoryEntry) -> None:
        """A tick has its outcome."""
        if (found := self._requests.get(tick.ask)) is not None:
            found.entries.append(entry)
            self.run_finished(tick.ask)

    def member_left(self, member: Member) -> None:
        """A member is gone: nobody waits for its requests."""
        for number in [number for number, request in self._requests.items() if request.member == member.id]:
            del self._requests[number]

    # ---- a new program of the listener

    def to_state(self) -> list[Any]:
        """The requests of processes; control connections end with this program."""
        return [
            [
                number,
                request.name,
                request.member,
                request.id,
                request.open,
                [to_plain(entry) for entry in request.entries],
            ]
            for number, request in self._requests.items()
            if request.member
        ]

    def load(self, state: list[Any], ticks: Iterable[PendingTick]) -> None:
        """The reverse; `ticks` are all there are, some of them requested over control connections that have ended."""
        self._number = max((tick.ask for tick in ticks), default=0)
        for number, name, member, id, left, entries in state:
            reply = self._reply_to(self._scheduler.hub.members[member], id)
            self._requests[number] = _RunRequest(
                name, reply, member, id, left, [HistoryEntry.load(entry) for entry in entries]
            )
            self._number = max(self._number, number)


def _summary(entry: HistoryEntry) -> str:
    where = f" in {entry.worker}" if entry.worker else ""
    time = f" after {entry.seconds:.2f} s" if entry.seconds is not None else ""
    return f"{entry.outcome.value}{where}{time}" + (f": {entry.text}" if entry.text else "")
