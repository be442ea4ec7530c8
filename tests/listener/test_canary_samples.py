"""What is counted as an application's requests and errors, in real processes; and by generation."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from serve_asgi.ipc.scoreboard import ROW_WORDS, Cell, Row, mapped
from serve_asgi.listener.canary_samples import GENERATIONS, GenerationSamples, sample
from serve_asgi.listener.child import Child
from serve_asgi.supervisor.canary_verdict import NOTHING_DONE, TrafficSample
from serve_asgi.supervisor.lifecycles import Agent, Cause, Generation, Policy, Worker
from tests.running import RunningServer, connect, running

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "websocket":
        await receive()
        if scope["path"] == "/refused":
            raise RuntimeError("before the handshake is answered")
        if scope["path"] == "/denied":
            await send({"type": "websocket.http.response.start", "status": 503, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})
            raise RuntimeError("after it was denied")
        await send({"type": "websocket.accept"})
        if scope["path"] == "/fine":
            return
        raise RuntimeError("in an open WebSocket")
    what = scope["path"][1:]
    start = {"type": "http.response.start", "status": int(what) if what.isdigit() else 200, "headers": []}
    if what == "early":
        raise RuntimeError("before anything")
    if what == "nothing":
        return
    if what in ("held", "gone"):
        while (await receive())["type"] != "http.disconnect":
            pass
        if what == "held":
            return
        await send(start)
        raise OSError("what some frameworks make of a client that is gone")
    await send({**start, "status": 500 if what == "both" else start["status"]})
    if what == "started":
        raise RuntimeError("before the head was written")
    if what == "half":
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("in the middle")
    if what == "unfinished":
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        return
    await send({"type": "http.response.body", "body": b"whole"})
    if what in ("late", "both"):
        raise RuntimeError("after the response")
"""


def done(server: RunningServer) -> tuple[int, int]:
    """The requests and errors, from what the status tells of the same cells."""
    totals = server.status()["totals"]
    words = [0] * ROW_WORDS
    for cell in Cell:
        words[cell] = totals.get(cell.name.lower(), 0)
    found = sample(words)
    return found.requests, found.errors


def ask(server: RunningServer, path: str, headers: str = "") -> bytes:
    """Send one request and read to the end of the connection."""
    with connect(server) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


WEBSOCKET = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


def ask_websocket(server: RunningServer, path: str, headers: str = WEBSOCKET) -> bytes:
    with connect(server) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}\r\n"
        connection.sendall(head.encode())
        data = connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        return data + b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("samples")
    Path(directory, "application.py").write_text(APP)
    with running("application:app", "--workers", "1", "--max-concurrency", "1", directory=directory) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "status", "errors"),
    [
        ("/200", b"200", 0),
        ("/404", b"404", 0),
        ("/500", b"500", 1),
        ("/503", b"503", 1),
        ("/early", b"500", 1),
        ("/nothing", b"500", 1),
        ("/started", b"500", 1),
        ("/half", b"200", 1),
        ("/unfinished", b"200", 1),
        ("/late", b"200", 1),
        ("/both", b"500", 1),  # Starlette answers 500 and raises again
    ],
)
def test_each_failed_request_counts_once(server: RunningServer, path: str, status: bytes, errors: int) -> None:
    before = done(server)
    assert ask(server, path).split()[1] == status
    after = done(server)
    assert (after[0] - before[0], after[1] - before[1]) == (1, errors)


@pytest.mark.parametrize(
    ("path", "status", "errors"),
    [("/fine", b"101", 0), ("/open", b"101", 1), ("/refused", b"500", 1), ("/denied", b"503", 1)],
)
def test_a_websocket_counts_once(server: RunningServer, path: str, status: bytes, errors: int) -> None:
    before = done(server)
    assert ask_websocket(server, path).split()[1] == status
    after = done(server)
    assert (after[0] - before[0], after[1] - before[1]) == (1, errors)


def test_what_the_server_answers_is_not_the_applications(server: RunningServer) -> None:
    before = done(server)
    assert ask(server, "/ping").split()[1] == b"200"
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/9.9\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).split()[1] in (b"400", b"505")
    assert ask(server, "/200", "Transfer-Encoding: gzip\r\n").split()[1] in (b"400", b"501")
    assert ask_websocket(server, "/fine", "Sec-WebSocket-Version: 7\r\n").split()[1] in (b"400", b"426")
    assert done(server) == before


def test_an_overloaded_worker_is_not_the_applications_error(server: RunningServer) -> None:
    before = done(server)
    with connect(server) as held:
        held.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_until(lambda status: status["workers"][0]["in_flight"] == 1)
        assert ask(server, "/200").split()[1] == b"503"
        assert done(server) == before
    server.wait_until(lambda status: status["workers"][0]["in_flight"] == 0)
    assert done(server) == (before[0] + 1, before[1])


def test_a_client_that_goes_is_not_the_applications_error(server: RunningServer) -> None:
    before = done(server)
    with connect(server) as connection:
        connection.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_until(lambda status: status["workers"][0]["in_flight"] == 1)
    server.wait_until(lambda status: status["workers"][0]["in_flight"] == 0)
    assert done(server) == (before[0] + 1, before[1])


# By generation


@dataclasses.dataclass
class Living:
    """A process as far as it is counted."""

    worker: Worker | Agent
    counts: Row
    cells: memoryview


def living(worker: Worker | Agent, requests: int, errors: int) -> Living:
    row, fd = Row.create()
    cells = mapped(fd, writable=True)
    cells[Cell.REQUESTS], cells[Cell.STATUS_5XX] = requests, errors
    cells[Cell.DURATION_0 + 3], cells[Cell.DURATION_TOTAL] = requests, requests * 700_000
    return Living(worker, row, cells)


def test_a_generation_is_added_up_and_its_ended_workers_count() -> None:
    policy = Policy(1, 1, 3, 60.0, 30.0, 10.0, 0.0)
    old, new = (Generation(number, policy, 2, 0, [], 0.0) for number in (1, 2))
    others = [living(Worker(number, old, number, Cause.GENERATION), 100 * number, number) for number in (1, 2)]
    canary = living(Worker(3, new, 0, Cause.GENERATION), 10, 7)
    agent = living(Agent(4, new, Cause.GENERATION), 5, 5)
    samples = GenerationSamples()
    children = cast("list[Child]", [*others, canary, agent])
    before = samples.of(1, children)
    assert (before.requests, before.errors) == (300, 3)
    assert (samples.of(2, children).requests, samples.of(2, children).errors) == (10, 7)
    assert samples.of(2, children).latency.mean() == pytest.approx(0.0007)

    samples.reaped(agent.worker, agent.counts.words())
    samples.reaped(canary.worker, canary.counts.words())
    assert samples.of(2, cast("list[Child]", others)).errors == 7
    samples.reaped(others[0].worker, others[0].counts.words())
    others[1].cells[Cell.REQUESTS] += 50
    left = samples.of(1, cast("list[Child]", others[1:]))
    assert left.requests == 350
    assert (left - before).requests == 50
    for each in (*others, canary, agent):
        each.cells.release()
        each.counts.close()


def test_only_the_last_generations_are_remembered() -> None:
    policy = Policy(1, 1, 3, 60.0, 30.0, 10.0, 0.0)
    samples = GenerationSamples()
    words = [1] * ROW_WORDS
    words[Cell.REFUSED] = 0
    for number in range(1, GENERATIONS + 2):
        samples.reaped(Worker(number, Generation(number, policy, 1, 0, [], 0.0), 0, Cause.GENERATION), words)
    assert samples.of(1, []) == NOTHING_DONE
    assert samples.of(2, []).requests == 1


def test_counts_that_cannot_be_are_not_reckoned_with() -> None:
    words = [0] * ROW_WORDS
    words[Cell.REFUSED] = words[Cell.EXCUSED_5XX] = 9
    assert sample(words) == NOTHING_DONE
    words[Cell.REQUESTS], words[Cell.FAILED_WITHOUT_5XX] = 10, 5
    assert sample(words) == TrafficSample(1, 1)
