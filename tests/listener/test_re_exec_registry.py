"""What a listener passes on, and what a program that is to take it over finds out before."""

from __future__ import annotations

import ast
import base64
import contextlib
import copy
import dataclasses
import gc
import inspect
import json
import os
import socket
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import serve_asgi
from serve_asgi.config.sources import read
from serve_asgi.errors import UsageError
from serve_asgi.ipc.channel import pair
from serve_asgi.ipc.frames import unpack_value
from serve_asgi.ipc.scoreboard import Row, Scoreboard
from serve_asgi.listener import re_exec_registry as registry
from serve_asgi.listener import re_exec_resume
from serve_asgi.listener.generation_config import resolve_config
from serve_asgi.listener.listener import Listener
from serve_asgi.supervisor.lifecycles import Generation, Policy, Worker


@pytest.fixture
def state() -> Iterator[dict[str, Any]]:
    """That of a server whose only worker has been decided on and not been started."""
    listener = Listener(resolve_config(read("app:app", {}, {}), os.getcwd()), [], None, [])
    supervisor = listener.supervisor
    supervisor.start(0.0)
    supervisor.processes.current, supervisor.processes.candidate = supervisor.candidate, None
    yield registry.describe(listener, [])
    listener.children.scoreboard.close()
    listener._post.close()
    listener._events.close()


def check(state: dict[str, Any], magic: int = 0) -> None:
    board = Scoreboard.create(1, 1)
    if magic:
        board.words[0] = magic
    try:
        re_exec_resume.check(registry.save(state), board.read_only())
    finally:
        board.close()


def test_what_is_understood_passes(state: dict[str, Any]) -> None:
    check(state)
    check({**state, "of a later version": 1})


def test_another_version_is_refused_with_a_sentence(state: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="restart the server"):
        check({**state, "version": 99})
    with pytest.raises(UsageError, match="of the channel, unlike the running workers"):
        check({**state, "protocol": (9, 9)})


def test_what_would_fail_later_fails_now(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="scoreboard"):
        check(state, magic=1)
    with pytest.raises(LookupError):
        check({**state, "configs": {"1": {}}})
    with pytest.raises(ValueError, match="sctp"):
        check({**state, "listening": [{"kind": "sctp"}]})
    supervisor = json.loads(json.dumps(state["supervisor"]))
    supervisor["workers"][0]["state"] = "dancing"
    with pytest.raises(ValueError, match="dancing"):
        check({**state, "supervisor": supervisor})


def test_no_descriptor_is_left(state: dict[str, Any]) -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    check(state)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= len(before)


# ---- that nothing is forgotten

PACKAGE = Path(serve_asgi.__file__).parent


def attributes(kind: type) -> set[str]:
    """All that instances of a class have, as its source says: slots, annotations and what is assigned to `self`."""
    found: set[str] = set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "Final" not in ast.unparse(node):
            found.add(node.target.id)
    for each in ast.walk(tree):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            found.add(each.attr)
    return found


def mentioned(save: Callable[..., Any]) -> set[str]:
    """The attributes that a function reads, of whatever object."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(save)))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_attribute_of_the_listener_is_carried_over_or_made_anew() -> None:
    carried = {piece.attribute for piece in registry.PIECES}
    assert not carried & registry.MADE_ANEW
    assert attributes(Listener) == carried | registry.MADE_ANEW


@pytest.mark.parametrize(
    "carried", [each for each in registry.CARRIED if each.anew is not None], ids=lambda each: each.kind.__name__
)
def test_every_attribute_of_what_is_carried_over_is_saved_or_made_anew(carried: registry.Carried) -> None:
    assert carried.anew is not None
    assert attributes(carried.kind) - mentioned(carried.save) == carried.anew


def test_every_class_that_can_be_carried_over_is_registered() -> None:
    found = {
        (".".join(("serve_asgi", *path.relative_to(PACKAGE).with_suffix("").parts)), node.name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(each, ast.FunctionDef) and each.name == "to_state" for each in node.body)
    }
    assert found <= {(each.kind.__module__, each.kind.__name__) for each in registry.CARRIED}


# ---- that what another version has written is understood

SNAPSHOTS = Path(__file__).with_name("snapshots")
"""What servers of earlier versions passed on, by version: each with two workers, an agent, a store, messages handled,
a schedule, a drain, a reload done, and another one's answer waited for."""


class Substitutes:
    """Open files in place of those that a snapshot names."""

    def __init__(self) -> None:
        self._others: list[socket.socket] = []
        self._made: list[int] = []

    def socket(self, listens: bool = False) -> int:
        if listens:
            end = socket.socket()
            end.bind(("127.0.0.1", 0))
        else:
            end, other = pair()
            self._others.append(other)
        self._made.append(end.detach())
        return self._made[-1]

    def file(self) -> int:
        self._made.append(os.memfd_create("substitute", os.MFD_CLOEXEC))
        return self._made[-1]

    def row(self) -> int:
        row, fd = Row.create()
        os.close(fd)
        self._made.append(row.fd)
        return row.fd

    def put_into(self, state: dict[str, Any]) -> None:
        state["scoreboard"] = os.dup(Scoreboard.create(1024, 256).fd)
        self._made.append(state["scoreboard"])
        for child in state["children"]:
            child |= {"channel": self.socket(), "counts": self.row()}
            child["watchdog"] |= {"channel": self.socket(), "dump": self.file()}
        for each in [*state["listening"], *state["admin_listening"]]:
            each["fd"] = self.socket(listens=True)
            if each["lock"] is not None:
                each["lock"]["fd"] = self.file()
        for link in state["links"]["links"].values():
            link["fd"] = self.socket()
        state["pid_file"] |= {"fd": self.file()}
        state["pid_file"]["lock"]["fd"] = self.file()
        state["control"]["fd"] = self.socket(listens=True)
        state["store"]["fd"] = self.socket()
        state["waiting"] = [self.socket()]

    def close(self) -> None:
        for other in self._others:
            other.close()
        for fd in self._made:
            with contextlib.suppress(OSError):
                os.close(fd)


def let_go(listener: Listener) -> None:
    """What it holds is closed by number later."""
    listener._post.close()
    listener._events.close()
    for child in listener.children:
        child.channel.detach()
        if child.watchdog is not None:
            child.watchdog._channel.detach()
    for each in [*listener.listening, *listener.admin_listening]:
        each.socket.detach()
    for link in listener.links._links.values():
        link.socket.detach()
    if listener.store is not None and listener.store._link is not None:
        listener.store._link.socket.detach()


def complete(settings: dict[str, Any]) -> None:
    """Add the options that did not exist in the version that wrote this: they have their defaults."""
    defaults = json.loads(json.dumps(read("app:app", {}, {}).to_state()))
    for part in ("config", "sources"):
        settings[part] = defaults[part] | settings[part]


def complete_processes(supervisor: dict[str, Any]) -> None:
    """Add the members of processes, generations and their policies that did not exist either, nor the flag."""
    for name, default in (("agent_missing", False), ("agent_leased", True), ("agent_token", 0)):
        supervisor.setdefault(name, default)
    policies = [supervisor["policy"], *(each["policy"] for each in supervisor["generations"])]
    for kind, parts in ((Policy, policies), (Generation, supervisor["generations"]), (Worker, supervisor["workers"])):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        for part in parts:
            for name in defaults.keys() - part.keys():
                part[name] = defaults[name]


def hub_without_lease(links: dict[str, Any]) -> dict[str, Any]:
    """What the hub has left, decoded, without the parts that did not exist either."""
    hub: dict[str, Any] = unpack_value(base64.b64decode(links.pop("hub")))
    hub["parts"].pop("agent-lease", None)
    hub["parts"]["messages"].pop("fleet", None)
    return hub


@pytest.mark.parametrize("path", sorted(SNAPSHOTS.iterdir()), ids=lambda path: path.stem)
def test_what_an_earlier_version_has_left_is_understood(path: Path) -> None:
    """All of it: what is made of it and passed on again is the same, which the earlier one would understand."""
    state = json.loads(path.read_text())
    registry.examine(registry.read(registry.save(state)))
    substitutes = Substitutes()
    substitutes.put_into(state)
    try:
        inherited = registry.take(copy.deepcopy(state))
        assert inherited.supervisor.current is not None
        config = inherited.configs[inherited.supervisor.current.number]
        listener = Listener(config, inherited.listening, inherited.pid_file, inherited.admin_listening, inherited)
        left = json.loads(json.dumps(registry.describe(listener, state["waiting"])))
        let_go(listener)
    finally:
        substitutes.close()
    for name in ("version", "server", "output", "pending", "descriptors"):
        del state[name], left[name]
    for part, member in (("control", None), ("admin_process", None), ("store", "pid")):  # which `run` takes up
        if member is None:
            del state[part], left[part]
        else:
            del state[part][member], left[part][member]
    for settings in (state["settings"], *(each["settings"] for each in state["configs"].values())):
        complete(settings)
    for each in state["configs"].values():
        each["release"] = {"commit": "", "static": [], "code": "", "places": {}} | each["release"]
    complete_processes(state["supervisor"])
    for child in state["children"]:
        child.setdefault("metrics_series", 0)
        child.setdefault("counts_metrics", False)
        child.setdefault("compiled_modules", None)
    assert hub_without_lease(left["links"]) == hub_without_lease(state["links"])
    for name in left.keys() - state.keys():  # which did not exist in that version
        assert left.pop(name) == next(piece.default for piece in registry.PIECES if piece.name == name)
    assert left == state
