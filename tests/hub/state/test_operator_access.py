"""What `serve shared` asks of the shared state: values as JSON, writes that wait for all, watches, bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve_asgi.hub.state import operator_access
from serve_asgi.hub.state.operator_access import OperatorAccess, as_json
from serve_asgi.ipc.frames import pack_value
from tests.hub.state.test_shared_state import Fixture


class Operator(Fixture):
    """A hub with two workers, and an operator."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.operator = OperatorAccess(self.state)
        self.replies: list[tuple[str, int]] = []
        self.join(1, slot=0)
        self.join(2, slot=1)

    def set(self, key: str, value: Any, version: int | None = None) -> None:
        self.operator.set(key, value, version, 5.0, lambda text, version: self.replies.append((text, version)))

    def delete(self, key: str, version: int | None = None) -> None:
        self.operator.delete(key, version, 5.0, lambda text, version: self.replies.append((text, version)))


def test_a_write_is_done_when_all_processes_have_it() -> None:
    there = Operator()
    there.set("flag", {"on": True})
    there.catch_up(1)
    assert there.replies == []
    there.catch_up(2)
    assert there.replies == [("", 1)]
    assert there.has(1) == there.has(2) == {"flag": {"on": True}}
    assert there.operator.value("flag") == {"key": "flag", "version": 1, "value": {"on": True}}
    there.delete("flag")
    there.catch_up(1, 2)
    assert there.replies[-1] == ("", 2)
    assert there.operator.value("flag") is None


def test_a_process_that_lags_is_named_at_the_end_of_the_time() -> None:
    there = Operator()
    there.set("flag", 1)
    there.catch_up(1)
    there.later(5.0)
    ((text, version),) = there.replies
    assert "it is written, but has not arrived at worker 1 of generation 1 in time" in text
    assert version == 0
    there.catch_up(2)
    assert len(there.replies) == 1


def test_what_cannot_be_written_is_a_sentence() -> None:
    there = Operator(value_limit=100)
    there.set("k", "x" * 200)
    there.set("k", 2**70)
    there.set("serve:k", 1)
    there.set("", 1)
    there.set("k", 1, version=3)
    there.delete("k")
    there.delete("serve:k")
    texts = [text for text, _ in there.replies]
    for text, part in zip(
        texts,
        ("--state-value-limit", "more than 64 bits", "the server's own", "1 to 512 bytes", "has version 0", "no 'k'"),
        strict=False,
    ):
        assert part in text
    assert len(texts) == 7
    there.set("k", 1, version=0)
    there.catch_up(1, 2)
    assert there.replies[-1] == ("", 1)


def test_the_report_is_bounded_and_without_the_servers_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Operator()
    there.state.put("serve:own", 1)
    for key, value in (("b", "x" * 500), ("a", "x" * 5000), ("c", b"\xff"), ("d:1", 1)):
        there.write(1, "set", key, value)
    report = there.operator.report()
    assert [each["key"] for each in report["keys"]] == ["a", "b", "c", "d:1"]
    assert report["total"] == 4
    large, long, raw, _ = report["keys"]
    assert (large["value"], large["size"]) == ("", 5003)
    assert len(long["value"]) == operator_access.PREVIEW
    assert long["value"].endswith("x…")
    assert raw["value"] == '{"base64": "/w=="}'
    assert there.operator.report("d:")["total"] == 1
    assert [each["key"] for each in there.operator.report(most=2)["keys"]] == ["a", "b"]
    assert there.operator.value("serve:own") is None
    there.write(1, "set", "a", 2)
    assert [each["key"] for each in there.operator.newest(2)] == ["a", "d:1"]


def test_changes_are_watched_until_that_is_ended() -> None:
    there = Operator()
    seen: list[dict[str, Any]] = []
    end = there.operator.watch("user:", seen.append)
    other = there.operator.watch("", lambda change: end())  # one may end another amid a change
    there.state.put("serve:own", 1)
    there.write(1, "set", "user:1", [1, 2])
    other()
    end = there.operator.watch("user:", seen.append)
    there.write(1, "set", "other", 1)
    there.write(1, "delete", "user:1")
    end()
    there.write(1, "set", "user:1", 3)
    assert [{name: each[name] for name in each.keys() - {"at"}} for each in seen] == [
        {"key": "user:1", "version": 2, "value": [1, 2]},
        {"key": "user:1", "deleted": True},
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (b"ab", {"base64": "YWI="}),
        ({1: [b"", {"a": -1}]}, {"1": [{"base64": ""}, {"a": -1}]}),
        ((1, 2), "(1, 2)"),  # no such value is ever unpacked
    ],
)
def test_values_are_shown_in_what_json_has(value: Any, shown: Any) -> None:
    assert as_json(value) == shown
    json.dumps(as_json(value), allow_nan=False)


def test_what_a_store_holds_that_is_no_value_is_shown_as_it_is() -> None:
    there = Operator(stored=True)
    there.from_store("store.up")
    there.from_store("store.change", b"\xc1", key="odd", version=7, deleted=False)
    assert there.operator.value("odd") == {"key": "odd", "version": 7, "value": {"base64": "wQ=="}}


def test_with_a_store_a_write_is_the_stores() -> None:
    there = Operator(stored=True)
    there.from_store("store.up")
    there.set("k", 1)
    (frame,) = [frame for frame in there.port.to_store if frame.kind == "store.write"]
    there.from_store("store.written", pack_value(1, ""), id=frame.head["id"], key="k", version=9, deleted=False)
    there.catch_up(1, 2)
    assert there.replies == [("", 9)]
