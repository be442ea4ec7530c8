"""`python -m loadtest.peers`: the same strict load and reloads for every server, and one table to compare them.

Also tells what each server does with a reload whose code cannot be imported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from loadtest.client import UNANNOUNCED
from loadtest.ledger import percentile
from loadtest.reload import answers, on_uvloop, run, wait_until_up
from loadtest.report import PROMPT, as_json, number, table
from loadtest.result import Result, Settings
from loadtest.servers import COMMANDS, Server
from loadtest.tls import VERSIONS

BAD_CODE_PATIENCE = 12.0
"""Seconds after the HUP in which a server may show what becomes of it."""


def with_bad_code(settings: Settings) -> str:
    """What the server does when it is told to reload and the code on disk cannot be imported."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        server = Server(
            settings.server,
            Path(name),
            workers=settings.workers,
            http=settings.http,
            loop=settings.loop,
            python=settings.python,
            tls=bool(settings.tls),
            http2=settings.http2,
        )
        try:
            on_uvloop(wait_until_up(server, settings.workers))
            server.break_code()
            server.hup()
            fate = on_uvloop(fate_of(server))
            return fate if settings.server != "serve" else fate + told(server)
        finally:
            server.stop()
            server.sweep(0)


async def fate_of(server: Server) -> str:
    """Watch the server for a while after the HUP."""
    deadline = time.monotonic() + BAD_CODE_PATIENCE
    failed = asked = 0
    while time.monotonic() < deadline:
        await asyncio.sleep(0.25)
        if not server.alive:
            return f"exits with status {server.process.returncode}"
        asked += 1
        failed += not await answers(server)
    if failed == 0:
        return "keeps the old code"
    return (
        f"does not answer ({failed} of {asked})" if failed == asked else f"answers at times ({failed} of {asked} fail)"
    )


def told(server: Server) -> str:
    """Whether `serve reload` says that the reload was refused."""
    status, output = server.control("reload")
    said = "with the traceback" if "bad code on disk" in output else "without saying why"
    return f"; `serve reload` exits {status} {said}"


def comparison(results: Sequence[Result], fates: Sequence[str]) -> str:
    """The table, as Markdown."""
    rows = [
        ["", "lost", "of", "duplicated", "keep-alive reconnects", "p99 ms", "p99.9 ms", "code that fails to import"],
    ]
    secure = any(result.settings.tls for result in results)
    if secure:
        rows[0].insert(5, "ended without close_notify")
    for result, fate in zip(results, fates, strict=True):
        latencies = sorted(e.latency * 1000 for e in result.ledger.entries if e.cause is None and e.kind in PROMPT)
        rows.append(
            [
                result.settings.server,
                *map(number, (result.lost, result.accounts.sent, result.duplicated, result.reconnects)),
                *(f"{percentile(latencies, share):.1f}" for share in (0.99, 0.999)),
                fate,
            ]
        )
        if secure:
            rows[-1].insert(5, number(result.ledger.oddities[UNANNOUNCED]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


@click.command(context_settings={"show_default": True})
@click.option("--servers", default=",".join(COMMANDS), help="Which servers, separated by commas.")
@click.option("--workers", type=click.IntRange(2), default=2, help="Worker processes of each.")
@click.option("--reloads", type=click.IntRange(0), default=10, help="How many HUPs each.")
@click.option("--interval", type=click.FloatRange(0), default=5.0, help="Least seconds between two HUPs.")
@click.option(
    "--http", type=click.Choice(["httptools", "h11"]), default="httptools", help="Parser, where there is a choice."
)
@click.option("--loop", type=click.Choice(["uvloop", "asyncio"]), default="uvloop", help="Event loop.")
@click.option("--scale", type=click.FloatRange(0.01), default=1.0, help="Factor for the request rates.")
@click.option(
    "--tls",
    type=click.Choice(list(VERSIONS)),
    is_flag=False,
    flag_value="1.3",
    help="Speak TLS of this version (1.3 if none is named).",
)
@click.option("--http2", is_flag=True, help="Speak HTTP/2: with prior knowledge, or with --tls by ALPN.")
@click.option("--python", default=sys.executable, help="The interpreter that runs the servers.", show_default=False)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="Write a PNG and a JSON of each run into this directory, and a PNG of the first beside each other one.",
)
def main(servers: str, into: Path | None, **options: Any) -> None:
    """Compare servers: what is lost when each is reloaded under the same strict load."""
    results, fates = [], []
    for server in servers.split(","):
        settings = dataclasses.replace(Settings(**options), server=server)
        click.echo(f"{server} …", err=True)
        try:
            result, fate = run(settings), with_bad_code(settings)
        except RuntimeError as error:
            raise click.ClickException(str(error)) from error
        results.append(result)
        fates.append(fate)
        click.echo(table(result) + "\n", err=True)
        if into is not None:
            from loadtest.plot import beside, plot

            into.mkdir(parents=True, exist_ok=True)
            (into / f"{server}.json").write_text(as_json(result))
            plot(result, into / f"{server}.png")
            if len(results) > 1:
                beside((results[0], result), into / f"{results[0].settings.server}-{server}.png")
    click.echo(comparison(results, fates))


if __name__ == "__main__":
    main()
