"""The bench over HTTP/2: what its clients send and read, and its floor."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import h2.config
import h2.connection
import h2.events
import pytest
from hpack import Decoder

from loadtest import bench_h2load, bench_http2
from loadtest.bench_cases import BROWSER, CASES, Case, Load, read_wrk
from loadtest.bench_floor import TlsFloor
from loadtest.bench_floor_http2 import Http2Floor
from loadtest.bench_servers import speaks
from loadtest.tls import Certificate, make_certificate, trusting

CLEAR = [case for case in CASES.values() if case.http2 and not case.tls]
Found = TypeVar("Found")
OUTPUT = """starting benchmark...
Application protocol: h2c

finished in 2.01s, 37362.50 req/s, 1.43MB/s
requests: 74725 total, 74853 started, 74725 done, 74720 succeeded, 5 failed, 0 errored, 0 timeout
status codes: 74718 2xx, 0 3xx, 0 4xx, 2 5xx
"""
LOG = "1795978000\t200\t1000\n1795978001\t200\t3000\n1795978002\t200\t2000\n"


def test_each_case_is_there_in_clear_text_and_over_tls() -> None:
    names = ["h2", "h2-single", "h2-new-paths", "h2-post", "h2-64k"]
    assert [case.name for case in CLEAR] == names
    assert [case.name for case in CASES.values() if case.http2 and case.tls] == [f"{name}-tls" for name in names]
    assert (CASES["h2"].connections, CASES["h2"].streams) == (8, 16)
    assert (CASES["h2-single-tls"].connections, CASES["h2-single-tls"].streams) == (32, 1)


def test_who_speaks_no_http2_is_left_out() -> None:
    assert not speaks("socketify", CASES["h2"])
    assert speaks("serve", CASES["h2"])


def test_h2load_is_told_the_case(tmp_path: Path) -> None:
    words = " ".join(bench_h2load.command(CASES["h2-post-tls"], 8000, 2, tmp_path))
    assert words.startswith("h2load --clients 8 --max-concurrent-streams 16 --duration 2s --log-file ")
    assert words.endswith(f"--data {tmp_path / 'content'} https://127.0.0.1:8000/echo")
    assert (tmp_path / "content").stat().st_size == CASES["h2-post"].body
    assert "--requests 100 " in " ".join(bench_h2load.command(CASES["h2"], 8000, 2, tmp_path, 100))


def test_what_h2load_found_is_read() -> None:
    assert bench_h2load.read(OUTPUT, LOG) == Load(requests=74725, seconds=2.01, p50=2.0, p99=3.0, errors=7)


def test_what_h2load_says_instead_is_told() -> None:
    with pytest.raises(ValueError, match=r"nothing over HTTP/2; it said: starting"):
        bench_h2load.read(OUTPUT.replace("h2c", "http/1.1"), LOG)


def test_several_runs_of_h2load_are_one() -> None:
    loads = [Load(10, 1.0, 1.0, 5.0, 0), Load(30, 0.5, 2.0, 4.0, 1)]
    assert bench_h2load.together(loads) == Load(40, 1.5, 2.0, 5.0, 1)


def test_no_two_requests_are_alike_and_a_decoder_reads_them_all() -> None:
    client = bench_http2.Client(bench_http2.Run(CASES["h2-new-paths"], 8000, 0))
    decoder = Decoder()
    seen: set[str] = set()
    data = client.requests(200)
    for number in range(200):
        head, flags, stream = bench_http2.HEAD.unpack_from(data)
        size = head >> 8
        assert (head & 255, flags, stream) == (bench_http2.HEADERS, 5, 1 + 2 * number)
        fields = [(str(name), str(value)) for name, value in decoder.decode(data[9 : 9 + size])]
        data = data[9 + size :]
        assert [name for name, _ in fields[:4]] == [":method", ":scheme", ":authority", ":path"]
        made = dict(fields)
        for name, value in BROWSER.items():
            if name not in ("Connection", "Cookie"):
                assert made[name.lower()] == value
        assert made["cookie"].startswith(BROWSER["Cookie"] + "; seen=")
        seen |= {made[":path"], made["cookie"]}
    assert not data
    assert len(seen) == 400


def against_the_floor(
    case: Case, certificate: Certificate | None, ask: Callable[[int], Coroutine[None, None, Found]]
) -> Found:
    """What `ask` gets from the floor's port."""

    async def main() -> Found:
        open_connections: set[asyncio.Protocol] = set()
        all_gone = asyncio.Event()

        class Counted(Http2Floor):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                open_connections.add(self)

            def connection_lost(self, exc: Exception | None) -> None:
                open_connections.discard(self)
                if not open_connections:
                    all_gone.set()

        class CountedTls(TlsFloor):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                open_connections.add(self.floor)

            def connection_lost(self, exc: Exception | None) -> None:
                self.floor.connection_lost(exc)

        def made() -> asyncio.Protocol:
            floor = Counted(case)
            if certificate is None:
                return floor
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.path, certificate.key)
            context.set_alpn_protocols(["h2"])
            return CountedTls(floor, context)

        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        found = await ask(server.sockets[0].getsockname()[1])
        server.close()
        while open_connections:
            all_gone.clear()
            await all_gone.wait()
        return found

    return asyncio.run(main())


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("case", CLEAR, ids=lambda case: case.name)
def test_the_floor_answers_as_the_case_says(case: Case, tls: bool, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path) if tls else None

    async def ask(port: int) -> tuple[int, bytes]:
        context = None if certificate is None else trusting(certificate)
        return await asyncio.to_thread(bench_http2.fetch, case, port, context)

    assert against_the_floor(case, certificate, ask) == (200, case.answer)


@pytest.mark.parametrize(("name", "lifetime"), [("h2-new-paths", 0), ("h2-new-paths", 20), ("h2-new-paths-tls", 0)])
def test_the_client_of_new_paths_counts_what_is_answered(name: str, lifetime: int, tmp_path: Path) -> None:
    case = CASES[name]
    certificate = make_certificate(tmp_path) if case.tls else None
    line = against_the_floor(case, certificate, lambda port: bench_http2.main(port, 0.2, case, lifetime))
    found = read_wrk(line)
    assert found.requests > 100
    assert not found.errors


def test_the_floor_answers_requests_of_one_read_in_one_write() -> None:
    written: list[bytes] = []

    class Transport(asyncio.Transport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            written.append(bytes(data))

    floor = Http2Floor(CASES["h2"])
    floor.connection_made(Transport())
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    fields = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/")]
    for stream in (1, 3, 5):
        client.send_headers(stream, fields, end_stream=True)
    sent = client.data_to_send()
    floor.data_received(sent[:50])
    floor.data_received(sent[50:])
    ended = [event for data in written for event in client.receive_data(data)]
    assert sum(isinstance(event, h2.events.StreamEnded) for event in ended) == 3
    assert len(written) == 2
