"""Limits of a whole server, as its clients see them. Those of one connection are in tests/http/."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from pathlib import Path

from tests.running import PATIENCE, answer, connect, request, running

APPLICATION = "loadtest.bench_app:app"


def readable(clients: list[socket.socket]) -> list[socket.socket]:
    found, _, _ = select.select(clients, [], [], PATIENCE)
    assert found, "nobody is answered any more"
    return found


def test_clients_beyond_max_connections_wait_to_be_accepted_and_none_is_lost(tmp_path: Path) -> None:
    with (
        running(APPLICATION, "--workers", "2", "--max-connections", "3", directory=tmp_path) as server,
        contextlib.ExitStack() as opened,
    ):
        clients = [opened.enter_context(connect(server)) for _ in range(9)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        served = set[socket.socket]()
        while len(served) < 6:
            served |= {client for client in readable(clients) if client not in served and answer(client)[0] == 200}
        waiting = [client for client in clients if client not in served]
        server.wait_until(lambda status: sum(worker["connections"] for worker in status["workers"]) == 6)
        assert not select.select(waiting, [], [], 0.3)[0]  # longer than a worker rests before it looks again
        for client in served:
            client.close()
        assert [answer(client)[0] for client in waiting] == [200] * 3


def test_reload_serves_those_who_wait_beyond_max_connections(tmp_path: Path) -> None:
    with (
        running(APPLICATION, "--workers", "1", "--max-connections", "1", directory=tmp_path) as server,
        connect(server) as first,
        connect(server) as second,
    ):
        first.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer(first)[0] == 200
        second.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        server.signal(signal.SIGHUP)
        server.wait_until(lambda status: status["generation"] == 2)
        first.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer(first)[0] == 200
        first.close()
        assert answer(second)[0] == 200
        assert request(second, "/ping")[0] == 200
