"""The template: it imports the application, checks that it may be forked, and forks a worker whenever it is told to.

It has no event loop, no threads once the application is imported, no listening sockets, no private keys, no link to the
hub, and runs no lifespan. Of each worker it gets the end of the channel and the output pipes, for as long as a fork
takes; all the rest a worker gets over its channel, as a fresh interpreter does.

A worker is forked twice over: the process in between exits at once, and its child becomes the listener's, which is the
nearest "subreaper" (PR_SET_CHILD_SUBREAPER, prctl(2)). That process is forked by the C library alone, so that the hooks
of the application (os.register_at_fork) run once for each worker. The PID is reported when the worker has been
reparented, so that the listener can wait for it.

It ends at the end of its channel, or with its parent (PR_SET_PDEATHSIG), also in the middle of an import.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anyio

from serve_asgi.app import hub_link, loading, prometheus_values
from serve_asgi.config.options import Config
from serve_asgi.errors import StartError, UsageError
from serve_asgi.http.head_parsers import parser_factory
from serve_asgi.ipc import forked_children as forks
from serve_asgi.ipc.channel import PROTOCOL, Channel, Packet, close_descriptors
from serve_asgi.ipc.untrusted_input import sayable
from serve_asgi.logs import app_log, nonblocking_sink, stdio_guard
from serve_asgi.logs import server_log as logs
from serve_asgi.template_process.import_guard import ImportGuard
from serve_asgi.worker import uncaught_exceptions as uncaught
from serve_asgi.worker.bootstrap import (
    StartArguments,
    configure_logging,
    failure,
    ignore_signals,
    name_process,
    refuse,
    settle,
    tell,
    welcome,
)
from serve_asgi.worker.event_loop import loop_factory

if TYPE_CHECKING:
    from serve_asgi.http.worker_context import ASGIApplication

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
REASON_LIMIT: Final = 500
"""Characters of the reason why a worker could not be forked."""


class TemplateProcess:
    """One template."""

    def __init__(self, arguments: StartArguments) -> None:
        """Set up the process, but for directory and user. May exit the process."""
        ignore_signals()
        forks.begin({arguments.channel, *stdio_guard.given(arguments.output)})
        self.guard = stdio_guard.adopt(arguments.output)
        end = socket.socket(fileno=arguments.channel)
        end.set_inheritable(False)
        self.packet, descriptors = welcome(end)
        close_descriptors(descriptors)
        self.channel = Channel(end)
        self.config = Config.from_json(self.packet["config"])
        number = self.packet["generation"]
        name_process(f"serve-tmpl.{number}")
        try:
            logs.configure(self.config, f"template {number}", generation=number)
            app_log.begin(self.config)
        except UsageError as error:
            refuse(self.channel, str(error))
        uncaught.install()
        forks.in_child(stdio_guard.let_go)
        forks.own(nonblocking_sink.descriptors)
        forks.in_child(logs.let_go)
        forks.in_child(app_log.let_go)
        tell(self.channel, {"type": "hello", "protocol": PROTOCOL})
        self._libc: Any = ctypes.PyDLL(None, use_errno=True)

    # The import

    def prepare(self) -> ASGIApplication:
        """Import the application, and report that; ends the process if that fails, or it must not be forked."""
        try:
            settle(self.config, self.packet)
            configure_logging(self.config)
        except UsageError as error:
            refuse(self.channel, str(error))
        except (OSError, KeyError, ValueError) as error:
            refuse(self.channel, f"the template could not be set up: {error}")
        self._die_with_parent()
        self._import_our_own()
        hub_link.begin_template()
        if self.config.metrics_series:
            prometheus_values.install()
        forks.claim(None)
        with ImportGuard(self._libc.fork) as imports:
            try:
                application = loading.load_for(self.config)
            except (StartError, UsageError) as error:
                tell(self.channel, failure(error))
                self._leave(1)
        self.guard.stop()
        findings = imports.findings()
        if not findings:
            gc.collect()
            gc.freeze()
        tell(self.channel, {"type": "imported", "findings": [sayable(each) for each in findings]})
        if findings:
            self._leave(0)
        return application

    def _die_with_parent(self) -> None:
        """Be killed when the listener dies. After the change of user, which resets this."""
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def _import_our_own(self) -> None:
        """Import what every worker would import by itself, so that workers share it."""
        loop_factory(self.config.loop)
        parser_factory(self.config.http)()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(_use_anyio())
        loop.close()
        if self.config.tls_cert:
            from serve_asgi.tls import server_contexts as server_contexts

    # The forks

    def run(self) -> StartArguments:
        """Fork workers until the listener closes the channel; returns in the workers only."""
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        while True:
            poll.poll()
            try:
                received = self.channel.try_receive()
            except EOFError:
                self._leave(0)
            if received is None:
                continue
            packet, descriptors = received
            match packet["type"]:
                case "fork":
                    if (forked := self._fork(packet, descriptors)) is not None:
                        return forked
                case "reopen":
                    logs.reopen()
                    app_log.reopen()
            close_descriptors(descriptors)
            self.guard.drain()  # hooks of the application may have written something at the fork

    def _fork(self, packet: Packet, descriptors: list[int]) -> StartArguments | None:
        """Fork a worker, and report its PID; in the worker, return what it is started with."""
        number = packet["number"]
        try:
            reads, writes = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            tell(self.channel, {"type": "not forked", "number": number, "reason": str(error)})
            return None
        between = self._libc.fork()
        if between == 0:
            os.close(reads)
            if not self._fork_again(writes):
                os._exit(0)
            return self._become_worker(packet, descriptors)
        os.close(writes)
        with open(reads, "rb") as pipe:
            said = pipe.read().decode() if between > 0 else os.strerror(ctypes.get_errno())
        if between > 0:
            with contextlib.suppress(ChildProcessError):  # the application ignores SIGCHLD: the kernel has reaped it
                os.waitpid(between, 0)
        if said.isdigit():
            tell(self.channel, {"type": "forked", "number": number, "pid": int(said)})
        else:
            reason = sayable(said or "the process in between has died")[:REASON_LIMIT]
            tell(self.channel, {"type": "not forked", "number": number, "reason": reason})
        return None

    def _fork_again(self, writes: int) -> bool:
        """In the process in between: fork the worker, and write its PID; return whether this is the worker."""
        try:
            forks.expect()
            pid = os.fork()
            if pid == 0:
                os.close(writes)
                return True
            said = str(pid)
        except BaseException as error:
            said = str(error) or repr(error)
        with contextlib.suppress(BaseException):  # the template may be dead by now: then the worker ends as well
            os.write(writes, said.encode()[: select.PIPE_BUF])
        return False

    def _become_worker(self, packet: Packet, descriptors: list[int]) -> StartArguments:
        """In the worker: put what is its own in place of what is the template's."""
        self.channel.close()
        os.setsid()  # as each process that the listener starts
        channel, *given = descriptors
        threes = [given[i : i + 3] for i in range(0, len(given), 3)]
        streams = [(targets, *three) for targets, three in zip(packet["output"], threes, strict=True)]
        output = stdio_guard.replace(streams)
        if (numpy := sys.modules.get("numpy.random")) is not None:  # as the module `random` does for itself
            with contextlib.suppress(Exception):
                numpy.seed()
        return StartArguments(channel, output, forked=True)

    def _leave(self, status: int) -> NoReturn:
        """Exit, without the exit handlers of the application: those are for the workers."""
        with contextlib.suppress(BaseException):
            self.guard.finish()
        os._exit(status)


async def _use_anyio() -> None:
    """Have anyio import what it imports when it is first used."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.lowlevel.checkpoint)
