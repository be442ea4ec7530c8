"""The agents: which process has the lease, and how it passes from one to the next. Part of the supervisor.

At most one agent has the lease (`LEASED`), from the moment it is told to enter until it has been reaped: nothing that
it reports ends the lease, since only a dead process certainly does nothing. The supervisor says which generation's
agent is to have it (`tend`), and everything follows from comparing that with the actual state: an agent in the way is
ended, a missing one is started, a prepared one is entered once the lease is free. Pure, as the supervisor is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Final

from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import (
    AT_WORK,
    COMING,
    END_TIMEOUT,
    LEASED,
    STANDING,
    Agent,
    AgentRestart,
    AgentState,
    Cause,
    Generation,
    hint_at_death,
)
from serve_asgi.supervisor.restart_backoff import RestartBackoff

LEASE_GRACE: Final = 2.5
"""Seconds that an agent has to end when the fleet's lease is lost: less than `serve_asgi.hub.agent_lease.GRACE`, after
which another server may get it."""


class Agents:
    """All agents of one server that have not been reaped."""

    def __init__(self, do: Callable[[actions.Action], None], number: Callable[[], int], *, leased: bool = True) -> None:
        """`do` takes actions, `number()` returns a number for a new process; `leased`: no other server has agents."""
        self._do = do
        self._number = number
        self.all: dict[int, Agent] = {}
        self.restart = RestartBackoff()
        """When the current generation's agent is restarted, and what its trouble was."""
        self.missing = False
        """One that was active has failed or returned, and no other has become active since."""
        self.vacant_since = -math.inf
        """When the last one stopped being active (it was told to finish, failed or died)."""
        self.leased = leased
        """This server may have an active agent: it has the lease of the fleet's, or there is no fleet."""
        self.token = 0
        """The fencing token of that lease."""
        self._hurried = False
        """The server stops quickly: agents have at most `END_TIMEOUT` to finish."""

    # State

    def of(self, generation: Generation, *states: AgentState) -> Agent | None:
        """The agent of this generation in one of these states."""
        return next((a for a in self.all.values() if a.generation is generation and a.state in states), None)

    def holder(self) -> Agent | None:
        """The agent that has the lease."""
        return next((agent for agent in self.all.values() if agent.state in LEASED), None)

    def is_prepared(self, generation: Generation) -> bool:
        """Whether the lease can pass to this generation's agent, or it is to have none."""
        return not generation.policy.agent or self.of(generation, AgentState.PREPARED) is not None

    def has_passed(self, generation: Generation) -> bool:
        """Whether this generation's agent is active, or no agent is, if it is to have none."""
        if not generation.policy.agent:
            return self.holder() is None
        waits = not self.leased and self.holder() is None and self.is_prepared(generation)
        return waits or self.of(generation, *AT_WORK) is not None

    def could_be_active(self) -> bool:
        """Whether an agent is active or waits for nothing but the lease: whether this server needs the fleet's."""
        return any(agent.state in LEASED or agent.state is AgentState.PREPARED for agent in self.all.values())

    def is_given_up(self) -> bool:
        """Whether one was lost that is not started again before a reload."""
        return self.restart.not_before == math.inf

    def next_deadline(self, now: float, holder: Generation | None) -> float:
        """When something has to be done if nothing happens before; `holder` as last given to `tend`."""
        deadline = min((agent.deadline for agent in self.all.values()), default=math.inf)
        if holder is not None and self._is_to_start(holder, True) and self.restart.not_before > now:
            deadline = min(deadline, self.restart.not_before)
        return deadline

    # Requests of the supervisor

    def tend(self, now: float, holder: Generation | None, preparing: Generation | None, again: bool) -> None:
        """Have the agent of `holder` active, that of `preparing` prepared, and no other.

        `again`: `holder` has had an agent before, which one that is started now replaces.
        """
        for agent in list(self.all.values()):
            if agent.generation is not holder and (agent.generation is not preparing or agent.state in LEASED):
                self._let_go(agent, now, "stop" if holder is None else "reload")
        if holder is not None and self._is_to_start(holder, again) and self.restart.not_before <= now:
            if (returned := self.of(holder, AgentState.RETURNED)) is not None:
                self._let_go(returned, now, "returned")
            cause = Cause.CRASH if self.restart.trouble else Cause.RETURN
            self._start(holder, cause if again else Cause.GENERATION, now)
        if preparing is not None and self._is_missing(preparing):
            self._start(preparing, Cause.GENERATION, now)
        coming = None if holder is None else self.of(holder, AgentState.PREPARED)
        if coming is not None and self.leased and self.holder() is None:
            policy = coming.generation.policy  # a killed server's agent may take its agent timeout to end
            coming.become(AgentState.ENTERING, now + policy.startup_timeout + policy.agent_timeout)
            self._do(actions.TellEnter(coming, self.token))

    def begin_anew(self, generation: Generation) -> None:
        """`generation` is current from here on; none of its agents has been lost, though one may have returned."""
        self.restart = RestartBackoff()
        self._set_missing(self.of(generation, AgentState.RETURNED) is not None)

    def lease_changed(self, token: int, now: float) -> None:
        """This server has got the fleet's lease, or lost it: then its agent has `LEASE_GRACE` to end, and is killed."""
        self.leased, self.token = token != 0, token
        for agent in [] if self.leased else list(self.all.values()):
            if agent.state in LEASED:
                self._let_go(agent, now, "lease lost")
                agent.deadline = min(agent.deadline, now + LEASE_GRACE)

    def hold(self, now: float) -> None:
        """The workers are leaving: the lease stays where it is until they have left, and passes to nobody."""
        for agent in list(self.all.values()):
            if agent.state in COMING:
                self._let_go(agent, now, "stop")

    def hurry(self, now: float) -> None:
        """A quick stop: agents that finish have less time, also those that do already."""
        self._hurried = True
        for agent in self.all.values():
            if agent.state is AgentState.FINISHING:
                agent.deadline = min(agent.deadline, now + END_TIMEOUT)

    def kill_all(self, why: str) -> None:
        """Kill all that are left."""
        for agent in list(self.all.values()):
            self._kill(agent, why)

    def reopen(self) -> None:
        """Have them reopen their log files."""
        for agent in self.all.values():
            if agent.state not in (AgentState.ENDING, AgentState.KILLED):
                self._do(actions.TellReopen(agent))

    # Reports of the agents; a returned text says why a wanted agent is missing

    def prepared(self, agent: Agent) -> None:
        """The agent can begin."""
        if agent.state is AgentState.STARTING:
            agent.become(AgentState.PREPARED)
            self._say_of(agent, logging.DEBUG, "agent_prepared", f"{agent} is prepared")

    def waits(self, agent: Agent, holder: int) -> None:
        """The agent waits for another server's."""
        if agent.state is AgentState.ENTERING:
            who = f", PID {holder}," if holder else ""
            agent.in_the_way = f"an earlier server's agent{who} has not ended"
            text = f"{agent} waits: {agent.in_the_way}"
            self._say_of(agent, logging.WARNING, "agent_delayed", text, holder=holder)

    def entered(self, agent: Agent, now: float) -> None:
        """The agent is active."""
        if agent.state is not AgentState.ENTERING:
            return
        agent.become(AgentState.ACTIVE)
        agent.active_since = now
        self.restart.trouble = ""
        self._set_missing(False)
        vacant = now - self.vacant_since
        about: dict[str, Any] = {"cause": agent.cause.value}
        text = f"{agent} is active"
        if vacant < math.inf:
            about["vacant"] = round(vacant, 4)
            text += f", {vacant:.3f} s after the previous one was"
        self._say_of(agent, logging.INFO, "agent_activated", text, **about)

    def returned(self, agent: Agent, now: float) -> None:
        """Its function has returned: it is missing, and perhaps called again after a while, in another process."""
        if agent.state is not AgentState.ACTIVE:
            return
        agent.become(AgentState.RETURNED)
        self._set_missing(True)
        about: dict[str, Any] = {}
        text = "and is not called again before a reload: its process stays for messages and schedules only"
        if agent.generation.policy.agent_restart == AgentRestart.ALWAYS:
            about["delay"] = delay = self.restart.failed(now, now - agent.active_since, "")
            text = f"and another is started {_in(delay)} (--agent-restart always)"
        text = (
            f"{agent} has returned, {text}. If it should still run, find out why it returned; if it has nothing else "
            "to do, end it with `await retiring.wait()`"
        )
        self._say_of(agent, logging.WARNING, "agent_returned", text, **about)

    def failed(self, agent: Agent, now: float) -> bool:
        """It reports that it failed, and exits by itself. Returns True if it was wanted."""
        wanted = agent.state in STANDING
        if agent.state in COMING:
            agent.become(AgentState.ENDING, now + END_TIMEOUT)
        elif wanted:
            self._vacate(agent, now)
            agent.become(AgentState.FINISHING, now + END_TIMEOUT)
        agent.reason = agent.reason or "failed"
        return wanted

    def blocked(self, agent: Agent, now: float) -> bool:
        """Its loop is blocked: have it finish, though it will most likely be killed. Returns True if it was wanted."""
        if agent.state not in AT_WORK:
            return False
        self._let_go(agent, now, "blocked")
        return True

    def finished(self, agent: Agent) -> None:
        """It has ended normally."""
        agent.finished = True
        self._say_of(agent, logging.INFO, "agent_finished", f"{agent} has finished", reason=agent.reason)

    def died(self, agent: Agent, how: str, now: float) -> str:
        """It has been reaped: if it had the lease, the lease is free."""
        before = agent.state
        if before in STANDING:
            self._vacate(agent, now)
        agent.become(AgentState.GONE)
        del self.all[agent.id]
        hint = hint_at_death(how, agent.stuck)
        how += f" ({agent.stuck})" if agent.stuck else ""
        about = {"reason": how, "how": how, "state": before.value}
        if before in AT_WORK:
            text = f"{agent} died: {how}{hint}"
            self._say_of(agent, logging.ERROR, "agent_died", text, **about)
            return f"it died: {how}"
        if before in STANDING:
            text = f"{agent} died before it was active: {how}"
            self._say_of(agent, logging.DEBUG, "agent_died", text, **about)
            return f"it died before it was active: {how}"
        if before is AgentState.FINISHING and not agent.finished and agent.reason != "failed":
            text = f"{agent} ended before it had finished: {how}"
            self._say_of(agent, logging.WARNING, "agent_died", text, **about)
        return ""

    def overdue(self, now: float) -> list[tuple[Agent, str]]:
        """Kill those whose state has lasted too long; return those that were wanted, and why they are missing."""
        missed = []
        for agent in [a for a in self.all.values() if now >= a.deadline]:
            before, policy, why = agent.state, agent.generation.policy, "it had not ended in time"
            if before is AgentState.STARTING:
                why = f"it was not prepared after {policy.startup_timeout:g} s (--startup-timeout)"
            elif before is AgentState.ENTERING:
                allowed = policy.startup_timeout + policy.agent_timeout
                why = f"it was not active {allowed:g} s after it was told to begin (--startup-timeout, --agent-timeout)"
                why += f"; {agent.in_the_way}" if agent.in_the_way else ""
            elif before is AgentState.FINISHING and agent.reason != "failed":
                option = "--agent-timeout" if self._allowed(agent) == policy.agent_timeout else "quick stop"
                why = f"it had not finished after {self._allowed(agent):g} s ({option})"
            if before in STANDING:
                self._vacate(agent, now)
                missed.append((agent, why))
            self._kill(agent, why)
        return missed

    def lost(self, agent: Agent, trouble: str, detail: str, now: float | None) -> None:
        """A wanted agent is missing: another one is started, with a delay if this happens repeatedly.

        `now`: None if no other is to be started.
        """
        about: dict[str, Any] = {"reason": trouble}
        then = "the server stops"
        if now is not None:
            self._set_missing(True)
            active = now - agent.active_since if agent.active_since < math.inf else None
            delay = self.restart.failed(now, active, trouble)
            if agent.generation.policy.agent_restart == AgentRestart.NEVER:
                self.restart.not_before = math.inf
                then = "none is started before a reload (--agent-restart never), the workers serve on"
            else:
                about["delay"] = delay
                then = f"another is started {_in(delay)}, the workers serve on"
        self._say_of(agent, logging.ERROR, "agent_failed", f"{agent} is lost; {then}: {trouble}", detail, **about)

    # Helpers

    def _is_missing(self, generation: Generation) -> bool:
        return generation.policy.agent and self.of(generation, *STANDING) is None

    def _is_to_start(self, generation: Generation, again: bool) -> bool:
        """Whether one is to be started when the back-off is over; `again` as for `tend`."""
        replaces_returned = again and generation.policy.agent_restart == AgentRestart.ALWAYS
        returned = replaces_returned and self.of(generation, AgentState.RETURNED) is not None
        return returned or self._is_missing(generation)

    def _set_missing(self, missing: bool) -> None:
        if missing is not self.missing:
            self.missing = missing
            self._do(actions.SetAgentMissing(missing))

    def _start(self, generation: Generation, cause: Cause, now: float) -> None:
        agent = Agent(self._number(), generation, cause, deadline=now + generation.policy.startup_timeout)
        self.all[agent.id] = agent
        self._do(actions.StartAgent(agent))
        text = f"{agent} starts ({cause.value})"
        self._say_of(agent, logging.DEBUG, "agent_started", text, cause=cause.value)

    def _allowed(self, agent: Agent) -> float:
        """Seconds that it has to finish."""
        timeout = agent.generation.policy.agent_timeout
        if not self.leased:
            timeout = min(timeout, LEASE_GRACE)
        return min(timeout, END_TIMEOUT) if self._hurried else timeout

    def _let_go(self, agent: Agent, now: float, reason: str) -> None:
        """End an agent that has not begun, have one finish that has; others are ending already."""
        if agent.state in COMING:
            agent.become(AgentState.ENDING, now + agent.generation.end_timeout)
            self._do(actions.TellQuit(agent))
        elif agent.state in STANDING:
            self._vacate(agent, now)
            timeout = self._allowed(agent)
            agent.become(AgentState.FINISHING, now + timeout)
            agent.reason = reason
            self._do(actions.TellFinish(agent, reason, timeout))
            self._say_of(
                agent, logging.DEBUG, "agent_finish_requested", f"{agent} is to finish ({reason})", reason=reason
            )

    def _kill(self, agent: Agent, why: str) -> None:
        agent.stuck = why
        self._do(actions.Kill(agent, why))
        if agent.state in COMING:
            agent.become(AgentState.ENDING)
        elif agent.state in LEASED and agent.state is not AgentState.KILLED:
            agent.become(AgentState.KILLED)
        agent.deadline = math.inf

    def _vacate(self, agent: Agent, now: float) -> None:
        if agent.state in AT_WORK:
            self.vacant_since = now

    def _say_of(self, agent: Agent, level: int, event: str, text: str, detail: str = "", **about: Any) -> None:
        who = {"worker": agent.id, "generation": agent.generation.number}
        self._do(actions.LogEvent(level, event, text, detail, who | about))


def _in(delay: float) -> str:
    """After how many seconds, in words."""
    return f"in {delay:g} s" if delay else "now"
