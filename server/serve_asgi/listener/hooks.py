"""Hooks: the operator's commands that run before or after events (docs/guides/hooks.md).

It owns which hooks there are, and the order in which they run: each hook has a queue of its own, in which events wait
while it handles an earlier one, so that a slow hook delays no other, and no hook runs twice at a time. Rules: nothing
waits for a hook except `before`; every hook has a deadline; no code of a hook runs in the listener; when the server has
ended no hook is left.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from serve_asgi.config.hook_events import OBJECTING, Hook, read_hook
from serve_asgi.config.options import Config
from serve_asgi.config.release import Release
from serve_asgi.listener.helper_processes import REAP_TIME, HelperProcesses
from serve_asgi.listener.hook_process import TERM_TIME, HookOutcome, command_of, environment_of, run
from serve_asgi.supervisor import actions

MOST_WAITING: Final = 100
"""Most events that wait for one hook; further ones are dropped, and the log says how many."""
CHECK_TIME: Final = 10.0
"""Seconds that finding a callable may take, or --hook-timeout if that is longer: its module is imported."""
LONGEST_VARIABLE: Final = 4096
"""Characters of an event in a variable (execve(2) takes at most 128 KiB); the event itself has all of them."""

Record = Mapping[str, Any]

log = logging.getLogger("serve")


class _HookQueue:
    """One hook's events."""

    __slots__ = ("hook", "left_out", "waiting")

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.waiting: collections.deque[Record] = collections.deque()
        self.left_out = 0


class Hooks:
    """All hooks of one server, each with a queue of events."""

    def __init__(
        self,
        config: Config,
        processes: HelperProcesses,
        tell: Callable[[actions.LogEvent], None],
        release: Callable[[], Release | None],
        control: Callable[[], Path | None],
    ) -> None:
        """`release` returns the current one, `control` the path of the control socket."""
        self.tasks: TaskGroup
        """Set before the first event."""
        self._processes = processes
        self._tell = tell
        self._release = release
        self._control = control
        self._config = config
        self._lines: dict[Hook, _HookQueue] = {}
        self._asking: set[anyio.CancelScope] = set()
        self._running: set[anyio.CancelScope] = set()
        self._working: set[_HookQueue] = set()
        self._less = anyio.Event()
        """Set whenever one of these three has become smaller, and then replaced."""
        self.use(config)

    def use(self, config: Config) -> None:
        """Take the hooks of `config` from here on; events that have happened before still reach the old ones."""
        self._config = config
        known = self._lines
        self._lines = {hook: known.get(hook) or _HookQueue(hook) for hook in map(read_hook, config.hook)}

    def any(self, event: str) -> bool:
        """Whether there are hooks for this event."""
        return any(hook.wants(event) for hook in self._lines)

    @property
    def busy(self) -> bool:
        """Whether any hook is running."""
        return bool(self._running or self._working)

    # After an event

    def happened(self, record: Record) -> None:
        """Start the hooks for this event. Never waits."""
        for hook, line in self._lines.items():
            if hook.wants(record["event"]):
                self._add(line, record)

    def _add(self, line: _HookQueue, record: Record) -> None:
        if len(line.waiting) >= MOST_WAITING:
            line.left_out += 1
            if line.left_out == 1:
                text = f"the {line.hook} is too slow: {MOST_WAITING} events wait for it, and further ones are dropped"
                self._say(logging.WARNING, "hook_failed", text, line.hook)
            return
        line.waiting.append(record)
        if line not in self._working:
            self._working.add(line)
            self.tasks.start_soon(self._work, line)

    async def _work(self, line: _HookQueue) -> None:
        """Run the hook for one event after another, until none is left."""
        try:
            while line.waiting:
                record, config = line.waiting.popleft(), self._config
                try:
                    outcome = await self._run(line.hook, record, self._release(), config)
                    self._report(line.hook, outcome)
                except Exception:  # a bug of ours must cost this event only
                    log.exception("the %s could not be run", line.hook)
            if line.left_out:
                text = f"{line.left_out} events were dropped for the {line.hook}"
                self._say(logging.WARNING, "hook_failed", text, line.hook, left_out=line.left_out)
        finally:
            line.left_out = 0
            self._working.discard(line)
            self._tell_less()

    def _report(self, hook: Hook, outcome: HookOutcome) -> None:
        if outcome.trouble:
            text = f"the {hook} failed: {outcome.trouble}"
            self._say(logging.ERROR, "hook_failed", text, hook, outcome.output, reason=outcome.trouble)
        elif outcome.output:
            self._say(logging.INFO, "hook_finished", f"the {hook} printed", hook, outcome.output)
        else:
            self._say(logging.DEBUG, "hook_finished", f"the {hook} has finished", hook)

    def _say(self, level: int, event: str, text: str, hook: Hook, detail: str = "", **about: Any) -> None:
        self._tell(
            actions.LogEvent(level, event, text, detail, {"hook": hook.command, "hook_event": hook.event, **about})
        )

    # Before an event

    async def before(
        self, event: str, record: Record, config: Config | None = None, release: Release | None = None
    ) -> tuple[str, str]:
        """Run the hooks for an event of `hook_events.BEFORE`, one after another, each within its deadline.

        They are those of `config` and run in `release`; the current ones by default. Returns why a hook objects, and
        its output; ("", "") if none objects. Only a reload and its canary can be objected to.
        """
        config = config or self._config
        release = release or self._release()
        for hook in map(read_hook, config.hook):
            if not hook.wants(event):
                continue
            outcome = HookOutcome("it was ended with the server", "")
            with self._counted(self._asking) as scope:
                outcome = await self._run(hook, {**record, "event": event}, release, config)
            if event in OBJECTING and outcome.trouble:
                text = f"the {hook} objects: {outcome.trouble}"
                self._say(logging.DEBUG, "hook_vetoed", text, hook, outcome.output, reason=outcome.trouble)
                return text, outcome.output
            self._report(hook, outcome)
            if scope.cancel_called:  # the server has ended: the others are not run either
                break
        return "", ""

    # Running

    async def _run(self, hook: Hook, record: Record, release: Release | None, config: Config) -> HookOutcome:
        if release is None:
            return HookOutcome("there is no release to run it in", "")
        try:
            command = command_of(hook, release, config)
        except LookupError as error:
            return HookOutcome(str(error), "")
        with self._counted(self._running):
            server = {"pid": os.getpid(), "app": config.app, "host": socket.gethostname()}
            event, variables = {**record, "event": hook.event, "server": server}, self._variables(hook, record)
            return await run(command, self._processes, release, variables, event, config.hook_timeout)
        return HookOutcome("it was ended with the server", "")

    def _variables(self, hook: Hook, record: Record) -> dict[str, str]:
        """What a shell script needs without parsing JSON."""
        told = {name: record.get(name) for name in ("generation", "slot", "reason", "text", "socket")}
        about = {f"SERVE_EVENT_{name.upper()}": str(value) for name, value in told.items() if value is not None}
        about = {name: _in_environment(text) for name, text in about.items()}
        about |= {"SERVE_EVENT": hook.event, "SERVE_LISTENER_PID": str(os.getpid())}
        control = self._control()
        return about if control is None else about | {"SERVE_CONTROL": str(control)}

    @contextlib.contextmanager
    def _counted(self, among: set[anyio.CancelScope]) -> Iterator[anyio.CancelScope]:
        with anyio.CancelScope() as scope:
            among.add(scope)
            try:
                yield scope
            finally:
                among.discard(scope)
                self._tell_less()

    def _tell_less(self) -> None:
        less, self._less = self._less, anyio.Event()
        less.set()

    # The end

    async def finish(self) -> None:
        """The server has ended: let the hooks use the rest of their time, then kill them.

        Those that run before an event are killed at once: it will not happen.
        """
        for scope in list(self._asking):
            scope.cancel()
        with anyio.move_on_after(self._config.hook_timeout + TERM_TIME + REAP_TIME):
            await self._none_left()
        self.hurry()
        with anyio.move_on_after(REAP_TIME):
            await self._none_left()

    async def _none_left(self) -> None:
        while self._working or self._asking or self._running:
            await self._less.wait()

    def hurry(self) -> None:
        """Kill all hooks at once, and start no more."""
        for line in self._working:
            line.waiting.clear()
        for scope in [*self._asking, *self._running]:
            scope.cancel()


def _in_environment(text: str) -> str:
    """Text that execve(2) accepts, whatever was in an exception."""
    return text[:LONGEST_VARIABLE].replace("\0", " ").encode(errors="backslashreplace").decode()


def missing(hooks: Sequence[str], release: Release, config: Config) -> str:
    """A sentence about the first command whose program does not exist; "" if all do."""
    for hook in map(read_hook, hooks):
        try:
            command_of(hook, release, config)
        except LookupError as error:
            return str(error)
    return ""


def checks(hooks: Sequence[str], release: Release, config: Config) -> dict[Hook, list[str]]:
    """The commands that check whether callables exist."""
    found = {hook.command: hook for hook in map(read_hook, hooks) if hook.is_callable}
    return {hook: [*command_of(hook, release, config), "--check"] for hook in found.values()}


def trouble_at_start(config: Config, release: Release) -> str:
    """A sentence about the first hook that does not exist; "" if all do. It blocks: only for use at the start."""
    if text := missing(config.hook, release, config):
        return text
    for hook, command in checks(config.hook, release, config).items():
        try:
            done = subprocess.run(
                command,
                cwd=release.directory,
                env=environment_of(release),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_check_time(config),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _not_there(hook, f"its import had not ended after {_check_time(config):g} s (--hook-timeout)")
        except OSError as error:
            return f"the {hook} cannot be looked for: {error}"
        if done.returncode:
            return _not_there(hook, done.stdout.decode(errors="replace"))
    return ""


async def trouble_at_reload(config: Config, release: Release, processes: HelperProcesses) -> tuple[str, str]:
    """As `trouble_at_start`, but without blocking, and with the output of an import that failed."""
    if text := missing(config.hook, release, config):
        return text, ""
    for hook, command in checks(config.hook, release, config).items():
        outcome = await run(command, processes, release, {}, None, _check_time(config))
        if outcome.trouble:
            return _not_there(hook, outcome.output or outcome.trouble), ""
    return "", ""


def _check_time(config: Config) -> float:
    return max(CHECK_TIME, config.hook_timeout)


def _not_there(hook: Hook, said: str) -> str:
    return f"the {hook} cannot be run: {said.strip() or 'it cannot be imported'}"
