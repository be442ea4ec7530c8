"""Traps for a worker at exact steps of a hand-over, and clients that tell what came of it.

The application runs inside the worker, so the application's module can lay a trap in the server's own code: the process
kills or stops itself there. `TRAPS` is the source for that, to be put before the application's.

A worker that is to hand over with `TRAPS` in its application offers TLS connections and plain ones in turn, a TLS one
first: what happens at the first step of its kind happens to a TLS connection, and to a plain one next to it.
"""

from __future__ import annotations

import json
import socket
import ssl

from tests.applications import info
from tests.plain_and_tls import CutRecords, addresses, plain, secure
from tests.running import RunningServer, connect, request, state_of, until

TRAPS = """
import itertools, os, signal
from serve_asgi.worker import hand_over_sender
from serve_asgi.worker.hand_over_pair import PairEnd
from serve_asgi.worker.hand_over_receiver import HandOverReceiver
from serve_asgi.worker.hand_over_sender import HandOverSender
from serve_asgi.worker.retirement import Retirement

def trap(owner, name, act, before=True):
    original = getattr(owner, name)
    def sprung(*args, **kwargs):
        if before:
            act(*args)
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        act(*args)
        return result
    setattr(owner, name, sprung)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def stop(*_):
    os.kill(os.getpid(), signal.SIGSTOP)

def once(act):
    return after(1, act)

def after(count, act):
    seen = []
    def acted(*args):
        seen.append(1)
        if len(seen) == count:
            act(*args)
    return acted

def packet(kind, act):
    def acted(receiver, pair, packet, descriptors):
        if packet and packet.__struct_config__.tag == kind:
            act()
    return acted

def in_turn(retirement):
    def secure(connection):
        return getattr(connection, "tls", None) is not None
    connections = list(retirement._worker.context.connections)
    of_tls = [each for each in connections if secure(each)]
    others = [each for each in connections if not secure(each)]
    for pair in itertools.zip_longest(of_tls, others):
        for connection in pair:
            if connection is not None:
                connection.retire()

Retirement.retire_connections = in_turn
"""


def trapped(version: str, trap: str) -> str:
    """The source of a module with the application `info`, and this trap."""
    return TRAPS + info(version) + "\n" + trap + "\n"


def only_once(trap: str) -> str:
    """The same trap, but not in the worker that replaces the one which was caught."""
    return f"if not os.path.exists('sprung'): open('sprung', 'w'); {trap}"


def told(connection: socket.socket, path: str = "/") -> dict[str, object]:
    """What the application `info` says to a request on this connection."""
    status, data = request(connection, path)
    assert status == 200
    found: dict[str, object] = json.loads(data)
    return found


def opened(server: RunningServer, count: int) -> list[socket.socket]:
    """Connections to the server's first address that have been answered once."""
    connections = [connect(server) for _ in range(count)]
    for connection in connections:
        told(connection)
    return connections


def opened_of_both(server: RunningServer, count: int, cut: bool = False) -> list[socket.socket]:
    """So many connections over TLS 1.3, and as many plain ones, each of which has been answered once.

    With `cut`, those over TLS are `CutRecords`.
    """
    where = addresses(server)["https"]
    connections: list[socket.socket] = []
    for _ in range(count):
        connections += CutRecords(where).shake_hands() if cut else secure(server), plain(server)
    for connection in connections:
        told(connection)
    return connections


def alive(connections: list[socket.socket]) -> int:
    """How many kept connections still answer, twice. Raises ssl.SSLError for a record that is wrong.

    A record that two workers had sealed, or one out of turn, would be wrong.
    """
    count = 0
    for connection in connections:
        try:
            told(connection)
            told(connection)
        except (AssertionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            continue
        except ssl.SSLError:
            raise
        except OSError:
            continue
        count += 1
    return count


def check_serves(server: RunningServer, workers: int) -> None:
    """The server is whole again and answers; nothing is left behind at its end."""
    server.wait_for_workers(workers)
    with connect(server) as connection:
        told(connection)
    pids = server.worker_pids()
    assert len(pids) == workers
    assert server.stop() == 0
    assert not [pid for pid in pids if state_of(pid)]


def stopped_worker(server: RunningServer) -> int:
    """Wait until a worker has stopped itself; its PID."""
    found: list[int] = until(
        lambda: [pid for pid in server.worker_pids() if state_of(pid) == "T"], "a worker that has stopped itself"
    )
    return found[0]
