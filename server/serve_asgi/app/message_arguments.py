"""What the methods of `messenger` accept: topics, payloads, timeouts, handlers and receivers, checked before anything
is sent or registered. Every error here is the caller's.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Callable
from typing import Any, Final, Literal

from serve_asgi.app.application_functions import is_asynchronous
from serve_asgi.app.hub_link import current
from serve_asgi.app.message_sender import NoReceiver
from serve_asgi.app.presence import Peer
from serve_asgi.ipc.frames import MAX_PAYLOAD, pack_sendable
from serve_asgi.ipc.membership_frames import Role

TOPIC_BYTES: Final = 200
RESERVED: Final = "serve:"
CONCURRENCY: Final = 10_000
"""Most messages of one topic that a process handles at a time."""
SLOTS: Final = 1_000_000
"""No server has this many workers."""
MAX_DELIVERIES: Final = 999


class MessageTooLarge(ValueError):
    """The payload has more bytes than can be sent; store it elsewhere and send its location."""


def check_topic(topic: str) -> None:
    """Check a topic. Raises TypeError or ValueError."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a string, not {topic!r}")
    with contextlib.suppress(UnicodeEncodeError):
        if 0 < len(topic.encode()) <= TOPIC_BYTES and not topic.startswith(RESERVED):
            return
    raise ValueError(f'a topic has 1 to {TOPIC_BYTES} bytes as UTF-8 and does not begin with "{RESERVED}": {topic!r}')


def check_timeout(timeout: float) -> None:
    """Check a timeout (s). Raises ValueError."""
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")


def check_deliveries(max_deliveries: int) -> None:
    """Check a number of deliveries. Raises ValueError."""
    if not isinstance(max_deliveries, int) or not 0 < max_deliveries <= MAX_DELIVERIES:
        raise ValueError(f"max_deliveries is between 1 and {MAX_DELIVERIES}, not {max_deliveries!r}")


def check_concurrency(concurrency: int) -> None:
    """Check a concurrency. Raises ValueError."""
    if not isinstance(concurrency, int) or not 1 <= concurrency <= CONCURRENCY:
        raise ValueError(f"concurrency is a number from 1 to {CONCURRENCY}, not {concurrency!r}")


def check_handler(handler: Callable[..., Any], thread: bool) -> None:
    """Check a handler. Raises TypeError for what cannot handle a message, or not in a thread."""
    if not callable(handler):
        raise TypeError(f"a handler is a function that takes a message, not {handler!r}")
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise TypeError(f"a handler cannot be a generator: nothing would run {handler!r}, which has a `yield`")
    if thread and is_asynchronous(handler):
        raise TypeError(f"{handler!r} is async and runs in the event loop: thread=True is for a handler that is not")


def check_loop(instead: str) -> None:
    """Check that this runs on the server's event loop; otherwise raise RuntimeError, which names `instead`."""
    link = current()
    try:
        running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if link.loop is not running:
        raise RuntimeError(
            f"this iterates on the event loop that the server runs in: in a thread write `for … in {instead}`"
        )


def encode_payload(topic: str, payload: Any) -> bytes:
    """Encode a payload. Raises NotSendable or MessageTooLarge."""
    body = pack_sendable(payload, f"the payload of a message of topic {topic!r}")
    if len(body) > MAX_PAYLOAD:
        raise MessageTooLarge(
            f"the payload of a message of topic {topic!r} has {len(body)} bytes, {MAX_PAYLOAD} at most can be "
            "sent: put it elsewhere, and send where it is"
        )
    return body


def slot_of(receiver: int | Peer | Literal["agent"]) -> int:
    """The slot of a receiver; -1 for the agent. Raises ValueError, or NoReceiver if there cannot be such a worker."""
    if receiver == "agent" or (isinstance(receiver, Peer) and receiver.role is Role.AGENT):
        return 0 if current().identity.local else -1  # in local mode the process is the agent as well
    slot = receiver.slot if isinstance(receiver, Peer) else receiver
    if not isinstance(slot, int) or isinstance(slot, bool) or slot < 0:
        raise ValueError(f"a worker is named by its slot, a number from 0 on, not by {receiver!r}")
    if slot >= SLOTS:
        raise NoReceiver(f"there is no worker {slot}")
    return slot
