"""`serve schedules` and `serve schedule`, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from serve_asgi.cli import control_client, schedules
from serve_asgi.hub.schedules.commands import MAX_LISTED
from tests.cli.serving import serve
from tests.running import RunningServer, running
from tests.schedule_application import APPLICATION, outcomes, until

SCHEDULES = """
@schedule(every="1h")
async def good(): ...

@schedule(every="1h", timeout="0.1s")
async def slow():
    await asyncio.sleep(3600)

@schedule(every="1h", name="[red]:warning:")
async def markup():
    raise RuntimeError("[/b] [bold]it[/bold] :warning:")

@schedule(every="1h")
async def long():
    await asyncio.sleep(3600)

@schedule(cron="30 3 * * *", tz="Europe/Berlin")
async def nightly():
    raise RuntimeError("no \\x1b[31mluck")

@schedule(every="1h", enabled=False)
async def off(): ...
"""


@pytest.fixture(scope="module")
def scheduling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("schedules")
    (directory / "app.py").write_text(APPLICATION + SCHEDULES)
    with running("app:app", "--graceful-timeout", "0.5", directory=directory) as server:
        yield server


def test_the_table_has_a_row_for_each(scheduling: RunningServer) -> None:
    done = serve(scheduling, "schedules")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split()[:2] == ["schedule", "when"]
    names = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert names == ["[red]:warning:", "good", "long", "nightly", "off", "slow"]
    assert "30 3 * * * Europe/Berlin" in done.stdout
    assert "disabled: enabled is false" in done.stdout


def test_run_waits_for_the_end_and_its_status_is_the_truth(scheduling: RunningServer) -> None:
    done = serve(scheduling, "schedule", "run", "good")
    assert (done.returncode, done.stdout[:20]) == (0, "good: ok in worker 0")
    done = serve(scheduling, "schedule", "run", "slow")
    assert done.returncode == 1
    assert "serve: slow: timeout in worker 0 of generation 1 after 0.1" in done.stderr
    done = serve(scheduling, "schedule", "run", "nightly")
    assert done.returncode == 1
    assert "no \\x1b[31mluck" in done.stderr


def test_run_without_waiting(scheduling: RunningServer) -> None:
    done = serve(scheduling, "schedule", "run", "good", "--no-wait")
    assert done.returncode == 0
    until(lambda: "ok" in outcomes(scheduling, "good"))
    assert serve(scheduling, "schedule", "run", "bad", "--no-wait").returncode == 1


def test_who_waits_no_longer_is_told_that_the_run_goes_on(scheduling: RunningServer) -> None:
    done = serve(scheduling, "schedule", "run", "long", "--timeout", "0.2")
    assert done.returncode == 1
    assert "long has not ended within 0.2 s, and continues; `serve schedules long` shows" in done.stderr
    assert outcomes(scheduling, "long") == ["running"]


def test_more_than_a_server_tells_of_at_once_are_not_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    each = {"name": "a", "when": "every 1h", "on": "one", "paused": None, "disabled": "", "runs": 0, "state": "waiting"}
    told: dict[str, Any] = {"schedules": [{**each, "next": None, "history": [], "counts": {}}] * MAX_LISTED}
    monkeypatch.setattr(control_client, "find", lambda control, pid: None)
    monkeypatch.setattr(control_client, "ask", lambda *path, **given: told)
    assert schedules.schedules("", "", None, False) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == MAX_LISTED + 1
    assert "these are the first 1000 by name" in shown.err


def test_names_and_errors_are_shown_as_they_are(scheduling: RunningServer) -> None:
    serve(scheduling, "schedule", "run", "[red]:warning:")
    done = serve(scheduling, "schedules", "[red]:warning:")
    assert (done.returncode, done.stderr) == (0, "")
    assert "RuntimeError: [/b] [bold]it[/bold] :warning:" in done.stdout


def test_the_history_of_one(scheduling: RunningServer) -> None:
    serve(scheduling, "schedule", "run", "nightly")
    done = serve(scheduling, "schedules", "nightly")
    head, columns, row, *_ = done.stdout.splitlines()
    assert head.startswith("nightly: 30 3 * * * Europe/Berlin, on one, waiting, ")
    assert columns.split()[:2] == ["instant", "outcome"]
    assert "(asked)" in row
    assert "failed" in row
    assert "RuntimeError: no \\x1b[31mluck" in row  # as text, not as what a terminal obeys
    found = json.loads(serve(scheduling, "schedules", "nightly", "--json").stdout)
    assert found["history"][0]["outcome"] == "failed"


def test_json_has_all(scheduling: RunningServer) -> None:
    found = json.loads(serve(scheduling, "schedules", "--json").stdout)
    assert [each["name"] for each in found] == ["[red]:warning:", "good", "long", "nightly", "off", "slow"]
    assert {"when", "on", "state", "next", "paused", "disabled", "counts", "history"} <= found[0].keys()


def test_pause_and_resume(scheduling: RunningServer) -> None:
    done = serve(scheduling, "schedule", "pause", "good")
    assert (done.returncode, done.stdout) == (0, "good is paused\n")
    assert "by the command line" in serve(scheduling, "schedules").stdout
    assert serve(scheduling, "schedule", "pause", "good").stdout == "good is paused already\n"
    assert serve(scheduling, "schedule", "resume", "good").stdout == "good is resumed\n"
    assert serve(scheduling, "schedule", "resume", "good").stdout == "good is not paused\n"


@pytest.mark.parametrize(
    ("words", "status", "part"),
    [
        (("schedule", "pause", "godo"), 1, "there is no schedule 'godo': did you mean 'good'?"),
        (("schedules", "godo"), 2, "there is no schedule 'godo'"),
        (("schedule", "forget", "good"), 2, "'forget' is not one of 'pause', 'resume', 'run'"),
        (("schedule",), 2, "missing argument"),
    ],
)
def test_what_is_asked_wrongly_is_a_sentence(
    scheduling: RunningServer, words: tuple[str, ...], status: int, part: str
) -> None:
    done = serve(scheduling, *words)
    assert done.returncode == status
    assert done.stderr.startswith("serve: ")
    assert part in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_application_without_any(scheduling: RunningServer) -> None:
    (scheduling.directory / "none.py").write_text(APPLICATION)
    with running("none:app", directory=scheduling.directory) as server:
        assert serve(server, "schedules").stdout == "the application has no schedules\n"
        assert "the application has none" in serve(server, "schedule", "pause", "x").stderr


def test_instants_are_told_in_utc() -> None:
    assert schedules._clock(1_795_357_922.8) == "2026-11-22 14:32:02.800Z"
    assert schedules._clock(1_795_357_922) == "2026-11-22 14:32:02Z"
