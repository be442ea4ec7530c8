"""Turns the listener's signals into events: a handler only records, and the loop handles the records in order."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
from anyio.abc import TaskStatus

from serve_asgi.ipc.signals import LISTENER_SIGNALS
from serve_asgi.listener import reload_on_change
from serve_asgi.supervisor import events as e

_MEANINGS: Final[dict[signal.Signals, e.Event]] = {
    signal.SIGHUP: e.ReloadAsked(),
    signal.SIGUSR1: e.ReopenAsked(),
    signal.SIGUSR2: e.DrainAsked(on=True),
    signal.SIGTERM: e.StopAsked(),
    signal.SIGINT: e.QuickStopAsked(),
    signal.SIGQUIT: e.QuickStopAsked(),
    signal.SIGTTIN: e.ScaleAsked(by=1),
    signal.SIGTTOU: e.ScaleAsked(by=-1),
}
"""What each signal means; SIGCHLD comes from the kernel, and SIGWINCH is ignored."""


class SignalHandlers:
    """The signals of one listener."""

    def __init__(self, post: Callable[[e.Event], None], reap: Callable[[], None], in_development: bool) -> None:
        """`post` takes events, `reap` is called when a child has ended.

        `in_development` (--reload): a HUP because the terminal is gone stops the server.
        """
        self._post = post
        self._reap = reap
        self._in_development = in_development

    async def watch(self, *, task_status: TaskStatus[None]) -> None:
        """Handle signals until cancelled; started once they are handled."""
        with anyio.open_signal_receiver(*(LISTENER_SIGNALS - {signal.SIGWINCH})) as signals:
            signal.signal(signal.SIGWINCH, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENER_SIGNALS)
            task_status.started()
            try:
                await self._take(signals)
            finally:  # without handlers a late HUP would kill it before the pid file is removed
                signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)

    async def _take(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for received in signals:
            if received == signal.SIGCHLD:
                self._reap()
            elif received == signal.SIGHUP and self._in_development and reload_on_change.terminal_is_gone():
                self._post(e.QuickStopAsked())
            else:
                self._post(_MEANINGS[received])
