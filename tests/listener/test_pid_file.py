"""The pid file, as scripts and other servers find it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serve_asgi.errors import UsageError
from serve_asgi.listener.pid_file import PidFile

ROOT = Path(__file__).parent.parent.parent
HOLD = (
    "import sys; from serve_asgi.listener.pid_file import PidFile\n"
    "file = PidFile(sys.argv[1]); file.write(); print(flush=True); input()"
)


def holding(path: Path) -> subprocess.Popen[str]:
    """Another process that has the pid file."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "\n"
    return child


def test_it_appears_when_written_and_goes_when_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.pid"
    pid_file = PidFile(str(path))
    assert not path.exists()
    pid_file.write()
    pid_file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o444 == 0o444
    pid_file.remove()
    assert os.listdir(tmp_path) == []


def test_a_living_servers_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.pid"
    with holding(path) as child:
        with pytest.raises(UsageError, match=f"belongs to the server with PID {child.pid}, which is alive"):
            PidFile(str(path))
        assert path.read_text() == f"{child.pid}\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert path.read_text() == f"{child.pid}\n"
    pid_file = PidFile(str(path))  # it is dead now
    pid_file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    pid_file.remove()


def test_two_that_start_together_learn_of_each_other_before_either_is_ready(tmp_path: Path) -> None:
    first = PidFile(str(tmp_path / "a.pid"))
    with pytest.raises(UsageError, match="which is alive"):
        PidFile(str(tmp_path / "a.pid"))
    first.remove()


def test_anothers_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.pid"
    pid_file = PidFile(str(path))
    pid_file.write()
    path.unlink()
    path.write_text("1\n")
    pid_file.remove()
    assert path.read_text() == "1\n"


def test_no_reader_ever_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pid"
    path.write_text("999999\n")
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(200):
        pid_file = PidFile(str(path))
        pid_file.write()
        pid_file._identity = None  # as if the process had been killed: the file stays
        pid_file.remove()
    stop.set()
    reader.join()
    assert seen <= {"999999\n", f"{os.getpid()}\n"}


def test_unfit_paths(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        PidFile(str(tmp_path / "none" / "a.pid"))
    with pytest.raises(UsageError, match="is a directory"):
        PidFile(str(tmp_path))
