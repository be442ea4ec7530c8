"""What an application has raised, looked at without trusting it.

An exception is an object of the application's: its links may lead in a circle, through groups and by way of
`__context__` (Starlette's BaseHTTPMiddleware makes such a circle of every error), a group may hold others a thousand
deep, and asking it for its truth, equality, hash, class or text runs code that may raise in its turn. Rules: links are
read from the slots of BaseException, past whatever a class puts over them; every walk remembers by identity where it
has been and ends after `MOST` exceptions; kinds are told by the type. Nothing here raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from types import TracebackType
from typing import Any, Final

MOST: Final = 1000
"""Exceptions of one graph that are looked at."""
IN_PLACE_OF: Final = 8
"""So far back it is looked for what an exception was raised in place of."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_slots: Final[dict[str, Any]] = {**BaseException.__dict__, "exceptions": BaseExceptionGroup.__dict__["exceptions"]}


def is_a(error: BaseException, kind: type[BaseException]) -> bool:
    """`isinstance`, which would ask the object for its `__class__`."""
    return issubclass(type(error), kind)


def cause_of(error: BaseException) -> BaseException | None:
    """What it was raised from."""
    found: BaseException | None = _slots["__cause__"].__get__(error)
    return found


def context_of(error: BaseException) -> BaseException | None:
    """What was being handled when it was raised."""
    found: BaseException | None = _slots["__context__"].__get__(error)
    return found


def hides_context(error: BaseException) -> bool:
    """Whether it was raised `from` something, be it None."""
    return bool(_slots["__suppress_context__"].__get__(error))


def traceback_of(error: BaseException) -> TracebackType | None:
    """Where it has been raised."""
    found: TracebackType | None = _slots["__traceback__"].__get__(error)
    return found


def members_of(error: BaseException) -> tuple[BaseException, ...]:
    """What a group holds; of any other exception nothing."""
    if not is_a(error, BaseExceptionGroup):
        return ()
    found: tuple[BaseException, ...] = _slots["exceptions"].__get__(error)
    return found


def exc_info(error: BaseException) -> ExcInfo:
    """For a log call: given the exception itself, `logging` asks whether it is true."""
    return type(error), error, traceback_of(error)


def all_tell(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether it is of this kind, a group of nothing else, or was raised in place of such a one.

    What leads back to itself tells of nothing: in doubt the answer is no, and the error is logged.
    """
    seen = {id(error)}
    waiting: list[BaseException] = [error]
    while waiting:
        found: BaseException | None = waiting.pop()
        for _ in range(IN_PLACE_OF):
            if found is None:
                return False
            if is_a(found, kind):
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
    """Whether it is the GeneratorExit by which a coroutine of `task` is closed, not one that its code has raised.

    A coroutine is closed when it is thrown away, at the end of the loop or by the garbage collector: its task does not
    run then. `task` is None while it is in its first, eager step.
    """
    if not is_a(error, GeneratorExit) or task is None:
        return False
    try:
        return asyncio.current_task() is not task
    except RuntimeError:  # no loop runs
        return True


_TOLD: Final = "_serve_told"


def mark_told(error: BaseException) -> None:
    """Its traceback is in the log, though it may be on its way to somebody who will want to log it."""
    with contextlib.suppress(BaseException):  # its namespace may be of a kind of the application's own
        dict.__setitem__(_slots["__dict__"].__get__(error), _TOLD, time.monotonic())


def was_told(error: BaseException, within: float = 1.0) -> bool:
    """Whether `mark_told` was called in the last `within` seconds: one object may be raised again and again."""
    try:
        at = dict.get(_slots["__dict__"].__get__(error), _TOLD)
        return type(at) is float and time.monotonic() - at <= within
    except BaseException:  # a key of the namespace that cannot be compared
        return False


def innermost(error: BaseException) -> str:
    """Where it was raised, in short: for when no more can be said of it."""
    link = traceback_of(error)
    if link is None:
        return ""
    while link.tb_next is not None:
        link = link.tb_next
    code = link.tb_frame.f_code
    return f'  File "{code.co_filename}", line {link.tb_lineno}, in {code.co_name}'


def name_of(kind: type[BaseException]) -> str:
    """The name of its class, past what a metaclass says of it."""
    return str(type.__dict__["__name__"].__get__(kind))


def text_of(error: BaseException, limit: int) -> str:
    """Its message, at most about `limit` characters."""
    try:
        text = str(error)
        return shortened(str.__getitem__(text, slice(None)), limit)
    except BaseException:  # its own __str__ raises, be it SystemExit
        return "<exception str() failed>"


def shortened(text: str, limit: int) -> str:
    """The beginning and the end of a text that has more than `limit` characters, and how many are left out."""
    size = len(text)
    if size <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end]} [… {size - limit} characters are left out here …] {text[size - end :]}"
