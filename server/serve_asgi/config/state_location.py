"""The value of `--state`: a file, or the URL of a Redis or PostgreSQL; and how it is shown, without its password.

It knows no files and no network.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from serve_asgi.errors import UsageError

REDIS: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "valkey": "redis",
    "valkeys": "rediss",
    **{f"{name}+sentinel": "redis" for name in ("redis", "valkey")},
    **{f"{name}+sentinel": "rediss" for name in ("rediss", "valkeys")},
}
"""Schemes, and what each of them is to redis-py: Valkey speaks as Redis does."""
POSTGRES: Final = ("postgresql", "postgres")
PREFIX: Final = "serve"
SENTINEL_PORT: Final = 26379
TIMEOUT: Final = 3.0
"""Seconds that the store has to respond, unless the URL says otherwise."""
LONGEST_SCHEMA: Final = 50
"""Bytes of a schema's name: PostgreSQL cuts names at 63, and the channel's is longer than the schema's."""
START_TIME: Final = 15.0
"""Seconds within which the state has to be available when a server starts, unless the URL says otherwise."""
LEASE: Final = 20.0
"""Seconds for which a server may be silent before others get the work that it has taken, unless the URL says
otherwise."""
SHORTEST_LEASE: Final = 1.0

_PASSWORD: Final = re.compile(r"(?<=://).*(?=@)", re.DOTALL)
_PASSWORDS: Final = re.compile(r"(?i)(?<=[?&])([^=&#]*(?:pass|secret|credential|user)[^=&#]*=)[^&#]*")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAME: Final = re.compile(r"[A-Za-z0-9._:{}-]{1,100}")


@dataclasses.dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis is, and the prefix of this server's keys in it."""

    urls: tuple[str, ...]
    """For redis-py, tried in order, with the password. If there are several, the one that accepts writes is used."""
    service: str = ""
    """What Sentinel calls the master; then `urls` are those of the Sentinels."""
    master: str = ""
    """With a service: the URL of its master, in which HOST:PORT stands for what a Sentinel says."""
    prefix: str = PREFIX
    """The prefix of all keys: servers with the same one share everything."""
    replicas: int = 0
    """How many replicas must have a write before it counts as written (WAIT)."""
    timeout: float = TIMEOUT
    start: float = START_TIME
    """How long (s) a starting server waits for it."""
    lease: float = LEASE
    """How long (s) a server may be silent before others get the work that it has taken."""


@dataclasses.dataclass(frozen=True, slots=True)
class PostgresAddress:
    """Where a PostgreSQL is, and the schema of this server's tables in it."""

    url: str
    """For libpq, with the password, perhaps with several hosts."""
    schema: str = PREFIX
    """Servers with the same one share everything."""
    timeout: float = TIMEOUT
    start: float = START_TIME
    """How long (s) a starting server waits for it."""
    lease: float = LEASE
    """How long (s) a server may be silent before others get the work that it has taken."""


def is_url(state: str) -> bool:
    """Whether `--state` is a URL rather than a file."""
    return _URL.match(state) is not None


def shown(state: str) -> str:
    """For display: a URL without its user and password, a path as it is."""
    if not is_url(state):
        return state
    return _PASSWORDS.sub(r"\1***", _PASSWORD.sub("***", state))


def store_address(state: str) -> RedisAddress | PostgresAddress:
    """Parse a URL. Raises UsageError, a sentence without the password."""
    scheme = state.partition(":")[0].lower()
    if scheme in REDIS:
        return redis_address(state)
    if scheme in POSTGRES:
        return postgres_address(state)
    raise UsageError(
        f"--state {shown(state)} names no known store: write a path, redis://HOST:PORT/DB, "
        "rediss://HOST:PORT/DB (TLS), redis+sentinel://HOST:PORT,HOST:PORT/MASTER, unix:///PATH or "
        "postgresql://HOST:PORT/DATABASE"
    )


def postgres_address(state: str) -> PostgresAddress:
    """Parse the URL of a PostgreSQL. Raises UsageError, a sentence without the password."""
    place, mark, rest = state.partition("?")
    pairs = [pair for pair in rest.split("&") if pair]
    if mark and any("=" not in pair for pair in pairs):
        raise UsageError(f"--state {shown(state)} is not a URL: write postgresql://HOST:PORT/DATABASE?NAME=VALUE")
    query = {name: unquote(text) for name, _, text in (pair.partition("=") for pair in pairs)}
    prefix = query.get("prefix", PREFIX)
    if not (_NAME.fullmatch(prefix) and len(prefix) <= LONGEST_SCHEMA):
        raise UsageError(
            f"--state {shown(state)}: a prefix names the schema, and has 1 to {LONGEST_SCHEMA} letters, digits and "
            ". _ : - characters"
        )
    if "replicas" in query:
        raise UsageError(
            f"--state {shown(state)}: replicas is for Redis; a PostgreSQL waits for its standbys as "
            "synchronous_standby_names in postgresql.conf says"
        )
    timeout, start = _number(state, query, "timeout", TIMEOUT), _number(state, query, "start", START_TIME)
    if not (timeout >= 0.1 and start >= 0.1):
        raise UsageError(f"--state {shown(state)}: timeout and start are at least 0.1 (seconds)")
    lease = _lease(state, query)
    kept = [pair for pair in pairs if pair.partition("=")[0] not in ("prefix", "timeout", "start", "lease")]
    return PostgresAddress("?".join([place, *(["&".join(kept)] if kept else [])]), prefix, timeout, start, lease)


def redis_address(state: str) -> RedisAddress:
    """Parse the URL of a Redis. Raises UsageError, a sentence without the password."""
    try:
        parts = urlsplit(state)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise UsageError(f"--state {shown(state)} is not a URL: write redis://HOST:PORT/DB") from None
    prefix, replicas = query.pop("prefix", PREFIX), _number(state, query, "replicas", 0)
    timeout, start = _number(state, query, "timeout", TIMEOUT), _number(state, query, "start", START_TIME)
    lease = _lease(state, query)
    if not _NAME.fullmatch(prefix):
        raise UsageError(f"--state {shown(state)}: a prefix has 1 to 100 letters, digits and . _ : - characters")
    if not (timeout >= 0.1 and start >= 0.1 and replicas >= 0 and replicas.is_integer()):
        raise UsageError(
            f"--state {shown(state)}: replicas is a number of replicas, timeout and start are at least 0.1 (seconds)"
        )
    if parts.scheme == "unix" and not unquote(parts.path):
        raise UsageError(f"--state {shown(state)}: write unix:///PATH/OF/THE/SOCKET")
    user, at, hosts = parts.netloc.rpartition("@")
    scheme, path, service = REDIS[parts.scheme], parts.path, ""
    if parts.scheme.endswith("+sentinel"):
        _, service, *database = path.split("/") if "/" in path else ("", "")
        if not re.fullmatch("[A-Za-z0-9._-]+", service):
            raise UsageError(
                f"--state {shown(state)}: after the Sentinels comes the name of the master, as in "
                "redis+sentinel://HOST:26379,HOST:26379/mymaster"
            )
        path = f"/{'/'.join(database)}"
    _check_hosts(state, hosts if scheme != "unix" else "")
    if scheme != "unix" and not re.fullmatch("/?|/[0-9]+", path, re.ASCII):
        raise UsageError(f"--state {shown(state)}: what follows the host is the number of a database, as in /0")
    if not re.fullmatch("[0-9]+", query.get("db", "0"), re.ASCII):
        raise UsageError(f"--state {shown(state)}: db is the number of a database")
    own = {name: query.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in query}
    rest = f"?{urlencode(query)}" if query else ""
    urls = [f"{scheme}://{user}{at}{host}{path}{rest}" for host in hosts.split(",")]
    if not service:
        return RedisAddress(tuple(urls), "", "", prefix, int(replicas), timeout, start, lease)
    about = {name: text for name, text in query.items() if name not in ("db", "username", "password")} | own
    sentinels = [f"{scheme}://{_with_port(host)}{f'?{urlencode(about)}' if about else ''}" for host in hosts.split(",")]
    master = f"{scheme}://{user}{at}HOST:PORT{path}{rest}"
    return RedisAddress(tuple(sentinels), service, master, prefix, int(replicas), timeout, start, lease)


def _with_port(host: str) -> str:
    """A Sentinel's address."""
    return host if urlsplit(f"//{host}").port is not None else f"{host}:{SENTINEL_PORT}"


def _check_hosts(state: str, hosts: str) -> None:
    """Raise UsageError unless these are HOST:PORT, separated by commas, or empty, which means this machine."""
    for host in hosts.split(",") if hosts else ():
        try:
            parts = urlsplit(f"//{host}")
            known = bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise UsageError(
                f"--state {shown(state)}: a host is a name or an address, perhaps with a port from 1 to 65535, as in "
                "redis://HOST:6379/0; several have a comma between them"
            )


def _lease(state: str, query: dict[str, str]) -> float:
    lease = _number(state, query, "lease", LEASE)
    if lease < SHORTEST_LEASE:
        raise UsageError(f"--state {shown(state)}: lease is at least {SHORTEST_LEASE:g} (seconds)")
    return lease


def _number(state: str, query: dict[str, str], name: str, default: float) -> float:
    try:
        number = float(query.pop(name, default))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--state {shown(state)}: {name} is a number") from None
    return number
