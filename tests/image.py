"""A Dockerfile carried out without Docker, as far as tests need it: its steps run as they are written.

Each stage is an overlay (mount(8)) over this machine's own root, which no step can change, entered by chroot in a mount
and a PID namespace of its own. The base image is this machine with the interpreter of the tests as `python` and
`pip`. What it cannot stand for: what the real base image holds, and Docker's own parsing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
STEP = 300.0
"""Seconds for one step; installing packages is the longest."""

ENTER = """
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$1/root/tmp"
place=$1 directory=$2; shift 2
exec chroot "$place/root" /bin/sh -ec 'cd "$0"; exec "$@"' "$directory" "$@"
"""


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, its continuations joined."""

    name: str
    text: str

    @property
    def options(self) -> dict[str, str]:
        """The `--name=value` words before the rest."""
        return dict(re.findall(r"--([a-z-]+)=(\S+)", re.match(r"(--\S+ +)*", self.text)[0]))  # type: ignore[index]

    @property
    def rest(self) -> str:
        return re.sub(r"^(--\S+ +)*", "", self.text)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.rest)

    @property
    def command(self) -> list[str]:
        """The words of an exec form; raises ValueError for a shell form."""
        found = json.loads(self.rest)
        assert isinstance(found, list)
        return [str(word) for word in found]


def parse(text: str) -> list[list[Instruction]]:
    """The stages of a Dockerfile, each beginning with its FROM."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stages.append([])
        stages[-1].append(Instruction(name, rest.strip()))
    return stages


@dataclass
class Stage:
    """What a stage has come to: its files, and how its processes start."""

    place: Path
    directory: str = "/"
    user: str = "0:0"
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})

    def files(self, path: str) -> Path:
        """Where a path that a step writes lies on this machine."""
        return self.place / "upper" / os.path.join(self.directory, path).lstrip("/")

    def entered(self, command: Sequence[str], user: str = "0:0", **environment: str) -> list[str]:
        """The command as PID 1 of its own namespace in this stage."""
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", ENTER, "enter"),
            *(str(self.place), self.directory, *self.started(command, user, **environment)),
        ]

    def started(self, command: Sequence[str], user: str, **environment: str) -> list[str]:
        """The command as that user, with the image's environment and nothing else."""
        uid, gid = user.split(":")
        variables = [f"{name}={text}" for name, text in (self.environment | environment).items()]
        return [
            *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"),
            *("env", "-i", *variables, *command),
        ]

    def run(self, command: Sequence[str], user: str = "0:0", **environment: str) -> None:
        """Run a step to its end. Raises AssertionError with its output if it fails."""
        done = subprocess.run(
            self.entered(command, user, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=STEP,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"

    def carry_out(self, step: Instruction, context: Path, stages: dict[str, Stage]) -> None:
        """One instruction that changes files, directory, user or environment; the others change nothing here."""
        match step.name:
            case "RUN":
                here = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
                here["SERVE_ASGI_COMPILE"] = "never"  # takes minutes, and has nothing to do with the image
                self.run(["/bin/sh", "-c", step.rest], self.user, **here)
            case "COPY":
                source = step.options.get("from")
                for name in step.words[:-1]:
                    self._copy(stages[source].files(name) if source else context / name, step.words[-1])
            case "WORKDIR":
                self.directory = os.path.join(self.directory, step.rest)
                self.files(".").mkdir(parents=True, exist_ok=True)
            case "USER":
                self.user = step.rest
            case "ENV":
                self.environment |= dict(word.split("=", 1) for word in step.words)

    def _copy(self, source: Path, to: str) -> None:
        target = self.files(to)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


@contextlib.contextmanager
def built(stages: list[list[Instruction]], context: Path) -> Iterator[Stage]:
    """The last stage, with the steps of all carried out; its files are gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="serve-image-") as folder:
        Path(folder).chmod(0o755)
        done: dict[str, Stage] = {}
        for number, steps in enumerate(stages):
            stage = based(Path(folder) / str(number))
            for step in steps[1:]:
                stage.carry_out(step, context, done)
            done[steps[0].rest.partition(" AS ")[2] or str(number)] = stage
        yield stage


def based(place: Path) -> Stage:
    """A stage with the base image's interpreter, readable by every user wherever this machine keeps it."""
    for name in ("upper", "work", "root"):
        (place / name).mkdir(parents=True)
    stage = Stage(place)
    base = Path(os.path.realpath(sys.executable))
    closed = [str(parent) for parent in base.parents if not parent.stat().st_mode & 0o001]
    if closed:
        stage.run(["chmod", "o+x", *closed])
    stage.run([str(base), "-m", "venv", "/usr/local"])
    return stage
