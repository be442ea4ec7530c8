"""What an application may import from the server that runs it.

Names are loaded when they are first asked for: the command blocks its signals before it imports anything heavy.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` would take two thirds of the time that passes until the signals are blocked
if TYPE_CHECKING:
    from typing import Any

    from serve_asgi.app import metrics
    from serve_asgi.app.after_fork import after_fork
    from serve_asgi.app.agent import agent
    from serve_asgi.app.canary import canary
    from serve_asgi.app.messenger import messenger
    from serve_asgi.app.retiring import retiring
    from serve_asgi.app.schedule import schedule
    from serve_asgi.app.shared import shared
    from serve_asgi.app.survive import survive
    from serve_asgi.in_process.run import run
    from serve_asgi.in_process.server import Server

__all__ = [
    "Message",
    "Server",
    "__version__",
    "after_fork",
    "agent",
    "canary",
    "messenger",
    "metrics",
    "retiring",
    "run",
    "schedule",
    "shared",
    "survive",
]
__version__ = "0.1.0"

if os.environ.get("SERVE_ASGI_PURE_PYTHON", "0") not in ("", "0"):  # before any module that is compiled is imported
    from serve_asgi.compiled_core import leave_out

    leave_out()


def __getattr__(name: str) -> Any:
    if name == "after_fork":
        from serve_asgi.app.after_fork import after_fork

        return after_fork
    if name == "agent":
        from serve_asgi.app.agent import agent

        return agent
    if name == "canary":
        from serve_asgi.app.canary import canary

        return canary
    if name == "retiring":
        from serve_asgi.app.retiring import retiring

        return retiring
    if name == "Message":
        from serve_asgi.app.message_receiver import Message

        return Message
    if name == "messenger":
        from serve_asgi.app.messenger import messenger

        return messenger
    if name == "metrics":
        from serve_asgi.app import metrics

        return metrics
    if name == "schedule":
        from serve_asgi.app.schedule import schedule

        return schedule
    if name == "shared":
        from serve_asgi.app.shared import shared

        return shared
    if name == "survive":
        from serve_asgi.app.survive import survive

        return survive
    if name == "Server":
        from serve_asgi.in_process.server import Server

        return Server
    if name == "run":
        from serve_asgi.in_process.run import run

        return run
    raise AttributeError(f"module 'serve_asgi' has no attribute {name!r}")
