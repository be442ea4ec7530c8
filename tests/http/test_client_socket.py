"""What a client has not taken, over the sockets that a server listens on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest

from serve_asgi.http.client_socket import acknowledged, unacknowledged
from tests.connection_server import LOOPS

SIZE = 20_000_000


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        return listening.accept()[0], client


@pytest.mark.parametrize("loop_name", LOOPS)
@pytest.mark.parametrize("pair", [tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def test_reading_shows_though_the_transport_is_not_asked_for_more(
    loop_name: str, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, client = pair()
        client.setblocking(False)
        with contextlib.closing(client):
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            assert unacknowledged(transport) == 0
            transport.write(b"x" * SIZE)
            await asyncio.sleep(0)
            full = unacknowledged(transport)
            assert full > transport.get_write_buffer_size()
            known = 0 <= acknowledged(transport) < SIZE
            assert known is (ours.family == socket.AF_INET)
            got = 0
            while unacknowledged(transport) >= full:
                with contextlib.suppress(BlockingIOError):
                    got += len(client.recv(65536))
                await asyncio.sleep(0.001)
            assert 0 < got < SIZE
            assert (acknowledged(transport) > 0) is known
            transport.abort()
            await asyncio.sleep(0.01)
            assert unacknowledged(transport) == transport.get_write_buffer_size()
            assert acknowledged(transport) == -1

    with contextlib.closing(LOOPS[loop_name]()) as loop:
        loop.run_until_complete(asyncio.wait_for(main(), 20))
