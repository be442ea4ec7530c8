"""docs/events.md names every event that the listener tells."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAID = re.compile(r"(?:\bsay(?:_of)?|_say(?:_of)?|_tell|Say)\((?:\w+, )?(?:logging\.[A-Z]+|level),\s*\"([a-z_]+)\"")


def test_every_event_is_there() -> None:
    sources = [
        path.read_text()
        for part in ("listener", "supervisor", "hub")
        for path in (ROOT / "server" / "serve_asgi" / part).rglob("*.py")
    ]
    told = {name for source in sources for name in SAID.findall(source)} | {"serving", "reload_done", "worker_finished"}
    assert len(told) > 40
    document = (ROOT / "docs" / "events.md").read_text()
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", document, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert told <= named
