"""`python -m loadtest.compare`: throughput, latency, memory, start and reload, beside the peers, in one run.

Two workers on two cores: requests per second with the cores saturated, latency at a fixed rate below that, memory, the
time from start to the first response, the time of a reload. And what a request costs with 1 to 10,000 connections, and
with 1 to 16 workers. What a request costs in each of many cases is the subject of `loadtest.bench`. Medians over the
rounds are printed. See docs/measured/compare.md.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loadtest import idle
from loadtest.compare_report import Findings, markdown, text
from loadtest.compare_run import IDLE, SHARE, WORKERS, Plan, Run
from loadtest.servers import search_path

PARTS: dict[str, Callable[[Run], None]] = {
    "lives": Run.lives,
    "load": Run.load,
    "connections": Run.connections,
    "workers": Run.workers,
}
"""What can be measured by itself, in this order."""
SERVERS = ["serve", "h2corn", "granian", "uvicorn", "gunicorn", "hypercorn"]
"""As they stand in the tables."""
PROGRAMS = {"wrk": "wrk", "taskset": "util-linux"}
"""What it needs, and where Debian has it."""


def described(plan: Plan) -> dict[str, Any]:
    """What the tables say about the run. Raises click.ClickException if the interpreter does not run this server."""
    script = "import platform as p; print(p.python_implementation(), p.python_version())"
    environment = {"PYTHONPATH": search_path(None), "PATH": os.defpath}
    try:
        interpreter = subprocess.check_output([plan.python, "-c", script], text=True)
        version = subprocess.check_output([plan.python, "-m", "serve_asgi", "--version"], text=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(
            f"{plan.python} does not run this server: install it there with its peers, pip install '.[peers]'."
        ) from error
    return {
        "interpreter": interpreter.strip(),
        "version": ", ".join(version.split("\n")).strip(", "),
        "servers": plan.servers,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "scaling_rounds": plan.scaling_rounds,
        "scaling_seconds": plan.scaling_seconds,
        "rate": plan.rate,
        "share": SHARE,
        "workers": WORKERS,
        "cores": plan.both,
    }


def several(names: str, known: list[str], kind: str) -> list[str]:
    """The words of an option such as `serve,granian`. Raises click.UsageError for an unknown one."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            raise click.UsageError(f"There is no {kind} {name!r}; there are {', '.join(known)}.")
    return chosen


def measured(servers: list[str], parts: list[str], document: Path | None, **options: Any) -> Findings:
    """Do a run. What each part has found is in the file `document` when the part is over."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise click.ClickException(f"The comparison needs the program {program}; install {package}.")
    idle.raise_limit(IDLE)
    with tempfile.TemporaryDirectory(prefix="compare-") as name:
        plan = Plan(servers=servers, root=Path(name), **options)
        run = Run(plan, Findings(described(plan)), lambda line: click.echo(line, err=True))
        for part in parts:
            begun = time.monotonic()
            PARTS[part](run)
            click.echo(f"{part}: {time.monotonic() - begun:.0f} s", err=True)
            if document is not None:
                document.write_text(run.findings.document())
    return run.findings


@click.command(context_settings={"show_default": True})
@click.option("--servers", default=",".join(SERVERS), help="Which servers, separated by commas.")
@click.option("--parts", default=",".join(PARTS), help="What to measure, separated by commas.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Rounds of each server.")
@click.option("--seconds", type=click.IntRange(1), default=2, help="Length of a round under load.")
@click.option(
    "--scaling-rounds", type=click.IntRange(1), default=2, help="Rounds for each number of connections, workers."
)
@click.option("--scaling-seconds", type=click.IntRange(1), default=1, help="Length of one of these.")
@click.option("--rate", type=click.IntRange(1), default=10_000, help="Requests per second, the same for all servers.")
@click.option("--cores", type=(int, int), default=(0, 1), help="The two cores.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the servers.", show_default=False)
@click.option("--from", "source", type=click.Path(path_type=Path, exists=True), help="Measure nothing: read this JSON.")
@click.option("--json", "document", type=click.Path(path_type=Path), help="Write all figures as JSON.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the table into this PNG.")
@click.option(
    "--plot-scaling", "curves", type=click.Path(path_type=Path), help="Draw connections and workers into this PNG."
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the tables as Markdown.")
def main(
    servers: str,
    parts: str,
    source: Path | None,
    document: Path | None,
    picture: Path | None,
    curves: Path | None,
    as_markdown: bool,
    **options: Any,
) -> None:
    """Throughput, latency, memory, start and reload, beside the peers. Exits 1 if a figure is missing or in doubt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are ended too
    if source is not None:
        findings = Findings.read(source.read_text())
    else:
        wanted = several(servers, SERVERS, "server"), several(parts, list(PARTS), "part")
        findings = measured(*wanted, document, **options)
    click.echo((markdown if as_markdown else text)(findings))
    if picture is not None or curves is not None:
        from loadtest import compare_picture

        if picture is not None:
            compare_picture.plot(findings, picture)
        if curves is not None:
            compare_picture.plot_scaling(findings, curves)
    sys.exit(1 if findings.problems else 0)


if __name__ == "__main__":
    main()
