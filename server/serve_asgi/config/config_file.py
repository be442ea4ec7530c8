"""The configuration file: where it is searched, how it is read, and the error for each mistake in it.

It is the file that --config names, else serve.toml, else the table [tool.serve] of pyproject.toml, in the directory
that the server was started in, by the name under which it was entered: links are resolved again each time, so that a
release directory behind a link brings its own file. It knows names and places; values are checked by
`serve_asgi.config.values`.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import os
import re
import stat
import sys
import tomllib
from typing import Any, Final

from serve_asgi.config.options import flag_off, key, kind, options
from serve_asgi.config.unknown_options import key_of_another_server
from serve_asgi.config.values import Source, SourcePriority
from serve_asgi.errors import UsageError

OWN: Final = "serve.toml"
PROJECT: Final = "pyproject.toml"
TABLE: Final = "[tool.serve]"
OTHERS: Final = frozenset({"serve-asgi", "serve_asgi"})
"""Names of tables that can only be meant for this server."""
HOOKS: Final = "hooks"
"""The table [hooks], which may replace the option `hook`."""
LARGEST: Final = 1 << 20
"""Most bytes of a file; one written by hand is smaller."""
APP: Final = "app"
"""The key that names the application."""
_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\[\]]*?)\s*\]\]?\s*(?:#.*)?$")


@dataclasses.dataclass(frozen=True, slots=True)
class FileEntry:
    """One value of the file, as parsed by TOML."""

    value: object
    source: Source


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigFile:
    """The contents of one file; entries by field name."""

    path: str
    entries: dict[str, FileEntry]


def load(named: str, directory: str) -> ConfigFile | None:
    """Read the file `named` (from --config), or the one in `directory`; None if there is none.

    Raises UsageError, which names file, line and key.
    """
    if named:
        path = os.path.join(directory, named)
        table = _read(path)
        if table is None:
            raise UsageError(f"the file {path} has no table {TABLE}: add it, or give --config another file")
        return _entries(path, table)
    for name in (OWN, PROJECT):
        path = os.path.join(directory, name)
        if os.path.lexists(path) and (table := _read(path)) is not None:
            return _entries(path, table)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    values: dict[str, Any]
    text: str
    in_project: bool

    def line(self, name: str) -> int:
        """The line of a key or a table; 0 if it cannot be found without a parser."""
        own = f"{TABLE[1:-1]}." if self.in_project else ""
        inside = not self.in_project
        wanted = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*[=.]""")
        for number, line in enumerate(self.text.split("\n"), start=1):
            header = _HEADER.match(line)
            if header is not None:
                title = header[1].replace(" ", "")
                if f"{title}.".startswith(f"{own}{name}."):
                    return number
                inside = self.in_project and f"{title}." == own
            elif inside and wanted.match(line):
                return number
        return 0


def _read(path: str) -> _Table | None:
    """The table of options in the file; None for a pyproject.toml without one."""
    try:
        text = read_small(path)
        content = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"the configuration file {path} cannot be read: it is not UTF-8") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or a number with thousands of digits
        told = str(error)
        if path.endswith(".py"):
            raise UsageError(
                f"the configuration file {path} is Python: `serve import-config {os.path.basename(path)} > serve.toml` "
                "makes TOML of gunicorn's or hypercorn's"
            ) from None
        raise UsageError(
            f"the configuration file {path} is not valid TOML: {told[:1].lower()}{told[1:]}; correct it"
        ) from None
    if os.path.basename(path) != PROJECT:
        if "tool" in content:
            raise UsageError(f"{path}: options stand at the top here, without {TABLE}, which is for {PROJECT}")
        return _Table(content, text, in_project=False)
    tool = content.get("tool")
    table = tool.get("serve") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.serve is not a table: write {TABLE} and the options below it")
    if table is None and isinstance(tool, dict) and (near := OTHERS & tool.keys()):
        raise UsageError(f"{path}: the table is called {TABLE}, not [tool.{min(near)}]")
    return None if table is None else _Table(table, text, in_project=True)


def _entries(path: str, table: _Table) -> ConfigFile:
    entries: dict[str, FileEntry] = {}
    for written, value in table.values.items():
        source = Source(SourcePriority.FILE, written, path, table.line(written))
        name = written.replace("-", "_")
        if name == HOOKS and isinstance(value, dict):
            name, value = "hook", _hooks(value, source)
        if name == "config":
            raise UsageError(f"{source.place}: a file cannot name the file to read; use --config or SERVE_CONFIG")
        if name != APP and name not in options():
            raise UsageError(_unknown(written, name, value, source))
        if name in entries:
            raise UsageError(f"{source.place}: {written} and {entries[name].source.name} are the same; leave one out")
        entries[name] = FileEntry(value, source)
    return ConfigFile(path, entries)


def _hooks(table: dict[str, Any], source: Source) -> list[object]:
    """The values of --hook that correspond to a table of hooks: `post_reload = "command"`, or an array of several."""
    found: list[object] = []
    for event, value in table.items():
        for command in value if isinstance(value, list) else [value]:
            if not isinstance(command, str):
                raise UsageError(f'{source.place}: the hook {event} is not text; write {event} = "command"')
            found.append(f"{event}={command}")
    return found


def _unknown(written: str, name: str, value: object, source: Source) -> str:
    """The error for a key that is not an option."""
    for other, (_, defined) in options().items():
        if kind(other) is bool and "--" + key(name) in (flag_off(other), defined.former):
            return f"{source.place}: {written} is written {key(other)} = false here"
    if told := key_of_another_server(written, value):
        return f"{source.place}: {told}"
    near = difflib.get_close_matches(key(name).lower(), [APP, *map(key, options())], 1)
    if near:
        return f"{source.place}: there is no option {written!r}: did you mean {near[0]!r}?"
    if isinstance(value, dict):
        return f"{source.place}: there is no table {written!r}: all options stand in one table, as `serve --help` names"
    return f"{source.place}: there is no option {written!r}: `serve --help` lists all of them"


def read_small(path: str) -> str:
    """The text of a file, UTF-8 with or without a byte order mark. Raises OSError or UnicodeDecodeError.

    Whatever the file is, reading it neither blocks nor exhausts memory: the listener reads it at a reload.
    """
    return read_small_bytes(path).decode("utf-8-sig")


def read_small_bytes(path: str, most: int = LARGEST) -> bytes:
    """The same of a file that is no text, and has `most` bytes. Raises OSError."""
    if sys.platform == "win32":
        flags = os.O_RDONLY | os.O_BINARY
    else:  # O_NONBLOCK for a named pipe, which would block; O_NOCTTY for a terminal
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):  # the content has to be there again at a reload
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    with open(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", path)
    return content
