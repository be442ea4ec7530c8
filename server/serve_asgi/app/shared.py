"""`shared`: a small mapping that is the same in all workers, the agent and the next generation.

Reads are local and never wait: they use this process's replica (`serve_asgi.app.state_replica`), which the hub keeps up
to date. Writes go to the hub (`serve_asgi.app.state_requests`) and return when every live worker has the change.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, ClassVar, Final

from serve_asgi.app import shared_errors as errors
from serve_asgi.app.hub_link import Link, LinkClosed, current, register, run_on_link_loop
from serve_asgi.app.shared_arguments import checked_integer, checked_key, encoded_value
from serve_asgi.app.state_replica import StateReplica
from serve_asgi.app.state_requests import MAX_TIMEOUT, StateRequests
from serve_asgi.app.state_watches import StateWatch, StateWatches
from serve_asgi.app.sync_calls import SyncCalls
from serve_asgi.ipc.frames import Frame, unpack_value
from serve_asgi.ipc.state_frames import Write, WriteOp

TIMEOUT: Final = 5.0
"""How long (s) a write waits until every live worker has it."""
VALUE_LIMIT: Final = 64 * 1024
"""Bytes, until the hub has told its own (--state-value-limit)."""


class Shared(Mapping[str, Any]):
    """The mapping. Values are what MessagePack has: None, bool, int, float, str, bytes, lists and dicts of these.

    What `get` returns is the caller's own: changing it changes nothing for others (use `update`). The errors are
    attributes, for `except shared.Lagging`; whatever is raised says whether the write stands. Every method that waits
    may raise LinkClosed (the listener is gone). Call them on the server's event loop; from another loop's coroutines
    they work as well, and `sync` has them for threads.
    """

    SharedError: ClassVar = errors.SharedError
    Lagging: ClassVar = errors.Lagging
    Conflict: ClassVar = errors.Conflict
    NotWritten: ClassVar = errors.NotWritten
    Unknown: ClassVar = errors.Unknown
    TooLarge: ClassVar = errors.ValueTooLarge
    BadKey: ClassVar = errors.BadKey
    NotAnInteger: ClassVar = errors.NotAnInteger
    OutOfRange: ClassVar = errors.OutOfRange
    NotSendable: ClassVar = errors.NotSendable
    LinkClosed: ClassVar = LinkClosed

    def __init__(self) -> None:
        self.applied = 0
        """How many changes of the state this process has applied."""
        self._link: Link | None = None
        self._replica = StateReplica()
        self._limit = VALUE_LIMIT
        self._ack_scheduled = False  # what is applied is acknowledged in a later turn of the loop
        self._whole = asyncio.Event()
        self._requests = StateRequests()
        self._watches = StateWatches()
        self._update_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.sync = SharedSync(self)
        """The calls that wait, for code that is not asynchronous."""

    # ---- reading, without waiting

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` as this process knows it: all that was written by it or before its request began.

        It never waits. What it returns is the caller's own: changing it changes nothing for others.

        Args:
            key: Which value.
            default: What is returned if there is none.

        Returns:
            The value.

        Example:
            ```python
            if shared.get("muted/cpu"):
                return
            ```
        """
        self._bind_running_loop()
        entry = self._replica.entries.get(key)
        return default if entry is None else entry.value

    def __getitem__(self, key: str) -> Any:
        self._bind_running_loop()
        return self._replica.entries[key].value

    def __contains__(self, key: object) -> bool:
        self._bind_running_loop()
        return key in self._replica.entries

    def __len__(self) -> int:
        self._bind_running_loop()
        return len(self._replica.entries)

    def __iter__(self) -> Iterator[str]:
        """The keys there are now; what changes meanwhile does not disturb."""
        self._bind_running_loop()
        return iter(list(self._replica.entries))

    def version(self, key: str) -> int:
        """The number of the change that `key` has its value from, for `set(…, version=)`.

        Args:
            key: Which value.

        Returns:
            A number that grows with each change; 0 if the key is not there.

        Example:
            ```python
            await shared.set("plan", new, version=shared.version("plan"))
            ```
        """
        self._bind_running_loop()
        entry = self._replica.entries.get(key)
        return 0 if entry is None else entry.version

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<shared state: {len(self._replica.entries)} keys after {self.applied} changes>"

    # ---- writing

    async def set(self, key: str, value: Any, *, version: int | None = None, timeout: float = TIMEOUT) -> int:
        """Write, and return when every live worker has the value.

        Args:
            key: A text, up to 512 bytes in UTF-8.
            value: None, bool, int, float, str, bytes, or lists and dicts of these.
            version: Write only if the key still has this version; 0, if it is not there.
            timeout: Seconds.

        Returns:
            The version of the change.

        Raises:
            Lagging: Not every worker has it by then; the write stands, and the error names their slots.
            Conflict: The key has another version; nothing is written.
            NotWritten: Nothing is written, and why: the store, the limit of the whole.
            Unknown: Whether it is written is not known.
            TooLarge: The value has more bytes than `--state-value-limit`.
            BadKey: The key is none.
            NotSendable: The value has a type that cannot be shared.
            LinkClosed: The listener is gone.

        Example:
            ```python
            await shared.set("muted/cpu", True)
            ```
        """
        op = WriteOp.SET if version is None else WriteOp.CAS
        found = await self._write(Write(op, checked_key(key), self._encode(key, value), version), timeout)
        return int(found.head["version"])

    async def delete(self, key: str, *, version: int | None = None, timeout: float = TIMEOUT) -> bool:
        """Delete, and return when every live worker has deleted it.

        Args:
            key: Which value.
            version: Delete only if the key still has this version.
            timeout: Seconds.

        Returns:
            Whether there was something.

        Raises:
            Lagging: And the others of `set`.

        Example:
            ```python
            await shared.delete("muted/cpu")
            ```
        """
        found = await self._write(Write(WriteOp.DELETE, checked_key(key), version=version), timeout)
        return bool(found.head["version"])

    async def incr(self, key: str, by: int = 1, *, timeout: float = TIMEOUT) -> int:
        """Add to an integer, and return when every live worker has the sum.

        Args:
            key: Which value; one that is not there counts as 0.
            by: What is added; it may be negative.
            timeout: Seconds.

        Returns:
            The sum.

        Raises:
            NotAnInteger: The value is something else.
            OutOfRange: The sum has more than 64 bits; and the errors of `set`.

        Example:
            ```python
            number = await shared.incr("orders")
            ```
        """
        found = await self._write(
            Write(WriteOp.INCR, checked_key(key), by=checked_integer(by, "what incr adds")), timeout
        )
        return int(unpack_value(found.body))

    async def update(
        self,
        key: str,
        function: Callable[[Any], Any] | Callable[[Any], Awaitable[Any]],
        default: Any = None,
        *,
        timeout: float = TIMEOUT,
    ) -> Any:
        """Write what `function` makes of the present value.

        If somebody else has written meanwhile, it is called again with the new value. Updates of one key in one
        process take turns.

        Args:
            key: Which value.
            function: Called with the value, which it may change; it returns the new one, and may be async.
            default: What it is called with if there is none.
            timeout: Seconds.

        Returns:
            What was written.

        Raises:
            Conflict: Others were faster until the timeout; nothing is written. And the errors of `set`.

        Example:
            ```python
            await shared.update("tags", lambda tags: [*tags, "new"], default=[])
            ```
        """
        link = current()
        end = link.loop.time() + min(timeout, MAX_TIMEOUT)
        if link.loop is not asyncio.get_running_loop():
            return await run_on_link_loop(link, self.update(key, function, default, timeout=timeout))
        lock = self._update_locks.setdefault(checked_key(key), asyncio.Lock())
        try:
            async with asyncio.timeout_at(end):
                await lock.acquire()
        except TimeoutError:
            raise errors.Conflict(
                f"{key!r} is not written: other updates of it took {timeout:g} s", self.version(key), self.get(key)
            ) from None
        try:
            return await self._update(key, function, default, end)
        finally:
            lock.release()

    async def _update(self, key: str, function: Callable[[Any], Any], default: Any, end: float) -> Any:
        version, value = self.version(key), self.get(key)
        while True:
            made = function(value if version else default)
            if inspect.isawaitable(made):
                made = await made
            write = Write(WriteOp.CAS, key, self._encode(key, made), version)
            try:
                await self._write(write, max(0.001, end - asyncio.get_running_loop().time()))
            except errors.Conflict as conflict:
                if asyncio.get_running_loop().time() >= end:
                    raise
                version, value = conflict.version, conflict.value
            else:
                return unpack_value(write.value)

    # ---- what is new, and what is true

    def watch(self, key: str | None = None) -> StateWatch:
        """The changes of a key from now on. To have the present value as well, make the watch first and then `get`.

        Args:
            key: Which value; None, all of them.

        Returns:
            An asynchronous iterator of changes. Of each key the newest change waits, no more.

        Example:
            ```python
            async for change in shared.watch("limits"):
                limiter.set(change.value)
            ```
        """
        self._bind_running_loop()
        watch = StateWatch(None if self._link is None else self._link.loop)
        if self._link is not None and self._link.closed:
            watch.end()
        else:
            self._watches.add(key, watch)
        return watch

    async def get_authoritative(self, key: str, default: Any = None, *, timeout: float = TIMEOUT) -> Any:
        """The value where it is decided: in the store (`--state`), or else in the listener.

        It differs from `get` only if other servers write (Redis), and then for a short time.

        Args:
            key: Which value.
            default: What is returned if there is none.
            timeout: Seconds.

        Returns:
            The value.

        Raises:
            NotWritten: The store cannot be reached.
            Unknown: There was no answer in time.

        Example:
            ```python
            balance = await shared.get_authoritative("balance/7", 0)
            ```
        """
        found = await self._requests.request("state.read", {"key": checked_key(key)}, b"", timeout)
        return unpack_value(found.body) if found.head["version"] else default

    async def ready(self) -> None:
        """Wait until this process has its copy. An application's code never has to.

        Example:
            ```python
            await shared.ready()
            ```
        """
        current()
        await self._whole.wait()

    def acknowledge(self) -> None:
        """For the worker: tell the hub at once what is applied, where the loop may not turn for a while."""
        self._ack_scheduled = False
        if self._link is not None:
            with contextlib.suppress(LinkClosed):
                self._link.send("state.seen", {"seq": self.applied})

    def leave(self) -> None:
        """For the process's end: its event loop is about to turn no more, so nobody is to wait for it."""
        if self._link is not None:
            with contextlib.suppress(LinkClosed):
                self._link.send("state.leave")

    # ---- the link

    def bind(self, link: Link) -> None:
        """For `serve_asgi.app.hub_link`: read from and write to this hub; what another one told is forgotten."""
        if self._link is not None:
            self._close()
        self._link = link
        self._replica, self.applied = StateReplica(), 0
        self._whole = asyncio.Event()
        self._update_locks.clear()
        self._ack_scheduled = False
        link.on_frame("state.changes", self._take)
        link.on_frame("state.limits", self._take_limits)
        self._requests.bind(link)
        link.on_close(lambda: self._close() if link is self._link else None)

    def _bind_running_loop(self) -> None:
        """In local mode each event loop has a state of its own: that of the running one is meant."""
        if self._link is None or self._link.identity.local:
            with contextlib.suppress(RuntimeError):  # in a thread, or while nothing runs: what is there
                current()

    def _take(self, frame: Frame) -> None:
        changed = self._replica.take(frame)
        if frame.head.get("more"):
            return
        self.applied = self._replica.applied
        if self._watches:
            for item in changed:
                self._watches.notify(item)
        self._whole.set()
        if not self._ack_scheduled:
            self._ack_scheduled = True
            assert self._link is not None
            self._link.loop.call_soon(self._acknowledge)

    def _acknowledge(self) -> None:
        if self._ack_scheduled:
            self.acknowledge()

    def _take_limits(self, frame: Frame) -> None:
        self._limit = int(frame.head["value"])

    def _close(self) -> None:
        """Nothing comes any more."""
        self._requests.fail_all()
        self._watches.end_all()

    # ---- requests

    def _encode(self, key: str, value: Any) -> bytes:
        return encoded_value(key, value, self._limit)

    async def _write(self, write: Write, timeout: float) -> Frame:
        if write.version is not None:
            checked_integer(write.version, "a version")
        return await self._requests.request("state.write", write.head(), write.value, timeout)


class SharedSync:
    """`shared.sync`: what `shared` is asked with `await`, for threads that may wait, with the same results and errors.

    The function of `update` is called in the thread that waits. A loop over `watch` ends when the process does.
    """

    def __init__(self, shared: Shared) -> None:
        blocking = SyncCalls("shared", _late)
        self.set = blocking(shared.set)
        self.delete = blocking(shared.delete)
        self.incr = blocking(shared.incr)
        self.update = blocking.with_callback(shared.update)
        self.get_authoritative = blocking(shared.get_authoritative)
        self.watch = blocking.iterator(shared.watch)


def _late(text: str, begun: bool) -> Exception:
    return errors.Unknown(text) if begun else errors.NotWritten(text)


shared: Final = Shared()
register(shared)
