"""What is said about packages: the lock file fits pyproject.toml, and holds wherever packages come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements-dev.txt").read_text()
EXTRAS = ("test", "loadtest", "frameworks", "examples", "docs")


def test_the_lock_file_has_what_the_project_asks_for() -> None:
    locked: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^([a-z].*?)(?: \\)?$", LOCK, re.MULTILINE):
        requirement = Requirement(line)
        locked.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    assert all(
        len(entry.specifier) == 1 and str(entry.specifier).startswith("==")
        for entries in locked.values()
        for entry in entries
    )
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
    for extra in EXTRAS:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    for text in wanted:
        requirement = Requirement(text)
        versions = [str(entry.specifier)[2:] for entry in locked.get(canonicalize_name(requirement.name), ())]
        assert versions, text
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), text


def test_the_lock_file_names_no_place_and_hashes_everything() -> None:
    body = re.sub(r"^#.*$", "", LOCK, flags=re.MULTILINE)
    assert not re.search(r"://|--index|--find-links|(?<!\w)/", body)
    for block in re.split(r"\n(?=[a-z])", body.strip()):
        assert "--hash=sha256:" in block, block
