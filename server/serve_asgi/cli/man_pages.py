"""Writes the manual pages, serve(1) and one for each command such as serve-reload(1), from the definitions of options.

The wheel's build runs it (hatch_build.py), so that `man serve` works where the package is installed; by hand it is
`python -m serve_asgi.cli.man_pages DIRECTORY`. The grammar is man(7) of groff, as mandoc reads it too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from serve_asgi import __version__
from serve_asgi.cli import MODULES, WITHOUT_SERVER, load
from serve_asgi.cli.main import default_text, metavar
from serve_asgi.config.options import GROUPS, Option, environment_names, flag, flag_off, key, kind, options, several

SUMMARY: Final = "run an ASGI application so that nobody notices a deploy"
SIGNALS: Final = {
    "HUP": "Reload: replace every worker with fresh code. Certificates are looked at as well.",
    "USR2": "Drain: the health endpoint fails, everything is served, until the next successful reload.",
    "TERM": "Stop gracefully: drain for --drain-delay, shut out new connections, finish requests. A second one stops "
    "quickly.",
    "INT, QUIT": "Stop quickly: what is in progress is cut.",
    "TTIN, TTOU": "One worker more, one fewer.",
    "USR1": "Open the log files again, and look whether certificates have changed.",
}
STATUS: Final = {
    "0": "Done.",
    "1": "Not done, or not without loss; the sentence on stderr says why.",
    "2": "Wrong usage, or there is no such server.",
    "130": "Ended by Ctrl-C.",
}


def pages() -> dict[str, str]:
    """Every page by its file name: `serve.1`, `serve-reload.1`."""
    return {"serve.1": _serve(), **{f"serve-{name}.1": _command(name, load(name)) for name in MODULES}}


def _serve() -> str:
    lines = [*_head("serve", SUMMARY)]
    lines += [
        ".SH SYNOPSIS",
        ".B serve",
        r"\fIAPP\fP [\fIOPTIONS\fP]",
        ".br",
        ".B serve",
        r"\fICOMMAND\fP [\fIOPTIONS\fP]",
    ]
    lines += [".SH DESCRIPTION"]
    lines += [
        _text(
            "Runs the ASGI application APP, written as module:attribute, in worker processes below a parent that owns "
            "the listening sockets and never imports it. A reload (kill -HUP, or serve reload) replaces every worker "
            "with fresh code and loses no request, closes no connection and stalls no client."
        )
    ]
    for title, names in (
        ("COMMANDS FOR A RUNNING SERVER", [name for name in MODULES if name not in WITHOUT_SERVER]),
        ("COMMANDS WITHOUT ONE", list(WITHOUT_SERVER)),
    ):
        lines.append(f".SH {title}")
        for name in names:
            lines += [".TP", rf"\fBserve\-{_escaped(name)}\fP(1)", _text(load(name).get_short_help_str(1000))]
    lines.append(".SH OPTIONS")
    for group in GROUPS:
        lines.append(f".SS {group}")
        for name, (_, defined) in options().items():
            if defined.group == group:
                lines += _option(name, defined)
    lines += [".SH SIGNALS", *_definitions(SIGNALS)]
    lines += [".SH ENVIRONMENT"]
    lines += [
        _text(
            "Each option can be set by a variable: SERVE_ and its name in capitals, as in SERVE_BIND_TIMEOUT=10; "
            "SERVE_APP names the application. Several values of one option are separated by spaces or commas. The "
            "command line wins, then the environment, then the file."
        )
    ]
    lines += [
        ".SH FILES",
        *_definitions(
            {
                "serve.toml": "Options, in the directory that the server is started in: bind-timeout = 10; app is APP.",
                "pyproject.toml": "The same in the table [tool.serve], where there is no serve.toml.",
            }
        ),
    ]
    lines += [".SH EXIT STATUS", *_definitions(STATUS)]
    lines += [
        ".SH SEE ALSO",
        ",\n".join(rf".BR serve\-{_escaped(name)} (1)" for name in MODULES).replace(",\n", " ,\n"),
    ]
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"serve {name}", **command.context_settings)
    lines = [*_head(f"serve-{name}", command.get_short_help_str(1000).rstrip(".").lower())]
    lines += [".SH SYNOPSIS", f".B serve {_escaped(name)}", _escaped(" ".join(command.collect_usage_pieces(context)))]
    lines.append(".SH DESCRIPTION")
    paragraphs = (command.help or "").replace("\b", "").split("\n\n")
    lines += [line for number, each in enumerate(paragraphs) for line in ([".PP"] if number else []) + [_text(each)]]
    rows = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context))
    ]
    if rows:
        lines.append(".SH OPTIONS")
        for term, said in rows:
            lines += [".TP", rf"\fB{_escaped(term)}\fP", _text(said)]
    lines += [".SH EXIT STATUS", *_definitions(STATUS), ".SH SEE ALSO", ".BR serve (1)"]
    return "\n".join(lines) + "\n"


def _head(name: str, summary: str) -> Iterator[str]:
    yield r".\" Made by serve_asgi.cli.man_pages from the definitions of the options."
    yield f'.TH {_escaped(name.upper())} 1 "" "serve\\-asgi {__version__}" "User Commands"'
    yield ".SH NAME"
    yield rf"{_escaped(name)} \- {_escaped(summary)}"


def _option(name: str, defined: Option) -> Iterator[str]:
    """One option of serve(1): its forms, its help, its default, and the other places that set it."""
    if kind(name) is bool:
        term = rf"\fB{_escaped(flag(name))}\fP, \fB{_escaped(flag_off(name))}\fP"
    else:
        forms = ", ".join(rf"\fB{_escaped(each)}\fP" for each in (defined.short, flag(name)) if each)
        term = rf"{forms} \fI{_escaped(metavar(name, defined))}\fP"
    default = default_text(name) or ("off" if kind(name) is bool else "")
    notes = [f"Default: {default}."] if default else []
    if several(name):
        notes.append("May be given several times.")
    notes.append("Variable: " + ", ".join(environment_names(name, defined)) + ".")
    if not defined.live:
        notes.append("A changed value needs a restart.")
    yield from (".TP", term, _text(defined.help), ".br", _text(" ".join(notes)))
    if name == "config":
        yield from (".br", _text(f"The file itself cannot set {key(name)}."))


def _definitions(said: dict[str, str]) -> Iterator[str]:
    for term, text in said.items():
        yield from (".TP", rf"\fB{_escaped(term)}\fP", _text(text))


def _text(text: str) -> str:
    """A paragraph; no line of it begins with a control character of roff."""
    line = _escaped(" ".join(text.split()))
    return rf"\&{line}" if line.startswith((".", "'")) else line


def _escaped(text: str) -> str:
    """Text in which roff finds no requests, and hyphens can be copied (groff_char(7))."""
    plain = text.replace("\u00a0", " ").replace("\\", r"\e").replace("-", r"\-")
    return (
        plain.replace("'", r"\(aq")
        .replace("`", r"\(ga")
        .replace("…", "...")
        .replace("^", r"\(ha")
        .replace("~", r"\(ti")
    )


def main() -> None:
    """Write the pages into the directory that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("name the directory: python -m serve_asgi.cli.man_pages DIRECTORY")
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main()
