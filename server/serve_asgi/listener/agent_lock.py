"""Where the agents' lock of a server lies: the same path for the next server of the same addresses.

Two servers cannot listen at one address at the same time, so that nobody else has the lock of these addresses but the
server that was here before, of which an agent may be left (`serve_asgi.agent_process.lease`). Port 0 is no address: the
ports that it became are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable

from serve_asgi.errors import UsageError
from serve_asgi.ipc import control_protocol


def agent_lock(addresses: Iterable[str]) -> str:
    """The path of the lock's file, in the runtime directory, which is made if need be. Raises UsageError."""
    try:
        directory = control_protocol.runtime_directory()
    except OSError as error:
        raise UsageError(
            f"there is no directory for the agent's lock ({error.strerror or error}): set XDG_RUNTIME_DIR to one that "
            "belongs to this user alone"
        ) from None
    names = "\n".join([str(os.geteuid()), *sorted(addresses)])
    return str(directory / f"agent-{hashlib.sha256(names.encode()).hexdigest()[:16]}.lock")


def clear_away(addresses: Iterable[str]) -> None:
    """Remove the lock's file, unless an agent has the lock: one of an earlier server, since ours have been reaped.

    To be called while the addresses are still ours, so that no agent of the next server waits for this very file, and
    while no process of ours is or begins to be an agent: it opens the file long before it locks it.
    """
    with contextlib.suppress(OSError, UsageError):
        path = agent_lock(addresses)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)
