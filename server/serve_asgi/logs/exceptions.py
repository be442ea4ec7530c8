"""Inspects exceptions of an application without trusting them.

An exception is an object of the application's: its links may form cycles, through groups and `__context__` (Starlette's
BaseHTTPMiddleware makes a cycle of every error), groups may be nested a thousand deep, and its truth value, equality,
hash, class or text may run code that raises in turn. Rules: links are read from the slots of BaseException, bypassing
overrides in a class; every walk tracks visited exceptions by identity and ends after `MOST` of them; kinds are checked
by type. Nothing here raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

MOST: Final = 1000
"""Most exceptions of one graph that are visited."""
IN_PLACE_OF: Final = 8
"""How far back in the chain of contexts to look for the exception that one replaced."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_slots: Final[dict[str, Any]] = {**BaseException.__dict__, "exceptions": BaseExceptionGroup.__dict__["exceptions"]}


def is_a(error: BaseException, kind: type[BaseException]) -> bool:
    """As `isinstance`, but without using the object's `__class__`."""
    return issubclass(type(error), kind)


def cause_of(error: BaseException) -> BaseException | None:
    """Its `__cause__`: what it was raised from."""
    found: BaseException | None = _slots["__cause__"].__get__(error)
    return found


def context_of(error: BaseException) -> BaseException | None:
    """Its `__context__`: what was being handled when it was raised."""
    found: BaseException | None = _slots["__context__"].__get__(error)
    return found


def hides_context(error: BaseException) -> bool:
    """Whether it was raised `from` something, be it None."""
    return bool(_slots["__suppress_context__"].__get__(error))


def traceback_of(error: BaseException) -> TracebackType | None:
    """Its traceback."""
    found: TracebackType | None = _slots["__traceback__"].__get__(error)
    return found


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """The members of a group; nothing for any other exception."""
    if not is_a(error, BaseExceptionGroup):
        return ()
    found: tuple[BaseException, ...] = _slots["exceptions"].__get__(error)
    return found


def exc_info(error: BaseException) -> ExcInfo:
    """The argument of a log call: given only the exception, `logging` would evaluate its truth value."""
    return type(error), error, traceback_of(error)


def carried_by(error: BaseException, name: str) -> object:
    """What it has in its own namespace under this name, or None; no code of the application's runs."""
    namespace = _slots["__dict__"].__get__(error)
    return dict.get(namespace, name) if issubclass(type(namespace), dict) else None


def all_tell(
    error: BaseException, kind: type[BaseException], also: Callable[[BaseException], bool] | None = None
) -> bool:
    """Whether it is of this kind, a group of nothing else, or was raised while such a one was handled.

    What is `also` such a one is as good. A cycle proves nothing: in doubt the result is False, and the error is logged.
    """
    seen = {id(error)}
    waiting: list[BaseException] = [error]
    while waiting:
        found: BaseException | None = waiting.pop()
        for _ in range(IN_PLACE_OF):
            if found is None:
                return False
            if is_a(found, kind) or (also is not None and also(found)):
                break
            if members := members_of(found):
                if len(seen) + len(members) > MOST:
                    return False
                for member in members:
                    if not is_a(member, kind):
                        if id(member) in seen:
                            return False
                        seen.add(id(member))
                        waiting.append(member)
                break
            cause = cause_of(found)
            found = context_of(found) if cause is None else cause
        else:
            return False
    return True


def is_from_outside(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether it is the GeneratorExit by which a coroutine of `task` is closed, not one raised by its code.

    A coroutine is closed when it is discarded, at the end of the loop or by the garbage collector: its task is not
    running then. `task` is None during its first, eager step.
    """
    if not is_a(error, GeneratorExit) or task is None:
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # no running loop
        return True


_TOLD: Final = "_serve_told"


def mark_told(error: BaseException) -> None:
    """Mark that its traceback has been logged, although it may still propagate to code that would log it again."""
    with contextlib.suppress(BaseException):  # its namespace may be of an application's own class
        dict.__setitem__(_slots["__dict__"].__get__(error), _TOLD, time.monotonic())


def was_told(error: BaseException, within: float = 1.0) -> bool:
    """Whether `mark_told` was called in the last `within` seconds: one object may be raised again and again."""
    try:
        at = dict.get(_slots["__dict__"].__get__(error), _TOLD)
        return type(at) is float and time.monotonic() - at <= within
    except BaseException:  # a key of the namespace that cannot be compared
        return False


def innermost(error: BaseException) -> str:
    """Where it was raised, in short, for when nothing else can be rendered."""
    link = traceback_of(error)
    if link is None:
        return ""
    while link.tb_next is not None:
        link = link.tb_next
    code = link.tb_frame.f_code
    return f'  File "{code.co_filename}", line {link.tb_lineno}, in {code.co_name}'


def name_of(kind: type[BaseException]) -> str:
    """The name of its class, bypassing a metaclass."""
    return str(type.__dict__["__name__"].__get__(kind))


def text_of(error: BaseException, limit: int) -> str:
    """Its message, at most about `limit` characters."""
    try:
        text = str(error)
        return shortened(str.__getitem__(text, slice(None)), limit)
    except BaseException:  # its own __str__ raises, perhaps even SystemExit
        return "<exception str() failed>"


def shortened(text: str, limit: int) -> str:
    """The beginning and the end of a text longer than `limit` characters, and how many are omitted."""
    size = len(text)
    if size <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end]} [… {size - limit} characters are left out here …] {text[size - end :]}"
