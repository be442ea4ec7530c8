"""Runs a hook that is a callable: `python -m serve_asgi.worker.hook_runner`, with the event as JSON on standard input.

It is a fresh process, as the workers' user, in the directory and with the interpreter of the release. The callable gets
the event as a dict; it may be async. An exception (its traceback is printed) or `return False` is exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import importlib
import inspect
import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.app.loading import parse
from serve_asgi.config.options import Config
from serve_asgi.ipc import forked_children as forks
from serve_asgi.logs.exceptions import is_a
from serve_asgi.logs.tracebacks import application_traceback
from serve_asgi.worker.bootstrap import take_account
from serve_asgi.worker.bytecode import keep_fresh

HOW_NAMED: Final = "; name a callable as module:callable"


class NoSuchCallable(Exception):
    """There is nothing of that name that can be called with an event. The message is a sentence."""


def main() -> int:
    """Run it, or with --check only check that it exists; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="serve_asgi.worker.hook_runner", description="Started by the listener; not by hand."
    )
    parser.add_argument("callable")
    parser.add_argument("--app-dir", default="")
    parser.add_argument("--user", default="")
    parser.add_argument("--group", default="")
    parser.add_argument("--since", type=float, default=time.time())
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    take_account(Config(user=arguments.user, group=arguments.group))
    for stream in (sys.stdout, sys.stderr):  # in order, and not lost if this is killed at its deadline
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.path.insert(0, arguments.app_dir)
    keep_fresh(arguments.since)
    try:
        found = load(arguments.callable)
    except NoSuchCallable as error:
        print(error, file=sys.stderr)
        return 1
    except BaseException as error:  # also SystemExit: a module that exits at import has run nothing
        print(application_traceback(error), file=sys.stderr, end="")
        return 1
    if arguments.check:
        return 0
    try:
        result = found(json.load(sys.stdin))
        if inspect.isawaitable(result):
            forks.begin()
            result = asyncio.run(_wait_for(result))
    except BaseException as error:
        if is_a(error, SystemExit) and _is_success(error):
            return 0
        print(application_traceback(error), file=sys.stderr, end="")
        return 1
    return 1 if result is False else 0


def _is_success(error: BaseException) -> bool:
    """Whether `sys.exit` was called to report success."""
    code = error.args[0] if error.args else None
    return code is None or (type(code) is int and code == 0)


async def _wait_for(result: Any) -> Any:
    forks.claim(asyncio.get_running_loop())
    return await result


def load(text: str) -> Callable[[dict[str, Any]], Any]:
    """Import `module:callable`. Raises NoSuchCallable, and what the import raises."""
    name, path = parse(text)
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise NoSuchCallable(f"there is no module {error.name} in {sys.path[0]}{HOW_NAMED}") from None
    for part in path:
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, [n for n in dir(found) if not n.startswith("_")], 1)
            hint = f"; did you mean {near[0]}?" if near else HOW_NAMED
            raise NoSuchCallable(f"{name} has no {part}{hint}") from None
    if not callable(found):
        raise NoSuchCallable(f"{text} cannot be called")
    if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise NoSuchCallable(f"{text} is a generator: calling it runs nothing; remove the yield")
    try:
        inspect.signature(found).bind({})
    except TypeError as error:
        raise NoSuchCallable(f"{text} cannot be called with the event alone: {error}") from None
    except ValueError:  # a callable written in C without a signature
        pass
    called: Callable[[dict[str, Any]], Any] = found
    return called


if __name__ == "__main__":
    sys.exit(main())
