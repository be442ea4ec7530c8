"""The signals that the listener handles. Imports nothing but `signal`, since it is the first module to be loaded."""

import signal

LISTENER_SIGNALS = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
        signal.SIGCHLD,
    }
)
"""Blocked from a process's first instruction until its handlers are set: the default action of HUP, USR1 and USR2 is to
terminate, and a child that is sent HUP within 5 ms of exec would die before any Python handler."""
