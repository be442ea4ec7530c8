"""The worker: what it does between its channel's first packet and its exit.

Its life is `run`: start the application, say ready, serve when told, retire when told, end. Everything that waits names
its deadline. It owns the application, the connections and its row of the scoreboard.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import socket
from typing import Final

import anyio

from serve_asgi.app import link
from serve_asgi.app import loading as specification
from serve_asgi.app.background_work import work
from serve_asgi.app.link import Identity
from serve_asgi.app.retiring import retiring
from serve_asgi.app.shared import shared
from serve_asgi.config.options import Config
from serve_asgi.errors import ChannelError, StartError, UsageError
from serve_asgi.http.connection import Http1Connection
from serve_asgi.http.hand_over_record import TravelRecord
from serve_asgi.http.proxy_protocol import opening
from serve_asgi.http.worker_context import Phase, Service
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.ipc.address import Address
from serve_asgi.ipc.channel import Channel, Packet, SendQueue, TruncatedDescriptors
from serve_asgi.ipc.listening_socket import SocketKind, shut_out
from serve_asgi.ipc.member_frames import Role
from serve_asgi.ipc.scoreboard import Cell, Scoreboard, mapped
from serve_asgi.logs import access_log
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.server_log import about
from serve_asgi.logs.tracebacks import application_traceback
from serve_asgi.worker import orphan_exit
from serve_asgi.worker.accept_balance import LoopFactory, WakeOrder
from serve_asgi.worker.acceptor import Acceptor
from serve_asgi.worker.bootstrap import failure, leave_within
from serve_asgi.worker.connection_limit import ConnectionLimit
from serve_asgi.worker.event_loop import hidden
from serve_asgi.worker.hand_over_receiver import HandOverReceiver
from serve_asgi.worker.hand_over_sender import HandOverSender
from serve_asgi.worker.housekeeping import Housekeeping
from serve_asgi.worker.hub_link import HubSocket, SharedStateSync
from serve_asgi.worker.lifespan import Lifespan
from serve_asgi.worker.scoreboard_rows import OtherWorkers
from serve_asgi.worker.watchdog import Watchdog

CLOSING_SHARE: Final = 0.2
"""The last part of the graceful timeout, in which connections that could not be handed over are closed politely."""
EXIT_TIME: Final = 2.0
"""Seconds for threads that the application left behind and for its exit handlers; then the process ends anyway."""
UNREADY_TIME: Final = 1.0
"""Seconds that a worker which never was ready has to end when its listener is dead: it holds nothing but the port."""
CLOSE_TIME: Final = 2.0
"""Seconds that connections have to flush and close after the graceful timeout, and held offers to be settled."""

PARENT_TIME: Final = 1.0
"""Seconds in which a listener whose end of the channel has closed must have ended, or else it lives."""

TOGETHER_TIME: Final = 1.0
"""Seconds that a retiring worker waits for the others of its generation to stop accepting before it tells anybody."""
TOGETHER_LOOK: Final = 0.002
"""Seconds between two looks at whether they have."""

log = logging.getLogger("serve")


class LeaveOrder(enum.Enum):
    """How the worker was told to leave."""

    RETIRE = "retire"  # finish what is in progress, within the graceful timeout
    QUIT = "quit"  # at once
    LISTENER_DIED = "listener died"  # as RETIRE, and nobody else accepts what is in the port's queue


class WorkerProcess:
    """One worker process's work."""

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
    ) -> None:
        """`cells` is this process's row; `loops` makes the loop that `run` will run in.

        `watchdog` has been started; `link` goes to the hub.
        """
        self.config = config
        self.channel = channel
        self.send_queue = SendQueue(channel)
        self.scoreboard = scoreboard
        self.welcome = welcome
        self.sockets = sockets
        self.loops = loops
        self.watchdog = watchdog
        self._link_end = link
        self._parent = os.getppid()
        self.hub: HubSocket | None = None
        self.cells = cells
        self.others = OtherWorkers(scoreboard, cells)
        self._order: LeaveOrder | None = None
        self._ordered = anyio.Event()
        self._quit = anyio.Event()
        self._reason = ""
        self._ready = False
        self._accept_queued = False
        self._cut = 0
        self._awaited = 0  # receivers whose introduction got lost and comes again
        self.access_log: access_log.AccessLog | None = None
        self.service: Service
        self.lifespan: Lifespan
        self.order: WakeOrder
        self.connection_limit: ConnectionLimit
        self.acceptor: Acceptor
        self.sender: HandOverSender
        self.receiver: HandOverReceiver

    async def run(self) -> int:
        """Live; return the exit status."""
        orphan_exit.watch(self.channel.fileno(), self._time_to_leave, self.flush_access_log)
        self.watchdog.know(asyncio.get_running_loop())
        self._join_hub()
        forks.claim(asyncio.get_running_loop())
        forks.own(self._let_go)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hidden, self._obey)
            tasks.start_soon(hidden, self.send_queue.run)
            status = 0
            try:
                with anyio.CancelScope() as starting:
                    tasks.start_soon(hidden, self._cancel_when_ordered, starting)
                    await self._start()
                if not self._ordered.is_set():
                    self._ready = True
                    if self.hub is not None:
                        self.hub.link.send("up")
                    self.send_queue.put({"type": "ready"})
                    await self._serve_and_retire()
                elif not starting.cancelled_caught:  # told to leave at the very moment at which it had started
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
        self.flush_access_log()  # what the application has left behind may use up that time
        return status

    def flush_access_log(self) -> None:
        """Write the lines that have come together."""
        if self.access_log is not None:
            self.access_log.flush()

    # Start

    def _join_hub(self) -> None:
        """Take part in what the processes of the server tell each other, before the application is imported."""
        if self._link_end is None:
            return
        identity = Identity(Role.WORKER, self.welcome["slot"], self.welcome["generation"], self.welcome["member"])
        self.hub = HubSocket(self._link_end, identity, asyncio.get_running_loop())
        self.hub.link.take("retire", lambda _: work.retire())
        self.hub.link.at_close(work.retire)
        link.set_current(self.hub.link)
        forks.in_child(self.hub.link.let_go)

    def _let_go(self) -> list[int]:
        """In a forked child: what was opened after the application's first code had run."""
        parts = (self.order, self.acceptor, self.sender, self.receiver) if hasattr(self, "receiver") else ()
        clients = self.service.let_go(forks.Ended()) if hasattr(self, "service") else []
        return [*clients, *(each for part in parts for each in part.descriptors())]

    async def _cancel_when_ordered(self, starting: anyio.CancelScope) -> None:
        """An order to leave ends a start that has not come to its end (it does nothing after that)."""
        await self._ordered.wait()
        starting.cancel()

    async def _start(self) -> None:
        """Import the application and run its lifespan startup. Raises StartError, UsageError."""
        loop = asyncio.get_running_loop()
        if self.hub is not None:
            await shared.ready()  # so that the application may read it while it is imported
        try:
            config = self.config
            app = specification.load(config.app, config.factory, config.interface, config.wsgi_threads)
        except UsageError:
            raise
        except BaseException as error:  # no wait is in there that could be cancelled
            forks.leave(error)
            detail = application_traceback(error)
            raise StartError(f"the application {self.config.app} cannot be imported", detail) from None
        self.service = service = Service(app, self.config, loop, self.scoreboard, self.cells, retiring)
        service.shared = shared
        if self.hub is not None:
            service.catch_up = SharedStateSync(self.hub, service.published)
        service.generation, service.slot = self.welcome["generation"], self.welcome["slot"]
        service.access_log = self.access_log = access_log.open_access_log(
            self.config, self.welcome["generation"], self.welcome["slot"]
        )
        self.connection_limit = ConnectionLimit(service, self.others, self.welcome["generation"], self.welcome["slot"])
        self.order = WakeOrder(loop, self.loops.epoll, self.others)
        self._opening = opening(service)
        self.acceptor = Acceptor(
            loop, self.sockets, self.cells, self.order, self.connection_limit, self._accepted, self._attached
        )
        self.sender = HandOverSender(loop, self.cells, self._withdraw, self._retire_connections)
        self.receiver = HandOverReceiver(
            loop, self.cells, self._orphaned, self._arrived, self.connection_limit.for_taken_over
        )
        service.departure = self.sender.hand_over
        self.lifespan = Lifespan(app, self.config.lifespan, service.state)
        await self.lifespan.startup()
        if self.hub is not None:
            await self.hub.flushed()  # so that the listener knows all of it before it hears that this worker is ready

    # Serving and leaving

    def _time_to_leave(self) -> float:
        """Seconds that this worker has to end by itself once the listener is dead."""
        if not self._ready:
            return UNREADY_TIME
        return self.config.graceful_timeout + self.config.shutdown_timeout + CLOSE_TIME * 2 + EXIT_TIME

    async def _serve_and_retire(self) -> None:
        self.watchdog.watch(self.cells, self.config.block_warning)
        housekeeping = Housekeeping(self.service, self.config, self._ticked, self._want_replacement)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hidden, housekeeping.run)
            await self._ordered.wait()
            if self._order is LeaveOrder.QUIT:
                self.acceptor.stop(last_look=False)
                self._cut_the_rest()
            else:
                await self._retire()
            await self._settle_handovers()
            await self._finish_lifespan()
            self.watchdog.unwatch()
            tasks.cancel_scope.cancel()
        housekeeping.tick()
        report = {"handed_over": self.cells[Cell.HANDED_OVER], "cut": self._cut}
        self.send_queue.put({"type": "finished", **report})

    async def _retire(self) -> None:
        """Leave without losing anything: stop accepting, let connections go, finish requests, cut what is left."""
        config, service = self.config, self.service
        service.retire_deadline = service.loop.time() + config.graceful_timeout
        self.receiver.refuse()
        self._set_phase()
        await self._stop_accepting()
        if self._reason == "reload":
            await self._generation_stopped()
        retiring.begin(self._reason)
        self._retire_connections()
        with anyio.move_on_after(config.graceful_timeout):
            if self.hub is not None and self._order is not LeaveOrder.LISTENER_DIED:
                await work.told()  # of which the hub has been told before this worker was told to retire
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hidden, self._leave_at_once, tasks.cancel_scope)
                tasks.start_soon(hidden, self._close_remaining)
                await self._empty()
                tasks.cancel_scope.cancel()
        self._cut_the_rest()
        with anyio.move_on_after(CLOSE_TIME):
            await self._empty()

    async def _generation_stopped(self) -> None:
        """Wait until no worker of this generation accepts any more, or until `TOGETHER_TIME` has passed.

        What is told to come again from here on (a WebSocket, a stream) then comes to the new generation: at an old
        worker it would be sent away a second time.
        """
        with anyio.move_on_after(TOGETHER_TIME):
            while self.others.accepting(self.welcome["generation"]):
                await anyio.sleep(TOGETHER_LOOK)  # shared memory knows no event

    async def _empty(self) -> None:
        """Wait until no connection, no hand-over and no application task is left; the caller sets the deadline."""
        service = self.service
        while True:
            await self.receiver.idle.wait()
            await self.acceptor.settled()
            if service.connections:
                emptied = asyncio.Event()
                service.emptied = emptied.set
                await emptied.wait()
            elif service.tasks or work.tasks:
                await asyncio.wait(service.tasks | work.tasks)
            elif self.receiver.idle.is_set():
                return

    async def _close_remaining(self) -> None:
        """If nobody can take connections, close them before the graceful timeout would cut them."""
        await anyio.sleep(self.config.graceful_timeout * (1 - CLOSING_SHARE))
        if not self.sender.can_go():
            self._give_up()

    def _give_up(self) -> None:
        """Nobody takes the connections that are left: they are told of the end."""
        self._awaited = 0
        self.sender.give_up()
        self._set_phase()
        self._retire_connections()

    async def _leave_at_once(self, waiting: anyio.CancelScope) -> None:
        """An order to quit ends the wait for what is in progress."""
        await self._quit.wait()
        waiting.cancel()

    def _set_phase(self) -> None:
        """Connections travel if there is anybody to travel to; otherwise they are told of the end."""
        travels = self.sender.has_receivers() or self._awaited
        phase = Phase.TRAVELLING if travels else Phase.CLOSING
        self.service.phase = phase
        self.service.close_answers = phase is Phase.CLOSING

    def _retire_connections(self) -> None:
        """Have every connection leave in the way that the present phase says, as soon as that loses nothing."""
        for connection in list(self.service.connections):
            connection.retire()

    async def _stop_accepting(self) -> None:
        alone = self._order is LeaveOrder.LISTENER_DIED and await self._listener_has_ended()
        if alone:
            for listening, described in zip(self.sockets, self.welcome["sockets"], strict=True):
                if described["owned"]:
                    shut_out(listening, SocketKind(described["kind"]))
        if alone or self._accept_queued:
            with anyio.move_on_after(self.config.graceful_timeout * (1 - CLOSING_SHARE)):
                while not self.acceptor.accept_queued() and not self._quit.is_set():
                    retiring.begin(self._reason)
                    self._retire_connections()  # the end of each makes room for one who waits
                    await anyio.sleep(descriptors.PAUSE)
        self.acceptor.stop()
        await self.acceptor.settled()

    async def _listener_has_ended(self) -> bool:
        """Or the application has closed our channel: then what waits in the queue is for the others."""
        with anyio.move_on_after(PARENT_TIME):
            while os.getppid() == self._parent:  # a process that ends closes its files a moment earlier
                await anyio.sleep(descriptors.PAUSE)
            return True
        return False

    def _cut_the_rest(self) -> None:
        """Cut what has not ended, and count it."""
        for connection in list(self.service.connections):
            if connection.cut():
                self._cut += 1
                self.cells[Cell.CUT] += 1
        behind = [task for task in self.service.tasks if not task.cancelling()]
        for task in behind:
            task.cancel()
        if behind:
            text = "cut %d application calls that went on after their responses"
            log.warning(text, len(behind), extra=about("calls_cut", calls=len(behind)))
        if left := work.cancel():
            text = "cut %d message handlers and schedule runs that had not ended"
            log.warning(text, left, extra=about("work_cut", tasks=left))
        if self._cut:
            log.warning(
                "cut %d requests that had not ended", self._cut, extra=about("requests_cut", requests=self._cut)
            )

    async def _settle_handovers(self) -> None:
        """Take no more; wait for what has been taken, and for what we offered to be answered."""
        self.receiver.refuse()
        with anyio.move_on_after(CLOSE_TIME):
            await self.sender.idle.wait()
            await self.receiver.idle.wait()
        self.sender.close()
        self.receiver.close()

    async def _finish_lifespan(self) -> None:
        timeout = min(self.config.shutdown_timeout, CLOSE_TIME) if self._quit.is_set() else self.config.shutdown_timeout
        with anyio.move_on_after(timeout) as deadline:
            await self.lifespan.shutdown()
        if deadline.cancelled_caught:
            log.warning(
                "lifespan shutdown had not ended after %g s (--shutdown-timeout)",
                timeout,
                extra=about("shutdown_timed_out", seconds=timeout),
            )

    # Connections that come and go

    def _accepted(self, client: Address, server: Address) -> asyncio.Protocol:
        connection = self._opening(None)
        connection.client, connection.server = client, server
        return connection

    def _attached(self, protocol: asyncio.Protocol) -> None:
        """A connection stands; if the worker began to retire meanwhile, it is treated as the others were."""
        if self.service.phase is not Phase.SERVING and isinstance(protocol, Http1Connection):
            protocol.retire()

    def _arrived(self, client: socket.socket, record: TravelRecord) -> None:
        self.acceptor.attach(client, lambda: self._opening(record))

    def _withdraw(self, pair: int) -> bool:
        try:
            return self.send_queue.try_send_now({"type": "withdrawn", "pair": pair})
        except OSError:
            return True  # the listener is dead, and so nobody asks it

    def _orphaned(self, pair: int) -> None:
        self.send_queue.put({"type": "orphaned", "pair": pair})

    def _ticked(self) -> None:
        self.connection_limit.look()
        self.order.tick()
        self.watchdog.tick()

    def _want_replacement(self, reason: str) -> None:
        self.send_queue.put({"type": "recycle", "reason": reason})

    # The channel

    async def _obey(self) -> None:
        """Do what the listener says, until its end of the channel closes."""
        try:
            while True:
                try:
                    packet, received = await self.channel.receive()
                except TruncatedDescriptors as error:  # EMFILE, whoever has used up what is kept
                    log.warning("%s", error, extra=about("descriptors_lost"))
                    packet, received = error.packet, []
                self._take(packet, received)
        except (EOFError, ChannelError, OSError) as error:
            if not isinstance(error, EOFError):
                log.error("the channel to the listener broke: %s", error, extra=about("channel_broken"))
            log.warning("the listener is gone; this worker retires", extra=about("listener_died"))
            self.leave(LeaveOrder.LISTENER_DIED, "the listener died")
            if hasattr(self, "receiver"):
                self.receiver.expect_no_verdict()

    def _ask_for_another(self, packet: Packet) -> None:
        """Our end of this pair got lost, or could not be made: ask for another pair, when its end can be taken."""
        if packet["type"] == "receiver":
            self._awaited += 1  # connections are kept until it comes
        self.service.loop.call_later(descriptors.PAUSE, self._ask_again, packet["pair"])

    def _ask_again(self, pair: int) -> None:
        if descriptors.available():
            self.send_queue.put({"type": "lost", "pair": pair})
        else:
            self.service.loop.call_later(descriptors.PAUSE, self._ask_again, pair)

    def _take(self, packet: Packet, received: list[int]) -> None:
        match packet["type"]:
            case "serve":
                self.acceptor.start()
                self.send_queue.put({"type": "accepts"})
            case "retire":
                self._accept_queued = packet["accept_queued"]
                self.leave(LeaveOrder.RETIRE, packet["reason"])
            case "neighbours":
                for (index, serial), row in zip(packet["rows"], received, strict=False):  # lost ones are done without
                    self.others.add(index, serial, row)
                received = []
                self.connection_limit.look()
            case "receiver" | "receive" if not received:
                self._ask_for_another(packet)
            case "receiver":
                self._awaited = max(0, self._awaited - 1)
                row, end = received
                received = []
                try:
                    cells = mapped(row)
                except OSError:  # EMFILE
                    os.close(end)
                    self._ask_for_another(packet)
                else:
                    self.sender.add_receiver(packet["pair"], end, cells)
                if self._order is LeaveOrder.RETIRE and self._reason != "stop":
                    self._set_phase()
                    self._retire_connections()
            case "receive":
                self.receiver.add_sender(packet["pair"], received.pop())
            case "verdict":
                self.receiver.verdict(packet["pair"], packet["keep"])
            case "reopen":
                logs.reopen()
                if self.access_log is not None:
                    self.access_log.reopen()
            case "quit":
                self._quit.set()
                self.leave(LeaveOrder.QUIT, "stop")
        for descriptor in received:
            os.close(descriptor)

    def leave(self, order: LeaveOrder, reason: str) -> None:
        """Begin to leave; a later order to stop ends hand-overs, and the listener's death changes nothing more."""
        if self._order is None:
            self._order, self._reason = order, reason
            self._ordered.set()
        elif reason != self._reason and self._order is LeaveOrder.RETIRE and order is not LeaveOrder.QUIT:
            self._reason = reason
            self._give_up()
