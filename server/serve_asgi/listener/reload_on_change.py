"""`--reload`, for development: a changed file triggers a reload.

It owns the file watcher (`serve_asgi.listener.file_watcher`) and restarts it if it dies; the reload is the same
transaction as any other, so code that does not start is refused and the old code serves on. Old workers with open
streams do not delay it because of this mode's defaults (`serve_asgi.config.sources`): requests have a second to finish,
and many generations may be alive meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import anyio

from serve_asgi.config.release import PRIVATE_VARIABLES, own_program
from serve_asgi.config.sources import Settings
from serve_asgi.errors import ChannelError, StartError, UsageError
from serve_asgi.ipc.channel import Channel, pair
from serve_asgi.listener.exit_status import describe_code
from serve_asgi.listener.helper_processes import HelperProcess, HelperProcesses
from serve_asgi.listener.spawning import SAFE_PATH
from serve_asgi.listener.watched_files import watched
from serve_asgi.logs.nonblocking_sink import say
from serve_asgi.supervisor import actions
from serve_asgi.supervisor import events as e

FIRST_PAUSE: Final = 1.0
"""Seconds before watching is retried; doubled each time until it works."""
LONGEST_PAUSE: Final = 60.0
WATCHING_TIMEOUT: Final = 10.0
"""Seconds to wait for the watcher to be ready before saying that it waits for changes."""
STARTED: Final = time.time_ns()
"""When this program was started (Unix time, ns), before any of the application was imported."""
POLLS: Final = ", by looking at the files twice a second (the package watchfiles would notice at once)"
NAMED: Final = 3
"""Changed files that are named in the log."""


def require(settings: Settings) -> None:
    """Raise UsageError if a directory is missing that it should watch."""
    watched(settings)


def start(
    processes: HelperProcesses, what: dict[str, list[str]], since: int, *, once: bool = False
) -> tuple[HelperProcess, Channel]:
    """Start a watcher, which exits after one change if `once`.

    Raises OSError if it cannot be started. Changes after `since` (Unix time, ns) count as well.
    """
    ours, theirs = pair()
    command = [own_program(), *SAFE_PATH, "-m", "serve_asgi.listener.file_watcher", "--channel", str(theirs.fileno())]
    command += ["--watched", json.dumps(what), "--since", str(since), *(["--once"] if once else [])]
    environment = {name: text for name, text in os.environ.items() if name not in PRIVATE_VARIABLES}
    try:
        process = processes.start(command, environment, [(theirs.fileno(), theirs.fileno())])
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, Channel(ours)


def start_again_after_a_change(settings: Settings, error: StartError, changed: bool) -> int:
    """The first start has failed: say so, wait for a changed file (or HUP), and execute this program again.

    `changed` says that there has been a change meanwhile. Returns an exit status if there will be no further start: a
    signal said stop, or the watcher exited.
    """
    say(2, f"{error.detail.rstrip()}\nserve: {error}\n".lstrip("\n"))
    if changed or _wait_for_change(settings):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return error.exit_status


def _wait_for_change(settings: Settings) -> bool:
    """Wait for a changed file or HUP; return False after a signal to stop, or if the watcher fails."""
    signals = {signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    processes = HelperProcesses()
    process, channel = start(processes, watched(settings), STARTED, once=True)
    try:
        select.select([channel], [], [], WATCHING_TIMEOUT)  # it watches: no change from here on is missed
        say(2, "serve: waiting for a change of a file (--reload)\n")
        while (received := signal.sigwait(signals)) == signal.SIGCHLD:
            pid, wait_status = os.waitpid(process.pid, os.WNOHANG)
            if pid and processes.reaped(pid, wait_status):
                return wait_status == 0
        return received == signal.SIGHUP and not terminal_is_gone()
    finally:
        channel.close()
        processes.kill_and_reap(process)


def terminal_is_gone() -> bool:
    """Whether the terminal that the server was started in has been closed, at which the kernel or a shell sends HUP.

    A development server must not keep running then.
    """
    poll = select.poll()
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                poll.register(descriptor, 0)
    return any(found & select.POLLHUP for _, found in poll.poll(0))


class FileChanges:
    """Watches files for one listener."""

    def __init__(
        self,
        settings: Settings,
        processes: HelperProcesses,
        post: Callable[[e.Event], None],
        say: Callable[[actions.LogEvent], None],
        *,
        missed: bool = False,
    ) -> None:
        """`missed`: the server has run for a while without a watcher."""
        self._settings = settings
        self._processes = processes
        self._post = post
        self._say = say
        self._pause = FIRST_PAUSE
        self._process: HelperProcess | None = None
        self._what: dict[str, list[str]] = {}
        """What is being watched."""
        self._elsewhere = False
        """Whether to watch something else from now on."""
        self._missed = missed
        """Whether there was a time without a watcher."""
        self._since = STARTED
        """All changes up to this time have been seen."""
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Request a reload after each change, until `stop`; whatever ends the watcher, it is started again."""
        with self._scope:
            await self._keep_watching()

    def stop(self) -> None:
        """Stop watching. `HelperProcesses.kill` waits until the watcher is gone."""
        self._scope.cancel()

    async def _keep_watching(self) -> None:
        told = ""
        while True:
            trouble = await self._watch()
            if self._elsewhere:
                self._elsewhere = False
                continue
            if self._pause == FIRST_PAUSE or trouble != told:
                self._tell(logging.ERROR, "watch_failed", trouble)
            told = trouble
            await anyio.sleep(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            self._missed = True

    def use(self, settings: Settings) -> None:
        """A generation with these settings serves, perhaps with other directories or files than before."""
        self._settings = settings
        with contextlib.suppress(UsageError):  # reported when watching begins again
            if self._process is not None and watched(settings) != self._what:
                self._elsewhere = True
                self._process.signal(signal.SIGKILL)

    async def _watch(self) -> str:
        """Run one watcher; return a sentence on what ended it."""
        try:
            self._what = watched(self._settings)
            process, channel = start(self._processes, self._what, self._since)
            self._process = process
        except (OSError, UsageError) as error:
            return f"files are not being watched:  {error}"
        try:
            if trouble := await self._follow(channel):
                return f"files are not being watched:  {trouble}"
        finally:
            self._process = None
            channel.close()
            process.signal(signal.SIGKILL)
        return f"the process that watches files ended ({describe_code(await process.wait())}); it is being restarted"

    async def _follow(self, channel: Channel) -> str:
        """Handle the watcher's packets until it exits, or reports why it cannot continue, which is returned."""
        try:
            while True:
                packet, _ = await channel.receive()
                match packet["type"]:
                    case "watching":
                        self._since = time.time_ns()
                        self._watching(packet["directories"], packet.get("polls", False))
                    case "changed":
                        self._since = time.time_ns()
                        self._changed(packet["paths"], packet["count"])
                    case "trouble":
                        return str(packet["text"])
        except (EOFError, ChannelError, OSError):
            return ""

    def _watching(self, directories: list[str], polls: bool) -> None:
        told = ", ".join(directories) + (POLLS if polls else "")
        self._tell(logging.INFO, "watch_started", f"watching for changes (--reload, for development): {told}")
        self._pause = FIRST_PAUSE
        if self._missed:
            self._missed = False
            self._post(e.ReloadAsked(by="files may have changed while they were not being watched"))

    def _changed(self, paths: list[str], count: int) -> None:
        start = os.path.join(os.path.realpath(self._settings.directory), "")
        named = ", ".join(path.removeprefix(start) for path in paths[:NAMED])
        more = f" and {count - NAMED} more" if count > NAMED else ""
        text = f"{named}{more} {'has' if count == 1 else 'have'} changed"
        self._tell(logging.INFO, "files_changed", text, files=paths)
        self._post(e.ReloadAsked(by=text, supersedes=True))

    def _tell(self, level: int, event: str, text: str, **about: Any) -> None:
        self._say(actions.LogEvent(level, event, text, "", about))
