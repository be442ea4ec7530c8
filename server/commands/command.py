"""What all commands share: how they are made, how they are told which server is meant, how they print.

A step is printed when it happens, also into a pipe: who watches a deploy wants to see it, not its end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

import click

WIDTH: Final = 100
"""Columns of help at most."""
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}
INTERRUPTED: Final = 128 + 2
"""Exit status after Ctrl-C, as a shell tells it (SIGINT is 2)."""


def command(name: str, act: Callable[..., int], *parameters: click.Parameter) -> click.Command:
    """A command that speaks to a server that runs; its help is the docstring of `act`."""
    return click.Command(
        name, callback=act, help=act.__doc__, params=[*_reach(), *parameters], context_settings=CONTEXT
    )


def _reach() -> list[click.Parameter]:
    """The options that say which running server is meant."""
    place = click.Path()
    return [
        click.Option(
            ["--control"], metavar="PATH", type=place, default="", envvar="SERVE_CONTROL", help="Its control socket."
        ),
        click.Option(["--pid"], metavar="PATH", type=place, default="", envvar="SERVE_PID", help="Its pid file."),
    ]


def as_json(what: str = "Print it as JSON.") -> click.Option:
    """The option --json."""
    return click.Option(["--json", "as_json"], is_flag=True, help=what)


def seconds(name: str, what: str, default: float | None = None) -> click.Option:
    """An option that takes a time in seconds."""
    kind = click.FloatRange(min=0.0, max=1e6)
    return click.Option([name], type=kind, metavar="SECONDS", default=default, show_default=bool(default), help=what)


def tell(text: str) -> None:
    """Print a line now."""
    print(text, flush=True)


def complain(text: str) -> None:
    """Print a sentence to stderr, as every complaint of this program is."""
    print(f"serve: {text}", file=sys.stderr, flush=True)


def lively() -> bool:
    """Whether a person looks at a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


# How numbers are written


def counted(number: int, thing: str) -> str:
    """A number of things as a person reads it."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def span(time: float) -> str:
    """A time span (s) in at most six characters: 0.2 s, 12 s, 3m20s, 5h02m, 12d."""
    if time < 10:
        return f"{time:.1f} s"
    for limit, big, small, size in ((60, "", "", 1), (3600, "m", "s", 60), (86400, "h", "m", 3600)):
        if time < limit:
            whole = int(time) // size
            return f"{whole} s" if not big else f"{whole}{big}{int(time) % size // (size // 60):02d}{small}"
    return f"{time / 86400:.0f}d"


def memory(size: float) -> str:
    """A number of bytes: 512 KiB, 34 MiB, 1.2 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
