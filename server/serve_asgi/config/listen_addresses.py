"""Parses addresses to listen on. Pure: reads text, touches no socket.

Forms: HOST:PORT, [IPV6]:PORT, :PORT and *:PORT (every interface, IPv4 and IPv6), each of them perhaps with http:// or
https:// in front; unix:/path, unix:@name (an abstract socket, unix(7)).
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Final

from serve_asgi.config.options import Config
from serve_asgi.errors import UsageError

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
LONGEST_UNIX_PATH: Final = 107  # sun_path of unix(7) holds 108 bytes with its NUL


SCHEMES: Final = {"http": False, "https": True}
"""Which of them speaks TLS."""


@dataclasses.dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name or number; "" means every interface, IPv4 and IPv6) and a port (0: the kernel chooses)."""

    host: str
    port: int
    secure: bool | None = None
    """Whether it was written with https:// or http://; None: it speaks TLS if the server has a certificate."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a unix socket, as given, or the @name of an abstract one."""

    path: str

    @property
    def is_abstract(self) -> bool:
        """Whether it is not a file but a name that exists as long as sockets are bound to it (unix(7))."""
        return self.path.startswith("@")

    def where(self) -> str:
        """The address for the kernel."""
        return "\0" + self.path[1:] if self.is_abstract else self.path

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parse_address(text: str) -> TcpAddress | UnixAddress:
    """Read one address. Raises UsageError for anything but the forms above."""
    if text.startswith("unix:"):
        return _unix_address(text)
    if fd := re.fullmatch("fd:(?://)?([0-9]+)", text):
        raise UsageError(f"the address {text!r} is a descriptor: write --fd {fd[1]} (in a file: fd = [{fd[1]}])")
    scheme, slashes, rest = text.partition("://")
    if slashes and scheme in SCHEMES:
        plain = parse_address(rest.removesuffix("/"))
        if isinstance(plain, UnixAddress):
            raise UsageError(f"the address {text!r} is a unix socket, which speaks no TLS: write {plain}")
        return dataclasses.replace(plain, secure=SCHEMES[scheme])
    host, colon, port = text.rpartition(":")
    if not colon:
        if text.isdigit():
            raise UsageError(
                f"the address {text!r} has no host: write 127.0.0.1:{text}, or :{text} for every interface"
            )
        raise UsageError(f"the address {text!r} has no port: write HOST:PORT, for example {text}:{DEFAULT_PORT}")
    if "/" in host or "/" in port:
        raise UsageError(f"the address {text!r} is not HOST:PORT: a unix socket is written unix:/path")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(
            f"the address {text!r} is ambiguous: write an IPv6 address in brackets, as in [::1]:{DEFAULT_PORT}"
        )
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:  # `int` refuses thousands of digits
        raise UsageError(f"the port of {text!r} is not a number from 0 to 65535: write HOST:PORT")
    return TcpAddress("" if host == "*" else host, int(port))


def _unix_address(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("//"):  # unix:///path, as others write it
        path = path[2:]
    if not path or path.endswith("/"):
        raise UsageError(f"the address {text!r} has no path: write unix:/path/to/socket")
    if path == "@":
        raise UsageError(f"the address {text!r} has no name: write unix:@NAME for an abstract socket, or unix:/path")
    if len(os.fsencode(path.removeprefix("@"))) > LONGEST_UNIX_PATH:
        raise UsageError(
            f"the path of the unix socket {path} is longer than {LONGEST_UNIX_PATH} bytes, the most that the kernel "
            "takes: choose a shorter one"
        )
    return UnixAddress(path)


def addresses(config: Config, *, inherited: bool) -> list[TcpAddress | UnixAddress]:
    """The addresses to bind: --bind, or --host and --port, or the default where no socket was inherited."""
    if config.bind:
        return [parse_address(text) for text in config.bind]
    if config.host or config.port is not None:
        host = config.host.removeprefix("[").removesuffix("]")
        port = DEFAULT_PORT if config.port is None else config.port
        return [TcpAddress("" if host == "*" else host or DEFAULT_HOST, port)]
    return [] if inherited else [TcpAddress(DEFAULT_HOST, DEFAULT_PORT)]
