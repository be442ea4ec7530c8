"""`serve deploys`, as it is typed: over reloads, refusals, a replaced listener and restarts."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from serve_asgi.cli.deploys import changes, plain, rows
from tests.applications import info
from tests.cli.serving import serve
from tests.running import RunningServer, running, until
from tests.store.stores import Redis, own_redis


def listed(server: RunningServer, *more: str) -> list[dict[str, Any]]:
    """The deploys, the oldest first."""
    done = serve(server, "deploys", "--json", *more)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found[::-1]


def deploy_several(server: RunningServer, directory: Path) -> None:
    """Two reloads that succeed, the second with another option, and one that is refused."""
    assert serve(server, "reload", SUDO_USER="alice").returncode == 0
    (directory / "serve.toml").write_text("keep-alive = 44\n")
    server.signal(signal.SIGHUP)
    server.wait_until(lambda status: status["reloads"] == 2)
    (directory / "app.py").write_text("import nothing_of_this_name\n")
    assert serve(server, "reload").returncode == 1
    (directory / "app.py").write_text(info())


def ended(server: RunningServer) -> bool:
    """Whether the numbers of the last reload are known."""
    deploys = control_client.ask(server.control, "deploys")["deploys"]
    return all(each["handed_over"] is not None for each in deploys if each["outcome"] == "done")


OUTCOMES = ["started", "done", "done", "refused"]


def test_a_start_reloads_and_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--workers", "2", directory=tmp_path) as server:
        deploy_several(server, tmp_path)
        until(lambda: ended(server))
        start, first, second, refused = listed(server)
        assert [each["outcome"] for each in (start, first, second, refused)] == OUTCOMES
        assert [each["by"] for each in (start, first, second, refused)] == ["start", *["serve reload", "HUP"] * 2][:4]
        assert start["to"] == first["from"]
        assert (start["to"]["app"], start["to"]["directory"]) == ("app:app", str(tmp_path))
        assert "(alice), from " in first["who"]
        assert (second["who"], second["options"]) == ("", ["--keep-alive 44.0"])
        assert second["to"] == refused["from"] == {**start["to"], "generation": 3}
        assert "nothing_of_this_name" in refused["text"] or "app:app" in refused["text"]
        assert all(each["seconds"] > 0 for each in (start, first, second, refused))
        assert (first["handed_over"], first["cut"], refused["handed_over"]) == (0, 0, None)
        assert len(listed(server, "--last", "2")) == 2

        before = listed(server)
        assert serve(server, "reload", "--listener").returncode == 0
        assert listed(server) == before
        assert serve(server, "reload").returncode == 0
        until(lambda: ended(server))
        assert [each["outcome"] for each in listed(server)] == [*OUTCOMES, "done"]
        assert listed(server)[-1]["from"]["generation"] == 3

        table = serve(server, "deploys")
        assert table.returncode == 0
        head, *lines = table.stdout.splitlines()
        assert head.split() == ["when", "by", "generation", "took", "moved", "cut", "outcome"]
        assert [line.split("  ")[-1].strip() for line in lines][2] == "--keep-alive 44.0"
        assert len(lines) == 5
        told = serve(server, "status").stdout
        assert "last deploy" in told
        assert "by serve reload" in told


def test_a_refused_configuration_and_a_stop_in_the_middle(tmp_path: Path) -> None:
    """What never began has no generation; what had not ended is kept as given up."""
    (tmp_path / "app.py").write_text(info())
    state = ("--state", "state.db")
    with running("app:app", *state, directory=tmp_path) as server:
        (tmp_path / "serve.toml").write_text("keep-alive = never\n")
        assert serve(server, "reload").returncode == 1
        refused = listed(server)[-1]
        assert (refused["outcome"], refused["to"]) == ("refused", None)
        assert "serve.toml" in refused["text"]
        (tmp_path / "serve.toml").write_text("")
        (tmp_path / "app.py").write_text(f"import time\ntime.sleep(60)\n{info()}")
        server.signal(signal.SIGHUP)
        until(lambda: listed(server)[-1]["to"] is not None)
        assert listed(server)[-1]["outcome"] == "under_way"
        assert server.stop() == 0
    (tmp_path / "app.py").write_text(info())
    with running("app:app", *state, directory=tmp_path) as server:
        assert [each["outcome"] for each in listed(server)] == ["started", "refused", "given_up", "started"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with own_redis(tmp_path / "redis") as server:
        yield server


def survives_a_restart(directory: Path, state: str) -> None:
    (directory / "app.py").write_text(info())
    options = ("app:app", "--workers", "2", "--state", state)
    with running(*options, directory=directory) as server:
        deploy_several(server, directory)
        until(lambda: ended(server))
        before = listed(server)
        assert server.stop() == 0
    with running(*options, directory=directory) as server:
        *earlier, start = listed(server)
        assert earlier == before
        assert (start["outcome"], start["from"]["generation"], start["to"]["generation"]) == ("started", 3, 1)
        assert serve(server, "reload", "--listener").returncode == 0
        assert listed(server) == [*before, start]
        server.reload()
        assert len(listed(server)) == len(before) + 2


def test_it_survives_a_restart_in_a_file(tmp_path: Path) -> None:
    survives_a_restart(tmp_path, "state.db")


@pytest.mark.needs("redis-server")
def test_it_survives_a_restart_in_a_redis(tmp_path: Path, redis: Redis) -> None:
    survives_a_restart(tmp_path, redis.url)


@pytest.mark.needs("redis-server")
def test_a_store_that_is_away_holds_no_deploy_up_and_gets_it_later(tmp_path: Path, redis: Redis) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", "--state", redis.url, directory=tmp_path) as server:
        redis.kill()
        server.wait_until(lambda status: bool(status["state_store"]["trouble"]))
        server.reload()
        assert [each["outcome"] for each in listed(server)] == ["started", "done"]
        redis.start()
        server.wait_until(lambda status: not status["state_store"]["trouble"])
        until(lambda: ended(server))
        before = listed(server)
        assert server.stop() == 0
    with running("app:app", "--state", redis.url, directory=tmp_path) as server:
        assert listed(server)[:2] == before


def test_a_server_that_does_not_know_the_command(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(info())
    with running("app:app", directory=tmp_path) as server:
        with pytest.raises(control_client.RequestRefused, match="does not know"):
            control_client.ask(server.control, "deployments")
        assert serve(server, "deploys", "--last", "0").returncode == 2


# ---- what is printed

VERSION = {"app": "app:app", "directory": "/srv/app/releases/41", "python": "/srv/app/releases/41/bin/python"}


def deploy(**more: Any) -> dict[str, Any]:
    before = {**VERSION, "generation": 7, "commit": "a" * 40}
    plain: dict[str, Any] = {"kind": "reload", "by": "HUP", "at": 1.5, "who": "", "server": "one", "options": []}
    plain |= {"outcome": "done", "text": "", "seconds": 1.25, "handed_over": 412, "cut": 0, "trial": None}
    return {**plain, "from": before, "to": {**before, "generation": 8}, **more}


def test_only_what_differs_is_named() -> None:
    assert list(changes(deploy())) == []
    later = {**VERSION, "generation": 8, "commit": "", "directory": "/srv/app/releases/42"}
    assert list(changes(deploy(to=later, options=["--workers 8"]))) == [
        "41 → 42",
        "aaaaaaaaa → ?",
        "--workers 8",
    ]
    moved = {**later, "directory": "/opt/app", "python": "/opt/app/bin/python", "app": "other:app", "commit": "b" * 40}
    assert list(changes(deploy(to=moved))) == [
        "app:app → other:app",
        "srv/app/releases/41 → opt/app",
        "srv/app/releases/41/bin/python → opt/app/bin/python",
        "aaaaaaaaa → bbbbbbbbb",
    ]
    assert list(changes(deploy(to=None))) == []


def test_of_a_start_it_is_always_named_what_was_started() -> None:
    again = deploy(kind="start", outcome="started")
    assert list(changes(again)) == ["app:app", "/srv/app/releases/41", "a" * 9]
    assert list(changes({**again, "from": None})) == ["app:app", "/srv/app/releases/41", "a" * 9]
    newer = {**again["to"], "directory": "/srv/app/releases/42", "commit": ""}
    assert list(changes({**again, "to": newer})) == ["app:app", "41 → 42", "aaaaaaaaa → ?"]


def test_several_servers_of_one_host_are_told_apart_by_their_directories() -> None:
    def servers(*deploys: dict[str, Any]) -> list[str]:
        table = rows(list(deploys))
        return [row[table[0].index("server")] for row in table[1:]] if "server" in table[0] else []

    first, second = deploy(place="/srv/a"), deploy(place="/srv/b")
    assert servers(first, first, deploy()) == []
    assert servers(first, second, deploy()) == ["one:/srv/a", "one:/srv/b", "one"]
    assert servers(first, deploy(server="two", place="/srv/a")) == ["one", "two"]


def test_a_row_says_all_in_few_words() -> None:
    head, row = plain(rows([deploy(who="alice, from make", text="it does not start", outcome="given_up")])).splitlines()
    assert head.split() == ["when", "by", "generation", "took", "moved", "cut", "outcome"]
    assert row == (
        "1970-01-01 00:00:01Z  HUP, alice, from make  7 → 8       1.2 s    412    0  given up  it does not start"
    )
    several = plain(rows([deploy(), deploy(server="two", to=None, handed_over=None)]))
    assert [line.split()[2] for line in several.splitlines()[1:]] == ["one", "two"]
