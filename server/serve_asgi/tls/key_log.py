"""Where OpenSSL says the traffic secrets of a handshake: a key log (RFC 9850) in memory, of this process alone.

The standard library tells no secret but to the file of `SSLContext.keylog_filename`. So that file is a pipe: it has no
name, is closed on exec, and holds no more than the lines of one step of one handshake, as reading them takes them out.
Whoever could read it through /proc could read the memory of this process as well. (A memfd does it too, but has to be
emptied, which takes three times as long and loses what another handshake writes between the reading and that.)

Rules: a context that is attached does handshakes under the lock, and what they have written is taken before that is
released; nobody else would take it, and a pipe that is full would stop the next handshake. A key log is made by the
process that uses it, after any fork: two processes would take each other's lines.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
import threading
from typing import Final

READ_SIZE: Final = 4096
"""Bytes; one step of a handshake writes at most some 1,100."""


class KeyLog:
    """The key log of the contexts that are attached to it, and the lock under which a step of a handshake writes it."""

    _read_end: int
    _write_end: int
    lock: threading.Lock
    """Held from before a step of a handshake until its lines are taken, as other threads may do handshakes too."""

    def __init__(self) -> None:
        """Raises OSError if there are no descriptors."""
        if sys.platform != "linux":
            raise NotImplementedError
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.lock = threading.Lock()

    def attach(self, context: ssl.SSLContext) -> None:
        """Have the handshakes of this context write here. Raises OSError where /proc is missing."""
        context.keylog_filename = f"/proc/self/fd/{self._write_end}"

    def take(self) -> bytes:
        """The lines that have been written, of which nothing remains; the lock is held."""
        try:
            lines = os.read(self._read_end, READ_SIZE)
        except BlockingIOError:
            return b""
        if len(lines) == READ_SIZE:
            lines += self.take()
        return lines

    def descriptors(self) -> list[int]:
        """All that this process has open of the pipe: the two ends, and one of each context that is attached."""
        pipe = os.fstat(self._read_end)
        found = []
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # such as the descriptor by which the directory was read
                if os.path.samestat(os.fstat(int(name)), pipe):
                    found.append(int(name))
        return found

    def close(self) -> None:
        """Let go of it, once no context that is attached is in use any more."""
        os.close(self._read_end)
        os.close(self._write_end)


def open_key_log() -> KeyLog | None:
    """A key log; None where that is impossible, so that each connection stays with OpenSSL, and cannot move."""
    if sys.platform != "linux":
        return None
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
