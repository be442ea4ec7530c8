"""Before a request: apply what the shared state has had and this process has not, because its loop was blocked.

The listener sends each change before it says in the scoreboard that there is one, so what is missing usually waits in
this process's socket already. Called in the middle of reading a request, so it waits for nothing but that socket, and
not for long.
"""

from __future__ import annotations

import logging
from typing import Final

from serve_asgi.app.shared import shared
from serve_asgi.logs.server_log import about
from serve_asgi.worker.hub_link import HubSocket

PATIENCE: Final = 1.0
"""Seconds to wait for what is not in the socket yet; then the request goes on with what is known."""

log = logging.getLogger("serve")


class SharedStateSync:
    """Call it when `published[0]` is more than `shared.applied`."""

    def __init__(self, hub: HubSocket, published: memoryview) -> None:
        self._hub = hub
        self._published = published
        self._in_vain = -1  # what was applied when waiting led to nothing: the next request does not wait again

    def __call__(self) -> None:
        wanted = self._published[0]
        patience = 0.0 if shared.applied == self._in_vain else PATIENCE
        if self._hub.catch_up(lambda: shared.applied >= wanted, patience):
            shared.acknowledge()  # now: the request may block the loop again
        elif not self._hub.link.closed and shared.applied != self._in_vain:
            self._in_vain = shared.applied
            text = "a request was served with stale shared state, %d changes behind: the listener was late"
            log.warning(
                text, wanted - shared.applied, extra=about("stale_state_served", changes=wanted - shared.applied)
            )
