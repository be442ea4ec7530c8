"""Turns the arguments of `@schedule(…)` and its function into a definition for the hub, or a sentence why not.

Expressions are checked and the rules of time zones are read here, in the process that imports the application.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable
from typing import Any, Final

from serve_asgi.errors import ScheduleError
from serve_asgi.hub.schedules.cron import checked_cron, zone_rules
from serve_asgi.hub.schedules.definitions import (
    OverlapPolicy,
    RunsOn,
    ScheduleDefinition,
    checked_every,
    milliseconds,
    span,
)
from serve_asgi.ipc.schedule_frames import MAX_INTERVAL

Span = str | float | datetime.timedelta
"""A time span: "10m", "1h30m", seconds, or a timedelta."""

ENVIRONMENT: Final = "SERVE_ENVIRONMENT"
"""The variable with which `env` is compared; the option --environment sets it."""
MAX_RETRIES: Final = 100
MAX_CRON: Final = 1_000
MAX_TEXT: Final = 1_000
"""Characters of texts for people to read, cut at the front: paths, names of functions."""


def definition_of(
    function: Callable[[], Any],
    *,
    cron: str | None,
    every: Span | None,
    tz: str | datetime.tzinfo,
    name: str | None,
    on: str,
    immediate: bool,
    overlap: str,
    timeout: Span | None,
    jitter: Span,
    retry: int,
    enabled: bool,
    env: str | Iterable[str] | None,
) -> ScheduleDefinition:
    """The definition of a function. Raises ScheduleError."""
    where = _where(function)
    try:
        named = _named(function, name)
        _check_function(function)
        if (cron is None) is (every is None):
            raise ScheduleError('give it cron="…" or every="…", one of the two')
        zone = _zone(tz)
        rules = zone_rules(zone)
        made = ScheduleDefinition(
            name=named,
            cron="" if cron is None else checked_cron(cron, zone, rules),
            every=0 if every is None else checked_every(every),
            tz=zone,
            rules=rules,
            on=_one_of(RunsOn, on, "on"),
            immediate=bool(immediate),
            overlap=_one_of(OverlapPolicy, overlap, "overlap"),
            timeout=0 if timeout is None else milliseconds(timeout, "timeout"),
            jitter=milliseconds(jitter, "jitter"),
            retry=retry,
            disabled=_disabled(enabled, env)[:MAX_TEXT],
            where=where,
            function=_qualified(function),
        )
        if timeout is not None and made.timeout <= 0:
            raise ScheduleError(f"timeout is {timeout!r}: it has to be more than nothing; leave it out for none")
        if max(made.timeout, made.jitter) > MAX_INTERVAL:
            raise ScheduleError(f"timeout and jitter can be {span(MAX_INTERVAL)} at most")
        if len(made.cron) > MAX_CRON:
            raise ScheduleError(f"cron has {len(made.cron)} characters, {MAX_CRON} are the most")
        if made.jitter < 0 or (made.every and made.jitter >= made.every):
            raise ScheduleError(f"jitter is {jitter!r}: it has to be less than the time between two ticks")
        if not isinstance(retry, int) or not 0 <= retry <= MAX_RETRIES:
            raise ScheduleError(f"retry is {retry!r}: it is a number of further attempts, from 0 to {MAX_RETRIES}")
    except ScheduleError as error:
        raise ScheduleError(f"the schedule {name or _name_of(function)!r} ({where}) cannot be: {error}") from None
    return made


def _named(function: Callable[[], Any], name: str | None) -> str:
    found = _name_of(function) if name is None else name
    if not isinstance(found, str) or not found.isprintable() or not 0 < len(found.encode()) <= 200:
        raise ScheduleError(f"name is {found!r}: write one of at most 200 bytes of printable characters")
    if found == "<lambda>":
        raise ScheduleError("a lambda has no name: give it one with name=")
    return found


def _name_of(function: Callable[[], Any]) -> str:
    inner = _inner(function)
    return str(getattr(inner, "__name__", None) or type(inner).__name__)


def _qualified(function: Callable[[], Any]) -> str:
    """Module and qualified name of a function, or of the class of a callable object."""
    inner = _inner(function)
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{named.__module__}:{named.__qualname__}".encode(errors="backslashreplace").decode()[-MAX_TEXT:]


def _where(function: Callable[[], Any]) -> str:
    """File and line of a function, or of the `__call__` of an object."""
    code = code_of(function)
    if code is None:
        return "somewhere"
    file = code.co_filename.encode(errors="backslashreplace").decode()  # a path may contain any bytes
    return f"{file}:{code.co_firstlineno}"[-MAX_TEXT:]


def code_of(function: Callable[[], Any]) -> types.CodeType | None:
    """The code of a function, or of the `__call__` of an object; all functions made by one `def` share it."""
    inner = _inner(function)
    found = getattr(inner, "__code__", None) or getattr(_call(inner), "__code__", None)
    return found if isinstance(found, types.CodeType) else None


def _inner(function: Callable[[], Any]) -> Any:
    """The function without wrappers (functools.wraps, functools.partial)."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    return inner


def _call(function: object) -> object:
    """The `__call__` of an object that is not a function."""
    return getattr(type(function), "__call__", None)  # noqa: B004 - it is inspected, not called


def _check_function(function: Callable[[], Any]) -> None:
    if not callable(function):
        raise ScheduleError("what is decorated is not a function")
    called = (function, _call(function))
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in called):
        raise ScheduleError("a generator does nothing when it is called: make it a function")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # without a signature it is only known when it is called
    try:
        signature.bind()
    except TypeError:
        raise ScheduleError("nobody gives it arguments: make it a function without parameters") from None


def _zone(tz: str | datetime.tzinfo) -> str:
    if tz is datetime.UTC:
        return "UTC"
    name = getattr(tz, "key", tz)
    if not isinstance(name, str):
        raise ScheduleError(f'tz is {tz!r}: write the name of a time zone, such as "Europe/Berlin"')
    return name


def _one_of(kind: Any, given: Any, what: str) -> Any:
    try:
        return kind(given.value if isinstance(given, kind) else given)
    except ValueError:
        choices = " or ".join(f'"{each.value}"' for each in kind)
        raise ScheduleError(f"{what} is {given!r}: write {choices}") from None


def _disabled(enabled: bool, env: str | Iterable[str] | None) -> str:
    """Why it is disabled; "" if it is not."""
    if not enabled:
        return "enabled is false"
    if env is None:
        return ""
    wanted = [env] if isinstance(env, str) else list(env)
    here = os.environ.get(ENVIRONMENT, "")
    if here in wanted:
        return ""
    return f"it is for the environment {' or '.join(wanted)}, and this is {here or 'none (--environment)'}"
