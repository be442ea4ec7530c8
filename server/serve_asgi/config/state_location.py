"""The value of `--state`: a file, or a Redis URL; and how it is shown, without its password.

It knows no files and no network.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from serve_asgi.errors import UsageError

SCHEMES: Final = ("redis", "rediss", "unix")
PREFIX: Final = "serve"
TIMEOUT: Final = 3.0
"""Seconds that Redis has to respond, unless the URL says otherwise."""
START_TIME: Final = 15.0
"""Seconds within which the state has to be available when a server starts, unless the URL says otherwise."""

_PASSWORD: Final = re.compile(r"(?<=://).*(?=@)", re.DOTALL)
_PASSWORDS: Final = re.compile(r"(?i)(?<=[?&])([^=&#]*(?:pass|secret|credential|user)[^=&#]*=)[^&#]*")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_NAME: Final = re.compile(r"[A-Za-z0-9._:{}-]{1,100}")


@dataclasses.dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis is, and the prefix of this server's keys in it."""

    urls: tuple[str, ...]
    """For redis-py, tried in order, with the password. If there are several, the one that accepts writes is used."""
    prefix: str = PREFIX
    """The prefix of all keys: servers with the same one share everything."""
    replicas: int = 0
    """How many replicas must have a write before it counts as written (WAIT)."""
    timeout: float = TIMEOUT
    start: float = START_TIME
    """How long (s) a starting server waits for it."""


def is_url(state: str) -> bool:
    """Whether `--state` is a URL rather than a file."""
    return _URL.match(state) is not None


def shown(state: str) -> str:
    """For display: a URL without its user and password, a path as it is."""
    if not is_url(state):
        return state
    return _PASSWORDS.sub(r"\1***", _PASSWORD.sub("***", state))


def redis_address(state: str) -> RedisAddress:
    """Parse a URL. Raises UsageError, a sentence without the password."""
    try:
        parts = urlsplit(state)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise UsageError(f"--state {shown(state)} is not a URL: write redis://HOST:PORT/DB") from None
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"--state {shown(state)} names no known store: write a path, redis://HOST:PORT/DB, "
            "rediss://HOST:PORT/DB (TLS) or unix:///PATH"
        )
    prefix, replicas = query.pop("prefix", PREFIX), _number(state, query, "replicas", 0)
    timeout, start = _number(state, query, "timeout", TIMEOUT), _number(state, query, "start", START_TIME)
    if not _NAME.fullmatch(prefix):
        raise UsageError(f"--state {shown(state)}: a prefix has 1 to 100 letters, digits and . _ : - characters")
    if not (timeout >= 0.1 and start >= 0.1 and replicas >= 0 and replicas.is_integer()):
        raise UsageError(
            f"--state {shown(state)}: replicas is a number of replicas, timeout and start are at least 0.1 (seconds)"
        )
    if parts.scheme == "unix" and not unquote(parts.path):
        raise UsageError(f"--state {shown(state)}: write unix:///PATH/OF/THE/SOCKET")
    user, at, hosts = parts.netloc.rpartition("@")
    rest = parts.path + (f"?{urlencode(query)}" if query else "")
    _check_hosts(state, hosts if parts.scheme != "unix" else "")
    if parts.scheme != "unix" and not re.fullmatch("/?|/[0-9]+", parts.path, re.ASCII):
        raise UsageError(f"--state {shown(state)}: what follows the host is the number of a database, as in /0")
    if not re.fullmatch("[0-9]+", query.get("db", "0"), re.ASCII):
        raise UsageError(f"--state {shown(state)}: db is the number of a database")
    urls = [f"{parts.scheme}://{user}{at}{host}{rest}" for host in hosts.split(",")]
    return RedisAddress(tuple(urls), prefix, int(replicas), timeout, start)


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


def _number(state: str, query: dict[str, str], name: str, default: float) -> float:
    try:
        number = float(query.pop(name, default))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--state {shown(state)}: {name} is a number") from None
    return number
