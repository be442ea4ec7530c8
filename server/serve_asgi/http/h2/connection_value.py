"""An HTTP/2 connection as a value that goes to another process, and back. Pure.

It owns what travels: both header tables, the client's settings, the windows, which streams there were and which are
open, how much of each flood was counted, and the bytes that have come and were not looked at. Rules: it is taken
between two frames, while all output was taken and no request is in progress but those whose responses the other process
can go on with: what of their bodies waits for a window goes along (`unsent`). The other process goes on as if nothing
had happened, and says nothing anew. It must not know how all this travels: the values are JSON's, bytes as base64.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any, Final

from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.flow_control import ReceiveWindow
from serve_asgi.http.h2.frames import PREFACE
from serve_asgi.http.h2.header_decoder import Field
from serve_asgi.http.h2.limits import STREAM_WINDOW
from serve_asgi.http.h2.priorities import StreamPriority
from serve_asgi.http.h2.receiving import Leaving
from serve_asgi.http.h2.streams import HALF_CLOSED_REMOTE, OPEN, Stream, StreamState

VERSION: Final = 1


def export_connection(core: ConnectionCore, going_on: Collection[int] = ()) -> tuple[dict[str, Any], bytes]:
    """The value, and the bytes that the next `receive` of the other process is to begin with.

    `going_on`: the streams that are open and whose responses have begun: the other process goes on with them, after it
    has sent what is `unsent` of each. Raises RuntimeError if anything else is in progress (`ConnectionCore.resting`),
    or was said and not written; and where the first of two GOAWAYs waits for the second.
    """
    receiver = core.receiver
    by_id = receiver.streams.by_id
    resting = core.resting if not going_on else by_id.keys() == set(going_on)
    if not resting or core.waiting or core.lost is not None or receiver.leaving is Leaving.ANNOUNCED:
        raise RuntimeError("an HTTP/2 connection leaves when it rests and all is written")
    if receiver.leaving is Leaving.FINAL and not going_on:
        raise RuntimeError("an HTTP/2 connection on which nothing more can come does not leave")
    open_streams = [_stream_to_json(by_id[stream_id]) for stream_id in going_on]
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
        "leaving": receiver.leaving is Leaving.FINAL,
        "streams": open_streams,
    }
    unread = held + receiver.blocks.frames() + receiver.frames.rest
    return value, preface + unread


def import_connection(core: ConnectionCore, value: dict[str, Any]) -> None:
    """Make a new core what the value says; then give its `receive` the bytes that travelled beside it.

    `begin` is not to be called: its frames were sent. Its open streams count as worked for (`ConnectionCore.done`).
    Raises ValueError for a value of another version.
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
    receiver.sender.window = receiver.sender.granted = value["send_window"]
    receiver.streams.window.restore(value["receive_window"])
    receiver.streams.ended.restore(value["ended"])
    receiver.requests = value["requests"]
    receiver.floods.restore(value["floods"], receiver.requests)
    for stream_id, urgency, incremental in value["priorities"]:
        receiver.early_priorities[stream_id] = StreamPriority(urgency, incremental)
    if value["leaving"]:
        receiver.leaving = Leaving.FINAL
    for each in value["streams"]:
        stream = _stream_from_json(each)
        receiver.streams.by_id[stream.id] = stream
        receiver.streams.busy.add(stream.id)


def unsent(core: ConnectionCore, stream_id: int) -> bytes:
    """What of a response's body waits for a window: the other process sends it first."""
    stream = core.receiver.streams.by_id[stream_id]
    return b"".join(stream.pieces or ())[stream.offset :]


def _stream_to_json(stream: Stream) -> list[Any]:
    """Raises RuntimeError for one whose response has not begun, or has ended, or whose request's body is coming."""
    coming = stream.state is OPEN and (stream.expected >= 0 or stream.discarding)
    if coming or not stream.responded or stream.end_queued or stream.state not in (OPEN, HALF_CLOSED_REMOTE):
        raise RuntimeError(f"with stream {stream.id} nobody can go on")
    window = None if stream.receive_window is None else stream.receive_window.to_json()
    return [stream.id, stream.state.value, stream.send_window, window, stream.urgency, stream.incremental]


def _stream_from_json(values: list[Any]) -> Stream:
    """Raises ValueError for one that no `_stream_to_json` has given."""
    stream_id, state, send_window, window, urgency, incremental = values
    stream = Stream(stream_id, send_window, StreamState(state))
    stream.responded = True
    stream.urgency, stream.incremental = urgency, incremental
    if window is not None:
        stream.receive_window = ReceiveWindow(STREAM_WINDOW)
        stream.receive_window.restore(window)
    return stream


def _fields_to_json(fields: list[Field]) -> list[list[str]]:
    return [[base64.b64encode(name).decode(), base64.b64encode(text).decode()] for name, text in fields]


def _fields_from_json(values: list[list[str]]) -> list[Field]:
    return [(base64.b64decode(name), base64.b64decode(text)) for name, text in values]
