"""How a process ended, as the log puts it: its exit status, or the signal that ended it."""

from __future__ import annotations

import os
import signal


def describe(status: int) -> str:
    """How a process ended, from its wait status (waitpid(2))."""
    return describe_code(os.waitstatus_to_exitcode(status))


def describe_code(code: int) -> str:
    """How a process ended, from its exit status or the negative number of the signal that ended it."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # one of the real-time signals, most of which have no name (signal(7))
        return f"signal {-code}"
