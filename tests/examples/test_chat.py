"""The chat: people on different workers see each other's messages, and over reloads nobody misses one."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.browser import Page, page
from tests.examples.serving import EXAMPLES, example
from tests.running import PATIENCE, RunningServer, running

WORKERS = 4
PEOPLE = 5
RELOADS = int(os.environ.get("EXAMPLES_RELOADS", "2"))
SERVICE_RESTART = 1012
UNREADABLE = 1007
PAUSE = 0.05
"""Seconds between two messages of a person: so that fewer come while one is away than the chat keeps."""
PICTURE = os.environ.get("CHAT_PICTURE")
"""Where to write the README's picture anew: CHAT_PICTURE=chat.png (there with its colours reduced to 256)."""


@contextlib.contextmanager
def chat(directory: Path, workers: int = WORKERS) -> Iterator[RunningServer]:
    with example("chat:app", "--workers", str(workers), directory=directory, environment={}) as server:
        yield server


class Person:
    """A client as the page is one. Closed, it comes back with the last id, and says again what it has not seen."""

    def __init__(self, url: str, name: str) -> None:
        self.name = name
        self.heard: list[dict[str, Any]] = []
        self.places: list[tuple[int, int]] = []
        """Worker and generation, of each connection and after each move of one to another worker."""
        self.codes: list[int | None] = []
        """What each connection was closed with."""
        self._url = url
        self._place = (-1, 0)
        self._numbers = itertools.count()
        self._unheard: dict[str, str] = {}
        self._socket: ClientConnection | None = None
        self._changed = asyncio.Event()

    async def live(self) -> None:
        """Until cancelled."""
        after = ""
        while True:
            async with connect(f"{self._url}/socket{after}", proxy=None, open_timeout=PATIENCE) as socket:
                with contextlib.suppress(ConnectionClosed):
                    async for text in socket:
                        await self._take(socket, json.loads(text))
            self._socket = None
            self.codes.append(socket.close_code)
            after = f"?after={self.heard[-1]['id']}" if self.heard else ""

    async def _take(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        if "id" in message:
            self.heard.append(message)
            self._unheard.pop(message["key"], None)
        elif "generation" in message:
            self._place = (message["worker"], message["generation"])
            if self._socket is not None:
                self.places.append(self._place)
        elif "ready" in message:
            self.places.append(self._place)
            self._socket = socket
            for key in list(self._unheard):
                await self._send(key)
        self._changed.set()

    async def say(self, text: str) -> None:
        """Say it, and return when it has been heard."""
        key = f"{self.name}-{next(self._numbers)}"
        self._unheard[key] = text
        await self._send(key)
        await self.wait_until(lambda: key not in self._unheard)

    async def _send(self, key: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed):
                await self._socket.send(json.dumps({"say": self._unheard[key], "name": self.name, "key": key}))

    async def wait_until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def gathered(server: RunningServer, tasks: asyncio.TaskGroup) -> tuple[list[Person], list[asyncio.Task[None]]]:
    """People who have come, PEOPLE at least and on two workers at least; and their lives."""
    host, port = server.address()
    people: list[Person] = []
    living: list[asyncio.Task[None]] = []
    while len(people) < PEOPLE or len({person.places[0] for person in people}) == 1:
        assert len(people) < 5 * PEOPLE, "all on one worker"
        if len(people) >= PEOPLE:  # on a busy machine the worker that has the processor takes all that come at once
            await asyncio.sleep(0.1)
        people.append(Person(f"ws://{host}:{port}", f"p{len(people)}"))
        living.append(tasks.create_task(people[-1].live()))
        await people[-1].wait_until(lambda: people[-1].places)
    return people, living


async def talk(server: RunningServer, codes: list[int]) -> None:
    """All talk, over all reloads; `codes` are what each one's connections are closed with."""
    over = asyncio.Event()
    said: collections.Counter[str] = collections.Counter()

    async def chatter(person: Person) -> None:
        while not over.is_set():
            await person.say(str(said[person.name]))
            said[person.name] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await over.wait()

    async with asyncio.TaskGroup() as tasks:
        people, living = await gathered(server, tasks)
        talking = [tasks.create_task(chatter(person)) for person in people]
        for generation in range(2, RELOADS + 2):
            enough = len(people[0].heard) + 30
            await people[0].wait_until(lambda enough=enough: len(people[0].heard) >= enough)
            await asyncio.to_thread(server.reload)
            for person in people:
                await person.wait_until(lambda p=person, g=generation: p.places[-1][1] == g)
        over.set()
        await asyncio.wait(talking)
        for person in people:
            await person.wait_until(lambda p=person: len(p.heard) >= said.total())
        for task in living:
            task.cancel()

    everything = people[0].heard
    assert [message["id"] for message in everything] == list(range(1, said.total() + 1))
    assert collections.Counter(message["name"] for message in everything) == said, "nothing was said twice"
    for person in people:
        assert person.heard == everything, "all hear the same messages, in the same order"
        assert person.codes == codes
    print(f"{len(everything)} messages, heard by {len(people)} people, over {RELOADS} reloads")


@pytest.mark.timeout(60 + 30 * RELOADS)
def test_nobody_misses_a_message_over_reloads_and_each_stays_on_one_connection(tmp_path: Path) -> None:
    with chat(tmp_path) as server:
        asyncio.run(talk(server, codes=[]))
        totals = server.status()["totals"]
        assert (totals["survived"] >= PEOPLE * RELOADS, totals["not_survived"]) == (True, 0)
        assert server.stop() == 0


WITHOUT_SURVIVAL = """
from chat import app as chat


async def app(scope, receive, send):
    scope.get("extensions", {}).pop("serve.survive", None)
    await chat(scope, receive, send)
"""


@pytest.mark.timeout(60 + 30 * RELOADS)
def test_where_connections_cannot_survive_all_are_told_to_come_back_and_miss_nothing(tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text(WITHOUT_SURVIVAL)
    environment = {"PYTHONPATH": str(EXAMPLES / "chat")}
    with running("without:app", "--workers", str(WORKERS), directory=tmp_path, environment=environment) as server:
        asyncio.run(talk(server, codes=[SERVICE_RESTART] * RELOADS))
        assert server.stop() == 0


async def amid_trouble(server: RunningServer) -> None:
    """Somebody talks while others send what is no JSON, do not read, and while another worker stands still."""
    host, port = server.address()
    url = f"ws://{host}:{port}"
    for nonsense in ("{", b"\x00", '{"say": "\\ud800", "name": "", "key": "k"}'):
        async with connect(f"{url}/socket", proxy=None) as socket:
            await socket.send(nonsense)
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()
            assert socket.close_code == UNREADABLE
    async with asyncio.TaskGroup() as tasks:
        people, living = await gathered(server, tasks)
        talker = people[0]
        (other,) = {person.places[0][0] for person in people} - {talker.places[0][0]}
        stopped = server.worker_pids()[other]
        os.kill(stopped, signal.SIGSTOP)
        try:
            for number in range(2):
                await talker.say(str(number))
        finally:
            os.kill(stopped, signal.SIGCONT)
        for person in people:
            await person.wait_until(lambda person=person: len(person.heard) == 2)
            assert not person.codes, "nobody was thrown out"
        for task in living:
            task.cancel()


def test_one_who_sends_nonsense_or_a_worker_that_stands_still_holds_up_nobody(tmp_path: Path) -> None:
    with chat(tmp_path, 2) as server:
        asyncio.run(amid_trouble(server))
        assert server.stop() == 0
        assert "Traceback" not in server.log()


@pytest.mark.needs("chromium")
def test_the_page_over_a_reload(tmp_path: Path) -> None:
    """In a real browser: it shows what others on other workers say, stays on its WebSocket, and has missed nothing."""
    with chat(tmp_path, WORKERS if PICTURE else 2) as server, page(tmp_path / "profile") as browser:
        host, port = server.address()
        browser.look(1080, 760, "light")
        browser.open(f"http://{host}:{port}/")
        browser.wait_for("document.getElementById('state').classList.contains('live')")
        browser.evaluate("document.getElementById('name').value = 'Ada'")
        asyncio.run(conversation(server, browser))
        assert browser.evaluate("[...document.querySelectorAll('#messages .text')].map(e => e.textContent)") == [
            text for _, text in SAID
        ]
        assert browser.evaluate("document.querySelector('#messages .break').textContent") == (
            "The server was reloaded: generation 2, same WebSocket"
        )
        if PICTURE:
            browser.look(1080, 900, "light", 1.5)
            Path(PICTURE).write_bytes(browser.picture(whole=False))
        browser.look(390, 700, "dark")
        browser.wait_for("document.documentElement.scrollWidth <= innerWidth")
        if PICTURE:
            Path(PICTURE).with_suffix(".dark.png").write_bytes(browser.picture(whole=False))
        browser.open("about:blank")
        assert server.stop() == 0
        assert "error" not in server.log()


SAID = (
    ("Grace", "Hello! Which worker are you on?"),
    ("Ada", "The page says it up there, on the right. You?"),
    ("Ken", "Another one. It doesn't matter any more, does it?"),
    ("Grace", "Not for talking. I'll deploy the new version while we are at it."),
    ("Ada", "Now? We are in the middle of a conversation."),
    ("Grace", "kill -HUP sent. Did you notice?"),
    ("Ken", "I am on generation 2 now, and I can still read every word you said."),
    ("Ada", "Me too. Nothing missed, nothing twice."),
)
RELOAD_BEFORE = 6
"""The reload begins before this one of what is said."""


async def conversation(server: RunningServer, browser: Page) -> None:
    """Ada is in the browser."""
    host, port = server.address()
    others = {name: Person(f"ws://{host}:{port}", name) for name in ("Grace", "Ken")}
    async with asyncio.TaskGroup() as tasks:
        living = [tasks.create_task(person.live()) for person in others.values()]
        for number, (name, text) in enumerate(SAID):
            if number == RELOAD_BEFORE:
                await asyncio.to_thread(server.reload)
                for person in others.values():
                    await person.wait_until(lambda person=person: person.places[-1][1] == 2)
                moved = "document.getElementById('where').textContent.endsWith('of generation 2')"
                await asyncio.to_thread(browser.wait_for, moved)
            for person in others.values():
                await person.wait_until(lambda person=person: person.places)
            if name in others:
                await others[name].say(text)
            else:
                say = f"const text = document.getElementById('text'); text.value = {json.dumps(text)};"
                browser.evaluate(f"{{ {say} document.getElementById('form').requestSubmit(); }}")
            seen = "document.querySelectorAll('#messages li:not(.unsent) .text').length"
            await asyncio.to_thread(browser.wait_for, f"{seen} === {number + 1}")
        browser.evaluate("typists.set('Ken', Date.now() + 60000), showTypists()") if PICTURE else None
        for task in living:
            task.cancel()
