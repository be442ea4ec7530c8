"""RFC 6455 case by case: what a client sends, and every frame that it must get back, up to the close code.

The numbers are those of the sections of Autobahn|Testsuite that ask the same; docs/reference/websocket.md says how to
run that. Each case runs with its bytes in one write, and again one byte at a time. The application is an echo.
A violation has to be answered with its code as soon as its first wrong byte is there, and messages before it have to be
echoed first.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from serve_asgi.http.worker_context import Receive, Scope, Send
from tests.websocket.websocket_server import RawClient, WebSocketServer, frame, serving

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
Frame = tuple[int, bytes]
GREETING = "Hello-µ@ßöäüàá-UTF-8!!"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends back what it gets."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@pytest.fixture(scope="module", params=["uvloop", "asyncio", "uvloop over HTTP/2"])
def server(request: pytest.FixtureRequest) -> Iterator[WebSocketServer]:
    with serving(echo, request.param) as running:
        yield running


class Case(NamedTuple):
    """Bytes of the client, the frames that answer them, and the code that ends it (the client's own 1000 at last)."""

    name: str
    sent: bytes
    answers: list[Frame]
    code: int = 1000
    dribble: bool = True


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def pieces(opcode: int, *payloads: bytes) -> list[bytes]:
    """One message in fragments."""
    last = len(payloads) - 1
    return [frame(opcode if not i else CONT, p, fin=i == last) for i, p in enumerate(payloads)]


def header(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes((first, second)) + rest


def framing() -> Iterator[Case]:
    """1.*: every form of the length, whole and in fragments."""
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        for size in (0, 1, 125, 126, 127, 128, 65535, 65536):
            message = b"*" * size
            yield Case(f"1 {name} of {size}", frame(opcode, message), [(opcode, message)], dribble=size < 1000)
        yield Case(f"1 {name} in one-byte fragments", b"".join(pieces(opcode, *[b"x"] * 50)), [(opcode, b"x" * 50)])


def pings() -> Iterator[Case]:
    """2.*: pings are answered with their content (RFC 6455 5.5.2), pongs are not (5.5.3)."""
    for payload in (b"", b"Hello, world!", bytes(range(131, 256)), b"x" * 125, b"\xff\xfe\xfd"):
        yield Case(f"2 ping of {len(payload)}", frame(PING, payload), [(PONG, payload)])
    yield Case("2.5 ping of 126", frame(PING, b"x" * 126), [], 1002)
    yield Case("2.7 pong unasked", frame(PONG) + frame(PING, b"a"), [(PONG, b"a")])
    yield Case("2.8 pong with content", frame(PONG, b"unasked") + frame(TEXT, b"a"), [(TEXT, b"a")])
    many = [b"payload-%d" % i for i in range(10)]
    yield Case("2.10 ten pings", b"".join(frame(PING, p) for p in many), [(PONG, p) for p in many])


def reserved() -> Iterator[Case]:
    """3.* and 4.*: reserved bits (RFC 6455 5.2) and opcodes, after and between what is right."""
    hello = frame(TEXT, b"Hello")
    for rsv in range(1, 8):
        for opcode in (TEXT, BINARY, CONT, CLOSE, PING, PONG):
            yield Case(f"3 rsv {rsv} on opcode {opcode}", hello + frame(opcode, rsv=rsv), [(TEXT, b"Hello")], 1002)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        for payload in (b"", b"reserved"):
            sent = hello + frame(opcode, payload) + frame(PING)
            yield Case(f"4 opcode {opcode} with {len(payload)}", sent, [(TEXT, b"Hello")], 1002)


def fragments() -> Iterator[Case]:
    """5.*: fragments (RFC 6455 5.4), and control frames between them."""
    one, two = pieces(TEXT, b"fragment1", b"fragment2")
    both = [(TEXT, b"fragment1fragment2")]
    yield Case("5.1 ping in two", b"".join(pieces(PING, b"a", b"b")), [], 1002)
    yield Case("5.2 pong in two", b"".join(pieces(PONG, b"a", b"b")), [], 1002)
    yield Case("5 close in two", b"".join(pieces(CLOSE, b"\x03", b"\xe8")), [], 1002)
    yield Case("5.3 two fragments", one + two, both)
    yield Case("5.6 ping between", one + frame(PING, b"p") + two, [(PONG, b"p"), *both])
    yield Case("5.9 continuation of nothing", frame(CONT, b"x"), [], 1002)
    yield Case("5.10 unfinished continuation of nothing", frame(CONT, b"x", fin=False), [], 1002)
    yield Case("5.15 continuation after the end", one + two + frame(CONT, b"x", fin=False), both, 1002)
    yield Case("5.18 message within a message", one + frame(TEXT, b"x"), [], 1002)
    yield Case("5 binary within a text", one + frame(BINARY, b"x", fin=False), [], 1002)
    five = pieces(TEXT, b"1", b"2", b"3", b"4", b"5")
    mixed = five[0] + frame(PING, b"a") + five[1] + frame(PONG) + five[2] + frame(PING, b"b") + five[3] + five[4]
    yield Case("5.19 pings between five", mixed, [(PONG, b"a"), (PONG, b"b"), (TEXT, b"12345")])
    yield Case("5.20 empty fragments", b"".join(pieces(BINARY, b"", b"", b"", b"")), [(BINARY, b"")])


def utf8() -> Iterator[Case]:
    """6.*: texts are UTF-8 (RFC 6455 8.1, RFC 3629), whole, in fragments, and cut at every byte."""
    valid = [
        GREETING,
        "",
        "κόσμε",
        "\x00",
        "\x7f",
        "\x80",
        "߿",
        "ࠀ",
        "\ud7ff",
        "\ue000",
        "\uffff",
        "𐀀",
        "\U0010ffff",
        "￾",
    ]
    for number, text in enumerate(valid):
        data = text.encode()
        yield Case(f"6 valid {number}", frame(TEXT, data), [(TEXT, data)])
        cut = b"".join(pieces(TEXT, *[data[i : i + 1] for i in range(len(data))])) if data else frame(TEXT)
        yield Case(f"6 valid {number} in fragments of a byte", cut, [(TEXT, data)])
    start = "κόσμε".encode()
    wrong = {
        "surrogate": b"\xed\xa0\x80",
        "surrogate pair": b"\xed\xa0\x80\xed\xb0\x80",
        "above 10ffff": b"\xf4\x90\x80\x80",
        "five bytes": b"\xf8\x88\x80\x80\x80",
        "six bytes": b"\xfc\x84\x80\x80\x80\x80",
        "overlong slash": b"\xc0\xaf",
        "overlong in three": b"\xe0\x80\xaf",
        "overlong in four": b"\xf0\x80\x80\xaf",
        "overlong nul": b"\xc0\x80",
        "lone continuation": b"\x80",
        "fe": b"\xfe",
        "ff": b"\xff",
        "new start within": b"\xe2\xe2\x82",
    }
    for name, data in wrong.items():
        yield Case(f"6 {name}", frame(TEXT, start + data + b"edited"), [], 1007)
        yield Case(f"6 {name} in fragments", b"".join(pieces(TEXT, start, data, b"edited")), [], 1007)
        before = frame(TEXT, b"before")
        yield Case(f"6 {name} after a message", before + frame(TEXT, data), [(TEXT, b"before")], 1007)
    for data in (b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", start + b"\xce"):
        yield Case(f"6 ends within a character {data!r}", frame(TEXT, data), [], 1007)
        yield Case(f"6 ends within a character {data!r}, in fragments", b"".join(pieces(TEXT, data, b"")), [], 1007)
    yield Case("6 binary may be anything", frame(BINARY, b"\xff\xfe\x80"), [(BINARY, b"\xff\xfe\x80")])


def closes() -> Iterator[Case]:
    """7.*: the close frame, its codes (RFC 6455 7.4) and its reason."""
    hello = frame(TEXT, b"Hello")
    yield Case("7.1.1 after a message", hello + close(), [(TEXT, b"Hello")])
    yield Case("7.1.2 twice", close() + close(), [])
    yield Case("7.1.3 ping after", close() + frame(PING), [])
    yield Case("7.1.4 text after", close() + hello, [])
    yield Case("7.1.5 within a message", frame(TEXT, b"a", fin=False) + close() + frame(CONT, b"b"), [])
    yield Case("7.3.1 empty", close(None), [], 1005)
    yield Case("7.3.2 one byte", frame(CLOSE, b"x"), [], 1002)
    yield Case("7.3.4 with a reason", close(1000, b"Hello World!"), [])
    yield Case("7.3.5 with the longest reason", close(1000, b"*" * 123), [])
    yield Case("7.3.6 of 126 bytes", close(1000, b"*" * 124), [], 1002)
    yield Case("7.5.1 reason not UTF-8", close(1000, b"\xce\xba\xed\xa0\x80"), [], 1007)
    for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999):
        yield Case(f"7.7 code {code}", close(code), [], code)
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"7.9 code {code}", close(code), [], 1002)


def lengths() -> Iterator[Case]:
    """RFC 6455 5.1 and 5.2: masked, and the length in the fewest bytes; a size over the limit at its announcement."""
    hello = frame(TEXT, b"Hello")
    key = b"\0\0\0\0"
    yield Case("unmasked", hello + frame(TEXT, b"x", mask=False), [(TEXT, b"Hello")], 1002)
    yield Case("unmasked ping", frame(PING, mask=False), [], 1002)
    for length in (0, 5, 125):
        short = header(0x81, 0xFE, struct.pack("!H", length) + key + b"x" * length)
        yield Case(f"{length} in two bytes", hello + short, [(TEXT, b"Hello")], 1002)
    for length in (0, 125, 126, 65535):
        yield Case(f"{length} in eight bytes", header(0x82, 0xFF, struct.pack("!Q", length) + key), [], 1002)
    yield Case("length with the highest bit", header(0x82, 0xFF, struct.pack("!Q", 1 << 63) + key), [], 1002)
    yield Case("announced too large", header(0x82, 0xFF, struct.pack("!Q", 1 << 40)), [], 1009)
    yield Case("ping with a long length", header(0x89, 0xFE, struct.pack("!H", 126)), [], 1002)


CASES = [case for group in (framing, pings, reserved, fragments, utf8, closes, lengths) for case in group()]


def converse(server: WebSocketServer, case: Case, writes: list[bytes]) -> tuple[list[Frame], int]:
    """The frames that come back, and the code of the last."""
    with RawClient(server.port) as client:
        client.open()
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for data in writes:
                client.socket.sendall(data)
        except ConnectionError:
            pass  # it has said why before
        answers = []
        while (got := client.receive())[0] != CLOSE:
            answers.append(got)
        code = struct.unpack("!H", got[1][:2])[0] if got[1] else 1005
        assert client.to_the_end() == b""
        return answers, code


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_in_one_write(server: WebSocketServer, case: Case) -> None:
    assert converse(server, case, [case.sent + close()]) == (case.answers, case.code)


@pytest.mark.parametrize("case", [case for case in CASES if case.dribble], ids=lambda case: case.name)
def test_byte_by_byte(server: WebSocketServer, case: Case) -> None:
    sent = case.sent + close()
    answers, code = converse(server, case, [sent[i : i + 1] for i in range(len(sent))])
    assert (sorted(answers), code) == (sorted(case.answers), case.code)  # a pong may come before an echo


@pytest.mark.parametrize("size", [1, 997, 4096])
def test_large_messages_in_writes_of_any_size(server: WebSocketServer, size: int) -> None:
    """9.*: a large message in small writes, and in small fragments."""
    message = bytes(range(256)) * (16 if size == 1 else 4096)
    sent = frame(BINARY, message) + b"".join(
        pieces(BINARY, *[message[i : i + 100 * size] for i in range(0, len(message), 100 * size)])
    )
    with RawClient(server.port) as client:
        client.open()
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), size):
            client.socket.sendall(sent[start : start + size])
        assert client.receive() == (BINARY, message)
        assert client.receive() == (BINARY, message)


# What is wrong is refused before the frame is complete: nothing more is sent until the answer has come.


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (frame(TEXT, b"x" * 1000 + b"\xff" + b"x" * 1000)[: 8 + 1001], 1007),
        (frame(TEXT, "κόσμε".encode() + b"\xf4\x90" + b"x" * 80)[: 6 + 13], 1007),
        (frame(TEXT, b"\xed\xa0" + b"x" * 80)[: 6 + 2], 1007),
        (frame(TEXT, "κόσμε".encode(), fin=False) + frame(CONT, b"\xc0" + b"x" * 80)[: 6 + 1], 1007),
        (header(0x83, 0x80), 1002),
        (header(0xC1, 0x85), 1002),
        (header(0x81, 0x05), 1002),
        (header(0x89, 0xFE), 1002),
        (header(0x09, 0x80), 1002),
        (header(0x80, 0x85), 1002),
        (header(0x81, 0xFE, b"\0\x05"), 1002),
        (header(0x81, 0xFF, struct.pack("!Q", 16 * 1024 * 1024 + 1)), 1009),
    ],
    ids=[
        "6.4.3 wrong byte in the middle of a frame",
        "6.4.4 above 10ffff, at its second byte",
        "surrogate, at its second byte",
        "6.4.1 wrong byte in the middle of a fragment",
        "reserved opcode",
        "reserved bit",
        "unmasked",
        "long ping",
        "fragmented ping",
        "continuation of nothing",
        "length not in its shortest form",
        "too large",
    ],
)
def test_refused_at_the_first_wrong_byte(server: WebSocketServer, start: bytes, code: int) -> None:
    with RawClient(server.port) as client:
        client.open()
        client.socket.sendall(start)
        opcode, payload = client.receive()
        assert (opcode, struct.unpack("!H", payload[:2])[0]) == (CLOSE, code)
        assert client.to_the_end() == b""
