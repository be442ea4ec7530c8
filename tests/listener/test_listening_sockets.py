"""Shutting clients out under a storm of connects: whoever got in is served, nobody is reset."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from serve_asgi.config.options import Config
from serve_asgi.ipc import shut_out_clients as way_in
from serve_asgi.ipc import sock_diag
from serve_asgi.ipc.shut_out_clients import SocketKind, admit, arriving, shut_out
from serve_asgi.listener.binding import bind
from serve_asgi.listener.listening_sockets import ListeningSocket

CLIENTS = 6
ROUNDS = 6
SERVED_BEFORE = 250  # connections in a round until the door is shut
PATIENCE = 20.0


class Storm:
    """Clients that connect, say one byte and want one back, again and again until told to stop."""

    def __init__(self, listening: ListeningSocket) -> None:
        self.family = listening.socket.family
        self.where = listening.socket.getsockname()
        self.answered = 0
        self.lost: list[object] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _client(self) -> None:
        while not self._stop.is_set():
            with socket.socket(self.family, socket.SOCK_STREAM) as client:
                client.settimeout(0.3)
                try:
                    client.connect(self.where)
                except OSError:  # shut out: that is what we want
                    self._stop.wait(0.01)
                    continue
                outcome: object
                try:
                    client.settimeout(PATIENCE)
                    client.sendall(b"?")
                    outcome = client.recv(1)
                except OSError as error:
                    outcome = error
                with self._lock:
                    self.answered += outcome == b"!"
                    if outcome != b"!":
                        self.lost.append(outcome)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def serve_waiting(listening: socket.socket) -> int:
    """Serve all that are in the queue; how many there were."""
    served = 0
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return served
        admit(connection)
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE)
            if connection.recv(1):
                connection.sendall(b"!")
        served += 1


def refused(_: socket.socket) -> None:
    raise PermissionError


@pytest.mark.parametrize(
    ("kind", "filters"), [(SocketKind.TCP, True), (SocketKind.TCP, False), (SocketKind.UNIX, True)]
)
def test_nobody_who_got_in_is_reset(
    kind: SocketKind, filters: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not filters:
        monkeypatch.setattr(way_in, "_drop_syn", refused)  # as for unprivileged users of some kernels
    answered = 0
    for number in range(ROUNDS):
        address = "127.0.0.1:0" if kind is SocketKind.TCP else f"unix:{tmp_path}/{number}"
        (listening,) = bind(Config(bind=(address,)))
        listening.listen(2048)
        storm = Storm(listening)
        served = 0
        while served < SERVED_BEFORE:
            served += serve_waiting(listening.socket)
        listening.shut_out()
        deadline = time.monotonic() + PATIENCE
        while arriving(listening.socket, kind) and time.monotonic() < deadline:
            serve_waiting(listening.socket)
        serve_waiting(listening.socket)
        listening.close()
        storm.end()
        assert storm.lost == []
        answered += storm.answered
    assert answered >= ROUNDS * SERVED_BEFORE


def test_a_worker_can_shut_a_bare_socket(tmp_path: Path) -> None:
    """Twice, and by each of two: the second changes nothing."""
    for address in ("127.0.0.1:0", f"unix:{tmp_path}/a"):
        (listening,) = bind(Config(bind=(address,)))
        listening.listen(8)
        with socket.socket(listening.socket.family) as early:
            early.connect(listening.socket.getsockname())
            copy = listening.socket.dup()
            shut_out(copy, listening.kind)
            shut_out(copy, listening.kind)
            listening.shut_out()
            with socket.socket(listening.socket.family) as late:
                late.settimeout(0.2)
                assert late.connect_ex(listening.socket.getsockname()) != 0
            connection, _ = copy.accept()
            connection.close()
        copy.close()
        listening.close()


def test_what_is_arriving_is_counted() -> None:
    (listening,) = bind(Config(bind=("127.0.0.1:0",)))
    listening.listen(8)
    assert arriving(listening.socket, SocketKind.TCP) == 0
    assert not listening.handshakes_under_way()
    with (
        socket.create_connection(listening.socket.getsockname()),
        socket.create_connection(listening.socket.getsockname()),
    ):
        assert arriving(listening.socket, SocketKind.TCP) == 2
        assert serve_nothing(listening) == 2
        assert arriving(listening.socket, SocketKind.TCP) == 0
    listening.close()


@pytest.mark.parametrize("netlink", [True, False])
@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", ""])
def test_a_handshake_under_way_is_counted(address: str, netlink: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without sock_diag(7), which a sandbox may refuse."""
    if not netlink:
        monkeypatch.setattr(sock_diag, "handshakes", lambda port, families: None)
    (listening,) = bind(Config(bind=(f"{address}:0",)))
    # A client that has sent nothing stays amid its handshake, for us (tcp(7)).
    listening.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    listening.listen(8)
    host = {"": "127.0.0.1"}.get(address, address.strip("[]"))
    with socket.create_connection((host, listening.socket.getsockname()[1])):
        assert arriving(listening.socket, SocketKind.TCP) == 1
        assert listening.handshakes_under_way()
    listening.close()


def serve_nothing(listening: ListeningSocket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listening.socket.accept()[0].close()
            count += 1
    return count
