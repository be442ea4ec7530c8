"""deploy/compose: right by the schema of the specification, and as the Dockerfile and the options have it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_asgi.config.options import Config
from tests.image import parse
from tests.running import ROOT, connect, request, running

FILE = ROOT / "deploy/compose/compose.yaml"
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]["app"]
    return found


def seconds(text: str) -> float:
    return float(re.fullmatch(r"(\d+)s", text)[1])  # type: ignore[index]


def test_it_is_right_by_the_schema_of_the_specification() -> None:
    validate = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(validate, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_agrees_with_the_image(service: dict[str, Any]) -> None:
    assert (FILE.parent / service["build"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    last = {step.name: step for step in parse((ROOT / "Dockerfile").read_text())[-1]}
    assert service["stop_signal"] == last["STOPSIGNAL"].rest
    assert [port.rpartition(":")[2] for port in service["ports"]] == [last["EXPOSE"].rest]
    check = last["HEALTHCHECK"]
    assert service["healthcheck"]["test"][1] == "python"
    assert check.rest.endswith(service["healthcheck"]["test"][3].replace("\n", "") + '"]')
    for name in ("interval", "timeout", "start_period"):
        assert service["healthcheck"][name] == check.options[name.replace("_", "-")]


def test_it_is_more_patient_than_the_server(service: dict[str, Any]) -> None:
    config = Config(app="")
    delay = float(service["command"][service["command"].index("--drain-delay") + 1])
    assert seconds(service["stop_grace_period"]) >= delay + config.graceful_timeout + config.shutdown_timeout + 5


def test_its_command_and_its_health_check_work(service: dict[str, Any], tmp_path: Path) -> None:
    with running(*service["command"], "--drain-delay", "0", "--workers", "1", directory=tmp_path) as server:
        _, name, *arguments = service["healthcheck"]["test"]
        assert name == "python"
        check = [sys.executable, *arguments]
        environment = {"PORT": str(server.address()[1])}
        assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0
        with connect(server) as client:
            assert request(client, "/who")[0] == 200
        assert server.stop() == 0
        assert subprocess.run(check, env=environment, capture_output=True, check=False).returncode != 0
