"""`python -m loadtest.instructions`: how many instructions a request takes, counted by valgrind.

    python -m loadtest.instructions                                # six cases: about three minutes
    python -m loadtest.instructions --cases plain --no-floors      # half a minute
    python -m loadtest.instructions --against ../other-checkout    # another state of this server beside this one
    PYTHONPATH=/compiled/tree python -m loadtest.instructions      # what is found there comes before this checkout

Instructions do not depend on what else the machine does: the same code gives the same count within 0.1 %. They are not
time: what misses a cache takes longer than they say, and the kernel's are not counted, so a change that matters is
measured with `loadtest.bench` as well.

One connection in one process sends one request after another (`loadtest.instructions_driver`): in memory, so that what
is counted is this server, the task and the application, with one turn of the loop; with `--transport socket` also what
the loop does to read and write. Two runs, of COUNT and of 3 × COUNT requests, are subtracted, so that neither the start
nor what Python learns of code that has run a few times shows. "floor" is a canned response in the same driver,
"floor+app" the application called in a task before it, and "own" what the server takes beyond "floor".
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from loadtest.bench_cases import CASES, Case, chosen
from loadtest.servers import PROJECT

DEFAULT = "plain,browser,unique,echo,stream,websocket"
SERVE, AGAINST, FLOOR, CALLING = "serve", "against", "floor", "floor+app"
KNOWN = {name: case for name, case in CASES.items() if not (case.tls or case.http2 or case.close or case.framework)}
VALGRIND = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
_COUNT = re.compile(r"I +refs: +([0-9,]+)")


def search_path(tree: Path | None) -> str:
    """Where modules are found: in another checkout, or a directory with packages, before this one."""
    if tree is not None:
        first = [str(tree / "server") if (tree / "server" / "serve_asgi").is_dir() else str(tree)]
    else:
        first = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join([*first, str(PROJECT / "server"), str(PROJECT)])


class Driver:
    """Runs the driver; `cache` is a directory for compiled bytecode, so that no run that counts has to compile any."""

    def __init__(self, python: str, cache: str, last: list[str]) -> None:
        self.python = python
        self.cache = cache
        self.last = last

    def run(self, before: list[str], tree: Path | None, what: str, case: Case, count: int) -> tuple[str, str]:
        """What it printed, to both outputs. Raises RuntimeError, with that, if it failed."""
        environment = {
            **os.environ,
            "PYTHONPATH": search_path(tree),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": self.cache,
        }
        command = [*before, self.python, "-m", "loadtest.instructions_driver", what, case.name, str(count), *self.last]
        ended = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {ended.stderr.strip()[-2000:]}")
        return ended.stdout, ended.stderr

    def instructions(self, tree: Path | None, what: str, case: Case, count: int) -> int:
        """Of one run under valgrind, from beginning to end."""
        _, errors = self.run(VALGRIND, tree, what, case, count)
        found = _COUNT.search(errors)
        if found is None:
            raise RuntimeError(f"valgrind has counted nothing: {errors.strip()[-2000:]}")
        return int(found[1].replace(",", ""))

    def per_request(self, tree: Path | None, what: str, case: Case, count: int) -> tuple[float, int]:
        """Instructions of a request, and how many of the server's modules are compiled."""
        output, _ = self.run([], tree, what, case, 10)
        few, many = (self.instructions(tree, what, case, times * count) for times in (1, 3))
        return (many - few) / (2 * count), int(output)


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
    servers = [*([FLOOR, CALLING] if floors else []), SERVE, *([AGAINST] if against else [])]
    columns = [*servers, *(["own"] if floors else []), *(["serve to against"] if against else [])]
    compiled: dict[str, int] = {}

    def counted(case: Case, server: str) -> float:
        if server == CALLING and case.websocket:
            return float("nan")
        tree = against if server == AGAINST else None
        what = SERVE if server == AGAINST else server
        instructions, compiled[server] = driver.per_request(tree, what, case, count)
        return instructions

    try:
        with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(os.cpu_count()) as pool:
            driver = Driver(python, cache, [transport, loop])
            pending = {(case.name, one): pool.submit(counted, case, one) for case in asked for one in servers}
            click.echo(f"| case | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
            for case in asked:
                found = {one: pending[case.name, one].result() for one in servers}
                cells = [f"{number:,.0f}" if number == number else "–" for number in found.values()]
                if floors:
                    cells.append(f"{found[SERVE] - found[FLOOR]:,.0f}")
                if against:
                    cells.append(f"{found[SERVE] / found[AGAINST]:.3f}")
                click.echo(f"| {case.name} | {' | '.join(cells)} |")
    except FileNotFoundError as error:
        raise click.ClickException(f"This needs the program {error.filename}; install valgrind.") from error
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    for server in (SERVE, AGAINST):
        if compiled.get(server):
            click.echo(f"\n{server}: {compiled[server]} modules of the package are compiled.")


if __name__ == "__main__":
    main()
