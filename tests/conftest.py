"""What all tests share: programs of the system are asked for by name, and in CI nothing may be skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # servers: a test may write an application twice within one second
CI = os.environ.get("CI") == "true"
if shutil.which("initdb") is None:  # Debian has PostgreSQL's programs on no PATH
    os.environ["PATH"] += "".join(f":{each}" for each in sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:])
ROOT = Path(__file__).resolve().parent
ONCE = (
    *("admin", "agent_process", "examples", "frameworks", "loadtest", "system"),
    *("cli/test_commands.py", "cli/test_deploys.py", "cli/test_finding.py", "cli/test_missing_packages.py"),
    *("cli/test_reload.py", "cli/test_schedules.py", "cli/test_stop.py", "cli/test_top.py"),
    *("config/test_live_configuration.py", "config/test_mistakes.py"),
    *("in_process/test_elsewhere.py", "in_process/test_run.py"),
    "fuzzing/test_children.py",
    *("listener/test_file_watcher.py", "listener/test_hooks.py", "listener/test_reload_on_change.py"),
    *("supervisor/test_canary_verdict.py", "test_balance.py", "test_bare_places.py", "test_blocked.py"),
    *("test_canary_faults.py", "test_canary_load.py", "test_demo.py", "test_dockerfile.py", "test_load.py"),
    *("test_messenger_servers.py", "test_packaging.py"),
)
"""What depends neither on the interpreter nor on the core (compiled or not) and takes long: run on the newest one alone
(the marker `once`)."""
assert all((ROOT / each).exists() for each in ONCE), "what was moved is to be moved here too"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is run once."""
    for item in items:
        relative = item.path.relative_to(ROOT)
        if relative.parts[0] in ONCE or str(relative) in ONCE:
            item.add_marker("once")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program the machine has not, by its name."""
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if shutil.which(program) is None:
                pytest.skip(f"needs {program}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say last which tests were skipped."""
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"skipped: {report.nodeid}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if CI and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
