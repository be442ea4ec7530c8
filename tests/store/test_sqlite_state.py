"""The state in a file: nothing that was confirmed is lost, nothing that is not ours is touched."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

from serve_asgi.hub.state.write_evaluation import StateLimits
from serve_asgi.ipc.frames import Frame, pack_value
from serve_asgi.store import sqlite_state as module
from serve_asgi.store.sqlite_state import SqliteState
from tests.running import PATIENCE
from tests.store.stores import StoreProcess, scaled, store

LIMITS = StateLimits(64 * 1024, 1024 * 1024)


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with store(path) as process:
        assert process.up() == {}
        first = process.set("a", {"nested": [1, b"2", None]})
        process.set("gone", 1)
        assert process.write("delete", "gone").head["deleted"] is True
        assert process.write("incr", "n", by=5).body == pack_value(5, "n")
        process.leave()
    assert not (tmp_path / "state.db-wal").exists()
    with store(path) as process:
        state = process.up()
        assert state == {"a": (first.head["version"], {"nested": [1, b"2", None]}), "n": (4, 5)}
        assert process.set("b", 1).head["version"] == 5  # versions go on
        assert process.read("a") == {"nested": [1, b"2", None]}
        assert process.read("nothing") is None


@pytest.mark.once
def test_a_large_state_comes_in_pieces(tmp_path: Path) -> None:
    value = "x" * 60_000
    with store(tmp_path / "state.db") as process:
        process.up()
        for number in range(16):
            process.set(f"key{number}", value)
        process.leave()
    with store(tmp_path / "state.db") as process:
        assert {key: content for key, (_, content) in process.up().items()} == {f"key{n}": value for n in range(16)}


def test_many_at_a_time_are_one_transaction(tmp_path: Path) -> None:
    with store(tmp_path / "state.db") as process:
        process.up()
        ids = [process.ask("store.write", {"op": "incr", "key": "n", "by": 1}) for _ in range(100)]
        found = [process.wait("store.written", id=id) for id in ids]
        assert [each.head["version"] for each in found] == list(range(1, 101))
        assert process.read("n") == 100
        process.ask("store.send", {"kind": "broadcast"})
        process.wait("store.sent")


@pytest.mark.once
def test_a_kill_at_any_moment_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    """The process is killed while it writes: each time all that it had confirmed, and nothing twice, is there.

    In every second turn it has confirmed something by then, however slow the machine is.
    """
    path, rng = tmp_path / "state.db", random.Random(5)
    confirmed = 0
    for turn in range(scaled(8)):
        with store(path) as process:
            found = process.up().get("n", (0, 0))[1]
            asked = confirmed + 150
            assert confirmed <= found
            confirmed = found
            killer = threading.Timer(rng.uniform(0.0, 0.02), process.process.kill)
            if turn % 2 == 0:
                killer.start()
            with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
                for _ in range(150):
                    process.ask("store.write", {"op": "incr", "key": "n", "by": 1})
                while confirmed < asked:
                    process.wait("store.written")
                    confirmed += 1
                    if killer.ident is None:
                        killer.start()
            killer.join()
            process.process.wait()
    with store(path) as process:
        assert process.up()["n"][1] >= confirmed


@pytest.mark.once
def test_a_kill_while_the_file_is_made_leaves_none_or_a_whole_one(tmp_path: Path) -> None:
    rng = random.Random(6)
    for number in range(scaled(4)):
        path = tmp_path / f"state{number}.db"
        process = StoreProcess(path)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.process.wait(rng.uniform(0.2, 0.6))
        process.kill()
        process.close()
        with store(path) as again:
            assert again.up() == {}


def test_one_server_has_the_file(tmp_path: Path) -> None:
    with store(tmp_path / "state.db") as first:
        first.up()
        (tmp_path / "link.db").symlink_to(tmp_path / "state.db")
        with store(tmp_path / "link.db") as second:
            text = second.failed()
            assert f"is used by the server with PID {os.getpid()}: stop that one" in text  # the listener's: ours
        first.set("a", 1)


def test_the_next_server_waits_for_the_one_that_ends(tmp_path: Path) -> None:
    with store(tmp_path / "state.db") as first:
        first.up()
        with store(tmp_path / "state.db") as second:
            first.set("a", 1)
            first.leave()
            assert second.up()["a"][1] == 1


FOREIGN = {
    "text": b"This is my diary, and nothing else.\n" * 10,
    "short": b"x",
    "head": b"SQLite format 3\0",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "diary"
    path.write_bytes(content)
    with store(path) as process:
        assert "is not a state file of this server, and is left as it is" in process.failed()
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["diary"]


def test_another_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE orders (id)")
        base.commit()
    before = path.read_bytes()
    with store(path) as process:
        assert "is not a state file of this server" in process.failed()
    assert path.read_bytes() == before


@pytest.mark.once
def test_a_file_of_a_later_version_is_left_as_it_is(tmp_path: Path) -> None:
    path = _with_content(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    with store(path) as process:
        assert "was written by a later version of this server (format 2, this one reads 1)" in process.failed()
    assert path.read_bytes() == before


@pytest.mark.once
@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_damaged_file_is_left_as_it_is(tmp_path: Path, page: int) -> None:
    path = _with_content(tmp_path)
    data = bytearray(path.read_bytes())
    start = 100 if page == 1 else (page - 1) * 4096
    data[start : start + 2000] = os.urandom(2000)
    path.write_bytes(data)
    with store(path) as process:
        text = process.failed()
    assert "cannot be used" in text
    assert "put back a copy of it, or move it away to begin anew" in text
    assert path.read_bytes()[start : start + 2000] == data[start : start + 2000]


@pytest.mark.once
def test_a_file_that_was_cut_short_is_left_as_it_is(tmp_path: Path) -> None:
    path = _with_content(tmp_path)
    os.truncate(path, path.stat().st_size - 5000)
    size = path.stat().st_size
    with store(path) as process:
        assert "cannot be used" in process.failed()
    assert path.stat().st_size == size


@pytest.mark.once
def test_the_latest_changes_of_a_file_that_was_moved_away_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with store(path) as process:
        process.up()
        process.set("a", 1)
        process.kill()
    path.rename(tmp_path / "elsewhere.db")
    with store(path) as process:
        assert "which holds the latest changes of a state file that is gone" in process.failed()
    (tmp_path / "elsewhere.db").rename(path)
    with store(path) as process:
        assert process.up() == {"a": (1, 1)}


@pytest.mark.parametrize(
    ("place", "says"),
    [("nowhere/state.db", "there is no directory"), (".", "cannot be"), ("state.db/more", "there is no directory")],
)
def test_a_path_that_cannot_be_is_a_sentence(tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "state.db").touch()
    with store(tmp_path / place) as process:
        assert says in process.failed()


def test_a_server_that_had_a_file_makes_no_new_one(tmp_path: Path) -> None:
    """A process that is started again must not find nothing and call that the state."""
    with store(tmp_path / "state.db", again=True) as process:
        assert "is gone: put it back, or restart the server to begin anew" in process.failed()
    assert not (tmp_path / "state.db").exists()


def test_a_file_that_is_removed_or_replaced_is_an_error_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with store(path) as process:
        process.up()
        process.set("a", 1)
        path.rename(tmp_path / "moved")
        refused = process.write("set", "a", 2)
        assert refused.head["code"] == "storage"
        assert "cannot" not in refused.head["text"] or "removed" in refused.head["text"]
        assert process.read("a") == 1
        (tmp_path / "moved").rename(path)
        process.set("a", 3)
    with store(path) as process:
        assert process.up()["a"][1] == 3


def test_a_disk_that_fails_is_an_error_of_the_writer_and_passes(tmp_path: Path) -> None:
    """Files may not grow for a while (RLIMIT_FSIZE): what was confirmed stands, and it goes on by itself."""
    with store(tmp_path / "state.db") as process:
        process.up()
        process.set("a", 1)
        before = resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
        refused = process.write("set", "large", "x" * 60_000)
        assert refused.kind == "store.refused"
        assert refused.head["code"] in ("storage", "unknown")
        assert f"the state could not be written to {tmp_path / 'state.db'}: " in refused.head["text"]
        assert process.grant("tick", time.time()).kind in ("store.granted", "store.taken")
        assert process.read("large") is None
        refuses = process.wait("store.refuses")
        assert refuses.head["text"] == refused.head["text"]
        process.write("set", "large", "x" * 60_000)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, before)
        assert process.wait("store.refuses").head["text"] == ""  # it tries by itself, and tells each only once
        process.set("large", "y" * 60_000)
        process.leave()
    with store(tmp_path / "state.db") as process:
        assert {key: value for key, (_, value) in process.up().items()} == {"a": 1, "large": "y" * 60_000}


def test_a_full_disk_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own bound of a file's size stands in for the disk's (SQLITE_FULL either way)."""
    opened = module._open

    def small(path: str) -> sqlite3.Connection:
        base = opened(path)
        base.execute("PRAGMA max_page_count = 12")
        return base

    monkeypatch.setattr(module, "_open", small)
    state = SqliteState(str(tmp_path / "state.db"), LIMITS)
    try:
        (fine,) = state.answer([_set(1, "a", b"\x01")])
        assert fine.kind == "store.written"
        told, *both = state.answer([_set(2, "b", pack_value("x" * 60_000, "b")), _set(3, "c", b"\x01")])
        assert (told.kind, told.head["text"]) == ("store.refuses", both[0].head["text"])
        assert [(each.kind, each.head["id"], each.head["code"]) for each in both] == [
            ("store.refused", 2, "storage"),
            ("store.refused", 3, "storage"),
        ]
        assert "database or disk is full" in both[0].head["text"]
        grant = Frame("store.grant", {"id": 4, "name": "n", "tick": 1.0, "lease": 1, "holder": "h"})
        (again,) = state.answer([_set(5, "c", b"\x01")])
        assert again.kind == "store.written"
        assert again.head["version"] == fine.head["version"] + 1  # the refused ones have used none
        assert state.answer([grant])[0].kind == "store.granted"
    finally:
        state.close()
    assert not (tmp_path / "state.db.lock").exists()


def test_the_log_shrinks_when_nobody_reads_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stays, such as a backup, lets the write-ahead log grow."""
    monkeypatch.setattr(module, "LOG_BYTES", 100_000)
    state = SqliteState(str(tmp_path / "state.db"), LIMITS)
    log = tmp_path / "state.db-wal"

    def write(count: int) -> None:
        for number in range(count):
            state.answer([_set(number, "a", pack_value(chr(97 + number % 20) * 60_000, "a"))])

    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        write(90)
        assert log.stat().st_size > 5_000_000
    write(2)
    assert log.stat().st_size <= 200_000
    state.close()


def test_a_file_that_somebody_else_writes_to_is_an_error_of_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an operator in the midst of a transaction: nothing is written, and that is known."""
    monkeypatch.setattr(module, "LOCK_TIME", 0.05)
    state = SqliteState(str(tmp_path / "state.db"), LIMITS)
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        told, refused = state.answer([_set(1, "a", b"\x01")])
        assert "database is locked" in told.head["text"]
        assert (refused.kind, refused.head["code"]) == ("store.refused", "storage")
        assert "database is locked" in refused.head["text"]
        other.execute("ROLLBACK")
        (again,) = state.answer([_set(2, "a", b"\x01")])
        assert again.kind == "store.written"
    state.close()


def test_a_directory_that_may_not_be_written_to_is_a_sentence() -> None:
    with store("/sys/state.db") as process:  # where root may make no file either
        assert "this user may not create /sys/state.db: choose a directory" in process.failed()


def test_others_may_read_it_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with store(path) as process:
        process.up()
        process.set("a", 1)
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
            assert base.execute("SELECT key, version FROM entries").fetchall() == [("a", 1)]
            assert process.set("a", 2).head["version"] == 2
        assert (path.stat().st_mode & 0o777) == 0o600


def test_nonsense_ends_the_process(tmp_path: Path) -> None:
    with store(tmp_path / "state.db") as process:
        process.up()
        process.send("store.write", {"id": 1})
        with pytest.raises(EOFError):
            process.wait("store.written")
        assert process.process.wait(PATIENCE) == 1


def _set(id: int, key: str, value: bytes) -> Frame:
    return Frame("store.write", {"id": id, "op": "set", "key": key}, value)


def _with_content(directory: Path) -> Path:
    path = directory / "state.db"
    with store(path) as process:
        process.up()
        for number in range(10):
            process.set(f"key{number}", "x" * 5000)
        process.leave()
    return path
