"""The button Reload of the demonstration's page: who may press it, and what it does.

Only a browser on this machine may: the request comes from the loopback interface to a loopback name (a page of another
site whose own name is made to lead here has another Host), with the Origin of the page itself, and with the token that
stands in the page, which another site cannot read. The token is the same in every worker of every generation, since the
page that was served by one may be answered by any other.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import signal
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from serve_asgi import shared

Scope = MutableMapping[str, Any]

TOKEN: Final = "demo:reload-token"
"""The key of the token in the shared state."""


async def token(scope: Scope) -> str:
    """The token for the page, or "" where the page has no button: for other machines, and under other servers."""
    if not (_is_local(scope) and _is_under_a_listener(scope)):
        return ""
    return str(await shared.update(TOKEN, lambda present: present or secrets.token_urlsafe(24)))


def refusal(scope: Scope) -> str | None:
    """Why this request may not reload the server, as a sentence, or None if it may."""
    if not (_is_local(scope) and _is_under_a_listener(scope)):
        return "Only a browser on the server's own machine can reload it here; elsewhere use kill -HUP or serve reload"
    headers = dict(scope["headers"])
    if headers.get(b"origin", b"").decode("latin-1") != f"{scope['scheme']}://{_host(scope)}":
        return "Only the page itself can send this"
    if not hmac.compare_digest(headers.get(b"x-reload-token", b""), str(shared.get(TOKEN, "")).encode()):
        return "The token is not that of this server: load the page again"
    return None


def press(listener: int) -> None:
    """Do as `kill -HUP` does; a reload that is in progress is followed by another one."""
    os.kill(listener, signal.SIGHUP)


def _is_under_a_listener(scope: Scope) -> bool:
    return bool(scope.get("extensions", {}).get("serve", {}).get("generation", 0))


def _is_local(scope: Scope) -> bool:
    """Whether both ends say loopback, and nothing says that a proxy stands between."""
    client = (scope.get("client") or ("",))[0]
    names = {name for name, _ in scope["headers"]}
    if names & {b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip"}:
        return False
    return _is_loopback(client) and _is_loopback(_name(_host(scope)))


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The Host header's name without the port, "" if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _host(scope: Scope) -> str:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    return headers.get(b"host", b"").decode("latin-1")
