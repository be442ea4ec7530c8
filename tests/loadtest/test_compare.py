"""The comparison: its arithmetic and tables, its client against a peer that does as told, one life of a server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from loadtest import compare_picture, compare_report
from loadtest.bench_cases import CASES
from loadtest.bench_servers import BenchServer, Settings
from loadtest.compare import SERVERS, several
from loadtest.compare_client import STEP, WARM_UP, Seen, Sockets, as_fast_as_they_come, at_a_rate, moments, percentile
from loadtest.compare_lives import NEW, Answer, completed, everybody, first_response, reloaded
from loadtest.compare_report import (
    CONNECTIONS,
    FAILED,
    IDLE,
    MIB,
    NONE,
    P99_OF_SAME,
    RATE,
    START,
    WORKER,
    WORKERS,
    Findings,
    cells,
    fine,
    markdown,
    scaling,
    text,
)
from loadtest.idle_client import REQUEST
from loadtest.servers import COMMANDS

SETTINGS = {
    "interpreter": "CPython 3.13.0",
    "version": "serve 0.1.0",
    "servers": ["serve", "granian", "uvicorn"],
    "rounds": 3,
    "seconds": 1,
    "rate": 10_000,
    "share": 70,
    "workers": 2,
    "cores": "0,1",
}
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\nHello, World!"


@pytest.fixture
def findings() -> Findings:
    found = Findings(dict(SETTINGS))
    for server, rates in {"uvicorn": (900.0, 1000.0, 5.0), "serve": (2000.0, 1900.0, 9999.0)}.items():
        for rate in rates:
            found.add(RATE, server, rate)
        for count, cost in ((1, 30.0), (10, 20.0), (1, 32.0)):
            found.add(CONNECTIONS, server, cost, count)
    found.add(P99_OF_SAME, "serve", 0.5, 10_000)
    found.add(WORKER, "serve", 20.0 * MIB)
    found.add(IDLE, "serve", MIB / 10_000)
    found.add(WORKERS, "serve", 12.0, 16)
    return found


# the report


def test_medians_are_by_server_and_by_count(findings: Findings) -> None:
    assert findings.median(RATE, "uvicorn") == 900.0
    assert findings.median(CONNECTIONS, "serve", 1) == 31.0
    assert findings.median(RATE, "granian") is None
    assert findings.line(CONNECTIONS, "serve") == [(1, 31.0), (10, 20.0)]


def test_servers_stand_in_the_order_asked_for_and_only_if_they_were_measured(findings: Findings) -> None:
    assert findings.servers() == ["serve", "uvicorn"]


def test_the_table_marks_the_best_and_leaves_out_what_nobody_has(findings: Findings) -> None:
    assert cells(findings, compare_report.ROWS, bold=True) == [
        ["", "**serve**", "uvicorn"],
        ["requests/s, 2 workers on 2 cores", "**2,000**", "900"],
        ["p99 at 10,000 requests/s, ms", "**0.50**", NONE],
        ["a worker's memory, MiB", "**20.0**", NONE],
        ["10,000 idle connections, MiB", "**1.00**", NONE],
    ]


def test_less_is_better_but_for_the_rate(findings: Findings) -> None:
    findings.add(START, "serve", 0.4)
    findings.add(START, "uvicorn", 0.3)
    assert cells(findings, compare_report.ROWS, bold=True)[-1][1:] == ["0.40", "**0.30**"]


def test_a_count_that_a_server_lacks_has_no_figure(findings: Findings) -> None:
    assert scaling(findings, CONNECTIONS, "connections")[1:] == [["1", "31.0", "31.0"], ["10", "20.0", "20.0"]]
    assert scaling(findings, WORKERS, "workers")[1:] == [["16", "12.0", NONE]]
    assert scaling(Findings(dict(SETTINGS)), WORKERS, "workers") == []


def test_three_digits_are_shown() -> None:
    assert [fine(value) for value in (0.123, 1.0, 12.34, 123.4, 1234.5)] == ["0.12", "1.00", "12.3", "123", "1,234"]


def test_json_makes_the_same_tables_again(findings: Findings) -> None:
    findings.problems.append("hypercorn has not answered.")
    again = Findings.read(findings.document())
    assert again == findings
    assert text(again) == text(findings)
    assert "hypercorn has not answered." in text(again)


def test_zero_is_a_figure(findings: Findings) -> None:
    findings.add(FAILED, "serve", 0.0)
    assert cells(findings, compare_report.BESIDES)[-1] == ["connections failed meanwhile", "0", NONE]


def test_tables_as_markdown(findings: Findings) -> None:
    lines = markdown(findings).splitlines()
    assert lines[:3] == [
        "| | **serve** | uvicorn |",
        "| --- | ---: | ---: |",
        "| requests/s, 2 workers on 2 cores | **2,000** | 900 |",
    ]


def test_the_pictures_are_drawn(findings: Findings, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for draw in (compare_picture.plot, compare_picture.plot_scaling):
        draw(findings, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "picture.png").unlink()


def test_names_beside_curves_keep_their_order_and_their_distance() -> None:
    assert compare_picture.apart([5.0, 1.0, 3.0], 1.0) == [5.0, 1.0, 3.0]
    assert compare_picture.apart([2.0, 2.0], 1.0) == [1.5, 2.5]
    assert compare_picture.apart([0.0, 1.0, 0.0, 9.0], 1.0) == pytest.approx([-2 / 3, 4 / 3, 1 / 3, 9.0])


def test_every_server_has_a_column_and_every_peer_a_colour() -> None:
    assert set(SERVERS) == set(COMMANDS) == {"serve", *compare_picture.LINES}


def test_words_of_an_option() -> None:
    assert several("granian, serve", SERVERS, "server") == ["granian", "serve"]
    with pytest.raises(click.UsageError, match="no server 'apache'; there are serve, h2corn"):
        several("apache", SERVERS, "server")


# the client


def test_percentiles_of_what_was_counted() -> None:
    counted = Counter({10: 98, 100: 1, 500: 1})
    assert [percentile(counted, share) for share in (0.5, 0.98, 0.99, 1.0)] == [
        steps * STEP / 1000 for steps in (10, 10, 100, 500)
    ]
    assert percentile(Counter(), 0.99) == 0.0


def test_what_several_generators_saw_is_added_up() -> None:
    seen = Seen(requests=1, due=2, seconds=1.0, errors=0, latencies=Counter({3: 1}), late=Counter({0: 2}))
    other = Seen.read(dataclasses.replace(seen, seconds=2.0, errors=1, latencies=Counter({3: 1, 4: 1})).line())
    seen.add(other)
    assert seen == Seen(requests=2, due=4, seconds=2.0, errors=1, latencies=Counter({3: 2, 4: 1}), late=Counter({0: 4}))


def test_requests_fall_due_at_random_but_the_same_in_each_run() -> None:
    found = moments(1000.0, 10.0, seed=1)
    assert found == sorted(found) == moments(1000.0, 10.0, seed=1) != moments(1000.0, 10.0, seed=2)
    assert found[0] > 0.0
    assert found[-1] < 10.0
    assert 9_500 < len(found) < 10_500  # five standard deviations


@contextlib.contextmanager
def peers(answer: Callable[[socket.socket, int], None], count: int) -> Iterator[Sockets]:
    """Connections to threads that call `answer` with each request's number."""
    pairs = [socket.socketpair() for _ in range(count)]

    def serve(mine: socket.socket) -> None:
        number = 0
        while mine.fileno() != -1 and mine.recv(len(REQUEST), socket.MSG_WAITALL):
            number += 1
            answer(mine, number)

    threads = [threading.Thread(target=serve, args=(mine,)) for mine, _ in pairs]
    for thread in threads:
        thread.start()
    sockets = Sockets([theirs for _, theirs in pairs])
    try:
        yield sockets
    finally:
        sockets.epoll.close()
        for _, theirs in pairs:
            theirs.close()
        for thread, (mine, _) in zip(threads, pairs, strict=True):
            thread.join()
            mine.close()


def test_as_fast_as_they_come_counts_every_response_and_leaves_none_under_way() -> None:
    answered: list[int] = []

    def answer(connection: socket.socket, number: int) -> None:
        answered.append(number)
        connection.sendall(RESPONSE[:20])
        connection.sendall(RESPONSE[20:])

    with peers(answer, 3) as sockets:
        seen = as_fast_as_they_come(sockets, 0.05)
        assert seen.requests == len(answered) >= 3
        assert seen.errors == 0


def test_a_connection_that_is_closed_or_answers_wrongly_is_an_error() -> None:
    def close(connection: socket.socket, number: int) -> None:
        connection.sendall(RESPONSE) if number == 1 else connection.close()

    def refuse(connection: socket.socket, number: int) -> None:
        connection.sendall(RESPONSE.replace(b"200 OK", b"503 No"))

    for answer, requests in ((close, 1), (refuse, 0)):
        with peers(answer, 1) as sockets:
            seen = as_fast_as_they_come(sockets, 0.05)
            assert (seen.requests, seen.errors) == (requests, 1)


def test_at_a_rate_all_that_is_due_is_sent_and_what_warms_up_is_not_counted() -> None:
    due = [0.0, 0.01, WARM_UP, WARM_UP + 0.01, WARM_UP + 0.02]
    with peers(lambda connection, number: connection.sendall(RESPONSE), 2) as sockets:
        seen = at_a_rate(sockets, due, WARM_UP + 0.1)
        assert (seen.requests, seen.due, seen.errors) == (3, 3, 0)
        assert seen.late.total() == len(due)


def test_a_request_that_waits_for_a_connection_has_waited_from_when_it_was_due() -> None:
    stall = 0.05

    def answer(connection: socket.socket, number: int) -> None:
        if number == 1:
            time.sleep(stall)  # what is measured
        connection.sendall(RESPONSE)

    with peers(answer, 1) as sockets:
        seen = at_a_rate(sockets, [WARM_UP] * 3, WARM_UP)
        assert seen.requests == 3
        assert min(seen.latencies) * STEP / 1e6 >= stall - 2 * STEP / 1e6


# lives

OLD = "old"


@pytest.mark.parametrize(
    ("answers", "moment"),
    [
        ([], None),
        ([Answer(1.0, NEW, 7)], None),
        ([Answer(1.0, NEW, 7), Answer(2.0, NEW, 7), Answer(3.0, OLD, 1)], None),
        ([Answer(1.0, NEW, 7), Answer(2.0, NEW, 8), Answer(3.0, NEW, 7)], 2.0),
        ([Answer(1.0, NEW, 7), Answer(2.0, NEW, 8), Answer(3.0, OLD, 1)], 3.0),
        ([Answer(0.5, OLD, 1), Answer(1.0, NEW, 7), Answer(2.0, NEW, 8)], 2.0),
    ],
)
def test_a_reload_is_over_when_all_workers_are_new_and_no_old_one_answers(
    answers: list[Answer], moment: float | None
) -> None:
    assert completed(answers, 2) == moment


def test_a_life_of_this_server(tmp_path: Path) -> None:
    server = BenchServer("serve", tmp_path, CASES["plain"], Settings(cases=[], servers=[], workers=2))
    try:
        begun = time.monotonic()
        assert first_response(server, patience=60.0) > begun
        pids = asyncio.run(everybody(server, 2))
        assert len(pids) == 2
        assert server.pid not in pids
        reload = asyncio.run(reloaded(server, 2))
        assert 0.0 < reload.first <= reload.complete
        assert reload.failed == 0
        assert asyncio.run(everybody(server, 2)).isdisjoint(pids)
    finally:
        server.stop()
        assert server.sweep() == []
