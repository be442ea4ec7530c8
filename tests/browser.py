"""A headless Chromium for a test, driven over the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.running import PATIENCE

FLAGS = (
    *("--headless", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-default-browser-check"),
    # Nothing but the page: what a browser does on its own behalf would only fail on a closed network, and slowly.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"),
    *("--disable-extensions", "--disable-default-apps", "--mute-audio", "--hide-scrollbars"),
)
STUCK = 15.0
"""Seconds for Chromium to end when asked, before it is killed."""


class Page:
    """One page. Every call waits for its answer, PATIENCE at most."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def _call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        session = {} if self._session is None else {"sessionId": self._session}
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters, **session}))
        while True:
            message = json.loads(self._connection.recv(timeout=PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    def look(self, width: int, height: int, scheme: str, scale: float = 1) -> None:
        """Set the window's size (CSS pixels) and the colour scheme, "light" or "dark"."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, address: str) -> None:
        """Go to `address`; returns before it is loaded."""
        failure = self._call("Page.navigate", url=address).get("errorText")
        assert failure is None, f"{address}: {failure}"

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, element: str) -> str:
        """The text of the element with this id."""
        return str(self.evaluate(f"document.getElementById({json.dumps(element)}).textContent"))

    def number(self, element: str) -> int:
        """The number that the element with this id shows."""
        return int(self.text(element))

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true; it is looked at with every change of the document."""
        self.evaluate(
            f"""new Promise((done, fail) => {{
              const met = () => {{ try {{ return {condition}; }} catch {{ return false; }} }};
              if (met()) return done();
              const watch = new MutationObserver(() => met() && (watch.disconnect(), done()));
              watch.observe(document, {{subtree: true, childList: true, characterData: true, attributes: true}});
              setTimeout(() => fail(new Error("in vain: " + {json.dumps(condition)})), {PATIENCE * 800:.0f});
            }})"""
        )

    def picture(self, whole: bool = True) -> bytes:
        """The whole page as PNG, or what the window shows of it."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])


@contextlib.contextmanager
def page(directory: Path, *flags: str) -> Iterator[Page]:
    """A page in a Chromium of its own, whose profile is kept in `directory`; ended when the block ends."""
    chromium = shutil.which("chromium")
    assert chromium is not None
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
    process = subprocess.Popen(
        [
            chromium,
            *FLAGS,
            *flags,
            *sandbox,
            f"--user-data-dir={directory}",
            "--remote-debugging-port=0",
            "about:blank",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read)
    try:
        with connect(_devtools(process.stderr), max_size=None, ping_interval=None) as connection:
            rest.start()
            yield Page(connection)
            with contextlib.suppress(OSError):
                connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STUCK)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session: all that is left of it
        process.wait()
        if rest.ident is not None:
            rest.join()
        process.stderr.close()


def _devtools(lines: Iterator[str]) -> str:
    """The address that Chromium says it listens on."""
    said = []
    for line in lines:
        said.append(line)
        if line.startswith("DevTools listening on "):
            return line.split()[-1]
    raise AssertionError("Chromium has ended:\n" + "".join(said))
