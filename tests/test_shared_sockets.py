"""What a worker can do to the listening sockets that all share, and what the server makes of it. Real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

from tests.running import connect, request, running, until

APPLICATION = """
import ctypes, json, os, signal, socket, struct, sys

def listening():
    for name in os.listdir("/proc/self/fd"):
        try:
            each = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with each:
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield each

async def app(scope, receive, send):
    found = 0
    if scope["path"] == "/shut":
        for each in listening():
            each.shutdown(socket.SHUT_RDWR)
            found += 1
    if scope["path"] == "/filter":
        program = (ctypes.c_uint64 * 1)(int.from_bytes(struct.pack("HBBI", 6, 0, 0, 0), sys.byteorder))  # drop all
        for each in listening():
            each.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(program)))
            each.setsockopt(socket.IPPROTO_IP, 21, 255)
            if scope["query_string"]:
                each.setsockopt(socket.SOL_SOCKET, 44, 1)
            found += 1
    if scope["path"] == "/close":  # the channel, as os.closerange() of an application does
        at = sys.orig_argv.index("--channel") + 1
        socket.socket(fileno=os.dup(int(sys.orig_argv[at]))).shutdown(socket.SHUT_RDWR)
    if scope["path"] == "/fork":  # past Python
        found = ctypes.CDLL(None).fork()
        while not found:
            signal.pause()
    text = json.dumps([os.getpid(), found]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})
"""
ARGUMENTS = ("--workers", "2", "--lifespan", "off")


def cpu(pid: int) -> float:
    """Seconds of processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_port_that_a_worker_shuts_down_is_open_again(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", *ARGUMENTS, directory=tmp_path) as server:
        with connect(server) as client:
            for count in (1, 2):
                status, body = request(client, "/shut")
                assert status == 200
                assert json.loads(body)[1] == 1
                server.logged(r"has shut it down for all; it listens again", count)

                def served() -> bool:
                    with contextlib.suppress(ConnectionError), connect(server) as another:
                        return request(another)[0] == 200
                    return False

                until(served)
        with contextlib.ExitStack() as stack:  # by every worker: the other one looks again within half a second
            answered: set[int] = set()

            def by_both() -> bool:
                answered.add(json.loads(request(stack.enter_context(connect(server)))[1])[0])
                return len(answered) == 2

            until(by_both)
        server.reload()
        assert server.stop() == 0


def test_a_filter_of_a_worker_keeps_nobody_out_for_long(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", *ARGUMENTS, directory=tmp_path) as server:
        with connect(server) as client:
            assert json.loads(request(client, "/filter")[1])[1] == 1
        server.logged("has kept new clients out of it; clients can connect again")
        for _ in range(5):
            with connect(server) as client:
                assert request(client)[0] == 200
        with connect(server) as client:
            assert json.loads(request(client, "/filter?lock")[1])[1] == 1
        server.logged("has kept new clients out of it; no client can connect any more: it has locked that")
        assert server.stop() == 0


def test_a_worker_that_loses_its_channel_shuts_nobody_out(tmp_path: Path) -> None:
    """It takes the listener for dead, unless it looks whether that still is its parent."""
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", *ARGUMENTS, directory=tmp_path) as server:
        with connect(server) as client:
            pid = json.loads(request(client, "/close")[1])[0]
        until(lambda: pid not in server.worker_pids())
        server.wait_for_workers(2)
        for _ in range(10):
            with connect(server) as client:
                assert request(client)[0] == 200
        assert "kept new clients out" not in server.log()
        assert server.stop() == 0


def test_of_a_unix_socket_that_a_worker_shuts_down_the_log_tells_and_nobody_spins(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    path = tmp_path / "sock"
    arguments = (*ARGUMENTS, "--bind", f"unix:{path}")
    with running("app:app", *arguments, directory=tmp_path) as server:
        with connect(server) as client:
            status, body = request(client, "/shut")
            assert status == 200
            assert json.loads(body)[1] == 2
        server.logged(
            r"sock as well, .* has shut it down for all; no client can connect any more: .* restart the server"
        )
        server.logged(r"has shut it down for all; it listens again")
        before = [cpu(pid) for pid in server.worker_pids()]
        begin = time.monotonic()
        while time.monotonic() < begin + 1:
            with connect(server) as client:
                assert request(client)[0] == 200
                time.sleep(0.1)
        spent = [after - early for after, early in zip(map(cpu, server.worker_pids()), before, strict=True)]
        assert max(spent) < (time.monotonic() - begin) / 2
        assert len(server.logged("no client can connect any more")) == 1
        assert server.stop() == 0


def test_a_port_is_free_after_the_stop_though_a_fork_that_python_knows_nothing_of_has_it(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APPLICATION)
    with running("app:app", *ARGUMENTS, directory=tmp_path) as server:
        host, port = server.address()
        with connect(server) as client:
            (_, child) = json.loads(request(client, "/fork")[1])
        try:
            assert server.stop() == 0
            with running(
                "app:app", *ARGUMENTS, "--bind-timeout", "0", directory=tmp_path, bind=f"{host}:{port}"
            ) as heir:
                for _ in range(20):
                    with connect(heir) as client:
                        assert request(client)[0] == 200
                assert heir.stop() == 0
        finally:
            os.kill(child, signal.SIGKILL)


def test_no_child_shares_the_session_of_the_listener(tmp_path: Path) -> None:
    """Whose terminal it would be that a worker could put words into (TIOCSTI), run by another user's shell."""
    (tmp_path / "app.py").write_text(APPLICATION)
    hook = "server_started=sh -c 'ps -o sid= -p $$ > session'"
    with running("app:app", *ARGUMENTS, "--hook", hook, directory=tmp_path) as server:
        found = until(lambda: (tmp_path / "session").exists() and (tmp_path / "session").read_text().strip())
        until(lambda: len(server.worker_pids()) == 2)  # hooks are children as well
        for pid in server.worker_pids():
            assert os.getsid(pid) == pid
        assert int(found) != os.getsid(server.pid)
        assert server.stop() == 0
