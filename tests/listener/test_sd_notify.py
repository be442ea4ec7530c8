"""What the service manager is told."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.listener import sd_notify as notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = f"{tmp_path}/notify" if request.param == "path" else f"@serve-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0"))
        end.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield end


def test_messages(manager: socket.socket) -> None:
    notify.ready("generation 1\nserves")
    notify.stopping()
    notify.status("half way")
    notify.extend("3 requests in progress")
    notify.watchdog()
    assert [manager.recv(1000) for _ in range(5)] == [
        b"READY=1\nSTATUS=generation 1 serves",
        b"STOPPING=1\nEXTEND_TIMEOUT_USEC=15000000",
        b"STATUS=half way",
        b"EXTEND_TIMEOUT_USEC=15000000\nSTATUS=3 requests in progress",
        b"WATCHDOG=1",
    ]


def test_a_reload_carries_its_time(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    notify.reloading("generation 2")
    state, at, extend, text = manager.recv(1000).decode().split("\n")
    assert (state, extend, text) == ("RELOADING=1", "EXTEND_TIMEOUT_USEC=15000000", "STATUS=generation 2")
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    for _ in range(2000):
        notify.ready("full")


def test_a_manager_that_is_gone_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    notify.ready()
    assert notify.wanted()


@pytest.mark.parametrize("address", ["", "nowhere", "vsock:1:2"])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.ready()
    assert not notify.wanted()


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", "ours", 30.0),
        ("500000", "", 0.5),
        ("30000000", "1", 0.0),  # somebody else's
        ("", "", 0.0),
        ("0", "", 0.0),
        ("soon", "", 0.0),
        ("-1", "", 0.0),
    ],
)
def test_the_watchdog_is_fed_by_whom_it_watches(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str, seconds: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert notify.watchdog_period() == seconds
