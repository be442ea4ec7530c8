"""What one generation runs on: directories, interpreter and environment, resolved once, when the generation begins.

A reload resolves them again, since a link such as `current -> releases/42` may point elsewhere by then; a replacement
within a generation uses what its generation has resolved. Nothing here changes the listener's own directory or
environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from serve_asgi.config import code_places
from serve_asgi.config import env_file as environment_file
from serve_asgi.config.application_name import import_directory
from serve_asgi.config.options import SECRET_VARIABLES, Config
from serve_asgi.config.values import read_static
from serve_asgi.errors import UsageError

PRIVATE_VARIABLES = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"),
    *SECRET_VARIABLES,
)
"""What is meant for the listener alone: from the service manager (sd_notify(3), sd_listen_fds(3)), and passwords."""
_FLAGS: Final = re.compile(r"-(?!$)([A-VY-Zabd-ln-z?]*)(?:([WXcm])(.*))?", re.DOTALL)
"""A word of the interpreter's options: some that stand alone, then perhaps one that takes the rest or the next word.

-c and -m are the last (docs.python.org, "Command line and environment").
"""

_COMMIT: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION: Final = re.compile(r"[\w.+/-]{1,100}", re.ASCII)
_LONGEST_LINE: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """Everything that a worker process needs to start."""

    python: str
    directory: str
    """Working directory, links resolved."""
    app_dir: str
    """First entry of the import path, links resolved."""
    environment: dict[str, str]
    commit: str = ""
    """What is checked out in `code`, if that can be told (`commit_of`)."""
    static: list[str] = dataclasses.field(default_factory=list)
    """The rules of --static, the links in their directories resolved."""
    code: str = ""
    """The directory with the application's code, links resolved (`code_places.code_directory`)."""
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    """The paths by which all this was found, and where each leads (`code_places.places`)."""

    def resolved(self, config: Config) -> Config:
        """`config` as the processes of this release get it."""
        return dataclasses.replace(config, static=tuple(self.static)) if self.static else config


def logical_directory() -> str:
    """The working directory by the name under which it was entered (`$PWD`), with unresolved links.

    Raises UsageError if it no longer exists.
    """
    name = os.environ.get("PWD", "")
    try:
        if os.path.isabs(name) and Path(name).samefile("."):
            return name
        return str(Path.cwd())
    except OSError:
        raise UsageError("the working directory does not exist any more; change to one that does") from None


def _started_through() -> str:
    """The interpreter by the name under which the server was started, with unresolved links.

    `current/.venv/bin/serve` names the interpreter next to it, whatever its first line says: pip writes the path there
    that the environment had when it was made, which is that of one release. In an environment it is called `python`,
    though the first line may say `python3.11`: the next release may have another one.
    """
    directory, own = os.path.split(sys.executable)
    for place in _named_places():
        with contextlib.suppress(OSError, UsageError):
            path = os.path.join(logical_directory(), place)
            if os.path.samefile(path, directory):
                directory = path
                break
    general = os.path.join(directory, "python")
    with contextlib.suppress(OSError):
        if sys.prefix != sys.base_prefix and os.path.samefile(general, sys.executable):
            return general
    return os.path.join(directory, own)


def _named_places() -> Iterator[str]:
    """The directories of the program's names: the script's, those of its link targets, the interpreter's."""
    script = sys.argv[0]
    while os.sep in script:
        place = os.path.dirname(script)
        yield place
        script = os.path.join(place, os.readlink(script)) if os.path.islink(script) else ""
    if os.sep in sys.orig_argv[0]:
        yield os.path.dirname(sys.orig_argv[0])


STARTED_THROUGH: Final = _started_through()
"""Determined at the start: the link may point elsewhere later, as it is meant to."""


def _began() -> float:
    """When this process was started (proc(5), field 22), whatever programs it has executed since."""
    if sys.platform != "linux":
        return time.time()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


BEGAN: Final = _began()
"""Unix time at which the listener was started: files that have changed since are newer than the server."""


def program() -> str:
    """The interpreter that the listener would be started with now, by a name that also leads to later releases.

    Raises UsageError if it cannot be run.
    """
    _interpreter(STARTED_THROUGH, "/")
    return STARTED_THROUGH


def interpreter_flags(original: Sequence[str]) -> list[str]:
    """The interpreter's own options (`-O`, `-X dev`, `-W error`), from `sys.orig_argv`.

    What follows it is the program, `-m serve_asgi`, a script or `-c`, and the program's own arguments. `-P` is left
    out, since it is determined again.
    """
    flags: list[str] = []
    rest = iter(original[1:])
    for told in rest:
        if told == "--check-hash-based-pycs":
            flags += [told, next(rest, "")]
            continue
        if (read := _FLAGS.fullmatch(told)) is None:
            break
        alone, taker, value = read.groups("")
        runs = taker in ("c", "m")
        if word := alone.replace("P", "") + ("" if runs else taker + value):
            flags.append(f"-{word}")
        if runs:
            break
        if taker and not value:
            flags.append(next(rest, ""))
    return flags


def own_program() -> str:
    """The interpreter for the listener's helper processes: its own, or the current release's if that is deleted."""
    return sys.executable if os.access(sys.executable, os.X_OK, effective_ids=True) else STARTED_THROUGH


def resolve(config: Config, start_directory: str, file: str = "") -> Release:
    """Resolve what `config`, read from `file` ("": none), names, relative to `start_directory`.

    Raises UsageError for a directory, interpreter or environment file that does not exist.
    """
    directory = _directory(os.path.join(start_directory, config.chdir), "--chdir")
    app_dir = _directory(os.path.join(directory, config.app_dir), "--app-dir")
    if not config.app_dir:
        app_dir = import_directory(app_dir, config.app)
    environment = {name: text for name, text in os.environ.items() if name not in PRIVATE_VARIABLES}
    environment["PWD"] = directory
    if config.env_file:
        environment |= environment_file.variables(os.path.join(start_directory, config.env_file))
    if config.environment:
        environment["SERVE_ENVIRONMENT"] = config.environment
    python = _interpreter(config.python, start_directory)
    static = [
        f"{prefix}/={os.path.realpath(os.path.join(directory, d))}" for prefix, d in map(read_static, config.static)
    ]
    through = _found_interpreter(config.python)
    places = code_places.places(config, start_directory, environment, through, file)
    if environment.get(code_places.PYTHONPATH):
        environment[code_places.PYTHONPATH] = code_places.resolved_pythonpath(environment, directory)
    code = code_places.code_directory(config, directory, app_dir, environment.get(code_places.PYTHONPATH, ""))
    return Release(python, directory, app_dir, environment, commit_of(code), static, code, places)


def commit_of(directory: str) -> str:
    """The commit that is checked out in `directory`, read from git's own files (gitrepository-layout(5)), or what a
    file REVISION says, as deploy tools write it, there or in the nearest directory above; "" if neither is there."""
    here = directory
    found = os.path.join(here, ".git")
    while (told := _revision(here)) is None and not os.path.exists(found):
        if (above := os.path.dirname(here)) == here:
            return ""
        here, found = above, os.path.join(above, ".git")
    if told is not None:
        return told
    with contextlib.suppress(OSError):
        if os.path.isfile(found):  # of a worktree or a submodule: "gitdir: PATH"
            found = os.path.join(here, _first_line(found).removeprefix("gitdir:").strip())
        head = _first_line(os.path.join(found, "HEAD"))
        if head.startswith("ref:"):
            head = _commit_of_branch(found, head.removeprefix("ref:").strip())
        return head if _COMMIT.fullmatch(head) else ""
    return ""


def _revision(directory: str) -> str | None:
    """What the file REVISION says in the directory, "" if that is nothing usable; None if there is none."""
    with contextlib.suppress(OSError):
        told = _first_line(os.path.join(directory, "REVISION"))
        return told if _REVISION.fullmatch(told) else ""
    return None


def _commit_of_branch(repository: str, branch: str) -> str:
    """What a branch points to. Raises OSError if that cannot be read."""
    with contextlib.suppress(OSError):  # a worktree shares the branches of another repository
        repository = os.path.join(repository, _first_line(os.path.join(repository, "commondir")))
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return _first_line(os.path.join(repository, branch))
    with open(os.path.join(repository, "packed-refs"), encoding="utf-8", errors="replace") as packed:
        return next((line.split()[0] for line in packed if line.rstrip("\n").endswith(f" {branch}")), "")


def _first_line(path: str) -> str:
    """Raises OSError if the file cannot be read."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline(_LONGEST_LINE).strip()


def _directory(path: str, option: str) -> str:
    resolved = os.path.realpath(path)
    if not os.path.isdir(resolved):
        raise UsageError(f"{path} is not a directory; give {option} one that exists")
    return resolved


def _interpreter(python: str, start_directory: str) -> str:
    """`python`, or the listener's interpreter, with its directory resolved.

    The file itself is not resolved, since it is a link in a virtual environment.
    """
    found = _found_interpreter(python)
    path = os.path.join(start_directory, found)
    if not found or not os.access(path, os.X_OK, effective_ids=True):
        raise UsageError(f"the interpreter {python or STARTED_THROUGH} cannot be run; give --python one that exists")
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _found_interpreter(python: str) -> str:
    """`python`, or the listener's interpreter, links and all; "" if PATH does not have it."""
    python = python or STARTED_THROUGH
    return python if os.sep in python else shutil.which(python) or ""
