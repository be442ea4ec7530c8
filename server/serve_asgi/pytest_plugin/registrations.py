"""What tests must not leave to one another: a hub with its state, and handlers and schedules registered on the way."""

from __future__ import annotations

from serve_asgi.app import hub_link, local_mode, thread_loop
from serve_asgi.app.local_mode import LocalLink
from serve_asgi.app.messenger import messenger
from serve_asgi.app.schedule import schedule
from serve_asgi.app.shared import shared


class Registrations:
    """The handlers and schedules of this process, as they are when this is made."""

    def __init__(self) -> None:
        self._handlers = messenger.receiver.registered()
        self._schedules = schedule.registered()

    def restore(self) -> None:
        """Register these, and no others."""
        messenger.receiver.register_only(self._handlers)
        schedule.register_only(self._schedules)


def forget_hub() -> None:
    """Have the next use of `messenger`, `shared` or `schedule` make an empty hub, unless a server uses this one.

    Its time is the real one.
    """
    link = hub_link.current_or_none()
    if link is not None and (not isinstance(link, LocalLink) or link.servers):
        return
    if link is not None:
        if link.stand_in:
            thread_loop.stop()
        if link.loop.is_running():
            return  # that of a loop which outlives the test
        link.end()
    shared.forget()
    local_mode.TIME.ahead = 0.0
