"""Starts a process as a fresh interpreter.

Workers and agents are started here. The others (hooks, the store, the admin process, the file watcher) are started by
their own modules, with the same flags (`SAFE_PATH`), through `serve_asgi.listener.helper_processes`.
"""

from __future__ import annotations

import os
from typing import Final

from serve_asgi.config.release import Release
from serve_asgi.ipc.channel import Channel, pair
from serve_asgi.ipc.scoreboard import Row
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.listener.child import Child
from serve_asgi.logs.child_output import for_child
from serve_asgi.supervisor.lifecycles import AppProcess, Worker


def spawn(worker: AppProcess, release: Release, row: int, counts: Row) -> Child:
    """Start a worker or an agent as a fresh interpreter.

    It leads a session of its own: a signal for the foreground group (Ctrl-C) does not reach it, and the operator's
    terminal is not its controlling terminal, so that it cannot inject input (TIOCSTI, ioctl_tty(2)).

    Raises OSError if the interpreter cannot be started.
    """
    output = for_child()
    try:
        ours, theirs = pair()
    except OSError:
        output.read_rest()
        raise
    own = ("--slot", str(worker.slot)) if isinstance(worker, Worker) else ()
    arguments = [
        release.python,
        *SAFE_PATH,
        *("-m", "serve_asgi.worker" if own else "serve_asgi.agent_process"),
        *("--channel", str(theirs.fileno()), "--output", output.argument()),
        *("--generation", str(worker.generation.number), *own),
    ]
    inherited = [(theirs.fileno(), theirs.fileno()), *output.child_fds()]
    try:
        pid = os.posix_spawn(
            release.python,
            arguments,
            release.environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for here, there in inherited],
            setsid=True,
            setsigmask=LISTENER_SIGNALS,
            setsigdef=LISTENER_SIGNALS,  # what the listener ignores, the application must not
        )
    except OSError:
        ours.close()
        output.read_rest()
        raise
    finally:
        theirs.close()
        output.started()
    return Child(worker, pid, Channel(ours, descriptors=0), output, row, counts)


def _safe_path_flag() -> list[str]:
    """`-P` keeps the working directory off the import path, where a module of the application could shadow one of ours.

    Left out if this package itself runs from the working directory rather than an installation.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        return [] if root == os.getcwd() else ["-P"]
    except FileNotFoundError:
        return ["-P"]


SAFE_PATH: Final = _safe_path_flag()
"""Determined once: a deploy may remove the directory that the listener was started in."""
