"""Deaths and standstills at every step of a hand-over, of plain connections and of TLS 1.3 ones, in real processes.

What was lost must be no more than what was in flight in the killed process; a TLS connection that lives goes on with
the sequence numbers that it had, and no two workers write its records. Steps that only TLS has come last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from serve_asgi.worker.hand_over_sender import TAKE_TIMEOUT
from tests.applications import info
from tests.hand_over_traps import (
    alive,
    check_serves,
    only_once,
    opened_of_both,
    stopped_worker,
    told,
    trapped,
)
from tests.plain_and_tls import CutRecords, addresses, serving_both
from tests.running import PATIENCE, RunningServer, state_of, until

SENDER_DIES = {
    "when asked to retire": ("trap(HandOverSender, 'hand_over', die)", 0),
    "between a TLS connection's leaving and its offer": ("trap(PairEnd, 'offer', after(3, die))", 2),
    "after the first offer": ("trap(HandOverSender, '_offer', once(die), before=False)", 1),
    "after several offers": ("trap(HandOverSender, '_offer', after(5, die), before=False)", 5),
    "on the first take": ("trap(HandOverSender, '_answered', once(die))", 10),
    "after the first commit": ("trap(HandOverSender, '_committed', once(die), before=False)", 10),
    "after several commits": ("trap(HandOverSender, '_committed', after(5, die), before=False)", 10),
}
"""Where the old worker dies, and how many of ten connections must live: those that it had offered."""


@pytest.mark.parametrize("step", SENDER_DIES)
def test_the_old_worker_dies(tmp_path: Path, step: str) -> None:
    trap, least = SENDER_DIES[step]
    (tmp_path / "app.py").write_text(trapped("1", trap))
    with serving_both(tmp_path) as server:
        connections = opened_of_both(server, 5)
        (tmp_path / "app.py").write_text(info("2"))
        server.reload()
        server.wait_for_workers(1)
        assert alive(connections) >= least
        for connection in connections:
            connection.close()
        check_serves(server, 1)


RECEIVER_DIES = {
    "on the first offer": ("trap(HandOverReceiver, '_offered', once(die))", 10),
    "after the first take": ("trap(HandOverReceiver, '_offered', once(die), before=False)", 9),
    "on the first commit": ("trap(HandOverReceiver, '_offered', packet('commit', once(die)))", 0),
    "after the first commit": ("trap(HandOverReceiver, '_attach', once(die), before=False)", 0),
}
"""Where the new worker dies, and how many of ten connections must live: those that it had not been committed."""


@pytest.mark.parametrize("step", RECEIVER_DIES)
def test_the_new_worker_dies(tmp_path: Path, step: str) -> None:
    trap, least = RECEIVER_DIES[step]
    (tmp_path / "app.py").write_text(info("1"))
    with serving_both(tmp_path) as server:
        connections = opened_of_both(server, 5)
        (tmp_path / "app.py").write_text(trapped("2", only_once(trap)))
        server.reload()
        server.wait_for_workers(1)
        committed = server.status()["totals"]["handed_over"]
        assert alive(connections) >= max(least, 10 - committed)
        for connection in connections:
            connection.close()
        check_serves(server, 1)


OFFERED = "trap(HandOverReceiver, '_offered', packet"
STOPS = {
    "the receiver, on the first offer": (2, f"{OFFERED}('offer', once(stop)))"),
    "the receiver, after the first take": (2, f"{OFFERED}('offer', once(stop)), before=False)"),
    "the receiver, on the first commit": (2, f"{OFFERED}('commit', once(stop)))"),
    "the receiver, after the first commit": (2, f"{OFFERED}('commit', once(stop)), before=False)"),
    "the receiver, on the first record": (
        2,
        "from serve_asgi.tls.transport import TlsTransport; trap(TlsTransport, 'data_received', once(stop))",
    ),
    "the sender, after the first offer": (1, "trap(HandOverSender, '_offer', once(stop), before=False)"),
    "the sender, on the first take": (1, "trap(HandOverSender, '_answered', once(stop))"),
    "the sender, after the first commit": (1, "trap(HandOverSender, '_committed', once(stop), before=False)"),
}
"""Who stops itself, when, and to which generation it belongs."""


@pytest.mark.parametrize("step", STOPS)
def test_a_worker_stops_and_goes_on_under_pipelined_load(tmp_path: Path, step: str) -> None:
    """No byte may be read, or written, by two workers: every request gets its own answer, in order.

    Half of the first one has come when its connection is offered, over TLS half of its record; all others are cut too.
    """
    generation, trap = STOPS[step]
    (tmp_path / "app.py").write_text(trapped("1", only_once(trap)) if generation == 1 else info("1"))
    with serving_both(tmp_path) as server:
        connections = opened_of_both(server, 5, cut=True)
        begun = [_first_half(connection) for connection in connections]
        (tmp_path / "app.py").write_text(trapped("2", only_once(trap)) if generation == 2 else info("2"))
        server.reload()
        failures: list[str] = []
        threads = [
            threading.Thread(target=_pipeline, args=(connection, rest, number, failures))
            for number, (connection, rest) in enumerate(zip(connections, begun, strict=True))
        ]
        for thread in threads:
            thread.start()
        stopped = stopped_worker(server)
        threading.Event().wait(3 * TAKE_TIMEOUT)  # the other side has withdrawn, or waits
        os.kill(stopped, signal.SIGCONT)
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        for connection in connections:
            assert told(connection)["version"] == "2"
            connection.close()
        assert server.status()["totals"]["tls_failed"] == 0
        check_serves(server, 1)
        assert "Traceback" not in server.log()


def _first_half(connection: socket.socket) -> bytes:
    """Send half of a request, over TLS half of its record; the other half."""
    data = b"GET /begun HTTP/1.1\r\nhost: x\r\n\r\n"
    if isinstance(connection, CutRecords):
        data = connection.sealed(data)
    _send(connection, data[:20])
    return data[20:]


def _send(connection: socket.socket, data: bytes) -> None:
    """Bytes as they are."""
    socket.socket.sendall(connection, data)


def _pipeline(connection: socket.socket, rest: bytes, number: int, failures: list[str]) -> None:
    try:
        _send(connection, rest)
        assert json.loads(_responses(connection, 1)[0])["path"] == "/begun"
        for round_ in range(10):
            paths = [f"/{number}/{round_}/{n}" for n in range(5)]
            data = b"".join(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in paths)
            cut = (number * 7 + round_) % len(data)
            if cut:
                connection.sendall(data[:cut])
            threading.Event().wait(0.01)
            connection.sendall(data[cut:])
            got = [json.loads(body)["path"] for body in _responses(connection, len(paths))]
            if got != paths:
                failures.append(f"{paths} were answered as {got}")
    except (AssertionError, OSError, ValueError) as error:
        failures.append(f"connection {number}: {error!r}")


def _responses(connection: socket.socket, count: int) -> list[bytes]:
    """The bodies of so many responses, behind which nothing comes."""
    found: list[bytes] = []
    data = b""
    while len(found) < count or data:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) if end else 0
        if end and len(rest) >= length:
            found.append(rest[:length])
            data = rest[length:]
        else:
            piece = connection.recv(65536)
            assert piece, f"closed after {data!r}"
            data += piece
    return found


# ---- what only TLS has


def test_offers_that_cannot_be_sent_bring_connections_back_and_then_succeed(tmp_path: Path) -> None:
    """The kernel has no room, or no descriptor, after the state of TLS has left the session."""
    trap = """
offer, in_memory, fails = PairEnd.offer, hand_over_sender._in_memory, [False] * 5 + [True] * 5
def failing(pair, packet, descriptors):
    return fails.pop() is False and offer(pair, packet, descriptors) if fails else offer(pair, packet, descriptors)
PairEnd.offer = failing
"""
    (tmp_path / "app.py").write_text(trapped("1", trap))
    with serving_both(tmp_path) as server:
        connections = opened_of_both(server, 5, cut=True)
        begun = [_first_half(connection) for connection in connections]
        (tmp_path / "app.py").write_text(info("2"))
        server.reload()
        server.wait_for_workers(1)
        assert server.status()["totals"]["handed_over"] == 10
        for connection, rest in zip(connections, begun, strict=True):
            _send(connection, rest)
            (body,) = _responses(connection, 1)
            assert json.loads(body)["version"] == "2"
        assert alive(connections) == 10
        for connection in connections:
            connection.close()
        check_serves(server, 1)


def _half_a_hello(server: RunningServer) -> tuple[CutRecords, bytes]:
    """A client in its handshake, and what it has not sent of its hello."""
    client = CutRecords(addresses(server)["https"])
    hello = client.hello()
    client.send_raw(hello[:100])
    return client, hello[100:]


def _old_and_new(server: RunningServer) -> tuple[int, int]:
    """Reload while handshakes are under way, which the old worker finishes first; the PIDs of both."""
    (old,) = server.worker_pids()
    server.reload()
    new = until(lambda: [pid for pid in server.worker_pids() if pid != old], "the new worker")
    assert state_of(old) not in ("", "Z")
    return old, new[0]


def test_the_old_worker_dies_when_it_has_offered_a_connection_right_after_its_handshake(tmp_path: Path) -> None:
    """That one lives; the handshake that was under way is lost, and nothing else."""
    (tmp_path / "app.py").write_text(trapped("1", "trap(HandOverSender, '_offer', after(5, die), before=False)"))
    with serving_both(tmp_path) as server:
        connections = opened_of_both(server, 2)
        finished, rest = _half_a_hello(server)
        unfinished, _ = _half_a_hello(server)
        server.wait_until(lambda status: status["workers"][0]["connections"] == 6)
        (tmp_path / "app.py").write_text(info("2"))
        old, _ = _old_and_new(server)
        server.wait_until(lambda status: status["totals"]["handed_over"] == 4)
        assert alive(connections) == 4
        finished.send_raw(rest)
        finished.shake_hands()
        until(lambda: state_of(old) in ("", "Z"), "the death of the old worker")
        assert told(finished)["version"] == "2"
        assert alive([finished, *connections]) == 5
        with contextlib.suppress(ConnectionResetError):
            assert socket.socket.recv(unfinished, 1) == b""
        for connection in (finished, unfinished, *connections):
            connection.close()
        check_serves(server, 1)


def test_the_new_worker_dies_when_it_is_offered_a_connection_right_after_its_handshake(tmp_path: Path) -> None:
    """The old worker has it back, serves it, and hands it over to the next one. It had stood still in the handshake."""
    (tmp_path / "app.py").write_text(info("1"))
    with serving_both(tmp_path) as server:
        client, rest = _half_a_hello(server)
        server.wait_until(lambda status: status["workers"][0]["connections"] == 1)
        (tmp_path / "app.py").write_text(
            trapped("2", only_once("trap(HandOverReceiver, '_offered', packet('offer', once(die)))"))
        )
        old, new = _old_and_new(server)
        os.kill(old, signal.SIGSTOP)
        client.send_raw(rest)
        until(lambda: state_of(old) == "T")
        os.kill(old, signal.SIGCONT)
        client.shake_hands()
        until(lambda: state_of(new) in ("", "Z"), "the death of the new worker")
        told(client)
        server.wait_for_workers(1)
        assert told(client)["version"] == "2"
        assert server.status()["totals"]["tls_failed"] == 0
        client.close()
        check_serves(server, 1)
