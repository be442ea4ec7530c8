"""Makes docs/pictures/canary-dashboard.png anew: `python -m tests.admin.canary_picture TARGET` (two minutes).

A server under load, a good version that is promoted after its trial and a bad one that is taken back; then the page's
chart and its list of deploys in Chromium.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from pathlib import Path

from serve_asgi.cli import control_client
from tests.admin.picture import SCALE, SHOP, WIDTH, load, take
from tests.admin.scraping import admin_address
from tests.browser import page
from tests.running import running

TRIAL = {"share": 0.2, "time": 30.0}
"""Of each version; the bad one needs less."""
FAILING = SHOP.replace("else 200", "else 500 if random.random() < 0.08 else 200")
BEFORE, AFTER = 15.0, 20.0
"""Seconds of the first version alone, and of what follows a trial."""
OTHERS = "#charts, #folded, .hero, #hub, section:has(#workers), section:has(#records), footer"
"""What the picture leaves out."""


def main(target: Path) -> None:
    """Write the picture to `target`."""
    directory = Path(tempfile.mkdtemp(prefix="serve-picture-"))
    for number, text in (("41", SHOP), ("42", SHOP), ("43", FAILING)):
        (directory / "releases" / number).mkdir(parents=True)
        (directory / "releases" / number / "shop.py").write_text(text)
    current = directory / "current"
    current.symlink_to("releases/41")
    arguments = ("--chdir", "current", "--workers", "4", "--no-access-log", "--admin", "127.0.0.1:0")
    with running("shop:app", *arguments, directory=directory) as server:
        stop = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(load(*server.address(), stop)))
        thread.start()
        try:
            time.sleep(BEFORE)
            for number, outcome in (("42", "promoted"), ("43", "taken_back")):
                current.unlink()
                current.symlink_to(f"releases/{number}")
                try:
                    control_client.ask(server.control, "reload", canary=TRIAL)
                except control_client.RequestRefused as refused:
                    print(refused)
                assert server.status()["last_deploy"]["outcome"] == outcome
                time.sleep(AFTER)
            with page(directory / "profile") as browser:
                browser.look(WIDTH, 900, "light", SCALE)
                browser.open("http://{}:{}/".format(*admin_address(server)))
                browser.wait_for("document.querySelectorAll('#deploys li').length === 3")
                browser.evaluate(f"document.querySelectorAll('{OTHERS}').forEach(each => each.style.display = 'none')")
                take(browser, "live", "deploys", target)
        finally:
            stop.set()
            thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
