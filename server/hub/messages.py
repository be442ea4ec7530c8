"""Messages between the processes of a server: the frames, and what the hub's other events mean for them.

`server.hub.routing` decides; this part takes the frames apart, passes on what becomes of the members, and sends what
has been collected when a thing has been dealt with. Payloads are never looked into.

member -> hub
    msg.topics   {topics: {topic: concurrency}}            which it handles from now on; 0: no more
    msg.send     {m: [[id, kind, topic, want, limit, slot, length], …]} body=the payloads, one after another
                 slot: of DIRECT, -1 for the agent; of COPY, 0 for the workers alone, -1 for all
    msg.withdraw {m: [id, …]}                              it does not wait any longer
    msg.done     {m: [[delivery, ok, length], …]} body     handlers have ended; answers, or what went wrong
    msg.back     {m: [delivery, …], all?}                  not begun, and will not be; all: said once, when it retires
hub -> member
    msg.give     {m: [[delivery, handled topic, id, attempt, kind, want, origin, subject, length], …]} body
    msg.last     {}                                        it retires: all that had a place for it before has been given
    msg.told     {m: [[id, outcome, value, length], …]} body
                 outcome: a accepted (copies) | h handled ([attempt, role, slot, generation]) | r answer (body)
                 | x the handler raised (body) | f failed ([code, text]); `a` is not the last where more is wanted
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from server.hub.frames import Frame
from server.hub.hub import Hub, Member, Part, Phase, State
from server.hub.lanes import Copy, Kind, Lane, Send, Stage, Want
from server.hub.places import Place, Waiting, entries
from server.hub.routing import Routing

_TO_ALL: Final = (-1, 0)


class Messages(Part):
    """The part of the hub that messages are."""

    kinds: ClassVar[frozenset[str]] = frozenset({"msg.topics", "msg.send", "msg.withdraw", "msg.done", "msg.back"})
    store_kinds: ClassVar[frozenset[str]] = frozenset({"store.sent", "store.unsent", "store.message"})

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.routing = Routing(hub)

    def figures(self) -> dict[str, float]:
        counts = self.routing.counts
        return {
            "messages_accepted_total": counts["accepted"],
            "messages_delivered_total": counts["given"],
            "messages_failed_total": counts["failed"],
            "messages_redelivered_total": counts["again"],
            "messages_dead_lettered_total": counts["dead"],
            "messages_lost_total": counts["lost"],
            "messages_waiting": self.routing.there.budget.copies,
        }

    def take(self, member: Member, frame: Frame) -> None:
        routing, place = self.routing, self.routing.there.places[member.id]
        match frame.kind:
            case "msg.send":
                origin = [member.role.value, member.slot, member.generation]
                for (id, kind, topic, want, limit, slot, _), body in entries(frame):
                    routing.offer(Send(id, member.id, origin, topic, body, Kind(kind), Want(want), limit, slot))
            case "msg.done":
                for (delivery, ok, _), body in entries(frame):
                    routing.done(place, delivery, ok, body)
            case "msg.back":
                for delivery in reversed(frame.head["m"]):  # each is put before the others again
                    routing.back(place, delivery)
                if frame.head.get("all"):
                    routing.giving.gave_back(place)
            case "msg.topics":
                for topic, concurrency in frame.head["topics"].items():
                    routing.handles(place, topic, concurrency)
            case "msg.withdraw":
                routing.withdraw(frame.head["m"], member.id)
        self._settle()

    def take_from_store(self, frame: Frame) -> None:
        head = frame.head
        match frame.kind:
            case "store.sent":
                self.routing.senders.store_answered(head["id"])
            case "store.unsent":
                self.routing.senders.store_answered(head["id"], head["text"])
            case "store.message":
                slot = _TO_ALL[head["workers"]]
                send = Send("", 0, head["origin"], head["topic"], frame.body, Kind.COPY, Want.PLACE, 1, slot)
                send.id, send.stage = head.get("message", ""), Stage.SETTLED
                self.routing.offer(send)
        self._settle()

    def joined(self, member: Member) -> None:
        self.routing.joined(member)
        self._settle()

    def changed(self, member: Member, before: Phase) -> None:
        place = self.routing.there.places[member.id]
        if member.phase is Phase.RETIRING:
            self.routing.retires(place)
        if before is Phase.EXPECTED and member.up:
            self.routing.came_up(place)
        self.routing.giving.pump_place(place)
        self.routing.review()
        self._settle()

    def left(self, member: Member) -> None:
        self.routing.left(member)
        self._settle()

    def room(self, member: Member) -> None:
        self.routing.giving.pump_place(self.routing.there.places[member.id])
        self._settle()

    def deadline(self) -> float:
        return self.routing.deadline()

    def tick(self) -> None:
        self.routing.tick()
        self._settle()

    def _settle(self) -> None:
        self.routing.settle()
        self.routing.out.flush()

    # A new program of the listener

    def to_state(self) -> State:
        routing = self.routing
        sends: dict[int, Send] = {}

        def copies(lane: Lane) -> list[Any]:
            for copy in (*lane.placed, *lane.offered):
                sends[id(copy.send)] = copy.send
            return [[[id(c.send), c.attempt] for c in each] for each in (lane.placed, lane.offered)]

        places = []
        for member, place in routing.there.places.items():
            desks = [[desk.topic, desk.concurrency, copies(desk.lane), desk.rest] for desk in place.desks.values()]
            held = []
            for delivery, (desk, copy) in place.held.items():
                sends[id(copy.send)] = copy.send
                held.append([delivery, desk.topic, id(copy.send), copy.attempt])
            places.append([member, desks, held, place.not_kept, place.last])
        waiting = [[w.key, copies(w.lane)] for w in (*routing.there.pools.values(), *routing.there.vacant.values())]
        sends |= {id(send): send for send in routing.senders.waiting.values()}
        return {
            "sends": {str(number): _send_to_state(send) for number, send in sends.items()},
            "places": places,
            "waiting": waiting,
            "retiring": [[slot, sorted(members)] for slot, members in routing.giving.retiring.items()],
            "deliveries": routing.giving.deliveries,
            "counts": routing.counts,
            "overrun": routing.losses.to_state(),
        }

    def load(self, state: State) -> None:
        routing = self.routing
        sends = {int(number): _send_from_state(each) for number, each in state["sends"].items()}
        routing.giving.deliveries = state["deliveries"]
        routing.giving.retiring = {slot: set(members) for slot, members in state["retiring"]}
        routing.counts |= state["counts"]
        routing.losses.load(state.get("overrun", {}))
        routing.senders.waiting = {send.id: send for send in sends.values() if send.stage is not Stage.SETTLED}

        def fill(owner: Any, left: Any) -> None:
            placed, offered = ([Copy(sends[number], attempt) for number, attempt in each] for each in left)
            routing.restore(owner, placed, offered)

        for member in self.hub.members.values():
            routing.there.places[member.id] = Place(member)
        for member_id, desks, held, not_kept, last in state["places"]:
            place = routing.there.places[member_id]
            place.not_kept, place.last = dict(not_kept), last
            for topic, concurrency, *_ in desks:
                routing.handles(place, topic, concurrency) if concurrency else place.desk(topic, routing.there.budget)
            for delivery, topic, number, attempt in held:
                routing.giving.hold(place, topic, delivery, Copy(sends[number], attempt))
            for topic, _, left, rest in desks:
                desk = place.desk(topic, routing.there.budget)
                fill(desk, left)
                desk.rest = rest
        for key, left in state["waiting"]:
            waiting = Waiting(key, routing.there.budget)
            if isinstance(key, str):
                routing.there.pools[key] = waiting
            else:
                routing.there.vacant[key] = waiting
            fill(waiting, left)
        routing.out.flush()


def _send_to_state(send: Send) -> list[Any]:
    return [
        *(send.id, send.sender, send.origin, send.topic, send.body, int(send.kind), int(send.want)),
        *(send.limit, send.slot, send.subject, send.stage.value, send.copies, send.missing),
    ]


def _send_from_state(state: list[Any]) -> Send:
    id, sender, origin, topic, body, kind, want, limit, slot, subject, stage, copies, missing = state
    send = Send(id, sender, origin, topic, body, Kind(kind), Want(want), limit, slot, subject, Stage(stage))
    send.copies, send.missing = copies, missing
    return send


__all__ = ["Messages"]
