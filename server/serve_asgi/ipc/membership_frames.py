"""Frames about membership between a hub and its members (the workers and the agent), and their terms.

member -> hub
    up        {}                                              its handlers and schedules have been sent
hub -> member
    present {ready, members: [[id, role, generation, slot, phase], …]} all members, after each change
    retire {} it gets no new work
    resume {} it serves again, after it has stood by
"""

from __future__ import annotations

import enum

import msgspec


class Role(enum.StrEnum):
    """What kind of process a member is."""

    WORKER = "worker"
    AGENT = "agent"


class MemberPhase(enum.Enum):
    """The phase of a member, which decides what may be sent to it."""

    EXPECTED = "expected"  # it is starting: messages for it wait
    UP = "up"  # its application is loaded and its handlers are known; it does not serve yet
    SERVING = "serving"
    RETIRING = "retiring"  # it finishes its work and gets no more; also while it stands by for a roll-back


class UpFrame(msgspec.Struct):
    """`up`."""
