"""Three usual instrumentations and the server's own metrics, over workers that are killed, recycled and reloaded.

Whichever worker is asked, and the admin process, all show what the clients have counted, and no number ever goes back.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from serve_asgi.cli import control_client
from tests.admin.scraping import ADMIN, GROWING, Series, admin_address, fetch, parsed, scrape
from tests.frameworks.driving import reload, serving
from tests.running import RunningServer, until

pytestmark = pytest.mark.frameworks("django_prometheus", "prometheus_fastapi_instrumentator", "starlette_exporter")
OF = ("starlette", "fastapi", "django")
COUNTED: dict[str, Series] = {
    "starlette": (
        "starlette_requests_total",
        (("app_name", "shop"), ("method", "GET"), ("path", "/starlette/page"), ("status_code", "200")),
    ),
    "fastapi": ("http_requests_total", (("handler", "/page"), ("method", "GET"), ("status", "2xx"))),
    "django": (
        "django_http_responses_total_by_status_view_method_total",
        (("method", "GET"), ("status", "200"), ("view", "page")),
    ),
}
TOOK: dict[str, Series] = {
    "starlette": (
        "starlette_request_duration_seconds_count",
        COUNTED["starlette"][1],
    ),
    "fastapi": ("http_request_duration_seconds_count", (("handler", "/page"), ("method", "GET"))),
    "django": ("django_http_requests_latency_seconds_by_view_method_count", (("method", "GET"), ("view", "page"))),
}
OURS = re.compile(r"django|http_|starlette|pages")
"""Of what `/metrics` shows, that which is summed: the rest is of the worker that answers."""


class Observed:
    """The numbers that somebody has seen, who complains of one that goes back."""

    def __init__(self) -> None:
        self._last: dict[Series, float] = {}

    def see(self, metrics: dict[Series, float]) -> dict[Series, float]:
        growing = {each: n for each, n in metrics.items() if OURS.match(each[0]) and each[0].endswith(GROWING)}
        back = {each: (n, growing.get(each)) for each, n in self._last.items() if growing.get(each, -1.0) < n}
        assert not back, f"went back: {back}"
        self._last = growing
        return metrics


class Shop:
    """The server, and what its client has counted."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.address, self.admin = server.address(), admin_address(server)
        self.asked = dict.fromkeys(OF, 0)

    def ask(self, times: int) -> None:
        """Ask for each page so often, each time on a connection of its own, so that all workers get some."""
        for _ in range(times):
            for each in OF:
                assert fetch(self.address, f"/{each}/page")[0] == 200
                self.asked[each] += 1

    def counted(self, metrics: dict[Series, float]) -> bool:
        """Whether all that the client has counted is shown; instrumentations count after they have answered."""
        expected: dict[Series, float] = {
            series: self.asked[each] for table in (COUNTED, TOOK) for each, series in table.items()
        }
        expected |= {("pages_total", (("of", each),)): count for each, count in self.asked.items()}
        expected["pages_in_progress", ()] = 0
        return all(metrics.get(series) == count for series, count in expected.items())

    def settle(self) -> None:
        """Wait until the admin process and, on several connections, each route of the application shows all."""
        until(lambda: self.counted(scrape(self.admin)), lambda: f"{self.asked} in {scrape(self.admin)}")
        for path in ("/starlette/metrics", "/fastapi/metrics", "/django/metrics", "/own"):
            for _ in range(3):
                metrics = parsed(fetch(self.address, path)[2])
                assert self.counted(metrics), (path, self.asked, metrics)


def test_sums_are_what_the_client_counted_whatever_becomes_of_the_workers(tmp_path: Path) -> None:
    with serving("prometheus_app:app", tmp_path, "--workers", "4", "--preload", "strict", *ADMIN) as server:
        kill_and_reload(Shop(server))


def kill_and_reload(shop: Shop) -> None:
    """The scenario, while somebody watches all numbers."""
    server, over, failures = shop.server, threading.Event(), list[BaseException]()

    def watch() -> None:
        at_admin, at_application = Observed(), Observed()
        try:
            while not over.wait(0.05):
                at_admin.see(scrape(shop.admin))
                with contextlib.suppress(ConnectionError):  # of the worker that is killed
                    at_application.see(parsed(fetch(shop.address, "/own")[2]))
        except BaseException as error:
            failures.append(error)

    watching = threading.Thread(target=watch)
    shop.ask(4)
    watching.start()
    try:
        shop.settle()
        os.kill(int(fetch(shop.address, "/pid")[2]), signal.SIGKILL)
        server.logged("cause: crash")
        shop.ask(3)
        shop.settle()
        reload(server, during=lambda: shop.ask(2))
        shop.settle()
        control_client.ask(server.control, "reload-listener")
        shop.ask(2)
        shop.settle()
    finally:
        over.set()
        watching.join()
    assert not failures, failures[0]


def test_recycled_workers_leave_their_counts_behind(tmp_path: Path) -> None:
    with serving("prometheus_app:app", tmp_path, "--workers", "2", "--max-requests", "12", *ADMIN) as server:
        shop = Shop(server)
        while server.log().count("cause: recycle") < 2:  # whichever worker gets more of them
            shop.ask(1)
        shop.settle()
        reload(server, during=lambda: shop.ask(1))
        shop.settle()
        assert not [each for each in tmp_path.iterdir() if each.suffix == ".db"]
