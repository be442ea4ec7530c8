"""A systemd of the test's own, which runs units in namespaces and a control group of its own and sees nobody else's.

It is PID 1 of a container on this machine's files: /run, /srv and the control groups are its own, the network is this
machine's. The site of the test is its /srv/app. Units are found in the test's directory alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.running import PATIENCE, ROOT, children

MANAGER = "/usr/lib/systemd/systemd"
CANNOT = 77
"""Exit status of the scripts for: not on this machine."""

ENTER = f"""
mount -t cgroup2 none "$1/groups" && mkdir "$1/groups/$2" && echo 0 > "$1/groups/$2/cgroup.procs" || exit {CANNOT}
umount "$1/groups"
exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh -ec "$3" begin "$1"
"""
BEGIN = f"""
mount --make-rprivate /
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /srv
mkdir /srv/app
mount --bind "$1/site" /srv/app
mount -t cgroup2 none /sys/fs/cgroup
mount --bind /dev/null /dev/console
export container=test SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_GENERATOR_PATH="$1/none"
exec {MANAGER} --system --unit=test.target --show-status=no --log-target=console
"""
LEAVE = """
mount -t cgroup2 none "$1/groups" && find "$1/groups/$2" -depth -type d -exec rmdir {} +
"""
TARGETS = ("test", "sysinit", "basic", "shutdown", "network", "sockets", "multi-user")

HERE = """
[Service]
# What this machine has in other places than an installation: its interpreter, this checkout, and no journal.
ProtectHome=tmpfs
BindReadOnlyPaths={paths}
ReadWritePaths=-/srv/app/executions.log
Environment={environment}
StandardOutput=append:/srv/app/output.log
StandardError=append:/srv/app/error.log
"""


class Systemd:
    """The running manager. `site` is what it sees as /srv/app."""

    def __init__(self, **environment: str) -> None:
        """Start it; services get the environment. Skips the test where it cannot be had."""
        self._files = tempfile.TemporaryDirectory(prefix="serve-systemd-")
        self.place = Path(self._files.name)
        self.place.chmod(0o755)
        self.site, self.units = self.place / "site", self.place / "units"
        for name in ("site", "units", "none", "groups"):
            (self.place / name).mkdir()
        for name in TARGETS:
            self.add(f"{name}.target", f"[Unit]\nDescription={name}\nDefaultDependencies=no\n")
        paths = {sys.prefix, sys.base_prefix, str(ROOT)}
        for name in ("output.log", "error.log"):
            (self.site / name).touch()
        told = " ".join(f"{name}={text}" for name, text in environment.items())
        self.add("serve.service.d/here.conf", HERE.format(paths=" ".join(sorted(paths)), environment=told))
        self._group = self.place.name
        self._log = (self.place / "log").open("wb")
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", ENTER, "enter", str(self.place), self._group, BEGIN],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.wait_for(lambda: self.ctl("is-system-running").stdout == "running\n")
        except BaseException:
            self.close()
            raise

    def add(self, name: str, text: str) -> None:
        """Put a unit file, or a part of one, where this manager looks."""
        (self.units / name).parent.mkdir(exist_ok=True)
        (self.units / name).write_text(text)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command beside the manager's services."""
        family = children(self.process.pid)
        if not family:
            return subprocess.CompletedProcess(command, 1, "", "the manager is not there yet")
        enter = ["nsenter", f"--target={family[0]}", "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        return subprocess.run(
            [*enter, "env", f"SYSTEMD_UNIT_PATH={self.units}", "SYSTEMD_PAGER=", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`systemctl …`"""
        return self.run("systemctl", *words)

    def do(self, *words: str) -> str:
        """`systemctl …`, which must work; what it says."""
        done = self.ctl(*words)
        assert done.returncode == 0, done.stderr + self.words()
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.do("show", unit, "--property", name, "--value").strip()

    @property
    def server(self) -> int:
        """The PID of serve.service, as this machine counts."""
        within = self.show("serve.service", "MainPID")
        for pid in children(children(self.process.pid)[0]):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            if next(line for line in lines if line.startswith("NSpid:")).split()[-1] == within:
                return pid
        raise AssertionError(f"there is no main process {within}")

    def status(self) -> dict[str, Any]:
        """What the server says of itself."""
        path = Path(f"/proc/{children(self.process.pid)[0]}/root/run/serve/control.sock")
        found: dict[str, Any] = control_client.ask(path, "status")["status"]
        return found

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Ask again and again until `condition` holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() == CANNOT:
                pytest.skip("control groups cannot be had on this machine")
            assert self.process.poll() is None, self.words()
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.05)

    def words(self) -> str:
        """What the manager and the server have said."""
        return "".join(path.read_text() for path in (self.place / "log", *sorted(self.site.glob("*.log"))))

    def close(self) -> None:
        """End it, with all that it has started: the kernel ends the namespace with its PID 1."""
        private = self._private_directories()
        self.process.kill()
        self.process.wait()
        self._log.close()
        print(self.words())
        leave = ["unshare", "--mount", "sh", "-c", LEAVE, "leave", str(self.place), self._group]
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(leave, capture_output=True, check=False).returncode and time.monotonic() < deadline:
            time.sleep(0.05)  # until the last of its processes is gone
        for directory in private:
            shutil.rmtree(directory, ignore_errors=True)
        self._files.cleanup()

    def _private_directories(self) -> list[Path]:
        """What PrivateTmp= has made for services that run, which nobody but the manager would remove."""
        names = set()
        for manager in children(self.process.pid):
            for pid in children(manager):
                with contextlib.suppress(OSError):
                    names |= set(re.findall(r"systemd-private-[^/ ]+", Path(f"/proc/{pid}/mountinfo").read_text()))
        return [Path(place) / name for place in ("/tmp", "/var/tmp") for name in names]


def version() -> int:
    """The version of this machine's systemd; 0 if it has none."""
    if not os.access(MANAGER, os.X_OK):
        return 0
    return int(subprocess.run([MANAGER, "--version"], capture_output=True, text=True, check=True).stdout.split()[1])
