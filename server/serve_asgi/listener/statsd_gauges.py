"""What the listener itself tells statsd: how many workers serve (`serve_asgi.logs.statsd`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import anyio

from serve_asgi.config.options import Config
from serve_asgi.listener.child import Child
from serve_asgi.logs.statsd import open_statsd
from serve_asgi.supervisor.lifecycles import Worker

PERIOD: Final = 5.0
"""Seconds between two values of a gauge: half of what statsd usually sums up."""


async def send_gauges(config: Config, children: Iterable[Child]) -> None:
    """Send them until cancelled, if `config` names a statsd server."""
    statsd = await open_statsd(config)
    if statsd is None:
        return
    try:
        while True:
            serving = sum(child.serves and isinstance(child.worker, Worker) for child in children)
            statsd.send([f"workers:{serving}|g"])
            await anyio.sleep(PERIOD)
    finally:
        statsd.close()
