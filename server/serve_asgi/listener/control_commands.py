"""The commands of the control socket, turned into events of the listener or replied to at once.

A command gets its reply when its outcome is known; a client that follows gets the records up to then. Followers never
hold the listener up: one that reads too slowly misses the oldest records, and is then disconnected.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import select
import socket
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Final, Protocol

import anyio
import msgspec
from anyio.abc import SocketAttribute, SocketStream

from serve_asgi.config.options import MOST_WORKERS
from serve_asgi.ipc import control_protocol
from serve_asgi.ipc.untrusted_input import Count, Seconds, Sentence
from serve_asgi.listener.deploy_history import KEPT, DeployHistory
from serve_asgi.listener.hub_commands import HubCommands
from serve_asgi.supervisor import events as e

REQUEST_TIMEOUT = 5.0
"""Seconds that a client has to send its request, and to read each line of the reply."""
FOLLOWED: Final = 1000
"""Most records that are queued for a follower."""
LONGEST_DELAY: Final = 24 * 3600.0
"""Most seconds of draining that a stop may request."""
WRITE_TIME: Final = 60.0
"""Most seconds that a write to the shared state may wait for the processes."""
STACKS_TIME: Final = 60.0
"""Most seconds that a request may give workers to send their stacks."""
DRAIN_TIME: Final = 60.0
"""Seconds that `serve drain` waits for hooks."""
_NOT_STOPPING: Final = frozenset({"starting", "opening", "running"})


class CanaryRequest(msgspec.Struct):
    """What a reload is to do about a trial, in place of what the configuration says."""

    on: bool = True
    share: Annotated[float, msgspec.Meta(ge=0, le=0.5)] | None = None
    time: Annotated[float, msgspec.Meta(ge=1, le=24 * 3600)] | None = None
    hold: bool | None = None

    def wish(self) -> e.CanaryWish:
        """The same for the supervisor."""
        return e.CanaryWish(self.on, self.share, self.time, self.hold)


class ControlRequest(msgspec.Struct):
    """A request; unknown members are ignored."""

    version: int
    command: Sentence
    follow: bool = False
    wait: bool = True
    off: bool = False
    delay: Seconds | None = None
    to: int | float | Sentence | bool | None = None
    timeout: Seconds = 5.0
    name: Sentence = ""
    do: Sentence = ""
    who: Sentence = ""
    last: Count = KEPT
    most: Count = 100
    value: Any = None
    if_version: Count | None = None
    canary: CanaryRequest | None = None
    deploy: bool = False


class Controlled(Protocol):
    """What the control socket controls: the listener."""

    deploys: DeployHistory
    hub: HubCommands

    def post(self, event: e.Event) -> None:
        """Queue an event; events are handled in order."""

    async def replace(self, asker: int) -> None:
        """Replace this program by the new release's, which replies on the socket with the descriptor `asker`.

        Raises ServeError if that is not possible, and does not return otherwise.
        """

    def status(self) -> dict[str, Any]:
        """What `serve status --json` shows (`serve_asgi.listener.status`)."""

    def config_shown(self) -> dict[str, Any]:
        """What `serve config --json` shows: each option's value and where it came from."""

    def log_files_trouble(self) -> str:
        """Which log file cannot be reopened, why, and what to do about it; "" if all can."""

    async def reload_certificates(self) -> tuple[bool, str]:
        """Look at the files of certificates now; whether all is well, and a sentence."""

    async def stacks(self, timeout: float) -> dict[str, Any]:
        """What `serve stacks --json` shows: every worker's Python stacks and tasks, after `timeout` seconds at most."""


class PendingAnswer:
    """A client that waits for an outcome, and perhaps for the records up to then."""

    __slots__ = ("_changed", "_records", "events", "follows", "outcome")

    def __init__(self, *, follows: bool, events: bool = True) -> None:
        """`events`: what it follows are the server's events, and not something that only concerns it."""
        self.follows = follows
        self.events = events
        self.outcome: dict[str, Any] | None = None
        self._changed = anyio.Event()
        self._records: collections.deque[Mapping[str, Any]] = collections.deque(maxlen=FOLLOWED)

    def tell(self, record: Mapping[str, Any]) -> None:
        """Queue a record for a client that follows."""
        if self.follows and self.outcome is None:
            self._records.append(record)
            self._changed.set()

    def end(self, outcome: dict[str, Any]) -> None:
        """Set the outcome; the first one counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._changed.set()

    async def news(self) -> list[Mapping[str, Any]]:
        """Wait for records and return them; none if the outcome is known and all records have been returned."""
        while not self._records and self.outcome is None:
            await self._changed.wait()
            self._changed = anyio.Event()
        found = list(self._records)
        self._records.clear()
        return found


class ControlCommands:
    """The commands of one listener, and the clients that wait for their outcomes."""

    def __init__(self, server: Controlled) -> None:
        self._server = server
        self._tickets: dict[int, PendingAnswer] = {}
        self._next_ticket = 1
        self.waiting: set[PendingAnswer] = set()
        self._news = anyio.Event()
        """Set at the next record, and then replaced."""

    def answer(self, ticket: int, ok: bool, text: str, detail: str) -> None:
        """Report the outcome of the reload with this ticket."""
        if (waiting := self._tickets.pop(ticket, None)) is not None:
            waiting.end({"ok": ok, "text": text, "detail": detail})

    def happened(self, record: Mapping[str, Any]) -> None:
        """Send a record to those who follow; it is JSON-compatible."""
        self._news.set()
        self._news = anyio.Event()
        for waiting in self.waiting:
            if waiting.events:
                waiting.tell(record)

    def finish(self) -> None:
        """The server has ended: reply to those who wait."""
        cut = self._cut()
        for waiting in self.waiting:
            waiting.end({"ok": True, "text": "stopped", "cut": cut})

    async def do(self, request: ControlRequest, stream: SocketStream) -> dict[str, Any]:
        """Perform a request; return the reply, once the outcome is known. Raises ServeError."""
        if request.version != control_protocol.VERSION:
            return {"ok": False, "text": f"this server speaks control version {control_protocol.VERSION}"}
        follows = request.follow
        interrupted = request.deploy and request.command == "rollback"  # it ends a deploy, and begins none
        if request.command in control_protocol.DEPLOYING and not interrupted:
            self._server.deploys.requested(_requester(request), request.who or _user(stream))
        match request.command:
            case "reload":
                return await self._reload(stream, request)
            case "promote":
                return await self._promote(stream)
            case "reload-listener":
                await self._server.replace(stream.extra(SocketAttribute.raw_socket).fileno())
                return {"ok": False, "text": "the listener was not replaced"}  # otherwise this task would be gone
            case "rollback":
                return await self._rollback(stream, request)
            case "drain":
                on = not request.off
                self._server.post(e.DrainAsked(on=on, by_control=True))
                if not await self._drained(on):
                    return {"ok": True, "text": "requested; the hooks before it have not finished yet"}
                return {"ok": True, "text": "draining until `serve drain --off`" if on else "drain ended"}
            case "stop":
                return await self._stop(stream, request.delay, follows=follows)
            case "scale":
                return self._scale(request.to)
            case "logs-reopen":
                self._server.post(e.ReopenAsked())
                if trouble := self._server.log_files_trouble():
                    return {"ok": False, "text": trouble}
                return {"ok": True, "text": "the log files are being reopened"}
            case "tls-reload":
                ok, text = await self._server.reload_certificates()
                return {"ok": ok, "text": text}
            case "status":
                return {"ok": True, "text": "", "status": self._server.status()}
            case "config":
                return {"ok": True, "text": "", "config": self._server.config_shown()}
            case "deploys":
                return {"ok": True, "text": "", "deploys": self._server.deploys.last(request.last)}
            case "stacks":
                timeout = min(STACKS_TIME, max(0.0, request.timeout))
                return {"ok": True, "text": "", "stacks": await self._server.stacks(timeout)}
            case "schedules":
                found = self._server.hub.schedules.report(request.name)
                return {"ok": True, "text": "", "schedules": found}
            case "schedule":
                return await self._schedule(stream, request.do, request.name)
            case "shared":
                return await self._shared(stream, request)
            case "messages":
                return {"ok": True, "text": "", "messages": self._server.hub.messages(request.name, request.most)}
            case "follow":
                return await self._tell(stream, PendingAnswer(follows=True))
            case other:
                return {"ok": False, "text": f"this server does not know the command {other!r}"}

    async def _reload(self, stream: SocketStream, request: ControlRequest) -> dict[str, Any]:
        ticket, waiting = self._next_ticket, PendingAnswer(follows=request.follow)
        self._next_ticket += 1
        wish = None if request.canary is None else request.canary.wish()
        event = e.ReloadAsked(ticket, by=_requester(request), canary=wish)
        if not request.wait:
            self._server.post(event)
            return {"ok": True, "text": "reload requested"}
        self._tickets[ticket] = waiting
        self._server.post(event)
        return await self._tell(stream, waiting)

    async def order(self, event: e.ReloadAsked | e.RollbackAsked, who: str) -> tuple[bool, str]:
        """Reload or roll back without a client, for `who`; return whether it was done, and a sentence."""
        waiting, ticket = PendingAnswer(follows=False), self._next_ticket
        self._next_ticket += 1
        self._tickets[ticket] = waiting
        self._server.deploys.requested(event.by, who)
        self._server.post(dataclasses.replace(event, ticket=ticket))
        self.waiting.add(waiting)
        try:
            await waiting.news()
        finally:
            self.waiting.discard(waiting)
        outcome = waiting.outcome or {"ok": False, "text": "the server has ended"}
        return outcome["ok"], outcome["text"]

    async def _promote(self, stream: SocketStream) -> dict[str, Any]:
        """End a trial: the rest of the generation starts."""
        waiting = PendingAnswer(follows=False)
        self._server.post(
            e.PromotionAsked("serve promote", lambda ok, text: waiting.end({"ok": ok, "text": text})),
        )
        return await self._tell(stream, waiting)

    async def _rollback(self, stream: SocketStream, request: ControlRequest) -> dict[str, Any]:
        ticket, waiting = self._next_ticket, PendingAnswer(follows=request.follow)
        self._next_ticket += 1
        if request.wait:
            self._tickets[ticket] = waiting
        reason = "the command was interrupted" if request.deploy else ""
        self._server.post(e.RollbackAsked(ticket, by=_requester(request), reason=reason))
        return await self._tell(stream, waiting) if request.wait else {"ok": True, "text": "roll-back requested"}

    async def _drained(self, on: bool) -> bool:
        """Wait until the drain has begun or ended, as requested: the pre_drain hooks are done, or out of time."""
        with anyio.move_on_after(DRAIN_TIME):
            while (status := self._server.status())["state"] == "running" and (status["draining"] is None) is on:
                await self._news.wait()
            return True
        return False

    async def _stop(self, stream: SocketStream, delay: float | None, *, follows: bool) -> dict[str, Any]:
        """Begin a graceful stop, unless one is under way: a second TERM would make it a quick one."""
        state = self._server.status()["state"]
        if state in _NOT_STOPPING:
            self._server.post(e.StopAsked(None if delay is None else min(LONGEST_DELAY, max(0.0, float(delay)))))
            text = "stopping"
        else:
            text = f"the server is {state} already"
        if not follows:
            return {"ok": True, "text": text}
        return await self._tell(stream, PendingAnswer(follows=True))

    async def _schedule(self, stream: SocketStream, do: str, name: str) -> dict[str, Any]:
        """Pause or resume a schedule, or run it and wait until it has ended."""
        waiting = PendingAnswer(follows=False)

        def answer(ok: bool, text: str, found: Any) -> None:
            waiting.end({"ok": ok, "text": text, "runs": found})

        self._server.hub.schedule(do, name, answer)
        return await self._tell(stream, waiting)

    async def _shared(self, stream: SocketStream, request: ControlRequest) -> dict[str, Any]:
        """Show, change or watch the shared state."""
        shared, key = self._server.hub.shared, request.name
        match request.do:
            case "list":
                return {"ok": True, "text": "", "shared": shared.report(key, request.most)}
            case "get":
                found = shared.value(key)
                return {"ok": found is not None, "text": "" if found else f"there is no {key!r}", "shared": found}
            case "set" | "delete":
                waiting = PendingAnswer(follows=False)
                done = f"{key} is {'set' if request.do == 'set' else 'deleted'}, in all processes"

                def reply(trouble: str, version: int) -> None:
                    waiting.end({"ok": not trouble, "text": trouble or done, "version": version})

                timeout = min(WRITE_TIME, request.timeout)
                self._server.hub.write(request.do, key, request.value, request.if_version, timeout, reply)
                return await self._tell(stream, waiting)
            case "watch":
                waiting = PendingAnswer(follows=True, events=False)
                end = shared.watch(key, waiting.tell)
                try:
                    return await self._tell(stream, waiting)
                finally:
                    end()
        return {"ok": False, "text": f"this server cannot {request.do!r} the shared state"}

    def _scale(self, to: object) -> dict[str, Any]:
        if not isinstance(to, int) or isinstance(to, bool) or to < 1:
            return {"ok": False, "text": f"{to!r} is not a number of workers; there must be at least one"}
        if to > MOST_WORKERS:
            return {"ok": False, "text": f"{to} workers are too many; the most is {MOST_WORKERS}"}
        found = self._server.status()
        if found["state"] not in _NOT_STOPPING:
            return {"ok": False, "text": f"the server is {found['state']}; the number of workers cannot be changed"}
        self._server.post(e.ScaleAsked(to=to))
        return {"ok": True, "text": f"workers: {found['size']} -> {to}"}

    async def _tell(self, stream: SocketStream, waiting: PendingAnswer) -> dict[str, Any]:
        """Send records as they come, if the client follows; return the outcome when it is known.

        Raises anyio.EndOfStream if the client disconnects before.
        """
        self.waiting.add(waiting)
        try:
            async with anyio.create_task_group() as tasks:
                if waiting.follows:
                    tasks.start_soon(_cancel_when_gone, stream, tasks.cancel_scope)
                with contextlib.suppress(anyio.BrokenResourceError, TimeoutError):  # it has disconnected
                    while news := await waiting.news():
                        for record in news:
                            await send(stream, {"record": record})
                tasks.cancel_scope.cancel()
        finally:
            self.waiting.discard(waiting)
        if waiting.outcome is None:
            raise anyio.EndOfStream
        return waiting.outcome

    def _cut(self) -> int:
        return int(self._server.status()["lost"])


def _requester(request: ControlRequest) -> str:
    """The command that a deploy is requested by."""
    return "serve deploy" if request.deploy else f"serve {request.command}"


def _user(stream: SocketStream) -> str:
    """The user of a client that does not say who runs it (SO_PEERCRED, unix(7)); names are not looked up here."""
    _, uid, _ = struct.unpack(
        "3i", stream.extra(SocketAttribute.raw_socket).getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    return "root" if uid == 0 else f"user {uid}"


async def send(stream: SocketStream, message: Mapping[str, Any]) -> None:
    """Send one line of the reply; the client has to read it in time."""
    with anyio.fail_after(REQUEST_TIMEOUT):
        await stream.send(json.dumps({"version": control_protocol.VERSION, **message}).encode() + b"\n")


async def _cancel_when_gone(stream: SocketStream, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the peer has disconnected; one that has only shut down its writing (`nc -N`) still reads."""
    raw = stream.extra(SocketAttribute.raw_socket)
    # Not stream.receive(): if it is cancelled in the very turn in which data arrives, it logs a traceback (anyio 4.16,
    # Future.set_result). The wait that is cancelled here handles that case.
    with contextlib.suppress(OSError):
        piece = b"-"
        while piece:
            await anyio.wait_readable(raw)
            with contextlib.suppress(BlockingIOError):
                piece = raw.recv(65536)
    poll = select.poll()
    poll.register(raw.fileno(), 0)
    if any(happened & (select.POLLHUP | select.POLLERR) for _, happened in poll.poll(0)):
        scope.cancel()
