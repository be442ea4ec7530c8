"""The strict load test's clients (loadtest/), few of them, beside a test: what they sent, and what became of it.

Nothing is sent twice and nothing is forgiven. The application is the load test's; it writes down what it executes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import uvloop

import loadtest.app
from loadtest.client import Load
from loadtest.kinds import users
from loadtest.ledger import Ledger, parse_executions, settle

KINDS = ("idle keep-alive", "one-shot")
"""Kinds of load that cost little and end at once: some 90 requests a second by 46 users."""
FINISH = 30.0
"""Seconds for the last answers to arrive."""


def put_application(directory: Path, name: str = "app.py") -> dict[str, str]:
    """Put the load test's application there, as `asgi` of the module `name`; return the environment that it needs."""
    (directory / name).write_text(Path(loadtest.app.__file__).read_text() + "\n\nasgi = app\n")
    executions = directory / "executions.log"
    executions.touch()
    executions.chmod(0o666)
    return {loadtest.app.EXECUTIONS: str(executions)}


@contextlib.contextmanager
def light_load(
    port: int, executions: Path | None = None, kinds: tuple[str, ...] = KINDS, scale: float = 1.0
) -> Iterator[Ledger]:
    """Load on 127.0.0.1 while the block runs; afterwards nothing may have been lost, duplicated, reconnected or odd.

    `executions` is the application's file, where the test has it.
    """
    ledger = Ledger()
    load = Load("127.0.0.1", port, ledger, scale)
    loop = uvloop.new_event_loop()
    trouble: list[BaseException] = []

    async def run() -> None:
        done, late = await asyncio.wait([asyncio.ensure_future(user) for user in users(load, kinds)])
        assert not late
        for task in done:
            task.result()

    def work() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(run())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=work, name="light load")
    thread.start()
    try:
        yield ledger
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(load.stop)
        thread.join(FINISH)
    assert not thread.is_alive(), "the load did not finish"
    assert trouble == []
    lost = [
        (entry.number, entry.kind, entry.cause, entry.detail) for entry in ledger.entries if entry.cause is not None
    ]
    assert (lost, ledger.reconnects, dict(ledger.oddities)) == ([], [], {})
    if executions is not None:
        accounts = settle(ledger.entries, parse_executions(executions.read_bytes()))
        assert (accounts.duplicated, accounts.phantom, accounts.unexecuted) == ([], [], [])
