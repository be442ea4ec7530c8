"""Event names: the pages on events and logs have every one, and all follow one scheme, object_past-participle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from serve_asgi.config.hook_events import AFTER, BEFORE, NAMES

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "server" / "serve_asgi"

SCHEME = re.compile(
    r"(?:[a-z]+_)+"
    r"(?:[a-z]+ed|timed_out|broken|cut|found|lost|set_back|shut_down|withdrawn)"  # the irregular participles among them
)
OTHERWISE = {
    "internal_error",  # a mistake of the server's own: the field's name for it
    "worker_ready",  # the state's name (docs/how-it-works/design.md)
}
HOOKS = {*BEFORE, *NAMES}
"""What hooks call their moments, which are no events of the log."""
BY_NAME = re.compile(r"(?:about|_report|_say|_tell|_away)$")
"""Calls that are given an event without a level before it."""
LEVEL = re.compile(r"logging\.[A-Z]+|level|_level\(\w+\)")


def told_in(source: Path) -> Iterator[str]:
    """The names that stand behind a level in a call or a table, or in calls that know the level."""
    for node in ast.walk(ast.parse(source.read_text())):
        inside: list[ast.expr] = []
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            behind = {i + 1 for i, each in enumerate(node.args) if LEVEL.fullmatch(ast.unparse(each))}
            inside = [each for i, each in enumerate(node.args) if i in behind or (BY_NAME.match(name) and i < 3)]
        elif isinstance(node, ast.Tuple) and ast.unparse(node).startswith("(logging."):
            inside = node.elts[:2]
        elif isinstance(node, ast.Dict) and any(isinstance(k, ast.Constant) and k.value == "event" for k in node.keys):
            inside = [v for k, v in zip(node.keys, node.values, strict=True) if ast.unparse(k or v) == "'event'"]
        for argument in inside:
            for each in (argument.body, argument.orelse) if isinstance(argument, ast.IfExp) else (argument,):
                if isinstance(each, ast.Constant) and re.fullmatch(r"[a-z]+(?:_[a-z]+)+", str(each.value)):
                    yield str(each.value)


def in_the_packages(*names: str) -> set[str]:
    return {event for name in names for source in (SOURCES / name).rglob("*.py") for event in told_in(source)}


def named_in(page: str) -> set[str]:
    document = (ROOT / "docs" / page).read_text()
    rows = re.findall(r"^\| (`.*?) \|", document, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_event_of_the_listeners_is_in_the_document() -> None:
    told = in_the_packages("listener", "supervisor", "hub", "store") | {*AFTER, *NAMES.values()}
    assert len(told) > 70
    assert told <= named_in("reference/events.md") | named_in("guides/logs.md") | HOOKS


def test_every_event_of_the_workers_is_in_the_document() -> None:
    told = in_the_packages("http", "websocket", "worker", "app", "agent_process", "logs", "ipc")
    assert len(told) > 30
    assert told <= named_in("guides/logs.md") | named_in("reference/events.md")


def test_each_name_is_an_object_and_a_past_participle() -> None:
    told = in_the_packages(".") | AFTER
    assert not {event for event in told - OTHERWISE - HOOKS if not SCHEME.fullmatch(event)}
