"""The lifecycles of worker, agent, generation and server, each an enum and a table of transitions.

Every change of such a state goes through `advance`, which refuses what is not in the table: a wrong transition is a bug
in the supervisor, not an event. Nothing here knows of processes, sockets or clocks.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import ClassVar, Final, TypeAlias, TypeVar

from serve_asgi.ipc.lifecycle_states import ServerState as ServerState
from serve_asgi.ipc.lifecycle_states import WorkerState as WorkerState

WORKER_TRANSITIONS: Final[Mapping[WorkerState, frozenset[WorkerState]]] = {
    WorkerState.PENDING: frozenset({WorkerState.STARTING, WorkerState.GONE}),
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.ENDING, WorkerState.GONE}),
    WorkerState.READY: frozenset({WorkerState.SWITCHING, WorkerState.ENDING, WorkerState.GONE}),
    WorkerState.SWITCHING: frozenset({WorkerState.SERVING, WorkerState.RETIRING, WorkerState.ENDING, WorkerState.GONE}),
    WorkerState.SERVING: frozenset(
        {WorkerState.STANDING_DOWN, WorkerState.RETIRING, WorkerState.ENDING, WorkerState.GONE}
    ),
    WorkerState.STANDING_DOWN: frozenset(
        {WorkerState.STANDBY, WorkerState.SWITCHING, WorkerState.RETIRING, WorkerState.ENDING, WorkerState.GONE}
    ),
    WorkerState.STANDBY: frozenset({WorkerState.SWITCHING, WorkerState.RETIRING, WorkerState.ENDING, WorkerState.GONE}),
    WorkerState.RETIRING: frozenset({WorkerState.ENDING, WorkerState.GONE}),
    WorkerState.ENDING: frozenset({WorkerState.GONE}),
    WorkerState.GONE: frozenset(),
}

UP: Final = frozenset(
    {WorkerState.PENDING, WorkerState.STARTING, WorkerState.READY, WorkerState.SWITCHING, WorkerState.SERVING}
)
"""States in which a worker fills its slot."""
WARM: Final = frozenset({WorkerState.STANDING_DOWN, WorkerState.STANDBY})
"""States from which a worker can serve again at once."""
HANDING_OVER: Final = frozenset({WorkerState.RETIRING, WorkerState.STANDING_DOWN})
"""States in which a worker hands its connections over."""


class AgentRestart(enum.StrEnum):
    """When an agent is started again before the next reload (`--agent-restart`)."""

    NEVER = "never"
    ON_FAILURE = "on-failure"  # it raises, dies, does not start in time, or its loop is blocked
    ALWAYS = "always"  # also when its function returns


class AgentState(enum.Enum):
    """The states of one agent process. It has the lease from ENTERING until it has been reaped."""

    STARTING = "starting"  # process started; importing, prepare()
    PREPARED = "prepared"  # ready; its work has not begun
    ENTERING = "entering"  # it has the lease and has been told to begin
    ACTIVE = "active"
    RETURNED = "returned"  # its function has returned; its messages and schedules continue
    FINISHING = "finishing"  # told to finish, or failed: it exits by itself, or is killed at the deadline
    KILLED = "killed"  # it keeps the lease until it has been reaped
    ENDING = "ending"  # it never had the lease, and was told to quit, or killed
    GONE = "gone"  # reaped, or never started


AGENT_TRANSITIONS: Final[Mapping[AgentState, frozenset[AgentState]]] = {
    AgentState.STARTING: frozenset({AgentState.PREPARED, AgentState.ENDING, AgentState.GONE}),
    AgentState.PREPARED: frozenset({AgentState.ENTERING, AgentState.ENDING, AgentState.GONE}),
    AgentState.ENTERING: frozenset({AgentState.ACTIVE, AgentState.FINISHING, AgentState.KILLED, AgentState.GONE}),
    AgentState.ACTIVE: frozenset({AgentState.RETURNED, AgentState.FINISHING, AgentState.KILLED, AgentState.GONE}),
    AgentState.RETURNED: frozenset({AgentState.FINISHING, AgentState.KILLED, AgentState.GONE}),
    AgentState.FINISHING: frozenset({AgentState.KILLED, AgentState.GONE}),
    AgentState.KILLED: frozenset({AgentState.GONE}),
    AgentState.ENDING: frozenset({AgentState.GONE}),
    AgentState.GONE: frozenset(),
}

COMING: Final = frozenset({AgentState.STARTING, AgentState.PREPARED})
"""States of an agent that does not have the lease yet."""
AT_WORK: Final = frozenset({AgentState.ACTIVE, AgentState.RETURNED})
"""States of an agent that others can send messages to, and that is not leaving."""
LEASED: Final = AT_WORK | {AgentState.ENTERING, AgentState.FINISHING, AgentState.KILLED}
"""States of an agent that has the lease: never two at once."""
STANDING: Final = COMING | AT_WORK | {AgentState.ENTERING}
"""States of an agent that needs no replacement."""


class GenerationState(enum.Enum):
    """The states of a generation: it becomes current as a whole, or not at all."""

    STARTING_CANARY = "starting canary"  # its first workers are not ready, which are to serve on trial
    CANARY = "canary"  # they serve a share of the traffic on trial
    HELD = "held"  # the trial is over without a verdict: they serve on until an operator decides
    STARTING = "starting"  # not every worker is ready, or the agent not prepared
    PASSING = "passing"  # all ready; the old agent finishes, then the new one enters
    SWITCHING = "switching"  # all ready and told to serve; not all accept yet
    CURRENT = "current"
    STANDBY = "standby"  # a newer one is current; its workers stay for a roll-back (`--keep-previous`)
    RETURNING = "returning"  # a roll-back: its workers were told to serve again; not all accept yet
    RETIRING = "retiring"  # another one is current
    FAILED = "failed"  # never became current; its processes are ending
    GONE = "gone"  # no process is left


GENERATION_TRANSITIONS: Final[Mapping[GenerationState, frozenset[GenerationState]]] = {
    GenerationState.STARTING_CANARY: frozenset({GenerationState.CANARY, GenerationState.FAILED}),
    GenerationState.CANARY: frozenset({GenerationState.HELD, GenerationState.STARTING, GenerationState.FAILED}),
    GenerationState.HELD: frozenset({GenerationState.STARTING, GenerationState.FAILED}),
    GenerationState.STARTING: frozenset({GenerationState.PASSING, GenerationState.SWITCHING, GenerationState.FAILED}),
    GenerationState.PASSING: frozenset({GenerationState.SWITCHING, GenerationState.FAILED}),
    GenerationState.SWITCHING: frozenset({GenerationState.CURRENT, GenerationState.FAILED}),
    GenerationState.CURRENT: frozenset({GenerationState.STANDBY, GenerationState.RETIRING}),
    GenerationState.STANDBY: frozenset({GenerationState.RETURNING, GenerationState.RETIRING}),
    GenerationState.RETURNING: frozenset({GenerationState.CURRENT, GenerationState.RETIRING}),
    GenerationState.RETIRING: frozenset({GenerationState.GONE}),
    GenerationState.FAILED: frozenset({GenerationState.GONE}),
    GenerationState.GONE: frozenset(),
}

ON_TRIAL: Final = frozenset({GenerationState.STARTING_CANARY, GenerationState.CANARY, GenerationState.HELD})
"""States of a candidate of which nothing is decided yet: the current generation has the agent and the schedules."""


SERVER_TRANSITIONS: Final[Mapping[ServerState, frozenset[ServerState]]] = {
    ServerState.STARTING: frozenset({ServerState.OPENING, ServerState.STOPPING, ServerState.ENDING}),
    ServerState.OPENING: frozenset({ServerState.RUNNING, ServerState.STOPPING, ServerState.ENDING}),
    ServerState.RUNNING: frozenset({ServerState.DRAINING, ServerState.SHUTTING_OUT, ServerState.ENDING}),
    ServerState.DRAINING: frozenset({ServerState.SHUTTING_OUT, ServerState.ENDING}),
    ServerState.SHUTTING_OUT: frozenset({ServerState.AWAITING, ServerState.ENDING}),
    ServerState.AWAITING: frozenset({ServerState.STOPPING, ServerState.ENDING}),
    ServerState.STOPPING: frozenset({ServerState.ENDING, ServerState.STOPPED}),
    ServerState.ENDING: frozenset({ServerState.STOPPED}),
    ServerState.STOPPED: frozenset(),
}

BEFORE_RUNNING: Final = frozenset({ServerState.STARTING, ServerState.OPENING})
RELOADABLE: Final = BEFORE_RUNNING | {ServerState.RUNNING}
"""States in which a reload may be requested."""
SERVING: Final = frozenset({ServerState.RUNNING, ServerState.DRAINING, ServerState.SHUTTING_OUT})
"""States in which every slot is to be filled: all traffic is served, even in the delay before a stop."""
LEAVING: Final = frozenset({ServerState.STOPPING, ServerState.ENDING})
"""States in which only the end of the processes is awaited."""

State = TypeVar("State", WorkerState, AgentState, GenerationState, ServerState)


class IllegalTransition(AssertionError):
    """The supervisor tried a transition that is not in the table."""


def advance(table: Mapping[State, frozenset[State]], old: State, new: State) -> State:
    """Return `new` if the table allows the transition from `old`; raise IllegalTransition otherwise."""
    if new not in table[old]:
        raise IllegalTransition(f"{type(old).__name__}: {old.value} cannot become {new.value}")
    return new


class Cause(enum.Enum):
    """Why a worker or an agent is started."""

    GENERATION = "generation"  # with all the others of its generation
    CRASH = "crash"  # replaces one that died
    RECYCLE = "recycle"  # replaces one that retires once this one accepts
    BLOCKED = "blocked"  # replaces one whose event loop is blocked, which retires once this one accepts
    SCALE = "scale"  # for a new slot
    RETURN = "return"  # an agent: replaces one that returned, or finished for a reload that failed or was rolled back


END_TIMEOUT: Final = 5.0
"""Seconds from being told to quit, or failing, to SIGKILL."""
SUPERSEDED_TIMEOUT: Final = 0.5
"""The same for a process whose generation was given up for the next one: saves may come faster than starts."""


def hint_at_death(how: str, stuck: str) -> str:
    """What to look at first after a death that nobody has asked for, as the end of a sentence; "" if nothing is known.

    `stuck` is why the server itself has killed the process, or "".
    """
    return "; perhaps out of memory: see dmesg" if how == "signal SIGKILL" and not stuck else ""


def counted(number: int, thing: str) -> str:
    """A number of things, in words: "1 request", "2 requests"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """The options that the supervisor needs; all times in seconds."""

    workers: int
    start_concurrency: int
    max_generations: int
    startup_timeout: float
    graceful_timeout: float
    shutdown_timeout: float
    drain_delay: float
    agent: bool = False  # whether there is to be one
    agent_timeout: float = 10.0
    agent_restart: str = AgentRestart.ON_FAILURE.value
    agent_in_fleet: bool = False  # one server of several has an agent, and this one needs a lease for it
    agent_required: bool = False  # whether the health endpoint fails while it is missing
    auto_rollback: bool = False  # whether it is watched after the switch, and rolled back if it is bad
    canary: bool = False  # whether a reload begins with a trial
    canary_share: float = 0.0  # of the traffic, below 1; 0: that of one worker
    canary_time: float = 60.0
    canary_latency: float = 0.0  # so many times slower is bad; 0: slower is only said
    canary_hold: bool = False  # what to do after a trial without a verdict: wait for an operator, or promote
    keep_previous: float = 0.0  # how long the generation before it stands by; 0: not at all


@dataclasses.dataclass(slots=True, eq=False)
class Generation:
    """All workers started together from one version of the code, and their replacements."""

    number: int
    policy: Policy
    size: int
    began: int  # the supervisor's event count at which its reload began, to compare with the drain's
    tickets: list[int]  # requests that wait for its outcome
    began_at: float  # CLOCK_MONOTONIC, s
    state: GenerationState = GenerationState.STARTING
    handed_over: int = 0  # connections that its workers handed over
    cut: int = 0  # requests of its workers that were cut
    superseded: bool = False  # it failed because a newer one was requested
    is_rollback: bool = False  # it became a candidate to take back the current one
    standby_until: float = math.inf  # CLOCK_MONOTONIC, s: when a generation that stands by retires

    @property
    def end_timeout(self) -> float:
        """Seconds that its processes have to exit when told to quit."""
        return SUPERSEDED_TIMEOUT if self.superseded else END_TIMEOUT

    def become(self, state: GenerationState) -> None:
        self.state = advance(GENERATION_TRANSITIONS, self.state, state)


@dataclasses.dataclass(slots=True, eq=False)
class Worker:
    """One worker process, from the decision to start it until it has been reaped."""

    id: int
    generation: Generation
    slot: int
    cause: Cause
    state: WorkerState = WorkerState.PENDING
    deadline: float = math.inf  # CLOCK_MONOTONIC, s: when the current state has lasted too long
    serving_since: float = math.inf
    can_stand_by: bool = False  # one of an earlier version cannot
    lends: bool = False  # it hands idle connections over to a canary
    recycling: str = ""  # why it requested to be replaced; it serves until its replacement accepts
    blocked: bool = False  # it is replaced because its event loop is blocked
    reason: str = ""  # why it retires
    finished: bool = False  # has reported that it has ended normally
    stuck: str = ""  # which deadline it missed when it was killed

    def become(self, state: WorkerState, deadline: float = math.inf) -> None:
        self.state = advance(WORKER_TRANSITIONS, self.state, state)
        self.deadline = deadline

    def __str__(self) -> str:
        return f"worker {self.slot} of generation {self.generation.number}"


@dataclasses.dataclass(slots=True, eq=False)
class Agent:
    """One agent process, from its start until it has been reaped."""

    id: int  # from the same sequence as the workers'
    generation: Generation
    cause: Cause
    state: AgentState = AgentState.STARTING
    deadline: float = math.inf  # CLOCK_MONOTONIC, s: when the current state has lasted too long
    active_since: float = math.inf
    reason: str = ""  # why it finishes
    in_the_way: str = ""  # who holds the lock that it waits for, while it enters
    finished: bool = False  # has reported that it has ended normally
    stuck: str = ""  # which deadline it missed when it was killed

    slot: ClassVar[int] = -1
    """It fills no slot."""

    def become(self, state: AgentState, deadline: float = math.inf) -> None:
        self.state = advance(AGENT_TRANSITIONS, self.state, state)
        self.deadline = deadline

    def __str__(self) -> str:
        return f"the agent of generation {self.generation.number}"


AppProcess: TypeAlias = Worker | Agent
"""A child of the listener's that runs the application's code."""
