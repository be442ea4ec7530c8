"""Where messages go: who gets a copy, and what becomes of it when its handler ends or its process leaves.

It owns every message between its acceptance and the end of its handling. The rules:

- A sender is told that its message is accepted when each destination has a place for it
(`serve_asgi.hub.messages.queues`).
- Work and calls are given to a worker only while it has fewer messages of the topic in flight than its handlers
  deal with at a time: none stands behind slow work, and an attempt counts only if it may have begun.
- What is in flight in a process that dies is delivered again if the sender asked for that, and reported otherwise.
- What nobody will take is refused to the sender after `GRACE`; what was accepted and finds nobody any more for
  `STRANDED` is a dead letter.

When something is given `serve_asgi.hub.messages.delivery` knows, what senders are told
`serve_asgi.hub.messages.outcomes`, and what is said of messages that are lost
`serve_asgi.hub.messages.outcomes`. Nothing here does I/O; frames are collected in `FrameBatcher` and flushed by
`serve_asgi.hub.messages.broker`.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable, Iterable
from typing import Final

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.consumers import Consumer, Consumers, MemberState, SharedQueue
from serve_asgi.hub.messages.delivery import Dispatcher
from serve_asgi.hub.messages.outcomes import LossReports, SenderConfirmations, described, names_of
from serve_asgi.hub.messages.queues import QUEUE_LIMIT, Delivery, MessageStage, QueuedMessage
from serve_asgi.ipc.member_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC, AckMode, FrameBatcher, MessageKind

DEAD_LETTER_DELIVERIES: Final = 3
"""How often a dead letter is delivered, at most."""


class RequeuedFrom(enum.Enum):
    """What a message that looks for a process had before."""

    NONE = "none"
    PLACE = "place"  # in the queue of another one
    HANDS = "hands"  # another one had it, and has not begun with it


class MessageRouter:
    """The messages of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.out = FrameBatcher(hub.port.send)
        self.there = Consumers(hub)
        self.counts = dict.fromkeys(("accepted", "given", "handled", "failed", "again", "dead", "lost"), 0)
        self.senders = SenderConfirmations(self.out, self.counts)
        self.losses = LossReports(hub, self.counts)
        self.giving = Dispatcher(hub, self.there, self.out, self.counts)

    # Sending

    def offer(self, send: QueuedMessage) -> None:
        """A message was sent."""
        self.senders.expect(send)
        if send.kind is MessageKind.BROADCAST:
            self._offer_copies(send)
        elif send.kind is MessageKind.DIRECT:
            self._route(Delivery(send))
        else:
            self._put(self.there.pool(send.topic), Delivery(send))
        self.senders.look_if_placed(send)
        if send.stage is MessageStage.OFFERED:
            self.senders.hold_up(send)

    def _offer_copies(self, send: QueuedMessage) -> None:
        if self.hub.settings.shared and send.sender:
            send.missing += 1
            head = {
                "id": send.key,
                "message": send.id,
                "topic": send.topic,
                "workers": send.slot >= 0,
                "origin": send.origin,
            }
            self.hub.send_to_store("store.send", head, send.body)
        for place in self.there.places.values():
            if send.slot >= 0 and place.member.role is Role.AGENT:
                continue  # for workers alone
            phase = place.member.phase
            if phase is MemberPhase.EXPECTED:
                send.copies += place.keep(Delivery(send), self.there.budget)
                continue
            desk = place.desks.get(send.topic)
            if desk is None or not desk.concurrency:
                continue
            if phase is not MemberPhase.RETIRING and send.sender:
                send.copies += 1
                self._put(desk, Delivery(send))
                continue
            if desk.lane.put_if_room(Delivery(send)):
                send.copies += phase is not MemberPhase.RETIRING  # which may end before it comes to it
                self.giving.pump_desk(desk)
            elif phase is MemberPhase.RETIRING:
                place.not_kept[send.topic] = place.not_kept.get(send.topic, 0) + 1
            else:  # another server's sender cannot be held up
                self.losses.overran(send.topic)

    def _put(self, owner: Consumer | SharedQueue, copy: Delivery, had: RequeuedFrom = RequeuedFrom.NONE) -> None:
        """Have a copy wait with `owner`; what had a place elsewhere keeps one."""
        if had is RequeuedFrom.HANDS:
            owner.lane.put_back(copy)
        elif had is RequeuedFrom.PLACE:
            owner.lane.put_placed(copy)
        elif not owner.lane.put(copy):
            copy.send.missing += 1
            self.there.blocked[owner] = None
        self.there.watch(owner)
        self.giving.pump(owner)

    # Withdrawing

    def withdraw(self, ids: Iterable[str], member: int) -> None:
        """The senders wait no longer: what has no place is taken back, what is accepted stands."""
        waiting = self.senders.waiting
        sends = {s for id in ids if (s := waiting.get(f"{member}/{id}")) is not None}
        takers = self._take_back({send for send in sends if send.stage is MessageStage.OFFERED})
        for send in sends:
            if send.stage is MessageStage.OFFERED:
                self.senders.fail(send, "full", f"not delivered in time to {names_of(takers.get(send, []))}")
            else:
                self.senders.fail(send, "late", "it was accepted, but its handler did not end in time")

    def _take_back(self, sends: set[QueuedMessage]) -> dict[QueuedMessage, list[str]]:
        """Take out their copies that have no place; return who did not take each."""
        found: dict[QueuedMessage, list[str]] = {}
        if sends:
            for owner in list(self.there.blocked):
                for copy in owner.lane.take_offered(sends.__contains__):
                    found.setdefault(copy.send, []).append(str(owner))
        return found

    # Who gets it

    def _route(self, copy: Delivery, had: RequeuedFrom = RequeuedFrom.NONE) -> None:
        """Find the process of the slot that a message is for: the one that serves, or the first that will."""
        send = copy.send
        place = self.there.successor(send.slot)
        if place is not None:
            desk = place.desk(send.topic, self.there.budget)
            self.there.review_desk(desk)
            self._put(desk, copy, had)
        elif (vacant := self.there.vacancy(send.slot)) is not None:
            self._put(vacant, copy, had)
        elif send.slot < 0:
            self._refuse(copy, "this server has no agent: start it with --agent")
        else:
            self._refuse(copy, f"there is no worker {send.slot}")

    def _refuse(self, copy: Delivery, text: str) -> None:
        """Nobody is there for it, and nobody will be."""
        if copy.send.stage is MessageStage.OFFERED:
            self.senders.fail(copy.send, "nobody", text)
        else:
            self._dead(copy, text)

    # What becomes of it

    def done(self, place: MemberState, delivery: int, ok: bool, body: bytes) -> None:
        """Its handler has ended; `body` is the answer to a call, or what went wrong."""
        if delivery not in place.held:
            return
        desk, copy = self.giving.out_of_hands(place, delivery)
        send = copy.send
        self.counts["handled" if ok else "failed"] += 1
        if send.want is AckMode.SUCCESS and not ok:
            self._again(copy, "its handler raised")
        elif send.want is AckMode.REPLY:
            self.senders.answered(send, ok, body)
        elif send.again:
            member = place.member
            self.senders.handled(send, copy.attempt, member.role.value, member.slot, member.generation)
        self.giving.pump_topic(desk)

    def back(self, place: MemberState, delivery: int) -> None:
        """The process has not begun with it, and will not."""
        if delivery not in place.held:
            return
        desk, copy = self.giving.out_of_hands(place, delivery)
        copy.attempt -= 1
        if copy.send.kind is MessageKind.ANY_WORKER:
            self._pool_again(copy)
        elif copy.send.kind is MessageKind.DIRECT:
            self._route(copy, RequeuedFrom.HANDS)
        self.giving.pump_topic(desk)

    def _again(self, copy: Delivery, why: str) -> None:
        """Deliver it once more, unless that has been done often enough."""
        if copy.attempt >= copy.send.limit:
            self._dead(copy, why)
        else:
            self.counts["again"] += 1
            self._pool_again(copy)

    def _pool_again(self, copy: Delivery) -> None:
        pool = self.there.pool(copy.send.topic)
        pool.lane.put_back(copy)
        self.there.watch(pool)

    def _dead(self, copy: Delivery, why: str) -> None:
        """Nobody could handle it: say so, tell its sender, and give it to a handler of dead letters if there is one."""
        send = copy.send
        if send.topic == DEAD_LETTER_TOPIC and not copy.attempt:
            return  # nobody wants dead letters after all, and of the message it has been said
        topic, id, attempts = (send.topic, send.id, copy.attempt)
        letter = topic != DEAD_LETTER_TOPIC
        if not letter and send.subject is not None:
            topic, id = send.subject[:2]
            why = f"the handler of dead letters failed: {why}"
        self.senders.fail(send, "dead", self.losses.dead(topic, id, attempts, why))
        if letter and self.there.someone_for(DEAD_LETTER_TOPIC):
            subject = [topic, id, attempts, why]
            about_it = QueuedMessage(
                f"{id}!",
                0,
                send.origin,
                DEAD_LETTER_TOPIC,
                send.body,
                MessageKind.ANY_WORKER,
                AckMode.SUCCESS,
                DEAD_LETTER_DELIVERIES,
            )
            about_it.subject, about_it.stage = subject, MessageStage.SETTLED
            pool = self.there.pool(DEAD_LETTER_TOPIC)
            pool.lane.put_if_room(Delivery(about_it))  # else there are more of them than anyone deals with; it was said
            self.giving.pump_pool(pool)

    # Members

    def joined(self, member: Member) -> None:
        """A process is to be started: it gets what waits for its slot, and what is sent to all from now on."""
        self.there.places[member.id] = MemberState(member)
        slot = self.there.places[member.id].slot
        if (vacant := self.there.vacant.pop(slot, None)) is not None:
            self.there.forget(vacant)
            self._reroute(vacant, lambda _: True)
        self.review()

    def handles(self, place: MemberState, topic: str, concurrency: int) -> None:
        """The process handles a topic with so many messages at a time; with none it handles it no more."""
        desk = self.there.handles(place, topic, concurrency)
        if not concurrency and place.member.phase is not MemberPhase.EXPECTED:
            self._drop_copies(desk)
        self.giving.pump_desk(desk)
        place.tidy(desk)
        if (pool := self.there.pools.get(topic)) is not None:
            self.there.review_pool(pool)
            self.giving.pump_pool(pool)

    def came_up(self, place: MemberState) -> None:
        """Its application is loaded and its handlers are known: what it does not handle was not for it."""
        self.losses.not_kept(place)
        for desk in list(place.desks.values()):
            desk.lane.limit = QUEUE_LIMIT
            self.there.review_desk(desk)
            if not desk.concurrency:
                self._drop_copies(desk)
            place.tidy(desk)

    def retires(self, place: MemberState) -> None:
        """It gets no new work; what was sent to all it gets, and what is sent from now on if there is room."""
        self.giving.retires(place)
        for desk in list(place.desks.values()):
            for copy in desk.lane.take_offered(lambda send: send.kind is MessageKind.BROADCAST):
                copy.send.missing -= 1
                copy.send.copies -= 1
                place.not_kept[desk.topic] = place.not_kept.get(desk.topic, 0) + 1
                self.senders.look_if_placed(copy.send)
            self._reroute(desk, lambda send: send.kind is MessageKind.DIRECT)
            place.tidy(desk)
        self.giving.count_rest(place)

    def left(self, member: Member) -> None:
        """Its process is no more."""
        place = self.there.places.pop(member.id)
        for desk in list(place.desks.values()):
            self.there.forget_handler(desk)
        slot = place.slot
        retired = member.phase is MemberPhase.RETIRING
        replaced = self.there.serves(member.generation)  # it was to take a place there, and its copies were counted
        if not retired and self.there.successor(slot) is None:
            self.there.vacate(slot)
        lost = collections.Counter[str]()
        for delivery, (desk, copy) in reversed(place.held.items()):
            send = copy.send
            if send.again:
                self._again(copy, "the process that had it died")
            elif send.want is AckMode.REPLY:
                self.senders.fail(send, "lost", f"{member} ended before it had answered")
            elif send.kind is not MessageKind.BROADCAST or not retired or place.last is None or delivery <= place.last:
                lost[desk.topic] += 1
        for desk in list(place.desks.values()):
            self._reroute(desk, lambda send: send.kind is MessageKind.DIRECT)
            rest, desk.rest = desk.rest, 0
            waited = self._drop_copies(desk)
            if rest:
                lost[desk.topic] += rest
            elif waited and not retired and (member.up or (replaced and self.there.handled(desk.topic))):
                lost[desk.topic] += waited
            self.there.forget(desk)
        if lost:
            self.losses.lost(f"{member} ended with {{}} that it had not handled", lost, member)
        if retired and member.up and (late := collections.Counter(place.not_kept)):
            text = f"{member} retired, and {{}} came faster to all than it handled them"
            self.losses.lost(text, late, member)
        theirs = self.senders.of(member.id)
        self._take_back({send for send in theirs if send.stage is MessageStage.OFFERED})
        for send in theirs:
            self.senders.settle(send)
        self.senders.left(member.id)
        self.giving.gave_back(place)
        place.desks.clear()  # each of which knows it: nothing is left for the collector of cycles
        place.held.clear()
        self.review()
        if retired and not self.there.places:
            self._report_left()

    def _report_left(self) -> None:
        """The server ends: say what nobody has handled."""
        left = collections.Counter[str]()
        for waiting in [*self.there.pools.values(), *self.there.vacant.values()]:
            for copy in waiting.lane.take_placed(lambda send: send.topic != DEAD_LETTER_TOPIC):
                left[copy.send.topic] += 1
            if not waiting.lane:
                self.there.forget(waiting)
        if left:
            self.losses.lost("the server ends with {} that nobody has handled", left)

    def _reroute(self, owner: Consumer | SharedQueue, which: Callable[[QueuedMessage], bool]) -> None:
        """Find other processes for what waits with one that will not take it."""
        placed = owner.lane.take_placed(which)
        offered = owner.lane.take_offered(which)
        for copy in placed:
            self._route(copy, RequeuedFrom.PLACE)
        for copy in offered:
            copy.send.missing -= 1
            self._route(copy)
            self.senders.look_if_placed(copy.send)

    def _drop_copies(self, desk: Consumer) -> int:
        """Forget what was sent to all and waits for a process that does not want it; return how many."""
        dropped = desk.lane.take_placed(lambda send: send.kind is MessageKind.BROADCAST)
        if desk.rest:
            self.giving.rests(desk, 0)
        offered = desk.lane.take_offered(lambda send: send.kind is MessageKind.BROADCAST)
        for copy in offered:
            copy.send.missing -= 1
            copy.send.copies -= 1
            self.senders.look_if_placed(copy.send)
        return len(dropped)

    # A new program of the listener

    def restore(self, owner: Consumer | SharedQueue, placed: list[Delivery], offered: list[Delivery]) -> None:
        """Let these wait with `owner` as they did; nothing is given before something happens."""
        for copy in placed:
            owner.lane.put_placed(copy)
        owner.lane.offered.extend(offered)
        if offered:
            self.there.blocked[owner] = None
        if isinstance(owner, Consumer):
            self.there.review_desk(owner)
        elif isinstance(owner.key, str):
            self.there.review_pool(owner)
        else:
            self.there.vacate(owner.key)

    # Whether there is hope

    def review(self) -> None:
        """Who is there has changed: look what may be given, and what nobody will take."""
        for pool in list(self.there.pools.values()):
            self.there.review_pool(pool)
            self.giving.pump_pool(pool)

    def deadline(self) -> float:
        """When `tick` has something to do."""
        return min(self.losses.due, self.there.deadline())

    def tick(self) -> None:
        """Refuse what nobody has wanted for long enough."""
        self.losses.tick()
        for owner, placed_too in self.there.given_up():
            nobody = f"nobody who is there handles {described(owner)}: see `messenger.on`"
            for copy in owner.lane.take_offered(lambda _: True):
                self.senders.fail(copy.send, "nobody", nobody)
            if placed_too:
                for copy in owner.lane.take_placed(lambda _: True):
                    self._dead(copy, nobody)

    # At the end of each thing that happens

    def settle(self) -> None:
        """Give places that have become free to those that wait for them."""
        for owner in list(self.there.blocked):
            placed = list(owner.lane.refill())
            for copy in placed:
                copy.send.missing -= 1
                self.senders.look_if_placed(copy.send)
            if placed:
                self.giving.pump(owner)
            if not owner.lane.offered:
                self.there.blocked.pop(owner, None)
            if not owner.lane:
                self.there.forget(owner)
