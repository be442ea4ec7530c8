"""What the admin process knows: the listener's packets, and the scoreboard.

The listener sends a packet when something has changed; the scoreboard can be read at any moment, even while the
listener is busy or stopped. It must not know how either is shown.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from typing import Any, Final

from serve_asgi.admin.scoreboard_totals import ScoreboardReading, Words, read
from serve_asgi.ipc.channel import Packet
from serve_asgi.ipc.lifecycle_states import OUTCOMES
from serve_asgi.ipc.metric_totals import MetricTotals
from serve_asgi.ipc.scoreboard import ROW_WORDS, Row, Scoreboard
from serve_asgi.ipc.sock_diag import Queue, accept_queues

RECORDS: Final = 200
RELOADS: Final = 50
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ServerView:
    """The admin process's view of the server."""

    def __init__(self, scoreboard: Scoreboard, about: dict[str, Any], state: dict[str, Any]) -> None:
        """`about` describes the listener and its sockets, and does not change; `state` is the current state."""
        self.about = about
        self.state = state
        """As in `serve_asgi.listener.status`; sent again whenever it has changed."""
        self.records: collections.deque[dict[str, Any]] = collections.deque(maxlen=RECORDS)
        self.reloads: collections.deque[dict[str, Any]] = collections.deque(maxlen=RELOADS)
        self.recorded = 0
        """How many records there have been, to tell which are new to a client."""
        self.slots = scoreboard.slots
        """The number of totals; the last are for all further slots, and the agent."""
        self._scoreboard = scoreboard
        self._rows: dict[int, tuple[int, Row]] = {}
        """The rows of the processes, by index, with the serials of the processes."""
        self._last: ScoreboardReading | None = None
        self.metrics = MetricTotals(scoreboard.living)
        """What the application has counted."""

    def take_rows(self, packet: Packet, descriptors: Sequence[int]) -> None:
        """Add the rows of new processes; the descriptors are taken over."""
        gone = [index for index, (serial, _) in self._rows.items() if self._scoreboard.serial(index) != serial]
        for (index, serial), fd in zip(packet["rows"], descriptors, strict=True):
            if index in self._rows:
                self._rows[index][1].close()
            self._rows[index] = serial, Row(fd)
            if index in gone:
                gone.remove(index)
        for index in gone:
            self._rows.pop(index)[1].close()

    def take_memories(self, packet: Packet, descriptors: Sequence[int]) -> None:
        """Add memories of the application's metrics; the descriptors are taken over."""
        for number, fd in zip(packet["memories"], descriptors, strict=True):
            self.metrics.add(number, fd)

    def take(self, packet: Packet) -> None:
        """Handle a packet of the listener."""
        match packet["type"]:
            case "memories gone":
                for number in packet["memories"]:
                    self.metrics.readers.pop(number, None)
            case "state":
                self.state = packet["state"]
            case "happened":
                record = packet["record"]
                self.records.append(record)
                self.recorded += 1
                outcome = OUTCOMES.get(record["event"])
                if outcome and not packet.get("past"):  # past ones come in a packet of their own
                    self.reloads.append({**record, "outcome": outcome})
            case "reloads":
                self.reloads.extend(packet["reloads"])

    def reading(self) -> ScoreboardReading:
        """The current scoreboard; the last reading if the listener has been stopped during a change."""
        taken = read(self._scoreboard, self._rows)
        if taken is not None:
            self._last = taken
        elif self._last is None:
            self._last = ScoreboardReading(0.0, 0.0, {}, {}, [0] * ROW_WORDS, self._scoreboard.draining_since)
        return self._last

    def queues(self) -> dict[str, Queue]:
        """The accept queues of the application's sockets by name, as far as known."""
        by_inode = {each["inode"]: each["name"] for each in self.about["listening"]}
        return {by_inode[inode]: queue for inode, queue in accept_queues(frozenset(by_inode)).items()}

    def listener(self) -> tuple[float, int] | None:
        """The listener's CPU time (s) and resident memory (bytes; proc(5)); None if /proc hides it."""
        try:
            with open(f"/proc/{self.about['pid']}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE

    @property
    def deploys(self) -> list[dict[str, Any]]:
        """The last deploys, the newest first (`serve_asgi.listener.deploy_history.Deploy`)."""
        return list(self.state.get("deploys", []))

    @property
    def hub(self) -> dict[str, Any]:
        """Some topics, schedules and shared keys (`serve_asgi.listener.hub_commands`)."""
        return dict(self.state.get("hub_report", {}))

    def agent_active(self) -> bool | None:
        """Whether there is an active agent; None if the server has none."""
        if not self.state.get("agent_wanted"):
            return None
        return any(each["state"] == "active" for each in self.state["agents"])

    def agent_returned(self) -> bool:
        """Whether the agent's function has returned, so that its process is alive but idle."""
        return any(each["state"] == "returned" for each in self.state.get("agents", []))

    def workers(self, reading: ScoreboardReading) -> list[tuple[dict[str, Any], Words]]:
        """Each living worker and agent that the listener has reported, with its row of `reading`."""
        return [
            (worker, words)
            for worker in [*self.state["workers"], *self.state.get("agents", [])]
            if (words := reading.rows.get(worker["row"])) is not None
        ]
