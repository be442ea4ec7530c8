"""What a statsd server receives: gunicorn's names, every request once, and nobody waits for it."""

from __future__ import annotations

import collections
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve_asgi.logs.statsd import MOST_IN_DATAGRAM, MOST_TIMINGS, StatsdRequests, StatsdSocket
from tests.applications import info
from tests.running import PATIENCE, connect, request, running, until

LINE = re.compile(r"shop\.gunicorn\.([a-z0-9.]+):([0-9.]+)\|(c|ms|g)(?:\|@([0-9.]+))?")


class Statsd:
    """A statsd server: what it has received."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.counts: collections.Counter[str] = collections.Counter()
        self.timings: list[float] = []
        self.gauges: dict[str, float] = {}
        self.largest = 0

    def run(self) -> None:
        while (data := self._server.recv(65536)) != b"end":
            self.largest = max(self.largest, len(data))
            for line in data.decode().split("\n"):
                found = LINE.fullmatch(line)
                assert found, line
                name, value, kind, _ = found.groups()
                if kind == "c":
                    self.counts[name] += int(value)
                elif kind == "ms":
                    assert name == "request.duration"
                    self.timings.append(float(value))
                else:
                    self.gauges[name] = float(value)


@contextmanager
def statsd(server: socket.socket) -> Iterator[Statsd]:
    one = Statsd(server)
    thread = threading.Thread(target=one.run)
    thread.start()
    try:
        yield one
    finally:
        with socket.socket(server.family, socket.SOCK_DGRAM) as client:
            client.sendto(b"end", server.getsockname())
        thread.join(PATIENCE)
        server.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_every_request_is_counted_once_over_a_reload(tmp_path: Path, family: socket.AddressFamily) -> None:
    (tmp_path / "app.py").write_text(info())
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind(str(tmp_path / "statsd") if family is socket.AF_UNIX else ("127.0.0.1", 0))
    name = server.getsockname()
    address = f"unix:{name}" if family is socket.AF_UNIX else f"{name[0]}:{name[1]}"
    arguments = ("--workers", "2", "--statsd", address, "--statsd-prefix", "shop.")
    with statsd(server) as received, running("app:app", *arguments, directory=tmp_path) as one:
        with connect(one) as client:
            for number in range(60):
                if number == 30:
                    one.reload()
                assert request(client)[0] == 200
        with connect(one) as broken:
            broken.sendall(b"not HTTP\r\n\r\n")
            while broken.recv(65536):
                pass
        until(lambda: received.counts["requests"] == 61, lambda: received.counts)
        assert received.counts == {"requests": 61, "request.status.200": 60, "request.status.400": 1}
        assert len(received.timings) == 61
        until(lambda: received.gauges == {"workers": 2.0}, lambda: received.gauges)
        one.logged('"GET / HTTP/1.1" 200', 60)  # the access log is written as well
        assert one.stop() == 0


def test_nobody_there_is_no_trouble_and_a_socket_that_is_not_there_is_logged(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    for address, logged in ((nobody, False), (f"unix:{tmp_path / 'none'}", True)):
        with running("app:app", "--statsd", address, directory=tmp_path) as one, connect(one) as client:
            for _ in range(3):
                assert request(client)[0] == 200
            assert ("no metrics are sent to statsd" in one.log()) is logged
            assert one.stop() == 0


class Recorded:
    """The end of a socket, and what arrived there."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setblocking(False)
        theirs.setblocking(False)
        self.requests = StatsdRequests(StatsdSocket(theirs, ""), None)

    def close(self) -> None:
        self.requests.close()
        self.ours.close()

    def datagrams(self) -> list[str]:
        found = []
        try:
            while True:
                found.append(self.ours.recv(65536).decode())
        except BlockingIOError:
            return found


class Response:
    """As much of one as is asked for."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    def client_scheme(self) -> str:
        return self.scheme


def record(recorded: Recorded, times: int, status: int, scheme: str = "http") -> None:
    for _ in range(times):
        recorded.requests.record(None, None, status, 0, 0.0, Response(scheme))  # type: ignore[arg-type]


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.close()


def test_of_very_many_durations_a_sample_is_sent_in_datagrams_that_a_network_takes(recorded: Recorded) -> None:
    record(recorded, 4 * MOST_TIMINGS, 200)
    recorded.requests.flush()  # what the kernel does not take at once is lost
    found = recorded.datagrams()
    assert "\n".join(found).count("duration") >= 100
    assert all(len(each) <= MOST_IN_DATAGRAM for each in found)
    assert found[0].startswith(
        f"gunicorn.requests:{4 * MOST_TIMINGS}|c\ngunicorn.request.status.200:{4 * MOST_TIMINGS}|c"
    )
    assert "|ms|@0.250000" in found[0]


def test_a_websocket_has_no_duration(recorded: Recorded) -> None:
    record(recorded, 1, 101, "wss")
    recorded.requests.flush()
    recorded.requests.flush()
    assert recorded.datagrams() == ["gunicorn.requests:1|c\ngunicorn.request.status.101:1|c"]
