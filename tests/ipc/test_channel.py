"""Channels: packets and descriptors stay together, arrive once, and their end is seen."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator

import anyio
import pytest

from serve_asgi.errors import ChannelError
from serve_asgi.ipc.channel import MAX_PACKET, Channel, SendQueue, TruncatedDescriptors, pair, speaks


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    a, b = map(Channel, pair())
    yield a, b
    for end in (a, b):
        end._socket.close()  # outside a loop


def test_a_packet_arrives_with_its_descriptors(ends: tuple[Channel, Channel]) -> None:
    a, b = ends
    reading, writing = os.pipe()
    assert b.try_receive() is None
    assert a.try_send({"type": "hello", "text": "ü"}, [writing])
    os.close(writing)
    received = b.try_receive()
    assert received is not None
    packet, (descriptor,) = received
    assert packet == {"type": "hello", "text": "ü"}
    assert not os.get_inheritable(descriptor)
    os.write(descriptor, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(descriptor)
    os.close(reading)


def test_the_end_is_seen_after_what_was_sent(ends: tuple[Channel, Channel]) -> None:
    a, b = ends
    a.try_send({"type": "last"})
    a._socket.close()
    assert b.try_receive() == ({"type": "last"}, [])
    with pytest.raises(EOFError):
        b.try_receive()
    with pytest.raises(OSError):  # noqa: PT011 - EPIPE or ECONNRESET
        b.try_send({"type": "hello"})


def test_a_full_queue_is_told_and_waited_for(ends: tuple[Channel, Channel]) -> None:
    a, b = ends
    sent = 0
    while a.try_send({"type": "n", "n": sent}):
        sent += 1

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.send, {"type": "n", "n": sent})
            for number in range(sent + 1):
                packet, _ = await b.receive()
                assert packet["n"] == number

    anyio.run(main)


@pytest.mark.parametrize("data", [b"x", b"[]", b"{}", b"\xff", b'{"type": 1', b" " * (MAX_PACKET + 2)])
def test_what_is_no_packet_is_refused(data: bytes) -> None:
    raw, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with raw, end:
        raw.send(data)
        with pytest.raises(ChannelError):
            Channel(end).try_receive()


def test_too_much_is_refused_at_the_sender(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(ChannelError, match="too large"):
        ends[0].try_send({"type": "x", "data": "x" * MAX_PACKET})


def test_descriptors_that_do_not_fit_are_told_with_their_packet(ends: tuple[Channel, Channel]) -> None:
    a, b = ends
    a.try_send({"type": "offer", "offer": 7}, [0, 1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(TruncatedDescriptors) as truncated:
            b.try_receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert b'"offer":7' in truncated.value.data


@pytest.mark.parametrize(
    ("version", "understood"),
    [([0, 1], True), ([0, 3], True), ([0, 4], False), ([1, 1], False), (None, False), ("0.1", False), ([0], False)],
)
def test_versions(version: object, understood: bool) -> None:
    assert speaks(version) is understood


def test_an_outbox_keeps_the_order_and_ends_with_its_child() -> None:
    async def main() -> None:
        a, b = map(Channel, pair())
        send_queue = SendQueue(a)
        reading, writing = os.pipe()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_queue.run)
            for number in range(2000):  # more than the kernel's queue takes
                send_queue.put({"type": "n", "n": number})
            send_queue.put({"type": "given"}, given=[writing])
            assert not send_queue.try_send_now({"type": "not now"})
            for number in range(2000):
                assert (await b.receive())[0]["n"] == number
            _, (descriptor,) = await b.receive()
            with anyio.fail_after(10):
                await send_queue.flushed()
            os.close(descriptor)
            assert os.read(reading, 1) == b""  # nobody else holds the writing end: the given one was closed
            assert send_queue.try_send_now({"type": "now"})
            send_queue.close()
            send_queue.put({"type": "late"})
            a.close()
        b.close()
        os.close(reading)

    anyio.run(main)


def test_closing_wakes_who_waits() -> None:
    async def main() -> None:
        a, b = map(Channel, pair())

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await a.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await asyncio.sleep(0)
            await anyio.wait_all_tasks_blocked()
            a.close()
            a.close()
        b.close()

    anyio.run(main)


@pytest.mark.parametrize("turns", range(6))
def test_closing_while_the_outbox_waits_for_room_ends_it(turns: int) -> None:
    """A stopped child is killed: its end closes, which makes ours writable, and is closed before that is seen."""

    async def run() -> None:
        ours, theirs = pair()
        channel = Channel(ours)
        send_queue = SendQueue(channel)
        while channel.try_send({"type": "filler"}):
            pass
        send_queue.put({"type": "waits"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_queue.run)
            await anyio.wait_all_tasks_blocked()
            theirs.close()
            for _ in range(turns):
                await asyncio.sleep(0)
            channel.close()

    anyio.run(run)


def test_what_a_dead_peer_said_is_read_although_it_had_not_read_everything() -> None:
    ours, theirs = pair()
    channel, other = Channel(ours), Channel(theirs)
    channel.try_send({"type": "unread"})
    other.try_send({"type": "last words"})
    other.close()
    received = channel.try_receive()
    assert received is not None
    assert received[0] == {"type": "last words"}
    with pytest.raises(EOFError):
        channel.try_receive()
    channel.close()
