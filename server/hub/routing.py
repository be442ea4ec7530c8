"""Where messages go: who gets a copy, when it is given, and what becomes of it when a process leaves.

It owns every message between its acceptance and the end of its handling. The rules:

- A sender is told that its message is accepted when each destination has a place for it (`server.hub.lanes`).
- Work and calls are given to a worker only while it has fewer messages of the topic in its hands than its handlers
  deal with at a time: none stands behind slow work, and an attempt counts only if it may have begun.
- What is in the hands of a process that dies is delivered again if the sender asked for that, and reported otherwise.
- What nobody will take is refused to the sender after `GRACE`; what was accepted and finds nobody any more for
  `STRANDED` is a dead letter.

Nothing here does I/O; frames are collected in `Outgoing` and flushed by `server.hub.messages`.
"""

from __future__ import annotations

import collections
import enum
import logging
import math
import random
from collections.abc import Callable, Iterable
from typing import Any, Final

from server.hub.hub import Hub, Member, Phase, Role
from server.hub.lanes import LIMIT, Budget, Copy, Kind, Send, Stage, Want
from server.hub.places import Desk, Outgoing, Place, Waiting

GRACE: Final = 1.0
"""Seconds that a message waits for a handler where all are up and none handles its topic."""
STRANDED: Final = 60.0
"""Seconds that an accepted message waits where nobody is there who might take it."""
DEAD: Final = "serve:dead"
"""The topic under which dead letters are delivered."""
TOPICS_NAMED: Final = 10
"""Topics that one record names, at most."""
LETTER_DELIVERIES: Final = 3
"""How often a dead letter is delivered, at most."""

OVER: Final = (Phase.RETIRING,)


class Had(enum.Enum):
    """What a message that looks for a process had before."""

    NONE = "none"
    PLACE = "place"  # in the queue of another one
    HANDS = "hands"  # another one had it, and has not begun with it


class Routing:
    """The messages of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.out = Outgoing(hub.port)
        self.budget = Budget()
        self.places: dict[int, Place] = {}
        self.pools: dict[str, Waiting] = {}
        """Work that waits for a worker, by topic."""
        self.vacant: dict[int, Waiting] = {}
        """What waits for a slot whose process has died and has no successor yet."""
        self.sends: dict[str, Send] = {}
        """Those whose sender has something to be told yet."""
        self.deliveries = 0
        self.counts = dict.fromkeys(("accepted", "given", "handled", "failed", "again", "dead", "lost"), 0)
        self._handlers: dict[str, dict[int, Desk]] = {}
        self._blocked: dict[Desk | Waiting, None] = {}
        """Whose lanes have copies without a place."""
        self._hopeless: dict[Desk | Waiting, None] = {}
        """Whose lanes nobody would take from."""
        self.retiring: dict[int, set[int]] = {}
        """Members that retire and may give back what is for their slot, by slot; what follows waits for that."""
        self._overrun = collections.Counter[str]()
        """Copies from other servers that had no place, by topic, not reported yet."""
        self._overrun_due = math.inf

    # Sending

    def offer(self, send: Send) -> None:
        """A message was sent."""
        if send.stage is not Stage.SETTLED:
            self.sends[send.id] = send
        if send.kind is Kind.COPY:
            self._offer_copies(send)
        elif send.kind is Kind.DIRECT:
            self._route(Copy(send))
        else:
            self._put(self._pool(send.topic), Copy(send))
        self._look_if_placed(send)

    def _offer_copies(self, send: Send) -> None:
        if self.hub.settings.shared and send.sender:
            send.missing += 1
            head = {"id": send.id, "topic": send.topic, "workers": send.slot >= 0, "origin": send.origin}
            self.hub.send_to_store("store.send", head, send.body)
        for place in self.places.values():
            if send.slot >= 0 and place.member.role is Role.AGENT:
                continue  # for workers alone
            phase = place.member.phase
            if phase is Phase.EXPECTED:
                if place.desk(send.topic, self.budget).lane.put_if_room(Copy(send)):
                    send.copies += 1
                else:
                    place.not_kept[send.topic] = place.not_kept.get(send.topic, 0) + 1
                continue
            desk = place.desks.get(send.topic)
            if desk is None or not desk.concurrency:
                continue
            if phase is not Phase.RETIRING and send.sender:
                send.copies += 1
                self._put(desk, Copy(send))
                continue
            if desk.lane.put_if_room(Copy(send)):
                send.copies += 1
                self._pump_desk(desk)
            elif not send.sender:  # another server's sender cannot be held up
                self._overrun[send.topic] += 1
                self._overrun_due = min(self._overrun_due, self.hub.clock() + GRACE)

    def _put(self, owner: Desk | Waiting, copy: Copy, had: Had = Had.NONE) -> None:
        """Have a copy wait with `owner`; what had a place elsewhere keeps one."""
        if had is Had.HANDS:
            owner.lane.put_back(copy)
        elif had is Had.PLACE:
            owner.lane.put_placed(copy)
        elif not owner.lane.put(copy):
            copy.send.missing += 1
            self._blocked[owner] = None
        if owner.lane.since is not None:
            self._hopeless[owner] = None
        self._pump(owner)

    def _look_if_placed(self, send: Send) -> None:
        """Tell the sender if every copy has a place now."""
        if send.missing or send.stage is not Stage.OFFERED:
            return
        self.counts["accepted"] += 1
        self.out.tell(send.sender, [send.id, "a", send.copies])
        if send.want is Want.PLACE:
            self._settle_send(send)
        else:
            send.stage = Stage.ACCEPTED

    def _settle_send(self, send: Send) -> None:
        send.stage = Stage.SETTLED
        self.sends.pop(send.id, None)

    def _fail(self, send: Send, code: str, text: str) -> None:
        if send.stage is not Stage.SETTLED:
            self.out.tell(send.sender, [send.id, "f", [code, text]])
            self._settle_send(send)

    def store_answered(self, id: str, trouble: str = "") -> None:
        """The other servers get a broadcast, or do not."""
        send = self.sends.get(id)
        if send is None:
            return
        send.missing -= 1
        if trouble:
            self._fail(send, "store", f"the other servers do not get it: {trouble}")
        else:
            self._look_if_placed(send)

    # Withdrawing

    def withdraw(self, ids: Iterable[str], member: int) -> None:
        """The senders wait no longer: what has no place is taken back, what is accepted stands."""
        sends = {s for id in ids if (s := self.sends.get(id)) is not None and s.sender == member}
        takers = self._take_back({send for send in sends if send.stage is Stage.OFFERED})
        for send in sends:
            if send.stage is Stage.OFFERED:
                names = ", ".join(takers.get(send, ())) or "the other servers"
                self._fail(send, "full", f"not taken in time by {names}")
            else:
                self._fail(send, "late", "it was accepted, but its handler has not ended in time")

    def _take_back(self, sends: set[Send]) -> dict[Send, list[str]]:
        """Take out their copies that have no place; return who did not take each."""
        found: dict[Send, list[str]] = {}
        if sends:
            for owner in list(self._blocked):
                for copy in owner.lane.take_offered(sends.__contains__):
                    found.setdefault(copy.send, []).append(str(owner))
        return found

    # Who gets it

    def _route(self, copy: Copy, had: Had = Had.NONE) -> None:
        """Find the process of the slot that a message is for: the one that serves, or the first that will."""
        send = copy.send
        there = [p for p in self.places.values() if p.is_for(send.slot) and p.member.phase not in OVER]
        place = next((p for p in there if p.member.phase is Phase.SERVING), there[0] if there else None)
        if place is not None:
            desk = place.desk(send.topic, self.budget)
            self._review_desk(desk)
            self._put(desk, copy, had)
            return
        vacant = self.vacant.get(send.slot)
        if vacant is None and send.slot < 0 and self.hub.settings.agent:
            vacant = self._vacate(send.slot)
        if vacant is not None:
            self._put(vacant, copy, had)
        elif send.slot < 0:
            self._refuse(copy, "this server has no agent: start it with --agent")
        else:
            self._refuse(copy, f"there is no worker {send.slot}")

    def _refuse(self, copy: Copy, text: str) -> None:
        """Nobody is there for it, and nobody will be."""
        if copy.send.stage is Stage.OFFERED:
            self._fail(copy.send, "nobody", text)
        else:
            self._dead(copy, text)

    def _vacate(self, slot: int) -> Waiting:
        waiting = self.vacant.setdefault(slot, Waiting(slot, self.budget))
        if waiting.lane.since is None:
            waiting.lane.since = self.hub.clock()
        return waiting

    def _pool(self, topic: str) -> Waiting:
        pool = self.pools.get(topic)
        if pool is None:
            pool = self.pools[topic] = Waiting(topic, self.budget)
            self._review_pool(pool)
        return pool

    # Giving

    def _pump(self, owner: Desk | Waiting) -> None:
        if isinstance(owner, Desk):
            self._pump_desk(owner)
        elif isinstance(owner.key, str):
            self._pump_pool(owner)

    def _pump_desk(self, desk: Desk) -> None:
        """Give what waits for one process, as far as it may have it."""
        placed = desk.lane.placed
        if not desk.concurrency:
            return
        while placed:
            send = placed[0].send
            if send.want is Want.ANSWER and send.stage is Stage.SETTLED:
                desk.lane.take()  # its caller has gone
                continue
            phase = desk.place.member.phase
            if phase is Phase.EXPECTED:
                return
            if send.kind is Kind.DIRECT and (phase is not Phase.SERVING or desk.place.slot in self.retiring):
                return
            if not desk.window_open or not self.hub.port.room(desk.place.member.id):
                return
            self._give(desk, desk.lane.take())

    def _pump_pool(self, pool: Waiting) -> None:
        """Give work to workers that have a hand free."""
        assert isinstance(pool.key, str)
        placed = pool.lane.placed
        while placed:
            send = placed[0].send
            if send.want is Want.ANSWER and send.stage is Stage.SETTLED:
                pool.lane.take()
                continue
            desk = self._free_desk(pool.key)
            if desk is None:
                return
            self._give(desk, pool.lane.take())
        if not pool.lane:
            self._forget_owner(pool)

    def _free_desk(self, topic: str) -> Desk | None:
        """The one with the fewest in its hands, any of those."""
        best: Desk | None = None
        least, ties = math.inf, 0
        for desk in self._handlers.get(topic, {}).values():
            member = desk.place.member
            if desk.held >= desk.concurrency or desk.held > least or desk.lane.placed:
                continue
            if member.phase is not Phase.SERVING or not (member.role is Role.WORKER or topic == DEAD):
                continue
            if not self.hub.port.room(member.id):
                continue
            ties = ties + 1 if desk.held == least else 1
            if ties == 1 or random.random() * ties < 1:
                best, least = desk, desk.held
        return best

    def _give(self, desk: Desk, copy: Copy) -> None:
        send = copy.send
        copy.attempt += 1
        self.deliveries += 1
        self.counts["given"] += 1
        desk.place.held[self.deliveries] = (desk, copy)
        desk.held += 1
        desk.bytes += len(send.body)
        entry = [self.deliveries, desk.topic, send.id, copy.attempt, int(send.kind), int(send.want), send.origin]
        self.out.give(desk.place.member.id, [*entry, send.subject], send.body)

    # What becomes of it

    def done(self, place: Place, delivery: int, ok: bool, body: bytes) -> None:
        """Its handler has ended; `body` is the answer to a call, or what went wrong."""
        if delivery not in place.held:
            return
        desk, copy = self._out_of_hands(place, delivery)
        send = copy.send
        self.counts["handled" if ok else "failed"] += 1
        if send.want is Want.SUCCESS and not ok:
            self._again(copy, "its handler raised")
        elif send.want is Want.ANSWER and send.stage is Stage.ACCEPTED:
            self.out.tell(send.sender, [send.id, "r" if ok else "x", None], body)
            self._settle_send(send)
        elif send.again and send.stage is Stage.ACCEPTED:
            member = place.member
            about = [copy.attempt, member.role.value, member.slot, member.generation]
            self.out.tell(send.sender, [send.id, "h", about])
            self._settle_send(send)
        self._pump_topic(desk)

    def back(self, place: Place, delivery: int) -> None:
        """The process has not begun with it, and will not."""
        if delivery not in place.held:
            return
        desk, copy = self._out_of_hands(place, delivery)
        copy.attempt -= 1
        if copy.send.kind is Kind.WORK:
            self._pool_again(copy)
        elif copy.send.kind is Kind.DIRECT:
            self._route(copy, Had.HANDS)
        self._pump_topic(desk)

    def gave_back(self, place: Place) -> None:
        """A process that retires has given back all that it had not begun: its successor may get what follows."""
        slot = place.slot
        self.retiring.get(slot, set()).discard(place.member.id)
        if not self.retiring.get(slot):
            self.retiring.pop(slot, None)
            for other in self.places.values():
                if other.is_for(slot):
                    self.pump_place(other)

    def _out_of_hands(self, place: Place, delivery: int) -> tuple[Desk, Copy]:
        desk, copy = place.held.pop(delivery)
        desk.held -= 1
        desk.bytes -= len(copy.send.body)
        return desk, copy

    def _pump_topic(self, desk: Desk) -> None:
        self._pump_desk(desk)
        if (pool := self.pools.get(desk.topic)) is not None:
            self._pump_pool(pool)
        desk.place.tidy(desk)

    def _again(self, copy: Copy, why: str) -> None:
        """Deliver it once more, unless that has been done often enough."""
        if copy.attempt >= copy.send.limit:
            self._dead(copy, why)
        else:
            self.counts["again"] += 1
            self._pool_again(copy)

    def _pool_again(self, copy: Copy) -> None:
        pool = self._pool(copy.send.topic)
        pool.lane.put_back(copy)
        if pool.lane.since is not None:
            self._hopeless[pool] = None

    def _dead(self, copy: Copy, why: str) -> None:
        """Nobody could handle it: say so, tell its sender, and give it to a handler of dead letters if there is one."""
        send = copy.send
        if send.topic == DEAD and not copy.attempt:
            return  # nobody wants dead letters after all, and of the message it has been said
        self.counts["dead"] += 1
        topic, id, attempts = (send.topic, send.id, copy.attempt)
        letter = topic != DEAD
        if not letter and send.subject is not None:
            topic, id = send.subject[:2]
            why = f"the handler of dead letters could not deal with it: {why}"
        text = f"message {id} of topic {topic!r} was given up after {attempts} deliveries: {why}"
        about: dict[str, Any] = {"topic": topic, "id": id, "attempts": attempts, "reason": why}
        self.hub.port.say(logging.ERROR, "message_dead_lettered", text, **about)
        self._fail(send, "dead", text)
        if letter and self._someone_for(DEAD):
            subject = [topic, id, attempts, why]
            about_it = Send(f"{id}!", 0, send.origin, DEAD, send.body, Kind.WORK, Want.SUCCESS, LETTER_DELIVERIES)
            about_it.subject, about_it.stage = subject, Stage.SETTLED
            pool = self._pool(DEAD)
            pool.lane.put_if_room(Copy(about_it))  # else there are more of them than anyone deals with; it was said
            self._pump_pool(pool)

    # Members

    def joined(self, member: Member) -> None:
        """A process is to be started: it gets what waits for its slot, and what is sent to all from now on."""
        self.places[member.id] = Place(member)
        slot = self.places[member.id].slot
        if (vacant := self.vacant.pop(slot, None)) is not None:
            self._blocked.pop(vacant, None)
            self._hopeless.pop(vacant, None)
            self._reroute(vacant, lambda _: True)
        self.review()

    def handles(self, place: Place, topic: str, concurrency: int) -> None:
        """The process handles a topic with so many messages at a time; with none it handles it no more."""
        desk = place.desk(topic, self.budget)
        desk.concurrency = concurrency
        if concurrency:
            self._handlers.setdefault(topic, {})[place.member.id] = desk
        else:
            self._forget_handler(desk)
        self._review_desk(desk)
        if not concurrency and place.member.phase is not Phase.EXPECTED:
            self._drop_copies(desk)
        self._pump_desk(desk)
        place.tidy(desk)
        if (pool := self.pools.get(topic)) is not None:
            self._review_pool(pool)
            self._pump_pool(pool)

    def came_up(self, place: Place) -> None:
        """Its application is loaded and its handlers are known: what it does not handle was not for it."""
        for topic, count in place.not_kept.items():
            if topic in place.desks and place.desks[topic].concurrency:
                text = f"{place.member} took long to start: {count} messages of topic {topic!r} were not kept for it"
                about: dict[str, Any] = {"topic": topic, "count": count, **_about(place.member)}
                self.hub.port.say(logging.WARNING, "messages_not_kept", text, **about)
        place.not_kept.clear()
        for desk in list(place.desks.values()):
            desk.lane.limit = LIMIT
            self._review_desk(desk)
            if not desk.concurrency:
                self._drop_copies(desk)
            place.tidy(desk)

    def retires(self, place: Place) -> None:
        """It gets no new work; what is sent to all still reaches it as far as there is room."""
        if any(copy.send.kind is Kind.DIRECT for _, copy in place.held.values()):
            self.retiring.setdefault(place.slot, set()).add(place.member.id)
        for desk in list(place.desks.values()):
            for copy in desk.lane.take_offered(lambda send: send.kind is Kind.COPY):
                copy.send.missing -= 1
                self._look_if_placed(copy.send)
            self._reroute(desk, lambda send: send.kind is Kind.DIRECT)
            place.tidy(desk)

    def left(self, member: Member) -> None:
        """Its process is no more."""
        place = self.places.pop(member.id)
        for desk in place.desks.values():
            self._forget_handler(desk)
        slot = place.slot
        retired = member.phase is Phase.RETIRING
        if not retired and not any(p.is_for(slot) and p.member.phase not in OVER for p in self.places.values()):
            self._vacate(slot)
        lost = collections.Counter[str]()
        for desk, copy in reversed(place.held.values()):
            send = copy.send
            if send.again:
                self._again(copy, "the process that had it died")
            elif send.want is Want.ANSWER:
                self._fail(send, "lost", f"{member} ended before it had answered")
            elif send.kind is not Kind.COPY or not retired:
                lost[desk.topic] += 1
        for desk in place.desks.values():
            self._reroute(desk, lambda send: send.kind is Kind.DIRECT)
            waited = self._drop_copies(desk)
            if waited and not retired and member.up:
                lost[desk.topic] += waited
            self._blocked.pop(desk, None)
            self._hopeless.pop(desk, None)
        if lost:
            self._report_lost(f"{member} ended with {{}} that it had not handled", lost, **_about(member))
        theirs = [send for send in self.sends.values() if send.sender == member.id]
        self._take_back({send for send in theirs if send.stage is Stage.OFFERED})
        for send in theirs:
            self._settle_send(send)
        self.gave_back(place)
        self.review()

    def _reroute(self, owner: Desk | Waiting, which: Callable[[Send], bool]) -> None:
        """Find other processes for what waits with one that will not take it."""
        placed = owner.lane.take_placed(which)
        offered = owner.lane.take_offered(which)
        for copy in placed:
            self._route(copy, Had.PLACE)
        for copy in offered:
            copy.send.missing -= 1
            self._route(copy)
            self._look_if_placed(copy.send)

    def _drop_copies(self, desk: Desk) -> int:
        """Forget what was sent to all and waits for a process that does not want it; return how many."""
        dropped = desk.lane.take_placed(lambda send: send.kind is Kind.COPY)
        offered = desk.lane.take_offered(lambda send: send.kind is Kind.COPY)
        for copy in offered:
            copy.send.missing -= 1
            copy.send.copies -= 1
            self._look_if_placed(copy.send)
        return len(dropped)

    def _forget_handler(self, desk: Desk) -> None:
        there = self._handlers.get(desk.topic)
        if there is not None and there.pop(desk.place.member.id, None) is not None and not there:
            del self._handlers[desk.topic]

    # A new program of the listener

    def hold(self, place: Place, topic: str, delivery: int, copy: Copy) -> None:
        """The process has this in its hands."""
        desk = place.desk(topic, self.budget)
        place.held[delivery] = (desk, copy)
        desk.held += 1
        desk.bytes += len(copy.send.body)

    def restore(self, owner: Desk | Waiting, placed: list[Copy], offered: list[Copy]) -> None:
        """Let these wait with `owner` as they did; nothing is given before something happens."""
        for copy in placed:
            owner.lane.put_placed(copy)
        owner.lane.offered.extend(offered)
        if offered:
            self._blocked[owner] = None
        if isinstance(owner, Desk):
            self._review_desk(owner)
        elif isinstance(owner.key, str):
            self._review_pool(owner)
        else:
            self._hope(owner, hope=False, closed=False)

    # Whether there is hope

    def review(self) -> None:
        """Who is there has changed: look what may be given, and what nobody will take."""
        for pool in list(self.pools.values()):
            self._review_pool(pool)
            self._pump_pool(pool)

    def pump_place(self, place: Place) -> None:
        """The process may get more than before."""
        for desk in list(place.desks.values()):
            self._pump_topic(desk)

    def _someone_for(self, topic: str) -> bool:
        """Whether there is a process that handles work of this topic, or may once it is up."""
        for place in self.places.values():
            member = place.member
            if member.phase in OVER or not (member.role is Role.WORKER or topic == DEAD):
                continue
            desk = place.desks.get(topic)
            if member.phase is Phase.EXPECTED or (desk is not None and desk.concurrency):
                return True
        return False

    def _review_pool(self, pool: Waiting) -> None:
        assert isinstance(pool.key, str)
        hope = self._someone_for(pool.key)
        serving = any(p.member.phase is Phase.SERVING and p.member.role is Role.WORKER for p in self.places.values())
        self._hope(pool, hope, closed=not hope and serving)

    def _review_desk(self, desk: Desk) -> None:
        hope = bool(desk.concurrency) or desk.place.member.phase is Phase.EXPECTED
        self._hope(desk, hope, closed=not hope)

    def _hope(self, owner: Desk | Waiting, hope: bool, closed: bool) -> None:
        owner.lane.closed = closed
        if hope:
            owner.lane.since = None
            self._hopeless.pop(owner, None)
        else:
            if owner.lane.since is None:
                owner.lane.since = self.hub.clock()
            if owner.lane:
                self._hopeless[owner] = None

    def deadline(self) -> float:
        """When `tick` has something to do."""
        due = self._overrun_due
        for owner in self._hopeless:
            lane = owner.lane
            if lane.since is not None and lane:
                due = min(due, lane.since + (GRACE if lane.closed and lane.offered else STRANDED))
        return due

    def tick(self) -> None:
        """Refuse what nobody has wanted for long enough."""
        now = self.hub.clock()
        if now >= self._overrun_due:
            self._report_overrun()
        for owner in list(self._hopeless):
            lane = owner.lane
            if lane.since is None:
                continue
            stranded = now >= lane.since + STRANDED
            nobody = f"nobody who is there handles {_topic_of(owner)}: see `messenger.on`"
            if stranded or (lane.closed and now >= lane.since + GRACE):
                for copy in lane.take_offered(lambda _: True):
                    self._fail(copy.send, "nobody", nobody)
            if stranded:
                for copy in lane.take_placed(lambda _: True):
                    self._dead(copy, nobody)
            if not lane:
                self._forget_owner(owner)

    def _report_overrun(self) -> None:
        self._report_lost("{} of other servers came faster than they are handled", self._overrun)
        self._overrun.clear()
        self._overrun_due = math.inf

    def _report_lost(self, text: str, lost: collections.Counter[str], **about: int) -> None:
        count, topics = lost.total(), sorted(lost)[:TOPICS_NAMED]
        said = f"{text.format(f'{count} messages' if count > 1 else 'a message')} (topics: {', '.join(topics)})"
        self.counts["lost"] += count
        self.hub.port.say(logging.WARNING, "messages_lost", said, "", count=count, topics=topics, **about)

    def _forget_owner(self, owner: Desk | Waiting) -> None:
        self._hopeless.pop(owner, None)
        self._blocked.pop(owner, None)
        if isinstance(owner, Desk):
            owner.place.tidy(owner)
        elif isinstance(owner.key, str) and self.pools.get(owner.key) is owner:
            del self.pools[owner.key]

    # At the end of each thing that happens

    def settle(self) -> None:
        """Give places that have become free to those that wait for them."""
        for owner in list(self._blocked):
            placed = list(owner.lane.refill())
            for copy in placed:
                copy.send.missing -= 1
                self._look_if_placed(copy.send)
            if placed:
                self._pump(owner)
            if not owner.lane.offered:
                self._blocked.pop(owner, None)
            if not owner.lane:
                self._forget_owner(owner)


def _about(member: Member) -> dict[str, Any]:
    slot = {} if member.role is Role.AGENT else {"slot": member.slot}
    return {"generation": member.generation, **slot}


def _topic_of(owner: Desk | Waiting) -> str:
    if isinstance(owner, Desk):
        return f"topic {owner.topic!r} as {owner}"
    return f"topic {owner.key!r}" if isinstance(owner.key, str) else f"what is sent to {owner}"
