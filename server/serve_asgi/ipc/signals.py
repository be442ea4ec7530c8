"""The signals that mean something to the listener. It imports `signal` alone, for it is the first to be loaded."""

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
"""Blocked from a process's first act until its handlers stand: the default action of HUP, USR1 and USR2 is death, and a
child that is sent HUP within 5 ms of exec would die before any Python handler."""
