"""Starts a process as a fresh interpreter.

Workers, agents and the templates that workers are forked from (`serve_asgi.listener.templates`) are started here. The
others (hooks, the store, the admin process, the file watcher) are started by their own modules, with the same flags
(`SAFE_PATH`), through `serve_asgi.listener.helper_processes`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final

from serve_asgi.config.release import Release
from serve_asgi.ipc.channel import Channel, pair
from serve_asgi.ipc.scoreboard import Row
from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.listener.child import Child
from serve_asgi.logs.child_output import ChildOutput, for_child
from serve_asgi.supervisor.lifecycles import AppProcess, Worker


def spawn(worker: AppProcess, release: Release, row: int, counts: Row) -> Child:
    """Start a worker or an agent as a fresh interpreter. Raises OSError if it cannot be started."""
    own = ("--slot", str(worker.slot)) if isinstance(worker, Worker) else ()
    module = "serve_asgi.worker" if own else "serve_asgi.agent_process"
    pid, channel, output = start_interpreter(release, module, worker.generation.number, own)
    return Child(worker, pid, channel, output, row, counts)


def unborn(worker: AppProcess, row: int, counts: Row) -> tuple[Child, socket.socket]:
    """Make what the listener holds of a process that a template is to fork, and the process's end of its channel.

    Raises OSError.
    """
    output = for_child()
    try:
        ours, theirs = pair()
    except OSError:
        output.read_rest()
        raise
    return Child(worker, 0, Channel(ours, descriptors=0), output, row, counts), theirs


def start_interpreter(
    release: Release, module: str, generation: int, own: Sequence[str] = ()
) -> tuple[int, Channel, ChildOutput]:
    """Start a fresh interpreter that runs `module`; `own` are its own arguments.

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
    arguments = [
        release.python,
        *SAFE_PATH,
        *("-m", module),
        *("--channel", str(theirs.fileno()), "--output", output.argument()),
        *("--generation", str(generation), *own),
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
    return pid, Channel(ours, descriptors=0), output


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
