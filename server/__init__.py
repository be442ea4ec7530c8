"""What an application may import from the server that runs it.

Names are loaded when they are first asked for: the command blocks its signals before it imports anything heavy.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` would take two thirds of the time that passes until the signals are blocked
if TYPE_CHECKING:
    from typing import Any

    from server.app.agent import agent
    from server.app.draining import draining
    from server.app.messenger import messenger
    from server.app.schedule import schedule
    from server.app.shared import shared

__all__ = ["Message", "__version__", "agent", "draining", "messenger", "schedule", "shared"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "agent":
        from server.app.agent import agent

        return agent
    if name == "draining":
        from server.app.draining import draining

        return draining
    if name == "Message":
        from server.app.receiving import Message

        return Message
    if name == "messenger":
        from server.app.messenger import messenger

        return messenger
    if name == "schedule":
        from server.app.schedule import schedule

        return schedule
    if name == "shared":
        from server.app.shared import shared

        return shared
    raise AttributeError(f"module 'server' has no attribute {name!r}")
