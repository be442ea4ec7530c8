"""The short version of the strict load test; `python -m loadtest.reload --reloads 200` is the long one."""

from __future__ import annotations

import dataclasses

import pytest

from loadtest.kinds import HTTP2_SURVIVING, SURVIVING
from loadtest.ledger import Left
from loadtest.reload import run
from loadtest.report import table
from loadtest.result import Settings
from loadtest.tls import VERSIONS


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("workers", "http", "loop", "reloads"),
    [(2, "httptools", "uvloop", 6), (4, "h11", "asyncio", 4)],
)
def test_reloads_under_load_are_noticed_by_nobody(workers: int, http: str, loop: str, reloads: int) -> None:
    result = run(Settings(reloads=reloads, interval=0.2, workers=workers, http=http, loop=loop))
    outcome = (result.lost, result.duplicated, result.reconnects, result.problems)
    assert outcome == (0, 0, 0, []), table(result)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", list(VERSIONS))
def test_reloads_under_load_over_tls(version: str) -> None:
    """A connection of TLS 1.3 goes over a reload as a plain one does; one of TLS 1.2 is told to come back.

    The certificate is replaced before each reload, which nobody notices but who shakes hands afterwards.
    """
    result = run(Settings(reloads=4, interval=0.2, tls=version, renew=True))
    assert (result.lost, result.duplicated, result.problems) == (0, 0, []), table(result)
    assert result.tls is not None
    assert result.tls.resumed == result.tls.offered > 0, table(result)
    assert result.tls.renewals == 4, table(result)
    assert result.tls.shown_new > result.tls.shown_old == 0, table(result)
    if version == "1.3":
        assert result.reconnects == 0, table(result)
    else:
        assert {each.left for each in result.ledger.reconnects} == {Left.ANNOUNCED}, table(result)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("workers", "loop", "tls"), [(2, "uvloop", "1.3"), (4, "asyncio", None)])
def test_reloads_under_load_over_http2(workers: int, loop: str, tls: str | None) -> None:
    """A connection with short requests goes over a reload; one with long streams is told GOAWAY, and loses none."""
    load = Settings(reloads=3, interval=0.5, scale=0.4, http2=True, workers=workers, loop=loop, tls=tls)
    result = run(dataclasses.replace(load, h2_hold=1.0))  # on a machine that has other things to do
    assert (result.lost, result.duplicated, result.reconnects, result.problems) == (0, 0, 0, []), table(result)
    assert result.accounts.cancelled > 0
    assert result.ledger.moved_on, table(result)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("loop", "tls", "http2"), [("uvloop", None, False), ("asyncio", "1.3", False), ("uvloop", "1.3", True)]
)
def test_websockets_and_streams_survive_reloads_under_load(loop: str, tls: str | None, http2: bool) -> None:
    """Over HTTP/2 several of each on one connection."""
    kinds = HTTP2_SURVIVING if http2 else SURVIVING
    load = Settings(kinds=kinds, scale=0.6, stretch=0.15, warmup=1.0, loop=loop, tls=tls, http2=http2)
    load = dataclasses.replace(load, h2_hold=1.0 if http2 else None)  # on a machine that has other things to do
    result = run(dataclasses.replace(load, reloads=2, interval=1.2, survive_window=0.5))
    assert result.spotless, table(result)
