"""An HTTP/2 connection as a value that goes to another process, and back. Pure.

It owns what travels: both header tables, the client's settings, the windows, which streams there were, how much of each
flood was counted, and the bytes that have come and were not looked at. Rule: it is taken between two frames, while no
request is in progress and all output was taken; the other process goes on as if nothing had happened, and says nothing
anew. It must not know how it travels: the values are JSON's, bytes as base64.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.frames import PREFACE
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.priorities import StreamPriority
from serve_asgi.http.h2.receiving import Leaving

VERSION: Final = 1


def export_connection(core: ConnectionCore) -> tuple[dict[str, Any], bytes]:
    """The value, and the bytes that the next `receive` of the other process is to begin with.

    Raises RuntimeError if something is in progress (`ConnectionCore.resting`), or was said and not written.
    """
    receiver = core.receiver
    if not core.resting or core.waiting or core.lost is not None or receiver.leaving is not Leaving.NO:
        raise RuntimeError("an HTTP/2 connection leaves when it rests and all is written")
    held = b"" if receiver.held is None else receiver.held.data
    preface = PREFACE[: len(PREFACE) - len(receiver.preface)] if receiver.preface else b""  # of a whole one nothing
    value = {
        "version": VERSION,
        "begun": not receiver.preface,
        "settled": receiver.settled,
        "settings": receiver.settings.to_json(),
        "decoder": [receiver.reader.decoder.max_size, _fields_to_json(receiver.reader.decoder.entries)],
        "encoder": [*receiver.sender.encoder.sizes, _fields_to_json(receiver.sender.encoder.entries)],
        "send_window": receiver.sender.window,
        "receive_window": receiver.streams.window.to_json(),
        "ended": receiver.streams.ended.to_json(),
        "floods": receiver.floods.levels(),
        "requests": receiver.requests,
        "priorities": [[each, *priority] for each, priority in receiver.early_priorities.items()],
    }
    unread = held + receiver.blocks.frames() + receiver.frames.rest
    return value, preface + unread


def import_connection(core: ConnectionCore, value: dict[str, Any]) -> None:
    """Make a new core what the value says; then give its `receive` the bytes that travelled beside it.

    `begin` is not to be called: its frames were sent. Raises ValueError for a value of another version.
    """
    if value["version"] != VERSION:
        raise ValueError(f"an HTTP/2 connection of version {value['version']} of the hand-over")
    receiver = core.receiver
    if value["begun"]:
        receiver.preface = b""
    receiver.settled = value["settled"]
    receiver.settings.restore(value["settings"])
    decoder_size, decoder_entries = value["decoder"]
    receiver.reader.restore(decoder_size, _fields_from_json(decoder_entries))
    size, smallest, encoder_entries = value["encoder"]
    receiver.sender.encoder.restore((size, smallest), _fields_from_json(encoder_entries))
    receiver.sender.window = value["send_window"]
    receiver.streams.window.restore(value["receive_window"])
    receiver.streams.ended.restore(value["ended"])
    receiver.requests = value["requests"]
    receiver.floods.restore(value["floods"], receiver.requests)
    for stream_id, urgency, incremental in value["priorities"]:
        receiver.early_priorities[stream_id] = StreamPriority(urgency, incremental)


def _fields_to_json(fields: list[Field]) -> list[list[str]]:
    return [[base64.b64encode(name).decode(), base64.b64encode(text).decode()] for name, text in fields]


def _fields_from_json(values: list[list[str]]) -> list[Field]:
    return [(base64.b64decode(name), base64.b64decode(text)) for name, text in values]
