"""The watchdog: a thread that notices when the worker's event loop is blocked, and reports what the worker is doing.

It serves two purposes for which the loop cannot be asked: the log (`--block-warning`: which code blocks the loop, and
for how long), and the listener (`serve stacks`, over a socket of its own).

How it detects that at almost no cost: the loop ticks once a second. If the loop had nothing else to do before a tick,
the tick sets a timer (timerfd_create(2)) that wakes the thread if the next tick does not come; while nothing happens
the thread never wakes. If the loop had work, the thread checks twice per `--block-warning` whether the loop's thread
waits for events, by its innermost frame; only if it does not, the loop is pinged. A loop that has not responded for
`--block-warning` is blocked. So a block that lasts longer than one and a half times that is reported (if it begins in a
quiet second: that and one second more); a shorter one by chance.

Code that holds the interpreter lock (in a C library) stops this thread too. When it runs again, it is late, and says
so: the loop's thread is then still at the line that called the C code, since it releases the lock right after it. CPU
times distinguish this from a process that did not run at all. While the lock is held the listener can still get the
stacks: faulthandler writes them in a signal handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import faulthandler
import functools
import logging
import math
import os
import resource
import select
import signal
import sys
import threading
import time
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.channel import MAX_PACKET, Channel, close_descriptors
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.worker import stack_dump as stacks
from serve_asgi.worker.blocked_loop_detection import TICK, Finding, LoopWatch, WakeTimer, WatchPhase

DUMP_SIGNAL: Final = signal.SIGRTMIN + 9
"""Makes faulthandler write the stacks. The listener sends it only to a process that catches it (/proc/PID/status)."""
LONGEST_PATIENCE: Final = 3600.0
"""Most seconds between two checks; poll(2) takes no more than a few weeks."""
BUSY_SHARE: Final = 0.6
"""The loop's thread was busy if it ran, or waited for a processor, for this share of the time."""
OTHERS_SHARE: Final = 0.05
"""Other threads were busy if they ran for this share of the time; a busy machine may have given them no more."""
STOOD_STILL: Final = 1.0
"""Seconds in which nothing of this process ran that are reported: on a busy machine some tenths are normal."""
REPEAT_AFTER: Final = 60.0
"""Seconds after which the stack of a place that blocks repeatedly is logged again."""
DEBUGGERS: Final = (f"{os.sep}pdb.py", f"{os.sep}bdb.py")
"""Files of the standard library whose code runs while somebody looks at a stopped program."""
MOST_SHOWN: Final = 8
"""Threads whose stacks are logged."""
ANSWER_LIMIT: Final = MAX_PACKET - 1000
"""Bytes of the reply to the listener."""

log = logging.getLogger("serve")


class Culprit(enum.Enum):
    """What held the interpreter lock while this thread could not run."""

    LOOP = "loop"
    ANOTHER = "another"  # thread
    NOBODY = "nobody"  # used the processor
    UNSEEN = "unseen"  # the loop, which has continued since


SENTENCES: Final = {
    None: "the event loop has been blocked for {0} by {1}",
    Culprit.LOOP: "the event loop has been blocked for {0} by {1}, in code that held the interpreter lock all the time "
    "(a C library's, a regular expression), called from here",
    Culprit.ANOTHER: "the event loop has been blocked for {0}: another thread ran code that held the interpreter lock "
    "(a C library's, a regular expression); the threads now",
    Culprit.NOBODY: "nothing has run in this process for {0}: it was stopped, got no processor time, or waited in code "
    "that held the interpreter lock; its loop now",
    Culprit.UNSEEN: "the event loop was blocked for {0}; it was over before the cause could be seen",
}


@dataclasses.dataclass(frozen=True, slots=True)
class LateLook:
    """By how much (s) a check was late, if that is significant, and why."""

    late: float
    culprit: Culprit


class Watchdog:
    """The watchdog. First `start` it; `watch` a loop when serving begins, and call `tick` once a second."""

    def __init__(self, channel: Channel | None, dump: int | None) -> None:
        """`channel` is for the listener's requests, `dump` the file for faulthandler; both are taken over."""
        self._channel = channel
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = threading.get_ident()
        self._cells: memoryview | None = None
        self._watch: LoopWatch | None = None
        self._turned = 0.0
        self._quiet = False
        self._overslept = 0.0  # by how much the last tick was late, if significant
        self._sleeps = 0
        self._due = math.inf  # when the next check is due
        self._used = (0.0, 0.0, 0.0)  # CPU times of the process and of the loop's thread at the last check
        self._shown_at: dict[str, float] = {}  # when each place's stack was logged
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._timer = WakeTimer()
        try:  # kept open: there may be no descriptor left later
            self._schedstat = os.open(
                f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC
            )
        except OSError:
            self._schedstat = -1
        if dump is not None:
            # It gives the calling thread an alternate stack (sigaltstack(2)) of 16 KiB, on which Python's handlers of
            # all other signals run as well: a few at once overflow it. So it is called in a short-lived thread.
            register = functools.partial(faulthandler.register, DUMP_SIGNAL, all_threads=True, chain=False)
            caller = threading.Thread(target=register, args=(dump,))
            caller.start()
            caller.join()
        self._dumps = dump is not None
        self.abilities: dict[str, Any] = {"signal": int(DUMP_SIGNAL), "loop_thread": self._loop_thread}
        """For the listener: the signal for the stacks, and the thread that the loop runs in."""

    def start(self) -> None:
        """Start the thread. Called in the thread that the loop will run in."""
        threading.Thread(target=self._run, name="serve-watchdog", daemon=True).start()

    def know(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the loop whose tasks are reported."""
        self._loop = loop

    def let_go(self) -> None:
        """In a forked child, where this thread does not exist: close everything."""
        self._watch = None
        if self._dumps:
            faulthandler.unregister(DUMP_SIGNAL)

    def detach(self) -> None:
        """The process is exiting."""
        if self._channel is not None:
            self._channel.detach()

    # In the loop's thread

    def watch(self, cells: memoryview, block_warning: float) -> None:
        """Watch the current loop from now on, unless `block_warning` is 0. `cells` is this process's row."""
        if block_warning > 0:
            self._cells = cells
            self._turned = time.monotonic()
            self._watch = LoopWatch(block_warning)
            os.eventfd_write(self._wake, 1)

    def unwatch(self) -> None:
        """The loop ends normally: it no longer counts as blocked."""
        self._watch = None

    def tick(self) -> None:
        """Called by the loop once a second."""
        watch = self._watch
        if watch is None:
            return
        sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        self._quiet = sleeps <= self._sleeps + 1  # it has slept once: until this tick
        self._sleeps = sleeps
        before, self._turned = self._turned, time.monotonic()
        if self._turned - before - TICK >= max(watch.limit, STOOD_STILL):
            self._overslept = self._turned - before - TICK
        if watch.phase is WatchPhase.PARKED:
            if not self._quiet or self._overslept:
                os.eventfd_write(self._wake, 1)
            else:
                self._timer.set(self._turned + TICK + watch.limit / 2)

    def _answered(self) -> None:
        self._turned = time.monotonic()

    # In the thread

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._timer.fd is not None:
            poll.register(self._timer.fd, select.POLLIN)
        if self._channel is not None:
            poll.register(self._channel.fileno(), select.POLLIN)
        while True:
            events = poll.poll(self._patience())
            try:
                for fd, _ in events:
                    if fd in (self._wake, self._timer.fd):
                        _empty(fd)
                    elif not self._serve_request():
                        poll.unregister(fd)
                self._look(time.monotonic(), bool(events))
            except Exception:  # a bug here must not affect the rest of the worker
                log.exception("the watchdog could not check the event loop and stops doing so; please report this")
                self._watch = None

    def _patience(self) -> float | None:
        """Milliseconds until the next check; None if the timer or another event wakes the thread."""
        watch = self._watch
        if watch is None or (watch.phase is WatchPhase.PARKED and self._timer.fd is not None):
            return None
        return math.ceil(min(max(0.0, self._due - time.monotonic()), LONGEST_PATIENCE) * 1000)

    def _look(self, now: float, woken: bool) -> None:
        """Check the loop, if that is due or the loop asked for it, and report what has changed."""
        watch, loop = self._watch, self._loop
        if watch is None or loop is None:
            self._due = math.inf
            return
        parked = watch.phase is WatchPhase.PARKED
        # Related values are read without a system call in between, since any lets the loop continue.
        frame, turned, overslept = sys._current_frames().get(self._loop_thread), self._turned, self._overslept
        due = watch.next_look(0.0, turned) if parked else self._due
        if woken and now < due and not parked:
            return  # it was a request
        idle = stacks.idle(frame)
        frames = [] if idle else stacks.frames_of(frame)
        delay = self._delay(max(0.0, now - due, overslept))
        if overslept:
            self._overslept = 0.0
            if watch.phase is not WatchPhase.BLOCKED:
                self._say_over(loop, overslept, frames, delay)
        seen = (now, turned, idle, self._quiet, delay.late)
        said = watch.look(*seen)
        if said is Finding.TURNS:
            log.info(
                "the event loop runs again after %.1f s",
                watch.lasted,
                extra={"event": "loop_resumed", "about": {"seconds": round(watch.lasted, 3)}},
            )
            said = watch.look(*seen)  # it may be blocked once more
        if said is Finding.ASK or said is Finding.BLOCKED:
            self._ask(loop)
        if said is Finding.BLOCKED:
            self._say_blocked(loop, now - watch.asked, frames, delay)
        self._due = watch.next_look(time.monotonic(), self._turned)
        if watch.phase is WatchPhase.PARKED:
            self._timer.set(self._due)

    def _say_over(
        self, loop: asyncio.AbstractEventLoop, seconds: float, frames: stacks.Frames, delay: LateLook
    ) -> None:
        """Report a block that is over: the loop reached its late tick before this thread could run."""
        culprit = Culprit.UNSEEN if delay.culprit is Culprit.LOOP else delay.culprit
        self._say_blocked(loop, seconds, frames, LateLook(seconds, culprit))

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._answered)
        except RuntimeError:  # the loop is closed
            self._watch = None

    def _delay(self, late: float) -> LateLook:
        """What a check that is so late (s) means, from the CPU times since the last one."""
        since = late + (0.0 if self._watch is None else self._watch.limit / 2)
        before, self._used = self._used, self._time_used()
        process, running, waiting = (now - then for now, then in zip(self._used, before, strict=True))
        if running + waiting >= since * BUSY_SHARE:
            return LateLook(late, Culprit.LOOP)
        if process - running >= since * OTHERS_SHARE:
            return LateLook(late, Culprit.ANOTHER)
        return LateLook(late if late >= STOOD_STILL else 0.0, Culprit.NOBODY)

    def _time_used(self) -> tuple[float, float, float]:
        """Seconds that all threads ran, that the loop's thread ran, and that it waited for a processor."""
        try:
            running, waiting, _ = os.pread(self._schedstat, 100, 0).split()
        except (OSError, ValueError):  # a kernel without CONFIG_SCHED_INFO
            return time.process_time(), time.clock_gettime(time.pthread_getcpuclockid(self._loop_thread)), 0.0
        return time.process_time(), int(running) / 1e9, int(waiting) / 1e9

    def _say_blocked(
        self, loop: asyncio.AbstractEventLoop, seconds: float, frames: stacks.Frames, delay: LateLook
    ) -> None:
        """Log the block, and what the loop's thread is doing."""
        watch, cells = self._watch, self._cells
        if watch is None or cells is None:
            return
        if in_debugger(frames):
            log.info("a debugger holds the event loop", extra={"event": "debugger_entered"})
            return
        cells[Cell.BLOCKED] += 1
        culprit = delay.culprit if delay.late >= watch.limit else None
        if culprit is Culprit.UNSEEN:
            frames = []
        request, place = stacks.request_of(frames), stacks.place_of(frames)
        task = stacks.running_task(loop) if frames else ""
        by = " of ".join(part for part in (task and f"task {task}", request) if part) or "the server"
        about = {"seconds": round(seconds, 3), "request": request, "task": task, "place": place}
        log.warning(
            "%s%s",
            SENTENCES[culprit].format(f"{seconds:.1f} s (--block-warning {watch.limit:g})", by),
            self._shown(culprit, place, frames),
            extra={"event": "loop_blocked", "about": about},
        )

    def _shown(self, culprit: Culprit | None, place: str, frames: stacks.Frames) -> str:
        """The stack, unless it was logged a short while ago."""
        if culprit is Culprit.UNSEEN:
            return ""
        if culprit is Culprit.ANOTHER:
            told, _ = stacks.threads(self._loop_thread)
            return "".join(f"\n{each['name']}:\n" + "\n".join(each["stack"]) for each in told[:MOST_SHOWN])
        if not frames:
            return " waits for events"
        now = time.monotonic()
        if now - self._shown_at.get(place, -math.inf) < REPEAT_AFTER:
            return f", again at {place}"
        self._shown_at = {each: at for each, at in self._shown_at.items() if now - at < REPEAT_AFTER} | {place: now}
        return "\n" + "\n".join(stacks.lines_of(frames))

    # Requests of the listener

    def _serve_request(self) -> bool:
        """Reply to one request; return False if there will be no more. What the listener does not read is dropped."""
        assert self._channel is not None
        try:
            received = self._channel.try_receive()
            if received is not None:
                packet, descriptors = received
                close_descriptors(descriptors)
                if packet["type"] == "stacks":
                    limit = min(ANSWER_LIMIT, int(packet.get("limit", ANSWER_LIMIT)))
                    told = self._snapshot(time.monotonic(), limit)
                    self._channel.try_send({"type": "stacks", "id": packet.get("id"), **told})
        except (EOFError, OSError, ChannelError):
            return False
        return True

    def _snapshot(self, now: float, limit: int) -> dict[str, Any]:
        watch = self._watch
        owing = (
            watch is not None and watch.phase in (WatchPhase.ASKED, WatchPhase.BLOCKED) and self._turned < watch.asked
        )
        blocked = now - watch.asked if watch is not None and owing else 0.0
        return stacks.snapshot(self._loop, self._loop_thread, limit, blocked)


def in_debugger(frames: stacks.Frames) -> bool:
    """Whether this stack waits for a person: at pdb's prompt, or where an editor's debugger (pydevd) has stopped it."""
    return any(
        frame.f_code.co_filename.endswith(DEBUGGERS) or "pydevd" in frame.f_code.co_filename for frame, _ in frames
    )


def _empty(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 8)
