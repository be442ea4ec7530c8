"""The states of the server, its workers and its deploys, with their names in status, metrics and the admin process."""

from __future__ import annotations

import enum
from typing import Final

OUTCOMES: Final = {"reload_finished": "done", "reload_refused": "refused", "rollback_finished": "rolled_back"}
"""The outcome of a reload or a roll-back, by the name of the event that ends it."""


class WorkerState(enum.Enum):
    """The states of one worker process, as the listener knows it."""

    PENDING = "pending"  # not started yet: others start first
    STARTING = "starting"  # process started; importing, lifespan startup
    READY = "ready"  # reported ready; does not accept yet
    SWITCHING = "switching"  # told to serve, has not confirmed that it accepts
    SERVING = "serving"
    STANDING_DOWN = "standing down"  # told to stand by; hands its connections over and finishes its requests before
    STANDBY = "standby"  # without connections, its application up: a roll-back has it serve again
    RETIRING = "retiring"  # told to retire; exits by itself, or at the graceful timeout
    ENDING = "ending"  # told to quit, or killed; only its end is awaited
    GONE = "gone"  # reaped, or never started


class ServerState(enum.Enum):
    """The states of the whole server."""

    STARTING = "starting"  # no generation has been current yet; the sockets do not listen
    OPENING = "opening"  # the first generation is ready, listen() is being called
    RUNNING = "running"
    DRAINING = "draining"  # TERM has arrived; everything is served until the drain delay is over
    SHUTTING_OUT = "shutting out"  # new connections are kept out, handshakes under way complete
    AWAITING = "awaiting"  # no worker serves; waiting for a starting one, to accept the kernel's queue
    STOPPING = "stopping"  # the workers retire, then the agent finishes
    ENDING = "ending"  # the workers were told to quit at once, then the agent
    STOPPED = "stopped"


class DeployOutcome(enum.Enum):
    """How a deploy ended, or `UNDER_WAY` and `TRIAL`. The values are members of `serve deploys --json` and labels."""

    UNDER_WAY = "under_way"
    TRIAL = "trial"  # the canary serves its share
    STARTED = "started"
    DONE = "done"
    PROMOTED = "promoted"  # after a trial as a canary
    INCONCLUSIVE = "inconclusive"  # promoted after a trial that had too few requests to tell
    ROLLED_BACK = "rolled_back"  # the version before serves again
    REFUSED = "refused"
    TAKEN_BACK = "taken_back"  # the trial has found it to be bad
    SUPERSEDED = "superseded"  # another one was requested before its end
    GIVEN_UP = "given_up"  # the server was stopped before its end


OPEN_DEPLOYS: Final = frozenset({DeployOutcome.UNDER_WAY, DeployOutcome.TRIAL})
"""Of deploys that have not ended."""
