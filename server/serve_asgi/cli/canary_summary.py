"""The trial of a canary in words and figures, the same in `serve status`, `serve top` and `serve reload`.

What it gets is the member `canary` of the status (`serve_asgi.supervisor.canary`), None if nothing is on trial.
"""

from __future__ import annotations

from typing import Any, Final

from serve_asgi.cli.command import span

HELD: Final = "held"
SIDES: Final = ("canary", "current")
"""Whose requests are compared: those of the version on trial, and those of the one beside it."""


def trial(canary: dict[str, Any], *, brief: bool = False) -> str:
    """How the trial stands: "generation 8 is on trial with 10% of the traffic, 43 s left"."""
    who, share = f"generation {canary['generation']}", f"{canary['share']:.0%}"
    if canary["state"] == HELD:
        return f"{who} is held at {share}: `serve promote` or `serve rollback`"
    if not canary["share"] or canary["seconds_left"] is None:
        return f"{who} starts as a canary"
    left = f"{span(canary['seconds_left'])} left"
    return f"{who} on trial, {share}, {left}" if brief else f"{who} is on trial with {share} of the traffic, {left}"


def failures(canary: dict[str, Any]) -> str:
    """What both sides have failed: "3 of 120 failed, 1 of 1,080 beside it"; "" before it is known."""
    if not canary.get("canary"):
        return ""
    own, beside = (canary[side] for side in SIDES)
    return f"{own['errors']:,} of {own['requests']:,} failed, {beside['errors']:,} of {beside['requests']:,} beside it"


def failed_share(side: dict[str, Any]) -> str:
    """The failed requests of one side, in percent."""
    return f"{side['errors'] / side['requests']:.1%}" if side["requests"] else "-"
