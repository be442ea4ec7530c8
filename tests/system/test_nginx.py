"""Two nodes behind Debian's nginx, with the files of deploy/nginx: rolling reloads and restarts that nobody notices."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.ledger import Left
from loadtest.servers import free_port
from tests.running import PATIENCE
from tests.system.balancing import (
    DEPLOY,
    EVERY_KIND,
    Node,
    StrictLoad,
    deployed,
    pids_of,
    program,
    serving,
    two_nodes,
)

pytestmark = [pytest.mark.once, pytest.mark.needs("nginx")]


class Nginx:
    """nginx with deploy/nginx/app.conf, on a port of 127.0.0.1."""

    def __init__(self, directory: Path, nodes: tuple[Node, Node]) -> None:
        self.port = free_port()
        self.directory = directory
        self.pid_file = directory / "nginx.pid"
        self.upstream = directory / "app-upstream.conf"
        addresses = {"10.0.0.11:8000": nodes[0].address, "10.0.0.12:8000": nodes[1].address}
        self.upstream.write_text(deployed("nginx/app-upstream.conf", addresses))
        here = {"listen 80": f"listen 127.0.0.1:{self.port}", "/etc/nginx/app-upstream.conf": str(self.upstream)}
        self.configure(deployed("nginx/app.conf", here), "root")

    def configure(self, http: str, user: str) -> None:
        """Write its configuration; `user` is that of its workers, if root starts it."""
        directory = self.directory
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        self._config = directory / "nginx.conf"
        self._config.write_text(
            (f"user {user};\n" if os.geteuid() == 0 else "")
            + f"daemon off;\npid {self.pid_file};\nerror_log {directory}/nginx.log;\nworker_processes 2;\nevents {{}}\n"
            + "http {\n"
            + "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)
            + f"access_log off;\n{http}}}\n"
        )

    @property
    def command(self) -> list[str]:
        """nginx with its options; `-s reload` behind it reloads the one that runs."""
        place = ["-p", str(self.directory), "-c", str(self._config), "-e", str(self.directory / "nginx.log")]
        return ["nginx", *place]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it; its log is printed when the block ends."""
        try:
            with program(self.port, *self.command):
                yield
        finally:
            print((self.directory / "nginx.log").read_text())


class BeforeOneNode(Nginx):
    """nginx with deploy/nginx/unix-socket.conf; its workers run as the user that Debian has for them."""

    def __init__(self, directory: Path, path: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self.pid_file = directory / "nginx.pid"
        here = {"listen 80": f"listen 127.0.0.1:{self.port}", "unix:/run/serve/app.sock": f"unix:{path}"}
        self.configure(deployed("nginx/unix-socket.conf", here), "www-data")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give the socket to nginx's group")
def test_a_reload_of_one_node_behind_its_unix_socket_is_noticed_by_nobody(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="serve-test-") as open_to_all:
        place = Path(open_to_all)
        place.chmod(0o755)
        path = place / "app.sock"
        node = Node("a", tmp_path, "--bind", f"unix:{path}", "--unix-group", "www-data")
        with serving(node):
            assert (path.stat().st_mode & 0o777, path.group()) == (0o660, "www-data")
            nginx = BeforeOneNode(place, path)
            with nginx.running(), StrictLoad(nginx.port, node.executions) as load:
                for _ in range(2):
                    load.answered_by(pids_of(node))
                    node.reload()
                load.answered_by(pids_of(node), 50)
                load.until(lambda: node.handed_over > 0, "kept connections to be handed over")
                verdict = load.finish()
            print(verdict.text())
            assert verdict.faults() == []


def test_a_rolling_reload_is_noticed_by_nobody(tmp_path: Path) -> None:
    with two_nodes(tmp_path) as nodes:
        nginx = Nginx(tmp_path, nodes)
        with nginx.running(), StrictLoad(nginx.port, nodes[0].executions) as load:
            for _ in range(2):
                for node in nodes:
                    load.answered_by(pids_of(node))
                    node.reload()
            for node in nodes:
                load.answered_by(pids_of(node), 50)
                load.until(lambda: node.handed_over > 0, "kept connections to be handed over")  # noqa: B023
            verdict = load.finish()
        print(verdict.text())
        assert verdict.faults() == []
        assert verdict.streams["streams"] > 3, "no stream of events was told to come again"


ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as test:
    test.connect(sys.argv[1])
    test.sendall(sys.argv[2].encode())
    sys.exit(test.recv(9) != b"serves")
"""
"""What the script runs to restart a node here: it asks the test, which does it."""


def rolling_restart(nginx: Nginx, nodes: tuple[Node, Node]) -> str:
    """Run deploy/nginx/rolling-restart.sh over all nodes, and return what it says."""
    path = nginx.directory / "restart.sock"
    with socket.socket(socket.AF_UNIX) as asked:
        asked.bind(str(path))
        asked.listen()
        asked.settimeout(PATIENCE)
        environment = {
            **os.environ,
            "RESTART": f'{shlex.join([sys.executable, "-c", ASK, str(path)])} "$2"',
            "UPSTREAM": str(nginx.upstream),
            "NGINX_COMMAND": shlex.join(nginx.command),
            "PIDFILE": str(nginx.pid_file),
            "PATIENCE": "1",  # the streams of events keep nginx's old workers; heads are sent at once
        }
        script = subprocess.Popen(
            [DEPLOY / "nginx" / "rolling-restart.sh", *(node.address for node in nodes)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            for node in nodes:
                with asked.accept()[0] as asking:
                    assert asking.recv(100).decode() == node.address
                    assert f"server {node.address} down" in nginx.upstream.read_text()
                    node.stop()
                    node.start()
                    asking.sendall(b"serves")
            said = script.communicate(timeout=PATIENCE)[0]
        finally:
            script.kill()
            script.wait()
    assert script.returncode == 0, said
    return said


def test_a_rolling_restart_by_the_script_is_noticed_by_nobody(tmp_path: Path) -> None:
    """nginx is reloaded as well, which costs clients of its own: it ends idle connections, so these here leave after
    each answer, and it drops what was pipelined behind a request.
    """
    with two_nodes(tmp_path) as nodes:
        nginx = Nginx(tmp_path, nodes)
        upstream = nginx.upstream.read_text()
        with nginx.running():
            kinds = [kind for kind in EVERY_KIND if kind not in ("split head", "pipelined")]
            with StrictLoad(nginx.port, nodes[0].executions, kinds=kinds, leaving=True) as load:
                for node in nodes:
                    load.answered_by(pids_of(node))
                before = [node.server.pid for node in nodes]
                print(rolling_restart(nginx, nodes))
                assert [node.server.pid for node in nodes] != before
                assert nginx.upstream.read_text() == upstream
                for node in nodes:
                    load.answered_by(pids_of(node), 50)
                verdict = load.finish()
            print(verdict.text())
            assert verdict.faults(reconnects=tuple(Left)) == []
            with StrictLoad(nginx.port, nodes[0].executions, kinds=("one-shot",), events=0, leaving=True) as load:
                load.answered_by(pids_of(nodes[0]))
                nodes[0].stop()
                load.until(lambda: load.verdict().lost > 0, "what is lost without the recipe")
                load.finish()
