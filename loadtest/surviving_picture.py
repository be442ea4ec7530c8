"""`python -m loadtest.surviving_picture docs/pictures/survive.png`: the numbers of connections over five deploys.

The same clients hold WebSockets that survive, ordinary ones of this server, and ones of another server; whose
connection is ended opens another one at once. Above, how many are open; below, how many new ones come.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from loadtest.plot import INK, RECONNECT, STYLE
from loadtest.reload import on_uvloop, wait_until_up
from loadtest.servers import COMMANDS, Server
from loadtest.surviving_idle import ORDINARY, PATH, held, open_files

DEPLOYS: Final = 5
QUIET: Final = 2.0
"""Seconds before the first deploy."""
BIN: Final = 0.1
"""Seconds."""
GRACEFUL: Final = 2
"""Seconds for which a handler that does not listen may go on in a worker that retires; then its WebSocket is closed."""
OPEN: Final = "#9db8d9"


@dataclasses.dataclass(frozen=True)
class Course:
    """What happened at one server. Times in s since the beginning."""

    title: str
    deploys: list[float]
    events: list[tuple[float, int]]
    """A connection stood (1), ended (-1), was asked for anew (0)."""
    seconds: float

    def open(self, clients: int) -> list[int]:
        """The least number of open connections in each bin."""
        count, least, bins = clients, clients, []
        events = iter(sorted(self.events))
        event = next(events, None)
        for index in range(int(self.seconds / BIN) + 1):
            least = count
            while event is not None and event[0] < (index + 1) * BIN:
                count += event[1]
                least = min(least, count)
                event = next(events, None)
            bins.append(least)
        return bins

    @property
    def anew(self) -> list[int]:
        """How many attempts to connect there were in each bin."""
        counts = Counter(int(at / BIN) for at, what in self.events if what == 0)
        return [counts[index] for index in range(int(self.seconds / BIN) + 1)]


def course(name: str, path: str, title: str, clients: int, interval: float) -> Course:
    """Deploy five times. Raises RuntimeError if the server does not start."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as directory:
        options = ["--graceful-timeout", str(GRACEFUL)] if (name, path) == ("serve", ORDINARY) else []
        server = Server(name, Path(directory), workers=2, http="httptools", loop="uvloop", options=options)
        try:
            on_uvloop(wait_until_up(server, 2))
            with held(server.port, clients, path, returns=True) as holder:
                time.sleep(1.0)
                began, deploys = time.monotonic(), []
                time.sleep(QUIET)
                for _ in range(DEPLOYS):
                    deploys.append(time.monotonic() - began)
                    server.hup()
                    time.sleep(interval)
                events = [(at - began, what) for at, what in holder.ask("events") if at >= began]
            return Course(title, deploys, events, QUIET + DEPLOYS * interval)
        finally:
            server.stop()
            server.sweep()


def draw(courses: list[Course], clients: int, path: Path) -> None:
    """Draw into `path`. Raises ImportError if matplotlib is missing."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            2, len(courses), sharex=True, sharey="row", figsize=(12, 5), layout="constrained", dpi=130, squeeze=False
        )
        figure.suptitle(
            f"Five deploys, {clients:,} WebSockets", x=0.01, ha="left", fontsize=17, fontweight="bold"
        )  # fmt: skip
        text = "Two workers each; a client whose connection ends opens another one at once. Dashed: a deploy (HUP)."
        figure.text(0.012, 0.895, text, fontsize=10, color="#666666")
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0, 0, 1, 0.945))
        for column, each in enumerate(courses):
            column_of(axes[0][column], axes[1][column], each, clients)
        axes[0][0].set_ylim(0, 1.04 * clients)
        axes[1][0].set_ylim(0, 1.1 * max(1, *(max(each.anew) for each in courses)))
        axes[0][0].set_ylabel("open connections")
        axes[1][0].set_ylabel(f"new ones per {BIN * 1000:.0f} ms")
        figure.savefig(path)
        pyplot.close(figure)


def column_of(above: Any, below: Any, course: Course, clients: int) -> None:
    """One server."""
    times = [(index + 0.5) * BIN for index in range(len(course.anew))]
    above.fill_between(times, course.open(clients), step="mid", color=OPEN, linewidth=0)
    above.set_title(course.title, fontsize=11, fontweight="bold")
    attempts, most = sum(course.anew), max(course.anew)
    if attempts:
        below.bar(times, course.anew, width=BIN * 1.5, color=RECONNECT)
        below.set_title(f"{attempts:,} new connections, up to {most:,} in {BIN * 1000:.0f} ms")
    else:
        below.set_title("no new connection")
        below.text(0.5, 0.5, "none", transform=below.transAxes, ha="center", va="center", fontsize=13, color="#59a14f",
                   backgroundcolor="white")  # fmt: skip
    for axis in (above, below):
        for deploy in course.deploys:
            axis.axvline(deploy, color=INK, linewidth=0.6, alpha=0.55, linestyle=(0, (4, 3)))
        axis.set_xlim(0, course.seconds)
        axis.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axis.set_axisbelow(True)
    below.set_xlabel("seconds")


@click.command(context_settings={"show_default": True})
@click.option("--clients", type=click.IntRange(1), default=1000, help="How many hold a WebSocket each.")
@click.option("--interval", type=click.FloatRange(1), default=8.0, help="Seconds between two deploys.")
@click.option("--peer", type=click.Choice([name for name in COMMANDS if name != "serve"]), default="uvicorn")
@click.argument("path", type=click.Path(path_type=Path))
def main(clients: int, interval: float, peer: str, path: Path) -> None:
    """Draw the numbers of connections over five deploys."""
    open_files(clients)
    stories = [
        ("serve", PATH, "serve, WebSockets that survive"),
        ("serve", ORDINARY, "serve, WebSockets that are closed (1012)"),
        (peer, ORDINARY, peer),
    ]
    try:
        courses = [course(name, kind, title, clients, interval) for name, kind, title in stories]
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    draw(courses, clients, path)
    for each in courses:
        click.echo(f"{each.title}: {sum(each.anew):,} new connections, at most {max(each.anew):,} in {BIN} s")


if __name__ == "__main__":
    main()
