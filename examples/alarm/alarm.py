"""An alarm that tells a chat when a site answers 404 too often, and that can be muted: see README.md.

    /               JSON: which worker answers, and what every worker knows of the alarm
    /close?name=…   mute it
    /open?name=…    unmute it

The job runs in one worker, whichever the server chooses; the mute is asked for in that one and may have been set in any
other. So both the mute and what was counted last are in the shared state, and nothing is in a variable of this module.
"""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from counting import count
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve_asgi import schedule, shared

log = logging.getLogger("alarm")

NAME: Final = "not-found"
EVERY: Final = os.environ.get("ALARM_EVERY", "10m")
WINDOW: Final = timedelta(minutes=10)
THRESHOLD: Final = int(os.environ.get("ALARM_THRESHOLD", "100"))
WEBHOOK: Final = os.environ.get("ALARM_WEBHOOK_URL", "")
TIMEOUT: Final = float(os.environ.get("ALARM_WEBHOOK_TIMEOUT", "10"))
"""Seconds that the webhook may take, all in all."""


# With a time-out, for one run that hangs would hold up all that come after it.
@schedule(every=EVERY, name=NAME, on="one", immediate=True, timeout="1m")
async def look() -> None:
    """Count, remember, and tell the chat if it is too much and the alarm is not muted."""
    now = datetime.now(UTC)
    found = await count(404, since=now - WINDOW)
    runs = await shared.incr(f"{NAME}/runs")
    await shared.set(f"{NAME}/last", {"count": found, "at": now.isoformat(timespec="seconds"), "run": runs})
    # Asked for at the last moment: when /close has answered, every worker knows it.
    if found > THRESHOLD and not muted(NAME):
        await tell(f"{found} answers were 404 in the last {WINDOW.seconds // 60} minutes (threshold {THRESHOLD})")


async def tell(text: str) -> None:
    """Post to the webhook; a chat that does not take it is a line in the log, and the next run tries again."""
    if not WEBHOOK:
        log.warning("%s (set ALARM_WEBHOOK_URL to have this told)", text)
        return
    try:
        # httpx's own time-outs are for each read: a chat that drips one byte at a time would be waited for without end
        async with asyncio.timeout(TIMEOUT), httpx.AsyncClient(timeout=None) as client:
            answer = await client.post(WEBHOOK, json={"text": text})
            answer.raise_for_status()
    except (httpx.HTTPError, TimeoutError) as error:
        log.error("the webhook did not take %r: %s", text, str(error) or f"no answer in {TIMEOUT:g} s")


def muted(name: str) -> bool:
    """Whether the alarm is muted: a look into this process's copy, which is never behind a mute that was confirmed."""
    return bool(shared.get(f"{name}/muted", False))


async def show(request: Request) -> JSONResponse:
    """What every worker knows; `worker` tells which one says so."""
    told: dict[str, Any] = {"name": NAME, "muted": muted(NAME), "last": shared.get(f"{NAME}/last")}
    here = request.scope.get("extensions", {}).get("serve", {})
    return JSONResponse({**told, "worker": here.get("slot", 0), "generation": here.get("generation", 0)})


async def close(request: Request) -> JSONResponse:
    """Mute it: when this answers, it is in force in all workers, and it stays so over reloads (and restarts)."""
    return await _mute(request, True)


async def open_(request: Request) -> JSONResponse:
    """Unmute it."""
    return await _mute(request, False)


async def _mute(request: Request, mute: bool) -> JSONResponse:
    name = request.query_params.get("name", "")
    if name != NAME:
        return JSONResponse({"error": f"there is no alarm {name!r}; there is {NAME!r}"}, 400)
    await shared.set(f"{name}/muted", mute)
    return await show(request)


app = Starlette(routes=[Route("/", show), Route("/close", close), Route("/open", open_)])
