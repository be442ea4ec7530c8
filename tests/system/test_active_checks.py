"""Nodes behind a balancer that knows them by its probes alone: the delay of docs/guides/balancers.md is enough.

The balancer is the emulation of `tests.system.balancer`, with the settings of Alibaba Cloud's SLB (interval 2 s, 3
failures, timeout 5 s) and everything ten times faster.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtest.ledger import Left
from serve_asgi.config.options import Config
from tests.running import ROOT
from tests.system.balancer import Balancer, Check, Layer
from tests.system.balancing import Node, StrictLoad, pids_of, serving

pytestmark = pytest.mark.once

CHECK = Check(interval=0.2, fall=3, timeout=0.5)
LETS_GO = CHECK.interval * CHECK.fall + CHECK.timeout
"""Seconds from the beginning of the drain until the balancer has let go of the node."""
MARGIN = 1.0
"""For what is slower than it should be; not scaled, since this machine is not faster either."""
CLOSE_AFTER = 0.5
LOOK = 1.0
"""Seconds between two looks of a worker at how long the drain has lasted."""
PAUSE = 2.0
"""Longer than any client here leaves a kept connection alone."""
KINDS = ("keep-alive", "one-shot", "split head", "slow upload", "slow response")
ONE = ("--workers", "1")
DELAYS = {Layer.HTTP: LETS_GO + MARGIN, Layer.TCP: max(LETS_GO, CLOSE_AFTER + LOOK) + PAUSE}
"""The formula. A balancer of connections leaves clients with the node until their connections end."""
TOO_SHORT = CHECK.interval
"""Time for one probe to fail."""
ROW = re.compile(r"(requests|connections); (\d+) s, (\d+)(?:, (\d+) s)?[^|]*\| (\d+) s")


def test_the_table_of_balancers_follows_the_formula() -> None:
    rows = ROW.findall((ROOT / "docs" / "guides" / "balancers.md").read_text())
    assert len(rows) >= 8
    for passes, *numbers in rows:
        interval, failures, timeout, delay = (int(number or 0) for number in numbers)
        lets_go = interval * failures + timeout
        pause = 10
        close_after = Config().drain_close_after + LOOK
        needed = lets_go + 1 if passes == "requests" else max(lets_go, close_after) + pause
        assert needed <= delay <= 1.5 * needed + 5, (passes, numbers)


def restart(node: Node, index: int, balancer: Balancer, load: StrictLoad) -> None:
    """Stop the node in the midst of the load, start it again, and wait until it takes part again."""
    load.answered_by(pids_of(node))
    node.terminate()
    assert not balancer.backends[index].in_rotation
    node.start()
    load.until(lambda: balancer.backends[index].in_rotation, "the balancer to find the node again")
    load.answered_by(pids_of(node))


@pytest.mark.parametrize("layer", Layer)
def test_the_documented_delay_is_right_and_a_shorter_one_is_not(tmp_path: Path, layer: Layer) -> None:
    close_after = ("--drain-close-after", f"{CLOSE_AFTER}")
    right = Node("right", tmp_path, *ONE, "--drain-delay", f"{DELAYS[layer]}", *close_after)
    short = Node("short", tmp_path, *ONE, "--drain-delay", f"{TOO_SHORT}", *close_after)
    addresses = [(node.host, node.port) for node in (right, short)]
    with serving(right, short), Balancer(addresses, layer, CHECK) as balancer:
        with StrictLoad(balancer.port, right.executions, kinds=KINDS, events=0) as load:
            restart(right, 0, balancer, load)
            verdict = load.finish()
        print(verdict.text(), [backend.answers for backend in balancer.backends])
        # Behind a balancer of connections clients are told to connect again, and no connection ends without that.
        assert verdict.faults(reconnects=[Left.ANNOUNCED] if layer is Layer.TCP else []) == []
        assert layer is Layer.HTTP or verdict.left(Left.ANNOUNCED) > 0

        with StrictLoad(balancer.port, right.executions, kinds=("one-shot", "keep-alive"), events=0) as load:
            load.answered_by(pids_of(short))
            short.terminate()
            load.until(lambda: load.verdict().lost > 0, "what is lost by the shorter delay")
            verdict = load.finish()
        print(verdict.text())
        assert verdict.accounts.duplicated == []


def test_connections_that_nobody_ends_are_ended_by_surprise(tmp_path: Path) -> None:
    """Without --drain-close-after: the balancer has let go, and its old connections come to the node to the end."""
    node = Node("a", tmp_path, *ONE, "--drain-delay", f"{DELAYS[Layer.TCP]}", "--drain-close-after", "3600")
    other = Node("b", tmp_path, *ONE)
    with serving(node, other), Balancer([(n.host, n.port) for n in (node, other)], Layer.TCP, CHECK) as balancer:
        with StrictLoad(balancer.port, node.executions, kinds=("keep-alive",), events=0) as load:
            load.answered_by(pids_of(node))
            node.terminate()
            verdict = load.finish()
        # One with a request in progress may still be told; the others are not.
        assert verdict.left(Left.EOF) + verdict.left(Left.RESET) + verdict.lost > 0
