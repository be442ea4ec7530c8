"""Finds the rows of an option, a setting or a value of another server, and says in a sentence what to write here."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from serve_asgi.config.options import flag, kind, options
from serve_asgi.config.other_servers.counterpart import FALSE, NOT_NEEDED, Counterpart, Written, on_command_line
from serve_asgi.config.other_servers.option_table import OPTIONS
from serve_asgi.config.other_servers.setting_table import SETTINGS

SERVERS: Final = ("uvicorn", "gunicorn", "granian", "hypercorn", "h2corn")
PREFIXES: Final = {"UVICORN_": "uvicorn", "GRANIAN_": "granian", "H2CORN_": "h2corn"}
"""Of the variables that set other servers' options; gunicorn has GUNICORN_CMD_ARGS alone."""


@functools.cache
def named(name: str) -> tuple[Counterpart, ...]:
    """The rows of an option as spelled on the command line: `--timeout`, `-t`."""
    return tuple(row for row in OPTIONS if name in row.names)


@functools.cache
def settings(server: str) -> Mapping[str, Counterpart]:
    """The rows of one server by the names that its settings have in files and variables: `timeout`, `raw_env`."""
    return {
        name: row
        for row in (*OPTIONS, *SETTINGS)
        if server in row.servers
        for name in row.settings
        if not (name.startswith("no_") and row.is_flag)
    }


def set_by(name: str) -> tuple[Counterpart, ...]:
    """The rows of a setting of any server: `timeout`, `raw_env`."""
    return tuple(row for row in (*OPTIONS, *SETTINGS) if name in row.settings)


def sentence(
    spelled: str,
    found: Sequence[Counterpart],
    value: str | None,
    write: Callable[[Written], str] = on_command_line,
) -> str:
    """What to write instead of an option of other servers; for each of them if they mean different things by it."""
    said: dict[str, list[str]] = {}
    for row in found:
        said.setdefault(_said(row, value, write), []).extend(row.servers)
    if len(said) == 1:
        return f"{spelled} is {next(iter(said))}"
    return "; ".join(f"{spelled} of {' and '.join(servers)} is {text}" for text, servers in said.items())


def _said(row: Counterpart, value: str | None, write: Callable[[Written], str]) -> str:
    case = row.of(value)
    pairs = row.shown(value)
    if not pairs:
        if row.is_flag and (value or "").lower() in FALSE:
            return NOT_NEEDED + "it is off"
        return case.why or NOT_NEEDED + "it is so without it"
    return f"{write(pairs)} here" + (f" ({case.why})" if case.why else "")


def about_value(name: str, value: str) -> str:
    """The same for a value that an option of ours, by its field name, does not have; "" if none is known."""
    for row in named(flag(name)):
        case = row.of(value)
        if case is not row:
            return _said(row, value, on_command_line)
    return ""


def about_flag(arguments: Sequence[str]) -> str:
    """The same where a flag of ours is followed by a value that another server's has: `--proxy-protocol v2`."""
    for said, value in itertools.pairwise(arguments):
        name = said.removeprefix("--").replace("-", "_")
        if said.startswith("--") and name in options() and kind(name) is bool and (text := about_value(name, value)):
            return f"{said} {value} is {text}"
    return ""
