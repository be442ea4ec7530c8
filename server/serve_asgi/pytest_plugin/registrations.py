"""What tests must not leave to one another: a hub with its state, and handlers and schedules registered on the way."""

from __future__ import annotations

from serve_asgi.app import hub_link, local_mode, thread_loop
from serve_asgi.app.local_mode import LocalLink
from serve_asgi.app.message_receiver import NO_HANDLERS, TopicHandlers
from serve_asgi.app.messenger import messenger
from serve_asgi.app.schedule import schedule
from serve_asgi.app.shared import shared


class Registrations:
    """The handlers and schedules of this process, as they are when this is made."""

    def __init__(self) -> None:
        self._handlers = messenger.receiver.registered()
        self._schedules = schedule.registered()

    def restore(self) -> None:
        """Take away what was registered since, but for functions of modules: those may have been imported only now."""
        handlers = {
            topic: TopicHandlers(
                each for each in now.all if each in self._handlers.get(topic, NO_HANDLERS).all or _stays(each.handler)
            )
            for topic, now in messenger.receiver.registered().items()
        }
        messenger.receiver.register_only(handlers)
        schedules = schedule.registered().items()
        schedule.register_only(
            {name: each for name, each in schedules if name in self._schedules or _stays(each.function)}
        )


def _stays(function: object) -> bool:
    """Whether it was not defined within another function, as those of a test are."""
    return "<locals>" not in getattr(function, "__qualname__", "<locals>")


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
