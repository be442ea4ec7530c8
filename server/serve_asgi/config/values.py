"""Reads one value of an option, and remembers where it was found.

Values come as text (command line, environment) or as TOML (a configuration file); both end as the option's type, and
each error names the place that the value came from. It knows one option at a time; `serve_asgi.config.validation`
checks combinations, and `serve_asgi.config.sources` decides which of several values wins.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import sys
from typing import Any, Final

from serve_asgi.config.options import Option, kind, several
from serve_asgi.errors import UsageError

Given = str | bool | tuple[str, ...]
"""What the command line gives for an option: its text, its texts where it takes several, or a flag."""

TRUE: Final = frozenset({"1", "true", "yes", "on"})
FALSE: Final = frozenset({"0", "false", "no", "off"})
QUOTE: Final = "'"
SHOWN: Final = 100
LARGEST: Final = sys.maxsize
"""What one word of the machine counts to, as the compiled core does."""
"""Characters of a wrong value that are shown."""
UNITS: Final = frozenset({"SECONDS", "BYTES", "MIB"})
IMMUTABLE: Final = b"public, max-age=31536000, immutable"
"""Cache-Control of what never changes under its name: a year is as long as any cache keeps it (RFC 8246)."""
REVALIDATE: Final = b"no-cache"
"""Kept, and asked for before each use whether it is still the same (RFC 9111 5.2.2.4)."""


class SourcePriority(enum.IntEnum):
    """The kinds of places that a value can come from, the winning one first."""

    COMMAND_LINE = 0
    ENVIRONMENT = 1
    """SERVE_<NAME>."""
    PLATFORM = 2
    """A variable that platforms set, such as PORT."""
    FILE = 3
    DEFAULT = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a value was found. As text, the beginning of an error: `--workers`, `/srv/serve.toml:3: workers`."""

    tier: SourcePriority
    name: str
    """Its name there: `--workers`, `SERVE_WORKERS`, `workers`."""
    path: str = ""
    """Of a file."""
    line: int = 0
    """In the file; 0 if unknown."""

    @property
    def place(self) -> str:
        """The file and line, or the option or variable."""
        return f"{self.path}:{self.line}" if self.line else self.path or self.name

    def __str__(self) -> str:
        return f"{self.place}: {self.name}" if self.path else self.name


@dataclasses.dataclass(frozen=True, slots=True)
class FoundValue:
    """A value, and where it was found."""

    value: Any
    source: Source


def from_given(name: str, defined: Option, raw: Given, source: Source) -> FoundValue:
    """Read a value of the command line. Raises UsageError."""
    if isinstance(raw, bool):
        return FoundValue(raw, source)
    if isinstance(raw, tuple):
        return FoundValue(tuple(_from_text(name, defined, _item(text, source), source) for text in raw), source)
    return FoundValue(_from_text(name, defined, raw, source), source)


def from_variable(name: str, defined: Option, text: str, source: Source) -> FoundValue:
    """Read an environment variable; several values are separated by spaces or commas, or by line breaks.

    Raises UsageError. Line breaks are for values that contain spaces.
    """
    between = r"\s*\n\s*" if defined.one_per_line else r"[\s,]+"
    raw: Given = tuple(t for t in re.split(between, text) if t) if several(name) else text
    if raw == ():
        raise UsageError(f"{source} holds separators and no value: leave it out, or write one")
    return from_given(name, defined, raw, source)


def from_toml(name: str, defined: Option, raw: object, source: Source) -> FoundValue:
    """Read a value of a configuration file, which already has a type. Raises UsageError."""
    if several(name):
        items = raw if isinstance(raw, list) else [raw]
        return FoundValue(tuple(_from_toml(name, defined, _item(item, source), source) for item in items), source)
    if defined.separated and isinstance(raw, list):
        return FoundValue(",".join(_from_toml(name, defined, _item(item, source), source) for item in raw), source)
    return FoundValue(_from_toml(name, defined, raw, source), source)


def read_path_time(text: str) -> tuple[str, float]:
    """What `SECONDS` or `/PREFIX=SECONDS` says: the prefix without its last slash ("" for all paths), and the time (s).

    0 stands for no limit, which is infinity here. Raises ValueError, a sentence.
    """
    prefix, equals, number = text.rpartition("=")
    try:
        seconds = float(number)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf or (equals and not prefix.startswith("/")):
        raise ValueError(f"{text!r} is no time: write seconds, as in 30, or a path and seconds, as in /reports=300")
    return prefix.rstrip("/"), seconds or math.inf


def read_static(text: str) -> tuple[str, str]:
    """What `/PREFIX=DIR` says: the prefix without its last slash, and the directory. Raises ValueError, a sentence."""
    prefix, equals, directory = text.partition("=")
    if not equals or not directory or not re.fullmatch(r"/(?:[^/?#\x00-\x20]+/?)*", prefix):
        raise ValueError(f"{text!r} is not PREFIX=DIR: write a path and a directory, as in /static=public")
    return prefix.rstrip("/"), directory


def read_max_age(text: str) -> tuple[str, bytes]:
    """What `SECONDS`, `immutable` or `/PREFIX=…` says: the prefix without its last slash ("" for none), and the value
    of Cache-Control (RFC 9111 5.2.2, RFC 8246). Raises ValueError, a sentence."""
    prefix, equals, age = text.rpartition("=")
    if (equals and not prefix.startswith("/")) or not re.fullmatch(r"\d{1,10}|immutable", age, re.ASCII):
        raise ValueError(
            f"{text!r} is no lifetime: write seconds, as in 60, or immutable, or a path and either, as in "
            "/assets=immutable"
        )
    if age == "immutable":
        return prefix.rstrip("/"), IMMUTABLE
    return prefix.rstrip("/"), b"public, max-age=%d" % int(age) if int(age) else REVALIDATE


def _item(item: Any, source: Source) -> Any:
    """One of several values, which must not be empty. Raises UsageError."""
    if isinstance(item, str) and not item.strip():
        raise UsageError(f"{source} holds an empty value: take it out, or write what was meant")
    return item


def _from_text(name: str, defined: Option, text: str, source: Source) -> Any:
    wanted = kind(name)
    if wanted is bool:
        if text.lower() in TRUE | FALSE:
            return text.lower() in TRUE
        raise UsageError(f"{source}: {_short(repr(text))} is neither true nor false; write 1 or 0")
    if wanted not in (int, float):
        return _text(name, defined, text, source)
    try:
        number = int(text) if wanted is int else float(text)
    except ValueError:
        raise UsageError(f"{source}: {_short(repr(text))} is not {_number(wanted, defined)}") from None
    return _within(defined, number, repr(text), source)


def _from_toml(name: str, defined: Option, raw: object, source: Source) -> Any:
    wanted = kind(name)
    written = _as_toml(raw)
    if isinstance(raw, (list, dict)):
        raise UsageError(f"{source} takes one value, not {'an array' if isinstance(raw, list) else 'a table'}")
    if wanted is bool:
        if isinstance(raw, bool):
            return raw
        raise UsageError(f"{source}: {written} is neither true nor false; write true or false, without quotes")
    if wanted is str:
        if isinstance(raw, bool) and defined.alone:
            raw = written
        if isinstance(raw, (int, float)) and not isinstance(raw, bool) and defined.unit.endswith("SECONDS"):
            raw = written  # without a path: for all of them
        if isinstance(raw, str):
            return _text(name, defined, raw, source)
        raise UsageError(f'{source}: {written} is not text; put it in quotes: "{_example(defined, written)}"')
    if isinstance(raw, str):
        raise UsageError(f"{source}: {written} is text and not {_number(wanted, defined)}; write it without quotes")
    if isinstance(raw, bool) or not isinstance(raw, int if wanted is int else (int, float)):
        raise UsageError(f"{source}: {written} is not {_number(wanted, defined)}")
    try:
        return _within(defined, wanted(raw), written, source)
    except OverflowError:
        raise UsageError(f"{source}: {written} is too large") from None


def _as_toml(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    return _short(f'"{raw}"' if isinstance(raw, str) else str(raw))


def _short(text: str) -> str:
    """A value, on one line and shortened."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def _example(defined: Option, written: str) -> str:
    """What to put in quotes; TOML has already parsed 0o660 as 432."""
    return "0660" if defined.unit == "MODE" else written


def _text(name: str, defined: Option, text: str, source: Source) -> str:
    if defined.alone and text.lower() in TRUE | FALSE and text not in defined.choices:
        text = defined.alone if text.lower() in TRUE else defined.choices[0]
    if defined.choices and text not in defined.choices:
        from serve_asgi.config.other_servers.lookup import about_value  # its table is for mistakes alone

        instead = about_value(name, text)
        raise UsageError(
            f"{source}: {_short(repr(text))} is not one of {', '.join(defined.choices)}"
            + (f": {text} is {instead}" if instead else "")
        )
    if "\0" in text:
        raise UsageError(f"{source} holds a NUL character, which no name or path may")
    return text


def _within(defined: Option, value: int | float, text: str, source: Source) -> int | float:
    """Check a number against its bounds. Raises UsageError."""
    if isinstance(value, int):  # no float has room for every one of them
        most = LARGEST if defined.maximum is None else min(int(defined.maximum), LARGEST)
        if value > most:
            raise UsageError(f"{source}: {_short(text.strip(QUOTE))} is too large; the most is {most}")
        value = max(value, -LARGEST)
    if not math.isfinite(value):
        raise UsageError(f"{source}: {text} is not {_number(type(value), defined)}")
    if defined.minimum is not None and value < defined.minimum:
        raise UsageError(f"{source}: {text.strip(QUOTE)} is too small; the least is {defined.minimum:g}")
    if defined.maximum is not None and value > defined.maximum:
        raise UsageError(f"{source}: {text.strip(QUOTE)} is too large; the most is {defined.maximum:g}")
    return value


def _number(wanted: type, defined: Option) -> str:
    unit = f" of {defined.unit.lower() if defined.unit != 'MIB' else 'MiB'}" if defined.unit in UNITS else ""
    return ("a whole number" if wanted is int else "a number") + unit
