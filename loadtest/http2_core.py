"""What HTTP/2 costs without sockets: CPU time per request in this server's core and in the libraries h2 and hpack.

Run it as `python -m loadtest.http2_core`; it prints Markdown tables, for docs/how-it-works/http2-header-compression.md.
A request has ten fields, sixteen requests come in one read, on eight connections in turn, and each is answered with
five fields and a short body. The least of the rounds is shown, since whatever else the machine does only adds to it.
jh2, whose decoder is compiled, is shown if it is installed (`pip install jh2`).

On a busy machine instructions can be counted instead: those of `--case get --rounds 3`, less those of `--rounds 1`,
under `valgrind --tool=cachegrind`, are those of twice REQUESTS requests.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import random
import string
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack

from serve_asgi.http.h2 import frames, huffman
from serve_asgi.http.h2.connection_core import ConnectionCore
from serve_asgi.http.h2.events import StreamData, StreamEnd, StreamRequest
from serve_asgi.http.h2.header_decoder import Field, HeaderDecoder
from serve_asgi.http.h2.header_encoder import HeaderEncoder
from serve_asgi.http.h2.request_fields import check_fields, read_request

ROUNDS = 7
REQUESTS = 1600
PER_READ = 16
CONNECTIONS = 8
MAX_HEAD = 65536
ANSWER: list[Field] = [
    (b":status", b"200"),
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"content-length", b"13"),
    (b"date", b"Sun, 29 Nov 2026 15:00:00 GMT"),
    (b"server", b"serve"),
]
BODY = b"Hello, world!"


def request(number: int, kept: bool, method: bytes = b"GET") -> list[Field]:
    """Ten fields, of which path and cookie are new each time; `kept`: the client keeps them in its table."""
    chosen = random.Random(number)
    path = f"/items/{number}/{''.join(chosen.choices(string.ascii_lowercase, k=10))}?page={number % 7}"
    cookie = "session=" + "".join(chosen.choices(string.hexdigits, k=32))
    field = hpack.HeaderTuple if kept else hpack.NeverIndexedHeaderTuple
    return [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", b"www.example.com"),
        field(b":path", path.encode()),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
        (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        (b"accept-language", b"en-US,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br, zstd"),
        (b"referer", b"https://www.example.com/start"),
        field(b"cookie", cookie.encode()),
    ]


def blocks(kind: str, count: int = REQUESTS, method: bytes = b"GET") -> list[bytes]:
    """The header blocks of one client."""
    encoder = hpack.Encoder()
    numbers = [0] * count if kind == "the same" else range(count)
    return [encoder.encode(request(number, kind != "new, not kept", method)) for number in numbers]


def least(prepare: Callable[[], Any], run: Callable[[Any], None]) -> float:
    """CPU time (µs) per request."""
    best = float("inf")
    for _ in range(ROUNDS):
        prepared = prepare()
        begun = time.process_time()
        run(prepared)
        best = min(best, time.process_time() - begun)
    return best / REQUESTS * 1e6


def reads(kind: str, upload: int = 0) -> list[bytes]:
    """What each client sends after its preface; `upload`: bytes of the body of each request."""
    count = REQUESTS // CONNECTIONS
    sent = []
    for number, block in enumerate(blocks(kind, count, b"POST" if upload else b"GET")):
        stream_id = 2 * number + 1
        whole = frames.frame(1, 4 if upload else 5, stream_id, block)
        sent.append(whole + frames.frame(0, 1, stream_id, bytes(upload)) if upload else whole)
    return [b"".join(sent[start : start + PER_READ]) for start in range(0, count, PER_READ)]


GREETING = frames.PREFACE + frames.settings_frame({4: 1 << 20}) + frames.window_update_frame(0, 1 << 30)


def serve_cores() -> list[ConnectionCore]:
    cores = [ConnectionCore(MAX_HEAD, lambda head: None) for _ in range(CONNECTIONS)]
    for core in cores:
        core.begin(MAX_HEAD)
        core.receive(GREETING)
        core.take_output()
    return cores


def serve(received: list[bytes], body: bytes, cores: list[ConnectionCore]) -> None:
    for data in received:
        for core in cores:
            for event in core.receive(data):
                if type(event) is StreamRequest:
                    if event.ended:
                        answer(core, event.stream_id, body)
                elif type(event) is StreamData:
                    core.consumed(event.stream_id, len(event.data))
                else:
                    assert type(event) is StreamEnd
                    answer(core, event.stream_id, body)
            while core.waiting:
                core.take_output()


def answer(core: ConnectionCore, stream_id: int, body: bytes) -> None:
    core.send_response(stream_id, [*ANSWER], body)
    core.done(stream_id)


CASES: dict[str, tuple[str, int, bytes]] = {
    "get": ("the same", 0, BODY),
    "new": ("new, not kept", 0, BODY),
    "kept": ("new, kept", 0, BODY),
    "post": ("the same", 1024, BODY),
    "large": ("the same", 0, bytes(65536)),
}
"""By name: what repeats, the bytes of the request's body, and the response's."""


def library_connections() -> list[h2.connection.H2Connection]:
    config = h2.config.H2Configuration(client_side=False, header_encoding=None)
    connections = [h2.connection.H2Connection(config) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.initiate_connection()
        connection.receive_data(GREETING)
        connection.data_to_send()
    return connections


def library(received: list[bytes], body: bytes, connections: list[h2.connection.H2Connection]) -> None:
    for data in received:
        for connection in connections:
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    assert event.stream_id is not None
                    assert event.flow_controlled_length is not None
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    connection.send_headers(event.stream_id, ANSWER)
                    for start in range(0, len(body), 16384):
                        rest = body[start:]
                        connection.send_data(event.stream_id, rest[:16384], end_stream=len(rest) <= 16384)
            connection.data_to_send()


def decoders() -> list[tuple[str, Callable[[], Callable[[bytes], object]]]]:
    """What reads a block, by its name."""

    def of_hpack() -> Callable[[bytes], object]:
        decoder = hpack.Decoder()
        return lambda block: decoder.decode(block, raw=True)

    found: list[tuple[str, Callable[[], Callable[[bytes], object]]]] = [
        ("this server", lambda: HeaderDecoder().decode),
        (f"hpack {version('hpack')}", of_hpack),
    ]
    try:
        compiled: Any = importlib.import_module("jh2._hazmat").Decoder
    except ImportError:
        return found

    def of_jh2() -> Callable[[bytes], object]:
        decoder = compiled()
        return lambda block: decoder.decode(block, True)

    try:
        return [*found, (f"jh2 {version('jh2')} (Rust)", of_jh2)]
    except PackageNotFoundError:
        return found


def decode(given: list[bytes], read: Callable[[bytes], object]) -> None:
    for block in given:
        read(block)


KINDS = ("the same", "new, kept", "new, not kept")


LABELS = {
    "get": "GET, the same again",
    "new": "GET, path and cookie new, not kept",
    "kept": "GET, path and cookie new, kept in the table",
    "post": "POST of 1 KiB, the same again",
    "large": "GET, answered with 64 KiB",
}


def main() -> None:
    """Print the tables, or run one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, help="run this case alone, and print nothing")
    parser.add_argument("--rounds", type=int, default=1, help="of that case")
    options = parser.parse_args()
    if options.case:
        kind, upload, body = CASES[options.case]
        received = reads(kind, upload)
        for _ in range(options.rounds):
            serve(received, body, serve_cores())
        return
    print(f"CPython {platform.python_version()}, {platform.machine()}, µs per request\n")
    print(f"| | this server | h2 {version('h2')} |\n| --- | ---: | ---: |")
    for name, (kind, upload, body) in CASES.items():
        received = reads(kind, upload)
        own = least(serve_cores, partial(serve, received, body))
        other = least(library_connections, partial(library, received, body))
        print(f"| {LABELS[name]} | {own:.1f} | {other:.1f} |")
    tables()


def tables() -> None:
    """Where the time goes."""
    found = decoders()
    print(f"\n| reading a header block | {' | '.join(name for name, _ in found)} |\n| --- |{' ---: |' * len(found)}")
    for kind in KINDS:
        given = blocks(kind)
        took = [least(new, partial(decode, given)) for _, new in found]
        print(f"| {kind} | {' | '.join(f'{each:.1f}' for each in took)} |")
    print("\n| of a request whose path and cookie are new and not kept | µs |\n| --- | ---: |")
    for name, each in parts(blocks("new, not kept")):
        print(f"| {name} | {each:.1f} |")


def parts(given: list[bytes]) -> list[tuple[str, float]]:
    """Where the time goes."""
    decoder = HeaderDecoder()
    decoded = [decoder.decode(block) for block in given]
    coder = hpack.huffman.HuffmanEncoder(
        hpack.huffman_constants.REQUEST_CODES, hpack.huffman_constants.REQUEST_CODES_LENGTH
    )
    texts = [[coder.encode(value) for _, value in literals[-2:]] for _, literals in decoded]
    received = reads("new, not kept")

    def read_frames(reader: frames.FrameReader) -> None:
        for data in received * CONNECTIONS:
            for _ in reader.frames(data):
                pass

    def read_texts(_: object) -> None:
        for pair in texts:
            for text in pair:
                huffman.decode(text)

    def read_heads(_: object) -> None:
        for fields, literals in decoded:
            check_fields(literals)
            read_request(fields, True)

    def write_heads(encoder: HeaderEncoder) -> None:
        for _ in given:
            encoder.encode(ANSWER)

    return [
        ("frames of the client", least(frames.FrameReader, read_frames)),
        ("header block", least(lambda: HeaderDecoder().decode, partial(decode, given))),
        ("— of it the Huffman code of path and cookie", least(object, read_texts)),
        ("fields checked and made a head", least(object, read_heads)),
        ("header block of the response", least(HeaderEncoder, write_heads)),
    ]


if __name__ == "__main__":
    main()
