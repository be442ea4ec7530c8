"""`python -m loadtest.instructions`: how many instructions a request takes, counted by valgrind.

    python -m loadtest.instructions                                # six cases: a minute
    python -m loadtest.instructions --cases plain --no-floors
    python -m loadtest.instructions --against ../other-checkout    # another state of this server beside this one
    PYTHONPATH=/compiled/tree python -m loadtest.instructions      # what is found there comes before this checkout

Instructions do not depend on what else the machine does: the same code gives the same count within 0.1 %. They are not
time: what misses a cache takes longer than they say, and the kernel's are not counted, so a change that matters is
measured with `loadtest.bench` as well.

One connection in one process sends one request after another (`loadtest.instructions_driver`): in memory, so that what
is counted is this server, the task and the application, with one turn of the loop; with `--transport socket` also what
the loop does to read and write. The counts of COUNT and of 3 × COUNT requests are subtracted, so that neither the
start nor what Python learns of code that has run a few times shows. "floor" is a canned response in the same driver,
"floor+app" the application called in a task before it, and "own" what the server takes beyond "floor".
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from loadtest.bench_cases import CASES, Case, chosen
from loadtest.servers import PROJECT, search_path

DEFAULT = "plain,browser,unique,echo,stream,websocket"
SERVE, AGAINST, FLOOR, CALLING = "serve", "against", "floor", "floor+app"
FLOORS = (FLOOR, CALLING)
KNOWN = {
    name: case
    for name, case in CASES.items()
    if not (case.tls or case.http2 or case.close or case.framework) and case.pipelined == 1
}
"""What the driver's client can send."""
VALGRIND = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
_COUNT = re.compile(r"==([0-9]+)== I +refs: +([0-9,]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """What was counted in one tree."""

    instructions: dict[tuple[str, str], float]
    """By what answered, and the name of the case."""
    compiled: int
    """How many of the server's modules are compiled."""


class Driver:
    """Runs the driver; `cache` is a directory for compiled bytecode, so that no run that counts has to compile any."""

    def __init__(self, python: str, cache: str, transport: str, loop: str) -> None:
        self.command = [python, "-m", "loadtest.instructions_driver", transport, loop]
        self.cache = cache

    def run(self, before: list[str], tree: Path | None, jobs: list[str]) -> tuple[list[str], str]:
        """The lines that it printed, and its standard error. Raises RuntimeError, with that, if it failed."""
        environment = {
            **os.environ,
            "PYTHONPATH": search_path(tree),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": self.cache,
        }
        command = [*before, *self.command, *jobs]
        ended = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {ended.stderr.strip()[-2000:]}")
        return ended.stdout.splitlines(), ended.stderr

    def per_request(self, tree: Path | None, pairs: list[tuple[str, Case]], count: int) -> Counts:
        """Instructions of a request, for each pair of what answers it and the case."""
        self.run([], tree, [f"{what}:{case.name}:2" for what, case in pairs])
        jobs = [f"{what}:{case.name}:{times * count}" for what, case in pairs for times in (1, 3)]
        lines, errors = self.run(VALGRIND, tree, jobs)
        totals = {pid: int(total.replace(",", "")) for pid, total in _COUNT.findall(errors)}
        counted = [totals[line.split()[0]] for line in lines[:-1]]
        differences = zip(counted[::2], counted[1::2], strict=True)
        found = ((many - few) / (2 * count) for few, many in differences)
        return Counts({(what, case.name): one for (what, case), one in zip(pairs, found, strict=True)}, int(lines[-1]))


@click.command(context_settings={"show_default": True})
@click.option("--cases", default=DEFAULT, help=f"Which of the bench's cases, separated by commas: {', '.join(KNOWN)}.")
@click.option("--count", type=click.IntRange(100), default=1000, help="Requests of the shorter run.")
@click.option(
    "--transport", type=click.Choice(["memory", "socket"]), default="memory", help="Between client and server."
)
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="The event loop.")
@click.option("--floors/--no-floors", default=True, help="Count the floors too.")
@click.option("--python", default=sys.executable, help="The interpreter.", show_default=False)
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="Another checkout of this server, or a directory with its package, counted beside it.",
)
def main(cases: str, count: int, transport: str, loop: str, floors: bool, python: str, against: Path | None) -> None:
    """How many instructions a request takes, counted by valgrind."""
    try:
        asked: list[Case] = chosen(cases, KNOWN)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    servers = [*(FLOORS if floors else ()), SERVE, *([AGAINST] if against else [])]
    columns = [*servers, *(["own"] if floors else []), *(["serve to against"] if against else [])]
    pairs = [(SERVE, case) for case in asked]
    ours = pairs + [
        (one, case) for case in asked for one in servers if one in FLOORS and not (one == CALLING and case.websocket)
    ]
    try:
        with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor() as pool:
            driver = Driver(python, cache, transport, loop)
            here = pool.submit(driver.per_request, None, ours, count)
            there = pool.submit(driver.per_request, against, pairs, count) if against else here
            trees = {SERVE: here.result(), AGAINST: there.result()}
    except FileNotFoundError as error:
        raise click.ClickException(f"This needs the program {error.filename}; install valgrind.") from error
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"| case | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for case in asked:
        found = {one: trees[SERVE].instructions.get((one, case.name), math.nan) for one in servers}
        if against:
            found[AGAINST] = trees[AGAINST].instructions[SERVE, case.name]
        cells = ["–" if math.isnan(number) else f"{number:,.0f}" for number in found.values()]
        if floors:
            cells.append(f"{found[SERVE] - found[FLOOR]:,.0f}")
        if against:
            cells.append(f"{found[SERVE] / found[AGAINST]:.3f}")
        click.echo(f"| {case.name} | {' | '.join(cells)} |")
    for server, counts in trees.items():
        if counts.compiled and server in servers:
            click.echo(f"\n{server}: {counts.compiled} of its modules are compiled.")


if __name__ == "__main__":
    main()
