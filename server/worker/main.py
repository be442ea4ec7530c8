"""The worker process, from its first instruction to its exit.

It obeys its channel alone: signals that reach it are ignored while the listener lives, and the end of the channel means
that the listener is dead. What it does in between is in `server.worker.worker`.
"""

from __future__ import annotations

import argparse
import asyncio
import grp
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

import anyio

from server import logs, output
from server.channel import PROTOCOL, Channel, Packet, close_descriptors, speaks
from server.config import Config
from server.errors import UsageError
from server.scoreboard import Scoreboard
from server.signals import LISTENER_SIGNALS
from server.worker.memory import keep_large_blocks
from server.worker.wake_order import LoopFactory
from server.worker.watchdog import Watchdog
from server.worker.worker import Worker

WELCOME_TIMEOUT = 30.0
"""Seconds for the listener to say what this worker is to be."""


def main() -> None:
    """Be the worker whose channel is the descriptor named on the command line; never returns."""
    ignore_signals()
    arguments = _arguments()
    guard = output.adopt(arguments.output)
    end = socket.socket(fileno=arguments.channel)
    end.set_inheritable(False)
    packet, descriptors = welcome(end)
    config = Config.from_json(packet["config"])
    name_process(f"serve-w{packet['slot']}.{packet['generation']}")
    slot, generation = packet["slot"], packet["generation"]
    channel = Channel(end)
    try:
        logs.configure(config, f"worker {slot}.{generation}", generation=generation, slot=slot)
    except UsageError as error:
        _tell(channel, {"type": "failed", "message": str(error), "usage": True})
        sys.exit(1)
    scoreboard_fd, sockets_fds, given = sorted_out(packet, descriptors)
    asked_over, dump = given.get("asked over"), given.get("dump")
    watchdog = Watchdog(None if asked_over is None else Channel(socket.socket(fileno=asked_over)), dump)
    watchdog.start()
    _tell(channel, {"type": "hello", "protocol": PROTOCOL, "window": watchdog.abilities})
    try:
        _move_in(config, packet)
    except (OSError, KeyError, ValueError) as error:
        _tell(channel, {"type": "failed", "message": f"the worker could not be set up: {error}", "usage": True})
        sys.exit(1)
    scoreboard = Scoreboard(scoreboard_fd)
    sockets = [listening_socket(descriptor) for descriptor in sockets_fds]
    keep_large_blocks()
    loops = LoopFactory(loop_factory(config.loop))
    link = socket.socket(fileno=given["link"]) if "link" in given else None
    worker = Worker(config, channel, scoreboard, packet, sockets, loops, watchdog, link)
    status = anyio.run(worker.run, backend_options={"loop_factory": loops})
    if worker.access_log is not None:
        worker.access_log.close()
    guard.finish()
    sys.exit(status)


def ignore_signals() -> None:
    """Take note of the listener's signals and do nothing; a handler, unlike SIG_IGN, is not inherited by exec.

    TTIN and TTOU are ignored for good: with a handler, writing to a terminal from the background would never end.
    """
    terminal = {signal.SIGTTIN, signal.SIGTTOU}
    for number in LISTENER_SIGNALS - {signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN if number in terminal else lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LISTENER_SIGNALS)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loop's factory. `auto` takes uvloop where it is installed."""
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="server.worker", description="Started by the listener; not by hand.")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--output", default="")
    parser.add_argument("--generation", type=int, required=True)  # these two are for people who read ps(1)
    parser.add_argument("--slot", type=int, required=True)
    return parser.parse_args()


def welcome(end: socket.socket) -> tuple[Packet, list[int]]:
    """Wait for the listener's first packet; leave if there is none, or if it speaks another version."""
    channel = Channel(end)
    end.settimeout(WELCOME_TIMEOUT)
    try:
        received = channel.try_receive()
    except (EOFError, TimeoutError):
        sys.exit(1)
    assert received is not None
    if not speaks(received[0].get("protocol")):
        end.setblocking(False)
        _tell(channel, {"type": "hello", "protocol": PROTOCOL})
        sys.exit(1)
    return received


GIVEN: Final = frozenset({"link", "asked over", "dump"})
"""What a listener may give besides: the link to the hub, and the two ways in of the window."""


def sorted_out(packet: Packet, descriptors: list[int]) -> tuple[int, list[int], dict[str, int]]:
    """What came with the welcome: the scoreboard, the listening sockets, and by name what was given besides."""
    end = 1 + len(packet["sockets"])
    given = dict(zip(packet.get("given", []), descriptors[end:], strict=False))
    close_descriptors(set(descriptors[end:]) - {given[name] for name in GIVEN & given.keys()})  # of a later version
    return descriptors[0], descriptors[1:end], {name: given[name] for name in GIVEN & given.keys()}


def _tell(channel: Channel, packet: Packet) -> None:
    try:
        channel.try_send(packet)
    except OSError:
        sys.exit(1)


def name_process(name: str) -> None:
    """Show this name (15 bytes) in top(1) and the like (proc(5), /proc/self/comm)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(name)
    except OSError:
        pass


def _move_in(config: Config, packet: Packet) -> None:
    """Take the directory, mask and user that the application is to run with."""
    if config.umask:
        os.umask(int(config.umask, 8))
    take_account(config)
    os.chdir(packet["directory"])
    sys.path.insert(0, packet["app_dir"])


def take_account(config: Config) -> None:
    """Become the user and group that the configuration names. Raises OSError, KeyError."""
    user = _user(config.user) if config.user else None
    group = _group(config.group) if config.group else (user.pw_gid if user else None)
    if group is not None:
        os.setgroups([])
        if user is not None:
            os.initgroups(user.pw_name, group)
        os.setgid(group)
    if user is not None:
        os.setuid(user.pw_uid)
        os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}


def _user(name: str) -> pwd.struct_passwd:
    return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)


def _group(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def listening_socket(descriptor: int) -> socket.socket:
    """The listening socket that came as this descriptor."""
    listening = socket.socket(fileno=descriptor)
    listening.setblocking(False)
    return listening
