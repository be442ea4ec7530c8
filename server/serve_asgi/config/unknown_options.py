"""Options that this server does not have: those of other servers, and misspelt environment variables.

Options of other servers are neither ignored nor guessed: the error says what to write instead.

A wrong key of the configuration file is an error, since the file is only for this server. The environment is shared: an
application may have variables of its own that begin with SERVE_, and Kubernetes sets some in every pod if there is a
service called `serve` or `serve-…`. So only a name that is similar to one of ours is reported, and only as a warning.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Final

from serve_asgi.config.options import ENV_PREFIX, environment_names, flag, flag_off, kind, options
from serve_asgi.config.other_servers.counterpart import in_environment, in_file
from serve_asgi.config.other_servers.lookup import PREFIXES, named, sentence, set_by, settings


def of_another_server(option: str, value: str | None = None) -> str:
    """The error for an option of another server as spelled on the command line; "" if none is known.

    `value` is the text that it was given, None if that is not known.
    """
    found = named(option)
    return sentence(option, found, value) if found else ""


def all_of_other_servers(arguments: Sequence[str], first: str) -> str:
    """The same for `first` and every other option in these arguments that is not ours, so that each is told at once."""
    said: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        following = arguments[number + 1] if number + 1 < len(arguments) else ""
        if argument.startswith("-") and not argument.startswith("--"):
            option, equals, value = argument[:2], argument[2:], argument[2:]
        found = named(option)
        if not found or option in said or option in spellings():
            continue
        alone = all(row.is_flag for row in found) or (
            not equals and (not following or (following.startswith("-") and following != "-"))
        )
        said[option] = sentence(option, found, None if alone else value if equals else following)
    return "; ".join(said.values()) if first in said else of_another_server(first)


@functools.cache
def spellings() -> frozenset[str]:
    """Every spelling of our own options on the command line."""
    return frozenset(
        each
        for name, (_, defined) in options().items()
        for each in (flag(name), flag_off(name) if kind(name) is bool else "", defined.short, defined.former)
    )


def key_of_another_server(written: str, value: object = None) -> str:
    """The same for a key of a configuration file, without leading dashes, and its value as parsed by TOML."""
    found = named("--" + written.replace("_", "-")) or set_by(written.replace("-", "_"))
    if not found:
        return ""
    said = sentence(written, found, None if isinstance(value, (list, dict)) else text_of(value), in_file)
    return re.sub(r"(?<![\w-])--(?=[a-z])", "", said)


def text_of(value: object) -> str | None:
    """A value of a file as the command line would have it; None if there is none."""
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


OTHERS: Final = (
    *("SERVE_APP", "SERVE_CONTROL", "SERVE_EVENT", "SERVE_LISTENER_PID", "SERVE_RE_EXEC"),
    *("SERVE_ASGI_COMPILE", "SERVE_ASGI_PURE_PYTHON"),
)
"""Variables of ours that are not options: the application, those for hooks, for a re-exec and for the compiled core."""
NEAR: Final = 0.75
"""The similarity (`difflib`, 0 to 1) from which on a name is considered a misspelling of another."""
_OF_KUBERNETES: Final = re.compile(r".*_(?:SERVICE_HOST|SERVICE_PORT(?:_.*)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_.*)?)")


GENERIC: Final = frozenset({"debug", "env", "header", "log", "metrics", "name", "protocol", "ssl", "tls", "ws"})
"""Options of other servers of whose names an application may well have variables of its own: SERVE_ENV."""


def told_of(environ: Mapping[str, str]) -> list[str]:
    """A sentence about each variable of `environ` that does nothing and was probably meant for this server."""
    meant = misspelt(environ)
    told = []
    for name in sorted(environ):
        if said := _variable_of_another_server(name, environ[name].strip()):
            told.append(f"the environment variable {name} does nothing: {said}")
        elif name in meant:
            told.append(f"the environment variable {name} does nothing: did you mean {meant[name]}?")
    return told


def _variable_of_another_server(name: str, value: str) -> str:
    """What to write instead of a variable that another server would read, or that has an option of its in our style."""
    if name == "GUNICORN_CMD_ARGS" and value:
        return "`serve import-config -- gunicorn $GUNICORN_CMD_ARGS` makes serve.toml of it"
    prefix, underscore, rest = name.partition("_")
    setting = rest.lower()
    if not value or value.startswith(("tcp://", "udp://", "sctp://")):  # those that Kubernetes sets for a service
        return ""
    if prefix + underscore == ENV_PREFIX and setting not in options() and setting not in GENERIC:
        found = named("--" + setting.replace("_", "-")) or set_by(setting)
    else:
        row = settings(PREFIXES[prefix + underscore]).get(setting) if prefix + underscore in PREFIXES else None
        found = (row,) if row is not None else ()
    return sentence(name, found, value, in_environment) if found else ""


def misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that do nothing, and the names that were probably meant."""
    known = {name for option, (_, defined) in options().items() for name in environment_names(option, defined)}
    known |= set(OTHERS)
    meant = {}
    for name in sorted(environ):
        ours = name.upper().startswith(ENV_PREFIX) and name not in known and not name.startswith("SERVE_EVENT_")
        if not ours or environ[name].startswith(("tcp://", "udp://", "sctp://")) or _OF_KUBERNETES.fullmatch(name):
            continue
        wanted = {each.removeprefix(ENV_PREFIX): each for each in known if each.startswith(ENV_PREFIX)}
        rest = re.sub(r"[^A-Z]", "_", name.upper().removeprefix(ENV_PREFIX))
        if near := difflib.get_close_matches(rest, sorted(wanted), 1, NEAR):
            meant[name] = wanted[near[0]]
    return meant
