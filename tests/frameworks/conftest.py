"""The optional group: tests of what other people's frameworks do on this server.

Each test names what it needs with `pytestmark = needs("starlette")`; where that is not installed, the test is skipped
with a sentence that says how to get it. tests/run.py installs all of it.
"""

from __future__ import annotations

import importlib.util

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose framework is not installed."""
    for marker in item.iter_markers("frameworks"):
        for module in marker.args:
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"needs {module}: pip install -e '.[frameworks]'")
