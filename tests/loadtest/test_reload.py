"""The strict load test ends when it is told to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from loadtest.reload import on_uvloop
from tests.running import PATIENCE


@pytest.fixture(autouse=True)
def _term_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Reader(asyncio.Protocol):
    """Is in the middle of reading when TERM comes."""

    def data_received(self, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the interpreter looks for signals here
            pass


def test_term_while_a_connection_is_read_ends_it() -> None:
    async def load() -> None:
        theirs, ours = socket.socketpair()
        with theirs:
            transport, _ = await asyncio.get_running_loop().create_connection(Reader, sock=ours)
            theirs.send(b"x")
            await asyncio.sleep(PATIENCE)
            transport.close()

    with pytest.raises(KeyboardInterrupt):
        on_uvloop(load())
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_another_cancellation_is_none() -> None:
    async def load() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        on_uvloop(load())
