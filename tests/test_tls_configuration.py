"""TLS as an operator sets it up: the start, keys that nobody else sees, certificates that are renewed, reloads."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_asgi.cli import control_client
from tests.admin.scraping import ADMIN, admin_address, scrape, wait_for
from tests.applications import info
from tests.certificates import DAY, Authority
from tests.running import PATIENCE, RunningServer, request, running, until
from tests.running import ROOT as REPOSITORY
from tests.system.deployed import example

ROOT = Authority("Test root")
TLS = ("--tls-cert", "server.pem", "--tls-key", "server.key")
TRUSTING = ROOT.client_context()
PASSWORD = "open-sesame-to-the-cave"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(info())
    ROOT.server("localhost").write(tmp_path)
    return tmp_path


def serve(server: RunningServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command for the server."""
    command = [sys.executable, "-m", "serve_asgi", *arguments, "--control", str(server.control)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def start(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a server that is to refuse to."""
    return subprocess.run(
        [sys.executable, "-m", "serve_asgi", "app:app", "--no-control-socket", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=PATIENCE,
    )


# The start


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tls-cert", "missing.pem"), "missing.pem cannot be read: No such file or directory"),
        (("--tls-cert", "server.key"), "holds a private key and no certificate"),
        (("--tls-cert", "server.pem"), "holds no private key but a certificate"),
        (
            ("--tls-cert", "server.pem", "--tls-key", "other.key"),
            "does not fit the certificate in .*, which is for localhost",
        ),
        (("--tls-cert", "old.pem", "--tls-key", "old.key"), "for localhost, expired on"),
        (("--tls-cert", "locked.pem", "--tls-key", "locked.key"), "is encrypted: name its password's file"),
        (
            ("--tls-cert", "locked.pem", "--tls-key", "locked.key", "--tls-key-password", PASSWORD[1:]),
            "its password is not the one that was given",
        ),
        ((*TLS, "--tls-ciphers", "BEST"), "OpenSSL knows none of the cipher suites 'BEST'"),
        ((*TLS, "--tls-client-ca", "server.key"), "holds a private key and no certificate"),
        ((*TLS, "--https-redirect"), "--https-redirect has no plain address to redirect from: add one"),
        (("--bind", "https://127.0.0.1:0"), "it needs --tls-cert and --tls-key to speak TLS"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_sentence(project: Path, arguments: tuple[str, ...], sentence: str) -> None:
    ROOT.server("x").write(project, "other")
    ROOT.server("localhost", ends=-DAY / 2).write(project, "old")
    ROOT.server("localhost").write(project, "locked", PASSWORD)
    done = start(project, "--bind", "127.0.0.1:0", *arguments)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("serve: ")
    assert re.search(sentence, line)
    assert PASSWORD[1:] not in line
    assert done.stdout == ""


@pytest.mark.once
def test_no_address_that_speaks_tls_is_an_error(project: Path) -> None:
    done = start(project, "--bind", "unix:app.sock", *TLS)
    assert done.returncode == 2
    assert "there is a certificate, and no address that speaks TLS" in done.stderr
    assert not (project / "app.sock").exists()


@pytest.mark.once
def test_addresses_say_what_they_speak(project: Path) -> None:
    more = ("--bind", "http://127.0.0.1:0", "--bind", "https://127.0.0.1:0", "--bind", "unix:app.sock")
    with running("app:app", *more, *TLS, directory=project) as server:
        names = [name.partition("://")[0] for name in server.status()["listening"]]
        assert names == ["https", "http", "https", "unix:app.sock"]
        assert server.stop() == 0


@pytest.mark.once
def test_what_is_put_right_is_said(project: Path) -> None:
    middle = Authority("Middle", parent=ROOT)
    pair = middle.server("localhost")
    pair.write(project)
    (project / "server.pem").write_bytes(middle.pem + pair.certificate_pem.removesuffix(middle.pem))
    with running("app:app", *TLS, directory=project) as server:
        server.logged("stand in a wrong order, and are sent in the right one: localhost, then Middle")
        assert server.stop() == 0


# Keys


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def secrets_of(project: Path) -> list[str]:
    """Lines of the keys, encrypted or not, that must not be found anywhere."""
    return [line for path in project.glob("*.key") for line in path.read_text().splitlines()[1:3]]


@pytest.mark.once
def test_nobody_else_sees_the_key_or_its_password(project: Path) -> None:
    pair = ROOT.server("localhost")
    pair.write(project, password=PASSWORD)
    secrets = [PASSWORD, *secrets_of(project), *pair.key_pem().decode().splitlines()[1:3]]
    hook = f'server_started={sys.executable} -c \'import os; open("hook", "w").write(str(dict(os.environ)))\''
    with running(
        *("app:app", *TLS, "--workers", "2", "--hook", hook, "--log-level", "debug"),
        directory=project,
        environment={"SERVE_TLS_KEY_PASSWORD": PASSWORD},
    ) as server:
        until((project / "hook").exists, "the hook")
        told = [
            serve(server, "status", "--json").stdout,
            serve(server, "config", "--json").stdout,
            serve(server, "config").stdout,
            serve(server, "stacks").stdout,
        ]
        assert json.loads(told[1])["options"]
        pids = server.worker_pids()
        assert len(pids) == 2
        told += [environment_of(pid).decode() for pid in pids]
        told += [Path(f"/proc/{pid}/cmdline").read_text() for pid in [server.pid, *pids]]
        server.reload()
        assert serve(server, "reload", "--listener").returncode == 0
        assert serve(server, "tls-reload").returncode == 0
        assert server.stop() == 0
        told += [server.log(), (project / "hook").read_text()]
    for secret in secrets:
        assert not [text for text in told if secret in text]
    shown = {option["name"]: option["value"] for option in json.loads(told[1])["options"]}
    assert shown["tls-key-password"] == "***"


@pytest.mark.once
def test_a_password_on_the_command_line_is_warned_of(project: Path) -> None:
    ROOT.server("localhost").write(project, password=PASSWORD)
    with running("app:app", *TLS, "--tls-key-password", PASSWORD, directory=project) as server:
        server.logged("every user of this machine can read it: use --tls-key-password-file")
        assert server.stop() == 0
        assert PASSWORD not in server.log()


def test_a_password_in_a_file(project: Path) -> None:
    ROOT.server("localhost").write(project, password=PASSWORD)
    (project / "password").write_text(f"{PASSWORD}\nmore\n")
    with running("app:app", *TLS, "--tls-key-password-file", "password", directory=project) as server:
        assert "localhost" in serve(server, "status").stdout
        assert server.stop() == 0


def limit_of(pid: int) -> int:
    """Its soft limit of core files, in bytes (proc_pid_limits(5)); another user's may be read, and not asked for."""
    limits = Path(f"/proc/{pid}/limits").read_text()
    return int(next(line.split()[4] for line in limits.splitlines() if line.startswith("Max core file size")))


def uid_of(pid: int) -> int:
    """Its effective user (proc_pid_status(5)); the owner of its directory there is root for who has changed users."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[2] for line in status.splitlines() if line.startswith("Uid:")))


def open_to_all(path: str) -> bool:
    """Whether another user can read what lies there."""
    return all(each.stat().st_mode & 0o001 for each in Path(path).resolve().parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start workers as another user")
def test_the_key_is_for_root_alone(project: Path) -> None:
    """The listener reads it, the workers get it in memory; none of them leaves a core file.

    Where the interpreter lies in root's own directory, nobody else can run it: then root is the workers' user as well.
    """
    user = "nobody" if open_to_all(sys.executable) else "root"
    for directory in (project, *project.parents[:2]):
        directory.chmod(0o755)
    assert (project / "server.key").stat().st_mode & 0o777 == 0o600
    with running("app:app", *TLS, "--user", user, "--workers", "2", directory=project) as server:
        pids = server.worker_pids()
        assert {uid_of(pid) for pid in pids} == {pwd.getpwnam(user).pw_uid}
        assert {limit_of(pid) for pid in [server.pid, *pids]} <= {0, 1}
        ROOT.server("new.example").write(project)
        done = serve(server, "tls-reload")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("new connections use what the files hold now: new.example (until 20")
        server.reload()
        assert server.stop() == 0


def test_without_tls_nothing_of_it_is_imported(project: Path) -> None:
    (project / "app.py").write_text(
        info()
        + "\nimport sys\nassert not [n for n in sys.modules if n.startswith(('serve_asgi.tls', 'cryptography'))]\n"
    )
    with running("app:app", directory=project) as server:
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "cryptography" not in maps
        assert server.stop() == 0


# Handshakes


def connected(
    server: RunningServer,
    name: str = "localhost",
    session: ssl.SSLSession | None = None,
    trusting: ssl.SSLContext = TRUSTING,
) -> ssl.SSLSocket:
    """A connection that has had one answer, so that its ticket has come with it."""
    raw = socket.create_connection(server.address(), timeout=PATIENCE)
    connection = trusting.wrap_socket(raw, server_hostname=name, session=session)
    try:
        assert request(connection)[0] == 200
    except BaseException:
        connection.close()
        raise
    return connection


def names_of(connection: ssl.SSLSocket) -> set[str]:
    certificate: Any = connection.getpeercert()
    return {name for _, name in certificate["subjectAltName"]}


def test_each_name_gets_its_certificate(project: Path) -> None:
    ROOT.server("other.example", "*.wild.example", kind="rsa").write(project, "other")
    with running("app:app", *TLS, "--tls-cert", "other.pem", "--tls-key", "other.key", directory=project) as server:
        for name, first in (
            ("localhost", "localhost"),
            ("other.example", "other.example"),
            ("a.wild.example", "other.example"),
        ):
            with connected(server, name) as connection:
                assert first in names_of(connection)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            connected(server, "b.a.wild.example")
        assert server.stop() == 0


def test_new_connections_get_a_renewed_certificate_and_old_ones_go_on(server: RunningServer, project: Path) -> None:
    with connected(server) as old:
        ROOT.server("localhost", "renewed.example").write(project)
        assert serve(server, "tls-reload").returncode == 0
        for _ in range(10):  # whichever worker it is
            with connected(server, "renewed.example") as new:
                assert "renewed.example" in names_of(new)
        assert request(old)[0] == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_by_any_worker_of_any_generation(server: RunningServer, version: ssl.TLSVersion) -> None:
    trusting = ROOT.client_context()
    trusting.maximum_version = version
    with connected(server, trusting=trusting) as first:
        session = first.session
    for act in (
        None,
        server.reload,
        lambda: serve(server, "reload", "--listener"),
        lambda: serve(server, "tls-reload"),
    ):
        if act is not None:
            act()
        for _ in range(6):
            with connected(server, session=session, trusting=trusting) as again:
                assert again.session_reused
                session = again.session


def test_a_ticket_does_not_outlive_what_is_asked_of_clients(project: Path) -> None:
    """A reload that asks clients for certificates: who was welcome before does not come in by a ticket."""
    (project / "serve.toml").write_text('tls-cert = "server.pem"\ntls-key = "server.key"\n')
    (project / "ca.pem").write_bytes(ROOT.pem)
    with running("app:app", directory=project) as server:
        with connected(server) as first:
            session = first.session
        with connected(server, session=session) as again:
            assert again.session_reused
        with (project / "serve.toml").open("a") as file:
            file.write('tls-client-ca = "ca.pem"\n')
        server.reload()
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            connected(server, session=session)
        mine = ROOT.client_context(ROOT.client("bob"), project)
        with connected(server, trusting=mine) as connection:
            assert not connection.session_reused
        assert server.stop() == 0


# Renewal


@pytest.fixture
def server(project: Path) -> Iterator[RunningServer]:
    with running("app:app", *TLS, "--workers", "2", directory=project) as made:
        yield made
        assert made.stop() == 0


def served(server: RunningServer) -> list[str]:
    """The first name of each certificate."""
    tls: dict[str, Any] = server.status()["tls"]
    return [certificate["names"][0] for certificate in tls["certificates"]]


@pytest.mark.once
def test_tls_reload_tells_the_truth(server: RunningServer, project: Path) -> None:
    done = serve(server, "tls-reload")
    assert done.returncode == 0
    assert done.stdout.startswith("no file has changed: localhost")
    ROOT.server("new.example").write(project)
    assert serve(server, "tls-reload").returncode == 0
    assert served(server) == ["new.example"]
    (project / "server.key").write_text("garbage")
    done = serve(server, "tls-reload")
    assert done.returncode == 1
    told = "server.key holds no private key in PEM: name the one that the certificate was made with\n"
    assert done.stderr.endswith(told)
    assert served(server) == ["new.example"]
    assert "cannot be used as they are now" in serve(server, "status").stdout


@pytest.mark.once
def test_the_hook_for_certbot(server: RunningServer, project: Path) -> None:
    """deploy/certbot: what certbot runs when it has renewed a certificate."""
    command = f"{sys.executable} -m serve_asgi"
    hook = project / "hook"
    hook.write_text(example("certbot/serve-tls-reload", **{"/srv/app/current/venv/bin/python -m serve_asgi": command}))
    hook.chmod(0o755)
    ROOT.server("new.example").write(project)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SERVE_CONTROL": str(server.control)}
    done = subprocess.run([hook], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert served(server) == ["new.example"]


@pytest.mark.once
def test_metrics_have_the_time_that_is_left(project: Path) -> None:
    with running("app:app", *TLS, *ADMIN, directory=project) as server:
        labels = (("file", str(project / "server.pem")), ("name", "localhost"))
        left = scrape(admin_address(server))["serve_tls_certificate_expiry_seconds", labels]
        assert 89 * 86400 < left < 90 * 86400
        ROOT.server("localhost", ends=30 * DAY).write(project)
        assert serve(server, "tls-reload").returncode == 0
        wait_for(
            admin_address(server),
            lambda metrics: metrics["serve_tls_certificate_expiry_seconds", labels] < 30 * 86400,
        )
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_signals_have_certificates_looked_at(server: RunningServer, project: Path, number: signal.Signals) -> None:
    ROOT.server("new.example").write(project)
    server.signal(number)
    server.wait_until(lambda status: status["tls"]["certificates"][0]["names"] == ["new.example"])
    server.logged("new connections use what the files hold now: new.example")


@pytest.mark.once
def test_a_broken_certificate_does_not_stop_a_deploy(server: RunningServer, project: Path) -> None:
    (project / "server.pem").write_text("garbage")
    assert "generation 2 serves" in server.reload()
    assert served(server) == ["localhost"]
    server.logged("the certificates in use stay as they were")


def test_the_next_program_of_the_listener_goes_on_with_what_there_is(server: RunningServer, project: Path) -> None:
    (project / "server.key").unlink()
    age = server.status()["tls"]["ticket_keys_age"]
    assert serve(server, "reload", "--listener").returncode == 0
    assert served(server) == ["localhost"]
    assert server.status()["tls"]["ticket_keys_age"] > age  # the keys are the same ones
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.logged("worker . of generation 1 serves")
    server.reload()
    ROOT.server("new.example").write(project)
    assert serve(server, "tls-reload").returncode == 0
    assert served(server) == ["new.example"]


@pytest.mark.once
def test_a_reload_with_other_files(project: Path) -> None:
    (project / "serve.toml").write_text('tls-cert = "server.pem"\ntls-key = "server.key"\n')
    with running("app:app", directory=project) as server:
        ROOT.server("other.example").write(project, "other")
        (project / "serve.toml").write_text('tls-cert = ["other.pem"]\ntls-key = ["other.key"]\n')
        server.reload()
        until(lambda: served(server) == ["other.example"], "the end of generation 1, which has the other")
        (project / "serve.toml").write_text('tls-cert = "missing.pem"\n')
        with pytest.raises(control_client.RequestRefused, match=r"missing\.pem cannot be read"):
            server.reload()
        (project / "serve.toml").write_text("")
        with pytest.raises(control_client.RequestRefused, match="a reload cannot turn TLS on or off"):
            server.reload()
        assert served(server) == ["other.example"]
        assert server.stop() == 0
