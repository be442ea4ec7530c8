"""The state in a file: SQLite, which survives a power failure.

It owns the file while the process lives, by a lock beside it (PATH.lock). All frames that have arrived form one
transaction, with write-ahead logging and `synchronous=FULL`: a reply is sent after fsync(2) has returned
(https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous). A file that is not ours, is damaged or
has a later version is refused and left unchanged; a new file gets its name only when it is complete. The content of the
file is also kept in memory, so that nothing is read again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from serve_asgi.errors import InUseError, UsageError
from serve_asgi.hub.state.write_evaluation import StateEntry, StateLimits, entry_size
from serve_asgi.ipc.frames import Frame
from serve_asgi.ipc.path_lock import PathLock, unusable
from serve_asgi.ipc.state_frames import Write
from serve_asgi.ipc.store_frames import StoreFailure
from serve_asgi.store import replies
from serve_asgi.store.replies import StoreReply
from serve_asgi.store.schedule_leases import LeaseTable, TickGrant, lease_until
from serve_asgi.store.state_writes import StateWrites, apply_change
from serve_asgi.store.write_availability import WriteAvailability

APPLICATION: Final = 0x53525645
"""`PRAGMA application_id`, "SRVE", by which file(1) and we recognise it (https://sqlite.org/fileformat.html 1.3.17)."""
VERSION: Final = 1
"""`PRAGMA user_version`: the version of the tables below."""
MAGIC: Final = b"SQLite format 3\0"
LOCK_TIME: Final = 3.0
"""Seconds that the store process of a server that has just ended has to release the file."""
LOG_BYTES: Final = 8 * 1024 * 1024
"""Bytes to which the write-ahead log is cut after a long read has let it grow (`journal_size_limit`)."""
LOOK: Final = 0.02
"""Seconds between two attempts to get the lock."""

_TABLES: Final = f"""
    CREATE TABLE about (name TEXT PRIMARY KEY, number INTEGER NOT NULL);
    CREATE TABLE entries (key TEXT PRIMARY KEY, version INTEGER NOT NULL, value BLOB NOT NULL);
    CREATE TABLE ticks (name TEXT PRIMARY KEY, tick REAL NOT NULL, holder TEXT NOT NULL, token INTEGER NOT NULL);
    INSERT INTO about VALUES ('version', 0), ('token', 0);
    PRAGMA application_id = {APPLICATION};
    PRAGMA user_version = {VERSION};
"""
_NOTHING_DONE: Final = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),  # at BEGIN: another program writes to the file
    }
)
"""Errors after which the transaction is certainly not committed."""


class _Batch(StateWrites):
    """The changes of one transaction."""

    names: set[str]
    """Schedules with a new grant."""

    def __init__(self, *state: Any) -> None:
        super().__init__(*state)
        self.names = set()


class SqliteState:
    """The store in one file."""

    def __init__(self, path: str, limits: StateLimits, *, again: bool = False) -> None:
        """Open the file at `path`; make it if it does not exist, unless it has been served before (`again`).

        Raises UsageError, a sentence, if that is not possible or the file is not ours.
        """
        self.path = os.path.realpath(path)
        self.availability = WriteAvailability()
        self._limits = limits
        self._lock = _locked(self.path)
        try:
            if not os.path.lexists(self.path) or os.stat(self.path).st_size == 0:
                if again:
                    raise UsageError(f"the state file {path} is gone: put it back, or restart the server to begin anew")
                _make(self.path)
            _check_head(self.path)
            self._base = _open(self.path)
            self._load()
        except OSError as error:
            self._lock.release()
            raise UsageError(f"the state file {path} cannot be used: {error.strerror}") from None
        except sqlite3.Error as error:
            self._lock.release()
            raise UsageError(
                f"the state file {path} cannot be used ({error}): put back a copy of it, or move it away to begin anew"
            ) from None
        except UsageError:
            self._lock.release()
            raise
        self._identities = [(name, _identity(name)) for name in (self.path, f"{self.path}-wal")]

    def _load(self) -> None:
        (found,) = self._base.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"it is damaged: {found.splitlines()[0]}")
        about = dict(self._base.execute("SELECT name, number FROM about"))
        self.version: int = about["version"]
        self.entries = {
            key: StateEntry(version, value)
            for key, version, value in self._base.execute("SELECT key, version, value FROM entries")
        }
        self.used = sum(entry_size(key, entry.value) for key, entry in self.entries.items())
        grants = self._base.execute("SELECT name, tick, holder, token FROM ticks")
        self._leases = LeaseTable({name: TickGrant(*rest) for name, *rest in grants}, about["token"])

    def snapshot(self) -> Iterator[StoreReply]:
        """The whole state."""
        return replies.snapshot(self.entries.items())

    def answer(self, frames: Sequence[Frame]) -> list[StoreReply]:
        """Carry out the requests, durably, and return the replies.

        Raises LookupError, TypeError or ValueError for an invalid frame.
        """
        batch = _Batch(self.entries, self._limits, self.version, self.used)
        kept = self._leases.copy()
        found = [each for frame in frames for each in self._handle(frame, batch)]
        if not batch.changes and not batch.names:
            return found
        try:
            self._check_identity()
            self._commit(batch)
        except (sqlite3.Error, OSError) as error:
            self._leases = kept
            return self._refuse(frames, error)
        for change in batch.changes.values():
            apply_change(self.entries, change)
        self.version, self.used = batch.version, batch.used
        return [*self.availability.taken(), *found]

    def probe(self) -> list[StoreReply]:
        """If writes were refused: try whether they still are, if it is time to."""
        if not self.availability.due():
            return []
        try:
            self._check_identity()
            _touch(self._base)
        except (sqlite3.Error, OSError) as error:
            return [*self.availability.refused(self._sentence(error))]
        return [*self.availability.taken()]

    def _handle(self, frame: Frame, batch: _Batch) -> Iterator[StoreReply]:
        head, now = frame.head, time.time()
        match frame.kind:
            case "store.write":
                yield batch.write(head["id"], Write.of(head, frame.body))
            case "store.read":
                yield replies.value(head["id"], head["key"], batch.entry(head["key"]))
            case "store.send":
                yield StoreReply("store.sent", {"id": head["id"]})  # there is no other server
            case "store.grant":
                lease = float(head["lease"])
                name, exclusive = head["name"], bool(head.get("exclusive"))
                found = self._leases.grant(name, float(head["tick"]), head["holder"], lease, exclusive, now)
                if isinstance(found, TickGrant):
                    batch.names.add(name)
                    yield replies.granted(head["id"], found.token, lease_until(lease, time.monotonic()))
                else:
                    yield replies.taken(head["id"], *found)
            case "store.renew":
                name, token, lease = head["name"], head["token"], float(head["lease"])
                if self._leases.renew(name, token, lease, now):
                    yield replies.renewed(name, token, lease_until(lease, time.monotonic()))
                else:
                    yield replies.lost(name, token, f"the lease of {name} was not renewed in time")
            case "store.release":
                self._leases.release(head["name"], head["token"])

    def _commit(self, batch: _Batch) -> None:
        base = self._base
        gone = [(change.key,) for change in batch.changes.values() if change.value is None]
        there = [(c.key, c.version, c.value) for c in batch.changes.values() if c.value is not None]
        grants = [(n, g.tick, g.holder, g.token) for n in batch.names for g in [self._leases.last[n]]]
        numbers = [(batch.version, "version"), (self._leases.token, "token")]
        with _transaction(base):
            base.executemany("DELETE FROM entries WHERE key = ?", gone)
            base.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", there)
            base.executemany("INSERT OR REPLACE INTO ticks VALUES (?, ?, ?, ?)", grants)
            base.executemany("UPDATE about SET number = ? WHERE name = ?", numbers)

    def _check_identity(self) -> None:
        """Raise OSError if the file has been removed or replaced: what is written to it would be lost at a restart."""
        for name, identity in self._identities:
            if _identity(name) != identity:
                raise OSError(0, f"{name} has been removed or replaced; put it back, or restart the server")

    def _refuse(self, frames: Sequence[Frame], error: sqlite3.Error | OSError) -> list[StoreReply]:
        """The replies after a failed transaction: nothing of it stands, or that is unknown if the disk failed."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_FULL) & 0xFF  # the primary part of an extended code
        why = StoreFailure.STORAGE if code in _NOTHING_DONE else StoreFailure.UNKNOWN
        text = self._sentence(error)
        found = [replies.failed(frame.kind, frame.head, why, text) for frame in frames]
        return [*self.availability.refused(text), *(each for each in found if each is not None)]

    def _sentence(self, error: sqlite3.Error | OSError) -> str:
        said = error.strerror if isinstance(error, OSError) else str(error)
        return f"the state could not be written to {self.path}: {said}"

    def close(self) -> None:
        """Close and release the file."""
        with contextlib.suppress(sqlite3.Error):
            self._base.close()
        self._lock.release()


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _locked(path: str) -> PathLock:
    """The lock of the file. Raises UsageError if another server has it."""
    deadline = time.monotonic() + LOCK_TIME
    while True:
        try:
            return PathLock(path, os.getppid())
        except InUseError as error:
            if time.monotonic() > deadline:
                who = f"the server with PID {error.holder}" if error.holder else "another server"
                raise UsageError(
                    f"the state file {path} is used by {who}: stop that one, give another path, or share a Redis "
                    "or PostgreSQL between the servers (--state redis://HOST:PORT/DB or postgresql://HOST/DATABASE)"
                ) from None
        time.sleep(LOOK)


def _make(path: str) -> None:
    """Make a new file, which gets its name only when it is complete. Raises UsageError or sqlite3.Error."""
    fresh = f"{path}.new"
    if os.path.lexists(f"{path}-wal"):
        raise UsageError(
            f"there is {path}-wal, which holds the latest changes of a state file that is gone: put {path} back beside "
            "it, or move it away to begin anew"
        )
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        base = sqlite3.connect(fresh, isolation_level=None)
        with contextlib.closing(base):
            base.executescript(f"BEGIN; {_TABLES} COMMIT;")
        os.rename(fresh, path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise unusable(path, error) from None


def _check_head(path: str) -> None:
    """Check that the file is ours before SQLite touches it. Raises UsageError or OSError."""
    with open(path, "rb") as file:
        head = file.read(100)
    if head[:16] != MAGIC or len(head) < 100 or int.from_bytes(head[68:72], "big") != APPLICATION:
        raise UsageError(
            f"{path} is not a state file of this server, and is left as it is: give --state another path"
        ) from None
    if (version := int.from_bytes(head[60:64], "big")) > VERSION:
        raise UsageError(
            f"the state file {path} was written by a later version of this server (format {version}, this one reads "
            f"{VERSION}): start that version, or give --state another path"
        )


def _open(path: str) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None, timeout=LOCK_TIME)
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = FULL")
    base.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    _touch(base)  # creates the write-ahead log and its index, or fails now
    return base


def _touch(base: sqlite3.Connection) -> None:
    """Write something that changes nothing."""
    with _transaction(base):
        base.execute("UPDATE about SET number = number WHERE name = 'version'")


@contextlib.contextmanager
def _transaction(base: sqlite3.Connection) -> Iterator[None]:
    """A transaction: committed at the end, rolled back on an error."""
    base.execute("BEGIN IMMEDIATE")
    try:
        yield
        base.execute("COMMIT")
    except sqlite3.Error:
        if base.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                base.execute("ROLLBACK")
        raise
