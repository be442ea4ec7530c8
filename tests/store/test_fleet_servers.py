"""`serve fleet` over three real servers, each in a directory of its own, that share a Redis or a PostgreSQL."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from serve_asgi.cli import control_client, load
from serve_asgi.cli.fleet import NODE_TIMEOUT
from serve_asgi.cli.fleet_operation import operation_from
from serve_asgi.cli.fleet_operator import FleetOperator, OperatorOptions
from serve_asgi.cli.fleet_view import FleetServer, servers
from serve_asgi.errors import ServeError, StartError
from serve_asgi.store.fleet_access import fleet_at
from tests.running import RunningServer, connect, request, until
from tests.store.postgres import Postgres, own_place
from tests.store.stores import POSTGRES, REDIS, Redis

pytestmark = pytest.mark.once

APP = """
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    head = [(b"content-length", b"2")]
    await send({{"type": "http.response.start", "status": 200, "headers": head}})
    await send({{"type": "http.response.body", "body": b"v{version}"}})
"""
OPTIONS = ("--workers", "1", "--env-file", "current.env", "--fleet-orders", "--keep-previous", "600", "--no-access-log")


class Fleet:
    """Three servers, a, b and c, and what they share."""

    def __init__(self, url: str, directory: Path, age: Callable[[int, float], None]) -> None:
        """`age` has the store believe that it heard the server with this PID so many seconds earlier."""
        self.url = url
        self.age = age
        self.places = [directory / name for name in ("a", "b", "c")]
        for place in self.places:
            place.mkdir()
            for name in ("1.env", "2.env"):
                (place / name).touch()
            (place / "current.env").symlink_to("1.env")
        self.deploy(1)
        self.servers = [RunningServer("app:asgi", *OPTIONS, "--state", url, directory=place) for place in self.places]

    def deploy(self, version: int) -> None:
        """Put this version into all three directories."""
        for place in self.places:
            (place / "app.py").write_text(APP.format(version=version))

    def deploy_broken(self, number: int) -> None:
        (self.places[number] / "app.py").write_text("broken\n")

    def versions(self) -> list[bytes]:
        """What each of them serves."""
        found = []
        for server in self.servers:
            with connect(server) as connection:
                found.append(request(connection)[1])
        return found

    def seen(self) -> list[FleetServer]:
        """What the three have announced, in their order."""

        async def look() -> list[FleetServer]:
            async with fleet_at(self.url) as access:
                return servers(await access.look())

        return sorted(anyio.run(look), key=lambda each: each.record.directory)

    def generations(self) -> list[int]:
        return [each.record.generation for each in self.seen()]

    def orders(self) -> list[int]:
        """How many orders each of them has had."""
        return [server.log().count("an order of the fleet: ") for server in self.servers]

    def ready(self) -> Fleet:
        for each in self.servers:
            each.ready()
        until(lambda: [each.record.serving for each in self.seen()] == [1] * 3, self.seen)
        return self

    def close(self) -> None:
        for each in self.servers:
            print(each.log())
            each.close()

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
        """`serve fleet`; its exit status, and all that it has printed."""
        capsys.readouterr()
        try:
            status = load("fleet").main([*arguments, "--state", self.url], standalone_mode=False)
        except ServeError as error:
            return error.exit_status, capsys.readouterr().out + str(error)
        return status, capsys.readouterr().out


class Load:
    """A client for each server, on one connection that must last; a context manager."""

    def __init__(self, fleet: Fleet) -> None:
        self.answers: list[list[bytes]] = [[] for _ in fleet.servers]
        self.failures: list[object] = []
        self._end = threading.Event()
        self._clients = [
            threading.Thread(target=self._ask, args=(server.address(), found))
            for server, found in zip(fleet.servers, self.answers, strict=True)
        ]

    def _ask(self, address: tuple[str, int], found: list[bytes]) -> None:
        try:
            with socket.create_connection(address) as connection:
                while not self._end.wait(0.01):
                    status, body = request(connection)
                    assert status == 200
                    found.append(body)
        except (AssertionError, OSError) as error:
            self.failures.append(error)

    def __enter__(self) -> Load:
        for each in self._clients:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for each in self._clients:
            each.join()


@pytest.fixture(scope="module", params=[REDIS, POSTGRES])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if request.param == "redis":
        redis: Redis = request.getfixturevalue("shared_redis")
        url = f"{redis.url}?prefix=fleet"
    else:
        postgres: Postgres = request.getfixturevalue("shared_postgres")
        url = own_place(postgres)

    def age(pid: int, seconds: float) -> None:
        with redis.client() as client:
            for name, record in client.hgetall("fleet:fleet").items():
                if json.loads(record)["pid"] == pid:
                    client.zincrby("fleet:fleet:heard", -seconds * 1e6, name)

    fleet = Fleet(url, tmp_path_factory.mktemp("fleet"), age)
    try:
        yield fleet.ready()
    finally:
        fleet.close()


def test_the_status_shows_every_server(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = fleet.run(capsys, "status", "--json")
    assert status == 0
    for server, found in zip(fleet.servers, json.loads(out)["servers"], strict=True):
        assert found["server"].endswith(f":{server.directory}")
        assert found["pid"] == server.pid
        assert found["answers"]
        assert (found["state"], found["health"], found["generation"]) == ("running", "healthy", 1)
        assert found["takes_orders"]
    status, out = fleet.run(capsys, "status")
    assert status == 0
    assert out.splitlines()[0].endswith(": 3 servers")
    assert [line.split()[1:6] for line in out.splitlines()[3:]] == [
        [str(server.pid), "1", "running", "healthy", "1/1"] for server in fleet.servers
    ]


def test_a_drain_is_announced_at_once(fleet: Fleet) -> None:
    control_client.ask(fleet.servers[0].control, "drain")
    until(lambda: fleet.seen()[0].record.health == "draining")
    control_client.ask(fleet.servers[0].control, "drain", off=True)
    until(lambda: fleet.seen()[0].record.health == "healthy")


def test_a_reload_goes_from_server_to_server_and_loses_nothing(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fleet.generations()
    fleet.deploy(2)
    with Load(fleet) as clients:
        status, out = fleet.run(capsys, "reload")
    assert status == 0, out
    assert [line.rpartition(": ")[2][:8] for line in out.splitlines()[::2]] == ["reload"] * 3 + ["3 server"]
    assert [line.split(" (")[0].rpartition("/")[2] for line in out.splitlines()[:-1]] == list("aabbcc")
    assert fleet.versions() == [b"v2"] * 3
    assert fleet.generations() == [each + 1 for each in before]
    assert not clients.failures
    assert all({b"v1", b"v2"} == set(each) for each in clients.answers)


def test_it_stops_where_it_is_refused_and_goes_on_from_there(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    before = fleet.generations()
    fleet.deploy(3)
    fleet.deploy_broken(1)
    status, out = fleet.run(capsys, "reload")
    assert status == 1
    assert f"stopped: {fleet.seen()[1].label}: reload refused" in out
    assert "the application app:asgi cannot be imported" in out
    assert "1 of 3 servers reloaded" in out
    assert "`serve fleet rollback` takes back" in out
    assert fleet.versions() == [b"v3", b"v2", b"v2"]
    assert "stopped; 1 of 3 servers reloaded" in fleet.run(capsys, "status")[1]

    fleet.deploy(3)
    status, out = fleet.run(capsys, "reload")
    assert status == 0, out
    assert out.startswith("going on with the reload that ")
    assert "(1 of 3)" not in out
    assert fleet.versions() == [b"v3"] * 3
    assert fleet.generations() == [before[0] + 1, before[1] + 2, before[2] + 1]


def test_a_roll_back_takes_back_what_was_reloaded(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.deploy(4)
    fleet.deploy_broken(2)
    link = fleet.places[0] / "current.env"
    link.unlink()
    link.symlink_to("2.env")
    assert fleet.run(capsys, "reload", "--restart")[0] == 1
    assert fleet.versions() == [b"v4", b"v4", b"v3"]
    with Load(fleet) as clients:
        status, out = fleet.run(capsys, "rollback", "--json")
    assert status == 0, out
    steps = [json.loads(line) for line in out.splitlines()]
    assert [each["event"] for each in steps] == [*["fleet_server_ordered", "fleet_server_restored"] * 2, "outcome"]
    assert [each["server"][-1] for each in steps[:-1]] == ["b", "b", "a", "a"]
    assert steps[-1]["text"].startswith("2 of 3 servers taken back")
    older, newer = link.with_name("1.env"), link.with_name("2.env")
    told = f"{link} leads to {newer}, but {older} serves: a restart would start {newer}"
    assert [each["text"].endswith(f" serves again. {told}") for each in steps[:-1]] == [False, False, False, True]
    assert fleet.run(capsys, "status")[1].count(told) == 1
    assert fleet.versions() == [b"v3"] * 3
    assert not clients.failures
    status, out = fleet.run(capsys, "rollback")
    assert status == 1
    assert "there is nothing to take back" in out


only_redis = pytest.mark.parametrize("fleet", [REDIS], indirect=True)


@only_redis
def test_two_operators_are_one_too_many(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is refused; one that has lost its turn gives no further order, and that which it gave is followed."""
    fleet.deploy(5)
    before = fleet.orders()

    async def both() -> None:
        async with fleet_at(fleet.url) as access, anyio.create_task_group() as tasks:
            begun, said = anyio.Event(), list[str]()

            def say(event: str, text: str, server: str) -> None:
                said.append(event)
                begun.set()

            first = FleetOperator(access, OperatorOptions("one", "one", NODE_TIMEOUT, resume=False), say)
            second = FleetOperator(access, OperatorOptions("two", "two", NODE_TIMEOUT), say)

            async def reload() -> None:
                with pytest.raises(StartError, match="another operator has gone on"):
                    await first.reload()

            tasks.start_soon(reload)
            await begun.wait()
            with pytest.raises(StartError, match="one carries out an operation over this fleet"):
                await second.reload()
            view = await access.look()
            found = operation_from(view.document)
            assert found is not None
            found.until = 0.0  # as if its turn had ended
            while not await access.advance((await access.look()).version, found.encoded()):
                pass

    anyio.run(both)
    status, out = fleet.run(capsys, "reload")
    assert status == 0, out
    assert fleet.versions() == [b"v5"] * 3
    assert fleet.orders() == [each + 1 for each in before]


@only_redis
def test_a_stopped_server_is_named_until_it_goes_on(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    server = fleet.servers[1]
    server.signal(signal.SIGSTOP)
    try:
        fleet.age(server.pid, 60)
        status, out = fleet.run(capsys, "status")
        assert status == 0
        assert "3 servers, 1 of them silent" in out
        assert f"{server.directory} (PID {server.pid}) does not answer: it was last heard 1m" in out
        assert [each.answers for each in fleet.seen()] == [True, False, True]
        status, out = fleet.run(capsys, "reload")
        assert status == 1
        assert out.startswith("nothing was done, since ")
        assert f"{server.directory} has not been heard for 1m" in out
        before = fleet.generations()
        status, out = fleet.run(capsys, "reload", "--skip-silent")
        assert status == 0, out
        assert f"{server.directory}: left out" in out
        assert out.splitlines()[-1] == "2 servers reloaded"
        assert fleet.generations() == [before[0] + 1, before[1], before[2] + 1]
    finally:
        server.signal(signal.SIGCONT)
    until(lambda: all(each.answers for each in fleet.seen()))


@only_redis
def test_a_killed_server_is_named_and_forgotten_and_one_that_ends_leaves(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, ended, left = fleet.servers
    killed.signal(signal.SIGKILL)
    killed.wait()
    fleet.age(killed.pid, 60)
    assert f"{killed.directory} (PID {killed.pid}) does not answer" in fleet.run(capsys, "status")[1]
    assert ended.stop() == 0
    assert [each.record.pid for each in fleet.seen()] == [killed.pid, left.pid]
    fleet.age(killed.pid, 600)
    assert [each.record.pid for each in fleet.seen()] == [left.pid]
