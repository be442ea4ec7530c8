"""`serve reload`: run the transaction and follow it to its outcome, for a person, a pipe or a script.

Whoever shows it (a live view, lines, JSON) is given the same things: each record as it happens, the server's status now
and then, and the outcome. The reload is the listener's: it goes on if this command is interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Final, Protocol

import click

from server import control_client
from server.commands.command import (
    INTERRUPTED,
    as_json,
    command,
    complain,
    counted,
    failed_as_json,
    lively,
    span,
    tell,
    tell_outcome,
)
from server.control_client import PATIENCE, Conversation, Refused
from server.errors import UsageError

FRAME: Final = 0.15
"""Seconds between two looks at the server for a live view."""
LOOK: Final = 5.0
"""Seconds without news after which the server is asked whether it is still there; between two lines of progress."""
LISTENER_TIME: Final = 120.0
"""Seconds that the replacement of the listener may take; it gives up by itself before that."""
SETTLE: Final = 0.5
"""Seconds that the hand-over of idle connections may take until this command says what is left."""
STEPS: Final = frozenset({"worker_ready", "worker_died", "worker_killed", "agent_prepared", "agent_finishing"})
"""What is shown of what the log does not show by default (records of level debug)."""
ENDS: Final = frozenset({"reload_done", "reload_refused"})
"""What the outcome tells anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class Remains:
    """What is left of the generations before, and what has become of the rest."""

    generations: tuple[int, ...]
    handed_over: int
    requests: int
    oldest: float
    """Seconds that the oldest request in progress has taken until now; 0 if that is not known."""
    lost: int

    def text(self) -> str:
        """A sentence about it."""
        parts = [f"{counted(self.handed_over, 'connection')} handed over"] if self.handed_over else []
        if not self.generations:
            lost = f"{counted(self.lost, 'request')} cut" if self.lost else "nothing was cut"
            return "; ".join([*parts, "all older workers have ended", lost])
        which = "generation " + " and ".join(map(str, self.generations))
        if not self.requests:
            return "; ".join([*parts, f"{which} ends"])
        verb = "drains" if self.requests == 1 else "drain"
        oldest = f", the oldest for {span(self.oldest)}" if self.oldest else ""
        return "; ".join([*parts, f"{which}: {counted(self.requests, 'request')} still {verb}{oldest}"])


def remains(before: dict[str, Any], seen: dict[str, Any]) -> Remains:
    """What is left of the older generations in `seen`, compared with the status before the reload."""
    older = [w for w in seen["workers"] if w["generation"] < seen["generation"]]
    return Remains(
        tuple(sorted({w["generation"] for w in older})),
        seen["totals"]["handed_over"] - before["totals"]["handed_over"],
        sum(w["in_flight"] + w["websockets"] for w in older),
        max((w.get("oldest") or 0.0 for w in older), default=0.0),
        seen.get("lost", 0) - before.get("lost", 0),
    )


def _settled(seen: dict[str, Any]) -> bool:
    """Whether the older workers hold no connection any more but those that are busy."""
    older = [w for w in seen["workers"] if w["generation"] < seen["generation"]]
    return all(w["connections"] <= w["in_flight"] + w["websockets"] for w in older)


class Show(Protocol):
    """Somebody who shows how a reload goes; used as a context manager around it."""

    pause: float
    """Seconds between two looks at the server while nothing happens."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def happened(self, record: dict[str, Any]) -> None:
        """A record has come."""

    def seen(self, status: dict[str, Any]) -> None:
        """This is what the server does now."""

    def outcome(self, answer: dict[str, Any]) -> None:
        """The new generation serves, or was refused."""

    def left(self, remains: Remains) -> None:
        """What is left, when this command is about to end."""


class Lines:
    """One plain line for each step."""

    pause = LOOK

    def __init__(self, before: dict[str, Any]) -> None:
        self._before = before
        self._next = time.monotonic() + LOOK

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def happened(self, record: dict[str, Any]) -> None:
        event = record["event"]
        if event not in ENDS and (record["level"] != "debug" or event in STEPS):
            tell(record["text"])

    def seen(self, status: dict[str, Any]) -> None:
        if status["generation"] != self._before["generation"] and time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK
            tell(remains(self._before, status).text())

    def outcome(self, answer: dict[str, Any]) -> None:
        if answer["ok"]:
            tell(answer["text"])

    def left(self, remains: Remains) -> None:
        tell(remains.text())


class Objects:
    """One JSON object per line: the records, then the outcome."""

    pause = LOOK

    def __enter__(self) -> Objects:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def happened(self, record: dict[str, Any]) -> None:
        tell(json.dumps(record))

    def seen(self, status: dict[str, Any]) -> None:
        pass

    def outcome(self, answer: dict[str, Any]) -> None:
        self._answer = answer

    def left(self, remains: Remains) -> None:
        tell_outcome(True, self._answer["text"], detail="", **dataclasses.asdict(remains))


def reload(control: str, pid: str, wait: bool, drained: bool, listener: bool, as_json: bool) -> int:
    """Replace every worker with fresh code; wait until it serves.

    On a terminal a live view shows who imports, who is ready, the switch, and what the old workers still have to do;
    elsewhere each step is a line. The old generation finishes its requests after the switch: --drained waits for that
    as well.

    --listener has the listener, which outlives every reload, put the program of the present release in its own place:
    the same process, the same workers, the same sockets. Reload first, then this, when the server itself is new.

    Exit status 0: the new generation (or listener) serves. 1: it was refused, with the reason; the old one serves on.
    """
    try:
        path = control_client.find(control, pid)
        if wait and not listener:
            return _followed(path, drained=drained, as_json=as_json)
        if listener:
            text = control_client.ask(path, "reload-listener", patience=LISTENER_TIME)["text"]
        else:
            text = control_client.ask(path, "reload", wait=False, patience=PATIENCE)["text"]
    except (Refused, UsageError) as error:
        if as_json:
            return failed_as_json(error)
        raise
    if as_json:
        tell_outcome(True, text)
    else:
        tell(text)
    return 0


def _followed(path: Path, *, drained: bool, as_json: bool) -> int:
    """Run the transaction and show it. Raises Refused if nothing came of it."""
    before = control_client.look(path)
    show = _show(before, as_json=as_json)
    try:
        with show:
            answer = _transaction(path, show)
            show.outcome(answer)
            if answer["ok"]:
                show.left(_afterwards(path, before, show, drained=drained))
    except KeyboardInterrupt:
        complain("the reload goes on without this command; `serve status` tells its outcome")
        return INTERRUPTED
    control_client.checked(answer)
    return 0


def _show(before: dict[str, Any], *, as_json: bool) -> Show:
    if as_json:
        return Objects()
    if lively():
        from server.commands.reload_view import View

        return View(before)
    return Lines(before)


def _transaction(path: Path, show: Show) -> dict[str, Any]:
    """Ask for the reload and follow it; return the answer. The listener sees to it that there is one in time."""
    with Conversation(path, "reload", follow=True) as conversation:
        while True:
            message = conversation.receive(show.pause)
            if message is None:
                show.seen(control_client.look(path))  # raises if it does not answer
            elif "record" in message:
                show.happened(message["record"])
            else:
                return message


def _afterwards(path: Path, before: dict[str, Any], show: Show, *, drained: bool) -> Remains:
    """Look on until idle connections have been handed over, or, if that is wanted, until the old workers have ended.

    Their own deadlines (--graceful-timeout of the server) end that wait.
    """
    settle = time.monotonic() + SETTLE
    found = before
    while True:
        try:
            found = control_client.look(path)
        except (Refused, UsageError):
            return remains(before, found)  # it is being stopped; the reload itself has succeeded
        show.seen(found)
        left = remains(before, found)
        if not left.generations or not (drained or (not _settled(found) and time.monotonic() < settle)):
            return left
        time.sleep(min(FRAME, show.pause) if drained else 0.02)


COMMANDS: Final = {
    "reload": command(
        "reload",
        reload,
        click.Option(["--wait/--no-wait"], default=True, show_default=True, help="Wait for the outcome."),
        click.Option(["--listener"], is_flag=True, help="Replace the listener's own program, not the workers."),
        click.Option(["--drained"], is_flag=True, help="Wait until the old workers have ended as well."),
        as_json("One JSON object per step, the last one the outcome."),
    ),
}
