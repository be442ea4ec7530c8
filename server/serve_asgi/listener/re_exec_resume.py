"""The program that replaces an earlier one in the listener's process (`serve_asgi.listener.re_exec`).

It reads the snapshot whose descriptor the environment names (`serve_asgi.listener.re_exec_registry`), and continues.
Beforehand, in a process of its own (`--check`), it checks whether it can.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import os
import socket
import sys

from serve_asgi import __version__
from serve_asgi.config.options import Config
from serve_asgi.config.sources import Settings
from serve_asgi.errors import UsageError
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc.scoreboard import Scoreboard
from serve_asgi.listener import re_exec_registry as registry
from serve_asgi.listener.listener import Listener
from serve_asgi.listener.start import conclude, serve
from serve_asgi.logs import server_log as logs

log = logging.getLogger("serve")


def inherited() -> int:
    """The descriptor of the earlier program's snapshot; removes the variable, so that no child sees it."""
    return int(os.environ.pop(registry.VARIABLE))


def resume(fd: int) -> int:
    """Continue where another program of this process stopped; return the exit status as `listener.start.run`."""
    state = registry.read(fd)
    for descriptor in state["descriptors"]:
        os.set_inheritable(descriptor, False)
    guard = registry.take_output(state)
    try:
        inherited = registry.take(state)
        _open_log(inherited.settings.config)
        current = inherited.supervisor.current
        assert current is not None
        config = inherited.configs[current.number]
        listener = Listener(config, inherited.listening, inherited.pid_file, inherited.admin_listening, inherited)
        listener.when_running += [functools.partial(tell, fd, inherited.predecessor) for fd in state["waiting"]]
        end = serve(listener)
    finally:
        guard.finish()
    return conclude(end, inherited.settings)


def _open_log(config: Config) -> None:
    """Log as before; a log file that can no longer be opened is no reason to stop serving."""
    try:
        logs.configure(config, "listener")
    except UsageError as error:
        logs.configure(dataclasses.replace(config, log_file=""), "listener")
        log.error("the listener logs to standard error now: %s", error)


def tell(waiting: int, before: str) -> None:
    """Reply to those who asked the earlier program, of version `before`."""
    text = f"the listener runs serve {__version__} from {sys.executable}"
    answer = {"version": control_protocol.VERSION, "ok": True, "text": text, "before": before}
    with socket.socket(fileno=waiting) as end, contextlib.suppress(OSError):
        end.setblocking(False)
        end.send(json.dumps(answer).encode() + b"\n")


def check(fd: int, board: int) -> None:
    """Check that this program can take over the snapshot `fd` and the scoreboard `board`.

    Raises UsageError, LookupError, TypeError or ValueError.
    """
    importlib.import_module("serve_asgi.cli.main")  # everything that will be needed can be imported
    state = registry.read(fd)
    registry.examine(state)
    Scoreboard(board)
    logs.configure(Settings.from_state(state["settings"]).config, "listener")


def _main() -> None:
    parser = argparse.ArgumentParser(prog="serve_asgi.listener.re_exec_resume", description="Run by the listener only.")
    parser.add_argument("--check", type=int, required=True, metavar="DESCRIPTOR")
    parser.add_argument("--scoreboard", type=int, required=True, metavar="DESCRIPTOR")
    try:
        check(parser.parse_args().check, parser.parse_args().scoreboard)
    except UsageError as error:
        sys.exit(str(error))
    except (LookupError, TypeError, ValueError) as error:
        sys.exit(f"serve {__version__} does not understand this server's state ({error!r}): restart the server")


if __name__ == "__main__":
    _main()
