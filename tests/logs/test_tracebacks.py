"""Exceptions as text: as the standard library has it where they are ordinary, bounded where they are not."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings

from serve_asgi.http.dropped_messages import ClientDisconnected
from serve_asgi.logs.exceptions import all_tell, shortened
from serve_asgi.logs.tracebacks import MESSAGE_LIMIT, TRACEBACK_LIMIT, application_traceback, error_text, traceback_text
from tests.raising import Graph, Hostile, graphs, link


def raised(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def from_another() -> None:
    try:
        raise LookupError("first")
    except LookupError as error:
        raise KeyError("second") from error


def while_handling() -> None:
    try:
        raise LookupError("first")
    except LookupError:
        raise ValueError("second\nof two lines")  # noqa: B904


def from_nothing() -> None:
    try:
        raise LookupError("first")
    except LookupError:
        raise ValueError("second") from None


def misspelt() -> None:
    value = 1
    assert valeu == value  # type: ignore[name-defined]  # noqa: F821


def no_python() -> None:
    compile("a b", "file", "exec")


def noted() -> None:
    error = ValueError("with notes")
    error.add_note("one\ntwo")
    raise error


def grouped() -> None:
    try:
        raise ExceptionGroup("outer", [ValueError(1), ExceptionGroup("inner", [TypeError("a\nb"), OSError(3, "c")])])
    except ExceptionGroup:
        raise LookupError("after") from None


def of_a_group() -> None:
    members = [raised(from_another), ValueError(2)]
    raise BaseExceptionGroup("outer", [BaseExceptionGroup("inner", members), raised(while_handling)])


@pytest.mark.parametrize(
    "function", [from_another, while_handling, from_nothing, misspelt, no_python, noted, grouped, of_a_group]
)
def test_ordinary_ones_look_as_always(function: Callable[[], object]) -> None:
    error = raised(function)
    assert traceback_text(error) == "".join(traceback.format_exception(error))


@settings(max_examples=200, deadline=None)
@given(graph=graphs())
def test_any_is_bounded(graph: Graph) -> None:
    def function() -> None:
        raise graph.error

    error = raised(function)
    for text in (traceback_text(error), application_traceback(error)):
        assert "in function" in text
        assert len(text) < 2 * TRACEBACK_LIMIT + 100
    assert 0 < len(error_text(error)) < MESSAGE_LIMIT + 100
    assert "\n" not in error_text(error)
    all_tell(error, ClientDisconnected)


def test_a_long_message_says_how_much_is_left_out() -> None:
    text = traceback_text(ValueError("a" * 30_000_000 + "the end"))
    assert len(text) < MESSAGE_LIMIT + 100
    assert "[… 29991" in text
    assert text.endswith("the end\n")
    assert shortened("ab" * 8, 16) == "ab" * 8


def test_a_large_group_and_a_deep_one() -> None:
    wide = traceback_text(ExceptionGroup("wide", [ValueError(number) for number in range(100_000)]))
    assert "[99985 of the group are left out here]" in wide
    error: Exception = ValueError("inside")
    for _ in range(5000):
        error = ExceptionGroup("deep", [error])
    assert "[1 of the group are left out here]" in traceback_text(error)


def test_many_frames() -> None:
    def deep(left: int) -> None:
        if left:
            return other(left - 1)
        raise ValueError("at the bottom")

    def other(left: int) -> None:
        deep(left)

    text = traceback_text(raised(lambda: deep(300)))
    assert "frames are left out here" in text
    assert text.endswith("ValueError: at the bottom\n")


def test_a_circle_is_shown_once() -> None:
    error = RuntimeError("a mistake")
    link(error, "__context__", ExceptionGroup("of the task group", [error]))
    text = traceback_text(raised(lambda: (_ for _ in ()).throw(error)))
    assert text.count("RuntimeError: a mistake") == 1
    assert text.count("RuntimeError [shown elsewhere]") == 1


def test_what_cannot_be_asked_is_named() -> None:
    text, line = traceback_text(Hostile("x")), error_text(Hostile("x"))
    assert text.endswith("Hostile: <exception str() failed>\n")
    assert line == "Hostile: <exception str() failed>"


def test_what_tells_of_a_client_that_has_gone() -> None:
    gone, other = ClientDisconnected("gone"), ValueError("other")

    def tells(error: BaseException) -> bool:
        return all_tell(error, ClientDisconnected)

    assert tells(gone)
    assert tells(ExceptionGroup("all", [gone, ExceptionGroup("inner", [gone])]))
    assert not tells(ExceptionGroup("some", [gone, other]))
    link(other, "__context__", ExceptionGroup("in place of", [gone]))
    assert tells(other)
    link(other, "__context__", ExceptionGroup("in a circle", [other]))
    assert not tells(other)
    link(other, "__context__", other)
    assert not tells(other)
    deep: BaseException = gone
    for _ in range(sys.getrecursionlimit()):
        deep = BaseExceptionGroup("one in another", [deep])
    assert not tells(deep)  # further than anybody looks


def test_frames_of_compiled_modules_whose_files_are_relative_are_the_servers() -> None:
    module: dict[str, Any] = {}
    exec(compile("def call(function):\n    function()\n", "serve_asgi/http/request_cycle.py", "exec"), module)
    error = raised(lambda: module["call"](misspelt))
    assert error.__traceback__ is not None
    while error.__traceback__.tb_frame.f_code.co_name != "call":
        error.__traceback__ = error.__traceback__.tb_next
        assert error.__traceback__ is not None
    assert "request_cycle" in traceback_text(error)
    assert "request_cycle" not in application_traceback(error)
