"""Binding as clients and other servers see it, on real sockets."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_asgi.config.options import Config
from serve_asgi.errors import UsageError
from serve_asgi.ipc.shut_out_clients import SocketKind
from serve_asgi.listener.binding import StoppedError, bind
from serve_asgi.listener.listening_sockets import ListeningSocket

BACKLOG = 64
HAS_IPV6 = Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text().strip() != ""
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


@pytest.fixture
def bound() -> Iterator[list[ListeningSocket]]:
    """What a test binds; closed at its end."""
    made: list[ListeningSocket] = []
    yield made
    for listening in made:
        listening.close()


def take(bound: list[ListeningSocket], *addresses: str, **options: object) -> list[ListeningSocket]:
    made = bind(Config(bind=addresses, bind_timeout=0, **options))  # type: ignore[arg-type]
    bound += made
    return made


def port_of(listening: ListeningSocket) -> int:
    return int(listening.socket.getsockname()[1])


def connects(family: socket.AddressFamily, where: object) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex(where) == 0  # type: ignore[arg-type]


def refused(*addresses: str, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        take([], *addresses, **options)
    return str(caught.value)


def test_a_port_is_taken_at_once_and_opened_later(bound: list[ListeningSocket]) -> None:
    (first,) = take(bound, "127.0.0.1:0")
    port = port_of(first)
    assert first.name == f"http://127.0.0.1:{port}"
    assert (first.owned, first.kind) == (True, SocketKind.TCP)
    assert not first.socket.getblocking()
    assert not first.socket.get_inheritable()
    assert not connects(socket.AF_INET, ("127.0.0.1", port))
    assert f"port {port} of 127.0.0.1 is in use" in refused(f"127.0.0.1:{port}")
    first.listen(BACKLOG)
    assert connects(socket.AF_INET, ("127.0.0.1", port))
    assert f"port {port} of 127.0.0.1 is in use by {Path('/proc/self/comm').read_text().strip()}" in refused(
        f"127.0.0.1:{port}"
    )


def test_a_port_in_time_wait_is_free(bound: list[ListeningSocket]) -> None:
    (first,) = take(bound, "127.0.0.1:0")
    first.listen(BACKLOG)
    where = first.socket.getsockname()
    with socket.create_connection(where) as client:
        first.socket.setblocking(True)
        served, _ = first.socket.accept()
        served.close()  # the side that closes first keeps the port in TIME_WAIT
        assert client.recv(1) == b""
    first.close()
    bound.clear()
    (second,) = take(bound, f"127.0.0.1:{where[1]}")
    second.listen(BACKLOG)
    assert connects(socket.AF_INET, where)


@needs_ipv6
@pytest.mark.parametrize("address", [":0", "*:0", "[::]:0"])
def test_dual_stack(bound: list[ListeningSocket], address: str) -> None:
    (only,) = take(bound, address)
    only.listen(BACKLOG)
    assert only.name == f"http://[::]:{port_of(only)}"
    assert connects(socket.AF_INET, ("127.0.0.1", port_of(only)))
    assert connects(socket.AF_INET6, ("::1", port_of(only)))


@needs_ipv6
def test_one_family_alone(bound: list[ListeningSocket]) -> None:
    (only,) = take(bound, "[::1]:0")
    only.listen(BACKLOG)
    assert only.name == f"http://[::1]:{port_of(only)}"
    assert connects(socket.AF_INET6, ("::1", port_of(only)))
    assert not connects(socket.AF_INET, ("127.0.0.1", port_of(only)))


def test_a_name_takes_all_its_addresses_with_one_port(
    bound: list[ListeningSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        (socket.AF_INET6, ("::1", 0, 0, 0)),
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET, ("127.0.0.2", 0)),
    ]
    found = [(family, socket.SOCK_STREAM, 6, "", where) for family, where in known]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found + found)
    made = take(bound, "three.test:0")
    available = {where[0] for family, where in known if HAS_IPV6 or family == socket.AF_INET}
    assert {listening.socket.getsockname()[0] for listening in made} == available
    assert len({port_of(listening) for listening in made}) == 1


def test_several_addresses(bound: list[ListeningSocket], tmp_path: Path) -> None:
    made = take(bound, "127.0.0.1:0", f"unix:{tmp_path}/a", "127.0.0.2:0")
    assert [listening.kind for listening in made] == [SocketKind.TCP, SocketKind.UNIX, SocketKind.TCP]


def test_addresses_that_cover_each_other(bound: list[ListeningSocket], tmp_path: Path) -> None:
    port = port_of(*take(bound, "127.0.0.1:0"))
    bound.pop().close()
    assert "was given twice, or another address covers it" in refused(f"127.0.0.1:{port}", f"0.0.0.0:{port}")
    assert "was given twice" in refused(f"unix:{tmp_path}/a", f"unix:{tmp_path}/a")
    take(bound, f"127.0.0.1:{port}", f"unix:{tmp_path}/a")  # nothing of the failed attempts was left behind


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    assert "the host 'no.such.invalid' is unknown here" in refused("no.such.invalid:80")
    assert "no interface of this machine has the address 192.0.2.1" in refused("192.0.2.1:0")
    assert f"there is no directory {tmp_path}/none for" in refused(f"unix:{tmp_path}/none/a")
    assert "longer than 107 bytes" in refused(f"unix:{tmp_path}/{'x' * 107}")
    (tmp_path / "file").write_text("precious")
    assert "exists and is not a socket" in refused(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "precious"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
@pytest.mark.skipif(
    int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2, reason="every user may bind low ports"
)
def test_low_ports_and_directories_of_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = (
        "import sys, os; os.setuid(65534)\n"
        "from serve_asgi.listener.binding import bind; from serve_asgi.config.options import Config\n"
        "from serve_asgi.errors import UsageError\n"
        "try: bind(Config(bind=(sys.argv[1],), bind_timeout=0))\n"
        "except UsageError as error: print(error)\n"
    )
    # Imported as root first: the checkout may be one that others cannot read.
    code = "import serve_asgi.listener.binding, serve_asgi.config.options, encodings.idna\n" + code
    for address, sentence in (("127.0.0.1:1", "use a port from 1024 up"), (f"unix:{tmp_path}/a", "may not create")):
        done = subprocess.run(
            [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60, check=True
        )
        assert sentence in done.stdout


def test_waiting_ends_when_the_port_is_free(bound: list[ListeningSocket]) -> None:
    (first,) = take(bound, "127.0.0.1:0")
    bound.clear()
    timer = threading.Timer(0.3, first.close)
    timer.start()
    bound += bind(Config(bind=(f"127.0.0.1:{port_of(first)}",), bind_timeout=30))
    timer.join()
    assert first.socket.fileno() == -1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_the_waiting(bound: list[ListeningSocket], number: signal.Signals) -> None:
    (first,) = take(bound, "127.0.0.1:0")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        signal.pthread_kill(threading.get_ident(), number)
        with pytest.raises(StoppedError, match=number.name) as caught:
            bind(Config(bind=(f"127.0.0.1:{port_of(first)}",), bind_timeout=60))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert caught.value.exit_status == 0


def test_unix_socket_has_its_mode_and_goes_with_its_server(bound: list[ListeningSocket], tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    before = os.umask(0o077)
    try:
        (only,) = take(bound, f"unix:{path}", unix_mode="0626")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o626
    assert only.name == f"unix:{path}"
    assert only.socket.getsockname() == str(path)
    assert not connects(socket.AF_UNIX, str(path))
    only.listen(BACKLOG)
    assert connects(socket.AF_UNIX, str(path))
    bound.pop().close()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have groups to give a socket to")
def test_unix_socket_has_the_group_of_the_proxy(bound: list[ListeningSocket]) -> None:
    with tempfile.TemporaryDirectory(prefix="group-") as directory:  # pytest's own are closed to other users
        path = Path(directory, "a.sock")
        take(bound, f"unix:{path}", unix_group="54321", group="54322")
        assert (path.stat().st_uid, path.stat().st_gid) == (0, 54321)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        os.chmod(directory, 0o777)
        os.seteuid(65534)
        try:
            told = refused(f"unix:{directory}/b.sock", unix_group="54321")
        finally:
            os.seteuid(0)
        assert f"this user is not in the group 54321, and may not give {directory}/b.sock to it" in told
        assert not Path(directory, "b.sock").exists()


def test_unix_socket_of_a_living_server_is_kept(bound: list[ListeningSocket], tmp_path: Path) -> None:
    """Whether it listens already or not, and also if it is another program's."""
    (only,) = take(bound, f"unix:{tmp_path}/ours")
    assert f"is in use by the server with PID {os.getpid()}" in refused(f"unix:{tmp_path}/ours")
    only.listen(BACKLOG)
    assert "is in use by" in refused(f"unix:{tmp_path}/ours")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "theirs"))
        other.listen()
        assert "is in use by another server" in refused(f"unix:{tmp_path}/theirs")
        assert connects(socket.AF_UNIX, str(tmp_path / "theirs"))


def test_unix_socket_of_a_dead_server_is_replaced(bound: list[ListeningSocket], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "a"))
    (tmp_path / "a.lock").write_text("999999\n")
    (only,) = take(bound, f"unix:{tmp_path}/a")
    only.listen(BACKLOG)
    assert connects(socket.AF_UNIX, str(tmp_path / "a"))


def test_unix_socket_that_another_put_in_its_place_stays(bound: list[ListeningSocket], tmp_path: Path) -> None:
    take(bound, f"unix:{tmp_path}/a")
    os.unlink(tmp_path / "a")
    (tmp_path / "a").write_text("another's")
    bound.pop().close()
    assert (tmp_path / "a").read_text() == "another's"


@pytest.mark.parametrize("listens", [True, False])
def test_inherited_descriptor(bound: list[ListeningSocket], listens: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) if listens else socket.socket() as theirs:
        if not listens:
            theirs.bind(("127.0.0.1", 0))
        passed = os.dup(theirs.fileno())
        made = bind(Config(fd=(passed,)))
        bound += made
        (only,) = made
        assert (only.name, only.owned) == (f"fd:{passed}", False)
        only.listen(BACKLOG)
        assert connects(socket.AF_INET, theirs.getsockname())
        only.shut_out()
        bound.pop().close()
        assert connects(socket.AF_INET, theirs.getsockname())  # the service manager's, and still open


def test_unfit_descriptors(tmp_path: Path) -> None:
    def why(fd: int) -> str:
        with pytest.raises(UsageError) as caught:
            bind(Config(fd=(fd,)))
        return str(caught.value)

    assert "no descriptor of that number was inherited" in why(987)
    with open(tmp_path / "file", "w") as file:
        assert "is not a socket" in why(file.fileno())
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert "neither TCP nor a unix stream socket" in why(datagrams.fileno())
    one, two = socket.socketpair()
    with one, two:
        assert "is a connection" in why(one.fileno())


def pass_sockets(count: int, names: str, *arguments: str) -> list[str]:
    """Start a process as a service manager does, with `count` sockets from descriptor 3 on; what it says of them."""
    code = (
        "import os, sys\n"
        "from serve_asgi.config.options import Config\n"
        "from serve_asgi.listener.binding import bind\n"
        "os.environ['LISTEN_PID'] = str(os.getpid() + int(sys.argv[1]))\n"
        "made = bind(Config(bind=tuple(sys.argv[2:])))\n"
        "print(*[f'{each.name}|{each.owned}' for each in made], sep='\\n')\n"
        "print([name for name in os.environ if name.startswith('LISTEN_')])\n"
        "for each in made: each.close()\n"
    )
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    copies = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for each in sockets]
    actions = [(os.POSIX_SPAWN_DUP2, copy, 3 + index) for index, copy in enumerate(copies)]
    read_end, write_end = os.pipe()
    root = str(Path(__file__).parent.parent.parent)
    environment = os.environ | {"LISTEN_FDS": str(count), "LISTEN_FDNAMES": names, "PYTHONPATH": root}
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code, *arguments],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1), *actions],
    )
    os.close(write_end)
    with open(read_end) as output:
        lines = output.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for each in sockets:
        each.close()
    for copy in copies:
        os.close(copy)
    return lines


def test_sockets_of_a_service_manager() -> None:
    assert pass_sockets(2, "web:unknown", "0") == ["fd:3 (web)|False", "fd:4|False", "[]"]


def test_sockets_of_a_service_manager_and_an_address_beside_them() -> None:
    first, second, variables = pass_sockets(1, "", "0", "127.0.0.1:0")
    assert first == "fd:3|False"
    assert second.startswith("http://127.0.0.1:")
    assert variables == "[]"


def test_sockets_for_another_process_are_not_taken() -> None:
    lines = pass_sockets(1, "", "1", "127.0.0.1:0")
    assert len(lines) == 2
    assert lines[0].startswith("http://127.0.0.1:")


@needs_ipv6
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost."])
def test_localhost_is_both_loopback_addresses_with_one_port(bound: list[ListeningSocket], host: str) -> None:
    """Whatever /etc/hosts says of it (RFC 6761, section 6.3)."""
    first, second = take(bound, f"{host}:0")
    port = port_of(first)
    assert [first.name, second.name] == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]
    for each in (first, second):
        each.listen(BACKLOG)
    assert connects(socket.AF_INET, ("127.0.0.1", port))
    assert connects(socket.AF_INET6, ("::1", port))
    assert f"port {port} of localhost is in use" in refused(f"localhost:{port}")
    assert f"port {port} of ::1 is in use" in refused(f"[::1]:{port}")


@needs_ipv6
def test_a_port_that_is_taken_on_one_address_of_a_host_is_taken(bound: list[ListeningSocket]) -> None:
    (other,) = take(bound, "[::1]:0")
    assert f"port {port_of(other)} of localhost is in use" in refused(f"localhost:{port_of(other)}")
    assert connects(socket.AF_INET, ("127.0.0.1", port_of(other))) is False  # nothing of it is left


@pytest.mark.parametrize("missing", [socket.AF_INET, socket.AF_INET6])
def test_one_kind_of_address_will_do(
    bound: list[ListeningSocket], monkeypatch: pytest.MonkeyPatch, missing: socket.AddressFamily
) -> None:
    class Sockets(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *rest: int, **more: int) -> None:
            if family == missing:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *rest, **more)

    monkeypatch.setattr(socket, "socket", Sockets)
    if missing == socket.AF_INET and not HAS_IPV6:
        pytest.skip("this machine has no IPv6")
    (only,) = take(bound, "localhost:0")
    assert only.socket.family == (socket.AF_INET6 if missing == socket.AF_INET else socket.AF_INET)


def test_an_abstract_socket_is_no_file_and_is_one_servers(
    bound: list[ListeningSocket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"serve-test-{os.getpid()}-{tmp_path.name}"
    (listening,) = take(bound, f"unix:@{name}")
    assert (listening.name, listening.kind, listening.identity) == (f"unix:@{name}", SocketKind.UNIX, None)
    assert not connects(socket.AF_UNIX, f"\0{name}")
    assert f"unix:@{name} is in use by another server" in refused(f"unix:@{name}")
    listening.listen(BACKLOG)
    assert connects(socket.AF_UNIX, f"\0{name}")
    assert list(tmp_path.iterdir()) == []
    listening.shut_out()
    assert not connects(socket.AF_UNIX, f"\0{name}")
    listening.close()
    take(bound, f"unix:@{name}")
