"""What the service manager is told."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.listener import notify


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
    assert [manager.recv(1000) for _ in range(3)] == [
        b"READY=1\nSTATUS=generation 1 serves",
        b"STOPPING=1",
        b"STATUS=half way",
    ]


def test_a_reload_carries_its_time(manager: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    notify.reloading("generation 2")
    state, at, text = manager.recv(1000).decode().split("\n")
    assert (state, text) == ("RELOADING=1", "STATUS=generation 2")
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    for _ in range(2000):
        notify.ready("full")


@pytest.mark.parametrize("address", ["", "/no/such/socket", "vsock:1:2"])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify.ready()
