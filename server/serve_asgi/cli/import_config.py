"""`serve import-config`: prints the serve.toml that corresponds to another server's configuration or command line.

It reads the files: gunicorn's and hypercorn's Python, which it executes as they do, and TOML; and it splits command
lines by the known options. What each setting is called here is up to `serve_asgi.config.other_servers`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import shlex
import sys
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

import click

from serve_asgi.cli.command import CONTEXT, complain, counted, show
from serve_asgi.config.config_file import read_small
from serve_asgi.config.other_servers.lookup import SERVERS, named, settings
from serve_asgi.config.other_servers.setting_table import GUNICORN_HOOKS
from serve_asgi.config.other_servers.translation import APPLICATIONS, Told, serve_toml
from serve_asgi.errors import StartError, UsageError

PYTHON: Final = ("gunicorn", "hypercorn")
TOML: Final = ("hypercorn", "h2corn")
"""The servers that read such files."""
LONGEST: Final = 80
"""Most characters of an expression that are repeated."""


def import_config(words: tuple[str, ...], server: str | None) -> int:
    """Print the serve.toml for another server's configuration.

    FILE is gunicorn.conf.py or another one of gunicorn, hypercorn or h2corn, COMMAND LINE is one of theirs, of uvicorn
    or of granian: serve import-config -- uvicorn app:app --workers 4. A Python file is executed, as its server does, so
    use the Python that has the packages it imports. What has no counterpart is printed as a comment with the reason.
    """
    if not words:
        raise UsageError("which file, or which command line? For example: serve import-config gunicorn.conf.py")
    server_of_line, rest = _command_line(words)
    if server_of_line:
        if server not in (None, server_of_line):
            raise UsageError(f"the command line is that of {server_of_line}, and --from says {server}: leave it out")
        server, told = server_of_line, _told_by_line(server_of_line, rest)
        head = f"Made by `serve import-config` of a command line of {server}."
    elif len(words) > 1:
        raise UsageError(f"{words[0]!r} is no command of {', '.join(SERVERS[:-1])} or {SERVERS[-1]}: name one file")
    else:
        server, told = _told_by_file(words[0], server)
        head = f"Made by `serve import-config` of {server}'s {os.path.basename(words[0])}."
    text, comments = serve_toml(server, told, head)
    show(text.rstrip("\n"))
    if comments:
        complain(f"{counted(comments, 'setting')} cannot be taken over as written: see the comments")
    return 0


# Command lines


def _command_line(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The server whose command line this is, and its arguments; "" if it is none."""
    rest = list(words)
    if len(rest) == 1 and " " in rest[0] and not os.path.exists(rest[0]):  # in quotes, as one copies it from a unit
        with contextlib.suppress(ValueError):
            rest = shlex.split(rest[0])
    while (rest and os.path.basename(rest[0]).rstrip("0123456789.") in ("python", "exec", "env")) or rest[:1] == ["-m"]:
        del rest[0]
    name = os.path.basename(rest[0]) if rest else ""
    if name == "fastapi" and rest[1:2] in (["dev"], ["run"]):
        return "uvicorn", _of_fastapi(rest[1], rest[2:])
    return (name, rest[1:]) if name in SERVERS and not os.path.isfile(name) else ("", [])


def _of_fastapi(command: str, arguments: Sequence[str]) -> list[str]:
    """What `fastapi dev` and `fastapi run` call uvicorn with (FastAPI CLI): they differ in their defaults."""
    path, attribute, rest = "main.py", "app", []
    words = iter(arguments)
    for word in words:
        if word in ("--app", "-e", "--entrypoint"):
            attribute = next(words, "app")
        elif word.endswith(".py"):
            path = word
        else:
            rest.append(word)
    module = os.path.normpath(path).removesuffix(".py").replace(os.sep, ".")
    app = attribute if ":" in attribute else f"{module}:{attribute}"
    return [app, *(["--reload"] if command == "dev" else ["--host", "0.0.0.0"]), *rest]


def _told_by_line(server: str, arguments: Sequence[str]) -> list[Told]:
    """The settings of a command line; those of the file that it names come first. Raises UsageError."""
    given: dict[str, Told] = {}
    file: list[Told] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            given["app"] = Told("app", (word,))
            continue
        option, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2:
            option, equals, value = word[:2], "=", word[2:].removeprefix("=")
        row = next((row for row in named(option) if server in row.servers), None)
        if row is None:
            raise UsageError(f"{server} has no option {option} that is known here: leave it out")
        if not row.is_flag and not equals:
            if not rest:
                raise UsageError(f"{option} is the last word, and {server}'s takes a value: add it")
            value = rest.pop(0)
        if option in ("-c", "--config"):
            _, file = _told_by_file(value, server)
            continue
        name = option[2:].replace("-", "_") if option.startswith("--") else row.settings[0]
        before = given[name].values if name in given else ()
        given[name] = Told(name, (*before, None if row.is_flag else value), row=row)
    names = {name for told in given.values() for name in (told.name, *(told.row.settings if told.row else ()))}
    return [*(each for each in file if each.name not in names), *given.values()]


# Files


def _told_by_file(path: str, server: str | None) -> tuple[str, list[Told]]:
    """The server and the settings of its file. Raises UsageError, or StartError where its code fails."""
    where = path.removeprefix("file:")
    if where.endswith(".toml"):
        values, expressions = _toml(where), {}
        server = server or _likeliest(values, TOML)
    else:
        values, expressions = vars(_executed(path)), _expressions(where)
        server = server or _likeliest(values, PYTHON)
    known = {*settings(server), *APPLICATIONS.get(server, ()), *(GUNICORN_HOOKS if server == "gunicorn" else ())}
    told = [
        Told(name, tuple(_texts(name, value)), _names(value) if name == "raw_env" else expressions.get(name, ""))
        for name, value in values.items()
        if name in known and value is not None
    ]
    if not told:
        raise UsageError(
            f"{path} sets nothing that {server} knows: name its file, and say --from SERVER if it is another"
        )
    return server, told


def _likeliest(values: Mapping[str, object], servers: Sequence[str]) -> str:
    """The one of these servers that knows most of the settings."""
    return max(servers, key=lambda server: len(values.keys() & settings(server).keys()))


def _toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_small(path))
    except OSError as error:
        raise UsageError(f"the file {path} cannot be read: {error.strerror}; name another one") from None
    except ValueError as error:
        raise UsageError(f"the file {path} is not valid TOML: {error}; correct it") from None


def _executed(path: str) -> ModuleType:
    """The module of a Python file, named as gunicorn does, or of `python:MODULE`; what it prints is on stderr.

    Raises UsageError where there is no such file, StartError where its code fails.
    """
    sys.path.insert(0, os.getcwd())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if path.startswith("python:"):
                return importlib.import_module(path.removeprefix("python:"))
            where = path.removeprefix("file:")
            if not os.path.isfile(where):
                raise UsageError(f"there is no file {where}: name gunicorn.conf.py, or a command line after --")
            loader = importlib.machinery.SourceFileLoader("__config__", where)
            spec = importlib.util.spec_from_loader("__config__", loader, origin=where)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            module.__file__ = where
            sys.modules["__config__"] = module
            sys.dont_write_bytecode = True
            loader.exec_module(module)
            return module
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise StartError(
            f"{path} could not be executed: {type(error).__name__}: {error}; it is Python, so use the `serve` that is "
            "installed beside the packages that it imports",
            _traceback(error, path),
        ) from error


def _traceback(error: BaseException, path: str) -> str:
    """From the file's own frame on."""
    frame = error.__traceback__
    while frame is not None and not path.endswith(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return "".join(traceback.format_exception(error.with_traceback(frame)))


def _expressions(path: str) -> dict[str, str]:
    """A note for each name that the file computes, as against those that it writes down."""
    try:
        tree = ast.parse(read_small(path))
    except (OSError, ValueError, SyntaxError):
        return {}
    found = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and not _is_literal(statement.value):
            written = " ".join(ast.unparse(statement.value).split())
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found[target.id] = f"computed: {written if len(written) <= LONGEST else written[:LONGEST] + '…'}"
    return found


def _names(variables: object) -> str:
    """A note on variables without their values, which may be secrets."""
    lines = variables if isinstance(variables, (list, tuple)) else [variables]
    return "of " + ", ".join(str(line).partition("=")[0] for line in lines)


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _texts(name: str, value: object) -> Iterator[str | None]:
    """A value of a file as the command line would have it, one for each of several."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(name, each)
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, str) and name in ("bind", "insecure_bind"):
        yield from (each.strip() for each in value.split(","))
    elif isinstance(value, (str, int, float)):
        yield str(value)
    else:
        yield None


COMMANDS: Final = {
    "import-config": click.Command(
        "import-config",
        callback=import_config,
        help=import_config.__doc__,
        params=[
            click.Option(
                ["--from", "server"],
                type=click.Choice(SERVERS),
                default=None,
                metavar="SERVER",
                help="The server whose file it is, where its settings do not tell.",
            ),
            click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, metavar="FILE | -- COMMAND LINE"),
        ],
        context_settings={**CONTEXT, "allow_interspersed_args": False},
    )
}
