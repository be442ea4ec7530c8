"""The admin process, from its first instruction to its exit.

It is not a worker of a generation: it never runs the application, serves none of its clients, and can slow down neither
the workers nor the listener. Its page is an ordinary application (`serve_asgi.admin.application`) on an ordinary worker
of this server, which has a scoreboard and a channel of its own inside this process; so its requests are never counted
among the application's. It exits when the listener's end of its channel closes.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
import sys
from typing import Final

import anyio

from serve_asgi.admin.application import application
from serve_asgi.admin.samples import MetricSamples
from serve_asgi.admin.server_view import ServerView
from serve_asgi.config.options import Config
from serve_asgi.errors import ChannelError, UsageError
from serve_asgi.ipc.channel import Channel, SendQueue, close_descriptors, pair
from serve_asgi.ipc.scoreboard import Row, Scoreboard, mapped
from serve_asgi.logs import server_log as logs
from serve_asgi.worker import orphan_exit
from serve_asgi.worker.accept_balance import LoopFactory
from serve_asgi.worker.bootstrap import (
    ignore_signals,
    listening_socket,
    name_process,
    take_account,
    welcome,
)
from serve_asgi.worker.event_loop import loop_factory, run
from serve_asgi.worker.loop_watchdog import Watchdog
from serve_asgi.worker.worker import WorkerProcess

LAST: Final = 2.5
"""Seconds that the process has when its listener is gone; then it exits, whatever it does."""

log = logging.getLogger("serve")


def main() -> None:
    """Run the admin process whose channel is the descriptor on the command line; never returns."""
    ignore_signals()
    parser = argparse.ArgumentParser(prog="serve_asgi.admin", description="Started by the listener; not by hand.")
    parser.add_argument("--channel", type=int, required=True)
    end = socket.socket(fileno=parser.parse_args().channel)
    end.set_inheritable(False)
    packet, descriptors = welcome(end)
    config = Config.from_json(packet["config"])
    name_process("serve-admin")
    try:
        logs.configure(config, "admin")
        take_account(config)
    except (UsageError, OSError, KeyError) as error:
        log.error("the admin process could not be set up: %s", error)
        sys.exit(1)
    view = ServerView(Scoreboard(descriptors[0]), packet["about"], packet["state"])
    sockets = [listening_socket(descriptor) for descriptor in descriptors[1:]]
    loops = LoopFactory(loop_factory(config.loop))
    admin = AdminServer(config, Channel(end), view, packet["sockets"], sockets, loops)
    orphan_exit.watch(end.fileno(), lambda: LAST)
    status = run(admin.run, loops)
    admin.let_go()
    sys.exit(status)


class AdminServer:
    """One worker of this server, whose listener is this process itself."""

    def __init__(
        self,
        config: Config,
        channel: Channel,
        view: ServerView,
        described: list[dict[str, object]],
        sockets: list[socket.socket],
        loops: LoopFactory,
    ) -> None:
        self._channel = channel
        self._view = view
        self._samples = application.samples = MetricSamples(view)
        application.only_local = all(
            each.family != socket.AF_UNIX and ipaddress.ip_address(each.getsockname()[0]).is_loopback
            for each in sockets
        )
        ours, theirs = pair()
        self._inner = Channel(ours)
        self._orders = SendQueue(self._inner)
        private, (_, row) = Scoreboard.create(rows=1, slots=1), Row.create()
        told = {"generation": 0, "slot": 0, "row": 0, "sockets": described}
        self._worker = WorkerProcess(
            config,
            Channel(theirs),
            private,
            mapped(row, writable=True),
            told,
            sockets,
            loops,
            Watchdog(None, None),
            None,
        )
        self._status = 0

    async def run(self) -> int:
        """Serve until the listener is gone; return the exit status."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            tasks.start_soon(self._orders.run)
            tasks.start_soon(self._conduct)
            tasks.start_soon(self._samples.run)
            status = await self._worker.run()
            tasks.cancel_scope.cancel()
        return status or self._status

    def let_go(self) -> None:
        """Leave closing the sockets to the kernel at exit."""
        for each in (self._channel, self._inner, self._worker.channel):
            each.detach()

    async def _follow(self) -> None:
        """Handle the listener's packets; exit when the listener does."""
        try:
            while True:
                packet, descriptors = await self._channel.receive()
                if packet["type"] == "rows":
                    self._view.take_rows(packet, descriptors)
                    continue
                if packet["type"] == "memories":
                    self._view.take_memories(packet, descriptors)
                    continue
                close_descriptors(descriptors)
                if packet["type"] == "reopen":
                    logs.reopen()
                else:
                    self._view.take(packet)
        except (EOFError, OSError):
            pass
        except (ChannelError, LookupError, TypeError, ValueError) as error:
            log.error("a packet from the listener cannot be decoded: %r", error)
            self._status = 1
        self._orders.put({"type": "retire", "reason": "stop", "accept_queued": False})

    async def _conduct(self) -> None:
        """Act as the worker's listener: tell it to serve as soon as it is ready."""
        try:
            while True:
                packet, _ = await self._inner.receive()
                match packet["type"]:
                    case "ready":
                        self._orders.put({"type": "serve"})
                    case "failed":
                        log.error("the page cannot be served: %s\n%s", packet["message"], packet.get("detail", ""))
        except (EOFError, OSError, ChannelError):
            pass
