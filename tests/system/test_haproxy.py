"""Two nodes behind Debian's HAProxy, with the file of deploy/haproxy: rolling reloads and restarts nobody notices."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.ledger import parse_executions
from loadtest.servers import free_port
from tests.running import PATIENCE
from tests.system.balancing import EVERY_KIND, Node, StrictLoad, deployed, pids_of, program, two_nodes

pytestmark = [pytest.mark.once, pytest.mark.needs("haproxy")]

INTERVAL, FALL, TIMEOUT = 0.2, 3, 0.2
"""Ten times faster than in deploy/haproxy; HAProxy waits as long for an answer as it does between two probes."""
DELAY = INTERVAL * FALL + TIMEOUT + 1.0
"""The formula of docs/guides/balancers.md; the margin is not scaled, since this machine is not faster either."""
KINDS = {"GET": EVERY_KIND, "OPTIONS": ("keep-alive", "idle keep-alive", "one-shot", "slow response")}
PROBES = {
    "GET": {},
    "OPTIONS": {
        "option httpchk\n": "option httpchk /ping\n",
        "    http-check send meth GET uri /ping  # or simply: option httpchk /ping, which asks by OPTIONS\n": "",
    },
}


class HAProxy:
    """HAProxy with deploy/haproxy/haproxy.cfg, on a port of 127.0.0.1."""

    def __init__(self, directory: Path, nodes: tuple[Node, Node], probe: dict[str, str]) -> None:
        self.port = free_port()
        self.stats = directory / "admin.sock"
        self._config = directory / "haproxy.cfg"
        here = {
            "bind :80": f"bind 127.0.0.1:{self.port}",
            "10.0.0.11:8000": nodes[0].address,
            "10.0.0.12:8000": nodes[1].address,
            "/run/haproxy/admin.sock": str(self.stats),
            "inter 2s fall 3": f"inter {INTERVAL * 1000:.0f}ms fall {FALL}",
            **probe,
        }
        self._config.write_text(deployed("haproxy/haproxy.cfg", here))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it."""
        with program(self.port, "haproxy", "-db", "-f", str(self._config)):
            yield

    def up(self, node: Node) -> bool:
        """Whether HAProxy gives the node traffic."""
        return self._state(node)["status"] == "UP"

    def _state(self, node: Node) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as stats:
            stats.connect(str(self.stats))
            stats.sendall(b"show stat\n")
            text = b""
            while data := stats.recv(65536):
                text += data
        names, *rows = [row.split(",") for row in text.decode().lstrip("# ").splitlines() if row]
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return next(row for row in found if (row["pxname"], row["svname"]) == ("app", node.name))


@pytest.mark.parametrize("probe", PROBES)
def test_rolling_reloads_and_restarts_are_noticed_by_nobody(tmp_path: Path, probe: str) -> None:
    with two_nodes(tmp_path) as nodes:
        haproxy = HAProxy(tmp_path, nodes, PROBES[probe])
        with haproxy.running(), StrictLoad(haproxy.port, nodes[0].executions, kinds=KINDS[probe]) as load:
            for node in nodes:
                load.answered_by(pids_of(node))
                node.reload()
                load.answered_by(pids_of(node))
                load.until(lambda: node.handed_over > 0, "kept connections to be handed over")  # noqa: B023
                assert haproxy.up(node)
            for node in nodes:
                node.stop(DELAY)
                assert not haproxy.up(node)
                node.start()
                load.until(lambda: haproxy.up(node), "HAProxy to find the node again")  # noqa: B023
                load.answered_by(pids_of(node))
            verdict = load.finish()
        print(verdict.text())
        assert verdict.faults() == []
        assert verdict.streams["streams"] > 3, "no stream of events was told to come again"


def test_a_restart_without_the_delay_is_noticed(tmp_path: Path) -> None:
    with two_nodes(tmp_path, "--workers", "1") as nodes:
        haproxy = HAProxy(tmp_path, nodes, PROBES["GET"])
        with haproxy.running():
            with StrictLoad(haproxy.port, nodes[0].executions, kinds=("one-shot", "keep-alive"), events=0) as load:
                load.answered_by(pids_of(nodes[0]))
                nodes[0].stop()
                load.until(lambda: not haproxy.up(nodes[0]), "HAProxy to find that the node has gone")
                verdict = load.finish()
            assert verdict.lost > 0
            assert verdict.accounts.duplicated == []


def test_a_node_that_dies_beside_a_reload_takes_what_it_had_and_no_more(tmp_path: Path) -> None:
    """With the two lines that the file leaves out, as is usual: another node is tried if none could be connected to."""
    redispatch = {"retries 0 ": "retries 3 ", "no option redispatch": "option redispatch 1"}
    with two_nodes(tmp_path, "--workers", "1") as nodes:
        haproxy = HAProxy(tmp_path, nodes, redispatch)
        kinds = ("keep-alive", "one-shot", "slow response")
        with haproxy.running(), StrictLoad(haproxy.port, nodes[0].executions, kinds=kinds, events=0) as load:
            for node in nodes:
                load.answered_by(pids_of(node))
            dying = pids_of(nodes[1])
            reload = threading.Thread(target=nodes[0].reload)
            reload.start()
            nodes[1].kill()
            load.until(lambda: not haproxy.up(nodes[1]), "HAProxy to find that the node has gone")
            reload.join(PATIENCE)
            sent = len(load.ledger.entries)
            load.answered_by(pids_of(nodes[0]), 100)
            verdict = load.finish()
        print(verdict.text())
        executed = {e.number: e.pid for e in parse_executions(nodes[0].executions.read_bytes())}
        assert [entry for entry in verdict.accounts.lost if entry.number > sent] == []
        assert {executed[e.number] for e in verdict.accounts.lost if e.number in executed} <= dying
        assert verdict.accounts.duplicated == []
        assert nodes[0].server.status()["reloads"] == 1
