"""The metrics: what a scraper sees while the server is reloaded, and while its processes are killed."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics

from serve_asgi.cli import control_client
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS
from tests.admin.scraping import (
    ADMIN,
    GROWING,
    Series,
    admin_address,
    fetch,
    get_over,
    parsed,
    scrape,
    status_page,
    value,
    wait_for,
)
from tests.applications import info
from tests.running import PATIENCE, RunningServer, connect, request, running, state_of, until

RELOADS = int(os.environ.get("METRICS_RELOADS", "2"))
"""Reloads, and workers killed, in the test of counters; more of them by METRICS_RELOADS=40."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose counts only grow by what the tests send."""
    directory = tmp_path_factory.mktemp("metrics")
    (directory / "app.py").write_text(info())
    with running("app:app", "--workers", "2", *ADMIN, directory=directory) as server:
        wait_for(admin_address(server), lambda metrics: value(metrics, "serve_state", state="running") == 1)
        yield server
        assert server.stop() == 0


class Clients:
    """Threads that send requests on kept connections until told to stop, and count what came of them."""

    def __init__(self, server: RunningServer, number: int = 2) -> None:
        self._address = server.address()
        self._stop = threading.Event()
        self.answered = 0
        self.failed = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE)
        while not self._stop.is_set():
            good = False
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                good = connection.getresponse().read() != b""
            if not good:
                connection.close()
            with self._lock:
                self.answered += good
                self.failed += not good
            self._stop.wait(0.002)
        connection.close()


class Scraper:
    """A thread that scrapes as often as it can and keeps what is wrong with what it sees."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.scrapes = 0
        self.failed = 0
        self.wrong: list[str] = []
        self.last: dict[Series, float] = {}

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                seen = scrape(self._address)
            except (OSError, http.client.HTTPException):  # the admin process was killed in the middle of an answer
                self.failed += 1
                continue
            self._compare(seen)
            self.scrapes += 1
            self._stop.wait(0.005)

    def _compare(self, seen: dict[Series, float]) -> None:
        for series, before in self.last.items():
            if series[0].endswith(GROWING) and seen.get(series, -1) < before:
                self.wrong.append(f"{series}: {before} -> {seen.get(series)}")
        self.last = seen


def workers_of(server: RunningServer) -> list[int]:
    """The processes of the current generation's workers, from what top(1) would show."""
    generation = server.status()["generation"]
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in server.worker_pids() if state_of(pid) != "Z"}
    return [pid for pid, name in names.items() if name.startswith("serve-w") and name.endswith(f".{generation}")]


def admin_process(server: RunningServer) -> int:
    """The admin process, once it is set up."""

    def found() -> int:
        for pid in server.worker_pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "serve-admin\n":
                    return pid
        return 0

    return until(found, "the admin process")


def wait_for_crashes(address: tuple[str, int], number: int) -> None:
    """Wait until so many replacements of crashed workers have been started."""
    wait_for(address, lambda metrics: value(metrics, "serve_worker_restarts_total", cause="crash") >= number)


def test_counters_never_go_back_over_reloads_deaths_and_recycling(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    arguments = ("--workers", "2", "--max-requests", "600", "--no-access-log", *ADMIN)
    with running("app:app", *arguments, directory=tmp_path) as server:
        address = admin_address(server)
        with Clients(server) as clients, Scraper(address) as scraper:
            for number in range(RELOADS):
                server.reload()
                os.kill(victim := random.choice(workers_of(server)), signal.SIGKILL)
                wait_for_crashes(address, number + 1)
                assert victim not in server.worker_pids()
                server.wait_until(lambda status: [w["state"] for w in status["workers"]].count("serving") >= 2)
                if number == 0:
                    control_client.ask(server.control, "reload-listener")
                if number == 1:
                    os.kill(admin_process(server), signal.SIGKILL)
                    enough = scraper.scrapes + 2
                    while scraper.scrapes < enough:
                        time.sleep(0.01)
        assert scraper.wrong == []
        assert scraper.scrapes > 20
        assert scraper.failed <= 4
        assert clients.failed <= 3 * RELOADS
        end = wait_for(address, lambda metrics: value(metrics, "serve_reloads_total", outcome="done") == RELOADS)
        assert value(end, "serve_requests_in_flight") == 0
        requests = value(end, "serve_requests_total")
        assert clients.answered <= requests <= clients.answered + clients.failed
        assert value(end, "serve_responses_total", **{"class": "2xx"}) >= clients.answered
        assert value(end, "serve_reload_duration_seconds_count", outcome="done") == RELOADS
        assert value(end, "serve_generation") == RELOADS + 1
        assert value(end, "serve_worker_restarts_total", cause="crash") >= RELOADS
        assert value(end, "serve_connections_handed_over_total") >= 2
        assert value(end, "serve_requests_lost_total") <= clients.failed
        slots = [value(end, "serve_slot_requests_total", slot=str(slot)) for slot in (0, 1)]
        assert sum(slots) == requests
        assert server.stop() == 0


def test_requests_are_counted_with_their_duration_and_the_scrapes_are_not(server: RunningServer) -> None:
    address = admin_address(server)
    before = scrape(address)
    with connect(server) as connection:
        for _ in range(5):
            assert request(connection)[0] == 200
        during = wait_for(address, lambda now: value(now, "serve_connections", state="idle") == 1)
    told = value(before, "serve_request_duration_seconds_count") + 5  # durations and bytes are told once a second
    wait_for(address, lambda now: value(now, "serve_request_duration_seconds_count") == told)
    after = wait_for(address, lambda now: value(now, "serve_connections", state="idle") == 0)
    assert value(after, "serve_requests_total") - value(before, "serve_requests_total") == 5
    assert value(after, "serve_connections_accepted_total") - value(before, "serve_connections_accepted_total") == 1
    assert value(during, "serve_requests_in_flight") == 0
    buckets = [value(after, "serve_request_duration_seconds_bucket", le=f"{bound:g}") for bound in DURATION_BOUNDS]
    buckets.append(value(after, "serve_request_duration_seconds_bucket", le="+Inf"))
    assert buckets == sorted(buckets)
    assert buckets[-1] == value(after, "serve_request_duration_seconds_count") >= 5
    assert value(after, "serve_request_duration_seconds_sum") > 0
    for name in ("serve_received_bytes_total", "serve_sent_bytes_total"):
        assert value(after, name) > value(before, name)
    assert value(after, "serve_worker_resident_memory_bytes", slot="1") > 1_000_000
    assert value(after, "serve_listener_resident_memory_bytes") > 1_000_000


def test_what_a_worker_counted_before_its_end_is_whole(server: RunningServer) -> None:
    address = admin_address(server)
    with Clients(server) as clients:
        server.reload()
    assert clients.failed == 0
    wait_for(
        address,
        lambda now: (
            value(now, "serve_workers", state="retiring") == 0
            and value(now, "serve_request_duration_seconds_count") == value(now, "serve_requests_total")
        ),
    )


def test_the_state_is_told(server: RunningServer) -> None:
    address = admin_address(server)
    server.signal(signal.SIGUSR2)
    metrics = wait_for(
        address, lambda now: value(now, "serve_draining") == 1 and value(now, "serve_state", state="running") == 1
    )
    assert value(metrics, "serve_workers", state="serving") == value(metrics, "serve_workers_wanted") == 2
    assert value(metrics, "serve_slot_degraded", slot="0") == 0
    server.reload()
    wait_for(address, lambda now: value(now, "serve_draining") == 0)


def test_the_accept_queue_is_told(server: RunningServer) -> None:
    address, listening = admin_address(server), server.status()["listening"][0]
    assert value(scrape(address), "serve_accept_queue", listening=listening) == 0
    stopped = workers_of(server)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(connect_to(server))
            metrics = wait_for(address, lambda now: value(now, "serve_accept_queue", listening=listening) == 3)
            assert value(metrics, "serve_accept_queue_limit", listening=listening) >= 128
            wait_for(address, lambda now: value(now, "serve_event_loop_silent_seconds", slot="0") > 1.5)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def connect_to(server: RunningServer) -> socket.socket:
    return socket.create_connection(server.address(), timeout=PATIENCE)


def test_open_metrics_where_they_are_asked_for(server: RunningServer) -> None:
    status, kind, text = fetch(admin_address(server), Accept="application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    names = {family.name for family in open_metrics(text)}  # type: ignore[no-untyped-call]
    assert {"serve_requests", "serve_request_duration_seconds", "serve_build"} <= names


def test_other_paths_and_methods_are_refused(server: RunningServer) -> None:
    address = admin_address(server)
    assert fetch(address, "/nothing")[0] == 404
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 405
    connection.close()
    assert fetch(address, "/-/healthy")[0] == 200
    assert status_page(address)["state"] == "running"


def test_an_accept_header_that_makes_no_sense_gets_text(server: RunningServer) -> None:
    for accepted in ("application/openmetrics-text; version=x", "text/plain; version=1.y", "\xff;;=,"):
        status, kind, text = fetch(admin_address(server), Accept=accepted)
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        assert value(parsed(text), "serve_generation") >= 1


def test_other_sites_get_nothing_to_see(server: RunningServer) -> None:
    address = admin_address(server)
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"):
        for path in ("/", "/metrics", "/status.json", "/events"):
            assert fetch(address, path, Host=host)[0] == 421
    for host in ("localhost", "127.0.0.1:1", "[::1]:9180", "LOCALHOST:1", "app.localhost", socket.gethostname()):
        assert fetch(address, "/status.json", Host=host)[0] == 200
    for path in ("/", "/metrics", "/status.json", "/nothing"):
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        connection.request("GET", path, headers={"Origin": "http://evil.example"})
        fields = connection.getresponse().headers
        connection.close()
        assert "access-control-allow-origin" not in fields
        assert fields["x-frame-options"] == "DENY"
        assert fields["x-content-type-options"] == "nosniff"
        assert fields["cross-origin-resource-policy"] == "same-origin"


def test_one_without_a_descriptor_left_says_so_once_and_serves_again(server: RunningServer) -> None:
    address, pid = admin_address(server), admin_process(server)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 3, before[1]))
    with contextlib.ExitStack() as clients:
        for _ in range(10):
            clients.enter_context(socket.create_connection(address, timeout=PATIENCE))
        server.logged("cannot accept connections")
        time.sleep(0.5)  # in which it tries again five times
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert value(scrape(address), "serve_generation") >= 1
    assert server.log().count("cannot accept connections") == 1


@pytest.mark.once
@pytest.mark.needs("promtool")
def test_names_and_texts_are_as_prometheus_wants_them(server: RunningServer) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    text = fetch(admin_address(server))[2]
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_every_metric_is_documented(server: RunningServer) -> None:
    document = (Path(__file__).parents[2] / "docs" / "guides" / "metrics.md").read_text()
    names = {line.split()[2] for line in fetch(admin_address(server))[2].splitlines() if line.startswith("# HELP")}
    assert [name for name in sorted(names) if f"`{name}`" not in document] == []


def test_over_a_unix_socket(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    path = tmp_path / "admin.sock"
    unix = f"unix:{tmp_path / 'app.sock'}"
    with running("app:app", "--admin", f"unix:{path}", bind=unix, directory=tmp_path) as server:
        assert server.status()["admin"] == [f"unix:{path}"]
        answer = get_over(str(path), "/metrics")
        assert answer.startswith(b"HTTP/1.1 200 ")
        metrics = parsed(answer.partition(b"\r\n\r\n")[2].decode())
        assert value(metrics, "serve_accept_queue", listening=unix) == 0
        assert server.stop() == 0
    assert not path.exists()


def test_open_files_and_their_limit_are_told(server: RunningServer) -> None:
    address = admin_address(server)

    def of_all(metrics: dict[Series, float]) -> float:
        return sum(value(metrics, "serve_open_files", slot=slot) for slot in ("0", "1"))

    before = scrape(address)
    assert (
        value(before, "serve_open_files_limit", slot="0")
        == resource.prlimit(workers_of(server)[0], resource.RLIMIT_NOFILE)[0]
    )
    with contextlib.ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(connect_to(server))
        wait_for(address, lambda now: of_all(now) >= of_all(before) + 20)


def test_what_the_server_answers_itself_is_told(server: RunningServer) -> None:
    address = admin_address(server)
    before = value(scrape(address), "serve_requests_refused_total")
    with connect_to(server) as client:
        client.sendall(b"NONSENSE\r\n\r\n")
        assert b" 400 " in client.recv(65536)
    wait_for(address, lambda now: value(now, "serve_requests_refused_total") == before + 1)
