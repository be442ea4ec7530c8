"""Where OpenSSL says the traffic secrets of a handshake: a key log (RFC 9850) in memory, of this process alone.

The standard library tells no secret but to `SSLContext.keylog_filename`. So that file is a memfd: it has no name, is
closed on exec, and is emptied as soon as the lines of one step of one handshake have been read, so that it never holds
more than those. Whoever could read it through /proc could read the memory of this process as well.
"""

from __future__ import annotations

import os
import ssl
import threading
from typing import Final

READ_SIZE: Final = 1 << 16


class KeyLog:
    """The key log of the contexts that are attached to it, and the lock under which a step of a handshake writes it."""

    def __init__(self) -> None:
        """Raises OSError where there is no memfd (an old kernel, a sandbox)."""
        self._descriptor = os.memfd_create("tls-key-log", os.MFD_CLOEXEC)
        self.lock = threading.Lock()
        """Held from before a step of a handshake until its lines are taken, as other threads may do handshakes too."""

    def attach(self, context: ssl.SSLContext) -> None:
        """Have the handshakes of this context write here. Raises OSError where /proc is missing."""
        with self.lock:
            context.keylog_filename = f"/proc/self/fd/{self._descriptor}"  # which opens it to append (O_APPEND)
            self._empty()  # a heading that OpenSSL's users expect

    def take(self) -> bytes:
        """The lines that have been written, of which nothing remains; the lock is held."""
        lines = os.pread(self._descriptor, READ_SIZE, 0)
        if lines:
            if len(lines) == READ_SIZE:
                while more := os.pread(self._descriptor, READ_SIZE, len(lines)):
                    lines += more
            self._empty()
        return lines

    def _empty(self) -> None:
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Let go of it; contexts that are attached keep it open for themselves."""
        os.close(self._descriptor)


def open_key_log() -> KeyLog | None:
    """A key log; None where that is impossible, so that each connection stays with OpenSSL, and cannot move."""
    try:
        key_log = KeyLog()
    except OSError:
        return None
    try:
        key_log.attach(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    except OSError:  # no /proc
        key_log.close()
        return None
    return key_log


def secret_of(lines: bytes, label: bytes, client_random: bytes) -> bytes | None:
    """The secret with this label (CLIENT_TRAFFIC_SECRET_0, …) of the connection with this random, if it is there."""
    prefix = b"%b %b " % (label, client_random.hex().encode())
    start = lines.find(prefix)
    if start < 0 or (start and lines[start - 1] != 0x0A):
        return None
    start += len(prefix)
    return bytes.fromhex(lines[start : lines.index(b"\n", start)].decode())
