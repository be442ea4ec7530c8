"""One server for all tests of a module that leave it as they found it: two workers of `SLOW`, at rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve_asgi.cli.control_client import ask
from tests.cli.serving import SLOW
from tests.running import RunningServer, running


@pytest.fixture(scope="module")
def shared_by_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """It has a configuration file, something from the environment, a log file, and a unix socket beside TCP."""
    directory = tmp_path_factory.mktemp("shared")
    (directory / "app.py").write_text(SLOW)
    (directory / "serve.toml").write_text("keep-alive = 33\n")
    more = ("--workers", "2", "--log-file", "log", "--pid-file", "pid", "--bind", f"unix:{directory}/http.sock")
    with running("app:app", *more, directory=directory, environment={"SERVE_BACKLOG": "77"}) as server:
        yield server
        print((directory / "log").read_text())
        assert "Traceback" not in server.log()
        assert server.stop() == 0


@pytest.fixture
def server(shared_by_module: RunningServer) -> RunningServer:
    """The same, its application whole again, two workers serving, none retiring."""
    (shared_by_module.directory / "app.py").write_text(SLOW)
    if shared_by_module.status()["size"] != 2:
        ask(shared_by_module.control, "scale", to=2)
    shared_by_module.wait_for_workers(2)
    return shared_by_module
