"""The options as keywords: which there are, and what is said of all others."""

from __future__ import annotations

from typing import Any

import pytest

from serve_asgi.config.options import Config, options
from serve_asgi.errors import UsageError
from serve_asgi.in_process.keyword_options import (
    DEFAULTS,
    REFUSED,
    RunOptions,
    ServerOptions,
    former_keyword,
    read_options,
)


def test_every_keyword_is_an_option() -> None:
    former = {former_keyword(defined.former) for _, defined in options().values()}
    assert set(RunOptions.__annotations__) <= set(options()) | former
    assert set(DEFAULTS) <= set(ServerOptions.__annotations__)
    assert set(REFUSED) <= set(options())


def test_the_defaults_are_those_of_serve_with_a_few_exceptions() -> None:
    expected = Config(**DEFAULTS)
    assert read_options({}) == expected


def test_values_are_read_as_those_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_PORT", "1")  # not this
    config = read_options({"bind": "localhost:1", "root_path": "/x/", "http2": False, "keep_alive": 5})
    assert config.bind == ("localhost:1",)
    assert (config.root_path, config.http2, config.keep_alive, config.port) == ("/x", "off", 5.0, None)
    assert read_options({"log_level": "debug"}, runs=True).log_level == "debug"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"workers": 4}, "workers is not taken: this is one worker"),
        ({"preload": "on"}, "preload is for a server with processes of its own"),
        ({"loop": "uvloop"}, "loop is not taken: the server runs in the event loop that is running"),
        ({"log_level": "info"}, "logging.getLogger('serve')"),
        ({"state": "x.db"}, "the shared state of a server in process ends with it"),
        ({"agent": "a:b"}, "agent.running"),
        ({"uds": "/x"}, 'bind = "unix:/x"'),
        ({"timeout_keep_alive": 1}, "is keep_alive = 1 here"),
        ({"prot": 1}, "did you mean 'port'?"),
        ({"zzz": 1}, "there is no option 'zzz'"),
    ],
)
def test_a_name_that_is_no_keyword(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError) as raised:
        read_options(given)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"port": "8000"}, "port"),
        ({"port": 70000}, "port: 70000 is too large"),
        ({"bind": "8000"}, "has no host"),
        ({"bind": "localhost:1", "port": 2}, "were both given"),
        ({"tls_key": "x"}, "does nothing without a certificate"),
        ({"http": "x"}, "is not one of"),
    ],
)
def test_a_value_that_cannot_be(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_options(given)
