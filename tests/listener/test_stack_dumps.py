"""The file that faulthandler of a worker writes to: the worker may write there what it likes."""

from __future__ import annotations

import os
import time

import anyio
import pytest

from serve_asgi.listener import stack_dumps
from serve_asgi.listener.stack_dumps import DUMP_LIMIT, WatchdogChannel


def test_a_worker_cannot_make_the_file_longer_or_shorter() -> None:
    """To give back gigabytes took the listener seconds."""
    window = WatchdogChannel()
    _, dump = window.hand_out()
    try:
        assert os.pwrite(dump, b"x" * DUMP_LIMIT, 0) == DUMP_LIMIT
        for grow in (
            lambda: os.pwrite(dump, b"x", DUMP_LIMIT),
            lambda: os.ftruncate(dump, 1 << 30),
            lambda: os.ftruncate(dump, 0),
            lambda: os.posix_fallocate(dump, 0, 1 << 20),
        ):
            with pytest.raises(PermissionError):
                grow()
    finally:
        os.close(dump)
        window.close()


def test_nonsense_in_the_file_costs_as_much_as_its_length() -> None:
    window = WatchdogChannel()

    def took(lines: int) -> float:
        text = "Thread 0x1 (most recent call first):\n" + "  x\n" * lines
        begin = time.thread_time()
        found = window._parsed(text)
        assert len(found[0]["stack"]) == lines
        return time.thread_time() - begin

    try:
        assert min(took(64_000) for _ in range(3)) < 60 * min(took(4_000) for _ in range(5))  # 16 times, not 256
    finally:
        window.close()


def test_a_worker_may_be_reaped_while_it_is_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    window = WatchdogChannel()
    window.agree(10, 1)
    monkeypatch.setattr(stack_dumps, "catches", lambda pid, number: True)
    monkeypatch.setattr(os, "kill", lambda pid, number: window.close())

    async def main() -> None:
        assert await window._dumped(0, 0.2) is None

    anyio.run(main)
