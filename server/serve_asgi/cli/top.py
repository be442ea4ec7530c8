"""`serve top`: the server, live. The loop around `top_samples` (what is shown) and `top_view` (how).

It requests the status once per interval and draws; in between, it waits for keys, signals and the response together, so
that it can quit at once even if the server does not respond. If the server goes away, it is searched for a while: it
may be restarted with another PID, or be replacing its program. However this ends (a key, TERM, an error), and also
while it is suspended (Ctrl-Z), the terminal is restored.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import command, harmless
from serve_asgi.cli.control_client import PATIENCE, ControlConversation, RequestRefused, ServerEnded, checked
from serve_asgi.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from serve_asgi.cli.top_samples import TopSamples

QUIT: Final = frozenset("qQ\x1b\x03\x04")
"""Keys that end it: q, Escape, Ctrl-C, Ctrl-D."""
WINDOW: Final = frozenset("wW")
"""Keys that show ten minutes in the charts, or one second in each column again."""

TAKEN: Final = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)
"""Signals after which the frame is drawn again."""
AWAY: Final = 5.0
"""Seconds for which a server that has ended is searched; at least three intervals."""


def top(control: str, pid_file: str, interval: float, once: bool) -> int:
    """Watch the server live: generations, workers, rates, latencies, reloads.

    q quits, w shows ten minutes in the charts. They begin with what the admin process has seen, where there is one
    (--admin). With --once, and where there is no terminal, one frame is printed after one interval.
    """
    from rich.console import Console

    from serve_asgi.cli import top_history
    from serve_asgi.cli.top_samples import TopSamples

    def find() -> Path:
        return control_client.find(control, pid_file)

    path = find()
    samples, console = TopSamples(), Console(highlight=False)
    samples.add(harmless(control_client.look(path)))
    samples.recall(top_history.fetch(samples.status.get("admin", ())))
    if once or not (sys.stdin.isatty() and console.is_terminal and not console.is_dumb_terminal):
        time.sleep(interval)
        samples.add(harmless(control_client.look(path)))
        _print(samples, console)
        return 0
    with contextlib.suppress(KeyboardInterrupt), _cbreak() as found, _signals() as signals:
        TopScreen(path, find, samples, console, found, signals).run(interval)
    return 0


def _print(samples: TopSamples, console: Console) -> None:
    from serve_asgi.cli.top_view import frame

    console.print(frame(samples, console.width, None), soft_wrap=False)


class TopScreen:
    """The terminal and the view on it."""

    def __init__(
        self,
        path: Path,
        find: Callable[[], Path],
        samples: TopSamples,
        console: Console,
        found: list[Any],
        signals: int,
    ) -> None:
        """`find` finds the control socket again; `found` are the terminal's original settings, `signals` is from
        `_signals`."""
        self._path = path
        self._find = find
        self._samples = samples
        self._console = console
        self._found = found
        self._signals = signals
        self._keys = sys.stdin.fileno()
        self._whole = False
        """Whether the charts show all that is kept."""

    def run(self, interval: float) -> None:
        """Draw until a key is pressed to quit. Raises RequestRefused or UsageError when the server is gone."""
        from rich.live import Live

        with Live(console=self._console, screen=True, auto_refresh=False, redirect_stderr=False) as live:
            self._draw(live)
            due = time.monotonic() + interval
            heard = time.monotonic()
            while self._wait(live, due):
                due = max(due + interval, time.monotonic())
                try:
                    if self._samples.gone:
                        self._path = self._find()
                    with ControlConversation(self._path, "status") as conversation:
                        response = self._answer(live, conversation)
                except (ServerEnded, UsageError):
                    self._samples.gone = time.monotonic() - heard
                    if self._samples.gone > max(AWAY, 3 * interval):
                        raise
                    self._draw(live)
                    continue
                if response is None:
                    return
                heard = time.monotonic()
                self._samples.add(harmless(checked(response)["status"]))
                self._draw(live)

    def _answer(self, live: Live, conversation: ControlConversation) -> dict[str, Any] | None:
        """The server's response; None if a key was pressed to quit."""
        deadline = time.monotonic() + PATIENCE
        while (response := conversation.receive(0.0)) is None:
            if not self._wait(live, deadline, conversation):
                return None
            if time.monotonic() >= deadline:
                raise RequestRefused(f"the server has not responded for {PATIENCE:g} s; is its process stopped?")
        return response

    def _wait(self, live: Live, until: float, conversation: ControlConversation | None = None) -> bool:
        """Wait until then, or until the conversation is readable; return whether to continue."""
        watched = [self._keys, self._signals, *([conversation] if conversation else [])]
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select(watched, [], [], left)
            if self._keys in ready:
                keys = os.read(self._keys, 64)
                key = keys.decode(errors="replace")
                if not keys or key in QUIT:
                    return False
                if key in WINDOW:
                    self._whole = not self._whole
                    self._draw(live)
            if self._signals in ready:
                if signal.SIGTSTP in os.read(self._signals, 64):
                    self._stand_back(live)
                self._draw(live)
            if conversation in ready:
                break
        return True

    def _stand_back(self, live: Live) -> None:
        """Ctrl-Z: restore the terminal for the shell until this process is continued."""
        live.stop()
        termios.tcsetattr(self._keys, termios.TCSADRAIN, self._found)
        os.kill(os.getpid(), signal.SIGSTOP)
        tty.setcbreak(self._keys)
        live.start()

    def _draw(self, live: Live) -> None:
        from serve_asgi.cli.top_view import frame

        width, height = self._console.size
        live.update(frame(self._samples, width, height, whole=self._whole), refresh=True)


@contextlib.contextmanager
def _cbreak() -> Iterator[list[Any]]:
    """Read keys one by one, without echo; yields the terminal's original settings, and restores them."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield before
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of the `TAKEN` signals can be read (signal.set_wakeup_fd)."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in TAKEN:
        signal.signal(number, lambda *_: None)
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        signal.set_wakeup_fd(before)
        for number in TAKEN:
            signal.signal(number, signal.SIG_DFL)
        os.close(readable)
        os.close(writable)


COMMANDS: Final = {
    "top": command(
        "top",
        top,
        click.Option(
            ["--interval"],
            type=click.FloatRange(min=0.1, max=3600.0),
            metavar="SECONDS",
            default=1.0,
            show_default=True,
            help="Time between two frames.",
        ),
        click.Option(["--once"], is_flag=True, help="Print one frame and exit."),
    ),
}
