"""What docs/guides/operations.md and deploy/README.md say of the examples is what is in them."""

from __future__ import annotations

import re

import pytest

from tests.running import ROOT
from tests.system.deployed import DEPLOY

pytestmark = pytest.mark.once

EXAMPLES = {"[Service]": "systemd/serve.service", "[program:serve]": "supervisord/serve.conf"}


@pytest.mark.parametrize("section", EXAMPLES)
def test_the_lines_to_copy_are_those_of_the_example(section: str) -> None:
    blocks = re.findall(r"```ini\n(.*?)```", (ROOT / "docs/guides/operations.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if section in block]
    example = (DEPLOY / EXAMPLES[section]).read_text()
    for line in block.splitlines():
        for part in re.split(r" (?=--)", line):  # the example names an address as well
            assert part in example


def test_every_example_is_in_the_table() -> None:
    table = (DEPLOY / "README.md").read_text()
    linked = [DEPLOY / name for name in re.findall(r"\]\(([^)]+)\)", table) if not name.startswith("..")]
    assert [path for path in linked if not path.exists()] == []
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [path for path in files if not {path, *path.parents} & set(linked)] == []
