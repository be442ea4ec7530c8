"""A process whose output is guarded, for test_stdio_guard.py: `python output_process.py WHAT`."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

from serve_asgi.logs import child_output, nonblocking_sink, stdio_guard

LINES = 40_000  # of 100 bytes: more than pipe and buffer hold together


def main(what: str, *arguments: str) -> None:
    if what == "child":
        child(*arguments)
    elif what == "alone":
        with stdio_guard.guarded():
            print("to stdout")
            print("to stderr", file=sys.stderr)
    elif what == "much":
        with stdio_guard.guarded():
            for number in range(LINES):
                os.write(1, b"%099d\n" % number)
            report = f"dropped {nonblocking_sink.dropped()}"
        os.write(int(arguments[0]), report.encode())
    elif what == "parent":
        with stdio_guard.guarded():
            for life in arguments:
                start(life)
            os.write(1, b"the parent is done\n")


def start(life: str) -> None:
    """Start a child, wait until it is dead, read what it left."""
    outputs = child_output.for_child()
    command = [sys.executable, __file__, "child", life, outputs.argument()]
    actions = [(os.POSIX_SPAWN_DUP2, here, there) for here, there in outputs.child_fds()]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    outputs.started()
    os.waitpid(pid, 0)
    outputs.read_rest()


def child(life: str, argument: str) -> None:
    guard = stdio_guard.adopt(argument)
    print("the child speaks")
    if life == "crash":
        faulthandler.enable()
        os.write(1, b"last words\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    guard.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
