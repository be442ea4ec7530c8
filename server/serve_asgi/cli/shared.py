"""`serve shared`: list, read, write, delete and watch keys of the shared state of a running server."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from serve_asgi.cli import control_client
from serve_asgi.cli.command import as_json, command, complain, memory, seconds, show, tell
from serve_asgi.cli.control_client import PATIENCE, ControlConversation, ServerEnded
from serve_asgi.errors import UsageError

TIMEOUT: Final = 10.0
"""Seconds that a write waits for the processes, unless --timeout says otherwise."""
NEEDS: Final = {"list": (0, 1), "get": (1, 1), "set": (2, 2), "delete": (1, 1), "watch": (0, 1)}
"""The least and the most words after each verb."""
USAGE: Final = {"list": "list [PREFIX]", "get": "get KEY", "set": "set KEY VALUE", "delete": "delete KEY"}


def shared(
    control: str,
    pid_file: str,
    do: str,
    words: tuple[str, ...],
    as_json: bool,
    text: bool,
    if_version: int | None,
    most: int,
    timeout: float,
) -> int:
    """Show, change or watch the shared state: list [PREFIX], get KEY, set KEY VALUE, delete KEY, watch [PREFIX].

    VALUE is JSON, or with --text a string as it is; - reads it from standard input. A write is in force in all
    processes when this returns; watch shows each change until Ctrl-C.

    Exit status 0: done. 1: there is no such key, or the write was refused. 2: wrong usage.
    """
    least, limit = NEEDS[do]
    if not least <= len(words) <= limit:
        raise UsageError(f"it is `serve shared {USAGE.get(do, 'watch [PREFIX]')}`")
    about: dict[str, Any] = {"do": do, "name": words[0] if words else ""}
    if do == "set":
        about["value"] = _value(words[1], text)
    path = control_client.find(control, pid_file)
    match do:
        case "list":
            found = control_client.ask(path, "shared", most=most, patience=PATIENCE, **about)["shared"]
            show(json.dumps(found, indent=2) if as_json else _listed(found, about["name"]))
        case "get":
            found = control_client.ask(path, "shared", patience=PATIENCE, **about)["shared"]
            show(json.dumps(found if as_json else found["value"], indent=2, ensure_ascii=False))
        case "watch":
            _watch(path, about, as_json)
        case _:
            about |= {"if_version": if_version, "timeout": timeout}
            done = control_client.ask(path, "shared", patience=timeout + PATIENCE, **about)
            version = done["version"]
            show(json.dumps({"key": about["name"], "version": version}) if as_json else done["text"])
    return 0


def _value(word: str, text: bool) -> Any:
    """The value that `word` stands for. Raises UsageError if it is not JSON."""
    if word == "-":
        word = sys.stdin.read()
    if text:
        return word
    try:
        return json.loads(word)
    except ValueError:
        raise UsageError(f"{word[:50]!r} is not JSON: a string is written '\"…\"', or as it is with --text") from None


def _listed(found: dict[str, Any], prefix: str) -> str:
    """A line for each key."""
    if not found["keys"]:
        return f"no key begins with {prefix!r}" if prefix else "the shared state is empty"
    widest = min(40, max(len(each["key"]) for each in found["keys"]))
    lines = [
        f"{each['key']:<{widest}}  {each['version']:>8}  {memory(each['size']):>8}  {each['value'] or '…'}"
        for each in found["keys"]
    ]
    if found["total"] > len(found["keys"]):
        lines.append(f"the first {len(found['keys'])} of {found['total']} keys; name a PREFIX, or --most NUMBER")
    return "\n".join([f"{'key':<{widest}}  {'version':>8}  {'size':>8}  value", *lines])


def _watch(path: Path, about: dict[str, Any], as_json: bool) -> None:
    with ControlConversation(path, "shared", follow=True, **about) as conversation:
        try:
            while (message := conversation.receive(None)) is not None and "record" in message:
                change = message["record"]
                tell(json.dumps(change) if as_json else _changed(change))
        except ServerEnded:
            complain("the server has ended, or its listener was replaced")
            return
        if message is not None:
            control_client.checked(message)


def _changed(change: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(change["at"]))
    if change.get("deleted"):
        return f"{at}  {change['key']} is deleted"
    return f"{at}  {change['key']} = {json.dumps(change['value'], ensure_ascii=False)}  (version {change['version']})"


COMMANDS: Final = {
    "shared": command(
        "shared",
        shared,
        click.Argument(["do"], type=click.Choice([*NEEDS])),
        click.Argument(["words"], nargs=-1, metavar="[KEY [VALUE]]"),
        as_json(),
        click.Option(["--text"], is_flag=True, help="VALUE is a string as it is, and not JSON."),
        click.Option(
            ["--if-version"],
            type=click.IntRange(min=0),
            metavar="NUMBER",
            help="Write only if the key still has this version; 0: if it is missing.",
        ),
        click.Option(
            ["--most"],
            type=click.IntRange(1, 1000),
            default=100,
            metavar="NUMBER",
            show_default=True,
            help="Most keys to list.",
        ),
        seconds("--timeout", "How long a write waits for all processes.", TIMEOUT),
    )
}
