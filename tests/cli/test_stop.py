"""`serve stop`: the steps it tells, and the truth about what it cost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from serve_asgi.ipc.leftovers import ATTEMPTS, ListenerFiles, remove_dead_servers, remove_leftovers
from serve_asgi.ipc.path_lock import PathLock
from tests.cli.serving import HANDSHAKE, SLOW, begin, serve, start
from tests.running import PATIENCE, connect, request, running, state_of


def write(directory: Path) -> None:
    (directory / "app.py").write_text(SLOW)


def test_nothing_is_cut(tmp_path: Path) -> None:
    """The drain, its delay, the stop: the request in progress ends well, and status 0 says so."""
    write(tmp_path)
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        with begin(server, "/wait/1") as connection:
            done = serve(server, "stop", "--delay", "0.2")
            assert connection.recv(10) == b"ne"
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"app:app, PID {server.pid}, on http://127.0.0.1:")
        assert "stopping in 0.2 s; until then draining" in lines
        assert any(line.startswith("stopping: requests in progress have") for line in lines)
        assert lines[-1].startswith("stopped after ")
        assert lines[-1].endswith("; nothing was cut")
        assert server.wait() == 0


def test_in_the_delay_everything_is_served_but_the_health_endpoint_says_no(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", directory=tmp_path) as server:
        stopping = start(server, "stop", "--delay", "60")
        assert stopping.stdout is not None
        while not stopping.stdout.readline().startswith("drain"):
            pass
        with connect(server) as connection:
            assert request(connection, "/ping")[0] == 503
            assert request(connection)[0] == 200
        stopping.send_signal(signal.SIGINT)
        _, complaint = stopping.communicate(timeout=PATIENCE)
        assert (stopping.returncode, complaint) == (
            130,
            "serve: the server continues to stop without this command; `serve status` shows the progress\n",
        )
        assert server.status()["state"] == "draining"
        following = start(server, "stop", "--json")
        assert following.stdout is not None
        assert "already" in [json.loads(following.stdout.readline())["text"] for _ in range(2)][1]
        server.signal(signal.SIGKILL)  # somebody else does; its workers drain on
        outcome = json.loads(following.communicate(timeout=PATIENCE)[0].splitlines()[-1])
        assert (following.returncode, outcome["ok"], outcome["cut"], outcome["killed"]) == (1, False, None, False)
        assert "ended without reporting after" in outcome["text"]


def test_what_the_server_cuts_is_counted(tmp_path: Path) -> None:
    """WebSockets as well, both those that a worker cuts and those that were in flight in one that was killed."""
    write(tmp_path)
    with running("app:app", "--workers", "2", "--graceful-timeout", "0.5", directory=tmp_path) as server:
        with begin(server, "/", HANDSHAKE, b"\r\n\r\n"):
            server.wait_until(lambda status: any(w["websockets"] for w in status["workers"]))
            for pid in server.worker_pids():
                os.kill(pid, signal.SIGKILL)
            server.wait_until(lambda status: status["lost"] == 1)
            server.wait_for_workers(2)
        with begin(server, "/wait/60"), begin(server, "/", HANDSHAKE, b"\r\n\r\n"):
            done = serve(server, "stop", "--json")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 1
        assert records[-1]["event"] == "outcome"
        assert (records[-1]["ok"], records[-1]["cut"], records[-1]["killed"]) == (False, 2, False)
        assert records[-1]["text"].endswith("; 2 requests cut")
        assert {"stop_requested", "stop_started", "worker_finished"} <= {record["event"] for record in records}
        server.wait()


def test_what_has_not_ended_in_time_is_killed_with_its_workers(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        pids = server.worker_pids()
        with begin(server, "/wait/60"):
            done = serve(server, "stop", "--timeout", "0.5")
        assert done.returncode == 1
        text = "it had not ended 0.5 s after the stop began (--timeout): killed, 1 worker as well"
        assert text in done.stdout  # the other worker had nothing to finish
        assert done.stdout.splitlines()[-1].endswith("; 1 request cut")
        assert server.wait() == -signal.SIGKILL
        assert [state_of(pid) for pid in pids] in (["", ""], ["Z", "Z"], ["", "Z"], ["Z", ""])


def test_the_time_that_is_told_is_the_one_in_force_and_a_kill_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    binds = (
        "--bind",
        "127.0.0.1:0",
        "--bind",
        "unix:app.sock",
        "--bind",
        "unix:@serve-test-left",
        "--pid-file",
        "serve.pid",
    )
    with running("app:app", *binds, directory=tmp_path, bind="") as server:
        assert (tmp_path / "serve.pid").read_text() == f"{server.pid}\n"
        with begin(server, "/wait/60"):
            done = serve(server, "stop", "--timeout", "0.5", "--json")
        records = {record["event"]: record for record in map(json.loads, done.stdout.splitlines())}
        text = "stopping: requests in progress have 0.5 s, then the server is killed (--timeout)"
        assert (records["stop_started"]["text"], records["stop_started"]["timeout"]) == (text, 0.5)
        assert server.wait() == -signal.SIGKILL
        assert records["leftovers_removed"]["paths"] == [str(tmp_path / "serve.pid"), str(server.control)]
        assert not server.control.exists()
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["app.py"]


def test_what_is_no_dead_servers_is_left_alone(tmp_path: Path) -> None:
    """Another server has the pid file's path by now, or somebody listens at the socket's."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    pid_file, free = tmp_path / "serve.pid", tmp_path / "free.sock"
    lock = PathLock(str(pid_file))
    pid_file.write_text(f"{gone.pid}\n")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as dead:
        listening.bind(str(tmp_path / "control.sock"))
        listening.listen()
        dead.bind(str(free))
        removed = remove_leftovers(gone.pid, str(pid_file), str(tmp_path / "control.sock"), [str(free), "/nowhere/x"])
        assert removed == [str(free)]
    assert pid_file.exists()
    lock.release()
    pid_file.write_text("1\n")
    assert remove_leftovers(gone.pid, str(pid_file), "", [str(pid_file)]) == []
    assert pid_file.exists()
    pid_file.write_text(f"{gone.pid}\n")
    assert remove_leftovers(gone.pid, str(pid_file), "", []) == [str(pid_file)]
    assert not list(tmp_path.glob("*.lock"))


def test_a_server_that_was_killed_by_hand_is_followed_by_the_next_without_help(tmp_path: Path) -> None:
    write(tmp_path)
    options = ("--workers", "2", "--pid-file", "serve.pid", "--bind", "unix:app.sock", "--control", "control.sock")
    with running("app:app", *options, directory=tmp_path, bind="") as server:
        for pid in (server.pid, *server.worker_pids()):
            os.kill(pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        assert {"serve.pid", "app.sock", "control.sock"} <= {path.name for path in tmp_path.iterdir()}
        with running("app:app", *options, directory=tmp_path, bind="") as following:
            assert (tmp_path / "serve.pid").read_text() == f"{following.pid}\n"
            assert following.stop() == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["app.py"]


def test_the_files_of_a_listener_that_is_killed_are_removed_by_its_orphans(tmp_path: Path) -> None:
    write(tmp_path)
    with running("app:app", "--pid-file", "serve.pid", directory=tmp_path) as server:
        pids = server.worker_pids()
        with begin(server, "/wait/60"):  # so that the worker lives on for a while
            server.signal(signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL
            deadline = time.monotonic() + PATIENCE
            while (tmp_path / "serve.pid").exists() or server.control.exists() or list(tmp_path.glob("*.lock")):
                assert time.monotonic() < deadline  # each has its lock, which goes after it
                time.sleep(0.02)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_the_orphans_remove_nothing_of_the_next_server(tmp_path: Path) -> None:
    pid_file, control = tmp_path / "serve.pid", tmp_path / "control.sock"
    gone = subprocess.Popen(["true"])
    gone.wait()
    pid_file.write_text("1\n")  # the next server's, which has just been started
    files = ListenerFiles({"files": [gone.pid, str(pid_file), str(control)]})
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(control))
        listening.listen()
        for _ in range(ATTEMPTS + 1):
            files.remove()
        assert sorted(tmp_path.iterdir()) == [control, pid_file]
    files.remove()  # it has looked often enough
    assert control.exists()
    ListenerFiles({}).remove()  # a listener of an earlier version


def test_the_next_start_removes_dead_control_sockets_from_the_runtime_directory(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as starting:
        dead.bind(str(tmp_path / f"{gone.pid}.sock"))
        starting.bind(str(tmp_path / f"{os.getpid()}.sock"))  # not listening yet
    (tmp_path / "other.sock").touch()
    (tmp_path / "99999999999999999999.sock").touch()
    assert remove_dead_servers(tmp_path) == [tmp_path / f"{gone.pid}.sock"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_listener_that_turns_no_more_is_killed_as_well(tmp_path: Path) -> None:
    """It cannot say what its workers hold; that is told as well."""
    write(tmp_path)
    with running("app:app", directory=tmp_path) as server:
        pids = server.worker_pids()
        with begin(server, "/wait/60"):
            stopping = start(server, "stop", "--timeout", "2")
            server.wait_until(lambda status: status["state"] == "stopping")
            server.signal(signal.SIGSTOP)
            told, _ = stopping.communicate(timeout=2 * PATIENCE)
        assert stopping.returncode == 1
        assert told.splitlines()[-1].endswith("; what was cut is not known")
        assert server.wait() == -signal.SIGKILL
        assert {state_of(pid) for pid in pids} <= {"", "Z"}


def test_a_second_stop_follows_the_first(tmp_path: Path) -> None:
    """It does not make it a quick one, as a second TERM would."""
    write(tmp_path)
    with running("app:app", directory=tmp_path) as server:
        with begin(server, "/wait/2") as connection:
            first = start(server, "stop")
            server.wait_until(lambda status: status["state"] == "stopping")
            second = serve(server, "stop")
            assert connection.recv(10) == b"ne"
        assert (second.returncode, first.wait(PATIENCE)) == (0, 0)
        assert "the server is stopping already" in second.stdout
        first.communicate()
        assert server.wait() == 0
        done = serve(server, "stop")  # a third finds nobody
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith("cannot be reached: No such file or directory; is it running?\n")
