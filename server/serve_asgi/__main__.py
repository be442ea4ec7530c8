"""The first thing that runs: it holds back every signal that means something here, then loads the rest.

A signal that arrives before its handler stands would kill the process (the default action of HUP, USR1 and USR2 is
death), so nothing heavier than `os`, `signal` and `sys` is imported before they are blocked; a blocked signal waits and
is delivered to the handlers. The listener unblocks what it handles; the control commands, which handle none, unblock
all at once. SERVE_RE_EXEC says that this program takes the place of an earlier one of this process.
"""

import os
import signal
import sys


def main() -> None:
    """The command `serve`. Ends the process: 0 done, 1 failed, 2 wrong input (signal(7), pthread_sigmask(3))."""
    if sys.platform == "linux":
        from serve_asgi.ipc.signals import LISTENER_SIGNALS

        signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)
    from serve_asgi.cli.main import go_on, run_command_line

    sys.exit(go_on() if "SERVE_RE_EXEC" in os.environ else run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
