"""`serve_asgi.store.fleet_access` in a Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis.asyncio as aioredis
from redis import exceptions

from serve_asgi.config.state_location import RedisAddress
from serve_asgi.store import redis_fleet_scripts as scripts
from serve_asgi.store.fleet_access import NAME, FleetAccess, FleetUnreachable, FleetView, HeardServer
from serve_asgi.store.reconnect import SessionLost
from serve_asgi.store.redis_connector import RedisConnector
from serve_asgi.store.redis_requests import sentence


class RedisFleet(FleetAccess):
    """The fleet in one Redis, over a connection of the caller's."""

    def __init__(self, connector: RedisConnector, client: aioredis.Redis) -> None:
        self._connector = connector
        self._client: Any = client  # its annotations are for one kind of reply

    async def look(self, name: str = "") -> FleetView:
        keys = self._connector.keys("fleet", "fleet:heard", "fleet:orders", "fleet:operation")
        now, version, document, *rest = await self._run(scripts.FLEET, keys, name)
        rows = zip(rest[::4], rest[1::4], rest[2::4], rest[3::4], strict=True)
        servers = [
            HeardServer(each.decode(errors="replace"), record, float(heard) / 1e6, bool(ordered))
            for each, record, heard, ordered in rows
        ]
        return FleetView(float(now) / 1e6, servers, int(version or 0), document or b"")

    async def advance(self, version: int, document: bytes, name: str = "", order: bytes = b"") -> bool:
        keys = self._connector.keys("fleet:operation", "fleet", "fleet:orders", f"fleet:bell:{name}")
        return bool(await self._run(scripts.ADVANCE, keys, version, document, name, order))

    async def _run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        try:
            return await self._client.eval(script, len(keys), *keys, *arguments)
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise FleetUnreachable(sentence(error, self._connector.where)) from None


@contextlib.asynccontextmanager
async def redis_fleet(address: RedisAddress) -> AsyncIterator[RedisFleet]:
    """Connect to the first address that takes writes. Raises FleetUnreachable, UsageError."""
    connector = RedisConnector(address, NAME)
    connector.check()
    client = await _connected(connector, address)
    try:
        yield RedisFleet(connector, client)
    finally:
        await client.aclose()


async def _connected(connector: RedisConnector, address: RedisAddress) -> aioredis.Redis:
    trouble: Exception = SessionLost("there is no address")
    try:
        async for url in connector.masters():
            client = connector.client(url, address.timeout)
            try:
                if await _takes_writes(client):
                    return client
                trouble = exceptions.ReadOnlyError()
            except (exceptions.RedisError, OSError, TimeoutError) as error:
                trouble = error
            await client.aclose()
    except SessionLost as error:
        trouble = error
    raise FleetUnreachable(sentence(trouble, connector.where))


async def _takes_writes(client: Any) -> bool:
    """Whether it is a primary; one that does not tell is taken for one."""
    await client.ping()
    try:
        return bool((await client.execute_command("ROLE"))[0] == b"master")
    except exceptions.NoPermissionError:
        return True
