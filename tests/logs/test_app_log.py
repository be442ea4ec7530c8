"""The application's own log lines: what becomes of them in a worker, and what is left to the application."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.config.options import Config
from serve_asgi.logs import app_log, server_log
from tests.running import connect, request, running, until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Broken:
    """An application's object that cannot be rendered."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process whose server log is a file; what the tests do to `logging` is undone."""
    top = logging.getLogger()
    monkeypatch.setattr(top, "handlers", list(top.handlers))
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(app_log, "_handler", None)
    level = top.level
    path = tmp_path / "log"
    server_log.configure(Config(log_file=str(path), log_format="text"), "worker 0.1", generation=1, slot=0)
    yield path
    top.setLevel(level)
    server_log.finish()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def begin(path: Path, wanted: str, **more: str) -> Config:
    logging.getLogger().handlers.clear()  # pytest's own: it renders what cannot be
    config = Config(log_file=str(path), app_log=wanted, **{"log_format": "json", **more})  # type: ignore[arg-type]
    app_log.begin(config)
    return config


def test_a_line_has_its_fields(log_file: Path) -> None:
    begin(log_file, "json")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("shop").exception("order %d failed", 7, extra={"order": 7, "of": {"who": "me"}})
    (line,) = lines_of(log_file)
    assert line["exception"].endswith("ValueError: bad")
    assert line["exception"].startswith("Traceback")
    del line["time"], line["exception"]
    assert line == {
        "level": "error",
        "event": "application_logged",
        "logger": "shop",
        "text": "order 7 failed",
        "role": "worker",
        "generation": 1,
        "slot": 0,
        "pid": os.getpid(),
        "extra": {"order": 7, "of": {"who": "me"}},
    }


def test_a_line_for_people(log_file: Path) -> None:
    begin(log_file, "text")
    logging.getLogger("shop").info("one\ntwo \x1b[31m")
    logging.getLogger("shop").warning("three")
    first, second, third = log_file.read_text().splitlines()
    assert first.endswith(f"worker 0.1[{os.getpid()}] shop: one")
    assert second == "  two \\x1b[31m"
    assert third.endswith("warning: shop: three")


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("message", "extra", "text"),
    [
        ("%s", {}, "%s"),
        (Broken(), {}, "(a text that cannot be rendered)"),
        ("odd", {"nan": float("nan"), "cycle": CYCLE, "broken": Broken(), "bytes": b"\xff"}, "odd"),
        ("lone \ud800", {"event": "mine", "about": 1, "level": "no"}, "lone \ud800"),
        ("many", {f"n{number}": number for number in range(500)}, "many"),
    ],
)
def test_whatever_is_logged_makes_a_line(log_file: Path, message: Any, extra: dict[str, Any], text: str) -> None:
    begin(log_file, "json")
    arguments = (Broken(),) if message == "%s" else ()
    logging.getLogger("shop").info(message, *arguments, extra=extra)
    (line,) = lines_of(log_file)
    assert line["text"] == text
    assert line["event"] == "application_logged"
    assert line["level"] == "info"


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize("much", ["x" * 20_000, "\u20ac" * 20_000, "\x00" * 3_000_000, "'\"\\" * 20_000])
def test_no_line_is_longer_than_16_kib(log_file: Path, style: str, much: str) -> None:
    begin(log_file, style)
    logging.getLogger("shop").info("short")
    try:
        raise ValueError(much)
    except ValueError:
        logging.getLogger("n" * 1000).exception("%s", much, extra={"much": much, "more": [much]}, stack_info=True)
    data = log_file.read_bytes().partition(b"\n")[2]
    assert 4_000 < len(data) <= app_log.LINE_LIMIT
    assert b"characters are left out here" in data
    if style == "json":
        line = json.loads(data)
        assert line["cut"] is True
        assert line["level"] == "error"


def test_auto_takes_only_what_nobody_else_would(log_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(log_file, "auto")
    logging.getLogger("shop").info("not shown, as ever")
    logging.getLogger("shop").warning("first")
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="own: %(message)s")
    logging.getLogger("shop").info("second")
    assert [line["text"] for line in lines_of(log_file)] == ["first"]
    assert capsys.readouterr().out == "own: second\n"


def test_what_it_would_print_comes_as_asked_for_and_the_rest_stays(
    log_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = begin(log_file, "json")
    shop = logging.getLogger("shop")
    file = tmp_path / "own"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"f": {"format": "own: %(message)s"}},
            "filters": {"f": {"name": "shop"}},
            "handlers": {
                "console": {"class": "logging.StreamHandler", "level": "WARNING", "filters": ["f"]},
                "file": {"class": "logging.FileHandler", "filename": str(file), "formatter": "f"},
            },
            "root": {"handlers": ["console"], "level": "DEBUG"},
            "loggers": {"shop": {"handlers": ["console", "file"]}},
        }
    )
    app_log.replace_console_handlers(config)
    try:
        shop.info("a")
        shop.warning("b")
        logging.getLogger("other").warning("c")
    finally:
        for handler in shop.handlers:
            handler.close()
        shop.handlers = []
    assert [line["text"] for line in lines_of(log_file)] == ["b"]  # once, though two loggers have a handler
    assert file.read_text() == "own: a\nown: b\n"
    assert capsys.readouterr() == ("", "")


def test_off_leaves_it_alone(log_file: Path) -> None:
    before = logging.lastResort
    begin(log_file, "off")
    assert logging.lastResort is before
    assert logging.getLogger().handlers == []


APP = """
import asyncio, logging, os
log = logging.getLogger("shop")
log.info("imported")
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
    log.info("in the request")
    await asyncio.create_task(asyncio.to_thread(log.info, "in a thread"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
async def agent():
    log.info("the agent")
    await asyncio.Event().wait()
"""


@pytest.mark.parametrize("more", [(), ("--preload",)])
def test_lines_of_a_server_name_request_generation_and_slot_and_survive_rotation(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "shop_app.py").write_text(APP)
    arguments = ("--app-log", "./own.log", "--log-format", "json", "--agent", "shop_app:agent", *more)
    with running("shop_app:app", *arguments, directory=tmp_path) as server:
        path, old = tmp_path / "own.log", tmp_path / "own.log.1"

        def ask(which: str) -> None:
            with connect(server) as client:
                assert request(client, x_request_id=which, traceparent=TRACE)[0] == 200

        def named(which: str) -> list[dict[str, Any]]:
            return [line for line in lines_of(path) if line.get("request_id") == which]

        until(lambda: any(line["text"] == "the agent" for line in lines_of(path)), "the agent's line")
        ask("one")
        first = lines_of(path)
        assert {line["text"] for line in first if line["role"] == ("template" if more else "worker")} >= {"imported"}
        assert [line["text"] for line in named("one")] == ["in the request", "in a thread"]
        assert {(line["generation"], line["slot"], line["traceparent"]) for line in named("one")} == {(1, 0, TRACE)}
        path.rename(old)
        server.signal(signal.SIGUSR1)
        until(path.exists, "the new file")
        while not named("two"):  # the file is made by whichever process is first
            ask("two")
        server.reload()
        ask("three")
        assert {line["generation"] for line in named("three")} == {2}
