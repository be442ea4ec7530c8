"""The pure parts of the bench: its arithmetic, its tables, and what passes between it and the load generators."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import ssl
from pathlib import Path

import pytest

from loadtest import bench_app, bench_picture, bench_tls, bench_usage
from loadtest.bench_cases import (
    BROWSER,
    CASES,
    COUNTER,
    JSON_BODY,
    MARK,
    PIPELINED,
    UPLOAD,
    Load,
    chosen,
    lua,
    read_wrk,
)
from loadtest.bench_direct import scope
from loadtest.bench_floor import CallingFloor, Floor, TlsFloor, canned
from loadtest.bench_report import (
    AGAINST,
    CALLING,
    FLOOR,
    LOGGED,
    SERVE,
    Findings,
    Round,
    access_logs,
    case_table,
    document,
    summary,
    text,
)
from loadtest.bench_websocket import ANSWER, FRAME, MASK, PAYLOAD
from loadtest.processes import Process
from loadtest.tls import make_certificate

ROUND = Round(
    case="plain", server=SERVE, requests=1000, rate=1000.0, cpu=10.0, used=1.0, p50=1.0, p99=2.0, pss=1 << 20, errors=0
)
SETTINGS = {
    "interpreter": "CPython 3.13.0",
    "server_core": 0,
    "load_core": 1,
    "rounds": 3,
    "seconds": 1,
    "against": False,
}


def found(server: str, *costs: float, case: str = "plain") -> list[Round]:
    return [dataclasses.replace(ROUND, case=case, server=server, cpu=cost) for cost in costs]


@pytest.fixture
def findings() -> Findings:
    rounds = found(FLOOR, 7.0, 6.0, 8.0) + found(SERVE, 12.0, 11.0, 90.0)
    rounds += found("uvicorn", 20.0, 21.0, 19.0) + found("granian", 22.0, 23.0, 10.0)
    return Findings(dict(SETTINGS), rounds, {"plain": 1.0})


def test_medians_are_not_moved_by_one_bad_round(findings: Findings) -> None:
    assert findings.cpu("plain", SERVE) == 12.0
    assert findings.cpu("plain", FLOOR) == 7.0


def test_the_best_peer_is_the_cheapest_server_that_is_not_ours(findings: Findings) -> None:
    assert findings.best_peer("plain") == "uvicorn"
    findings.rounds += found(AGAINST, 1.0)
    assert findings.best_peer("plain") == "uvicorn"


def test_neither_the_floor_nor_who_logs_is_a_peer(findings: Findings) -> None:
    findings.rounds += found(CALLING, 8.0) + found("granian" + LOGGED, 9.0)
    assert findings.best_peer("plain") == "uvicorn"


def test_what_an_access_log_adds_is_told_server_by_server(findings: Findings) -> None:
    assert access_logs(findings) == []
    findings.rounds += found(SERVE + LOGGED, 13.2) + found("uvicorn" + LOGGED, 40.0) + found("absent" + LOGGED, 1.0)
    assert [line.split() for line in access_logs(findings)[3:]] == [
        ["plain", SERVE, "12.0", "13.2", "1.10"],
        ["plain", "uvicorn", "20.0", "40.0", "2.00"],
    ]
    assert access_logs(findings)[3] in text(findings)


def test_own_cost_leaves_out_the_floor_and_the_application(findings: Findings) -> None:
    assert findings.own("plain", SERVE) == 12.0 - 7.0 - 1.0
    assert findings.own("plain", "uvicorn") == 20.0 - 7.0 - 1.0


def test_without_a_floor_there_is_no_own_cost(findings: Findings) -> None:
    findings.rounds = [round_ for round_ in findings.rounds if round_.server != FLOOR]
    assert findings.own("plain", SERVE) is None
    assert summary(findings)[2].split() == ["plain", "-", "1.0", "12.0", "20.0", "uvicorn", "0.60", "-"]


def test_the_summary_gives_both_ratios(findings: Findings) -> None:
    assert summary(findings)[2].split() == ["plain", "7.0", "1.0", "12.0", "20.0", "uvicorn", "0.60", "0.33"]


def test_without_peers_there_is_no_ratio() -> None:
    assert summary(Findings(dict(SETTINGS), found(SERVE, 12.0), {}))[2].split() == [
        "plain", "-", "-", "12.0", "-", "-", "-",
    ]  # fmt: skip


def test_another_checkout_is_compared_with_this_one(findings: Findings) -> None:
    findings.settings["against"] = True
    findings.rounds += found(AGAINST, 6.0)
    assert summary(findings)[2].split()[-1] == "0.50"


def test_a_table_has_one_line_per_server(findings: Findings) -> None:
    lines = case_table(findings, "plain")
    assert [line.split()[0] for line in lines[2:6]] == [FLOOR, SERVE, "uvicorn", "granian"]
    assert lines[3].split() == [SERVE, "12.0", "4.0", "1000", "1.00", "2.00", "1.0", "0.60", "0.33"]


def test_errors_and_short_rounds_are_said(findings: Findings) -> None:
    assert findings.doubts() == []
    findings.rounds.append(dataclasses.replace(ROUND, server="granian", errors=3))
    findings.rounds.append(dataclasses.replace(ROUND, server="uvicorn", used=bench_usage.TICK))
    assert [doubt.split(":")[0] for doubt in findings.doubts()] == ["plain, uvicorn", "plain, granian"]
    assert all(doubt in text(findings) for doubt in findings.doubts())


def test_json_holds_every_round(findings: Findings) -> None:
    read = json.loads(document(findings))
    assert [Round(**one) for one in read["rounds"]] == findings.rounds
    assert read["direct"] == findings.direct


def test_the_picture_is_drawn(findings: Findings, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench_picture.plot(findings, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_ticks_are_those_of_the_process_and_of_its_reaped_children() -> None:
    fields = ["S", "1", "1", "1", "0", "-1", "0", "0", "0", "0", "0", "100", "20", "3", "4", "20", "0"]
    assert bench_usage.ticks("42 (a name) with) " + " ".join(fields)) == 127


def test_cpu_time_and_memory_of_a_living_process() -> None:
    me = Process(os.getpid(), os.getppid(), 0, "R", "pytest")
    gone = Process(2**22 + 1, 1, 0, "R", "gone")
    assert bench_usage.cpu([me]) > 0
    assert bench_usage.cpu([gone]) == 0
    assert bench_usage.pss(gone.pid) == 0


def test_proportional_set_size() -> None:
    assert (
        bench_usage.proportional("1-2 ---p 00000000 00:00 0 [rollup]\nRss:  9 kB\nPss:  5 kB\nPss_Dirty: 1 kB\n")
        == 5120
    )
    assert bench_usage.proportional("") == 0


def test_what_wrk_found_is_read() -> None:
    output = f"Running 1s test\n  1 threads\n{MARK} [3000, 1500000, 400, 2500, 1]\n"
    assert read_wrk(output) == Load(requests=3000, seconds=1.5, p50=0.4, p99=2.5, errors=1)


def test_what_wrk_says_instead_is_told() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_scripts_ask_for_the_case() -> None:
    assert f'wrk.body = string.rep("x", {UPLOAD})' in lua(CASES["upload"])
    assert 'wrk.method = "POST"' in lua(CASES["echo"])
    assert 'wrk.method = "GET"' in lua(CASES["plain"])
    assert 'wrk.headers["Connection"] = "close"' in lua(CASES["connect"])
    assert f"string.rep(wrk.format(), {PIPELINED})" in lua(CASES["pipeline"])


def test_browsers_fields_are_asked_with_and_told_to_the_application() -> None:
    for name, value in BROWSER.items():
        assert f'wrk.headers["{name}"] = "{value}"' in lua(CASES["browser"])
        assert (name.lower().encode(), value.encode()) in scope(CASES["browser"])["headers"]
    assert len(scope(CASES["plain"])["headers"]) == 1


def test_what_varies_is_marked() -> None:
    assert lua(CASES["varied"]).count(f"?page={COUNTER}") == 1
    assert f"seen={COUNTER}" not in lua(CASES["varied"])
    assert f"seen={COUNTER}" in lua(CASES["unique"])


def test_cases_are_chosen_by_name() -> None:
    assert [case.name for case in chosen("echo, plain", CASES)] == ["echo", "plain"]
    with pytest.raises(ValueError, match="no case 'ecco'; there are plain, browser"):
        chosen("ecco", CASES)


class Transport:
    """Remembers what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True


def floor(name: str) -> tuple[Floor, Transport]:
    connection, transport = Floor(CASES[name]), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, transport


def test_the_floor_answers_every_whole_request() -> None:
    connection, transport = floor("plain")
    request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    connection.data_received(request)
    connection.data_received(request * 3 + request[:5])
    connection.data_received(request[5:])
    answer = canned(CASES["plain"])
    assert transport.written == [answer, answer * 3, answer]


def test_the_floor_waits_for_the_content() -> None:
    connection, transport = floor("echo")
    connection.data_received(b"POST /echo HTTP/1.1\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1000)
    assert transport.written == []
    connection.data_received(b"x" * 24)
    assert len(transport.written) == 1


def test_the_floor_closes_where_the_case_says_so() -> None:
    connection, transport = floor("connect")
    connection.data_received(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert transport.closed
    assert b"connection: close" in transport.written[0]


def test_the_floor_calls_an_application_before_each_answer() -> None:
    called: list[str] = []

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        called.append(str(scope["path"]))
        await bench_app.echo(receive, send)  # type: ignore[arg-type]

    async def main() -> list[bytes]:
        connection, transport = CallingFloor(CASES["plain"], app), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        connection.data_received(request)
        await connection.task
        connection.data_received(request * 2)
        await connection.task
        return transport.written

    answer = canned(CASES["plain"])
    assert asyncio.run(main()) == [answer, answer * 2]
    assert called == ["/"] * 3


def test_the_floor_echoes_frames() -> None:
    connection, transport = floor("websocket")
    # RFC 6455 1.3 has this key and this answer
    connection.data_received(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in transport.written[0]
    connection.data_received(FRAME)
    assert transport.written[1] == ANSWER


def test_the_frame_of_the_client_is_masked() -> None:
    assert FRAME[1] == 0x80 | len(PAYLOAD)
    assert bytes(byte ^ MASK[i % 4] for i, byte in enumerate(FRAME[6:])) == PAYLOAD


def test_framework_cases_expect_the_same_document() -> None:
    assert json.loads(JSON_BODY) == {"message": "Hello, World!"}
    assert [case.name for case in CASES.values() if case.framework] == ["starlette", "fastapi"]


def test_cases_over_tls() -> None:
    names = [case.name for case in CASES.values() if case.tls and not case.http2]
    assert names == ["tls", "tls-new", "tls-resumed", "tls-64k"]
    assert [case.handshake for case in CASES.values() if case.handshake] == ["new", "resumed"]


@pytest.mark.parametrize("kind", ["new", "resumed"])
def test_the_client_of_handshakes_against_the_floor_with_tls(kind: str, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.path, certificate.key)
    case = CASES[f"tls-{kind}"]
    resumed: list[bool] = []

    count = bench_tls.Count()

    class Noting(TlsFloor):
        def close(self) -> None:
            resumed.append(bool(self.tls.session_reused))
            count.running = len(resumed) < 5
            super().close()

    async def main() -> tuple[list[bool], int]:
        server = await asyncio.get_running_loop().create_server(lambda: Noting(Floor(case), context), "127.0.0.1", 0)
        await bench_tls.one_after_the_other(server.sockets[0].getsockname()[1], kind == "resumed", count)
        server.close()
        return resumed, count.errors

    expected = [False] * 5 if kind == "new" else [False, *[True] * 4]
    assert asyncio.run(main()) == (expected, 0)
