"""What the listener's signals say, as events: a handler only records, and the loop takes what was recorded in order."""

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
"""What each signal says; SIGCHLD is the kernel's, and SIGWINCH says nothing."""


class SignalHandlers:
    """Turns the signals that the listener gets into events."""

    def __init__(self, post: Callable[[e.Event], None], reap: Callable[[], None], in_development: bool) -> None:
        """`post` takes what a signal says, `reap` is called when a child has ended.

        `in_development` (--reload): a HUP that comes because the terminal is gone ends the server.
        """
        self._post = post
        self._reap = reap
        self._in_development = in_development

    async def watch(self, *, task_status: TaskStatus[None]) -> None:
        """Take signals until cancelled; started once they are taken."""
        with anyio.open_signal_receiver(*(LISTENER_SIGNALS - {signal.SIGWINCH})) as signals:
            signal.signal(signal.SIGWINCH, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENER_SIGNALS)
            task_status.started()
            try:
                await self._take(signals)
            finally:  # once the handlers are gone, a late HUP would kill what has only its pid file left to remove
                signal.pthread_sigmask(signal.SIG_BLOCK, LISTENER_SIGNALS)

    async def _take(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for received in signals:
            if received == signal.SIGCHLD:
                self._reap()
            elif received == signal.SIGHUP and self._in_development and reload_on_change.terminal_is_gone():
                self._post(e.QuickStopAsked())
            else:
                self._post(_MEANINGS[received])
