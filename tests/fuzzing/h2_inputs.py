"""What an HTTP/2 fuzzer does with its bytes: a script of frames, right and wrong, and what must hold whatever they are.

- No exception comes out of the core.
- The verdict does not depend on how the bytes are cut: the same events, the same frames of the server's.
- What the server says are frames; it ends with GOAWAY exactly if the connection is lost; no window is overdrawn.
- An application that answers at once, or in any other way, changes none of this.
- A connection that goes to another process, with the streams that are open, says the same as one that stays.
"""

from __future__ import annotations

from collections.abc import Iterator

from serve_asgi.http.h2 import frames, header_encoder
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.connection_value import export_connection, import_connection, unsent
from serve_asgi.http.h2.error_codes import ErrorCode
from serve_asgi.http.h2.events import Event, StreamData, StreamRefusal, StreamRequest
from serve_asgi.http.h2.limits import CONNECTION_WINDOW
from serve_asgi.http.request_head import Head

MAX_HEAD = 4096
PIECES = (1, 2, 3, 9, 13, 64, 1000)

BLOCKS = (
    b"\x82\x87\x84\x41\x01a",  # GET, with an authority that goes into the table
    b"\x83\x86\x84\x01\x01a\x0f\x0d\x015",  # POST of five bytes
    b"\x82\x87\x84\x01\x01a\xbe",  # whatever is the newest
    b"\x82\x87\x84\x01\x01a\x40\x01x\x03yyy",
    b"\x82\x87\x84\x01\x01a\x00\x01X\x01y",  # malformed
    b"\x02\x07CONNECT\x87\x84\x01\x01a\x00\x09:protocol\x09websocket",
    b"\x00\x05x-sum\x011",  # trailers
    b"\x20\x3f\xe1\x1f\x82\x87\x84\x01\x01a",
    b"\x82\x87\x84\x01\x01a\x40\x01z\x7f\x81\x07" + b"v" * 1026,
)


def no_more(head: Head) -> None:
    """No further limits."""


def script(data: bytes) -> bytes:
    """The client's bytes: the preface, SETTINGS, and for each few bytes of the input a frame."""
    sent = [frames.PREFACE, frames.settings_frame({})]
    position = 0
    while position + 4 <= len(data):
        what, stream, flags, more = data[position : position + 4]
        position += 4
        stream_id = stream & 0x1F
        if what & 0xF0 == 0xF0:  # bytes as they are
            sent.append(data[position : position + more])
            position += more
        elif what & 0xC0 == 0x80:  # a header block that mostly means something
            sent.append(frames.frame(frames.HEADERS, flags & 0x2D | 4, stream_id | 1, BLOCKS[more % len(BLOCKS)]))
        elif what & 0xC0 == 0x40:  # DATA
            sent.append(frames.frame(frames.DATA, flags & 9, stream_id | 1, bytes((more & 3,)) + bytes(more)))
        else:
            size = min(more & 0x3F, len(data) - position)
            sent.append(frames.frame(what & 0x1F, flags, stream_id, data[position : position + size]))
            position += size
    return b"".join(sent)


def new_core() -> ConnectionCore:
    core = ConnectionCore(MAX_HEAD, no_more, max_streams=5, clock=lambda: 0.0)
    core.begin(MAX_HEAD)
    return core


def said(core: ConnectionCore) -> bytes:
    return core.take_output(1 << 30)


def outcome(sent: bytes, piece: int) -> tuple[list[tuple[object, ...]], bytes, bool]:
    """What comes of the bytes in pieces of one size, if nobody answers."""
    core = new_core()
    events: list[Event] = []
    for start in range(0, len(sent), piece):
        events += core.receive(sent[start : start + piece])
    shown = [
        (event.stream_id, event.head.method, event.head.headers, event.head.body, event.ended)
        if isinstance(event, StreamRequest)
        else (event.stream_id, event.refused.reason)
        if isinstance(event, StreamRefusal)
        else tuple(event)
        for event in events
    ]
    return shown, said(core), core.lost is not None


def check_frames(output: bytes, lost: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """The frames that the server says."""
    reader = frames.FrameReader()
    found = list(reader.frames(output))
    assert not reader.rest
    goings = [kind for kind, _, _, _ in found if kind == frames.GOAWAY]
    assert len(goings) == lost
    assert not lost or found[-1][0] == frames.GOAWAY
    return iter(found)


def answer(core: ConnectionCore, event: Event, way: int) -> None:
    """What an application that does this or that does next."""
    if isinstance(event, (StreamRequest, StreamRefusal)):
        stream_id = event.stream_id
        if way == 70:
            core.send_response(stream_id, [(b":status", b"200")], bytes(way))
        elif way & 1:
            core.send_head(stream_id, [(b":status", b"200"), (b"x", b"%d" % (way & 3))], way & 2 == 0)
        if way & 3 == 3:
            core.send_data(stream_id, bytes(way * 300), way & 4 == 0)
        if way & 7 == 7:
            core.send_trailers(stream_id, [(b"x", b"1")])
        if way & 8:
            core.reset(stream_id, ErrorCode.CANCEL)
        if way & 16:
            core.discard(stream_id)
        core.done(stream_id)
    elif isinstance(event, StreamData) and way & 32:
        core.consumed(event.stream_id, len(event.data))


def moved(core: ConnectionCore, moving: bool) -> tuple[ConnectionCore, list[Event]]:
    """To another process, with the streams that are open, if that is possible; `moving`: or the same without it."""
    going_on = list(core.receiver.streams.by_id)
    try:
        value, unread = export_connection(core, going_on)
    except RuntimeError:
        return core, []
    if not moving:
        return core, core.release()
    waits = {stream_id: unsent(core, stream_id) for stream_id in going_on}
    core = ConnectionCore(MAX_HEAD, no_more, max_streams=5, clock=lambda: 0.0)
    import_connection(core, value)
    for stream_id, data in waits.items():
        core.send_data(stream_id, data, False)
        core.done(stream_id)
    return core, core.receive(unread)


def answered(sent: bytes, ways: bytes, moving: bool) -> bytes:
    """What the server says where an application does this and that; `moving`: in several processes."""
    header_encoder._known.clear()
    core = new_core()
    piece = PIECES[ways[0] % len(PIECES)]
    output = b""
    for number, start in enumerate(range(0, len(sent), piece)):
        way = ways[number % len(ways)]
        for event in core.receive(sent[start : start + piece]):
            answer(core, event, way)
        if way == 64:
            core.hold()
        elif way == 65:
            core.release()
        elif way == 66:
            core.announce_shutdown()
        if way & 1:
            output += said(core)
        if way == 68:
            core, events = moved(core, moving)
            for event in events:
                answer(core, event, way)
        assert core.receiver.streams.window.left <= CONNECTION_WINDOW
        assert core.receiver.sender.window >= 0
    output += said(core)
    reader = frames.FrameReader()
    list(reader.frames(output))
    assert not reader.rest
    return output


def check_h2(data: bytes) -> None:
    """Raises AssertionError, or whatever the core lets out."""
    if len(data) < 2:
        return
    sent = script(data[2:])
    whole = outcome(sent, 1 << 30)
    list(check_frames(whole[1], whole[2]))
    assert outcome(sent, PIECES[data[0] % len(PIECES)]) == whole
    assert answered(sent, data[:8], True) == answered(sent, data[:8], False)
