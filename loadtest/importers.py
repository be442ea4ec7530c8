"""The control of the latency test: interpreters that import what a worker imports, and never serve.

`python -m loadtest.importers` is a process of its own, so that starting interpreters does not disturb the client's
loop. Its first line of input is JSON (the modules, how many interpreters, how many start at once); each further line
starts a whole generation of interpreters. When all of them have imported everything, the generation before is told to
end, as workers would be, and a line is printed. The end of the input ends all.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from typing import Any, TextIO

IMPORT = """
import sys
for name in sys.stdin.readline().split():
    try:
        __import__(name)
    except Exception:
        pass
print("ready", flush=True)
sys.stdin.read()
"""


class Generation:
    """Interpreters that were started together."""

    def __init__(self, python: str, modules: list[str], count: int, concurrency: int) -> None:
        """Start them, `concurrency` at a time, and wait until all have imported everything."""
        self._children: list[subprocess.Popen[str]] = []
        with selectors.DefaultSelector() as starting:
            while len(self._children) < count or starting.get_map():
                while len(self._children) < count and len(starting.get_map()) < concurrency:
                    child = subprocess.Popen(
                        [python, "-c", IMPORT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                    )
                    self._children.append(child)
                    _to(child).write(" ".join(modules) + "\n")
                    _to(child).flush()
                    starting.register(child.stdout or 0, selectors.EVENT_READ)
                for key, _ in starting.select():
                    starting.unregister(key.fileobj)

    def end(self) -> None:
        """Tell all to end, and wait for them."""
        for child in self._children:
            _to(child).close()
        for child in self._children:
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def _to(child: subprocess.Popen[str]) -> Any:
    return child.stdin


def serve(orders: TextIO, answers: TextIO) -> None:
    """Follow the orders until they end."""
    setting = json.loads(orders.readline())
    before = None
    for _ in orders:
        generation = Generation(**setting)
        answers.write("done\n")
        answers.flush()
        if before is not None:
            before.end()
        before = generation
    if before is not None:
        before.end()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
