"""Where a server in process listens: sockets bound in the calling process, and the certificates that are shown there.

It owns the sockets until they are closed, and the file of a unix socket. An address that is in use is an error at once:
nobody waits for another server to go.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from serve_asgi.config.listen_addresses import TcpAddress, UnixAddress, addresses
from serve_asgi.config.options import Config
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.errors import InUseError, UsageError
from serve_asgi.ipc.tcp_binding import bind_tcp, resolve, url_of

if TYPE_CHECKING:
    from serve_asgi.tls.server_contexts import ServerContexts

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a client on this machine connects to where a server listens on every interface."""


class Listening:
    """The sockets of one server."""

    def __init__(self, config: Config) -> None:
        """Bind what `config` names; nothing listens yet. Raises UsageError."""
        self.sockets: dict[socket.socket, bool] = {}
        """Each with whether it speaks TLS."""
        self.urls: list[str] = []
        """Where a client on this machine finds each."""
        self._release: list[Callable[[], object]] = []
        try:
            for number in config.fd:
                self._inherit(number, bool(config.tls_cert))
            for address in addresses(config, inherited=bool(config.fd)):
                if isinstance(address, UnixAddress):
                    self._bind_unix(address, config)
                else:
                    self._bind_tcp(address, config)
        except BaseException:
            self.close()
            raise

    def listen(self, backlog: int) -> None:
        """Let clients connect."""
        for listening in self.sockets:
            listening.listen(backlog)

    def close(self) -> None:
        """Close the sockets, and remove what belongs to them."""
        for listening in self.sockets:
            listening.close()
        self.sockets = {}
        for release in self._release:
            release()
        self._release = []

    def _inherit(self, number: int, secure: bool) -> None:
        try:
            listening = socket.socket(fileno=os.dup(number))  # the caller keeps its own
        except OSError as error:
            raise UsageError(f"the descriptor {number} is not a socket: {error.strerror}") from None
        listening.setblocking(False)
        inet = listening.family in (socket.AF_INET, socket.AF_INET6)
        self.sockets[listening] = secure and inet
        self.urls.append(_local_url(listening, secure) if inet else f"fd:{number}")

    def _bind_tcp(self, address: TcpAddress, config: Config) -> None:
        secure = bool(config.tls_cert) if address.secure is None else address.secure
        try:
            made = bind_tcp(address, resolve(address))
        except InUseError:
            raise UsageError(
                f"port {address.port} of {address.host or 'this machine'} is in use: stop what listens there, or take "
                "port 0, so that the kernel chooses one that is free"
            ) from None
        for listening in made:
            self.sockets[listening] = secure
            self.urls.append(_local_url(listening, secure))

    def _bind_unix(self, address: UnixAddress, config: Config) -> None:
        if sys.platform != "linux":
            raise UsageError(f"{address}: a server in process listens on unix sockets on Linux only; use HOST:PORT")
        from serve_asgi.ipc.shut_out_clients import unlink_own
        from serve_asgi.listener.unix_socket import bind_unix

        try:
            made, identity, lock = bind_unix(address, config)
        except InUseError:
            raise UsageError(f"{address} is in use by another server: stop it, or choose another path") from None
        self.sockets[made] = False
        self.urls.append(str(address))
        if identity is not None:
            self._release.append(lambda: unlink_own(address.path, identity))
        if lock is not None:
            self._release.append(lock.release)


def _local_url(listening: socket.socket, secure: bool) -> str:
    host, port = listening.getsockname()[:2]
    url = url_of(listening, secure)
    if host not in ANYWHERE:
        return url
    here = ANYWHERE[host]
    return f"{url.partition(':')[0]}://{f'[{here}]' if ':' in here else here}:{port}"


def secure_contexts(config: Config) -> ServerContexts | None:
    """What is needed for TLS; None without a certificate. Raises UsageError."""
    files = TlsFiles.of(config, os.getcwd())
    if files is None:
        return None
    from serve_asgi.listener.certificate_loading import load
    from serve_asgi.tls.server_contexts import ServerContexts

    return ServerContexts(load(files).material, http2=config.http2 == "on")
