"""Install everything that the tests need and run them: `python3 tests/run.py [--checks | pytest's arguments]`.

Needs Python 3 with venv and nothing else. Programs of the system that single tests need are installed where that is
possible (root, apt-get); where it is not, those tests are skipped and named at the end, which with CI=true is a
failure. The checks run once, the tests on the oldest and on the newest interpreter from 3.11 on that this machine
has, or on those that TEST_PYTHONS names ("3.12 3.14"). With --checks only the checks run. Most of the time of the tests
is that of interpreters that start, so that all code is compiled beforehand. What does not need the other is done at the
same time: packages and the system's programs, the checks and the coverage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
LOCK = "requirements-dev.txt"
"""The packages of the tests with their versions and the hashes of their files: a run next month is the run of today."""
PROGRAMS = {
    "chromium": "chromium",
    "h2load": "nghttp2-client",
    "curl": "curl",
    "dumb-init": "dumb-init",
    "fish": "fish",
    "haproxy": "haproxy",
    "javac": "default-jdk-headless",
    "logrotate": "logrotate",
    "mandoc": "mandoc",
    "nginx": "nginx",
    "node": "nodejs",
    "openssl": "openssl",
    "pg_ctlcluster": "postgresql",  # its programs are on no PATH: tests/conftest.py puts them there
    "prometheus": "prometheus",
    "redis-server": "redis-server",
    "runsv": "runit",
    "s6-supervise": "s6",
    "systemd-socket-activate": "systemd",
    "tini": "tini",
    "zsh": "zsh",
}
"""Programs of the system by the package of Debian that brings them."""
XDIST = ("-n", "3", "--dist", "worksteal")
"""Three at a time, for two processors: most tests wait most of the time. Neighbours stay together as long as there are
enough, so that what a module starts for all its tests is started once."""
PURE = (
    (
        *("tests/supervisor", "tests/hub", "tests/config", "tests/cli/test_import_config.py"),
        *("--ignore", "tests/config/test_live_configuration.py", "--ignore", "tests/config/test_mistakes.py"),
        *("-k", "not TestRandomHistories and not TestTicks and not TestProcesses"),
    ),
    (
        *("tests/http/test_forwarded.py", "tests/http/test_head_parsers.py", "tests/http/test_proxy_protocol.py"),
        *("tests/http/test_request_buffer.py", "tests/http/test_response_framing.py", "tests/http/test_strictness.py"),
        "tests/http/test_survival.py",
        *("tests/websocket/test_denial.py", "tests/websocket/test_framing.py", "tests/websocket/test_handshake.py"),
        *("tests/websocket/test_keep_alive_and_closing.py", "tests/websocket/test_moved_framing.py"),
        *("-k", "not uvloop and not asyncio and not damaged and not tiny"),  # no sockets; not what takes seconds
    ),
    ("tests/http/h2", "-k", "not histories and not any_bytes and not library and not memory"),
)
"""The tests of what is pure: without sockets, processes and clocks; not the long random ones, whose ways vary."""
PURE_HTTP = (
    *("chunked_body", "connection_states", "forwarded", "hand_over_record", "head_cache", "head_parsers"),
    *("proxy_protocol", "request_body", "request_buffer", "request_head"),
    *("response_framing", "response_head", "response_states", "survival_record"),
)
PURE_WEBSOCKET = ("compression", "deflate_window", "denial", "frames", "framing", "handshake", "keep_alive", "states")
COVERED = {
    "supervisor/*": 100,
    "hub/*": 97,
    "config/*": 99,
    ",".join(f"http/{name}.py" for name in PURE_HTTP): 100,
    "http/h2/*": 100,
    ",".join(f"websocket/{name}.py" for name in PURE_WEBSOCKET): 100,
}
"""The least part (%) of their statements and branches that these tests take; what is reached, rounded down."""
KEEPING_BYTECODE = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""The environment of the tests, in which Python keeps what it has compiled."""


def main() -> int:
    """Return 0 if all checks and all tests passed."""
    checks_alone = sys.argv[1:] == ["--checks"]
    found = interpreters()
    if not found:
        print("no Python from 3.11 on was found here; install one", file=sys.stderr)
        return 2
    chosen = sorted({max(found), min(found)} if "TEST_PYTHONS" not in os.environ else found, reverse=True)
    if checks_alone:
        return 0 if passes_checks(environment(found[chosen[0]], chosen[0])) else 1
    with ThreadPoolExecutor(len(chosen) + 2) as pool:
        programs = pool.submit(install_programs)
        pythons = dict(zip(chosen, pool.map(environment, map(found.__getitem__, chosen), chosen), strict=True))
        newest = pythons[chosen[0]]
        checked = pool.submit(passes_checks, newest)
        compiled = [pool.submit(compile_all, python) for python in pythons.values()]
        covered = covers(newest)
        if not checked.result() or not covered:
            return 1
        for each in (programs, *compiled):
            each.result()
    status = 0
    for version in chosen:
        print(f"\n=== tests on Python {'.'.join(map(str, version))}", flush=True)
        some = [] if version == chosen[0] else ["-m", "not once"]  # what does not depend on the interpreter ran before
        status |= run(pythons[version], "-m", "pytest", *XDIST, *some, *sys.argv[1:])
    return status


def passes_checks(python: Path) -> bool:
    """Whether the linter, the formatter and the type checker have nothing to say."""
    for check in (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("tests.in_process.portable_modules",),
    ):
        command = [str(python), "-m", *check]
        told = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        # In one piece: the coverage prints at the same time.
        print(f"$ {python.name} -m {' '.join(check)}\n{told.stdout.decode()}", end="", flush=True)
        if told.returncode:
            return False
    return True


def covers(python: Path) -> bool:
    """Whether the tests of what is pure, which need no server, take as many of its ways as they did."""
    passed = run(python, "-m", "coverage", "erase") == 0
    for tests in PURE:
        passed = run(python, "-m", "coverage", "run", "--append", "-m", "pytest", "-q", *tests) == 0 and passed
    for files, least in COVERED.items():
        include = ",".join(f"server/serve_asgi/{each}" for each in files.split(","))
        report = ("-m", "coverage", "report", "--skip-covered", "--include", include)
        passed = run(python, *report, "--fail-under", str(least)) == 0 and passed
    return passed


def run(python: Path, *arguments: str) -> int:
    """Run a command of an environment in the checkout and return its exit status."""
    print("$", python.name, *arguments, flush=True)
    return subprocess.run([str(python), *arguments], cwd=ROOT, env=KEEPING_BYTECODE, check=False).returncode


def compile_all(python: Path) -> None:
    """Keep the bytecode of the server for its many starts, and that of the tests for each of pytest's workers."""
    for arguments in (["compileall", "-q", "server", "examples", "loadtest"], ["pytest", "--collect-only", "-qq"]):
        command = [str(python), "-m", *arguments]
        subprocess.run(command, cwd=ROOT, env=KEEPING_BYTECODE, stdout=subprocess.DEVNULL, check=False)


def install_programs() -> None:
    """Install the system's programs that are missing, where that is possible."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if not missing or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)  # type: ignore[call-overload]
    with no_services_started():
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=False, **quiet)  # type: ignore[call-overload]


@contextlib.contextmanager
def no_services_started() -> Iterator[None]:
    """What is installed meanwhile starts no daemon (invoke-rc.d(8)): the tests start their own."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def interpreters() -> dict[tuple[int, int], Path]:
    """The interpreters of this machine that can make virtual environments, one of each minor version."""
    found: dict[tuple[int, int], Path] = {}
    for candidate in candidates():
        probe = "import ensurepip, sys, venv; print(*sys.version_info[:2], sys.version_info.releaselevel)"
        try:
            said = subprocess.run([candidate, "-c", probe], capture_output=True, text=True, check=False, timeout=60)
        except OSError:
            continue
        match = re.fullmatch(r"(\d+) (\d+) final\n", said.stdout)
        if match and (version := (int(match[1]), int(match[2]))) >= OLDEST:
            found.setdefault(version, candidate)
    if wanted := re.findall(r"3\.\d+", os.environ.get("TEST_PYTHONS", "")):
        return {version: path for version, path in found.items() if f"{version[0]}.{version[1]}" in wanted}
    return found


def candidates() -> Iterator[Path]:
    """Files that may be interpreters: this one, those on PATH, those that pyenv and uv keep."""
    yield Path(sys.executable)
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    home = Path.home()
    for kept in (Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions", home / ".local/share/uv/python"):
        places += sorted(kept.glob("*/bin"))
    for place in places:
        yield from sorted(path for path in place.glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name))


def environment(interpreter: Path, version: tuple[int, int]) -> Path:
    """A virtual environment of `interpreter` with the server and what the lock file names; return its interpreter."""
    place = ROOT / f".venv-{version[0]}.{version[1]}"
    python = place / "bin" / "python"
    asked = hashlib.sha256(b"".join((ROOT / file).read_bytes() for file in (LOCK, "pyproject.toml"))).hexdigest()
    installed = place / "installed"
    if python.exists() and installed.is_file() and installed.read_text() == asked:
        return python
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", place], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--require-hashes", "-r", LOCK], cwd=ROOT, check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", "."], cwd=ROOT, check=True)
    installed.write_text(asked)
    return python


if __name__ == "__main__":
    sys.exit(main())
