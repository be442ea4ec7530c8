"""The server's own log and the access log, as they are found in their files."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import logs
from server.config import Config
from server.errors import UsageError
from server.logs import AccessLog, open_access_log

LINE = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} listener\[{os.getpid()}\] "
CLIENT = ("10.0.0.1", 4711)


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    logs.configure(Config(log_file=str(tmp_path / "log")), "listener")
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
    assert text.splitlines()[1] == "Traceback (most recent call last):"
    assert text.endswith("ValueError: red \\x1b[31m and \\x0d back\n")


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


def test_the_level(tmp_path: Path) -> None:
    logs.configure(Config(log_file=str(tmp_path / "log"), log_level="warning"), "worker 1")
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
    assert "cannot be opened again" in log_file.with_suffix(".1").read_text()


def test_a_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the log file .* cannot be opened: No such file"):
        logs.configure(Config(log_file=str(tmp_path / "none" / "log")), "listener")
    with pytest.raises(UsageError, match="cannot be opened: Is a directory"):
        AccessLog(Config(access_log_file=str(tmp_path)))


def access_log(path: Path, style: str = "common") -> AccessLog:
    return AccessLog(Config(access_log_file=str(path), access_log_format=style))


def test_the_common_format(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a")
    log.record(CLIENT, "GET", "/x?y=1", "1.1", 200, 12, 0.00125, [])
    log.record(None, "HEAD", "/", "1.0", 304, 0, 1.5, [])
    assert (tmp_path / "a").read_text() == ""  # collected, not written
    log.flush()
    first, second = (tmp_path / "a").read_text().splitlines()
    at = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    assert re.fullmatch(rf'10\.0\.0\.1 - - {at} "GET /x\?y=1 HTTP/1\.1" 200 12 0\.001250', first)
    assert re.fullmatch(rf'- - - {at} "HEAD / HTTP/1\.0" 304 - 1\.500000', second)
    log.close()


def test_the_combined_format(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a", "combined")
    headers = [(b"host", b"x"), (b"referer", b'http://a/"'), (b"user-agent", b"curl\xff/8\n")]
    log.record(CLIENT, "GET", "/", "1.1", 200, 1, 0.0, headers)
    log.close()
    assert (tmp_path / "a").read_text().endswith(' 200 1 "http://a/\\"" "curl\\xff/8\\x0a" 0.000000\n')


def test_json_lines(tmp_path: Path) -> None:
    log = access_log(tmp_path / "a", "json")
    log.record(CLIENT, "GET", '/"\n\x1b\u2028', "1.1", 500, 7, 0.25, [(b"user-agent", b"\x00\xe9")])
    log.close()
    (line,) = (tmp_path / "a").read_text().splitlines()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "client": "10.0.0.1",
        "method": "GET",
        "target": '/"\n\x1b\u2028',
        "version": "1.1",
        "status": 500,
        "size": 7,
        "seconds": 0.25,
        "referer": None,
        "user_agent": "\x00\xe9",
        "pid": os.getpid(),
    }


@pytest.mark.parametrize(
    "target", ["/\n127.0.0.1 - - forged", "/\r", "/\x1b[2J", '/" 200', "/\\", "/\x85\u2028é", "/\udcff"]
)
@pytest.mark.parametrize("style", ["common", "combined", "json"])
def test_no_request_writes_a_line_of_its_own(tmp_path: Path, target: str, style: str) -> None:
    log = access_log(tmp_path / "a", style)
    log.record(CLIENT, "GET", target, "1.1", 200, 1, 0.0, [(b"referer", target.encode(errors="replace"))])
    log.close()
    data = (tmp_path / "a").read_bytes()
    assert data.endswith(b"\n")
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    if style != "json":
        unescaped = re.sub(rb"\\.", b"", data)
        assert unescaped.count(b'"') == (2 if style == "common" else 6)


def test_nothing_is_lost_over_a_reopening(tmp_path: Path) -> None:
    path = tmp_path / "a"
    log = access_log(path)
    for number in range(3000):  # more than is held back
        log.record(CLIENT, "GET", f"/{number}", "1.1", 200, 1, 0.0, [])
        if number == 2000:
            path.rename(tmp_path / "a.1")
            log.reopen()
    log.close()
    targets = [re.findall(r"GET /(\d+)", (tmp_path / name).read_text()) for name in ("a.1", "a")]
    assert [len(part) for part in targets] == [2001, 999]
    assert [*targets[0], *targets[1]] == [str(number) for number in range(3000)]


def test_off_means_none() -> None:
    assert open_access_log(Config(access_log=False)) is None
