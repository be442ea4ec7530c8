"""When a server asks for the lease of the fleet's agent, renews it, and gives it up: as a table of frames and times."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.hub.agent_lease import ASK, FIRST_REQUEST, GRACE, LEASE_TIME, NAME, RENEW, AgentLease
from serve_asgi.hub.core import HubSettings
from serve_asgi.hub.create_hub import create_hub
from serve_asgi.ipc.frames import Frame, encode
from tests.hub.port import RecordingPort

TOKEN = 1_700_000_000_000_000


class OneServer:
    """The hub of one server of a fleet, and what a store would say to it."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.port = RecordingPort()
        given = {"agent": True, "stored": True, "shared": True, "agent_in_fleet": True} | settings
        self.hub = create_hub(self.port, HubSettings(**given), lambda: self.now, lambda: self.now + 1000)
        self.lease = self.hub.component(AgentLease)
        self.hub.store_changed("")

    def asked(self) -> Frame:
        """The one frame that was sent to the store since the last time."""
        (frame,) = self.port.to_store
        self.port.to_store.clear()
        return frame

    def say(self, kind: str, **head: Any) -> None:
        self.hub.take_from_store(encode(kind, head))

    def grant(self) -> None:
        frame = self.asked()
        assert frame.kind == "store.grant"
        self.say("store.granted", id=frame.head["id"], token=TOKEN, renewed_until=self.now + LEASE_TIME)

    def refuse(self, why: str) -> None:
        self.say("store.taken", id=self.asked().head["id"], why=why, text="no")

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.hub.tick()

    def said(self) -> list[str]:
        return [event for event, _, _ in self.port.records]


@pytest.fixture
def server() -> OneServer:
    return OneServer()


def test_it_asks_once_there_is_an_agent_that_could_begin(server: OneServer) -> None:
    server.wait(100)
    assert server.port.to_store == []
    server.lease.want(True)
    frame = server.asked()
    assert frame.kind == "store.grant"
    assert frame.head["id"] >= FIRST_REQUEST
    assert (frame.head["name"], frame.head["lease"], frame.head["exclusive"]) == (NAME, LEASE_TIME, True)
    assert frame.head["tick"] == server.now + 1000
    server.wait(100)
    assert server.port.to_store == []  # it has not been answered
    server.say("store.granted", id=frame.head["id"], token=TOKEN, renewed_until=server.now + LEASE_TIME)
    assert (server.port.leases, server.said()) == ([TOKEN], ["agent_lease_granted"])


def test_it_is_renewed_while_it_is_held(server: OneServer) -> None:
    server.lease.want(True)
    server.grant()
    for _ in range(10):
        assert server.lease.deadline() == server.now + RENEW
        server.wait(RENEW)
        assert server.asked() == Frame("store.renew", {"name": NAME, "token": TOKEN, "lease": LEASE_TIME}, b"")
        server.say("store.renewed", name=NAME, token=TOKEN, renewed_until=server.now + LEASE_TIME)
    assert server.port.leases == [TOKEN]


def test_one_that_could_not_be_renewed_is_lost_before_another_server_can_have_it(server: OneServer) -> None:
    server.lease.want(True)
    server.grant()
    ends = server.now + LEASE_TIME
    while server.port.leases == [TOKEN]:
        server.now = server.lease.deadline()
        server.hub.tick()
        server.port.to_store.clear()
    assert server.now == ends - GRACE
    assert (server.port.leases, server.said()[-1]) == ([TOKEN, 0], "agent_lease_lost")
    server.say("store.renewed", name=NAME, token=TOKEN, renewed_until=server.now + LEASE_TIME)  # too late
    assert server.port.leases == [TOKEN, 0]
    server.wait(ASK)
    assert server.asked().kind == "store.grant"


def test_one_that_the_store_has_let_pass_is_lost(server: OneServer) -> None:
    server.lease.want(True)
    server.grant()
    server.say("store.lost", token=TOKEN, name=NAME, text="too late")
    assert server.port.leases == [TOKEN, 0]


def test_it_is_given_up_when_no_agent_is_left(server: OneServer) -> None:
    server.lease.want(True)
    server.grant()
    server.lease.want(False)
    assert server.asked() == Frame("store.release", {"name": NAME, "token": TOKEN}, b"")
    assert (server.port.leases, server.said()[-1]) == ([TOKEN, 0], "agent_lease_released")
    server.wait(100)
    assert server.port.to_store == []


def test_one_that_is_granted_too_late_is_given_back(server: OneServer) -> None:
    server.lease.want(True)
    frame = server.asked()
    server.lease.want(False)
    server.say("store.granted", id=frame.head["id"], token=TOKEN, renewed_until=server.now + LEASE_TIME)
    assert server.asked().kind == "store.release"
    assert server.port.leases == [0]


def test_it_asks_again_after_a_while_if_another_server_has_it(server: OneServer) -> None:
    server.lease.want(True)
    for why in ("running", "trouble", "clock"):
        server.refuse(why)
        assert server.port.to_store == []
        assert server.lease.deadline() == server.now + ASK
        server.wait(ASK)
    server.grant()
    assert server.port.leases == [TOKEN]


def test_a_clock_that_is_behind_another_server_s_is_made_up_for(server: OneServer) -> None:
    server.lease.want(True)
    asked = []
    for _ in range(7):
        asked.append(server.port.to_store[0].head["tick"] - server.now - 1000)
        server.refuse("granted")
    assert asked == [0, 1, 2, 4, 8, 16, 32]
    assert server.port.to_store[0].head["tick"] == server.now + 1000 + 40
    server.refuse("granted")
    assert server.port.to_store == []  # and then it waits


def test_it_asks_at_once_when_the_store_is_back(server: OneServer) -> None:
    server.hub.store_changed("away")
    server.lease.want(True)
    server.refuse("trouble")
    server.hub.store_changed("")
    assert server.asked().kind == "store.grant"


def test_replies_to_schedules_are_not_its_own(server: OneServer) -> None:
    server.lease.want(True)
    server.say("store.granted", id=1, token=7, renewed_until=server.now + 30)
    server.say("store.lost", token=7, name="report", text="too late")
    assert server.port.leases == []


def test_without_a_fleet_it_asks_for_nothing() -> None:
    server = OneServer(agent_in_fleet=False)
    server.lease.want(True)
    server.wait(100)
    assert server.port.to_store == []


def test_it_goes_on_in_another_program_of_the_listener(server: OneServer) -> None:
    server.lease.want(True)
    server.grant()
    after = OneServer()
    after.hub.load(server.hub.to_state())
    after.lease.want(True)
    after.wait(RENEW)
    assert after.asked().head["token"] == TOKEN
    asking = OneServer()
    asking.lease.want(True)
    frame = asking.asked()
    after = OneServer()
    after.hub.load(asking.hub.to_state())
    after.say("store.granted", id=frame.head["id"] - 1, token=1, renewed_until=after.now)  # of a program before
    after.say("store.granted", id=frame.head["id"], token=TOKEN, renewed_until=after.now + LEASE_TIME)
    assert after.port.leases == [TOKEN]
