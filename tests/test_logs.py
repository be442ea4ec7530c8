"""The server's own log, as it is found in its file."""

from __future__ import annotations

import logging
import logging.config
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import logs
from server.access_log import open_access_log
from server.config import Config
from server.errors import UsageError

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
    assert "cannot be opened again" in log_file.with_suffix(".1").read_text()


def test_a_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the log file .* cannot be opened: No such file"):
        logs.configure(Config(log_file=str(tmp_path / "none" / "log")), "listener")
    with pytest.raises(UsageError, match="cannot be opened: Is a directory"):
        open_access_log(Config(access_log_file=str(tmp_path)))
