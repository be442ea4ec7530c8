"""Shell completion, by the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

WORDS = ("serve --worker", "serve rel", "serve --loop u", "serve app:app --chdir nested/d", "serve reload --reti")
COMPLETED = ("--workers --worker-timeout", "reload", "uvloop", "nested/directory", "--retired")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With `serve` of this interpreter first on the path, below a directory that has something to complete."""
    (tmp_path / "nested" / "directory").mkdir(parents=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8", "TERM": "dumb"}


def said(shell: list[str], script: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [*shell, script],
        env=environment,
        cwd=environment["HOME"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_bash(environment: dict[str, str]) -> None:
    script = 'eval "$(_SERVE_COMPLETE=bash_source serve)"; complete -p serve >&2\n'
    for words in WORDS:
        count = len(words.split()) - 1
        script += f"COMP_WORDS=({words}); COMP_CWORD={count}; COMPREPLY=(); _serve_completion serve\n"
        script += 'echo "${COMPREPLY[*]}"\n'
    found = said(["bash", "--norc", "-c"], script, environment)
    assert found[:3] + found[4:] == [*COMPLETED[:3], *COMPLETED[4:]]
    # bash itself completes names of files, since the function asks it to (compopt -o dirnames or default)


@pytest.mark.needs("fish")
def test_fish(environment: dict[str, str]) -> None:
    script = "_SERVE_COMPLETE=fish_source serve | source\n"
    script += "".join(f'complete -C "{words}" | string split -f1 \\t | string join " "\n' for words in WORDS)
    found = said(["fish", "--no-config", "-c"], script + "true", environment)
    assert [line.rstrip("/") for line in found] == list(COMPLETED)


@pytest.mark.needs("zsh")
def test_zsh(environment: dict[str, str]) -> None:
    """The function is defined for `serve`, and what it asks is answered."""
    script = 'autoload -U compinit && compinit -D; eval "$(_SERVE_COMPLETE=zsh_source serve)"; echo "$_comps[serve]"\n'
    script += 'COMP_WORDS="serve --loop u" COMP_CWORD=2 _SERVE_COMPLETE=zsh_complete serve'
    assert said(["zsh", "-f", "-c"], script, environment)[:3] == ["_serve_completion", "plain", "uvloop"]
