"""The states of the server and its workers, by the names that status, metrics and the admin process tell."""

from __future__ import annotations

import enum
from typing import Final

OUTCOMES: Final = {"reload_finished": "done", "reload_refused": "refused"}
"""What became of a reload, by the record that tells its end."""


class WorkerState(enum.Enum):
    """Where one worker process is in its life, as the listener knows it."""

    PENDING = "pending"  # not started yet: others start first
    STARTING = "starting"  # process started; importing, lifespan startup
    READY = "ready"  # said ready; accepts nothing
    SWITCHING = "switching"  # told to serve, has not yet said that it accepts
    SERVING = "serving"
    RETIRING = "retiring"  # told to retire; ends by itself or at the graceful timeout
    ENDING = "ending"  # told to quit or killed; nothing is expected of it but its end
    GONE = "gone"  # reaped, or never started


class ServerState(enum.Enum):
    """Where the whole server is."""

    STARTING = "starting"  # no generation has been current yet; the ports do not listen
    OPENING = "opening"  # the first generation is ready, listen() is being called
    RUNNING = "running"
    DRAINING = "draining"  # TERM came; everything is served until the drain delay is over
    SHUTTING_OUT = "shutting out"  # new connections are kept out, handshakes under way complete
    AWAITING = "awaiting"  # nobody serves; a worker that is starting is awaited, to accept what the kernel has queued
    STOPPING = "stopping"  # the workers retire, then the agent finishes
    ENDING = "ending"  # the workers were told to quit at once, then the agent
    STOPPED = "stopped"
