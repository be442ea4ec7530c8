"""Makes the pictures of the dashboard anew: `python -m tests.admin.picture docs/pictures` (five minutes).

`dashboard.png` is the page down to the shared state, `dashboard-events.png` what is below. What they show is a shop
under a load that rises and falls, with event streams, messages, schedules and shared keys; reloads, one of them
refused, and a roll-back, each by the command or the signal that an operator would use.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.admin.scraping import admin_address
from tests.browser import Page, page
from tests.running import ROOT, RunningServer, running

LENGTH = 290.0
"""Seconds: what the page shows at first, nearly."""
CLIENTS, SOCKETS, STREAMS = 24, 8, 3
WIDTH, SCALE = 1280, 1.5
MARGIN = 16
COLOURS, RARE, STRIP = 256, 96, 3
"""Of a picture; of these, those of small things; and how many rows of pixels one of them counts as."""
OPTIONS = ("--workers", "4", "--no-access-log", "--graceful-timeout", "10", "--admin", "127.0.0.1:0")
STANDBY = 20
"""Seconds for which the code before could serve again at once."""

SHOP = """
import asyncio, random

from serve_asgi import messenger, schedule, shared


@messenger.on("orders")
async def pack(message):
    await asyncio.sleep(random.uniform(0.02, 0.4))


@messenger.on("prices")
async def renew(message): ...


@schedule(every="15s", immediate=True)
async def prices():
    await shared.set("prices", {"version": await shared.incr("prices/version"), "currency": "EUR"})
    await messenger.broadcast("prices")


@schedule(every="1m")
async def stock():
    await shared.set("stock", {"tea": random.randint(40, 90), "cups": random.randint(5, 20)})


@schedule(cron="0 3 * * *", tz="Europe/Berlin")
async def report(): ...


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": "sold"})
        return
    path = scope["path"]
    headers = [(b"content-type", b"text/event-stream")]
    if path == "/sold":
        await asyncio.sleep(random.uniform(0.01, 0.05))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(random.randint(4, 16)):
            await send({"type": "http.response.body", "body": b"data: tea\\n\\n", "more_body": True})
            await asyncio.sleep(0.5)
        await send({"type": "http.response.body"})
        return
    if path == "/order":
        await messenger.send_to_any("orders", {"number": await shared.incr("orders")}, ack=True)
    await asyncio.sleep(random.uniform(0.1, 0.6) if path == "/report" else random.lognormvariate(-5.2, 0.6))
    body = b"x" * random.randint(500, 6000)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 404 if path == "/gone" else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
BROKEN = f"from settings import PRICES\n{SHOP}"


# The load


async def client(host: str, port: int, stop: threading.Event) -> None:
    """Ask on one connection, more often when the tide is in."""
    reader, writer = await asyncio.open_connection(host, port)
    while not stop.is_set():
        await asyncio.sleep(random.expovariate(9 * (1 + 0.4 * math.sin(time.monotonic() / 17))))
        path = random.choices(("/", "/order", "/report", "/gone"), (900, 70, 15, 15))[0]
        writer.write(f"GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
    writer.close()


async def reader_of_events(host: str, port: int, stop: threading.Event) -> None:
    """Read one event stream after the other, each to its end."""
    while not stop.is_set():
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /sold HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n")
        while await reader.read(1000):
            pass
        writer.close()


async def socket(host: str, port: int, stop: threading.Event) -> None:
    """Talk over a WebSocket, and come back when it is closed."""
    while not stop.is_set():
        with contextlib.suppress(OSError, ConnectionClosed):
            async with connect(f"ws://{host}:{port}/") as each:
                while not stop.is_set():
                    await each.send("?")
                    await each.recv()
                    await asyncio.sleep(1)


async def load(host: str, port: int, stop: threading.Event) -> None:
    asked = [
        *(client(host, port, stop) for _ in range(CLIENTS)),
        *(socket(host, port, stop) for _ in range(SOCKETS)),
        *(reader_of_events(host, port, stop) for _ in range(STREAMS)),
    ]
    await asyncio.gather(*asked, return_exceptions=True)


# What the operator does


def command(server: RunningServer, *words: str) -> None:
    """Run `serve` with these words, whatever its exit status."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "serve_asgi", *words, "--control", str(server.control)],
        cwd=server.directory, env=environment, check=False,
    )  # fmt: skip


def play(server: RunningServer, application: Path) -> None:
    """Three reloads, one that is refused, and a roll-back, at their times."""

    def reload(text: str = SHOP) -> None:
        application.write_text(text)
        command(server, "reload")

    def reload_and_regret() -> None:
        reload()
        time.sleep(STANDBY / 2)
        command(server, "rollback")

    steps: tuple[tuple[float, Callable[[], None]], ...] = (
        (0.2, lambda: server.signal(signal.SIGHUP)),
        (0.42, reload),
        (0.54, lambda: reload(BROKEN)),
        (0.64, reload_and_regret),
        (0.86, reload),
    )
    began = time.monotonic()
    for share, step in steps:
        time.sleep(max(0.0, began + share * LENGTH - time.monotonic()))
        step()
    time.sleep(max(0.0, began + LENGTH - time.monotonic()))


# The picture


def take(browser: Page, first: str, last: str, target: Path) -> None:
    """Write the page from the card that holds the element `first` to the one that holds `last`, and a margin."""
    edge = "Math.round(scrollY + document.getElementById({!r}).closest('section, main').getBoundingClientRect().{})"
    browser.look(WIDTH, int(browser.evaluate("document.documentElement.scrollHeight")), "light", SCALE)
    time.sleep(3)  # for the charts to be drawn in their new size
    top, bottom = (int(browser.evaluate(edge.format(*each))) for each in ((first, "top"), (last, "bottom")))
    with Image.open(io.BytesIO(browser.picture(whole=False))) as picture:
        box = (0, int(max(0, top - MARGIN) * SCALE), picture.width, int((bottom + MARGIN) * SCALE))
        reduced(picture.crop(box).convert("RGB")).save(target, optimize=True)


def reduced(picture: Image.Image) -> Image.Image:
    """The picture with 256 colours, among them those of small things, which the usual choice by area would miss."""
    rare = picture.quantize(RARE, Image.Quantize.MAXCOVERAGE).getpalette() or []
    colours = [(red, green, blue) for red, green, blue in zip(rare[::3], rare[1::3], rare[2::3], strict=True)]
    longer = Image.new("RGB", (picture.width, picture.height + STRIP * len(colours)))
    longer.paste(picture)
    for index, colour in enumerate(colours):
        top = picture.height + index * STRIP
        longer.paste(colour, (0, top, picture.width, top + STRIP))
    found = longer.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    return found.crop((0, 0, *picture.size))


def main(target: Path) -> None:
    """Write the pictures to the directory `target`."""
    directory = Path(tempfile.mkdtemp(prefix="serve-picture-"))
    application = directory / "shop.py"
    application.write_text(SHOP)
    with running("shop:app", *OPTIONS, "--keep-previous", str(STANDBY), directory=directory) as server:
        stop = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(load(*server.address(), stop)))
        thread.start()
        try:
            play(server, application)
            with page(directory / "profile") as browser:
                browser.look(WIDTH, 900, "light", SCALE)
                browser.open("http://{}:{}/".format(*admin_address(server)))
                browser.wait_for("document.querySelectorAll('.mark').length >= 6")
                browser.wait_for("document.getElementById('rate').textContent !== '–'")
                take(browser, "live", "keys", target / "dashboard.png")
                take(browser, "deploys", "records", target / "dashboard-events.png")
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
