"""The shared state: its entries, the order of its changes, and which processes have applied them.

Without a store the hub decides what each write does (`serve_asgi.hub.state.write_evaluation`); with a store it passes
writes on, and applies the replies in the order in which they come. Either way every change gets the next number here
(`seq`), is sent to every linked process, and is published, so that any process can see at once that it lags. The reply
to a write is sent when all live processes have reported that they have applied it, or at its deadline with the names of
those that have not. A process that starts gets the whole state first; no write waits for it, except its own.

Keys that begin with "serve:" are the server's own: they are written and kept like the others, but sent to no process.
Bounds: the size of the state; for each process, those of `serve_asgi.hub.state.replication`; pending requests by the
window of each process. It decides nothing about processes and waits for nothing.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from serve_asgi.errors import ChannelError
from serve_asgi.hub.core import Hub, HubComponent, Member, State
from serve_asgi.hub.state.entries import StateEntries, StoreChanges
from serve_asgi.hub.state.pending_requests import AT_STORE, PendingRequest, PendingRequests
from serve_asgi.hub.state.replication import Replication
from serve_asgi.hub.state.write_evaluation import RefusalCode, StateEntry, StateLimits, WriteRefusal, evaluate_write
from serve_asgi.ipc.frames import ValidatedFrame, pack_value, unpack_value
from serve_asgi.ipc.membership_frames import MemberPhase
from serve_asgi.ipc.state_frames import (
    RESERVED,
    STATE_FRAMES,
    KeyChange,
    Write,
    WriteOp,
)

PUT_TIMEOUT: Final = 10.0
"""Seconds that the store has to reply to a write of the hub's own."""
LAG_REPORTED_AFTER: Final = 1.0
"""Seconds that a write must have waited for a lagging process before that is logged."""
RESEND_ABOVE: Final = 2000
"""From this many changes at once (after an outage of the store) the whole state is sent: one by one they would
hold up the listener's loop."""

LAGGING: Final = "lagging"
"""A code of `state.failed`: the write stands, but not all have applied it. The other codes are those of
`serve_asgi.hub.state.write_evaluation.RefusalCode` and of `serve_asgi.ipc.store_frames.StoreFailure`."""
UNKNOWN: Final = "unknown"
UNAVAILABLE: Final = "unavailable"


class SharedState(HubComponent):
    """The hub's component for the shared state; `put`, `value` and `follow` are for the other components."""

    name = "state"
    kinds = STATE_FRAMES
    store_kinds = frozenset(
        {
            *("store.snapshot", "store.up", "store.down"),
            *("store.written", "store.refused", "store.change", "store.value"),
        }
    )

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.seq = 0
        """Changes that have been sent to the processes, in the life of this server."""
        self._limits = StateLimits(hub.settings.value_limit, hub.settings.state_limit)
        self._entries = StateEntries()
        self._version = 0
        self._store_changes = StoreChanges(hub.settings.state_limit)
        self._replication = Replication(hub, self._entries.to_send)
        self._lagged = 0  # writes whose reply names processes that lag
        self._pending = PendingRequests(hub)
        # requests that wait for processes, in the order of `seq`; some may have their replies already
        self._waiting: deque[PendingRequest] = deque()
        self._followers: list[tuple[str, Callable[[str, Any], None]]] = []

    # ---- for the other components

    def value(self, key: str) -> Any:
        """The value of a key; None if there is none, or if it cannot be decoded (a store may hold anything)."""
        found = self.raw(key)
        try:
            return None if found is None else unpack_value(found)
        except ChannelError:
            return None

    def raw(self, key: str) -> bytes | None:
        """The value of a key, encoded, or None."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def put(self, key: str, value: Any, on_done: Callable[[str], None] | None = None) -> None:
        """Write a key of the hub's own; None deletes it.

        `on_done` is called with "" once it is written (and confirmed by the store, if there is one), or with a
        sentence if it is not; at once if there is no store. It is not called any more after a re-exec.
        Raises NotSendable for a value that MessagePack cannot encode.
        """
        write = Write(WriteOp.DELETE, key) if value is None else Write(WriteOp.SET, key, pack_value(value, repr(key)))
        self._submit(write, self._new_request(PUT_TIMEOUT, on_done=on_done))

    def write(self, write: Write, timeout: float, on_done: Callable[[str, int], None]) -> None:
        """A write of an operator's.

        `on_done` is called with "" and the new version when all live processes have applied it, or with a sentence
        and 0 if it is refused, or has not arrived everywhere within `timeout` (s).
        """
        request = self._new_request(timeout, on_done=lambda text: on_done(text, 0 if text else request.version))
        request.for_operator = True
        self._submit(write, request)

    def follow(self, prefix: str, callback: Callable[[str, Any], None]) -> Callable[[], None]:
        """Have `callback` called with key and value (None: deleted) after each change of a key with this prefix.

        Returns what ends that.
        """
        follower = (prefix, callback)
        self._followers.append(follower)
        return lambda: self._followers.remove(follower)

    def entry(self, key: str) -> StateEntry | None:
        """The version and encoded value of a key, if it is there."""
        return self._entries.get(key)

    def newest(self) -> Iterator[str]:
        """The application's keys, those that were written last first."""
        return self._entries.newest()

    def keys(self, prefix: str) -> list[str]:
        """The keys with this prefix."""
        return [item.key for item in self._entries if item.key.startswith(prefix)]

    def all_entries(self) -> tuple[list[tuple[str, StateEntry]], int]:
        """All entries, the server's own too, and the version of the last change."""
        entries = [(item.key, StateEntry(item.version, item.value)) for item in self._entries if item.value is not None]
        return entries, self._version

    def start_with(self, entries: list[tuple[str, StateEntry]], version: int) -> None:
        """Begin with the entries of another hub, before any member is linked: the reverse of `all_entries`."""
        self._version = version
        for key, entry in entries:
            self._apply(KeyChange(key, *entry))

    def metrics(self) -> dict[str, float]:
        return {
            "state_keys": len(self._entries),
            "state_size_bytes": self._entries.used,
            "state_changes_total": self.seq,
            "state_lagged_total": self._lagged,
        }

    # ---- members

    def linked(self, member: Member) -> None:
        self.hub.send(member, "state.limits", {"value": self._limits.value, "total": self._limits.total})
        self._replication.begin(member, self.seq)

    def room_available(self, member: Member) -> None:
        self._replication.room_available(member)

    def changed(self, member: Member, before: MemberPhase) -> None:
        self._reply_to_complete()

    def left(self, member: Member) -> None:
        self._replication.forget(member)
        self._pending.forget(member)
        self._reply_to_complete()

    def take(self, member: Member, frame: ValidatedFrame) -> None:
        head = frame.head
        if frame.kind == "state.seen":
            if head.seq > self.seq:
                raise ChannelError(f"it has seen {head.seq} changes of the state, of {self.seq}")
            if self._replication.seen(member, head.seq, self.seq) and self._waiting:
                self._reply_to_complete()
        elif frame.kind == "state.leave":  # it exits, and its event loop has stopped
            self._replication.forget(member)
            self._reply_to_complete()
        elif frame.kind == "state.read":
            self._read(head.key, self._new_request(head.timeout, member, head.id))
        else:
            if head.op is WriteOp.CAS and head.version is None:
                raise ChannelError("a compare-and-set without a version")
            write = Write(head.op, head.key, frame.body, head.version, head.by)
            request = self._new_request(head.timeout, member, head.id)
            if write.key.startswith(RESERVED):
                self._pending.fail(
                    request, RefusalCode.KEY.value, f"keys that begin with {RESERVED!r} are the server's own"
                )
            else:
                self._submit(write, request)

    # ---- writes

    def _new_request(
        self,
        timeout: float,
        member: Member | None = None,
        id: int = 0,
        on_done: Callable[[str], None] | None = None,
    ) -> PendingRequest:
        return self._pending.open(self.hub.clock(), timeout, member, id, on_done)

    def _submit(self, write: Write, request: PendingRequest) -> None:
        if not self.hub.settings.stored:
            outcome = evaluate_write(
                write, self._entries.get(write.key), self._limits, self._entries.used, self._version + 1
            )
            if isinstance(outcome, WriteRefusal):
                self._refuse(request, outcome.code.value, outcome.text, outcome.version, outcome.value)
            else:
                self._apply(KeyChange(outcome.key, outcome.version, outcome.value))
                self._applied(request, outcome.version, outcome.value)
        elif self.hub.store_problem:
            self._pending.fail(request, UNAVAILABLE, f"nothing is written: {self.hub.store_problem}")
        else:
            self.hub.send_to_store("store.write", {"id": request.number, **write.head()}, write.value)

    def _apply(self, item: KeyChange) -> None:
        """Apply a change as the next one."""
        if self._apply_one(item):
            self._replication.change(item, self.seq, len(self._entries))
            self.hub.port.publish(self.seq)  # after sending: a process that sees that it lags finds it in its socket
        self._notify_followers(item)

    def _apply_all(self, items: list[KeyChange]) -> None:
        """Apply several changes, in order; no request waits for any of them."""
        if len(items) < RESEND_ABOVE:
            for item in items:
                self._apply(item)
            return
        for item in items:
            self._apply_one(item)
        self._replication.resend(self.seq)
        self.hub.port.publish(self.seq)
        for item in items:
            self._notify_followers(item)

    def _apply_one(self, item: KeyChange) -> bool:
        """Apply a change to the entries; return whether it is replicated to the processes."""
        self._entries.apply(item)
        if item.value is None and item.version and self.hub.settings.stored:
            self._store_changes.remember_deleted(item.key, item.version)
        self._version = max(self._version, item.version)
        sent = not item.key.startswith(RESERVED)
        self.seq += sent
        return sent

    def _notify_followers(self, item: KeyChange) -> None:
        for prefix, callback in list(self._followers):
            if item.key.startswith(prefix):
                callback(item.key, None if item.value is None else unpack_value(item.value))

    def _applied(self, request: PendingRequest, version: int, value: bytes | None) -> None:
        """A write is applied here: its reply waits for the processes."""
        request.version = version
        self._pending.set_value(request, value or b"")
        self._await_replicas(request)

    def _await_replicas(self, request: PendingRequest) -> None:
        if request.member is None and not request.for_operator:
            self._pending.succeed(request)
            return
        request.seq = self.seq
        self._waiting.append(request)
        self._reply_to_complete()

    def _refuse(self, request: PendingRequest, code: str, text: str, version: int = 0, value: bytes = b"") -> None:
        if code == RefusalCode.ABSENT.value:  # nothing to delete: done, once the processes have deleted it too
            self._await_replicas(request)
        else:
            self._pending.fail(request, code, text, version, value)

    # ---- replies

    def _reply_to_complete(self) -> None:
        """Reply to the writes that all live processes have applied."""
        late: list[PendingRequest] = []
        while self._waiting:
            request = self._waiting[0]
            if request in self._pending:
                if self._replication.is_anyone_behind(request.seq):
                    break
                if request.member is None or self._replication.has(request.member, request.seq):
                    self._pending.succeed(request)
                else:  # the writer is starting: only its own write waits for it
                    late.append(request)
            self._waiting.popleft()
        self._waiting.extendleft(reversed(late))

    def deadline(self) -> float:
        return -math.inf if self._replication.unfinished else self._pending.deadline()

    def tick(self) -> None:
        self._replication.send_more()
        now = self.hub.clock()
        for request in self._pending.due(now):
            if request.seq == AT_STORE:
                self._pending.fail(
                    request, UNKNOWN, "the store has not replied in time: it is not known whether this is written"
                )
            else:
                self._fail_lagging(request, now)

    def _fail_lagging(self, request: PendingRequest, now: float) -> None:
        """Reply with the names of the processes that have not applied the write in time."""
        self._lagged += 1
        lagging = list(self._replication.lagging(request.seq))
        writer = request.member
        if writer is not None and writer not in lagging and not self._replication.has(writer, request.seq):
            lagging.append(writer)  # the writer is starting
        if now - request.started >= LAG_REPORTED_AFTER:
            for member in lagging:
                self._report_lag(member)
        text = f"it is written, but has not arrived at {', '.join(map(str, lagging))} in time"
        found = [[member.role.value, member.slot, member.generation] for member in lagging]
        self._pending.fail(request, LAGGING, text, request.version, request.value, lagging=found)

    def _report_lag(self, member: Member) -> None:
        if self._replication.mark_reported(member):
            text = f"{member} does not take the changes of the shared state in time: its event loop may be blocked"
            self.hub.port.report(
                logging.WARNING,
                "replica_delayed",
                text,
                role=member.role.value,
                slot=member.slot,
                generation=member.generation,
            )

    # ---- authoritative reads

    def _read(self, key: str, request: PendingRequest) -> None:
        if self.hub.settings.stored:
            if self.hub.store_problem:
                self._pending.fail(request, UNAVAILABLE, f"it cannot be read: {self.hub.store_problem}")
            else:
                self.hub.send_to_store("store.read", {"id": request.number, "key": key})
            return
        if (entry := self._entries.get(key)) is not None:
            request.version = entry.version
            self._pending.set_value(request, entry.value)
        self._pending.succeed(request)

    # ---- the store

    def take_from_store(self, frame: ValidatedFrame) -> None:
        head, kind = frame.head, frame.kind
        if kind == "store.snapshot":
            self._store_changes.take_snapshot(frame)
        elif kind == "store.up":
            self._apply_all(self._store_changes.snapshot(self._entries))
            self.hub.store_changed("")
        elif kind == "store.down":
            self.hub.store_changed(head.text)
        elif kind == "store.change":
            self._take_change(_item(frame))
        else:
            self._take_reply(frame, self._pending.get(head.id))

    def _take_reply(self, frame: ValidatedFrame, request: PendingRequest | None) -> None:
        head = frame.head
        if frame.kind == "store.written":
            item = _item(frame)
            self._take_change(item)
            if request is not None:
                self._applied(request, item.version, item.value)
        elif request is None:
            return
        elif frame.kind == "store.refused":
            self._refuse(request, head.code, head.text, head.version, frame.body)
        else:
            request.version = head.version
            self._pending.set_value(request, frame.body)
            self._pending.succeed(request)

    def _take_change(self, item: KeyChange) -> None:
        """Apply a change that the store reports, unless it is known already."""
        if self._store_changes.is_news(item, self._entries):
            self._apply(item)

    def store_changed(self) -> None:
        if self.hub.store_problem:
            self._store_changes.discard_snapshot()
            text = f"it is not known whether this is written: {self.hub.store_problem}"
            for request in self._pending.at_store():
                self._pending.fail(request, UNKNOWN, text)

    # ---- a new program of the listener

    def to_state(self) -> State:
        return {
            "seq": self.seq,
            "version": self._version,
            "entries": list(self._entries),
            "copies": self._replication.to_state(),
            "lagged": self._lagged,
            "asks": self._pending.to_state(),
            **self._store_changes.to_state(),
        }

    def load(self, state: State) -> None:
        self.seq, self._version = state["seq"], state["version"]
        self._lagged = state["lagged"]
        for item in state["entries"]:
            self._entries.apply(KeyChange(*item))
        self._store_changes.load(state)
        self._replication.load(state["copies"])
        self._waiting = deque(self._pending.load(state["asks"], self.hub.members))
        self.hub.port.publish(self.seq)


def _item(frame: ValidatedFrame) -> KeyChange:
    head = frame.head
    return KeyChange(head.key, head.version, None if head.deleted else frame.body)
