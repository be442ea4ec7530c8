"""The alarm: with four workers a mute holds at once in all, over reloads and restarts; and without shared state it does
not."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import duckdb

from tests.examples.serving import EXAMPLES, ask, ask_each, reload, until
from tests.running import PATIENCE, RunningServer, connect, request, running

WORKERS = 4
Answer = Callable[[str, bytes], bytes]


class Refused(Exception):
    pass


@contextlib.contextmanager
def http_server(answer: Answer) -> Iterator[str]:
    """A real HTTP server that answers each POST (target, content) with what `answer` returns; yields its address.

    If `answer` raises Refused, with 500.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                content = answer(self.path, self.rfile.read(int(self.headers["content-length"])))
            except Refused:
                self.send_error(500)
                return
            with contextlib.suppress(BrokenPipeError):  # it was not waited for
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Chat:
    """The chat's incoming webhook."""

    def __init__(self) -> None:
        self.posted: list[str] = []

    def __call__(self, target: str, content: bytes) -> bytes:
        assert target == "/hooks/x"
        self.posted.append(json.loads(content)["text"])
        return b"ok"


@contextlib.contextmanager
def alarm(
    directory: Path, webhook: str, *arguments: str, app: str = "alarm:app", workers: int = WORKERS, **environment: str
) -> Iterator[RunningServer]:
    """The alarm, looking at short intervals at the access log that the server itself writes into `directory`."""
    environment |= {
        "ALARM_EVERY": "300ms",
        "ALARM_THRESHOLD": "3",
        "ALARM_WEBHOOK_URL": f"{webhook}/hooks/x",
        "PYTHONPATH": f"{directory}:{EXAMPLES.parent}",
    }
    log = ("--access-log-file", "access.log", "--access-log-format", "json")
    with running(
        *(app, "--app-dir", str(EXAMPLES / "alarm"), "--workers", str(workers), *log, *arguments),
        directory=directory,
        environment={**environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
    ) as server:
        yield server


def not_found(server: RunningServer, times: int) -> None:
    with connect(server) as connection:
        for _ in range(times):
            assert request(connection, "/nothing")[0] == 404


def runs(server: RunningServer) -> int:
    """How often the job has run, of which every worker knows the same."""
    return int((ask(server, "/")["last"] or {"run": 0})["run"])


def wait_for_runs(server: RunningServer, more: int) -> None:
    enough = runs(server) + more
    until(lambda: runs(server) >= enough)


def assert_quiet(server: RunningServer, chat: Chat) -> None:
    """The job runs and nothing is posted; what had been begun before has ended with the first run that ends now."""
    wait_for_runs(server, 1)
    before = len(chat.posted)
    wait_for_runs(server, 2)
    assert len(chat.posted) == before


def muted_in(server: RunningServer, workers: int = WORKERS) -> dict[int, bool]:
    """Whether it is muted, by the first answer of each worker."""
    return {slot: answer["muted"] for slot, answer in ask_each(server, "/", workers).items()}


def test_the_mute_holds_at_once_in_all_workers_and_over_reloads_and_restarts(tmp_path: Path) -> None:
    chat = Chat()
    state = ("--state", str(tmp_path / "alarm.db"))
    everywhere = dict.fromkeys(range(WORKERS), True)
    with http_server(chat) as webhook:
        with alarm(tmp_path, webhook, *state) as server:
            not_found(server, 5)
            until(lambda: bool(chat.posted))
            assert re.fullmatch(r"\d+ answers were 404 in the last 10 minutes \(threshold 3\)", chat.posted[0])
            ran, posted = runs(server), len(chat.posted)
            wait_for_runs(server, 2)
            ran, posted = runs(server) - ran, len(chat.posted) - posted
            assert posted <= ran + 1, "each tick runs in one worker, and not in each"

            assert ask(server, "/close?name=not-found")["muted"] is True
            assert muted_in(server) == everywhere
            assert_quiet(server, chat)

            reload(server)
            assert muted_in(server) == everywhere
            assert ask(server, "/")["generation"] == 2
            assert_quiet(server, chat)
            assert server.stop() == 0
        with alarm(tmp_path, webhook, *state) as server:
            assert muted_in(server) == everywhere
            assert_quiet(server, chat)

            posted = len(chat.posted)
            assert ask(server, "/open?name=not-found")["muted"] is False
            assert muted_in(server) == dict.fromkeys(range(WORKERS), False)
            until(lambda: len(chat.posted) > posted)
            assert server.stop() == 0


ACCIDENT = """
import alarm


class Variable:
    '''What there is in a single process: a dict of this module.'''

    def __init__(self):
        self.kept = {}

    def get(self, key, default=None):
        return self.kept.get(key, default)

    async def set(self, key, value):
        self.kept[key] = value

    async def incr(self, key):
        self.kept[key] = self.kept.get(key, 0) + 1
        return self.kept[key]


alarm.shared = Variable()
app = alarm.app
"""


def test_the_accident_the_same_with_a_variable_is_muted_in_one_worker_and_forgets(tmp_path: Path) -> None:
    """What docs/guides/multi-process.md begins with is seen here, so that the test above shows something."""
    (tmp_path / "accident.py").write_text(ACCIDENT)
    chat = Chat()
    with http_server(chat) as webhook, alarm(tmp_path, webhook, app="accident:app", workers=2) as server:
        not_found(server, 5)
        until(lambda: bool(chat.posted))
        closed = ask(server, "/close?name=not-found")
        assert closed["muted"] is True
        assert muted_in(server, 2) == {slot: slot == closed["worker"] for slot in range(2)}
        posted = len(chat.posted)
        until(lambda: len(chat.posted) > posted + 1)  # the job runs in another worker before long
        reload(server)
        assert not any(muted_in(server, 2).values())
        assert server.stop() == 0


class ClickHouse:
    """ClickHouse's HTTP interface as far as the alarm uses it; what it is asked is counted by a real SQL engine."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.counted: list[int] = []

    def __call__(self, target: str, content: bytes) -> bytes:
        """Parameters are substituted as https://clickhouse.com/docs/interfaces/http describes."""
        given = {name: values[0] for name, values in parse_qs(urlsplit(target).query, strict_parsing=True).items()}
        sql, format = content.decode().rsplit("FORMAT", 1)
        assert format.strip() == "JSONEachRow"
        values = {"Identifier": '"{}"', "UInt16": "{}", "DateTime64(3, 'UTC')": "'{}'::TIMESTAMP"}
        sql = re.sub(r"\{(\w+):([^}]+)\}", lambda found: values[found[2]].format(given[f"param_{found[1]}"]), sql)
        with duckdb.connect() as engine:
            engine.execute(
                "CREATE VIEW access_log AS FROM read_json($path, format = 'nd', columns = $columns)".replace(
                    "$columns", "{time: 'TIMESTAMP', status: 'USMALLINT'}"
                ).replace("$path", f"'{self.log}'")
            )
            row = engine.execute(sql).fetchone()
        assert row is not None
        self.counted.append(row[0])
        return b'{"found":"%d"}\n' % row[0]  # ClickHouse quotes 64-bit integers


class Unwell(Chat):
    """One that refuses, then hangs, then takes what is posted."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = True
        self.well = threading.Event()

    def __call__(self, target: str, content: bytes) -> bytes:
        if self.refuses:
            raise Refused
        self.well.wait(PATIENCE)
        return super().__call__(target, content)


def test_it_goes_on_while_the_chat_refuses_or_hangs_and_over_a_rotated_log(tmp_path: Path) -> None:
    chat = Unwell()
    with http_server(chat) as webhook, alarm(tmp_path, webhook, workers=2, ALARM_WEBHOOK_TIMEOUT="0.3") as server:
        not_found(server, 5)
        until(lambda: "the webhook did not take '5 answers" in server.log())
        chat.refuses = False
        until(lambda: "no answer in 0.3 s" in server.log())
        wait_for_runs(server, 2)
        chat.posted.clear()
        chat.well.set()
        until(lambda: bool(chat.posted))
        assert chat.posted[0].startswith("5 answers were 404")

        log, older = tmp_path / "access.log", tmp_path / "access.log.2"
        older.write_bytes(log.read_bytes())
        os.utime(older, (0, 0))
        log.rename(tmp_path / "access.log.1")
        server.signal(signal.SIGUSR1)
        not_found(server, 2)
        until(lambda: chat.posted[-1].startswith("7 answers were 404"))
        assert server.stop() == 0


def test_with_clickhouse_and_its_own_command(tmp_path: Path) -> None:
    chat, clickhouse = Chat(), ClickHouse(tmp_path / "access.log")
    with http_server(chat) as webhook, http_server(clickhouse) as address:
        command = [sys.executable, str(EXAMPLES / "alarm"), "--every", "300ms", "--threshold", "3"]
        with running(
            f"--clickhouse-url={address}",
            *("--webhook", f"{webhook}/hooks/x", "--log-level", "debug"),
            directory=tmp_path,
            command=command,
            environment={"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        ) as server:
            not_found(server, 5)
            until(lambda: 5 in clickhouse.counted)
            until(lambda: bool(chat.posted))
            assert chat.posted[0].startswith("5 answers were 404")
            with connect(server) as connection:
                status, content = request(connection, "/close?name=other")
            assert (status, json.loads(content)) == (400, {"error": "there is no alarm 'other'; there is 'not-found'"})
            assert server.stop() == 0
