"""The strict client against a server that says exactly what each test wants: every way to fail has its cause."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from loadtest.client import Client, Load
from loadtest.kinds import post
from loadtest.ledger import Cause, Ledger, Left
from loadtest.servers import free_port

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(number: int, body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nx-id: %d\r\nx-pid: 7\r\nx-generation: 1\r\n%scontent-length: %d\r\n\r\n"
    return head % (number, more, len(body)) + body


def right(number: int, more: bytes = b"") -> bytes:
    return response(number, post(number, b"").answer, more)


def exchange(script: Script, requests: int = 1, close: bool = False) -> Ledger:
    """Run the script for each connection, send so many requests one after the other, return the ledger."""

    async def main() -> Ledger:
        ended = asyncio.Event()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await script(reader, writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            ended.set()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        ledger = Ledger()
        client = Client(Load(host, port, ledger), "keep-alive")
        for _ in range(requests):
            await client.exchange(lambda number: post(number, b"", close=close))
        client.leave()
        await ended.wait()
        server.close()
        await server.wait_closed()
        return ledger

    return asyncio.run(main())


def saying(*answers: bytes) -> Script:
    """Read one request before each answer; then end."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        await writer.drain()

    return script


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def keeping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for number in (1, 2):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(right(number))
    await reader.read()


CHUNKED = b"HTTP/1.1 200 OK\r\nx-id: 1\r\nx-pid: 7\r\nx-generation: 1\r\ntransfer-encoding: chunked\r\n\r\n"

FAILURES: dict[str, tuple[Script, Cause]] = {
    "closes without a word": (saying(b""), Cause.EOF),
    "resets": (resetting, Cause.RESET),
    "ends in the head": (saying(right(1)[:20]), Cause.TRUNCATED),
    "ends in the body": (saying(right(1)[:-1]), Cause.TRUNCATED),
    "ends without the last chunk": (saying(CHUNKED + b"5\r\n1 0 0\r\n"), Cause.TRUNCATED),
    "answers 503": (saying(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"), Cause.STATUS),
    "answers another request": (saying(right(2)), Cause.WRONG),
    "answers other bytes": (saying(response(1, b"1 0 00000001\n")), Cause.WRONG),
    "speaks no HTTP": (saying(b"hello\r\n\r\n"), Cause.WRONG),
}


@pytest.mark.parametrize("case", FAILURES)
def test_each_failure_has_its_cause_and_is_not_retried(case: str) -> None:
    script, cause = FAILURES[case]
    ledger = exchange(script)
    assert [entry.cause for entry in ledger.entries] == [cause]
    assert ledger.connections == 1


def test_a_refused_connection_is_a_lost_request() -> None:
    ledger = Ledger()

    async def main() -> None:
        client = Client(Load("127.0.0.1", free_port(), ledger), "keep-alive")
        await client.exchange(lambda number: post(number, b""))

    asyncio.run(main())
    assert [entry.cause for entry in ledger.entries] == [Cause.REFUSED]


def test_right_answers_on_one_connection() -> None:
    ledger = exchange(keeping, requests=2)
    assert [entry.cause for entry in ledger.entries] == [None, None]
    assert (ledger.connections, ledger.reconnects) == (1, [])


def test_an_interim_response_is_no_answer() -> None:
    ledger = exchange(saying(b"HTTP/1.1 100 Continue\r\n\r\n" + right(1)))
    assert [entry.cause for entry in ledger.entries] == [None]


def test_an_announced_close_is_a_reconnect() -> None:
    ledger = exchange(saying(right(1, b"connection: close\r\n")))
    assert [entry.cause for entry in ledger.entries] == [None]
    assert [reconnect.left for reconnect in ledger.reconnects] == [Left.ANNOUNCED]


def test_a_close_that_the_client_asked_for_is_none() -> None:
    ledger = exchange(saying(right(1, b"connection: close\r\n")), close=True)
    assert [entry.cause for entry in ledger.entries] == [None]
    assert ledger.reconnects == []
    assert not ledger.oddities


def test_bytes_that_nobody_asked_for_are_noted() -> None:
    ledger = exchange(saying(right(1) + b"HTTP/1.1 408 Late\r\n\r\n"))
    assert [entry.cause for entry in ledger.entries] == [None]
    assert sum(ledger.oddities.values()) == 1
