"""What the server tells about itself: the supervisor's state and the scoreboard's counts, as JSON-compatible values."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from server import __version__
from server.scoreboard import Cell

if TYPE_CHECKING:
    from server.listener.main import Listener

STATUS_VERSION: Final = 1
COUNTERS: Final = {cell.name.lower(): cell for cell in Cell if cell >= Cell.REQUESTS}
GAUGES: Final = {cell.name.lower(): cell for cell in (Cell.CONNECTIONS, Cell.IN_FLIGHT, Cell.WEBSOCKETS, Cell.RSS)}


def status(listener: Listener) -> dict[str, Any]:
    """The present state: the server, its generations, its workers and their counts."""
    supervisor = listener.supervisor
    now = time.monotonic()
    workers = [_worker(listener, pid, now) for pid in sorted(listener.children)]
    filled = {w["slot"] for w in workers if w["state"] == "serving" and w["generation"] == _number(listener)}
    return {
        "version": STATUS_VERSION,
        "server": __version__,
        "pid": os.getpid(),
        "state": supervisor.state.value,
        "uptime": round(now - listener.started, 3),
        "listening": [listening.name for listening in listener.listening],
        "lame_duck": None if supervisor.lame_duck is None else _lame_duck(listener),
        "generation": _number(listener),
        "starting": None if supervisor.candidate is None else supervisor.candidate.number,
        "reload_waiting": supervisor.reload_wanted is not None,
        "reloads": supervisor.reloads,
        "failed_reloads": supervisor.failed_reloads,
        "last_failure": supervisor.last_failure,
        "size": supervisor.size,
        "degraded": {
            str(number): slot.trouble
            for number, slot in supervisor.slots.items()
            if number < supervisor.size and number not in filled and slot.trouble
        },
        "generations": [
            {"number": generation.number, "state": generation.state.value, "size": generation.size}
            for generation in supervisor.generations.values()
        ],
        "workers": workers,
        "totals": {name: listener.scoreboard.total(cell) for name, cell in COUNTERS.items()},
    }


def _number(listener: Listener) -> int:
    return 0 if listener.supervisor.current is None else listener.supervisor.current.number


def _lame_duck(listener: Listener) -> dict[str, Any]:
    lame_duck = listener.supervisor.lame_duck
    assert lame_duck is not None
    return {
        "since": round((time.monotonic_ns() - listener.scoreboard.lame_duck) / 1e9, 3),
        "until": "told off" if lame_duck.by_control else "the next successful reload",
    }


def _worker(listener: Listener, pid: int, now: float) -> dict[str, Any]:
    child = listener.children[pid]
    cells = listener.scoreboard.row(child.row)
    worker = child.worker
    return {
        "slot": worker.slot,
        "generation": worker.generation.number,
        "state": worker.state.value,
        "cause": worker.cause.value,
        **({"recycling": worker.recycling} if worker.recycling else {}),
        **{name: cells[cell] for name, cell in GAUGES.items()},
        "requests": cells[Cell.REQUESTS],
        "heard": round(now - cells[Cell.HEARTBEAT] / 1e9, 3) if cells[Cell.HEARTBEAT] else None,
    }
