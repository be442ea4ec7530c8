"""What goes wrong, typed by who is at fault. Each message is a sentence that tells the person what to do next."""

from __future__ import annotations


class ServeError(Exception):
    """Base of every error that this server shows to a person: one line on stderr, no traceback."""

    exit_status = 1


class UsageError(ServeError):
    """What was asked for cannot be: the command line, a file or a path has to change."""

    exit_status = 2


class InUseError(ServeError):
    """Another process holds the address or path at present. `holder` is its PID, if known."""

    def __init__(self, holder: int | None = None) -> None:
        super().__init__(f"in use by PID {holder}" if holder else "in use")
        self.holder = holder


class ScheduleError(UsageError, ValueError):
    """A schedule that cannot be: the message says what to change."""


class StartError(ServeError):
    """The application could not be started; `detail` holds the traceback of its code, if there is one."""

    exit_status = 1

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class ChannelError(ServeError):
    """The other end of a channel broke the protocol (truncated descriptors, unknown version, malformed packet)."""
