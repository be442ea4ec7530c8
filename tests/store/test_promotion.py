"""A PostgreSQL dies, and its standby is promoted: what was confirmed is there, and nothing is done twice.

The URL names both hosts; whichever takes writes is used. COMMIT waits for the standby (`synchronous_standby_names`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import running
from tests.schedule_application import APPLICATION, notes, until
from tests.store.postgres import Postgres, own_postgres
from tests.store.stores import store
from tests.store.test_servers import ask, has, wait_for_store

pytestmark = [pytest.mark.once, pytest.mark.needs("postgres", "initdb", "pg_basebackup")]

MORE = """
import json
from serve_asgi import agent as this_agent, shared


@schedule(every="1s")
async def tick():
    note("ran")


async def alone():
    fd = os.open("agents", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        os.write(fd, f"{time.monotonic()} {os.getpid()} {this_agent.token}\\n".encode())
        await asyncio.sleep(0.02)


quiet = app


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await quiet(scope, receive, send)
    status, found = 200, None
    try:
        _, what, key = scope["path"].split("/")
        found = await (shared.incr(key, timeout=20) if what == "incr" else shared.get_authoritative(key, timeout=20))
    except Exception as error:
        status, found = 503, type(error).__name__
    body = json.dumps(found).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def promoting() -> Iterator[tuple[Postgres, Postgres, str]]:
    """A primary, its standby, which has to confirm everything, and a URL of both."""
    with own_postgres() as primary, own_postgres(primary=primary) as standby:
        primary.confirm_by_standby()
        hosts = f"host={primary.directory},{standby.directory}"
        yield primary, standby, f"postgresql://serve@/postgres?{hosts}&target_session_attrs=read-write&timeout=2"


def test_what_was_confirmed_survives_and_no_lease_is_given_twice(promoting: tuple[Postgres, Postgres, str]) -> None:
    primary, standby, url = promoting
    with store(url) as one, store(url) as other:
        one.up(), other.up()
        now = time.time()
        first = one.grant("report", now, exclusive=True)
        agent = one.grant("serve:agent", now, exclusive=True)
        confirmed = unknown = 0
        for number in range(40):
            if number == 20:
                primary.kill()
            frame = one.write("incr", "n", by=1)
            confirmed += frame.kind == "store.written"
            unknown += frame.head.get("code") == "unknown"
        one.wait("store.down"), other.wait("store.down")
        standby.promote()
        assert confirmed <= one.up()["n"][1] <= confirmed + unknown
        other.up()
        one.set("after", 1)
        other.wait("store.change", key="after")
        assert other.grant("report", now).head["why"] == "granted"
        for name, held in (("report", first), ("serve:agent", agent)):
            assert other.grant(name, now + 1, exclusive=True).head["why"] == "running"
            one.send("store.renew", {"name": name, "token": held.head["token"], "lease": 30})
            one.wait("store.renewed", token=held.head["token"])
            one.send("store.release", {"name": name, "token": held.head["token"]})
            one.read("after")  # the release is done
            later = other.grant(name, now + 1, exclusive=True)
            assert later.head["token"] > agent.head["token"]


def test_servers_go_on_with_their_agent_and_their_schedules(
    tmp_path: Path, promoting: tuple[Postgres, Postgres, str]
) -> None:
    primary, standby, url = promoting
    (tmp_path / "app.py").write_text(APPLICATION + MORE)
    options = ("app:app", "--agent", "app:alone", "--agent-scope", "cluster", "--state", url)
    with running(*options, directory=tmp_path) as one, running(*options, directory=tmp_path) as other:
        until(lambda: _agents(tmp_path) and len(notes(tmp_path)) >= 2, "the agent and the schedule run")
        assert has(one, "/incr/n") == 1
        stop, answers = threading.Event(), [200]

        def write() -> None:
            while not stop.is_set():
                answers.append(ask(other, "/incr/n")[0])
                time.sleep(0.01)

        writer = threading.Thread(target=write)
        writer.start()
        until(lambda: len(answers) > 5, "something is written")
        primary.kill()
        one.wait_until(lambda status: bool(status["state_store"]["trouble"]))
        standby.promote()
        for server in (one, other):
            wait_for_store(server)
        before, ran = len(answers), len(notes(tmp_path))
        until(lambda: answers[before:].count(200) > 5, "it is written again")
        stop.set()
        writer.join()
        assert answers.count(200) <= has(one, "/fresh/n") == has(other, "/fresh/n") <= len(answers)
        until(lambda: len(notes(tmp_path)) >= ran + 3, "the schedule goes on")
        (last,) = {pid for _, pid, _ in _agents(tmp_path)[-1:]}
        holder = one if last in one.worker_pids() else other
        assert last in holder.worker_pids()
        assert holder.stop() == 0
        until(lambda: _agents(tmp_path)[-1][1] != last, "the other one has the agent")
    found = notes(tmp_path)
    instants, tokens = [each.instant for each in found], [int(each.token) for each in found]
    assert instants == sorted(set(instants))
    assert tokens == sorted(set(tokens))
    lives = [list(beats) for _, beats in itertools.groupby(_agents(tmp_path), lambda beat: beat[1])]
    assert len({beats[0][1] for beats in lives}) == len(lives)  # none beats while another one does
    assert all(earlier[-1][2] < later[0][2] for earlier, later in itertools.pairwise(lives))


def _agents(directory: Path) -> list[tuple[float, int, int]]:
    """When (s, monotonic) an agent was active, its process, and the token of its lease."""
    file = directory / "agents"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(float(at), int(pid), int(token)) for at, pid, token in map(str.split, lines)]
