"""What a WebSocket library costs: CPU time for one echoed message, framing alone, without sockets.

Run it as `python -m loadtest.websocket_libraries`; it prints one Markdown table, for
docs/how-it-works/websocket-library.md. Each library gets the same bytes of a client and has to produce the bytes of
the response; the least of the rounds is shown, since whatever else the machine does only adds to it. `serve` is the
seam of this server (serve_asgi.websocket.framing). wsproto comes with the dependency group `peers`.
"""

from __future__ import annotations

import importlib
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame
from websockets.protocol import OPEN, SERVER, Protocol
from websockets.uri import parse_uri

from serve_asgi.websocket.compression import Deflate
from serve_asgi.websocket.framing import End, MessageFraming

ROUNDS = 5
MAX_SIZE = 16 * 1024 * 1024
Echo = Callable[[bytes], bytes]


def deflate() -> PerMessageDeflate:
    """The extension as this server negotiates it."""
    return PerMessageDeflate(False, False, 12, 12, {"memLevel": 5})


def serve(compressed: bool) -> Echo:
    framing = MessageFraming(Deflate(12, 12, True, True) if compressed else None, MAX_SIZE)

    def echo(data: bytes) -> bytes:
        event = framing.single(data)
        if event is None:
            (read,) = framing.receive(data)
            assert not isinstance(read, End)
            event = read
        return framing.text(event) if isinstance(event, str) else framing.binary(event)

    return echo


def websockets(compressed: bool) -> Echo:
    protocol = Protocol(SERVER, state=OPEN, max_size=MAX_SIZE)
    protocol.extensions = [deflate()] if compressed else []

    def echo(data: bytes) -> bytes:
        protocol.receive_data(data)
        (frame,) = protocol.events_received()
        assert isinstance(frame, Frame)
        if frame.opcode == 1:
            protocol.send_text(bytes(frame.data).decode().encode())
        else:
            protocol.send_binary(frame.data)
        return b"".join(protocol.data_to_send())

    return echo


def wsproto_(compressed: bool) -> Echo:
    # by name, so that the type checker does not need what only this comparison does
    core: Any = importlib.import_module("wsproto.connection")
    message: Any = importlib.import_module("wsproto.events").Message
    extensions = []
    if compressed:
        compression: Any = importlib.import_module("wsproto.extensions").PerMessageDeflate
        extension = compression(client_max_window_bits=12, server_max_window_bits=12)
        extension._enabled = True
        extensions.append(extension)
    connection = core.Connection(core.ConnectionType.SERVER, extensions)

    def echo(data: bytes) -> bytes:
        connection.receive_data(data)
        (event,) = connection.events()
        return bytes(connection.send(message(data=event.data)))

    return echo


LIBRARIES: dict[str, Callable[[bool], Echo]] = {"serve": serve, "websockets": websockets, "wsproto": wsproto_}
JSON_TEXT = json.dumps([{"id": i, "name": f"item {i}", "price": i * 1.25} for i in range(22)])
MESSAGES: dict[str, tuple[str | bytes, bool, int]] = {
    "64-byte text": ("x" * 64, False, 20_000),
    "64 KiB binary": (b"x" * 65536, False, 1_000),
    "1 KiB of JSON, deflate": (JSON_TEXT, True, 5_000),
}


def client_bytes(message: str | bytes, compressed: bool, count: int) -> list[bytes]:
    """What a client sends for `count` messages; the compressor's context goes on from one to the next."""
    client = ClientProtocol(parse_uri("ws://test/"), state=OPEN)
    client.extensions = [deflate()] if compressed else []
    stream = []
    for _ in range(count):
        if isinstance(message, str):
            client.send_text(message.encode())
        else:
            client.send_binary(message)
        stream.append(b"".join(client.data_to_send()))
    return stream


def cost(library: Callable[[bool], Echo], message: str | bytes, compressed: bool, count: int) -> float:
    """CPU time in µs for each message, the least of the rounds."""
    stream = client_bytes(message, compressed, count)
    least = float("inf")
    for _ in range(ROUNDS):
        echo = library(compressed)
        start = time.process_time()
        for data in stream:
            echo(data)
        least = min(least, time.process_time() - start)
    return least / count * 1e6


def main() -> None:
    print(
        f"CPython {platform.python_version()}, websockets {version('websockets')}, wsproto {version('wsproto')}; µs\n"
    )
    print("| message |", " | ".join(LIBRARIES), "|")
    print("| --- |", " | ".join("---:" for _ in LIBRARIES), "|")
    for name, (message, compressed, count) in MESSAGES.items():
        row = [f"{cost(library, message, compressed, count):.1f}" for library in LIBRARIES.values()]
        print(f"| {name} |", " | ".join(row), "|")


if __name__ == "__main__":
    main()
