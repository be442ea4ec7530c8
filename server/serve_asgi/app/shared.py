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
"""Seconds that a write waits until every live worker has applied it."""
VALUE_LIMIT: Final = 64 * 1024
"""Bytes, until the hub has sent its limit (--state-value-limit)."""


class Shared(Mapping[str, Any]):
    """The mapping. Values are None, bool, int, float, str, bytes, and lists and dicts of these.

    What `get` returns belongs to the caller: changing it has no effect on others (use `update`). The errors are
    attributes, for `except shared.Lagging`; each of them says whether the write stands. Every method that waits may
    raise LinkClosed (the listener is gone). The methods can be called in any event loop; `sync` has them for threads.
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
        """The number of changes of the state that this process has applied."""
        self._link: Link | None = None
        self._replica = StateReplica()
        self._limit = VALUE_LIMIT
        self._ack_scheduled = False  # an acknowledgement will be sent in a later turn of the loop
        self._whole = asyncio.Event()
        self._requests = StateRequests()
        self._watches = StateWatches()
        self._update_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self.sync = SharedSync(self)
        """Blocking versions of the calls that wait, for threads."""

    # ---- reading, without waiting

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` in this process, which has every write of its own and every one before its request began.

        It never waits. The value belongs to the caller: changing it has no effect on others.

        Args:
            key: The key.
            default: Returned if the key is not there.

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
        """The keys at this moment; later changes do not affect the iteration."""
        self._bind_running_loop()
        return iter(list(self._replica.entries))

    def version(self, key: str) -> int:
        """The version of `key`, for `set(…, version=)`: the number of the change that wrote it.

        Args:
            key: The key.

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
        """Write a value, and return when every live worker has it.

        Args:
            key: A string of up to 512 bytes in UTF-8.
            value: None, bool, int, float, str, bytes, or lists and dicts of these.
            version: Write only if the key still has this version; 0 means that it is not there.
            timeout: Seconds.

        Returns:
            The version of the change.

        Raises:
            Lagging: Not every worker has it in time; the write stands, and the error names the slots of those.
            Conflict: The key has another version; nothing is written.
            NotWritten: Nothing is written: the store is unavailable, or refuses writes.
            Unknown: It is not known whether it is written.
            TooLarge: The value has more bytes than `--state-value-limit`.
            BadKey: The key is invalid.
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
        """Delete a key, and return when every live worker has deleted it.

        Args:
            key: The key.
            version: Delete only if the key still has this version.
            timeout: Seconds.

        Returns:
            Whether it was there.

        Raises:
            Lagging: Also the other errors of `set`.

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
            key: The key; a missing one counts as 0.
            by: The number to add; it may be negative.
            timeout: Seconds.

        Returns:
            The sum.

        Raises:
            NotAnInteger: The value is not an integer.
            OutOfRange: The sum has more than 64 bits. Also the errors of `set`.

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
        """Write what `function` returns for the present value.

        If the key has been written meanwhile, it is called again with the new value. Updates of one key in one process
        take turns.

        Args:
            key: The key.
            function: Called with the value, which it may change; it returns the new one, and may be async.
            default: Used in place of the value if the key is not there.
            timeout: Seconds.

        Returns:
            What was written.

        Raises:
            Conflict: Others were faster until the timeout; nothing is written. Also the errors of `set`.

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

    # ---- changes, and authoritative reads

    def watch(self, key: str | None = None) -> StateWatch:
        """The changes of a key from now on. To get the present value as well, make the watch first and then call `get`.

        Args:
            key: The key; None for all keys.

        Returns:
            An asynchronous iterator of changes. If it is not read, only the newest change of each key is kept.

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
        """The value in the store (`--state`), or without one in the listener.

        It differs from `get` only for a short time after a write of another server (Redis).

        Args:
            key: The key.
            default: Returned if the key is not there.
            timeout: Seconds.

        Returns:
            The value.

        Raises:
            NotWritten: The store cannot be reached.
            Unknown: There was no reply in time.

        Example:
            ```python
            balance = await shared.get_authoritative("balance/7", 0)
            ```
        """
        found = await self._requests.request("state.read", {"key": checked_key(key)}, b"", timeout)
        return unpack_value(found.body) if found.head["version"] else default

    async def ready(self) -> None:
        """Wait until this process has its replica. The application's code never has to.

        Example:
            ```python
            await shared.ready()
            ```
        """
        current()
        await self._whole.wait()

    def acknowledge(self) -> None:
        """For the worker: acknowledge at once what has been applied, if the loop may not turn for a while."""
        self._ack_scheduled = False
        if self._link is not None:
            with contextlib.suppress(LinkClosed):
                self._link.send("state.seen", {"seq": self.applied})

    def leave(self) -> None:
        """For the end of the process: its event loop is about to stop, so nobody must wait for it."""
        if self._link is not None:
            with contextlib.suppress(LinkClosed):
                self._link.send("state.leave")

    def forget(self) -> None:
        """For tests: forget the state of a hub that has ended."""
        self._replica, self.applied = StateReplica(), 0

    # ---- the link

    def bind(self, link: Link) -> None:
        """For `serve_asgi.app.hub_link`: use this hub, and forget the state of an earlier one."""
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
        """In local mode each event loop has a state of its own: use that of the running one."""
        if self._link is None or self._link.identity.local:
            with contextlib.suppress(RuntimeError):  # in a thread, or while no loop runs: use what there is
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
        """The link is closed."""
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
    """`shared.sync`: the calls of `shared` for threads that may block, with the same results and errors.

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
