"""Certificates of a server that runs: what is noticed, what workers are sent, what is said, what is carried over."""

from __future__ import annotations

import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from serve_asgi.config.options import Config
from serve_asgi.config.tls_files import TlsFiles
from serve_asgi.errors import UsageError
from serve_asgi.ipc.channel import Packet
from serve_asgi.ipc.lifecycle_states import WorkerState
from serve_asgi.listener import certificate_loading, certificate_watch
from serve_asgi.listener.certificate_watch import CertificateWatch
from serve_asgi.supervisor import actions
from serve_asgi.supervisor.lifecycles import Policy, Worker
from serve_asgi.supervisor.supervisor import Supervisor
from serve_asgi.tls import tickets
from serve_asgi.tls.material import TlsMaterial
from tests.certificates import DAY, Authority

POLICY = Policy(2, 2, 3, 60.0, 30.0, 10.0, 0.0)
ROOT = Authority("Test root")


class Server:
    """A listener as far as certificates are concerned; its workers note what they get, and say that they use it."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.write()
        self.config = Config(**{"tls_cert": ("server.pem",), "tls_key": ("server.key",), **options})
        supervisor = Supervisor(POLICY)
        supervisor.start(0.0)
        self.workers = list(supervisor.workers.values())
        for worker in self.workers:
            worker.state = WorkerState.SERVING
        self.takes = True
        self.trouble = ""
        self.sent: list[tuple[Worker, TlsMaterial]] = []
        self.records: list[actions.LogEvent] = []
        files = self.files
        self.watch = self.made((files, certificate_loading.load(files)))

    def made(self, first: Any, inherited: Any = None) -> CertificateWatch:
        return CertificateWatch(
            first, lambda: self.workers, lambda worker: self.files, self.tell, self.records.append, inherited
        )

    @property
    def files(self) -> TlsFiles:
        files = TlsFiles.of(self.config, str(self.directory))
        assert files is not None
        return files

    def write(self, *names: str, **more: Any) -> None:
        """Another pair in place of the one that is there."""
        ROOT.server(*(names or ("localhost",)), **more).write(self.directory)

    def tell(self, worker: Worker, packet: Packet, given: tuple[int, ...]) -> None:
        assert packet["type"] == "tls"
        (descriptor,) = given
        material = TlsMaterial.from_memfd(descriptor)
        assert packet["version"] == material.version
        self.sent.append((worker, material))
        if self.takes:
            self.watch.taken(worker, material.version, self.trouble)

    def events(self) -> list[str]:
        return [record.event for record in self.records]

    def serves(self) -> tuple[str, ...]:
        """The names in what a worker would be started with."""
        descriptor = self.watch.descriptor_for(self.workers[0])
        assert descriptor is not None
        return TlsMaterial.from_memfd(descriptor).pairs[0].names


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(certificate_watch, "SETTLE_TIME", 0.0)
    before = len(os.listdir("/proc/self/fd"))
    made = Server(tmp_path)
    yield made
    made.watch._forget_state()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_nothing_has_changed(server: Server) -> None:
    (found,) = anyio.run(server.watch.look)
    assert found[0]
    assert found[1].startswith("no file has changed: localhost (until 20")
    assert (server.sent, server.records) == ([], [])


def test_a_new_pair_goes_to_all_workers(server: Server) -> None:
    server.write("new.example")
    (found,) = anyio.run(server.watch.look)
    assert found[0]
    assert [worker for worker, _ in server.sent] == server.workers
    assert {material.pairs[0].names for _, material in server.sent} == {("new.example",)}
    assert server.serves() == ("new.example",)
    assert server.events() == ["tls_certificate_changed"]
    assert server.records[0].about["certificates"][0]["names"] == ["new.example"]


def test_a_link_that_points_elsewhere_is_noticed(server: Server, tmp_path: Path) -> None:
    """As certbot does it, and Kubernetes with ..data."""
    releases = []
    for name in ("one", "two"):
        releases.append(tmp_path / name)
        releases[-1].mkdir()
        ROOT.server(name).write(releases[-1])
    (tmp_path / "current").symlink_to("one")
    server.config = Config(tls_cert=("current/server.pem",), tls_key=("current/server.key",))
    server.watch = server.made((server.files, certificate_loading.load(server.files)))
    assert server.serves() == ("one",)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "current")
    anyio.run(server.watch.look)
    assert server.serves() == ("two",)


@pytest.mark.parametrize("how", ["missing", "garbage", "expired", "another key"])
def test_what_cannot_be_used_changes_nothing_and_is_said_once(server: Server, how: str) -> None:
    match how:
        case "missing":
            (server.directory / "server.pem").unlink()
        case "garbage":
            (server.directory / "server.key").write_text("garbage")
        case "expired":
            server.write(ends=-DAY / 2)
        case "another key":
            ROOT.server("x").write(server.directory, "x")
            shutil.copy(server.directory / "x.key", server.directory / "server.key")
    for _ in range(3):
        (found,) = anyio.run(server.watch.look)
        assert not found[0]
    assert (server.sent, server.serves()) == ([], ("localhost",))
    assert server.events() == ["tls_certificate_refused"]
    assert server.records[0].level == logging.ERROR
    status = server.watch.status()
    assert status is not None
    assert status["trouble"] == server.records[0].about["reason"] == found[1]
    server.write("again.example")
    anyio.run(server.watch.look)
    assert server.serves() == ("again.example",)
    assert server.events()[1:] == ["tls_certificate_changed"]
    status = server.watch.status()
    assert status is not None
    assert status["trouble"] == ""


def test_files_that_are_being_replaced_are_looked_at_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is there and its key is not yet: nothing is said of that."""
    pair = ROOT.server("new.example")
    (server.directory / "server.pem").write_bytes(pair.certificate_pem)

    async def settle(delay: float) -> None:
        pair.write(server.directory)

    with monkeypatch.context() as patched:
        patched.setattr(anyio, "sleep", settle)
        (found,) = anyio.run(server.watch.look)
    assert found[0]
    assert server.events() == ["tls_certificate_changed"]
    assert server.serves() == ("new.example",)


def test_a_disk_that_does_not_answer_holds_nobody_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is left to its thread; there is no second thread as long as that one waits."""
    stuck = threading.Event()
    reads = 0

    def read_files(files: TlsFiles) -> Any:
        nonlocal reads
        reads += 1
        stuck.wait()
        return {}, server.watch._served[server.files].loaded.digest

    monkeypatch.setattr(certificate_watch, "READ_TIME", 0.05)
    monkeypatch.setattr(certificate_loading, "read_files", read_files)

    async def main() -> None:
        for sentence in ("could not be read within 0.05 s", "the disk has not answered since"):
            (found,) = await server.watch.look()
            assert not found[0]
            assert sentence in found[1]
        assert reads == 1
        with pytest.raises(UsageError, match="the disk has not answered since"):
            await server.watch.prepare(TlsFiles((("other", "other"),)))
        stuck.set()
        server.watch._read_all.wait()
        assert (await server.watch.look())[0][0]

    anyio.run(main)
    assert server.serves() == ("localhost",)


def test_a_reload_may_name_other_files(server: Server) -> None:
    before = server.files
    ROOT.server("other.example").write(server.directory, "other")
    server.config = Config(tls_cert=("other.pem",), tls_key=("other.key",))
    with pytest.raises(KeyError):  # never plain text: whoever is not prepared is not started
        server.serves()
    anyio.run(server.watch.prepare, server.files)
    assert server.serves() == ("other.example",)
    server.watch.keep([server.files, None])
    server.config = Config(tls_cert=("server.pem",), tls_key=("server.key",))
    assert server.files == before
    with pytest.raises(KeyError):
        server.serves()


def test_a_reload_that_names_what_cannot_be_used_is_refused(server: Server) -> None:
    with pytest.raises(UsageError, match=r"missing\.pem cannot be read: No such file"):
        anyio.run(server.watch.prepare, TlsFiles(((str(server.directory / "missing.pem"), "k"),)))


def test_a_reload_with_the_same_files_looks_at_them_and_is_not_refused(server: Server) -> None:
    (server.directory / "server.pem").write_text("garbage")
    anyio.run(server.watch.prepare, server.files)
    assert server.events() == ["tls_certificate_refused"]
    server.write("new.example")
    anyio.run(server.watch.prepare, server.files)
    assert server.serves() == ("new.example",)


# `serve tls-reload`


def test_the_command_waits_for_the_workers(server: Server) -> None:
    server.takes = False
    server.write("new.example")

    async def main() -> tuple[bool, str]:
        async with anyio.create_task_group() as tasks:
            outcome: list[tuple[bool, str]] = []

            async def ask() -> None:
                outcome.append(await server.watch.reload())

            tasks.start_soon(ask)
            while not server.sent:
                await anyio.sleep(0.001)
            for worker, material in server.sent:
                await anyio.sleep(0.001)
                assert not outcome
                server.watch.taken(worker, material.version, "")
        return outcome[0]

    ok, text = anyio.run(main)
    assert ok
    assert text.startswith("new connections use what the files hold now: new.example (until ")


def test_a_worker_that_does_not_take_it_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_watch, "TAKE_TIME", 0.01)
    server.takes = False
    server.write("new.example")
    ok, text = anyio.run(server.watch.reload)
    assert not ok
    assert text.endswith("but 2 of the workers have not taken it within 0.01 s")
    server.workers.clear()  # who is dead is not waited for
    assert anyio.run(server.watch.reload)[0]


def test_a_worker_that_cannot_use_it_says_so(server: Server) -> None:
    server.trouble = "its OpenSSL is older"
    server.write("new.example")
    anyio.run(server.watch.look)
    refused = [record for record in server.records if record.event == "tls_update_refused"]
    assert len(refused) == 2
    assert refused[0].text == "worker 0 of generation 1 goes on with the certificate that it had: its OpenSSL is older"


def test_without_tls_the_command_says_so(tmp_path: Path) -> None:
    watch = CertificateWatch(None, list, lambda worker: None, lambda *_: None, lambda said: None)
    assert anyio.run(watch.reload) == (False, "this server speaks no TLS: it was started without --tls-cert")
    assert watch.status() is None
    assert watch.to_state([]) is None
    anyio.run(watch.run)


def test_a_worker_that_has_lost_it_gets_it_again(server: Server) -> None:
    server.watch.lost(server.workers[1])
    assert [worker for worker, _ in server.sent] == server.workers[1:]


def test_without_descriptors_workers_keep_what_they_have(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: TlsMaterial) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(TlsMaterial, "to_memfd", fails)
    server.write("new.example")
    anyio.run(server.watch.look)
    assert server.events() == ["descriptors_lost", "tls_certificate_changed"]


# Ticket keys


def test_ticket_keys_rotate(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.watch._rotate_when_due()
    assert server.sent == []
    monkeypatch.setattr(tickets, "ROTATION", 0.0)
    server.watch._rotate_when_due()
    server.watch._rotate_when_due()
    first, second = server.sent[0][1].ticket_keys, server.sent[2][1].ticket_keys
    assert second[1] == first[0]
    assert server.events() == ["tls_ticket_keys_rotated"] * 2


# What is said of certificates that end


@pytest.mark.parametrize(
    ("days", "level", "told"),
    [
        (15, None, ""),
        (13, logging.WARNING, "the certificate for localhost in .*server.pem expires in 13 days, on 20.*: renew it"),
        (0.5, logging.ERROR, "expires in 12 hours"),
    ],
)
def test_an_end_that_is_near_is_told_once_a_day(server: Server, days: float, level: int | None, told: str) -> None:
    server.write(ends=days * DAY)
    anyio.run(server.watch.look)
    server.watch._warn_of_ends()
    found = [record for record in server.records if record.event == "tls_renewal_needed"]
    assert [record.level for record in found] == ([] if level is None else [level])
    assert all(re.search(told, record.text) for record in found)
    for fingerprint in server.watch._warned:
        server.watch._warned[fingerprint] -= 86400.0
    server.watch._warn_of_ends()
    assert len([record for record in server.records if record.event == "tls_renewal_needed"]) == len(found) * 2


def test_metrics_have_the_end_of_each_certificate(server: Server) -> None:
    ((name, path, end),) = server.watch.ends()
    assert (name, path) == ("localhost", str(server.directory / "server.pem"))
    assert end > time.time()


# Over the replacing of the listener's program


def test_the_next_program_has_all_of_it_whatever_the_files_are_now(server: Server) -> None:
    server.write("new.example")
    anyio.run(server.watch.look)
    material = server.sent[0][1]
    (server.directory / "server.key").unlink()
    anyio.run(server.watch.look)
    descriptors: list[int] = []
    state = server.watch.to_state(descriptors)
    assert state is not None
    assert state == server.watch.to_state([]) == {"fd": descriptors[0]}
    watch = server.made(None, {"fd": os.dup(descriptors[0])})
    before, server.watch = server.watch, watch
    descriptor = watch.descriptor_for(server.workers[0])
    assert descriptor is not None
    assert TlsMaterial.from_memfd(descriptor) == material
    assert (watch.status() or {})["trouble"] == (before.status() or {})["trouble"] != ""
    assert watch.ends() == before.ends()
    anyio.run(watch.look)
    assert server.events().count("tls_certificate_refused") == 1
    before._forget_state()


def test_a_snapshot_holds_no_secret(server: Server) -> None:
    """It is JSON, and may be looked at by people; secrets are in the memory whose descriptor it names."""
    state = server.watch.to_state([])
    assert state is not None
    assert list(state) == ["fd"]


def test_what_has_changed_is_in_the_next_snapshot(server: Server) -> None:
    first = server.watch.to_state([])
    server.write("new.example")
    anyio.run(server.watch.look)
    server.watch.to_state([])
    watch = server.made(None, {"fd": os.dup(server.watch._state)})
    assert watch.ends()[0][0] == "new.example"
    watch._forget_state()
    assert first is not None
