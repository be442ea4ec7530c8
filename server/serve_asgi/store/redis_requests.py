"""How frames of the hub become scripts of Redis, and what its replies and errors mean; without a connection."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions

from serve_asgi.errors import ChannelError
from serve_asgi.hub.state.write_evaluation import StateEntry, StateLimits
from serve_asgi.ipc.frames import Frame, pack_value
from serve_asgi.ipc.state_frames import Write, WriteOp
from serve_asgi.ipc.store_frames import GrantRefusal
from serve_asgi.ipc.work_frames import WORK_REQUESTS
from serve_asgi.store import replies
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.schedule_leases import lease_until

_NOT_LET_IN: Final = re.compile("(?i)username-password|authentication|NOAUTH|WRONGPASS")
"""What Redis and redis-py say about passwords; there is not always an exception class for it."""

FLEET: Final = ("fleet", "fleet:heard", "fleet:orders")
"""The keys of the fleet (`serve_asgi.store.redis_fleet_scripts`)."""
CHANGING: Final = frozenset({"store.write", "store.send", "store.grant", *WORK_REQUESTS})
"""Frames that Redis refuses when it accepts no writes."""
_NOT_DONE: Final = (SessionLost, exceptions.ReadOnlyError, exceptions.NoScriptError, exceptions.BusyLoadingError)
"""Errors after which the session begins anew, and which mean that nothing was done."""


def script_call(
    frame: Frame, prefix: str, epoch: str, server: str, limits: StateLimits
) -> tuple[str, list[str], list[Any]]:
    """The script for a frame (its name in `serve_asgi.store.redis_scripts`), its keys and arguments.

    Raises LookupError, TypeError, ValueError or ChannelError for an invalid frame.
    """
    head, lease_key = frame.head, f"lease:{frame.head.get('name', '')}"

    def asked(script: str, names: Sequence[str], *arguments: Any) -> tuple[str, list[str], list[Any]]:
        return script, [f"{prefix}:{name}" for name in names], [epoch, *arguments]

    match frame.kind:
        case "store.write":
            write = Write.of(head, frame.body)
            value = pack_value(write.by, "the step") if write.op is WriteOp.INCR else write.value
            version = "" if write.version is None else str(write.version)
            names = ("about", "state", "log")
            return asked("WRITE", names, server, write.op.value, write.key, version, value, *limits)
        case "store.read":
            return asked("READ", ("about", "state"), head["key"])
        case "store.send":
            told = pack_value({name: value for name, value in head.items() if name != "id"}, "a message's head")
            return asked("SEND", ("about", "messages"), server, told, frame.body)
        case "store.grant":
            tick, exclusive = repr(float(head["tick"])), int(bool(head.get("exclusive")))
            names = ("about", "ticks", lease_key)
            return asked("GRANT", names, head["name"], tick, head["holder"], _microseconds(head["lease"]), exclusive)
        case "store.renew":
            return asked("RENEW", ("about", lease_key), head["token"], _microseconds(head["lease"]))
        case "store.release":
            return asked("RELEASE", ("about", lease_key), head["token"])
        case "store.announce":
            return asked("ANNOUNCE", ("about", *FLEET), server, frame.body)
        case "store.leave":
            return asked("LEAVE", ("about", *FLEET), server)
    raise ChannelError(f"the listener asks for {frame.kind!r}, which this version does not know")


def granted(head: dict[str, Any], found: Any, began: float) -> StoreReply:
    """The reply to a frame `store.grant` that was sent to Redis at `began` (s, monotonic)."""
    if found[0]:
        return replies.granted(head["id"], found[1], lease_until(head["lease"], began))
    why, name = GrantRefusal(found[1].decode()), head["name"]
    text = {
        GrantRefusal.GRANTED: f"this tick of {name}, or a later one, has been granted already",
        GrantRefusal.RUNNING: f"a run of {name} has not ended",
        GrantRefusal.CLOCK: f"the tick of {name} lies {found[2].decode()} s ahead of Redis's clock: set the clocks",
    }[why]
    return replies.taken(head["id"], why, text)


def _microseconds(seconds: Any) -> int:
    return math.ceil(float(seconds) * 1_000_000)


def encoded_entry(decoded_entry: StateEntry) -> bytes:
    """An entry as it is stored in Redis."""
    return b"%d:%b" % decoded_entry


def decoded_entry(text: bytes) -> StateEntry:
    """The reverse of `encoded_entry`."""
    version, _, value = text.partition(b":")
    return StateEntry(int(version), value)


def sentence(error: Exception, where: str) -> str:
    """Why Redis cannot be used, as a sentence."""
    match error:
        case SessionLost():
            return f"Redis at {where}: {error}"
        case exceptions.TimeoutError() | TimeoutError():
            return f"Redis at {where} did not answer in time"
        case _ if isinstance(error, exceptions.NoPermissionError) or _NOT_LET_IN.search(str(error)):
            return f"Redis at {where} does not let this server in: {error}"
        case exceptions.ReadOnlyError():
            return f"Redis at {where} is a replica, which takes no writes"
        case exceptions.BusyLoadingError():
            return f"Redis at {where} is still loading its data"
        case exceptions.ConnectionError() | OSError():
            return f"Redis at {where} cannot be reached: {error}"
    return f"Redis at {where} cannot be used: {error}"


def reason_of(error: Exception) -> str:
    """The text of an error, without its position in the script."""
    return str(error).partition(". script: ")[0].rstrip(".")


def not_done(found: Any) -> Exception | None:
    """The reply, if it is an error after which the session has to begin anew."""
    if isinstance(found, _NOT_DONE):
        return found
    return SessionLost("its data was replaced") if isinstance(found, list) and found[0] == -1 else None
