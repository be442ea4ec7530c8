"""The real listener, whose children are nobody: each has a process that sleeps, and its sockets go to the fuzzer.

`python -m tests.fuzzing.rogue_listener HAND REPORT serve-arguments…`: over the socket HAND (SOCK_SEQPACKET) go the
children's ends, with a line that says whose they are; into the file REPORT goes what the loop has done, as JSON, twice
a second. A callback of the loop that takes longer than `LONG` of CPU time, or that long while it waits for something,
is a stall; one that is merely preempted by other processes is none.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, Final

LONG: Final = 0.05
"""Seconds."""
IDLE: Final = ["/bin/sleep", "1000000"]


class Watch:
    """What the callbacks of the loop take."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.worst_cpu = 0.0
        self.stalls: list[dict[str, Any]] = []
        self.callbacks = 0
        self._told = 0.0
        self.children = 0
        self.worst_collection = 0.0
        self._collects = 0.0
        gc.callbacks.append(self._collected)
        self._since = 0.0
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._stack: list[str] = []
        if "FUZZ_LOOK" in os.environ:  # to find out where: the thread disturbs what is measured
            threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True).start()
        run = asyncio.Handle._run

        def watched(handle: asyncio.Handle) -> None:
            cpu, wall, preempted = time.thread_time(), time.perf_counter(), self._preempted()
            children = self.children
            self._stack, self._since = [], wall
            run(handle)
            self._since = 0.0
            took, lasted = time.thread_time() - cpu, time.perf_counter() - wall
            self.callbacks += 1
            self.worst_cpu = max(self.worst_cpu, took)
            if took > LONG:
                self._stall("cpu", took, lasted, handle)
            elif lasted - took > LONG and lasted - took - (self._preempted() - preempted) > LONG:
                kind = (
                    "waits" if children == self.children else "starts"
                )  # a process: vfork(2) waits until it has begun
                self._stall(kind, took, lasted, handle)
            if wall - self._told > 0.5:
                self._told = wall
                self.report()

        asyncio.Handle._run = watched  # type: ignore[method-assign, assignment]

    def _preempted(self) -> float:
        """For how long (s) the loop's thread has waited for a processor, which is no wait of ours (proc(5))."""
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9

    def _collected(self, phase: str, about: dict[str, Any]) -> None:
        """How much CPU time (s) the collector of cycles takes at a time."""
        if phase == "start":
            self._collects = time.thread_time()
        else:
            self.worst_collection = max(self.worst_collection, time.thread_time() - self._collects)

    def _look(self, thread: int) -> None:
        """See where the loop's thread is when a callback takes long."""
        while True:
            time.sleep(LONG / 2)
            if (since := self._since) and time.perf_counter() - since > LONG * 0.8 and not self._stack:
                frames = traceback.extract_stack(sys._current_frames()[thread])
                self._stack = [f"{os.path.basename(each.filename)}:{each.lineno} {each.name}" for each in frames[-16:]]

    def _stall(self, kind: str, cpu: float, wall: float, handle: asyncio.Handle) -> None:
        if len(self.stalls) < 50:
            what = self._stack or [repr(handle)[:600]]
            self.stalls.append({"kind": kind, "cpu": round(cpu, 4), "wall": round(wall, 4), "what": what})

    def report(self) -> None:
        with open("/proc/self/statm", encoding="ascii") as file:
            rss = int(file.read().split()[1]) * 4
        told = {
            "rss": rss,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "worst_cpu": round(self.worst_cpu, 4),
            "worst_collection": round(self.worst_collection, 4),
            "callbacks": self.callbacks,
            "children": self.children,
            "stalls": self.stalls,
        }
        with open(f"{self._path}.new", "w", encoding="utf-8") as new:
            json.dump(told, new)
        os.rename(f"{self._path}.new", self._path)


def main() -> None:
    hand = socket.socket(fileno=int(sys.argv[1]))
    watch = Watch(sys.argv[2])

    from serve_asgi.ipc.channel import Channel, pair
    from serve_asgi.listener import admin_process as admin
    from serve_asgi.listener import children as children
    from serve_asgi.listener import store_process as store
    from serve_asgi.listener.child import Child
    from serve_asgi.logs import child_output
    from serve_asgi.supervisor.lifecycles import Worker
    from serve_asgi.supervisor.restart_backoff import RestartBackoff

    def hand_over(end: socket.socket, **about: object) -> None:
        watch.children += 1
        socket.send_fds(hand, [json.dumps(about).encode()], [end.fileno()])

    def spawn(worker: Any, release: Any, row: int, counts: Any) -> Child:
        ours, theirs = pair()
        made = child_output.for_child()
        pid = os.posix_spawn(IDLE[0], IDLE, {}, setpgroup=0)
        made.started()
        with theirs:
            hand_over(theirs, kind="worker" if isinstance(worker, Worker) else "agent", id=worker.id)
        return Child(worker, pid, Channel(ours, descriptors=0), made, row, counts)

    def start(kind: str) -> Any:
        def started(self: Any, theirs: socket.socket) -> Any:
            hand_over(theirs, kind=kind, id=0)
            return self._processes.start(IDLE, {})

        return started

    children.spawn = spawn  # type: ignore[attr-defined]
    store.StoreProcess._start = start("store")  # type: ignore[method-assign]
    admin.AdminProcess._start = start("admin")  # type: ignore[method-assign]
    RestartBackoff.FIRST_DELAY, RestartBackoff.LONGEST_DELAY = 0.01, 0.2
    store.FIRST_DELAY, store.LONGEST_DELAY = 0.01, 0.2  # type: ignore[misc]
    admin.FIRST_DELAY, admin.LONGEST_DELAY = 0.01, 0.2  # type: ignore[misc]
    import signal

    from serve_asgi.ipc.signals import LISTENER_SIGNALS

    signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)
    from serve_asgi.cli.main import run_command_line

    sys.exit(run_command_line(sys.argv[3:]))


if __name__ == "__main__":
    main()
