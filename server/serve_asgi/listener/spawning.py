"""Starting a process as a fresh interpreter.

A worker or an agent is started here. Of the other processes (hooks, the store's, the admin process, watchers of files)
each starts its own, with the same flags (`SAFE_PATH`), through `serve_asgi.listener.helper_processes`.
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
    terminal is not its controlling one, so that it cannot put words into it (TIOCSTI, ioctl_tty(2)).

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
            setsigdef=LISTENER_SIGNALS,  # what the listener ignores, no child of the application is to
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
    """`-P` keeps the working directory off the import path, where an application's own `server` would shadow ours.

    It is left out when this package itself is being run from the working directory, not from an installation.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    try:
        return [] if root == os.getcwd() else ["-P"]
    except FileNotFoundError:
        return ["-P"]


SAFE_PATH: Final = _safe_path_flag()
"""Found out once: the directory that the listener was started in may be removed by a deploy."""
