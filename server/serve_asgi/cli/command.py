"""What all commands share: how they are defined, how they find their server, how they print.

Steps are printed as they happen, even into a pipe, so that a deploy can be watched. A command follows what it started
to the end even if its output cannot be written, so that the exit status is reliable. Text from a server is printed
without its control characters.
"""

from __future__ import annotations

import errno
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import click

from serve_asgi.errors import ServeError, StartError

WIDTH: Final = 100
"""Most columns of help."""
CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}
INTERRUPTED: Final = 128 + 2
"""Exit status after Ctrl-C, as shells report it (SIGINT is 2)."""
UNSHOWN: Final = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(0x09), *range(0x0B, 0x20), *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that control a terminal (ECMA-48: C0 except tab and newline, C1), or reverse the direction of text."""


def command(name: str, act: Callable[..., int], *parameters: click.Parameter) -> click.Command:
    """A command for a running server; its help is the docstring of `act`."""
    return click.Command(
        name, callback=_in_words(act), help=act.__doc__, params=[*_reach(), *parameters], context_settings=CONTEXT
    )


def _in_words(act: Callable[..., int]) -> Callable[..., int]:
    """Wrap `act` so that unexpected failures are one-line errors, too."""

    @functools.wraps(act)
    def acted(**given: Any) -> int:
        try:
            return act(**given)
        except KeyError as error:
            raise StartError(
                f"the server's response lacks {error}: it is another version; use the serve command of its own release"
            ) from error
        except OSError as error:
            raise StartError(f"this command cannot continue: {error.strerror or error}") from error

    return acted


def _reach() -> list[click.Parameter]:
    """The options that select the running server."""
    place = click.Path(readable=False)  # what is wrong with it is said by whoever uses it
    return [
        click.Option(
            ["--control"], metavar="PATH", type=place, default="", envvar="SERVE_CONTROL", help="Its control socket."
        ),
        click.Option(
            ["--pid-file"], metavar="PATH", type=place, default="", envvar="SERVE_PID_FILE", help="Its pid file."
        ),
    ]


def as_json(what: str = "Print it as JSON.") -> click.Option:
    """The option --json."""
    return click.Option(["--json", "as_json"], is_flag=True, help=what)


def seconds(name: str, what: str, default: float | None = None) -> click.Option:
    """An option that takes a time in seconds."""
    kind = click.FloatRange(min=0.0, max=1e6)
    return click.Option([name], type=kind, metavar="SECONDS", default=default, show_default=bool(default), help=what)


def tell(text: str) -> None:
    """Print a line now: a step. If it cannot be written, that is reported once, and no further step is printed."""
    if (trouble := _print(text)) is not None and trouble.errno != errno.EPIPE:
        complain(f"{_unwritten(trouble)}; the command continues without printing")


def show(text: str) -> None:
    """Print a result. Raises StartError if it cannot be written; a closed pipe is not an error."""
    if (trouble := _print(text)) is not None and trouble.errno != errno.EPIPE:
        raise StartError(_unwritten(trouble))


def _print(text: str) -> OSError | None:
    try:
        print(harmless(text), flush=True)
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the end, where Python flushes its buffer
        return error
    return None


def _unwritten(trouble: OSError) -> str:
    return f"standard output cannot be written to: {trouble.strerror}"


def complain(text: str) -> None:
    """Print an error to stderr."""
    print(harmless(f"serve: {text}"), file=sys.stderr, flush=True)


def harmless(told: Any) -> Any:
    """A text, or a structure of texts, from a server, without control characters."""
    match told:
        case str():
            return told.translate(UNSHOWN)
        case list():
            return [harmless(each) for each in told]
        case dict():
            return {name: harmless(each) for name, each in told.items()}
    return told


def tell_outcome(ok: bool, text: str, **about: Any) -> None:
    """Print the outcome as JSON, the last object of --json."""
    tell(json.dumps({"at": round(time.time(), 3), "event": "outcome", "ok": ok, "text": text, **about}))


def failed_as_json(error: ServeError) -> int:
    """Print a failure as the outcome; return its exit status."""
    tell_outcome(False, str(error), detail=getattr(error, "detail", ""))
    return error.exit_status


def lively() -> bool:
    """Whether the output is a terminal that can be drawn on, and the package for it is installed."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
    return terminal and importlib.util.find_spec("rich") is not None


# Formatting of numbers


def counted(number: int, thing: str) -> str:
    """A number of things, in words: "1 worker", "2 workers"."""
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
