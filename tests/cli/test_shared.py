"""`serve shared` and `serve messages`, as they are typed, against one server."""

from __future__ import annotations

import contextlib
import json
import re
import select
import signal
from collections.abc import Iterator

import pytest

from serve_asgi.cli.control_client import ask
from serve_asgi.cli.messages import add_rates, lines
from tests.applications import info
from tests.cli.serving import serve, start
from tests.running import PATIENCE, RunningServer, connect, request, running

APPLICATION = (
    info()
    + """

import asyncio
from serve_asgi import messenger, shared

hold = asyncio.Event()


@messenger.on("orders")
async def orders(message):
    await hold.wait()


inner = app


async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/send":
        for number in range(5):
            await messenger.send_to_any("orders", number)
    if scope["type"] == "http" and scope["path"] == "/flag":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": repr(shared.get("flag")).encode()})
    await inner(scope, receive, send)
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("shared")
    (directory / "app.py").write_text(APPLICATION)
    with running("app:app", "--workers", "2", "--graceful-timeout", "0.2", directory=directory) as server:
        yield server


def test_a_key_is_set_read_and_deleted_for_all_processes(server: RunningServer) -> None:
    assert serve(server, "shared", "list").stdout == "the shared state is empty\n"
    done = serve(server, "shared", "set", "flag", '{"on": [1, null]}')
    assert (done.returncode, done.stdout) == (0, "flag is set, in all processes\n")
    with contextlib.closing(connect(server)) as client:
        assert request(client, "/flag") == (200, b"{'on': [1, None]}")
    assert json.loads(serve(server, "shared", "get", "flag").stdout) == {"on": [1, None]}
    told = json.loads(serve(server, "shared", "get", "flag", "--json").stdout)
    assert told["key"] == "flag"
    refused = serve(server, "shared", "set", "flag", "1", "--if-version", str(told["version"] + 1))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "it was written meanwhile" in refused.stderr
    done = serve(server, "shared", "set", "flag", "on", "--text", "--if-version", str(told["version"]), "--json")
    assert json.loads(done.stdout)["version"] > told["version"]
    assert re.search(r"^flag +\d+ +3 B  \"on\"$", serve(server, "shared", "list", "fl").stdout, re.MULTILINE)
    assert json.loads(serve(server, "shared", "list", "--json").stdout)["total"] == 1
    assert serve(server, "shared", "list", "none").stdout == "no key begins with 'none'\n"
    assert serve(server, "shared", "delete", "flag").stdout == "flag is deleted, in all processes\n"
    for words in (("get", "flag"), ("delete", "flag")):
        done = serve(server, "shared", *words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "serve: there is no 'flag'\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("get",), "serve: it is `serve shared get KEY`\n"),
        (("set", "flag"), "serve: it is `serve shared set KEY VALUE`\n"),
        (("set", "flag", "on"), "serve: 'on' is not JSON: a string is written '\"…\"', or as it is with --text\n"),
    ],
)
def test_wrong_usage_is_a_sentence(server: RunningServer, words: tuple[str, ...], sentence: str) -> None:
    done = serve(server, "shared", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_changes_are_watched_as_they_come(server: RunningServer) -> None:
    watching = start(server, "shared", "watch", "w:", "--json")
    assert watching.stdout is not None
    while not select.select([watching.stdout], [], [], 0.1)[0]:  # until it watches
        ask(server.control, "shared", do="set", name="w:1", value=1)
    assert json.loads(watching.stdout.readline()).items() >= {"key": "w:1", "value": 1}.items()
    serve(server, "shared", "set", "other", "1")
    serve(server, "shared", "delete", "w:1")
    while (change := json.loads(watching.stdout.readline())).get("value") == 1:
        pass  # one more had been set before it was seen to watch
    assert change.items() >= {"key": "w:1", "deleted": True}.items()
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 130


def test_topics_are_shown_with_what_waits_and_who_handles_them(server: RunningServer) -> None:
    with contextlib.closing(connect(server)) as client:
        assert request(client, "/send")[0] == 200
    told = serve(server, "messages", "--interval", "0.1").stdout.splitlines()
    assert told[0].startswith("5 messages accepted, 2 delivered, 3 waiting")
    assert re.fullmatch(r"orders +3 +2 +0\.0  0\.1 1\.1", told[-1])
    one = serve(server, "messages", "orders", "--interval", "0.1").stdout
    assert re.search(r"0\.1  serving +1 +0 +1 +0\.0", one)
    assert one.endswith("waiting for any of them: 3 messages\n")
    assert json.loads(serve(server, "messages", "--json", "--interval", "0.1").stdout)["topics"][0]["waiting"] == 3
    done = serve(server, "messages", "nothing", "--interval", "0.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no process handles 'nothing'" in done.stderr


def test_rates_are_of_those_that_were_there_before() -> None:
    def told(*counts: tuple[int, int], unnamed: int = 0) -> dict[str, object]:
        consumers = [{"slot": slot, "generation": 1, "delivered": count} for slot, count in counts]
        sum_ = sum(count for _, count in counts)
        topic = {"topic": "t", "consumers": consumers, "subscribers": len(counts) + unnamed, "delivered": sum_}
        return {"topics": [topic], "total": 1}

    now = told((0, 30), (2, 8))
    add_rates(told((0, 10), (1, 100)), now, 2.0)
    assert [each["rate"] for each in now["topics"][0]["consumers"]] == [10.0, 4.0]  # type: ignore[index]
    assert now["topics"][0]["rate"] == 14.0  # type: ignore[index]
    now = told((0, 30), unnamed=1)
    add_rates(told((0, 10), unnamed=1), now, 2.0)
    assert now["topics"][0]["rate"] == 10.0  # type: ignore[index]


def test_an_application_without_messages_has_a_line_that_says_so() -> None:
    counts = dict.fromkeys(("accepted", "given", "failed", "dead", "lost"), 0)
    found = {"topics": [], "total": 0, "slots": [{"slot": 3, "waiting": 1}], "counts": counts}
    told = lines({**found, "waiting": 1, "waiting_bytes": 10}, None)
    assert told[1:] == ["waiting for worker 3, which has no process: 1 message", "no process handles messages"]
