"""Reading the metrics of a server as a program does."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.running import PATIENCE, RunningServer, until

ADMIN = ("--admin", "127.0.0.1:0")
GROWING = ("_total", "_bucket", "_count", "_sum")

Series = tuple[str, tuple[tuple[str, str], ...]]


def admin_address(server: RunningServer) -> tuple[str, int]:
    host, _, port = server.status()["admin"][0].removeprefix("http://").rpartition(":")
    return host, int(port)


def fetch(address: tuple[str, int], path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    """Status, content type and content; a client of an admin process that is being replaced waits."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read().decode()
    finally:
        connection.close()


def scrape(address: tuple[str, int]) -> dict[Series, float]:
    """Every series and its value."""
    return parsed(fetch(address)[2])


def parsed(text: str) -> dict[Series, float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: dict[Series, float], name: str, **labels: str) -> float:
    return metrics[name, tuple(sorted(labels.items()))]


def wait_for(
    address: tuple[str, int], condition: Callable[[dict[Series, float]], bool], timeout: float = PATIENCE
) -> dict[Series, float]:
    """Scrape again and again until `condition` holds."""
    metrics: dict[Series, float] = {}

    def holds() -> bool:
        nonlocal metrics
        return condition(metrics := scrape(address))

    until(holds, lambda: f"still {metrics}", timeout)
    return metrics


def status_page(address: tuple[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fetch(address, "/status.json")[2])
    return found


def get_over(path: str, target: str) -> bytes:
    """One request over a unix socket; the whole answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        client.sendall(f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))
