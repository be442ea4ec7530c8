"""What a hub and its members (the workers and the agent) say about membership, and the words for it.

member -> hub
    up        {}                                              its handlers and schedules have been sent
hub -> member
    present   {ready, members: [[id, role, generation, slot, phase], …]}   who is there, after each change
    retire    {}                                              no new work comes
"""

from __future__ import annotations

import enum

import msgspec


class Role(enum.StrEnum):
    """What kind of process a member is."""

    WORKER = "worker"
    AGENT = "agent"


class MemberPhase(enum.Enum):
    """Where a member is: what may be sent to it."""

    EXPECTED = "expected"  # it starts: what is for it waits
    UP = "up"  # its application is loaded, its handlers are known; it does not serve yet
    SERVING = "serving"
    RETIRING = "retiring"  # it finishes what it has and gets no new work


class UpFrame(msgspec.Struct):
    """`up`."""
