"""Where messages go, and what happens to a delivery when its handler ends or its process leaves.

It owns every message between its acceptance and the end of its handling. The rules:

- A message is confirmed as accepted when each destination has queued it (`serve_asgi.hub.messages.queues`).
- Work and calls are delivered to a worker only while it has fewer messages of the topic in flight than its handlers
  take at a time: none waits behind slow work, and an attempt counts only if it may have started.
- What a process has in flight when it dies is delivered again if the sender asked for that; else it is reported lost.
- What nobody handles is refused after `NO_CONSUMER_GRACE`; what was accepted and has had no consumer for
  `STRANDED_TIME` is a dead letter.

`serve_asgi.hub.messages.dispatcher` decides when something is delivered and to which worker,
`serve_asgi.hub.messages.dead_letters` gives up and reports losses, `serve_asgi.hub.messages.confirmations` reports to
the senders, `serve_asgi.hub.messages.fleet_work` exchanges work with other servers. Nothing here does I/O: frames are
collected in `FrameBatcher`, and `serve_asgi.hub.messages.broker` flushes them.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable, Iterable

from serve_asgi.hub.core import Hub, Member
from serve_asgi.hub.messages.confirmations import SenderConfirmations, described, names_of
from serve_asgi.hub.messages.consumers import Consumer, Consumers, MemberState, SharedQueue
from serve_asgi.hub.messages.dead_letters import DeadLetters, LossReports
from serve_asgi.hub.messages.dispatcher import Dispatcher
from serve_asgi.hub.messages.fleet_work import FleetWork
from serve_asgi.hub.messages.queues import QUEUE_LIMIT, Delivery, MessageStage, QueuedMessage
from serve_asgi.ipc.membership_frames import MemberPhase, Role
from serve_asgi.ipc.message_frames import DEAD_LETTER_TOPIC, AckMode, FrameBatcher, MessageKind


class RequeuedFrom(enum.Enum):
    """Where a delivery was before it was routed again."""

    NOWHERE = "nowhere"
    QUEUE = "queue"  # in the queue of another process
    IN_FLIGHT = "in flight"  # another process had it, and had not started it


class MessageRouter:
    """Routes the messages of one hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.out = FrameBatcher(hub.port.send)
        self.consumers = Consumers(hub)
        self.counts = dict.fromkeys(("accepted", "given", "handled", "failed", "again", "dead", "lost"), 0)
        self.confirmations = SenderConfirmations(self.out, self.counts)
        self.losses = LossReports(hub, self.counts)
        self.dispatcher = Dispatcher(hub, self.consumers, self.out, self.counts)
        self.dead_letters = DeadLetters(hub, self.consumers, self.dispatcher, self.confirmations, self.counts)
        self.fleet = FleetWork(hub, self.consumers, self.dispatcher, self.confirmations, self.dead_letters, self.losses)

    # Sending

    def submit(self, message: QueuedMessage) -> None:
        """Route a new message."""
        self.confirmations.add(message)
        if message.kind is MessageKind.ANY_IN_FLEET and self.hub.settings.alone:
            message.kind = MessageKind.ANY_WORKER  # this process is the fleet
        if message.kind is MessageKind.BROADCAST:
            self._broadcast(message)
        elif message.kind is MessageKind.DIRECT:
            self._route(Delivery(message))
        elif message.kind is MessageKind.ANY_WORKER:
            self._enqueue(self.consumers.topic_queue(message.topic), Delivery(message))
        else:
            self.fleet.post(message)
        self.confirmations.confirm_if_accepted(message)
        if message.stage is MessageStage.OFFERED:
            self.confirmations.count_unaccepted(message)

    def _broadcast(self, message: QueuedMessage) -> None:
        if self.hub.settings.shared and message.sender:
            message.pending += 1
            head = {
                "id": message.key,
                "message": message.id,
                "topic": message.topic,
                "workers": message.slot >= 0,
                "origin": message.origin,
            }
            self.hub.send_to_store("store.send", head, message.body)
        for process in self.consumers.processes.values():
            if message.slot >= 0 and process.member.role is Role.AGENT:
                continue  # for workers only
            phase = process.member.phase
            if phase is MemberPhase.EXPECTED:
                message.receivers += process.queue_while_starting(Delivery(message), self.consumers.budget)
                continue
            consumer = process.consumers.get(message.topic)
            if consumer is None or not consumer.concurrency:
                continue
            if phase is not MemberPhase.RETIRING and message.sender:
                message.receivers += 1
                self._enqueue(consumer, Delivery(message))
                continue
            if consumer.queue.put_if_room(Delivery(message)):
                message.receivers += phase is not MemberPhase.RETIRING  # which may end before it handles it
                self.dispatcher.dispatch_to_consumer(consumer)
            elif phase is MemberPhase.RETIRING:
                process.dropped[message.topic] = process.dropped.get(message.topic, 0) + 1
            else:  # senders on other servers feel no back-pressure
                self.losses.remote_dropped(message.topic)

    def _enqueue(
        self, owner: Consumer | SharedQueue, delivery: Delivery, requeued_from: RequeuedFrom = RequeuedFrom.NOWHERE
    ) -> None:
        """Queue a delivery; one that has been accepted before is queued even if there is no room."""
        if requeued_from is RequeuedFrom.IN_FLIGHT:
            owner.queue.put_first(delivery)
        elif requeued_from is RequeuedFrom.QUEUE:
            owner.queue.put_over_limit(delivery)
        elif not owner.queue.put(delivery):
            delivery.message.pending += 1
            self.consumers.overflowing[owner] = None
        self.consumers.watch_if_abandoned(owner)
        self.dispatcher.dispatch(owner)

    # Withdrawing

    def withdraw(self, ids: Iterable[str], member: int) -> None:
        """The sender no longer waits for these: what is not queued yet is withdrawn, what is accepted stands."""
        waiting = self.confirmations.waiting
        messages = {s for id in ids if (s := waiting.get(f"{member}/{id}")) is not None}
        receivers = self._remove_overflow({message for message in messages if message.stage is MessageStage.OFFERED})
        for message in messages:
            if message.stage is MessageStage.OFFERED:
                if message.kind is MessageKind.ANY_IN_FLEET:
                    self.fleet.withdraw(message)
                self.confirmations.fail(
                    message, "full", f"not delivered in time to {names_of(receivers.get(message, []))}"
                )
            else:
                self.confirmations.fail(message, "late", "it was accepted, but its handler has not ended in time")

    def _remove_overflow(self, messages: set[QueuedMessage]) -> dict[QueuedMessage, list[str]]:
        """Remove the deliveries of these that wait for room; return for each message which receivers had none."""
        found: dict[QueuedMessage, list[str]] = {}
        if messages:
            for owner in list(self.consumers.overflowing):
                for delivery in owner.queue.remove_overflow(messages.__contains__):
                    found.setdefault(delivery.message, []).append(str(owner))
        return found

    # To one slot

    def _route(self, delivery: Delivery, requeued_from: RequeuedFrom = RequeuedFrom.NOWHERE) -> None:
        """Queue a delivery for the process of its slot: the one that serves, or else the first that will."""
        message = delivery.message
        process = self.consumers.process_for_slot(message.slot)
        if process is not None:
            consumer = process.consumer(message.topic, self.consumers.budget)
            self.consumers.update_consumer(consumer)
            self._enqueue(consumer, delivery, requeued_from)
        elif (slot_queue := self.consumers.expected_slot_queue(message.slot)) is not None:
            self._enqueue(slot_queue, delivery, requeued_from)
        elif message.slot < 0:
            self._refuse(delivery, "this server has no agent: start it with --agent")
        else:
            self._refuse(delivery, f"there is no worker {message.slot}")

    def _refuse(self, delivery: Delivery, text: str) -> None:
        """There is no process for it, and none is expected."""
        if delivery.message.stage is MessageStage.OFFERED:
            self.confirmations.fail(delivery.message, "nobody", text)
        else:
            self.dead_letters.give_up(delivery, text)

    # The end of a delivery

    def done(self, process: MemberState, number: int, ok: bool, body: bytes) -> None:
        """A handler has ended; `body` is the reply to a call, or the error."""
        if number not in process.in_flight:
            return
        consumer, delivery = self.dispatcher.remove_in_flight(process, number)
        message = delivery.message
        self.counts["handled" if ok else "failed"] += 1
        if message.ack_mode is AckMode.SUCCESS and not ok:
            self._redeliver(delivery, "its handler raised")
        elif message.ack_mode is AckMode.REPLY:
            self.confirmations.replied(message, ok, body)
        elif message.entry:
            self.fleet.handled(process, delivery)
        elif message.redelivers:
            member = process.member
            self.confirmations.handled(message, delivery.attempt, member.role.value, member.slot, member.generation)
        self.dispatcher.dispatch_topic(consumer)

    def returned(self, process: MemberState, number: int) -> None:
        """A process returns a delivery that it has not started."""
        if number not in process.in_flight:
            return
        consumer, delivery = self.dispatcher.remove_in_flight(process, number)
        delivery.attempt -= 1
        if delivery.message.kind is MessageKind.ANY_WORKER:
            self._requeue(delivery)
        elif delivery.message.kind is MessageKind.DIRECT:
            self._route(delivery, RequeuedFrom.IN_FLIGHT)
        self.dispatcher.dispatch_topic(consumer)

    def _redeliver(self, delivery: Delivery, why: str) -> None:
        """Deliver it again, or give it up if it has been delivered as often as allowed."""
        message = delivery.message
        if self.dead_letters.is_due(delivery):
            text = self.dead_letters.give_up(delivery, why)
            if message.entry:
                self.fleet.given_up(message, text)
            return
        self.counts["again"] += 1
        if message.entry:
            self.fleet.put_back(delivery)
        else:
            self._requeue(delivery)

    def _requeue(self, delivery: Delivery) -> None:
        topic_queue = self.consumers.topic_queue(delivery.message.topic)
        topic_queue.queue.put_first(delivery)
        self.consumers.watch_if_abandoned(topic_queue)

    # Members

    def joined(self, member: Member) -> None:
        """A process is about to be started: it will get what waits for its slot, and all broadcasts from now on."""
        self.consumers.processes[member.id] = MemberState(member)
        slot = self.consumers.processes[member.id].slot
        if (slot_queue := self.consumers.slot_queues.pop(slot, None)) is not None:
            self.consumers.discard(slot_queue)
            self._reroute(slot_queue, lambda _: True)
        self.update_topic_queues()

    def subscribe(self, process: MemberState, topic: str, concurrency: int) -> None:
        """The process handles a topic, so many messages at a time; with 0 it no longer handles it."""
        consumer = self.consumers.subscribe(process, topic, concurrency)
        if not concurrency and process.member.phase is not MemberPhase.EXPECTED:
            self._drop_broadcasts(consumer)
        self.dispatcher.dispatch_to_consumer(consumer)
        process.discard_if_idle(consumer)
        if (topic_queue := self.consumers.topic_queues.get(topic)) is not None:
            self.consumers.update_topic_queue(topic_queue)
            self.dispatcher.dispatch_topic_queue(topic_queue)

    def came_up(self, process: MemberState) -> None:
        """A process is up, and its handlers are known: forget what it does not handle."""
        self.losses.report_dropped(process)
        for consumer in list(process.consumers.values()):
            consumer.queue.limit = QUEUE_LIMIT
            self.consumers.update_consumer(consumer)
            if not consumer.concurrency:
                self._drop_broadcasts(consumer)
            process.discard_if_idle(consumer)

    def starts_retiring(self, process: MemberState) -> None:
        """A process retires: it gets no new work, and broadcasts only as far as there is room."""
        self.dispatcher.starts_retiring(process)
        for consumer in list(process.consumers.values()):
            for delivery in consumer.queue.remove_overflow(lambda message: message.kind is MessageKind.BROADCAST):
                delivery.message.pending -= 1
                delivery.message.receivers -= 1
                process.dropped[consumer.topic] = process.dropped.get(consumer.topic, 0) + 1
                self.confirmations.confirm_if_accepted(delivery.message)
            self._reroute(consumer, lambda message: message.kind is MessageKind.DIRECT)
            process.discard_if_idle(consumer)
        self.dispatcher.count_awaited(process)

    def resumes(self, process: MemberState) -> None:
        """A process that has stood by serves again: it gets work as before, and what waits for its slot."""
        if late := collections.Counter(process.dropped):
            text = f"{process.member} stood by, and {{}} came faster than it handled them"
            self.losses.lost(text, late, process.member)
            process.dropped.clear()
        self.dispatcher.resumes(process)
        if (slot_queue := self.consumers.slot_queues.pop(process.slot, None)) is not None:
            self.consumers.discard(slot_queue)
            self._reroute(slot_queue, lambda _: True)

    def left(self, member: Member) -> None:
        """A member's process has ended."""
        process = self.consumers.processes.pop(member.id)
        for consumer in list(process.consumers.values()):
            self.consumers.unsubscribe(consumer)
        slot = process.slot
        retired = member.phase is MemberPhase.RETIRING
        # its generation serves: as it was expected to, it has counted as a receiver
        replaced = self.consumers.generation_serves(member.generation)
        if not retired and self.consumers.process_for_slot(slot) is None:
            self.consumers.slot_queue(slot)
        lost = collections.Counter[str]()
        for number, (consumer, delivery) in reversed(process.in_flight.items()):
            message = delivery.message
            if message.redelivers:
                self._redeliver(delivery, "the process that had it died")
            elif message.ack_mode is AckMode.REPLY:
                self.confirmations.fail(message, "lost", f"{member} ended before it had replied")
            elif (
                message.kind is not MessageKind.BROADCAST
                or not retired
                or process.last_awaited is None
                or number <= process.last_awaited
            ):
                lost[consumer.topic] += 1
                if message.entry:
                    self.fleet.lost(message)
        for consumer in list(process.consumers.values()):
            self._reroute(consumer, lambda message: message.kind is MessageKind.DIRECT)
            awaited, consumer.awaited = consumer.awaited, 0
            waited = self._drop_broadcasts(consumer)
            if awaited:
                lost[consumer.topic] += awaited
            elif waited and not retired and (member.up or (replaced and self.consumers.is_handled(consumer.topic))):
                lost[consumer.topic] += waited
            self.consumers.discard(consumer)
        if lost:
            self.losses.lost(f"{member} ended with {{}} that it had not handled", lost, member)
        if retired and member.up and (late := collections.Counter(process.dropped)):
            text = f"{member} retired, and {{}} came faster than it handled them"
            self.losses.lost(text, late, member)
        theirs = self.confirmations.of(member.id)
        self._remove_overflow({message for message in theirs if message.stage is MessageStage.OFFERED})
        for message in theirs:
            self.confirmations.settle(message)
        self.confirmations.left(member.id)
        self.dispatcher.returned_all(process)
        process.consumers.clear()  # which refer back to it: leave no reference cycle
        process.in_flight.clear()
        self.update_topic_queues()
        if retired and not self.consumers.processes:
            self._report_unhandled()

    def _report_unhandled(self) -> None:
        """The server has ended: log what nobody has handled."""
        left = collections.Counter[str]()
        for waiting in [*self.consumers.topic_queues.values(), *self.consumers.slot_queues.values()]:
            for delivery in waiting.queue.remove_queued(lambda message: message.topic != DEAD_LETTER_TOPIC):
                left[delivery.message.topic] += 1
            if not waiting.queue:
                self.consumers.discard(waiting)
        if left:
            self.losses.lost("the server ended with {} that no process had handled", left)

    def _reroute(self, owner: Consumer | SharedQueue, which: Callable[[QueuedMessage], bool]) -> None:
        """Route again what is queued where it will not be handled."""
        queued = owner.queue.remove_queued(which)
        overflow = owner.queue.remove_overflow(which)
        for delivery in queued:
            self._route(delivery, RequeuedFrom.QUEUE)
        for delivery in overflow:
            delivery.message.pending -= 1
            self._route(delivery)
            self.confirmations.confirm_if_accepted(delivery.message)

    def _drop_broadcasts(self, consumer: Consumer) -> int:
        """Remove the broadcasts queued for a consumer that does not handle them; return how many were queued."""
        dropped = consumer.queue.remove_queued(lambda message: message.kind is MessageKind.BROADCAST)
        if consumer.awaited:
            self.dispatcher.set_awaited(consumer, 0)
        overflow = consumer.queue.remove_overflow(lambda message: message.kind is MessageKind.BROADCAST)
        for delivery in overflow:
            delivery.message.pending -= 1
            delivery.message.receivers -= 1
            self.confirmations.confirm_if_accepted(delivery.message)
        return len(dropped)

    # A new program of the listener

    def restore(self, owner: Consumer | SharedQueue, queued: list[Delivery], overflow: list[Delivery]) -> None:
        """Queue these as they were; nothing is delivered before the next event."""
        for delivery in queued:
            owner.queue.put_over_limit(delivery)
        owner.queue.overflow.extend(overflow)
        if overflow:
            self.consumers.overflowing[owner] = None
        if isinstance(owner, Consumer):
            self.consumers.update_consumer(owner)
        elif isinstance(owner.key, str):
            self.consumers.update_topic_queue(owner)
        else:
            self.consumers.slot_queue(owner.key)

    # Queues without a consumer

    def update_topic_queues(self) -> None:
        """Members have changed: deliver what can be delivered, and note what has no consumer."""
        for topic_queue in list(self.consumers.topic_queues.values()):
            self.consumers.update_topic_queue(topic_queue)
            self.dispatcher.dispatch_topic_queue(topic_queue)

    def deadline(self) -> float:
        """When `tick` has something to do (the hub's clock)."""
        return min(self.losses.due, self.dead_letters.due, self.consumers.deadline(), self.fleet.deadline())

    def tick(self) -> None:
        """Report losses that are due, and refuse or give up what has had no consumer for too long."""
        self.losses.tick()
        self.dead_letters.tick()
        self.fleet.tick()
        for owner, queued_too in self.consumers.expired():
            nobody = f"no process handles {described(owner)}: see `messenger.on`"
            for delivery in owner.queue.remove_overflow(lambda _: True):
                self.confirmations.fail(delivery.message, "nobody", nobody)
            if queued_too:
                for delivery in owner.queue.remove_queued(lambda _: True):
                    self.dead_letters.give_up(delivery, nobody)

    # At the end of each event

    def settle(self) -> None:
        """Queue overflowing deliveries where there is room by now."""
        for owner in list(self.consumers.overflowing):
            queued = list(owner.queue.admit_overflow())
            for delivery in queued:
                delivery.message.pending -= 1
                self.confirmations.confirm_if_accepted(delivery.message)
            if queued:
                self.dispatcher.dispatch(owner)
            if not owner.queue.overflow:
                self.consumers.overflowing.pop(owner, None)
            if not owner.queue:
                self.consumers.discard(owner)
        self.fleet.settle()
