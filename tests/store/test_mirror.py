"""The decision of a write is the same in the pure core, a file, a Redis and a PostgreSQL: compared on random writes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.hub.state.write_evaluation import (
    OVERHEAD,
    AcceptedWrite,
    StateEntry,
    StateLimits,
    WriteRefusal,
    evaluate_write,
)
from serve_asgi.ipc.frames import Frame, pack_value, unpack_value
from serve_asgi.ipc.state_frames import Write, WriteOp
from tests.store.stores import REDIS, VALUE_LIMIT, StoreProcess, scaled, store

LIMIT = 3_000 + 5 * OVERHEAD  # small, so that it is reached
EDGES = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1]
NUMBERS = [*EDGES, *(-n for n in EDGES), -32, -33, -128, -129, -32768, -32769, -(2**31) - 1, -(2**63)]
VALUES: list[Any] = [*NUMBERS, 2**63, 2**64 - 1, None, True, 1.5, "text", b"bytes", [1, {"a": b"b"}], "x" * 900]
KEYS = ["a", "b", "c", "ключ", "with space", "d" * 512, "", "e" * 513]


class Model:
    """The core itself, with a dictionary."""

    def __init__(self) -> None:
        self.entries: dict[str, StateEntry] = {}
        self.version = self.used = 0

    def write(self, write: Write) -> AcceptedWrite | WriteRefusal:
        found = evaluate_write(
            write, self.entries.get(write.key), StateLimits(VALUE_LIMIT, LIMIT), self.used, self.version + 1
        )
        if isinstance(found, AcceptedWrite):
            self.version, self.used = found.version, self.used + found.grows
            self.entries.pop(found.key, None)
            if found.value is not None:
                self.entries[found.key] = StateEntry(found.version, found.value)
        return found


def _writes(model: Model, rng: random.Random, count: int) -> Iterator[Write]:
    for _ in range(count):
        key = rng.choice(KEYS[:5]) if rng.random() < 0.95 else rng.choice(KEYS)
        op = rng.choice(
            [WriteOp.SET, WriteOp.SET, WriteOp.INCR, WriteOp.INCR, WriteOp.INCR, WriteOp.CAS, WriteOp.DELETE]
        )
        now = model.entries[key].version if key in model.entries else 0
        version = rng.choice([now, now, now, 0, 1, model.version]) if op is WriteOp.CAS or rng.random() < 0.2 else None
        value = pack_value(rng.choice(VALUES if rng.random() < 0.4 else NUMBERS), "a value")
        if rng.random() < 0.02:
            value = pack_value("x" * VALUE_LIMIT, "a value")
        yield Write(op, key, value if op in (WriteOp.SET, WriteOp.CAS) else b"", version, rng.choice(NUMBERS))


def _compare(process: StoreProcess, seed: int, count: int) -> Model:
    model, rng = Model(), random.Random(seed)
    for write in _writes(model, rng, count):
        id = process.ask("store.write", write.head(), write.value)
        found = process.wait("store.written", "store.refused", id=id)
        assert _told(model.write(write), id) == (found.kind, found.head, found.body), write
    return model


def _told(decided: AcceptedWrite | WriteRefusal, id: int) -> tuple[str, dict[str, Any], bytes]:
    head: dict[str, Any]
    if isinstance(decided, AcceptedWrite):
        head = {"id": id, "key": decided.key, "version": decided.version, "deleted": decided.value is None}
        return Frame("store.written", head, decided.value or b"")
    head = {"id": id, "code": decided.code.value, "text": decided.text, "version": decided.version}
    return Frame("store.refused", {**head, "exists": decided.version > 0}, decided.value)


def _same(state: dict[str, tuple[int, Any]], model: Model) -> None:
    assert state == {key: (entry.version, unpack_value(entry.value)) for key, entry in model.entries.items()}


def test_a_file_decides_as_the_core_does(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with store(path, total_limit=LIMIT) as process:
        process.up()
        model = _compare(process, 1, scaled(600))
        process.leave()
    with store(path, total_limit=LIMIT) as process:
        _same(process.up(), model)


@pytest.mark.once
def test_a_shared_store_decides_as_the_core_does(url: str) -> None:
    with store(url, total_limit=LIMIT) as process:
        process.up()
        model = _compare(process, 2, scaled(200 if url.startswith("postgres") else 2000))  # Redis has rules of its own
    with store(url, total_limit=LIMIT) as other:
        _same(other.up(), model)


@pytest.mark.once
@pytest.mark.parametrize("url", [REDIS], indirect=True)
def test_every_sum_of_two_numbers_is_exact(url: str) -> None:
    """Numbers in a Redis script are doubles; these are not."""
    with store(url) as process:
        process.up()
        asked = []
        for value in [*NUMBERS, 2**63, 2**64 - 1]:
            for by in NUMBERS:
                process.ask("store.write", {"op": "set", "key": "n"}, pack_value(value, "a value"))
                asked.append((process.ask("store.write", {"op": "incr", "key": "n", "by": by}), value, by))
            for id, start, by in asked:
                found = process.wait("store.written", "store.refused", id=id)
                total = start + by
                if -(2**63) <= total < 2**63:
                    assert found.body == pack_value(total, "a sum"), (start, by)
                else:
                    assert found.head["code"] == "range", (start, by)
            asked.clear()
            process.said.clear()
