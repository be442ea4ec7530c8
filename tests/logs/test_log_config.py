"""Files for `--log-config`: their forms, what is refused, and the names that other servers' files have."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.config import sources
from serve_asgi.errors import UsageError
from serve_asgi.logs import log_config
from tests.running import connect, request, running

TOML = '[handlers.h]\nclass = "logging.StreamHandler"\n'
YAML = "version: 1\nhandlers:\n  h:\n    class: logging.StreamHandler\n"
JSON = '{"handlers": {"h": {"class": "logging.StreamHandler"}}}'
UVICORN: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "default": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s", "use_colors": None},
        "access": {
            "()": "uvicorn.logging.AccessFormatter",
            "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
        },
    },
    "handlers": {
        "default": {"formatter": "default", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        "access": {"formatter": "access", "class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
    },
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "INFO"},
        "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
        "shop": {"handlers": ["default"], "level": "DEBUG"},
    },
}
"""uvicorn's own LOGGING_CONFIG, and a logger of the application's."""


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML), ("a.json", JSON)])
def test_the_forms_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert log_config.read(str(tmp_path / name)) == {
        "version": 1,
        "handlers": {"h": {"class": "logging.StreamHandler"}},
    }


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("none.toml", None, "cannot be read: No such file"),
        ("a.toml", "a = ", "is no TOML"),
        ("a.json", "{", "is no JSON"),
        ("a.yaml", "a: [", "is no YAML"),
        ("a.json", "[1]", "does not hold a table"),
        ("a.ini", "[loggers]", "older .ini form is not read"),
        ("a.toml", b"\xff", "cannot be read"),
    ],
)
def test_what_is_refused_before_a_start(tmp_path: Path, name: str, text: Any, told: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if type(text) is bytes else text.encode())
    with pytest.raises(UsageError, match=f"^--log-config: the file .*{told}"):
        sources.read("a:a", {"log_config": str(path)}, {})


def test_yaml_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UsageError, match="needs the package PyYAML: install it, or write the file as TOML or JSON"):
        log_config.read(str(tmp_path / "a.yaml"))


def test_a_wrong_app_log_is_told() -> None:
    with pytest.raises(UsageError, match=r"'jsn' is none of auto, json, text, off; a file is written .* ./jsn"):
        sources.read("a:a", {"app_log": "jsn"}, {})


def test_names_of_other_servers_are_ours() -> None:
    made = log_config.translated(UVICORN)
    assert made["loggers"] == {
        "serve": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "shop": UVICORN["loggers"]["shop"],
    }
    assert made["formatters"]["access"]["fmt"] == "%(levelprefix)s %(message)s"
    gunicorn = {"loggers": {"gunicorn.error": {"level": "DEBUG"}, "gunicorn.access": {}}}
    assert log_config.translated(gunicorn) == {"loggers": {"serve": {"level": "DEBUG", "propagate": False}}}
    both: dict[str, Any] = {"loggers": {"uvicorn.error": {"level": "DEBUG"}, "serve": {"level": "INFO"}}}
    assert log_config.translated(both) == {"loggers": {"serve": {"level": "INFO"}}}
    formatter = log_config.LevelPrefixFormatter("%(levelprefix)s %(message)s", use_colors=None)
    assert formatter.format(logging.LogRecord("a", logging.INFO, "", 0, "b", (), None)) == "INFO:     b"


APP = """
import logging
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    logging.getLogger("shop").debug("in the request")
    1 / 0
"""


def test_a_file_that_was_written_for_uvicorn(tmp_path: Path) -> None:
    """Which is not installed there, as far as the file shows; a broken file refuses a reload."""
    (tmp_path / "shop_app.py").write_text(APP)
    file = tmp_path / "logging.json"
    file.write_text(json.dumps(UVICORN))
    with running("shop_app:app", "--log-config", "logging.json", directory=tmp_path) as server:
        with connect(server) as client:
            assert request(client)[0] == 500
        server.logged(r"DEBUG:    in the request\nERROR:    The application raised an exception while answering GET /")
        file.write_text(json.dumps({**UVICORN, "handlers": {"default": {"class": "nowhere.Handler"}}}))
        with pytest.raises(Exception, match="is no configuration of logging"):
            server.reload()
        assert server.status()["workers"][0]["generation"] == 1
