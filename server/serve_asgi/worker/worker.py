"""The worker: everything between its channel's first packet and its exit.

`run` is its whole life: start the application, report ready, serve when told, retire when told, exit. Every wait names
its deadline. It owns the application, the connections and its row of the scoreboard.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import anyio

from serve_asgi import compiled_core
from serve_asgi.app import hub_link, loading
from serve_asgi.app.after_fork import after_fork
from serve_asgi.app.background_work import work
from serve_asgi.app.canary import canary
from serve_asgi.app.hub_link import Identity
from serve_asgi.app.metric_store import store as metrics
from serve_asgi.app.retiring import retiring
from serve_asgi.app.shared import shared
from serve_asgi.app.survive import survive
from serve_asgi.config.options import Config
from serve_asgi.errors import ChannelError, StartError, UsageError
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import HandOverRecord
from serve_asgi.http.worker_context import ASGIApplication, WorkerContext, WorkerPhase
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.ipc.channel import Channel, Packet, SendQueue, TruncatedDescriptors
from serve_asgi.ipc.leftovers import ListenerFiles
from serve_asgi.ipc.membership_frames import Role
from serve_asgi.ipc.scoreboard import Cell, Scoreboard, mapped
from serve_asgi.logs import access_log_standard, app_log
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.server_log import about
from serve_asgi.worker import orphan_exit
from serve_asgi.worker.accept_balance import LoopFactory, WakeOrder
from serve_asgi.worker.acceptor import Acceptor
from serve_asgi.worker.bootstrap import canary_refused, failure, leave_within
from serve_asgi.worker.canary_share import AcceptingShare, ConnectionLending
from serve_asgi.worker.connection_limit import ConnectionLimit
from serve_asgi.worker.connection_opening import ConnectionOpening
from serve_asgi.worker.event_loop import hidden, outside_loop
from serve_asgi.worker.hand_over_receiver import HandOverReceiver
from serve_asgi.worker.hand_over_sender import HandOverSender
from serve_asgi.worker.housekeeping import Housekeeping
from serve_asgi.worker.hub_socket import HubSocket, SharedStateSync
from serve_asgi.worker.lifespan import Lifespan
from serve_asgi.worker.loop_watchdog import Watchdog
from serve_asgi.worker.retirement import CLOSE_TIME, LeaveOrder, Retirement
from serve_asgi.worker.scoreboard_rows import OtherWorkers
from serve_asgi.worker.standby import Standby
from serve_asgi.worker.tls_updates import TlsUpdates

if TYPE_CHECKING:
    from serve_asgi.app.request_tracing import TracedApplication
    from serve_asgi.logs.access_log import RequestLog
    from serve_asgi.logs.statsd import StatsdRequests
    from serve_asgi.tls.material import TlsMaterial

EXIT_TIME: Final = 2.0
"""Seconds for threads that the application left behind and for its exit handlers; then the process exits anyway."""
UNREADY_TIME: Final = 1.0
"""Seconds to exit for a worker that was never ready, when its listener is dead: it holds nothing but the port."""
HANDS_OVER: Final = frozenset({LeaveOrder.RETIRE, LeaveOrder.STAND_BY})
"""Orders after which connections are handed over."""
log = logging.getLogger("serve")


class WorkerProcess:
    """One worker."""

    def __init__(
        self,
        config: Config,
        channel: Channel,
        scoreboard: Scoreboard,
        cells: memoryview,
        welcome: Packet,
        sockets: list[socket.socket],
        loops: LoopFactory,
        watchdog: Watchdog,
        link: socket.socket | None,
        tls_material: TlsMaterial | None = None,
        secure: Sequence[bool] = (),
        application: ASGIApplication | None = None,
    ) -> None:
        """`cells` is this process's row; `loops` creates the loop that `run` will run in.

        `watchdog` has been started; `link` is the link to the hub; `secure` says which of the sockets speak TLS;
        `application` is what a template has imported, if this was forked from one.
        """
        self.config = config
        self.channel = channel
        self.send_queue = SendQueue(channel)
        self.scoreboard = scoreboard
        self.welcome = welcome
        self.sockets = sockets
        self.secure = secure or [False] * len(sockets)
        self.tls = TlsUpdates(tls_material, self.send_queue.put, http2=config.http2 == "on")
        self.application = application
        self.loops = loops
        self.watchdog = watchdog
        self._link_end = link
        self.retirement = Retirement(self)
        self.standby = Standby(self)
        self.hub: HubSocket | None = None
        self.cells = cells
        self.others = OtherWorkers(scoreboard, cells)
        self._ready = False
        self._refused = False  # the application has said that its version, which is on trial, is bad
        self.access_log: RequestLog | None = None
        self._statsd: StatsdRequests | None = None
        self._tracing: TracedApplication | None = None
        self.context: WorkerContext
        self.lifespan: Lifespan
        self.order: WakeOrder
        self.connection_limit: ConnectionLimit
        self.acceptor: Acceptor
        self.sender: HandOverSender
        self.receiver: HandOverReceiver
        self.lending: ConnectionLending
        self.accepting_share: AcceptingShare

    async def run(self) -> int:
        """Run the worker; return the exit status."""
        files = ListenerFiles(self.welcome)
        orphan_exit.watch(self.channel.fileno(), self._time_to_leave, self.flush_access_log, files.remove)
        self.watchdog.know(asyncio.get_running_loop())
        self._join_hub()
        forks.claim(loop := asyncio.get_running_loop())
        forks.own(self._let_go)
        metrics.ask_in(loop, lambda: self.send_queue.put({"type": "counts metrics"}))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hidden, self._obey)
            tasks.start_soon(hidden, self.send_queue.run)
            status = 0
            try:
                with anyio.CancelScope() as starting:
                    tasks.start_soon(hidden, self._cancel_when_ordered, starting)
                    await self._start()
                await anyio.lowlevel.checkpoint()  # what was asked for in this loop has been sent by then
                if not self.retirement.ordered.is_set():
                    self._ready = True
                    if self.hub is not None:
                        self.hub.link.send("up")
                    self.watchdog.watch(self.cells, self.config.block_warning)  # from its first moment on
                    self.send_queue.put(
                        {"type": "ready", "stands_by": True, "compiled_modules": compiled_core.loaded_modules()}
                    )
                    await self._serve_and_retire()
                elif not starting.cancelled_caught:  # it was told to leave at the very moment that it had started
                    await self._finish_lifespan()
            except (StartError, UsageError) as error:
                status = 1
                self.send_queue.put(failure(error))
            with anyio.move_on_after(CLOSE_TIME):
                if self.hub is not None:
                    shared.leave()
                    await self.hub.flushed()
                await self.send_queue.flushed()
            tasks.cancel_scope.cancel()
        leave_within(EXIT_TIME, status)
        self.flush_access_log()  # threads that the application left behind may use up that time
        return status

    def flush_access_log(self) -> None:
        """Write the buffered lines."""
        if self.access_log is not None:
            self.access_log.flush()

    # Start

    def _join_hub(self) -> None:
        """Connect to the hub, before the application is imported."""
        if self._link_end is None:
            return
        identity = Identity(Role.WORKER, self.welcome["slot"], self.welcome["generation"], self.welcome["member"])
        self.hub = HubSocket(self._link_end, identity, asyncio.get_running_loop())
        self.hub.link.on_frame("retire", lambda _: work.retire())
        self.hub.link.on_frame("resume", lambda _: work.resume())
        self.hub.link.on_close(work.retire)
        hub_link.set_current(self.hub.link)
        forks.in_child(self.hub.link.let_go)

    def _let_go(self) -> list[int]:
        """In a forked child: the descriptors that were opened after the application's first code had run."""
        parts = (self.order, self.acceptor, self.sender, self.receiver) if hasattr(self, "receiver") else ()
        clients = self.context.let_go(forks.Ended()) if hasattr(self, "context") else []
        statsd = self._statsd.descriptors() if self._statsd is not None else []
        return [*clients, *statsd, *self.tls.descriptors(), *(each for part in parts for each in part.descriptors())]

    async def _cancel_when_ordered(self, starting: anyio.CancelScope) -> None:
        """Cancel a start that has not completed at an order to leave."""
        await self.retirement.ordered.wait()
        starting.cancel()

    async def _start(self) -> None:
        """Import the application, unless it has been, and run its lifespan startup. Raises StartError, UsageError."""
        loop = asyncio.get_running_loop()
        if self.welcome.get("canary"):
            canary.begin(functools.partial(self._refuse_canary, loop))
        self.tls.begin()
        if self.hub is not None:
            await shared.ready()  # so that the application can read it while it is imported
        config = self.config
        if self.application is None:
            app = await outside_loop(lambda: loading.load_for(config))
        else:
            app = self.application
            await after_fork.run(outside_loop)
        app_log.replace_console_handlers(config)
        front = app_log.RequestNaming(app, config) if app_log.names_requests(config) else app
        if config.opentelemetry == "on":
            front = self._traced(front)
        if config.static:
            from serve_asgi.http.static_files import StaticFiles  # who has none does not pay for it

            front = StaticFiles(front, config.static, config.root_path, config.static_max_age)
        if config.https_redirect:
            front = self._redirecting(front)
        self.context = context = WorkerContext(front, self.config, loop, self.scoreboard, self.cells, retiring)
        context.shared = shared
        work.context = context.context
        if self.hub is not None:
            context.catch_up = SharedStateSync(self.hub, context.published)
        survive.begin(context.numbered)
        context.generation, context.slot = self.welcome["generation"], self.welcome["slot"]
        self.access_log = access_log_standard.open_access_log(
            self.config, self.welcome["generation"], self.welcome["slot"]
        )
        if self.config.statsd:
            from serve_asgi.logs.statsd import StatsdRequests, open_statsd

            if (statsd := await open_statsd(self.config)) is not None:
                self.access_log = self._statsd = StatsdRequests(statsd, self.access_log)
        context.access_log = self.access_log
        self.connection_limit = ConnectionLimit(context, self.others, self.welcome["generation"], self.welcome["slot"])
        self.order = WakeOrder(loop, self.loops.epoll, self.others)
        self._opening = ConnectionOpening(context, self.tls.contexts)
        secure = dict(zip(self.sockets, self.secure, strict=True))
        self.acceptor = Acceptor(
            loop, secure, self.cells, self.order, self.connection_limit, self._opening.accepted, self._attached
        )
        self.sender = HandOverSender(loop, self.cells, self._withdraw, self.retirement.retire_connections)
        self.receiver = HandOverReceiver(
            *(loop, self.cells, self._orphaned, self._arrived),
            *(self.connection_limit.for_taken_over, self._opening.understands),
        )
        context.hand_over = self.sender.hand_over
        self.lending = ConnectionLending(context, self.sender, self.others)
        self.accepting_share = AcceptingShare(loop, self.acceptor, self.others)
        self.lifespan = Lifespan(app, self.config.lifespan, context.state)
        await self.lifespan.startup()
        app_log.replace_console_handlers(config)
        if self.hub is not None:
            await (
                self.hub.flushed()
            )  # so that the hub knows all of it before the listener hears that this worker is ready

    def _traced(self, app: ASGIApplication) -> ASGIApplication:
        """The application behind one that makes spans. Raises UsageError."""
        from serve_asgi.app.request_tracing import TracedApplication

        self._tracing = TracedApplication(app, self.welcome["generation"], self.welcome["slot"])
        return self._tracing

    def _redirecting(self, app: ASGIApplication) -> ASGIApplication:
        """The application behind one that sends clients of plain addresses to the first address that speaks TLS."""
        from serve_asgi.http.https_redirect import HttpsRedirect

        secure = next(each for each, speaks_tls in zip(self.sockets, self.secure, strict=True) if speaks_tls)
        return HttpsRedirect(app, secure.getsockname()[1])

    # Serving and leaving

    def _time_to_leave(self) -> float:
        """Seconds that this worker has to exit once the listener is dead."""
        if not self._ready:
            return UNREADY_TIME
        return self.config.graceful_timeout + self.config.shutdown_timeout + CLOSE_TIME * 2 + EXIT_TIME

    async def _serve_and_retire(self) -> None:
        housekeeping = Housekeeping(self.context, self.config, self._ticked, self._want_replacement)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hidden, housekeeping.run)
            await self.standby.wait_for_leave()
            if self.retirement.order is LeaveOrder.QUIT:
                self.acceptor.stop(last_look=False)
                self.retirement.cut_the_rest()
            else:
                await self.retirement.retire()
            await self.retirement.settle_handovers()
            await self._finish_lifespan()
            self.watchdog.unwatch()
            tasks.cancel_scope.cancel()
        housekeeping.tick()
        report = {"handed_over": self.cells[Cell.HANDED_OVER], "cut": self.retirement.cut}
        self.send_queue.put({"type": "finished", **report})

    async def _finish_lifespan(self) -> None:
        timeout = (
            min(self.config.shutdown_timeout, CLOSE_TIME)
            if self.retirement.quit.is_set()
            else self.config.shutdown_timeout
        )
        ends = anyio.current_time() + timeout
        with anyio.move_on_after(timeout) as deadline:
            await self.lifespan.shutdown()
        if self._tracing is not None:
            await self._tracing.flush(max(0.0, ends - anyio.current_time()))
        if deadline.cancelled_caught:
            log.warning(
                "lifespan shutdown had not ended after %g s (--shutdown-timeout)",
                timeout,
                extra=about("shutdown_timed_out", seconds=timeout),
            )

    # Connections

    def _attached(self, protocol: asyncio.Protocol) -> None:
        """A connection is attached; if the worker has begun to retire meanwhile, treat it as the others."""
        if self.context.phase is not WorkerPhase.SERVING and isinstance(protocol, Http1Connection):
            protocol.retire()

    def _arrived(self, client: socket.socket, record: HandOverRecord) -> None:
        self.acceptor.attach(client, lambda: self._opening.arrived(record))

    def _withdraw(self, pair: int) -> bool:
        try:
            return self.send_queue.try_send_now({"type": "withdrawn", "pair": pair})
        except OSError:
            return True  # the listener is dead, so nobody will ask it

    def _orphaned(self, pair: int) -> None:
        self.send_queue.put({"type": "orphaned", "pair": pair})

    def _ticked(self) -> None:
        self.lending.tick()
        self.connection_limit.look()
        self.order.tick()
        self.watchdog.tick()

    def _want_replacement(self, reason: str, too_large: bool) -> None:
        self.send_queue.put({"type": "recycle", "reason": reason, "too_large": too_large})

    def _refuse_canary(self, loop: asyncio.AbstractEventLoop, reason: str, detail: str) -> None:
        """The application says, in any thread, that this version is bad."""
        loop.call_soon_threadsafe(self._say_refused, canary_refused(reason, detail))

    def _say_refused(self, packet: Packet) -> None:
        if not self._refused:
            self._refused = True
            self.send_queue.put(packet)

    # The channel

    async def _obey(self) -> None:
        """Follow the listener's orders, until its end of the channel closes."""
        try:
            while True:
                try:
                    packet, received = await self.channel.receive()
                except TruncatedDescriptors as error:  # EMFILE: something has used up the reserved descriptors
                    log.warning("%s", error, extra=about("descriptors_lost"))
                    packet, received = error.packet, []
                self._take(packet, received)
        except (EOFError, ChannelError, OSError) as error:
            if not isinstance(error, EOFError):
                log.error("the channel to the listener broke: %s", error, extra=about("channel_broken"))
            log.warning("the listener is gone; this worker retires", extra=about("listener_died"))
            self.retirement.leave(LeaveOrder.LISTENER_DIED, "the listener died")
            if hasattr(self, "receiver"):
                self.receiver.expect_no_verdict()

    def _ask_for_another(self, packet: Packet) -> None:
        """Our end of this pair got lost, or could not be created: request another pair, once we can take its end."""
        if packet["type"] == "receiver":
            self.retirement.awaited += 1  # connections are kept until it arrives
        self.context.loop.call_later(descriptors.PAUSE, self._ask_again, packet["pair"])

    def _ask_again(self, pair: int) -> None:
        if descriptors.available():
            self.send_queue.put({"type": "lost", "pair": pair})
        else:
            self.context.loop.call_later(descriptors.PAUSE, self._ask_again, pair)

    def _take(self, packet: Packet, received: list[int]) -> None:
        match packet["type"]:
            case "serve" if self.retirement.order is LeaveOrder.STAND_BY:
                self.standby.recall()
            case "serve":
                self.acceptor.start()
                if self._tracing is not None and (began := self.welcome.pop("reload_began", None)) is not None:
                    self._tracing.reload_ended("done", time.monotonic() - began)
                self.send_queue.put({"type": "accepts"})
            case "lend":
                if self.retirement.order is None:
                    self.lending.lend(packet["share"])
            case "limit accepting":
                self.order.evens_out = False
                self.accepting_share.limit(packet["share"])
            case "promoted":
                canary.over()
                self.order.evens_out = True
                self.accepting_share.end()
            case "reload ended":
                if self._tracing is not None:
                    self._tracing.reload_ended(packet["outcome"], packet["seconds"], packet["reason"])
            case "stand by":
                self.retirement.leave(LeaveOrder.STAND_BY, packet["reason"])
            case "retire":
                self.retirement.accept_queued = packet["accept_queued"]
                self.retirement.leave(LeaveOrder.RETIRE, packet["reason"])
            case "neighbours":
                for (index, serial), row in zip(packet["rows"], received, strict=False):  # lost ones are skipped
                    self.others.add(index, serial, row)
                received = []
                self.connection_limit.look()
            case "receiver" | "receive" if not received:
                self._ask_for_another(packet)
            case "receiver":
                self.retirement.awaited = max(0, self.retirement.awaited - 1)
                row, end = received
                received = []
                try:
                    cells = mapped(row)
                except OSError:  # EMFILE
                    os.close(end)
                    self._ask_for_another(packet)
                else:
                    self.sender.add_receiver(packet["pair"], end, cells)
                if self.retirement.order in HANDS_OVER and self.retirement.reason != "stop":
                    self.retirement.set_phase()
                    self.retirement.retire_connections()
            case "receive":
                self.receiver.add_sender(packet["pair"], received.pop())
            case "own memory":
                metrics.take(received.pop() if received else None)
            case "memories":
                for number, memory in zip(packet["memories"], received, strict=False):
                    metrics.add_memory(number, memory)
                received = []
            case "verdict":
                self.receiver.verdict(packet["pair"], packet["keep"])
            case "tls":
                self.tls.take(received.pop() if received else None)
            case "reopen":
                logs.reopen()
                app_log.reopen()
                if self.access_log is not None:
                    self.access_log.reopen()
            case "quit":
                self.retirement.quit.set()
                self.retirement.leave(LeaveOrder.QUIT, "stop")
        for descriptor in received:
            os.close(descriptor)
