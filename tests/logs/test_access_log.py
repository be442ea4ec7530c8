"""The access log as it is found where it was written: its formats, and that every answered request has its line."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_asgi.config.options import Config
from serve_asgi.logs.access_log_standard import AccessLog, RefusedRequest, open_access_log
from tests.applications import info
from tests.running import PATIENCE, ROOT, RunningServer, connect, request, running, until

CLIENT = ("10.0.0.1", 4711)
AT = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"


class Asked:
    """A request."""

    def __init__(
        self, target: str, method: str = "GET", version: str = "1.1", headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.target = target.encode("latin-1", errors="backslashreplace")
        self.method = method
        self.version = version
        self.headers = headers
        self.logged: tuple[str, ...] | None = None


def access_log(path: Path, style: str = "common") -> AccessLog:
    log = open_access_log(Config(access_log_file=str(path), access_log_format=style))
    assert log is not None
    return log


def ago(seconds: float) -> float:
    return time.perf_counter() - seconds


def test_the_common_format(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a")
    asked = Asked("/x?y=1")
    log.record(CLIENT, asked, 200, 12, ago(0.00125))
    log.record(None, Asked("/", "HEAD", "1.0"), 304, 0, ago(1.5))
    log.record(("::1", 1), asked, 404, 100_000, ago(0))
    log.record(CLIENT, RefusedRequest(), 400, 5, ago(0))
    assert (tmp_path / "a").read_text() == ""  # collected, not written
    log.flush()
    first, second, third, fourth = (tmp_path / "a").read_text().splitlines()
    assert re.fullmatch(rf'10\.0\.0\.1 - - {AT} "GET /x\?y=1 HTTP/1\.1" 200 12 0\.\d{{6}}', first)
    assert 0.00125 <= float(first.split()[-1]) < 1
    assert re.fullmatch(rf'- - - {AT} "HEAD / HTTP/1\.0" 304 - [1-9]\d*\.\d{{6}}', second)
    assert float(second.split()[-1]) >= 1.5
    assert re.fullmatch(rf'::1 - - {AT} "GET /x\?y=1 HTTP/1\.1" 404 100000 0\.\d{{6}}', third)
    assert re.fullmatch(rf'10\.0\.0\.1 - - {AT} "- - HTTP/1\.1" 400 5 0\.\d{{6}}', fourth)
    log.close()


def test_the_combined_format(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a", "combined")
    headers = [(b"host", b"x"), (b"referer", b'http://a/"'), (b"user-agent", b"curl\xff/8\n")]
    log.record(CLIENT, Asked("/", headers=headers), 200, 1, ago(0))
    log.record(CLIENT, Asked("/"), 200, 1, ago(0))
    log.close()
    first, second = (tmp_path / "a").read_text().splitlines()
    assert re.search(r' 200 1 "http://a/\\"" "curl\\xff/8\\x0a" 0\.\d{6}$', first)
    assert re.search(r' 200 1 "-" "-" 0\.\d{6}$', second)


def test_json_lines(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a", "json")
    log.record(CLIENT, Asked('/"\n\x1b\x85', headers=[(b"user-agent", b"\x00\xe9")]), 500, 7, ago(0.25))
    log.record(None, Asked("/"), 200, 0, ago(0))
    log.close()
    first, second = map(json.loads, (tmp_path / "a").read_text().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first.pop("seconds") >= 0.25
    assert first == {
        "client": "10.0.0.1",
        "method": "GET",
        "target": '/"\n\x1b\x85',
        "version": "1.1",
        "status": 500,
        "size": 7,
        "referer": None,
        "user_agent": "\x00\xe9",
        "request_id": None,
        "traceparent": None,
        "generation": 0,
        "slot": 0,
        "pid": os.getpid(),
    }
    assert (second["client"], second["size"], second["status"]) == (None, 0, 200)


@pytest.mark.parametrize("style", ["common", "json"])
def test_the_time_is_that_of_the_line(tmp_path: Path, style: str) -> None:
    log = access_log(tmp_path / "a", style)
    told = r"(\d\d:\d\d:\d\d) " if style == "common" else r"T(\d\d:\d\d:\d\d\.\d{3})Z"
    zone = time.localtime if style == "common" else time.gmtime
    deadline = time.monotonic() + PATIENCE
    seen: set[str] = set()
    while len(seen) < 2 and time.monotonic() < deadline:
        before = time.time()
        log.record(CLIENT, Asked("/"), 200, 0, ago(0))
        after = time.time()
        log.flush()
        (moment,) = re.findall(told, (tmp_path / "a").read_text().splitlines()[-1])
        # A millisecond of doubt: the wall clock and the monotonic one are not read at the same moment.
        around = {time.strftime("%H:%M:%S", zone(t)) for t in (before - 0.001, after + 0.001)}
        assert moment[:8] in around
        seen.add(moment[:8])
    assert len(seen) == 2
    log.close()


@pytest.mark.parametrize(
    "target", ["/\n127.0.0.1 - - forged", "/\r", "/\x1b[2J", '/" 200', "/\\", "/\x85\u2028é", "/\xff"]
)
@pytest.mark.parametrize("style", ["common", "combined", "json"])
def test_no_request_writes_a_line_of_its_own(tmp_path: Path, target: str, style: str) -> None:
    log = access_log(tmp_path / "a", style)
    asked = Asked(target, headers=[(b"referer", target.encode()), (b"user-agent", b'"\\\n')])
    for _ in range(2):  # made, and kept
        log.record((f'fe80::1%"{target}', 1), asked, 200, 1, ago(0))
    log.close()
    data = (tmp_path / "a").read_bytes()
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 2
    assert all(0x20 <= byte < 0x7F for byte in data.replace(b"\n", b""))
    if style == "json":
        assert json.loads(data.splitlines()[1])["client"] == f'fe80::1%"{target}'
    else:
        unescaped = re.sub(rb"\\.", b"", data)
        assert unescaped.count(b'"') == (4 if style == "common" else 12)


def test_nothing_is_lost_over_a_reopening(tmp_path: Path) -> None:
    path = tmp_path / "a"
    log = access_log(path)
    for number in range(3000):  # more than is held back, and more different sizes than are kept
        log.record(CLIENT, Asked(f"/{number}"), 200, number, ago(0))
        if number == 2000:
            path.rename(tmp_path / "a.1")
            log.reopen()
    log.close()
    found = [re.findall(r'GET /(\d+) HTTP/1.1" 200 (\d+|-)', (tmp_path / name).read_text()) for name in ("a.1", "a")]
    assert [len(part) for part in found] == [2001, 999]
    assert [*found[0], *found[1]] == [(str(number), str(number or "-")) for number in range(3000)]


def test_a_line_that_cannot_be_made_costs_no_request(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a")
    asked = Asked("/")
    asked.target = None  # type: ignore[assignment]
    log.record(CLIENT, asked, 200, 0, ago(0))
    log.close()
    assert (tmp_path / "a").read_text() == ""


def test_on_a_terminal_each_line_is_written_at_once() -> None:
    program = (
        "import time; from serve_asgi.config.options import Config; "
        "from serve_asgi.logs import access_log_standard as a; from tests.logs.test_access_log import Asked;"
        "a.open_access_log(Config()).record(None, Asked('/seen'), 200, 1, time.perf_counter()); input()"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=theirs)
    os.close(theirs)
    with process, open(ours, "rb") as terminal:
        assert b'"GET /seen HTTP/1.1" 200' in terminal.readline()
        process.communicate(b"\n", timeout=PATIENCE)


def test_off_means_none() -> None:
    assert open_access_log(Config(access_log=False)) is None


# ---- every answered request has its line


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(info())
    return tmp_path


class Askers:
    """Threads that ask for /THREAD-NUMBER, each on one connection, until told to stop.

    They leave some time between two requests: as many as possible would be as many new workers as possible.
    """

    def __init__(self, server: RunningServer, count: int) -> None:
        self.answered: set[str] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server.address(), i)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, address: tuple[str, int], name: int) -> None:
        number = 0
        while not self._stop.is_set():
            with socket.create_connection(address, timeout=PATIENCE) as connection:
                for _ in range(50):
                    assert request(connection, f"/{name}-{number}")[0] == 200
                    self.answered.add(f"/{name}-{number}")
                    number += 1
                    if self._stop.wait(0.005):
                        break

    def until(self, more: int) -> None:
        """Wait until so many further requests have been answered."""
        wanted = len(self.answered) + more
        until(lambda: len(self.answered) >= wanted, lambda: f"{wanted} answers, still {len(self.answered)}")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def logged(text: str) -> list[str]:
    return re.findall(r'"GET (/\d+-\d+) HTTP/1\.1" 200 ', text)


@pytest.mark.once
@pytest.mark.parametrize("into", ["file", "stdout"])
def test_none_is_lost_at_a_stop_over_reloads_recycling_and_rotation(project: Path, into: str) -> None:
    access = project / "access.log"
    where = ("--access-log-file", str(access)) if into == "file" else ()
    with running("app:app", "--workers", "2", "--max-requests", "60", *where, directory=project) as server:
        askers = Askers(server, 3)
        askers.until(200)
        for number in range(2):
            server.reload()
            askers.until(200)
            if into == "file":
                access.rename(project / f"access.{number}")
                server.signal(signal.SIGUSR1)
                askers.until(100)
        askers.stop()
        assert server.stop() == 0
        text = "".join(path.read_text() for path in project.glob("access.*")) if into == "file" else server.log()
    found = logged(text)
    assert len(found) == len(set(found)), "a request has two lines"
    assert set(found) == askers.answered


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_is_lost_is_counted(project: Path) -> None:
    fifo = project / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    count = 600
    try:
        with running("app:app", "--access-log-file", str(fifo), directory=project) as server:
            with connect(server) as connection:
                for number in range(count):  # more than the pipe and the buffer take together
                    assert request(connection, f"/{number}-0?{'x' * 4000}")[0] == 200
            status = server.wait_until(lambda status: status["totals"]["dropped_output"] > 0)
            assert status["totals"]["dropped_output"] < count * 4200
            assert server.stop() == 0
            told = re.findall(r"warning: the access log cannot be written .*: (\d+) bytes are lost", server.log())
            assert sum(map(int, told)) >= status["totals"]["dropped_output"]
    finally:
        os.close(reader)
