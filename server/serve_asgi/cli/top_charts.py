"""Charts of block characters (U+2581 to U+2588) and lines, in columns with individual colours.

Each function returns lines of rich text of a given size; none knows what the values mean.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Final

from rich.text import Text

EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
LINES: Final = "▁─▔"
"""A horizontal line at three heights of a character, all of which terminals' fonts have."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChartColumn:
    """One column: filled up to `height`, with a line at `line`, where there is one."""

    height: float
    colour: str
    line: float | None = None
    line_colour: str = ""


def columns(shown: Sequence[ChartColumn], width: int, height: int, top: float) -> list[Text]:
    """The last `width` columns as `height` lines, the newest at the right; `top` is the value of the upper edge."""
    last = shown[-width:] if width else []
    lines = []
    for bottom in reversed(range(height)):
        line = Text(" " * (width - len(last)))
        cells = (_cell(column, bottom, height, top) for column in last)
        for style, same in itertools.groupby(cells, key=lambda cell: cell[1]):  # one colour change for equal neighbours
            line.append("".join(character for character, _ in same), style)
        lines.append(line)
    return lines


def _cell(column: ChartColumn, bottom: int, height: int, top: float) -> tuple[str, str]:
    """The character and its colours in one line, `bottom` lines above the axis."""
    filled = _filled(column.height, bottom, height, top)
    if not bottom and column.height > 0:
        filled = max(1, filled)  # a small value is not zero
    if column.line is not None and top > 0:
        at = min(height - 1e-9, column.line / top * height)
        if int(at) == bottom:
            behind = f" on {column.colour}" if filled == 8 else ""
            return LINES[int(at % 1 * len(LINES))], column.line_colour + behind
    return (EIGHTHS[filled], column.colour) if filled else (" ", "")


def _filled(value: float, bottom: int, height: int, top: float) -> int:
    """How many eighths of the line `bottom` lines above the axis the value fills."""
    eighths = round(value / top * height * 8) if top > 0 else 0
    return min(8, max(0, eighths - bottom * 8))


def rounded_up(value: float, least: float) -> float:
    """The least of 1, 1.5, 2, 3, 4, 6, 8, 10 … times `least` that is not smaller, for a stable scale."""
    scale = least
    while True:
        for step in (1, 1.5, 2, 3, 4, 6, 8):
            if value <= scale * step:
                return scale * step
        scale *= 10


def marks(placed: Sequence[tuple[int, str, str]], width: int) -> Text:
    """A line with a styled text below each of the given columns (counted from the left), without overlaps."""
    cells = [" "] * width
    styles = [""] * width
    free = 0
    for place, text, style in sorted(placed):
        for length in (len(text), 1):
            if free <= place and place + length <= width:
                cells[place : place + length] = list(text[:length])
                styles[place : place + length] = [style] * length
                free = place + length + (length > 1)
                break
    line = Text()
    for style, same in itertools.groupby(zip(cells, styles, strict=True), key=lambda cell: cell[1]):
        line.append("".join(character for character, _ in same), style)
    return line


def bar(share: float, width: int, colour: str) -> Text:
    """A line over this share of `width` characters."""
    halves = round(max(0.0, min(1.0, share)) * width * 2)
    return Text(("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width), colour)
