"""The process that watches files for `--reload`, and reports changes over its channel.

It is a process of its own since the listener may never wait: setting up the watches visits every directory below the
watched ones, and the library (watchfiles) is native code with threads. Where that is not installed, it looks at the
files instead (`serve_asgi.listener.file_polling`). `serve_asgi.listener.watched_files` knows which files count, and
`serve_asgi.listener.reload_on_change` decides what a change leads to. It exits when the listener's end of the channel
closes.

Packets: {"type": "watching", "directories": [...], "polls": false} once the watches are set up, {"type": "changed",
"paths": [...]} after each change, and at once if something changed before that but after --since, {"type": "trouble",
"text": "a sentence"} when it cannot continue.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio

from serve_asgi.ipc.channel import Channel
from serve_asgi.listener.file_polling import FilePoller
from serve_asgi.listener.watched_files import WatchedFiles

try:
    import watchfiles
except ImportError:
    watchfiles = None  # type: ignore[assignment]

QUIET: Final = 100
"""Milliseconds without a further change after which the changes so far are reported."""
STORM: Final = 1600
"""Milliseconds after which they are reported in any case."""
GRANULARITY: Final = 10_000_000
"""Nanoseconds by which the kernel's time of a change may be early: it is the time of the last tick."""
MOST_PATHS: Final = 20
"""Most paths that are reported by name."""


async def watch(channel: Channel, watched: WatchedFiles, since: int, once: bool = False) -> int:
    """Report changes until the other end of the channel is closed, or only the first; return the exit status.

    Changes after `since` (Unix time, ns) count, although nothing watched then: the application was being imported.
    """
    status = 0
    try:
        async with anyio.create_task_group() as tasks:
            if watchfiles is None:
                tasks.start_soon(_poll, channel, watched, since, once)
            else:
                tasks.start_soon(_tell, channel, watched, watched.directories, True, once)
                if apart := watched.apart():
                    tasks.start_soon(_tell, channel, watched, apart, False, once)
                # The tasks start in this order, and each has set up its watches when it first waits.
                tasks.start_soon(_tell_earlier, channel, watched, since, once)
            while True:
                await channel.receive()
    except* (EOFError, _ReportedChange):
        pass
    except* _WatcherGone as group:
        await channel.send({"type": "trouble", "text": f"{group.exceptions[0]} is gone, or has been replaced"})
    except* OSError as group:
        status = 1
        error = group.exceptions[0]
        advice = "; raise fs.inotify.max_user_watches, or name what to watch by --reload-dir" if _watches(error) else ""
        with contextlib.suppress(OSError):  # that may be the cause: the listener is gone, or has been replaced
            await channel.send({"type": "trouble", "text": f"{error}{advice}"})
    return status


class _ReportedChange(Exception):
    """A change has been reported, and `once` is set."""


class _WatcherGone(Exception):
    """A watched directory is gone; the argument is its path."""


async def _poll(channel: Channel, watched: WatchedFiles, since: int, once: bool) -> None:
    """Look at the files for ever, and report what has changed."""
    poller, watching = FilePoller(watched), False
    for pause, changed in poller.look():
        if changed:
            await _tell_paths(channel, changed, once)
        if poller.rounds and not watching:
            watching = True
            await _tell_earlier(channel, watched, since, once)
        await anyio.sleep(pause)


async def _tell_earlier(channel: Channel, watched: WatchedFiles, since: int, once: bool) -> None:
    """Report that the watches are set up, and what changed before they were."""
    until = time.time_ns()
    await channel.send({"type": "watching", "directories": list(watched.directories), "polls": watchfiles is None})
    if paths := await anyio.to_thread.run_sync(watched.changed_between, since - GRANULARITY, until):
        await _tell_paths(channel, paths, once)


async def _tell_paths(channel: Channel, paths: list[str], once: bool) -> None:
    await channel.send({"type": "changed", "paths": paths[:MOST_PATHS], "count": len(paths)})
    if once:
        raise _ReportedChange


async def _tell(
    channel: Channel, watched: WatchedFiles, directories: Sequence[str], recursive: bool, once: bool
) -> None:
    async for paths in _changes(watched, directories, recursive):
        await _tell_paths(channel, paths, once)


async def _changes(watched: WatchedFiles, directories: Sequence[str], recursive: bool) -> AsyncIterator[list[str]]:
    changes = watchfiles.awatch(
        *directories,
        watch_filter=watched.counts,
        debounce=STORM,
        step=QUIET,
        recursive=recursive,
        ignore_permission_denied=True,
    )
    async for found in changes:
        yield sorted({path for _, path in found})
        for change, path in found:
            if watched.ends(change, path):
                raise _WatcherGone(path)


def _watches(error: BaseException) -> bool:
    return "limit" in str(error).lower()


def main() -> None:
    """Watch as the arguments say, until the listener ends."""
    parser = argparse.ArgumentParser(prog="serve_asgi.listener.file_watcher")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--watched", type=json.loads, required=True)
    parser.add_argument("--since", type=int, required=True)
    parser.add_argument("--once", action="store_true")
    arguments = parser.parse_args()
    told: dict[str, Any] = arguments.watched
    watched = WatchedFiles(**{name: tuple(values) for name, values in told.items()})
    status = anyio.run(
        watch, Channel(socket.socket(fileno=arguments.channel)), watched, arguments.since, arguments.once
    )
    os._exit(status)  # a thread of the library may still wait for changes


if __name__ == "__main__":
    main()
