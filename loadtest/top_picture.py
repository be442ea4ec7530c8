"""The picture of `serve top` in the README: a real server under real load, with reloads, one of them refused.

Run it as `python -m loadtest.top_picture docs/pictures/top.png`; it needs wrk and chromium and takes a minute and a
half. What is drawn is what a terminal of COLUMNS by LINES shows at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from serve_asgi.cli import control_client
from serve_asgi.cli.top_samples import TopSamples
from serve_asgi.cli.top_view import frame
from serve_asgi.errors import ServeError

APP = """
import asyncio, random

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    await asyncio.sleep(60 if scope["path"] == "/report" else random.expovariate(1 / 0.008))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2000")]})
    await send({"type": "http.response.body", "body": b"x" * 2000})

async def stock():
    await asyncio.Event().wait()
"""
LOAD = ((14, 10), (12, 16), (14, 26), (12, 34), (10, 22), (8, 28), (9, 40), (14, 34))
"""Seconds and connections of each run of wrk."""
RELOADS = {13: True, 38: True, 52: False, 64: True, 84: True}
"""When (s) to reload, and whether with code that starts."""
REPORT = 79
"""When (s) somebody asks for what takes a minute: the last reload finds it in progress."""
END = 92
COLOURS = (
    "282c34 f07178 86c26c e5c067 61a0ff c684e8 4dc4cb c8ccd4 5c6370 ff8787 9edc82 fad782 82b9ff dc9bfa 6edce1 ffffff"
)
"""Black to white, then the bright ones."""
UPGRADE = (
    *("Upgrade: websocket", "Connection: Upgrade"),
    *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
)
PAGE = """<!DOCTYPE html><meta charset="UTF-8"><style>
body {{ margin: 0; background: {background}; }}
pre {{ margin: 0; padding: 18px 20px; font: 15px/17px "DejaVu Sans Mono", monospace; color: {foreground}; }}
</style><pre>{code}</pre>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--columns", type=int, default=120)
    parser.add_argument("--lines", type=int, default=35)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        samples = watch(Path(scratch))
        page = Path(scratch, "page.html")
        page.write_text(drawn(samples, given.columns, given.lines), encoding="utf-8")
        photograph(page, given.picture, given.columns, given.lines)


def watch(directory: Path) -> TopSamples:
    """Run a server under load, reload it now and then; return what was seen of it."""
    package = directory / "shop"
    package.mkdir()
    (package / "web.py").write_text(APP)
    control = directory / "control.sock"
    arguments = ["shop.web:application", "--workers", "4", "--bind", "127.0.0.1:8000", "--control", str(control)]
    arguments += ["--agent", "shop.web:stock"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "server")}
    server = subprocess.Popen(
        [sys.executable, "-m", "serve_asgi", *arguments, "--graceful-timeout", "120", "--keep-alive", "600"],
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not control.exists() or control_client.look(control)["state"] != "running":
            time.sleep(0.1)
        with load(), clients():
            return sampled(control, package / "web.py")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def sampled(control: Path, code: Path) -> TopSamples:
    """Take a status once per second."""
    samples, began, due = TopSamples(), time.monotonic(), dict(RELOADS)
    with control_client.ControlConversation(control, "status") as first:
        samples.add(first.outcome()["status"])
    while (now := time.monotonic() - began) < END:
        if due and now >= min(due):
            code.write_text(APP if due.pop(min(due)) else "import psycopg3\n" + APP)
            control_client.ask(control, "reload", wait=False)
        time.sleep(1.0 - (time.monotonic() - began) % 1.0)
        with contextlib.suppress(ServeError):
            samples.add(control_client.look(control))
    return samples


@contextlib.contextmanager
def load() -> Iterator[None]:
    """Requests as fast as they are answered, over more and fewer connections."""
    runs = " ; ".join(f"wrk -t1 -c{count} -d{seconds}s http://127.0.0.1:8000/" for seconds, count in LOAD)
    process = subprocess.Popen(["sh", "-c", runs], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def clients() -> Iterator[None]:
    """Connections that idle, WebSockets whose clients come again, and somebody who asks for the report."""
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(_request("GET /"))
        threads = [threading.Thread(target=_stay, args=[ended]) for _ in range(12)]
        threads.append(threading.Thread(target=_ask_for_the_report, args=[ended]))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def _stay(ended: threading.Event) -> None:
    """One client of a WebSocket: at a reload it is told to come again, and does."""
    while not ended.is_set():
        with _request("GET /live", *UPGRADE) as connection:
            connection.settimeout(0.5)
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(4096):
                        break


def _ask_for_the_report(ended: threading.Event) -> None:
    if not ended.wait(REPORT):
        with _request("GET /report"):
            ended.wait()


def _request(line: str, *headers: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", 8000))
    connection.sendall("\r\n".join([f"{line} HTTP/1.1", "Host: shop", *headers, "", ""]).encode())
    return connection


def drawn(samples: TopSamples, columns: int, lines: int) -> str:
    """The frame as a page."""
    console = Console(
        record=True, width=columns, height=lines, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(frame(samples, columns, lines))
    colours = [(int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)) for text in COLOURS.split()]
    theme = TerminalTheme((22, 24, 29), (214, 217, 224), colours[:8], colours[8:])
    return console.export_html(theme=theme, inline_styles=True, code_format=PAGE)


def photograph(page: Path, picture: Path, columns: int, lines: int) -> None:
    """Let Chromium draw the page, two pixels for one."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is needed to draw the picture; install it")
    size = f"{round(columns * 9.03) + 42},{lines * 17 + 36}"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"]
    command = [chromium, *flags, f"--window-size={size}", f"--screenshot={picture.resolve()}", page.as_uri()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
