"""Connections to a Redis, the keys with this server's prefix, and the scripts by name.

It owns no connection: whoever makes one closes it. The scripts are in `serve_asgi.store.redis_scripts`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from serve_asgi.config.state_location import RedisAddress, shown
from serve_asgi.errors import UsageError
from serve_asgi.store import redis_fleet_scripts as fleet
from serve_asgi.store import redis_scripts as scripts
from serve_asgi.store import redis_work_scripts
from serve_asgi.store.reconnect import SessionLost

_SCRIPTS: Final[dict[str, str]] = fleet.SCRIPTS | {
    name: getattr(module, name)
    for module, names in (
        (scripts, ("HELLO", "SNAPSHOT", "READ", "WRITE", "SEND", "GRANT", "RENEW", "RELEASE")),
        (redis_work_scripts, ("POST", "WITHDRAW", "SETTLE", "KEEP")),
    )
    for name in names
}


class RedisConnector:
    """The connector to one Redis."""

    def __init__(self, address: RedisAddress, server: str) -> None:
        """`server` is the name of this server, for CLIENT LIST."""
        self._address = address
        self._server = server
        self._shas: dict[str, str] = {}

    def client(self, url: str, timeout: float) -> aioredis.Redis:
        """A client that retries nothing by itself, since a repeated command would be executed twice."""
        return aioredis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=self._address.timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            client_name=f"serve-{self._server[:8]}",
        )

    def check(self) -> None:
        """Raise UsageError, a sentence, for options of the URL that the package redis does not have."""
        for url in self._address.urls:
            try:
                self.client(url, self._address.timeout).connection_pool.make_connection()  # type: ignore[no-untyped-call]
            except (TypeError, ValueError, exceptions.RedisError) as error:
                named = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                what = f"the package redis knows no {named[1]}" if named else str(error)
                raise UsageError(f"--state {shown(url)}: {what}; correct what follows the question mark") from None

    @property
    def where(self) -> str:
        """For sentences, without passwords."""
        named = f"{self._address.service} of the Sentinels " if self._address.service else ""
        return named + " and ".join(shown(url) for url in self._address.urls)

    async def masters(self) -> AsyncIterator[str]:
        """The URLs to try, in order: those that are given, or what each Sentinel calls the master, each once.

        Raises SessionLost if no Sentinel answers, or none knows the service
        (https://redis.io/docs/latest/develop/reference/sentinel-clients/).
        """
        if not self._address.service:
            for url in self._address.urls:
                yield url
            return
        tried: set[str] = set()
        trouble = f"no Sentinel knows a master {self._address.service!r}"
        for url in self._address.urls:
            client: Any = self.client(url, self._address.timeout)  # its annotations are for one kind of reply
            try:
                found = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
            except (exceptions.RedisError, OSError) as error:
                trouble = f"the Sentinel {shown(url)} cannot be asked: {error}"
                continue
            finally:
                await client.aclose()
            if found:
                host, port = (text.decode() for text in found)
                master = self._address.master.replace(
                    "HOST:PORT", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                )
                if master not in tried:
                    tried.add(master)
                    yield master
        if not tried:
            raise SessionLost(trouble)

    def key(self, name: str) -> str:
        """A key with the prefix: one of those that `serve_asgi.store.redis_scripts` lists."""
        return f"{self._address.prefix}:{name}"

    def keys(self, *names: str) -> list[str]:
        return [self.key(name) for name in names]

    async def bring_scripts(self, client: aioredis.Redis) -> None:
        """Load the scripts into Redis. Raises RedisError."""
        for name, text in _SCRIPTS.items():
            self._shas[name] = await client.script_load(text)

    async def run(self, client: Any, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Run a script. Raises RedisError."""
        return await client.evalsha(self._shas[script], len(keys), *keys, *arguments)

    def add(self, pipe: Any, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> None:
        """Add a script to a pipeline."""
        pipe.evalsha(self._shas[script], len(keys), *keys, *arguments)


async def maxmemory_policy(client: aioredis.Redis) -> str:
    """What Redis evicts when its memory is full; "" if its memory is not limited, or if it does not tell."""
    try:
        info = await client.info("memory")
    except exceptions.ResponseError:  # it may be forbidden
        return ""
    return str(info.get("maxmemory_policy", "")) if info.get("maxmemory") else ""
