"""The file of --env-file: NAME=value lines for the environment of the application, read by python-dotenv's parser.

A line that cannot be parsed is an error: if it were skipped, as that library does, the application would start without
its database's address, or with another one. No error repeats a value, since values may be secrets.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from dotenv.parser import Binding, parse_stream
from dotenv.variables import Variable, parse_variables

from serve_asgi.config.config_file import read_small
from serve_asgi.errors import UsageError

LONGEST: Final = 128 * 1024
"""Most bytes of one variable, including its name (execve(2), MAX_ARG_STRLEN)."""
_NAME: Final = re.compile(r"[^\W\d][\w.-]*")
_HOW: Final = "write NAME=value"


def variables(path: str) -> dict[str, str]:
    """The variables that the file sets; the last line of a name wins. Raises UsageError with the line at fault."""
    try:
        text = read_small(path)
    except OSError as error:
        raise UsageError(f"the environment file {path} cannot be read: {error.strerror}; correct --env-file") from None
    except UnicodeDecodeError:
        raise UsageError(f"the environment file {path} cannot be read: it is not UTF-8; correct it") from None
    found: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.key is None and not binding.error:
            continue  # a comment, or empty lines at the end
        try:
            name, value = _read(binding)
            found[name] = "".join(_resolved(name, value, found))
            _check_length(name, found[name])
        except ValueError as error:
            raise UsageError(f"the environment file {path}:{_line(binding)}: {error}") from None
    return found


def _read(binding: Binding) -> tuple[str, str]:
    """Name and value of a statement. Raises ValueError with a sentence."""
    name, value = binding.key, binding.value
    if binding.error or name is None:
        raise ValueError(_why_not(binding.original.string.strip()))
    if value is None:
        raise ValueError(f"there is no equals sign: {_HOW}, or NAME= for an empty value")
    if "\0" in name or "\0" in value:
        raise ValueError("there is a NUL character, which no variable may hold: take it out")
    if not _NAME.fullmatch(name):
        raise ValueError(f"what stands before the equals sign is not a name: {_HOW}, and # in front of a comment")
    return name, value


def _why_not(written: str) -> str:
    """Why the parser could not read a statement."""
    before, equals, value = written.partition("=")
    name = before.strip().removeprefix("export").strip()
    if not equals:
        return f"this is not a variable: {_HOW}"
    if not _NAME.fullmatch(name):
        return f"there is no name before the equals sign, or more than one: {_HOW}"
    if (quote := value.strip()[:1]) in ("'", '"'):
        return (
            f"the value of {name} begins with a quote {quote} that is not closed, or has something behind the closing "
            f"one: close it at the end, and write one inside as \\{quote}"
        )
    return f"this cannot be read: {_HOW}"


def _resolved(name: str, value: str, before: Mapping[str, str]) -> Iterator[str]:
    """The value, with ${OTHER} replaced. Raises ValueError if that is not set."""
    known = {**os.environ, **before}
    for atom in parse_variables(value):
        if isinstance(atom, Variable) and atom.default is None and atom.name not in known:
            raise ValueError(
                f"the value of {name} takes in a variable, by ${{…}}, that is set neither above nor in the server's "
                "environment: set it, or write ${…:-} if it may be missing"
            )
        yield atom.resolve(known)


def _check_length(name: str, value: str) -> None:
    if len(os.fsencode(f"{name}={value}")) >= LONGEST:
        raise ValueError(f"{name} is longer than {LONGEST >> 10} KiB, the most that a process can be given")


def _line(binding: Binding) -> int:
    """The line at which the statement itself begins: the parser includes empty lines before it."""
    written = binding.original.string
    blank = written[: len(written) - len(written.lstrip())]
    return int(binding.original.line) + len(re.findall(r"\r\n|\n|\r", blank))
