"""The server's own log, as it is found in its file."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.config.options import Config
from serve_asgi.errors import UsageError
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.access_log_standard import open_access_log
from tests.running import PATIENCE, ROOT, answer, connect, request, running

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BROKEN = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        1 / 0
"""
LINE = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} listener\[{os.getpid()}\] "


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    logs.configure(Config(log_file=str(tmp_path / "log"), log_format="text"), "listener")
    yield tmp_path / "log"
    logs.finish()


def test_lines_of_the_servers_log(log_file: Path) -> None:
    log = logging.getLogger("serve")
    log.debug("not shown")
    log.info("generation %d is ready", 3)
    log.warning("slow")
    logging.getLogger("serve.error").error("bad")
    first, second, third = log_file.read_text().splitlines()
    assert re.fullmatch(LINE + "generation 3 is ready", first)
    assert re.fullmatch(LINE + "warning: slow", second)
    assert re.fullmatch(LINE + "error: bad", third)


def test_a_traceback_keeps_its_lines_and_loses_its_control_characters(log_file: Path) -> None:
    try:
        raise ValueError("red \x1b[31m and \r back")
    except ValueError:
        logging.getLogger("serve.error").exception("the application failed")
    text = log_file.read_text()
    assert text.splitlines()[1] == "  Traceback (most recent call last):"
    assert text.endswith("ValueError: red \\x1b[31m and \\x0d back\n")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_is_long(tmp_path: Path, log_format: str) -> None:
    """Whatever it holds of other people's text."""
    logs.configure(Config(log_file=str(tmp_path / "log"), log_format=log_format), "listener")
    much = "x" * 30_000_000
    try:
        logging.getLogger("serve").error("%s", much, extra=logs.about("log", path=much, detail=much))
        raise ValueError(much)
    except ValueError:
        logging.getLogger("serve.error").exception("the application failed")
    finally:
        logs.finish()
    text = (tmp_path / "log").read_text()
    assert text.count("characters are left out here") == (4 if log_format == "json" else 3)
    assert len(text) < 200_000


def test_a_wrong_record_raises_nothing(log_file: Path) -> None:
    ours = logging.getLogger("serve").handlers[0]  # beside it stand pytest's own, which do raise
    for message, arguments in (("%d", ("no number",)), ("surrogate \udc80", ())):
        ours.handle(logging.LogRecord("serve", logging.INFO, "", 0, message, arguments, None))
    assert len(log_file.read_text().splitlines()) == 2


def test_the_application_cannot_switch_the_log_off(log_file: Path) -> None:
    """`dictConfig` disables loggers that it does not name, and closes every handler there is; frameworks call it."""
    root = logging.getLogger()
    kept = root.handlers[:]
    existing = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    disabled = {logger: logger.disabled for logger in existing}
    try:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        logging.getLogger("serve").info("still here")
        logging.getLogger("serve.error").info("and here")
    finally:
        root.handlers = kept
        for logger, before in disabled.items():
            logger.disabled = before
    assert len(log_file.read_text().splitlines()) == 2


def test_nothing_that_the_application_does_to_logging_reaches_the_log(log_file: Path) -> None:
    """Neither `logging.disable` nor a record factory that claims our names, or fails."""

    def fails(*given: object, **more: object) -> logging.LogRecord:
        raise RuntimeError

    def claims(*given: Any, **more: Any) -> logging.LogRecord:
        record = logging.LogRecord(*given, **more)
        record.event = "theirs"
        return record

    class Odd:
        def __str__(self) -> str:
            raise LookupError

    factory = logging.getLogRecordFactory()
    try:
        logging.disable(logging.CRITICAL)
        for made in (fails, claims):
            logging.setLogRecordFactory(made)
            logging.getLogger("serve.error").error("still %s", "here", extra=logs.about("request_unanswered"))
        logging.getLogger("serve").handlers[0].handle(
            logging.LogRecord("serve", logging.INFO, "", 0, "odd %s", (Odd(),), None)
        )
    finally:
        logging.disable(logging.NOTSET)
        logging.setLogRecordFactory(factory)
    assert log_file.read_text().count("error: still here\n") == 2
    assert log_file.read_text().endswith(" odd %s\n")


def test_the_level(tmp_path: Path) -> None:
    logs.configure(Config(log_file=str(tmp_path / "log"), log_level="warning", log_format="text"), "worker 1")
    logging.getLogger("serve").info("no")
    logging.getLogger("serve").warning("yes")
    logs.finish()
    assert re.search(r" worker 1\[\d+\] warning: yes\n$", (tmp_path / "log").read_text())


def test_reopening_the_servers_log(log_file: Path) -> None:
    logging.getLogger("serve").info("before")
    log_file.rename(log_file.with_suffix(".1"))
    logging.getLogger("serve").info("between")
    logs.reopen()
    logging.getLogger("serve").info("after")
    assert [line.split()[-1] for line in log_file.with_suffix(".1").read_text().splitlines()] == ["before", "between"]
    assert [line.split()[-1] for line in log_file.read_text().splitlines()] == ["after"]


def test_a_file_that_cannot_be_opened_again_stays_in_use(log_file: Path) -> None:
    log_file.rename(log_file.with_suffix(".1"))
    log_file.mkdir()
    logs.reopen()
    assert "cannot be reopened" in log_file.with_suffix(".1").read_text()


def test_a_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the log file .* cannot be opened: No such file"):
        logs.configure(Config(log_file=str(tmp_path / "none" / "log")), "listener")
    with pytest.raises(UsageError, match="cannot be opened: Is a directory"):
        open_access_log(Config(access_log_file=str(tmp_path)))


# ---- JSON lines


def json_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_says_what_happened_and_of_whom(tmp_path: Path) -> None:
    config = Config(log_file=str(tmp_path / "log"), log_format="json")
    logs.configure(config, "worker 2.7", generation=7, slot=2)
    log = logging.getLogger("serve")
    log.warning("cut %d requests", 3, extra=logs.about("requests_cut", requests=3))
    log.info("of another", extra=logs.about("worker_died", slot=1, pid=4711, detail="killed\nby whom"))
    log.info("without a name")
    log.info("printed", extra=logs.about("hook_finished", detail="no migrations"))
    logs.finish()
    first, second, third, fourth = json_lines(tmp_path / "log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(first.pop("time")))
    always = {"role": "worker", "generation": 7, "slot": 2, "pid": os.getpid()}
    assert first == {"level": "warning", "event": "requests_cut", "text": "cut 3 requests", "requests": 3} | always
    assert (second["event"], second["slot"], second["pid"], second["generation"]) == ("worker_died", 1, 4711, 7)
    assert second["exception"] == "killed\nby whom"
    assert third["event"] == "log"
    assert fourth["output"] == "no migrations"
    assert "exception" not in fourth


def test_a_traceback_is_one_line_of_json(tmp_path: Path) -> None:
    logs.configure(Config(log_file=str(tmp_path / "log")), "listener")  # auto: a file is no terminal
    try:
        raise ValueError("two\nlines \udc80")
    except ValueError:
        logging.getLogger("serve.error").exception("failed", extra={"event": "e", "about": {"odd": {1}}})
    logs.finish()
    (line,) = json_lines(tmp_path / "log")
    assert line["level"] == "error"
    assert line["odd"] == "{1}"
    assert str(line["exception"]).startswith("Traceback")
    assert str(line["exception"]).endswith("ValueError: two\nlines \udc80")


def test_no_text_writes_a_line_of_its_own(log_file: Path) -> None:
    forged = "2026-11-22 10:00:00.000 listener[1] error: forged"
    try:
        raise ValueError(f"x\n{forged}\r\n\x85{forged}")
    except ValueError:
        logging.getLogger("serve.error").exception("at /\n%s", forged, extra=logs.about("e"))
    logging.getLogger("serve").info("x", extra=logs.about("e", detail=f"\n{forged}"))
    lines = log_file.read_text().splitlines()
    assert sum(line.startswith("2026-") and "forged" in line for line in lines) == 0
    assert all(re.match(LINE + "|  ", line) for line in lines)


# ---- a server's


def test_lines_of_a_server_that_nobody_reads_along_are_json(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(BROKEN)
    environment = {"SERVE_LOG_FORMAT": "auto"}
    with running("app:app", "--workers", "2", directory=tmp_path, environment=environment) as server:
        with connect(server) as connection:
            asked = request(connection, "/%0a?q", x_request_id="id-1", traceparent=TRACE)
            assert asked[0] == 500
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx-request-id: \xff\r\ntraceparent: no\r\n\r\n")
            assert answer(connection)[0] == 500
        server.reload()
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log().splitlines()]
    failed, other = [line for line in lines if line.get("event") == "application_failed"]
    assert (failed["role"], failed["generation"], failed["method"], failed["path"]) == ("worker", 1, "GET", "/\n")
    assert failed["slot"] in (0, 1)
    assert (failed["request_id"], failed["traceparent"]) == ("id-1", TRACE)
    assert "request id id-1" in failed["text"]
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert not {"request_id", "traceparent"} & set(other)
    events = [line["event"] for line in lines if line.get("role") == "listener"]
    assert {"server_started", "worker_finished", "stop_started"} <= set(events)
    access = [line for line in lines if "target" in line]
    assert [(line["request_id"], line["traceparent"]) for line in access] == [("id-1", TRACE), (None, None)]


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ([], 1, "the application app:app cannot be imported"),
        (["--python", "nothing"], 2, "the interpreter nothing cannot be run"),  # before anything else is opened
    ],
)
def test_a_start_that_fails_is_in_the_log_file(tmp_path: Path, arguments: list[str], status: int, reason: str) -> None:
    (tmp_path / "app.py").write_text("1 / 0\n")
    command = [sys.executable, "-m", "serve_asgi", "app:app", "--bind", "127.0.0.1:0", "--log-file", "log", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "server")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert reason in done.stderr
    lines = map(json.loads, (tmp_path / "log").read_text().splitlines())
    (failed,) = [each for each in lines if each["event"] == "server_start_failed"]
    assert (failed["level"], reason in failed["reason"]) == ("error", True)
    assert failed["text"] == f"the server has not started: {failed['reason']}"
    assert ("ZeroDivisionError" in failed.get("exception", "")) == (status == 1)


@pytest.mark.parametrize(("environment", "coloured"), [({"TERM": "xterm"}, True), ({"NO_COLOR": "1"}, False)])
def test_lines_on_a_terminal_are_for_people(tmp_path: Path, environment: dict[str, str], coloured: bool) -> None:
    (tmp_path / "app.py").write_text(BROKEN)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "serve_asgi", "app:app", "--bind", "127.0.0.1:0", "--no-control-socket"]
    clean = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "TERM", "SERVE_LOG_FORMAT")}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = ""
    try:
        said = read_until(ours, said, r"serving on http://127\.0\.0\.1:\d+")
        port = int(re.findall(r"serving on http://127\.0\.0\.1:(\d+)", said)[0])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            assert request(connection, "/")[0] == 500
        said = read_until(ours, said, r'"GET / HTTP/1\.1" 500')
        said = read_until(ours, said, "ZeroDivisionError: division by zero")
        process.terminate()
        said = read_until(ours, said, "stopped")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert ("\x1b[2m" in said) is coloured
    plain = re.sub(r"\x1b\[\d*m", "", said)
    assert re.search(r"(?m)^\d{4}-\d\d-\d\d [\d:.]{12} worker 0\.1\[\d+\] error: The application raised", plain)
    if coloured:
        assert "\x1b[31merror: \x1b[0mThe application" in said
    else:
        assert "\x1b" not in said


def read_until(terminal: int, said: str, pattern: str) -> str:
    deadline = time.monotonic() + PATIENCE
    while not re.search(pattern, said):
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], said
        said += os.read(terminal, 65536).decode(errors="replace")
    return said
