"""Tells the application that its version is on trial, and takes its vote.

`canary` is one object per process. In a worker of a canary it is true until the promotion; everywhere else, also under
another server or in a test, it is false, and a vote does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from serve_asgi.logs.tracebacks import application_traceback

VoteSender = Callable[[str, str], None]


class CanaryFlag:
    """Whether the worker of this process is on trial.

    Example:
        ```python
        if canary() and not ledger.balanced():
            canary.fail("the ledger does not balance")
        ```
    """

    __slots__ = ("_send",)

    def __init__(self) -> None:
        self._send: VoteSender | None = None

    def __call__(self) -> bool:
        """Whether this worker belongs to a new version that serves on trial.

        Returns:
            True from the start of such a worker until its version is promoted.

        Example:
            ```python
            if canary():
                check_every_answer()
            ```
        """
        return self._send is not None

    def fail(self, reason: str) -> None:
        """Have this version taken back: its connections and its share of the traffic go to the current one.

        It may be called from any thread of the worker, during its start as well. The first call counts; after the
        promotion it does nothing.
        Within an `except` block the traceback is reported as well.

        Args:
            reason: Why, for the operator: it ends in the log and in the output of `serve reload`.

        Example:
            ```python
            except PaymentRefused:
                canary.fail("a payment of the smoke test was refused")
            ```
        """
        send = self._send
        if send is not None:
            raised = sys.exc_info()[1]
            send(str(reason), "" if raised is None else application_traceback(raised))

    def begin(self, send: VoteSender) -> None:
        """For the worker: it is on trial; `send(reason, detail)` sends a vote."""
        self._send = send

    def over(self) -> None:
        """For the worker: it is promoted."""
        self._send = None


canary: Final = CanaryFlag()
