"""The address of one end of a connection, for applications and logs (ASGI, "HTTP Connection Scope")."""

from __future__ import annotations

import asyncio
import os

Address = tuple[str, int] | tuple[str, None] | None
"""(host, port) for TCP, (path, None) for a unix socket's server side, None for its client side."""


def peer_of(transport: asyncio.BaseTransport) -> Address:
    """The address at the other end; a unix socket's client has none."""
    name = transport.get_extra_info("peername")
    return (str(name[0]), int(name[1])) if isinstance(name, (tuple, list)) else None


def own_end_of(transport: asyncio.BaseTransport) -> Address:
    """The address at this end; a unix socket's is its path, without a port."""
    name = transport.get_extra_info("sockname")
    if isinstance(name, (tuple, list)):
        return (str(name[0]), int(name[1]))
    return (unix_name(name), None) if name else None


def unix_name(name: str | bytes) -> str:
    """The name of a unix socket: its path, or @name for an abstract one, whose name begins with NUL in the kernel."""
    text = os.fsdecode(name)
    return "@" + text[1:] if text.startswith("\0") else text
