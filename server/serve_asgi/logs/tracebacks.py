"""Renders an exception's traceback, bounded in size and time, and without ever raising.

The standard library's `traceback` renders a single exception well, but follows its links without a bound: groups of
groups by recursion, a hundred thousand members each, a message of 30 MB in full. So it renders one exception at a time,
and the links are followed here (`serve_asgi.logs.exceptions`): each exception is shown once, at most `TRACEBACK_LIMIT`
characters in all, giving priority to those that were raised last.
"""

from __future__ import annotations

import importlib
import os
import traceback
from types import FrameType, TracebackType
from typing import Final

from serve_asgi.logs.exceptions import (
    cause_of,
    context_of,
    hides_context,
    innermost,
    is_a,
    members_of,
    name_of,
    shortened,
    text_of,
    traceback_of,
)

TRACEBACK_LIMIT: Final = 65_536
"""Characters of a traceback, about."""
MESSAGE_LIMIT: Final = 8_192
"""Characters of one exception's message and notes."""
FRAME_LIMIT: Final = 1_000
"""Characters of one frame, since a line of source may be long."""
FIRST_FRAMES, LAST_FRAMES = 20, 60
"""The frames of one exception that are shown."""
CHAIN: Final = 20
"""Most exceptions in a chain."""
MEMBERS, DEPTH = 15, 10
"""Most members of a group, and levels of nested groups, as in `traceback`."""

CAUSE: Final = "The above exception was the direct cause of the following exception:"
CONTEXT: Final = "During handling of the above exception, another exception occurred:"
END: Final = "+------------------------------------"
PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
FILES: Final = (PACKAGE + os.sep, os.path.basename(PACKAGE) + os.sep)
"""How the names of this package's files begin: those of compiled modules are relative (`compile_core.py`)."""


def traceback_text(error: BaseException) -> str:
    """The traceback, as in `traceback.format_exception`, within bounds. Never raises."""
    return _text(error, traceback_of(error))


def application_traceback(error: BaseException) -> str:
    """The same, from the first frame of the application's own code on.

    Leading frames of this server and of the import machinery are omitted, unless there are no others.
    """
    whole = own = traceback_of(error)
    while own is not None and _is_ours(own.tb_frame):
        own = own.tb_next
    if own is None and not is_a(error, SyntaxError):  # a SyntaxError itself names file and line
        own = whole
    return _text(error, own)


def error_text(error: BaseException) -> str:
    """Kind and message of an application's error, on one line, safe for any frame and log."""
    text = ": ".join(filter(None, (name_of(type(error)), " ".join(text_of(error, MESSAGE_LIMIT).split()))))
    return text.encode(errors="backslashreplace").decode()  # a file name may contain lone surrogates


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith((*FILES, "<frozen importlib")) or name == importlib.__file__


def _text(error: BaseException, first: TracebackType | None) -> str:
    try:
        return shortened("\n".join(_Rendering(error).chain(error, first, 0)), 2 * TRACEBACK_LIMIT) + "\n"
    except BaseException:  # the application's objects may raise anything
        return f"{innermost(error)}\n{name_of(type(error))} [its traceback cannot be rendered]\n".lstrip("\n")


class _Rendering:
    """The rendering of one traceback: how much may still be written, and what has been shown."""

    __slots__ = ("_left", "_seen")

    def __init__(self, error: BaseException) -> None:
        self._left = TRACEBACK_LIMIT
        self._seen = {id(error)}

    def chain(self, error: BaseException, first: TracebackType | None, depth: int) -> list[str]:
        """The lines of an exception, after those of its causes and contexts; `first` is its traceback."""
        blocks = [self._block(error, first, depth)]
        shown = 0
        while True:
            older = cause_of(error)
            words = CAUSE
            if older is None and not hides_context(error):
                older, words = context_of(error), CONTEXT
            if older is None:
                break
            if id(older) in self._seen:
                blocks.append(self._framed([f"{name_of(type(older))} [shown elsewhere]", "", words, ""], depth))
                break
            if shown == CHAIN or self._left <= 0:
                blocks.append(self._framed(["[earlier exceptions are left out here]", "", words, ""], depth))
                break
            self._seen.add(id(older))
            blocks.append(self._block(older, traceback_of(older), depth) + self._framed(["", words, ""], depth))
            shown += 1
            error = older
        return [line for block in reversed(blocks) for line in block]

    @staticmethod
    def _framed(lines: list[str], depth: int) -> list[str]:
        """Add the vertical line that marks a group."""
        return [f"| {line}" for line in lines] if depth else lines

    def _block(self, error: BaseException, first: TracebackType | None, depth: int) -> list[str]:
        """The lines of one exception, and of a group's members."""
        members = members_of(error)
        lines = []
        if frames := _frames(first):
            lines = [f"{'Exception Group ' if members else ''}Traceback (most recent call last):", *frames]
        lines += _description(error, first)
        self._left -= sum(map(len, lines)) + len(lines)
        if not members:
            return self._framed(lines, depth)
        lines = [f"| {line}" for line in lines]
        for number, member in enumerate(members, 1):
            lines.append(("+-+" if number == 1 else "  +") + f"---------------- {number} ----------------")
            if number > MEMBERS or self._left <= 0 or depth == DEPTH:
                lines.append(f"  | [{len(members) - number + 1} of the group are left out here]")
                break
            if id(member) in self._seen:
                inner = [f"| {name_of(type(member))} [shown elsewhere]"]
            else:
                self._seen.add(id(member))
                inner = self.chain(member, traceback_of(member), depth + 1)
            lines += [f"  {line}" for line in inner]
        if not lines[-1].endswith(END):  # the last member was a group, whose end is also this one's
            lines.append(f"  {END}")
        if not depth:
            lines = [f"  {line}" for line in lines]
            lines[0] = lines[0].replace("|", "+", 1)
        return lines


def _frames(first: TracebackType | None) -> list[str]:
    """The frames' lines, without the middle if there are too many."""
    links = []
    while first is not None:
        links.append(first)
        first = first.tb_next
    try:
        if len(links) <= FIRST_FRAMES + LAST_FRAMES:
            return _stack(links[0], None) if links else []
        left_out = f"  [… {len(links) - FIRST_FRAMES - LAST_FRAMES} frames are left out here …]"
        return [*_stack(links[0], FIRST_FRAMES), left_out, *_stack(links[-LAST_FRAMES], None)]
    except BaseException:  # the application's loader, when it reads a line of source
        return [f'  File "{x.tb_frame.f_code.co_filename}", line {x.tb_lineno}' for x in links[-LAST_FRAMES:]]


def _stack(first: TracebackType, limit: int | None) -> list[str]:
    # `_seen` limits it to this exception.
    stack = traceback.TracebackException(Exception, Exception(), first, limit=limit, _seen=set()).stack
    return [line for entry in stack.format() for line in shortened(entry.rstrip("\n"), FRAME_LIMIT).split("\n")]


def _description(error: BaseException, first: TracebackType | None) -> list[str]:
    """Kind, message and notes, and the interpreter's suggestions."""
    last = first
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    try:
        found = traceback.TracebackException(type(error), error, last, limit=1, _seen=set())
        found.exceptions = None  # it expects this attribute, and was kept from the group
        pieces: list[str] = []
        size = 0
        for piece in found.format_exception_only():
            pieces.append(piece)
            size += len(piece)
            if size > MESSAGE_LIMIT:  # further notes are skipped
                break
        text = shortened("".join(pieces), MESSAGE_LIMIT)
    except BaseException:
        text = f"{name_of(type(error))}: {text_of(error, MESSAGE_LIMIT)}"
    return text.rstrip("\n").split("\n")
