"""Under systemd, with the units of deploy/systemd: a real manager runs them, hardened as they are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.app import EXECUTIONS
from loadtest.servers import free_port
from tests.running import PATIENCE, ROOT, answer, children, request, running, until
from tests.system.deployed import DEPLOY, changed, example, generation, put_programs
from tests.system.light_load import light_load, put_application
from tests.system.systemd import Systemd, version

pytestmark = [pytest.mark.once, pytest.mark.needs("systemctl", "systemd-analyze", "unshare", "nsenter")]
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be a service manager in namespaces")
FIRST_WITH_RELOAD = 253
"""The version of systemd that has Type=notify-reload."""
RUNNABLE = ["serve.service"] + (["notify-reload/serve.service"] if version() >= FIRST_WITH_RELOAD else [])
"""The units that this machine's systemd understands; what it would see of the other is checked as datagrams."""


class Site:
    """/srv/app on a systemd: releases, and the link to the one that is current."""

    def __init__(self, systemd: Systemd) -> None:
        self.systemd = systemd
        self.port = free_port()
        self.executions = systemd.site / "executions.log"
        self.executions.touch()
        self.executions.chmod(0o666)
        self.release("1")

    def release(self, name: str, broken: bool = False) -> None:
        """Put a release there and let the link point to it."""
        place = self.systemd.site / "releases" / name
        place.mkdir(parents=True)
        put_application(place)
        if broken:
            (place / "app.py").write_text("import nothing_of_this_name\n")
        put_programs(place / "venv/bin")
        new = self.systemd.site / "new"
        new.symlink_to(f"releases/{name}")
        new.rename(self.systemd.site / "current")

    def unit(self, name: str, **changes: str) -> None:
        """Add a unit of deploy/systemd as it is, but for the address, the workers and what else the test changes."""
        usual = {"0.0.0.0:8000": f"127.0.0.1:{self.port}", "--workers 4": "--workers 2 --start-concurrency 2"}
        text = example(
            f"systemd/{name}", **{old: new for old, new in usual.items() if old in example(f"systemd/{name}")}
        )
        self.systemd.add(Path(name).name, changed(text, changes))
        self.systemd.do("daemon-reload")


@pytest.fixture
def site() -> Iterator[Site]:
    systemd = Systemd(**{EXECUTIONS: "/srv/app/executions.log"})
    try:
        yield Site(systemd)
    finally:
        systemd.close()


@root
def test_the_units_are_right(site: Site) -> None:
    site.unit("serve.service")
    site.unit("serve.socket")
    verify = site.systemd.run("systemd-analyze", "verify", "serve.service", "serve.socket")
    assert (verify.returncode, verify.stderr) == (0, "")

    site.unit("notify-reload/serve.service")
    verify = site.systemd.run("systemd-analyze", "verify", "serve.service")
    if version() >= FIRST_WITH_RELOAD:
        assert (verify.returncode, verify.stderr) == (0, "")
    else:
        assert [line.rpartition(": ")[2] for line in verify.stderr.splitlines()] == ["notify-reload"]


def test_the_two_services_differ_in_how_they_reload_alone() -> None:
    both, newer = ((DEPLOY / "systemd" / name).read_text() for name in ("serve.service", "notify-reload/serve.service"))
    settings = [[line for line in text.splitlines() if "=" in line and line[0] != "#"] for text in (both, newer)]
    assert set(settings[0]) ^ set(settings[1]) == {
        "Type=notify",
        "Type=notify-reload",
        next(line for line in settings[0] if line.startswith("ExecReload=")),
    }
    assert "KillMode=mixed" in settings[0]


@root
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_service_lives_reloads_refuses_and_stops(site: Site, name: str) -> None:
    site.unit(name)
    systemd = site.systemd
    systemd.do("start", "serve.service")
    assert systemd.show("serve.service", "StatusText").startswith("generation 1 serves, 2 workers")
    pid = systemd.server
    with light_load(site.port, site.executions) as ledger:
        systemd.wait_for(lambda: len(ledger.entries) > 50)
        site.release("2")
        systemd.do("reload", "serve.service")
        systemd.wait_for(lambda: systemd.status()["generation"] == 2)
        site.release("3", broken=True)
        assert (systemd.ctl("reload", "serve.service").returncode != 0) is (name == "serve.service")
        systemd.wait_for(lambda: systemd.status()["failed_reloads"] == 1)
        assert systemd.status()["generation"] == 2
        assert "refused" in systemd.show("serve.service", "StatusText")
        assert "nothing_of_this_name" in systemd.words()
        assert systemd.show("serve.service", "ActiveState") == "active"
        site.release("4")
        systemd.do("reload", "serve.service")
        systemd.wait_for(lambda: systemd.status()["reloads"] == 2)
        systemd.wait_for(lambda: len(children(pid)) == 2)
    assert systemd.server == pid
    assert "/srv/app/releases/4" in {os.readlink(f"/proc/{worker}/cwd") for worker in children(pid)}

    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as client:
        client.sendall(b"POST /echo?id=1000000&wait=1 HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
        systemd.wait_for(lambda: b"S 1000000 " in site.executions.read_bytes())
        systemd.do("stop", "serve.service")
        assert answer(client)[0] == 200
    assert systemd.show("serve.service", "Result") == "success"
    assert systemd.show("serve.service", "NRestarts") == "0"
    assert children(children(systemd.process.pid)[0]) == []


@root
def test_a_blocked_worker_costs_nothing_and_a_blocked_server_is_restarted(site: Site) -> None:
    site.unit("serve.service", **{"WatchdogSec=30": "WatchdogSec=3", "RestartSec=1": "RestartSec=0"})
    systemd = site.systemd
    systemd.do("start", "serve.service")
    pid = systemd.server
    serve, *where = "/srv/app/current/venv/bin/serve", "--control", "/run/serve/control.sock"
    replaced = systemd.run(serve, "reload", "--listener", *where)
    assert replaced.returncode == 0, replaced.stderr  # the listener's next program feeds the watchdog as well
    assert systemd.server == pid
    first, second = children(pid)
    os.kill(first, signal.SIGSTOP)
    # silent for longer than the server believes, and then for longer than the watchdog waits
    systemd.wait_for(lambda: any(worker["heard"] > 7.0 for worker in systemd.status()["workers"]))
    assert systemd.show("serve.service", "NRestarts") == "0"
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as client:
        assert request(client, "/")[0] == 200
    os.kill(second, signal.SIGSTOP)
    systemd.wait_for(lambda: systemd.show("serve.service", "NRestarts") == "1")
    systemd.wait_for(lambda: systemd.show("serve.service", "ActiveState") == "active")
    assert not {first, second} & set(children(systemd.server))
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as client:
        assert request(client, "/")[0] == 200


@root
def test_a_port_of_systemd_starts_the_service_and_refuses_nobody_while_it_restarts(site: Site) -> None:
    # The default KillMode sends TERM to the workers as well: they obey the listener alone.
    changes = {f"--bind 127.0.0.1:{site.port} ": "", "KillMode=mixed": "KillMode=control-group"}
    site.unit("serve.service", **changes)
    site.unit("serve.socket")
    systemd = site.systemd
    systemd.do("start", "serve.socket")
    assert systemd.show("serve.service", "ActiveState") == "inactive"
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as client:
        assert request(client, "/")[0] == 200
    assert systemd.status()["listening"] == ["fd:3 (http)"]
    before = systemd.server
    with light_load(site.port, site.executions, kinds=("one-shot",)) as ledger:
        for word in ("restart", "reload"):
            sent = len(ledger.entries)
            systemd.wait_for(lambda sent=sent: len(ledger.entries) > sent + 50)  # type: ignore[misc]
            systemd.do(word, "serve.service")
    assert systemd.server != before
    assert systemd.status()["generation"] == 2


@pytest.mark.needs("systemd-socket-activate")
def test_sockets_by_systemd_socket_activate(tmp_path: Path) -> None:
    environment = put_application(tmp_path)
    port, control = free_port(), tmp_path / "control"
    activate = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "--fdname=http", "--setenv=PYTHONPATH"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(*activate, f"--setenv={EXECUTIONS}"),
                *(sys.executable, "-m", "serve_asgi", "app:asgi", "--workers", "2", "--control", str(control)),
            ],
            cwd=tmp_path,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "PWD": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "Listening on" in (tmp_path / "log").read_text(), "the socket")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            assert request(client, "/")[0] == 200  # this connection has started the server
            with light_load(port, tmp_path / "executions.log"):
                for number in (2, 3):
                    process.send_signal(signal.SIGHUP)
                    until(lambda number=number: generation(control) == number, f"generation {number}")  # type: ignore[misc]
            assert request(client, "/")[0] == 200
        told = Path(f"/proc/{children(process.pid)[0]}/environ").read_bytes()
        assert b"LISTEN_" not in told, "no worker takes the sockets for its own"
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert "fd:3 (http)" in (tmp_path / "log").read_text()
    finally:
        print((tmp_path / "log").read_text())
        process.kill()
        process.wait()


def test_the_datagrams_of_a_reload_are_those_of_notify_reload(tmp_path: Path) -> None:
    """What systemd from 253 on waits for after HUP: RELOADING with a time since, in one message, and then READY."""
    put_application(tmp_path)
    with running("app:asgi", directory=tmp_path) as server:
        begun = time.monotonic_ns() // 1000
        server.signal(signal.SIGHUP)
        told = dict(line.split("=", 1) for line in server.notices.wait("RELOADING=1").splitlines())
        assert int(told["MONOTONIC_USEC"]) >= begun
        assert "READY" not in told
        assert "generation 2" in server.notices.wait("^READY=1\nSTATUS=")
        (tmp_path / "app.py").write_text("import nothing_of_this_name\n")
        server.signal(signal.SIGHUP)
        server.notices.wait("RELOADING=1")
        assert "refused" in server.notices.wait("^READY=1\nSTATUS=")
        (tmp_path / "serve.toml").write_text("this is no TOML")  # refused before anything is started
        server.signal(signal.SIGHUP)
        server.notices.wait("RELOADING=1")
        assert "refused" in server.notices.wait("^READY=1\nSTATUS=")
        assert server.stop() == 0
        assert server.notices.wait("STOPPING=1")
