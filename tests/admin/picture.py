"""Makes docs/pictures/dashboard.png anew: `python -m tests.admin.picture docs/pictures/dashboard.png` (five minutes).

A server under a load that rises and falls, with four reloads and one that is refused; then the page in Chromium.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from serve_asgi.cli import control_client
from tests.admin.scraping import admin_address
from tests.browser import page
from tests.running import RunningServer, running

LENGTH = 290.0
"""Seconds: what the page shows at first, nearly."""
RELOADS = ((0.22, True), (0.42, True), (0.54, False), (0.68, True), (0.88, True))
"""When, as a share of the length, and whether the code is good."""
CLIENTS, SOCKETS = 24, 8
WIDTH, SCALE = 1280, 1.5

SHOP = """
import asyncio, random


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": "sold"})
        return
    slow = scope["path"] == "/report"
    await asyncio.sleep(random.uniform(0.1, 0.6) if slow else random.lognormvariate(-5.2, 0.6))
    body = b"x" * random.randint(500, 6000)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 404 if scope["path"] == "/gone" else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


async def client(host: str, port: int, stop: threading.Event) -> None:
    """Ask on one connection, more often when the tide is in."""
    reader, writer = await asyncio.open_connection(host, port)
    while not stop.is_set():
        await asyncio.sleep(random.expovariate(9 * (1 + 0.4 * math.sin(time.monotonic() / 17))))
        path = random.choices(("/", "/report", "/gone"), (970, 15, 15))[0]
        writer.write(f"GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
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
    asked = [client(host, port, stop) for _ in range(CLIENTS)] + [socket(host, port, stop) for _ in range(SOCKETS)]
    await asyncio.gather(*asked, return_exceptions=True)


def play(server: RunningServer, application: Path) -> None:
    """The reloads, at their times."""
    began = time.monotonic()
    for share, good in RELOADS:
        time.sleep(max(0.0, began + share * LENGTH - time.monotonic()))
        application.write_text(SHOP if good else f"from settings import PRICES\n{SHOP}")
        with contextlib.suppress(control_client.RequestRefused):
            server.reload()
    time.sleep(max(0.0, began + LENGTH - time.monotonic()))


def main(target: Path) -> None:
    """Write the picture to `target`."""
    directory = Path(tempfile.mkdtemp(prefix="serve-picture-"))
    application = directory / "shop.py"
    application.write_text(SHOP)
    arguments = ("--workers", "4", "--no-access-log", "--graceful-timeout", "10", "--admin", "127.0.0.1:0")
    with running("shop:app", *arguments, directory=directory) as server:
        stop = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(load(*server.address(), stop)))
        thread.start()
        try:
            play(server, application)
            with page(directory / "profile") as browser:
                browser.look(WIDTH, 900, "light", SCALE)
                browser.open("http://{}:{}/".format(*admin_address(server)))
                browser.wait_for("document.querySelectorAll('.mark').length >= 5")
                bottom = (
                    "Math.ceil(document.getElementById('workers').closest('section').getBoundingClientRect().bottom)"
                )
                browser.look(WIDTH, int(browser.evaluate(f"scrollY + {bottom} + 16")), "light", SCALE)
                browser.wait_for("document.getElementById('rate').textContent !== '–'")
                time.sleep(3)  # for the charts to be drawn in their new size
                target.write_bytes(browser.picture(whole=False))
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
