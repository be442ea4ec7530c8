"""The store process, from its first instruction to its exit.

It never imports the application, and exits when the listener closes its end of the link: requests that have arrived by
then are still carried out. If it cannot start, it sends one sentence to the listener (`store.failed`), which decides
what to do.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

import anyio

from serve_asgi.config.options import Config
from serve_asgi.config.state_location import PostgresAddress, RedisAddress, is_url, shown, store_address
from serve_asgi.errors import ChannelError, UsageError
from serve_asgi.hub.state.write_evaluation import StateEntry, StateLimits
from serve_asgi.ipc.channel import PROTOCOL, speaks
from serve_asgi.ipc.frames import Frame, unpack_value
from serve_asgi.logs import server_log as logs
from serve_asgi.store.listener_link import ListenerLink
from serve_asgi.store.message_position import NOWHERE, StreamPosition
from serve_asgi.store.shared_store import NOTHING_KNOWN, KnownState, SharedStore
from serve_asgi.store.sqlite_state import SqliteState
from serve_asgi.worker import orphan_exit
from serve_asgi.worker.bootstrap import ignore_signals, name_process, take_account

WELCOME_TIME: Final = 30.0
"""Seconds until the listener must have sent what to open."""
LAST: Final = 10.0
"""Seconds that the process has when the listener is gone; then it exits, whatever it is doing."""

log = logging.getLogger("serve")


def main() -> None:
    """Run the store process, whose link is the descriptor given on the command line; never returns."""
    ignore_signals()
    parser = argparse.ArgumentParser(prog="serve_asgi.store", description="Started by the listener; not by hand.")
    parser.add_argument("--channel", type=int, required=True)
    end = socket.socket(fileno=parser.parse_args().channel)
    end.set_inheritable(False)
    name_process("serve-store")
    orphan_exit.watch(end.fileno(), lambda: LAST)
    link = ListenerLink(end)
    status = anyio.run(_run, link)
    link.close()
    sys.exit(status)


async def _run(link: ListenerLink) -> int:
    try:
        with anyio.fail_after(WELCOME_TIME):
            first, *rest = await link.receive()
        await _serve(link, first, rest)
    except (EOFError, BrokenPipeError, ConnectionResetError, TimeoutError):
        return 0
    except UsageError as error:
        await link.send("store.failed", {"text": str(error), "status": 2})
        return 2
    except (ChannelError, LookupError, TypeError, ValueError) as error:
        log.error("the store process does not understand the listener: %r", error, exc_info=True)
        return 1
    return 0


async def _serve(link: ListenerLink, first: Frame, rest: list[Frame]) -> None:
    """Open what the listener names, and serve it until the link ends, which raises EOFError.

    `first` is `store.open` {protocol, location, again, knows?, at?, value_limit, total_limit, name} body=configuration;
    `again`: this server has had the store before; `knows`: the entries of the hub follow, up to `store.known`;
    `at`: the last message that the hub got.
    """
    head = first.head
    if first.kind != "store.open" or not speaks(head["protocol"]):
        raise ChannelError(f"the listener speaks another version than {PROTOCOL}")
    config = Config.from_json(unpack_value(first.body))
    logs.configure(config, "store")
    try:
        take_account(config)
    except (OSError, KeyError) as error:
        raise UsageError(f"the store process cannot become user {config.user} {config.group}: {error}") from None
    limits = StateLimits(head["value_limit"], head["total_limit"])
    if is_url(head["location"]):
        await _serve_shared(link, head, limits, rest)
    else:
        await _serve_file(link, head, limits, rest)


async def _serve_file(link: ListenerLink, head: dict[str, Any], limits: StateLimits, frames: list[Frame]) -> None:
    file = SqliteState(head["location"], limits, again=head["again"])
    try:
        for piece in file.snapshot():
            await link.send(*piece)
        await link.send("store.up", {"server": head["name"], "shared": False})
        while True:
            for answer in [*file.answer([frame for frame in frames if not handled_here(frame)]), *file.probe()]:
                await link.send(*answer)
            frames = []
            with anyio.move_on_after(file.availability.patience):
                frames = await link.receive()
    finally:
        file.close()


async def _serve_shared(link: ListenerLink, head: dict[str, Any], limits: StateLimits, frames: list[Frame]) -> None:
    address, name = store_address(head["location"]), head["name"]
    make = _redis_store(address, name) if isinstance(address, RedisAddress) else _postgres_store(address, name)
    known = NOTHING_KNOWN
    if head.get("knows"):
        entries: dict[str, StateEntry] = {}
        while True:
            while not frames:
                frames = await link.receive()
            frame, *frames = frames
            if frame.kind == "store.known":
                break
            entries |= {key: StateEntry(version, value) for key, version, value in unpack_value(frame.body)}
        known = KnownState(entries, frame.head["version"], StreamPosition(*head.get("at", NOWHERE)))
    await make(link, limits, known).serve(frames)


MakeStore = Callable[[ListenerLink, StateLimits, KnownState], SharedStore]


def _redis_store(address: RedisAddress, name: str) -> MakeStore:
    """What makes the store. Raises UsageError if the package redis, or something in the URL, is missing."""
    try:
        from serve_asgi.store.redis_connector import RedisConnector
        from serve_asgi.store.redis_state import RedisState
    except ModuleNotFoundError as error:
        raise _missing(error, "redis", "redis", address.urls[0]) from None
    RedisConnector(address, name).check()
    return lambda link, limits, known: RedisState(link, address, limits, name, known)


def _postgres_store(address: PostgresAddress, name: str) -> MakeStore:
    """What makes the store. Raises UsageError if the package psycopg, or something in the URL, is missing."""
    try:
        from serve_asgi.store.postgres_connector import PostgresConnector
        from serve_asgi.store.postgres_state import PostgresState
    except ModuleNotFoundError as error:
        raise _missing(error, "psycopg", "postgres", address.url) from None
    except ImportError as error:  # psycopg without libpq
        text = str(error).strip().splitlines()[0]
        raise UsageError(
            f"--state {shown(address.url)}: the package psycopg cannot be used ({text}): "
            "pip install 'serve-asgi[postgres]'"
        ) from None
    PostgresConnector(address, name).check()
    return lambda link, limits, known: PostgresState(link, address, limits, name, known)


def _missing(error: ModuleNotFoundError, package: str, extra: str, url: str) -> Exception:
    if error.name != package:
        return error
    return UsageError(
        f"--state {shown(url)} needs the package {package}, which is not installed: pip install 'serve-asgi[{extra}]'"
    )


def handled_here(frame: Frame) -> bool:
    """Handle a frame that is about this process rather than the state; return False for others."""
    if frame.kind == "store.reopen":
        logs.reopen()
        return True
    return False
