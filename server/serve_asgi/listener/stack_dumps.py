"""What the workers and the agent are doing, obtained without their event loops.

A worker's watchdog replies over a socket pair of its own (`serve_asgi.worker.loop_watchdog`), as long as the
interpreter lock is free now and then. If an extension holds the lock, faulthandler writes the stacks to a memfd
instead, in a signal handler. The signal is only sent to a process that catches it: the default action would kill it.
And only to one that has not replied, since faulthandler reads the frames of other threads without stopping them, which
is safe only while they do not run. Of a stopped process nothing but that can be learned.

It owns the listener's end of the watchdog channels, one for each child. Every wait ends at the caller's timeout.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.channel import MAX_PACKET, Channel, pair
from serve_asgi.ipc.control_protocol import LINE_LIMIT
from serve_asgi.ipc.packets import FROM_WATCHDOG, Stacks, members

if TYPE_CHECKING:
    from serve_asgi.listener.child import Child

ASKED_SHARE: Final = 0.6
"""The part of the timeout in which the watchdog may reply; the rest is for faulthandler."""
PATIENCE_SHARE: Final = 0.9
"""The part of that rest in which faulthandler may write; what it has written by then counts."""
LOOK: Final = 0.05
"""Seconds between two checks of what faulthandler has written: a growing file causes no event."""
DUMP_LIMIT: Final = 100_000
"""Bytes that faulthandler may write."""
DUMP_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
ANSWER_LIMIT: Final = MAX_PACKET - 1000
"""Bytes of one worker's reply."""
TOTAL_LIMIT: Final = LINE_LIMIT // 2
"""Bytes of all workers' replies together."""
STOPPED: Final = {"T": "stopped (state T)", "t": "held by a debugger (state t)"}

_THREAD = re.compile(r"^(?:Current thread|Thread) (0x[0-9a-f]+)(?: \[(.*)\])? \(most recent call first\):$")


class WatchdogChannel:
    """The connection to one worker's watchdog thread."""

    def __init__(self) -> None:
        """Raises OSError if the process or the machine is out of descriptors."""
        ours, self._theirs = pair()
        self._channel = Channel(ours, descriptors=0)
        self.dump = -1
        try:
            self.dump = os.memfd_create("serve-stacks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.truncate(self.dump, DUMP_LIMIT)  # and no more: freeing gigabytes would hold the listener up
            fcntl.fcntl(self.dump, fcntl.F_ADD_SEALS, DUMP_SEALS)
        except OSError:
            self.close()
            raise
        self._signal = 0
        self._loop_thread = 0
        self._asking = anyio.Lock()
        self._asked = 0

    def hand_out(self) -> tuple[int, int]:
        """The worker's end and a duplicate of the memfd, for the caller to send to the worker; only once."""
        return self._theirs.detach(), os.dup(self.dump)

    def agree(self, signal: int, loop_thread: int) -> None:
        """Set what the worker's hello says: the signal that makes it write its stacks, and its loop's thread."""
        self._signal, self._loop_thread = signal, loop_thread

    def fileno(self) -> int:
        return self._channel.fileno()

    def to_state(self, descriptors: list[int]) -> dict[str, Any]:
        """What `from_state` needs in a program that replaces this one; adds to `descriptors` those that must stay
        open."""
        descriptors += [self._channel.fileno(), self.dump]
        agreed = {"signal": self._signal, "loop_thread": self._loop_thread, "asked": self._asked}
        return {"channel": self._channel.fileno(), "dump": self.dump, **agreed}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WatchdogChannel:
        """A channel that an earlier program of this process has opened; the worker has its end."""
        window = cls.__new__(cls)
        window._channel, window._theirs = Channel(socket.socket(fileno=state["channel"]), 0), socket.socket()
        window._theirs.close()
        window.dump, window._asking = state["dump"], anyio.Lock()
        window._signal, window._loop_thread = state["signal"], state["loop_thread"]
        window._asked = state["asked"]
        os.set_inheritable(window.dump, False)
        return window

    def close(self) -> None:
        self._channel.close()
        self._theirs.close()
        if self.dump >= 0:
            os.close(self.dump)
            self.dump = -1

    async def look(self, pid: int, timeout: float, limit: int, lives: Callable[[], bool]) -> dict[str, Any]:
        """What the process `pid` is doing: "how" it was learned, the "reason" if not in the usual way, and the stacks.

        Waits at most `timeout` seconds; the result has about `limit` bytes at most. `lives` returns whether `pid` is
        still the worker's.
        """
        found: dict[str, Any] | None = None
        if (why := STOPPED.get(state_of(pid))) is not None:
            return nothing(f"its process is {why}")
        with anyio.move_on_after(timeout) as deadline:
            async with self._asking:
                with anyio.move_on_after(timeout * ASKED_SHARE):
                    found = await self._ask(limit)
                if found is None and lives():
                    found = await self._dumped(pid, timeout * (1 - ASKED_SHARE) * PATIENCE_SHARE)
        if found is not None:
            return found
        if deadline.cancelled_caught and self._asking.locked():
            return nothing("somebody else is asking it now")
        state = state_of(pid)
        if not state or state in "ZX" or not lives():
            return nothing("its process has ended")
        return nothing(f"it has not responded within {timeout:g} s ({STATES.get(state, 'state ' + state)})")

    async def _ask(self, limit: int) -> dict[str, Any] | None:
        """The watchdog's reply; None if there is none, or an invalid one."""
        self._asked += 1
        try:
            await self._channel.send({"type": "stacks", "id": self._asked, "limit": limit})
            while True:
                data, _ = await self._channel.receive_data()
                answer = FROM_WATCHDOG.decode(data)
                if isinstance(answer, Stacks) and answer.id == self._asked:  # and not the reply to an earlier request
                    told = members(answer)
                    return {"how": "asked", "reason": "", **{name: told[name] for name in TOLD}}
                await anyio.lowlevel.checkpoint()
        except (EOFError, OSError, ChannelError, anyio.ClosedResourceError):
            return None

    async def _dumped(self, pid: int, timeout: float) -> dict[str, Any] | None:
        """What faulthandler writes within `timeout`; None if it cannot be triggered, or writes nothing."""
        if not self._signal or not catches(pid, self._signal):
            return None
        os.pwrite(self.dump, bytes(DUMP_LIMIT), 0)
        os.lseek(self.dump, 0, os.SEEK_SET)  # the position belongs to the open file, which both processes share
        os.kill(pid, self._signal)
        with anyio.move_on_after(timeout):
            before = b""
            while not (written := self._written()) or written != before:
                before = written
                await anyio.sleep(LOOK)
        text = self._written().decode(errors="replace")
        if not text:
            return None
        reason = "its interpreter is busy: an extension holds the interpreter lock"
        return {"how": "faulthandler", "reason": reason, "threads": self._parsed(text), "tasks": []}

    def _written(self) -> bytes:
        """What is in the memfd; nothing once the worker has been reaped."""
        return os.pread(self.dump, DUMP_LIMIT, 0).partition(b"\0")[0] if self.dump >= 0 else b""

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        """The threads in faulthandler's output; the innermost call last, as elsewhere."""
        threads: list[dict[str, Any]] = []
        for line in text.splitlines():
            if (found := _THREAD.match(line)) is not None:
                is_loop = int(found[1], 16) == self._loop_thread
                threads.append({"name": "event loop" if is_loop else found[2] or f"thread {found[1]}", "stack": []})
            elif line.startswith("  ") and threads:
                threads[-1]["stack"].append(line.strip())
            elif line:
                break  # the C stack, which newer Python versions add
        threads = [each for each in threads if not any(own in line for line in each["stack"] for own in OWN_THREADS)]
        for each in threads:
            each["stack"].reverse()  # once: inserting thousands of lines at the front would hold the listener up
            first = (n for n, line in enumerate(each["stack"]) if not any(part in line for part in MACHINERY))
            each["stack"] = each["stack"][next(first, 0) :]
        return sorted(threads, key=lambda each: each["name"] != "event loop")


TOLD: Final = ("threads", "threads_total", "tasks", "tasks_total", "blocked")
"""Fields of the watchdog's reply."""
OWN_THREADS: Final = (
    "server/serve_asgi/worker/loop_watchdog.py",
    "server/serve_asgi/worker/orphan_exit.py",
    "server/serve_asgi/logs/stdio_guard.py",
)
"""Where this server's own threads are defined."""
MACHINERY: Final = (
    "<frozen ",
    "/serve_asgi/worker/",
    "/serve_asgi/http/",
    "/serve_asgi/websocket/",
    "/asyncio/",
    "/anyio/",
    "/threading.py",
)
"""Paths of frames that call an application and are not its own, whatever release the worker runs from."""
STATES: Final = {
    "R": "it is running: its interpreter is busy",
    "S": "it sleeps",
    "D": "it waits for a disk or a device, state D",
}


async def survey(children: Iterable[Child], timeout: float, silent_for: Callable[[Child], float]) -> dict[str, Any]:
    """What every worker is doing, as `serve stacks --json` shows it; all are asked at once.

    Takes `timeout` seconds at most, however many of them are blocked.
    """
    asked = sorted(children, key=lambda child: (child.worker.generation.number, child.worker.slot))
    limit = min(ANSWER_LIMIT, TOTAL_LIMIT // max(1, len(asked)))
    found: dict[int, dict[str, Any]] = {}

    async def ask(child: Child) -> None:
        found[child.pid] = await look(child, timeout, limit)

    async with anyio.create_task_group() as tasks:
        for child in asked:
            tasks.start_soon(ask, child)
    return {
        "workers": [
            {
                "slot": "agent" if child.worker.slot < 0 else child.worker.slot,
                "generation": child.worker.generation.number,
                "pid": child.pid,
                "state": child.worker.state.value,
                "heard": round(silent_for(child), 3),
                **found[child.pid],
            }
            for child in asked
        ]
    }


async def look(child: Child, timeout: float, limit: int = ANSWER_LIMIT) -> dict[str, Any]:
    """What one worker is doing."""
    if child.watchdog is None:
        return nothing("the listener had no descriptor left to ask it with")
    return await child.watchdog.look(child.pid, timeout, limit, lambda: not child.closed)


def nothing(reason: str) -> dict[str, Any]:
    """The result for a worker whose stacks are unknown, and why."""
    return {"how": "none", "reason": reason, "threads": [], "tasks": []}


def state_of(pid: int) -> str:
    """The process's state letter (proc_pid_stat(5)), or nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal (proc_pid_status(5), SigCgt)."""
    try:
        found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def traced(pid: int) -> bool:
    """Whether a debugger or the like traces the process (proc_pid_status(5), TracerPid)."""
    try:
        return re.search(r"^TracerPid:\s*[1-9]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def as_text(told: dict[str, Any]) -> str:
    """Stacks of one worker as lines for the log."""
    lines = []
    for thread in told["threads"]:
        what = ", ".join(part for part in (thread["name"], thread.get("request", ""), thread.get("note", "")) if part)
        lines += [f"{what}:", *(f"  {line}" for line in thread["stack"])]
    return "\n".join(lines)
