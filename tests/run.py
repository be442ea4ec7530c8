"""Install everything that the tests need and run them: `python3 tests/run.py [--checks | pytest's arguments]`.

Needs Python 3 with venv and a C compiler, and nothing else. Programs of the system that single tests need are installed
where that is possible (root, apt-get); where it is not, those tests are skipped and named at the end, which with
CI=true is a failure. The checks run once, the tests on the oldest and on the newest interpreter from 3.11 on that this
machine has, or on those that TEST_PYTHONS names ("3.12 3.14"). The newest runs the checkout, which is pure Python, the
others the wheel with the compiled core, built anew whenever a file of the server has changed; or all of them the one
that TEST_CORE names, "compiled" or "pure". With --checks only the checks run. Most of the time of the tests is that of
interpreters that start, so that all bytecode is made beforehand. What does not need the other is done at the same time:
packages and the system's programs, the checks and the coverage.
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
CORES = ("compiled", "pure")
LOCK = "requirements-dev.txt"
"""The packages of the tests with their versions and the hashes of their files: a run next month is the run of today."""
BUILT_OF = ("server", "hatch_build.py", "compile_core.py", "pyproject.toml", "README.md", LOCK)
"""What a wheel depends on."""
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
    core = {version: os.environ.get("TEST_CORE") or CORES[version == chosen[0]] for version in chosen}
    if not {*core.values()} <= {*CORES}:
        print(f"TEST_CORE={os.environ['TEST_CORE']} is none of {', '.join(CORES)}", file=sys.stderr)
        return 2
    if checks_alone:
        return 0 if passes_checks(environment(found[chosen[0]], chosen[0], core[chosen[0]])) else 1
    with ThreadPoolExecutor(len(chosen) + 2) as pool:
        programs = pool.submit(install_programs)
        made = pool.map(environment, map(found.__getitem__, chosen), chosen, map(core.__getitem__, chosen))
        pythons = dict(zip(chosen, made, strict=True))
        newest = pythons[chosen[0]]
        checked = pool.submit(passes_checks, newest)
        compiled = [pool.submit(compile_all, python) for python in pythons.values()]
        covered = core[chosen[0]] == "compiled" or covers(newest)  # what is compiled cannot be traced
        if not checked.result() or not covered:
            return 1
        for each in (programs, *compiled):
            each.result()
    status = 0
    for version in chosen:
        running = {"compiled": "the wheel, with the compiled core", "pure": "the checkout, pure Python"}[core[version]]
        print(f"\n=== tests on Python {'.'.join(map(str, version))}: {running}", flush=True)
        some = [] if version == chosen[0] else ["-m", "not once"]  # what does not depend on the interpreter ran before
        tests = ("-m", "pytest", *XDIST, *some, *sys.argv[1:])
        status |= run(pythons[version], *tests, TEST_CORE=core[version])  # which tests/test_compiled_core.py verifies
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


def run(python: Path, *arguments: str, **variables: str) -> int:
    """Run a command of an environment in the checkout and return its exit status."""
    print("$", python.name, *arguments, flush=True)
    variables = KEEPING_BYTECODE | variables
    return subprocess.run([str(python), *arguments], cwd=ROOT, env=variables, check=False).returncode


def compile_all(python: Path) -> None:
    """Keep the bytecode of the server for its many starts, and that of the tests for each of pytest's workers.

    pip has done it for a wheel.
    """
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


def environment(interpreter: Path, version: tuple[int, int], core: str) -> Path:
    """A virtual environment of `interpreter` with the server and what the lock file names; return its interpreter.

    The server is the wheel with the compiled core, which runs no file of the checkout, or an editable install.
    """
    place = ROOT / f".venv-{version[0]}.{version[1]}"
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", place], check=True)
    if is_new(place / "installed", digest(LOCK, "pyproject.toml")):
        subprocess.run([*pip, "--require-hashes", "-r", LOCK], cwd=ROOT, check=True)
        (place / "installed").write_text(digest(LOCK, "pyproject.toml"))
        (place / "server").unlink(missing_ok=True)
    server = f"{core} {digest(*BUILT_OF) if core == 'compiled' else ''}"
    if is_new(place / "server", server):
        editable = [] if core == "compiled" else ["--editable"]
        subprocess.run(
            [*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", *editable, "."],
            cwd=ROOT,
            env={**os.environ, "SERVE_ASGI_COMPILE": "always"},
            check=True,
        )
        (place / "server").write_text(server)
    return python


def is_new(marker: Path, what: str) -> bool:
    """Whether an environment does not have it yet, as its marker says."""
    return not marker.is_file() or marker.read_text() != what


def digest(*names: str) -> str:
    """The hash of these files of the checkout, and of all files in these directories, with their names."""
    state = hashlib.sha256()
    for name in names:
        place = ROOT / name
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file() and file.suffix != ".pyc":
                state.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return state.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
