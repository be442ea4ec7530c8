"""`serve config`: the effective options, and where each value came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, show
from serve_asgi.cli.control_client import PATIENCE


def config(control: str, pid_file: str, as_json: bool) -> int:
    """Show the effective configuration, and where each value came from."""
    path = control_client.find(control, pid_file)
    found: dict[str, Any] = control_client.ask(path, "config", patience=PATIENCE)["config"]
    show(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
    return 0


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Lines for the options that were set, and where; then for those at their defaults."""
    yield f"configuration file: {found['file'] or 'none'}"
    yield f"relative paths start in {found['directory']}"
    wide = max(len(option["name"]) for option in found["options"])
    for head, wanted in (("set", False), ("by default", True)):
        rows = [option for option in found["options"] if (option["source"] == "default") is wanted]
        if rows:
            yield f"\n{head}:"
        for option in rows:
            where = option["place"] if option["source"] == "file" else f"{option['source']}, {option['place']}"
            shown = value(option)
            yield f"  {option['name']:<{wide}}  " + (shown if wanted else f"{shown:<20}  ({where})").rstrip()


def value(option: dict[str, Any]) -> str:
    """One option's value, for people."""
    found = option["value"]
    if option.get("meaning"):
        text = f"{option['meaning']}"
    elif isinstance(found, bool):
        text = "on" if found else "off"
    elif isinstance(found, list):
        text = " ".join(map(str, found)) or "-"
    elif isinstance(found, float):
        text = f"{found:g}"
    else:
        text = str(found) if found not in ("", None) else "-"
    return f"{text} = {option['resolved']}" if option.get("resolved") not in (None, text) else text


COMMANDS: Final = {"config": command("config", config, as_json())}
