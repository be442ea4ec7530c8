"""What a worker has for TLS, and how it is renewed while it serves: certificates and ticket keys, from the listener.

The first comes with the welcome, further ones in packets of their own, each in a memfd. The worker says which one its
new handshakes use, or why it cannot use it and goes on with the one before. It owns the contexts; no connection is
known here, and without TLS nothing of TLS is imported.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from serve_asgi.errors import UsageError
from serve_asgi.ipc import open_files_limit as descriptors
from serve_asgi.ipc.channel import Packet
from serve_asgi.logs.server_log import about

if TYPE_CHECKING:
    from serve_asgi.tls.material import TlsMaterial
    from serve_asgi.tls.server_contexts import ServerContexts

log = logging.getLogger("serve")


class TlsUpdates:
    """The contexts of one worker, and what the listener sends for them."""

    def __init__(self, first: TlsMaterial | None, tell: Callable[[Packet], None], *, http2: bool = False) -> None:
        """`first` came with the welcome, if the server speaks TLS; `tell` sends a packet to the listener.

        `http2`: clients are offered it. That is this generation's own choice, and no part of what the listener sends.
        """
        self.contexts: ServerContexts | None = None
        """None if the server speaks no TLS, and until `begin`."""
        self._waiting = first
        self._tell = tell
        self._http2 = http2

    def begin(self) -> None:
        """Make the contexts. Raises UsageError if this worker's OpenSSL does not take what the listener's did."""
        if (material := self._waiting) is None:
            return
        from serve_asgi.tls.server_contexts import ServerContexts

        self._waiting = None  # private keys are to be in OpenSSL's memory alone
        self.contexts = ServerContexts(material, http2=self._http2)
        self._tell({"type": "tls taken", "version": material.version})

    def take(self, descriptor: int | None) -> None:
        """Use what came in a packet from now on; without its descriptor (EMFILE), ask for it again."""
        if descriptor is None:
            asyncio.get_running_loop().call_later(descriptors.PAUSE, self._ask_again)
            return
        from serve_asgi.tls.material import TlsMaterial

        try:
            material = TlsMaterial.from_memfd(descriptor)
        except (OSError, ValueError) as error:
            log.error("what the listener sent for TLS cannot be read: %s", error, extra=about("tls_update_refused"))
            return
        if self.contexts is None:  # the application has not been imported yet
            self._waiting = material
            return
        try:
            self.contexts.update(material)
        except UsageError as error:
            self._tell({"type": "tls taken", "version": material.version, "trouble": str(error)})
        except OSError:  # EMFILE: OpenSSL reads it through a descriptor
            asyncio.get_running_loop().call_later(descriptors.PAUSE, self._ask_again)
        else:
            self._tell({"type": "tls taken", "version": material.version})

    def descriptors(self) -> list[int]:
        """The open descriptors: of the key log, in which are the secrets of connections."""
        key_log = None if self.contexts is None else self.contexts.key_log
        return [] if key_log is None else key_log.descriptors()

    def _ask_again(self) -> None:
        if descriptors.available():
            self._tell({"type": "tls lost"})
        else:
            asyncio.get_running_loop().call_later(descriptors.PAUSE, self._ask_again)
