"""`serve APP` where it cannot be a server with workers (macOS, Windows): for development, by a server in process.

It owns what is said of that, and with --reload the parent process, which serves nothing: it watches the files and
replaces its one child (`serve_asgi.in_process.development_child`) when one changes. A child that has failed is started
again at the next change. Nothing is handed over: a client may have to connect again. It uses nothing that only one
platform has, and runs on Linux as well, for its tests.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.config.options import Config, flag, options
from serve_asgi.config.release import logical_directory, resolve
from serve_asgi.config.sources import Settings, SourcePriority
from serve_asgi.errors import StartError, UsageError
from serve_asgi.in_process.development_child import VARIABLE, serve_here
from serve_asgi.in_process.keyword_options import RunOptions
from serve_asgi.listener.file_polling import FilePoller
from serve_asgi.listener.watched_files import WatchedFiles, watched
from serve_asgi.logs.nonblocking_sink import say

try:
    import watchfiles
except ImportError:
    watchfiles = None  # type: ignore[assignment]

LOOK: Final = 0.1
"""Most seconds until the end of a child is noticed."""
END_TIME: Final = 2.0
"""Seconds that a child has to end beyond what its requests and its lifespan have."""
NAMED: Final = 3
"""Changed files that are named."""
SYSTEMS: Final = {"Darwin": "macOS"}
FOLLOWED: Final = frozenset(RunOptions.__annotations__) | {
    *("app_dir", "chdir", "env_file", "environment", "config", "agent"),
    *("reload", "reload_dir", "reload_include", "reload_exclude"),
}
"""The options that mean something here."""


def run(settings: Settings) -> int:
    """Serve for development until a signal; return the exit status. Raises UsageError, StartError."""
    say(2, f"serve: {sentence(settings)}\n")
    if settings.config.reload:
        return Restarting(settings).run()
    serve_here(child_state(settings))
    return 0


def sentence(settings: Settings) -> str:
    """What a person has to know, and which of the given options do nothing here."""
    system = SYSTEMS.get(platform.system(), platform.system())
    text = f"this is {system}: one process serves, for development; deploys, workers and `serve reload` need Linux"
    given = [name for name in options() if settings.sources[name].tier is not SourcePriority.DEFAULT]
    if idle := [flag(name) for name in given if name not in FOLLOWED]:
        text += f" (without effect here: {', '.join(idle)})"
    return text


def child_state(settings: Settings) -> dict[str, Any]:
    """What the serving process needs to know, JSON-compatible. Raises UsageError."""
    release = resolve(settings.config, logical_directory())
    return {
        "config": settings.config.to_json(secrets=True),
        "directory": release.directory,
        "app_dir": release.app_dir,
        "environment": release.environment,
    }


class Restarting:
    """The parent process of --reload."""

    def __init__(self, settings: Settings) -> None:
        """Raises UsageError for a directory that cannot be watched."""
        self._settings = settings
        self._config: Config = settings.config
        self._watched = WatchedFiles(**{name: tuple(values) for name, values in watched(settings).items()})
        self._child: subprocess.Popen[bytes] | None = None
        self._failed = False

    def run(self) -> int:
        """Until INT or TERM, or until the child ends of itself; return the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        try:
            self._start()
            for changed in self._changes():
                if changed:
                    self._restart(changed)
                elif (status := self._ended()) is not None:
                    return status
        except (_Ended, KeyboardInterrupt):  # the latter from watchfiles
            pass
        finally:
            self._stop()
        return 0

    def _start(self) -> None:
        command = [sys.executable, "-m", "serve_asgi.in_process.development_child"]
        self._failed = False
        state = child_state(self._settings)
        self._child = subprocess.Popen(command, env={**os.environ, VARIABLE: json.dumps(state)})

    def _ended(self) -> int | None:
        """The status to exit with, if the child has ended in a way that a change of a file does not mend."""
        status = None if self._child is None else self._child.poll()
        if status is None or self._failed:
            return None
        if status in (0, UsageError.exit_status):
            return status
        self._failed = True
        say(2, "serve: waiting for a change of a file (--reload)\n")
        return None

    def _restart(self, changed: list[str]) -> None:
        named = ", ".join(os.path.relpath(path, self._settings.directory) for path in changed[:NAMED])
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        have = "has" if len(changed) == 1 else "have"
        say(2, f"serve: {named}{more} {have} changed: starting anew\n")
        self._stop()
        try:
            self._settings = self._settings.again()
            self._start()
        except (UsageError, StartError) as error:  # as in the middle of an edit
            say(2, f"serve: {error}\n")
            self._child = None

    def _stop(self) -> None:
        """End the child, which has time for its requests."""
        child = self._child
        if child is None:
            return
        config = self._config
        child.terminate()
        try:
            child.wait(config.graceful_timeout + config.shutdown_timeout + END_TIME)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._child = None

    def _changes(self) -> Iterator[list[str]]:
        """The changed files after each change, and an empty list every now and then."""
        directories = ", ".join(self._watched.directories)
        say(2, f"serve: watching for changes (--reload): {directories}\n")
        if watchfiles is None:
            return self._by_looking()
        return self._by_events()

    def _by_events(self) -> Iterator[list[str]]:
        found = watchfiles.watch(
            *(*self._watched.directories, *self._watched.apart()),
            watch_filter=self._watched.counts,
            rust_timeout=int(LOOK * 1000),
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        for changes in found:
            yield sorted({path for _, path in changes})

    def _by_looking(self) -> Iterator[list[str]]:
        for pause, changed in FilePoller(self._watched).look():
            yield changed
            child = self._child
            try:
                if child is None or self._failed:
                    _sleep(pause)
                else:
                    child.wait(pause)
            except subprocess.TimeoutExpired:
                pass


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


class _Ended(BaseException):
    """INT or TERM has come."""


def _end(*_: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise _Ended
