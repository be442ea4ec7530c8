"""Each flood that HTTP/2 is known for, against a real server: how it ends, what it costs, and what others notice."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.http.h2.frames import PREFACE, RST_STREAM, ping_frame
from tests.h2_client import H2Client
from tests.h2_floods import FLOODS, SETTINGS, attack, pieces, stalled_windows
from tests.running import PATIENCE, ROOT, RunningServer, running, until

CONNECTIONS = 5
"""Of each flood, whose costs are added up."""
HONEST = 1_000
"""Requests of an honest client on one connection: no flood may cost more than these do."""
ROOM = 16 << 20
"""Bytes by which a worker may grow."""
LIMIT = 2.0
"""What the p99 of other clients may be, as a multiple of that without a flood."""
TRIES = 4
REQUESTS = 800
EVERY = 0.003
"""Seconds between two requests of the others."""
SHORT = ("--write-timeout", "1", "--head-timeout", "1", "--first-byte-timeout", "1", "--keep-alive", "2")

APPLICATION = """
PIECE = bytes(65536)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/read":
        while (event := await receive())["type"] != "http.disconnect" and event["more_body"]:
            pass
    size = 1 << 20 if scope["path"] == "/large" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    for _ in range(size // len(PIECE)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b"ok" if size == 2 else b""})
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One for all: what a flood leaves behind would be seen in the next."""
    directory = tmp_path_factory.mktemp("floods")
    (directory / "app.py").write_text(APPLICATION)
    with running("app:app", "--no-access-log", *SHORT, directory=directory) as server:
        yield server
        assert server.stop() == 0


def worker(server: RunningServer) -> int:
    """The PID of the only worker: what a flood kills is not there any more."""
    (pid,) = server.worker_pids()
    return pid


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used (its clock, clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def memory(pid: int) -> int:
    """Bytes of it that are resident (proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.fixture(scope="module")
def honest(server: RunningServer) -> float:
    """Processor time (s) that an honest client's requests cost."""
    pid = worker(server)
    with H2Client.to(server.address()) as client:
        client.ask()
        before = cpu(pid)
        for _ in range(HONEST // 50):
            for stream in [client.begin() for _ in range(50)]:
                assert client.response(stream) == (200, b"ok")
        return cpu(pid) - before


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_ends_its_connection_and_costs_little(kind: str, server: RunningServer, honest: float) -> None:
    pid, flood = worker(server), FLOODS[kind]
    address = server.address()
    assert attack(address, pieces(flood.frames())).code == flood.code
    before, used = memory(pid), cpu(pid)
    found = [attack(address, pieces(flood.frames())) for _ in range(CONNECTIONS)]
    assert [each.code for each in found] == [flood.code] * CONNECTIONS
    assert all(each.ended for each in found)
    assert cpu(pid) - used < CONNECTIONS * honest
    assert memory(pid) - before < ROOM
    assert worker(server) == pid


def test_floods_are_counted(server: RunningServer) -> None:
    before = server.status()["totals"]
    attack(server.address(), pieces(FLOODS["rapid reset"].frames()))
    after = server.status()["totals"]
    assert after["http2_faults"] == before["http2_faults"] + 1
    # Those whose requests were refused, as too many calls have not returned yet, were reset by the server before.
    resets = [each["http2_resets_received"] + each["http2_resets_sent"] for each in (before, after)]
    assert resets[1] >= resets[0] + 200
    assert after["http2_resets_received"] > before["http2_resets_received"]


@pytest.mark.parametrize("pings", [False, True])
def test_windows_that_stay_shut(server: RunningServer, pings: bool) -> None:
    """Each stream is reset at --write-timeout, also if the connection shows signs of life; until then little waits."""
    pid = worker(server)
    before, used, grown = memory(pid), cpu(pid), 0
    with socket.create_connection(server.address(), timeout=0.2) as client:
        client.sendall(PREFACE + b"".join(stalled_windows()))
        reset: set[int] = set()
        said = b""
        deadline = time.monotonic() + PATIENCE
        while len(reset) < 100 and time.monotonic() < deadline:
            try:
                data = client.recv(65536)
            except TimeoutError:
                grown = max(grown, memory(pid) - before)
                if pings:
                    client.sendall(ping_frame(b"12345678", False))
                continue
            assert data, f"closed after {reset}"
            said += data
            while len(said) >= 9 and len(said) >= (end := 9 + int.from_bytes(said[:3])):
                if said[3] == RST_STREAM and said[9:end] == b"\0\0\0\x08":
                    reset.add(int.from_bytes(said[5:9]))
                said = said[end:]
    assert reset == set(range(1, 201, 2))
    assert grown < 100 * (128 << 10) + ROOM
    assert cpu(pid) - used < 3.0
    until(lambda: server.status()["workers"][0]["in_flight"] == 0)


@pytest.mark.parametrize(
    "said",
    [b"", PREFACE[:20], PREFACE, PREFACE + SETTINGS, PREFACE + SETTINGS + b"\0\0\x08"],
    ids=["nothing", "half a preface", "a preface", "all that is needed", "half a frame"],
)
def test_connections_that_say_nothing(server: RunningServer, said: bytes) -> None:
    """They are ended by their timeouts, and cost nothing until then."""
    pid = worker(server)
    before, used = memory(pid), cpu(pid)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(server.address(), timeout=PATIENCE)) for _ in range(200)]
        for each in silent:
            each.sendall(said)
        for each in silent:
            while each.recv(65536):
                pass
    assert memory(pid) - before < ROOM
    assert cpu(pid) - used < 1.0
    until(lambda: server.status()["workers"][0]["connections"] == 0)


def test_as_many_requests_as_are_allowed_in_one_piece_are_no_flood(server: RunningServer) -> None:
    """And all of them are answered, also if the client has nothing more to say."""
    with H2Client.to(server.address()) as client:
        client.ask()
        for _ in range(5):
            for _ in range(100):
                client.core.send_headers(
                    client.core.get_next_available_stream_id(),
                    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
                    end_stream=True,
                )
            streams = range(client.core.highest_outbound_stream_id - 198, client.core.highest_outbound_stream_id + 1, 2)
            client.flush()
            if streams[-1] > 900:
                client.socket.shutdown(socket.SHUT_WR)
            assert [client.response(stream) for stream in streams] == [(200, b"ok")] * 100


# ---- what others notice


def p99(pid: int, clients: list[socket.socket], count: int = REQUESTS) -> float:
    """What requests at a fixed rate wait for their responses, in ms of the worker's processor time: what else runs on
    the machine, the flooder above all, delays them too, and says nothing of this server."""
    taken = []
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    for number in range(count):
        client = clients[number % len(clients)]
        time.sleep(max(0.0, begun + number * EVERY - time.perf_counter()))
        asked = cpu(pid)
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok"):
            piece = client.recv(4096)
            assert piece, "closed"
            answer += piece
        taken.append(1000 * (cpu(pid) - asked))
    gc.enable()
    return sorted(taken)[-1 - count // 100]


@contextlib.contextmanager
def flooding(server: RunningServer, kind: str) -> Iterator[dict[str, Any]]:
    """Another process floods, again and again; what it tells is there in the end."""
    host, port = server.address()
    command = [sys.executable, "-m", "tests.h2_floods", kind, host, str(port), str(FLOODS[kind].pause)]
    told: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"floods\n"
        yield told
        process.stdin.close()
        told |= json.loads(process.stdout.readline())


@pytest.mark.timeout(600)
def test_other_clients_notice_nothing(tmp_path: Path) -> None:
    """A client floods, and comes back whenever the server has ended its connection; of four others it is counted what
    they wait for. Kinds whose round was not calm come again.
    """
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", "--no-access-log", directory=tmp_path) as server:
        measure(server)
        assert server.stop() == 0


def measure(server: RunningServer) -> None:
    """All kinds in turn."""
    pid = worker(server)
    idle: list[float] = []
    flooded: dict[str, list[float]] = {kind: [] for kind in FLOODS}
    left = list(FLOODS)
    for _ in range(TRIES):
        for kind in left:
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(socket.create_connection(server.address())) for _ in range(4)]
                p99(pid, clients, 40)
                idle.append(p99(pid, clients))
                with flooding(server, kind) as told:
                    flooded[kind].append(p99(pid, clients))
            assert set(told["codes"]) == {str(FLOODS[kind].code)}, told
        left = [kind for kind in left if min(flooded[kind]) > LIMIT * statistics.median(idle)]
        if not left:
            break
    assert not left, (statistics.median(idle), {kind: flooded[kind] for kind in left})
    assert worker(server) == pid
