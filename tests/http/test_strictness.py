"""How strictly HTTP/1.1 is read: each rule of RFC 9112 and RFC 9110 (`rules_of_the_head`, `rules_of_the_body`).

Every case runs over both parsers, whole and byte by byte and cut behind every line, in memory, and whole over a real
socket. A request to /behind follows each: it must be answered after a request that is served, and never be seen after
one that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.http.http_server import HttpServer, echo
from tests.http.memory import PARSERS, Application, Host, Outcome, Then, cut
from tests.http.rules import BEHIND, Rule, Served, chunks, field, length
from tests.http.rules_of_the_body import CHUNKED, CONNECTION, LENGTH
from tests.http.rules_of_the_head import FIELDS, HOST, MESSAGE, TARGET

RULES = [*MESSAGE, *TARGET, *HOST, *FIELDS, *LENGTH, *CHUNKED, *CONNECTION]


def named(found: Rule) -> str:
    return f"{found.section}: {found.words[:50]}"


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    opened = {http: Host(http) for http in PARSERS}
    yield opened
    for one in opened.values():
        one.close()


def check(outcome: Outcome, data: bytes, expected: int | Served) -> None:
    """The one verdict, and what holds for every input."""
    outcome.check()
    lines = [seen.line for seen in outcome.seen if seen.end == "whole"]
    statuses = [status for status, _ in outcome.answers()]
    if isinstance(expected, int):
        assert (statuses, lines) == ([expected], []), data
        assert outcome.ended, data
        assert len(outcome.seen) <= 1, data  # called before its content turned out to be malformed
        return
    behind = () if expected.last else ("GET /behind",)
    assert tuple(lines) == expected.lines + behind, data
    assert statuses == [200] * len(lines)
    assert outcome.ended is expected.last, data


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Whole; behind every line feed; before every line feed; byte by byte, in long data near its ends only."""
    yield [data]
    feeds = [place for place, byte in enumerate(data) if byte == 10][:200]
    yield cut(data, [place + 1 for place in feeds])
    yield cut(data, feeds)
    yield cut(data, [place for place in range(len(data)) if place < 300 or place > len(data) - 300])


@pytest.mark.parametrize("rule_", RULES, ids=named)
def test_in_any_pieces(rule_: Rule, hosts: dict[str, Host]) -> None:
    for data, expected in rule_.cases:
        for http in PARSERS:
            for pieces in splits(data + BEHIND):
                check(hosts[http].talk(pieces), data, expected)


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[str], HttpServer]]:
    servers: dict[str, HttpServer] = {}

    def get(http: str) -> HttpServer:
        if http not in servers:
            servers[http] = HttpServer(echo, "uvloop", http=http)
        return servers[http]

    yield get
    for server in servers.values():
        server.stop()


@pytest.mark.parametrize("rule_", RULES, ids=named)
@pytest.mark.parametrize("http", PARSERS)
def test_over_a_socket(http: str, rule_: Rule, server_of: Callable[[str], HttpServer]) -> None:
    server = server_of(http)
    for data, expected in rule_.cases:
        client = server.connect()
        client.send(data + BEHIND)
        if isinstance(expected, int):
            answer = client.read_to_end()
            assert answer.startswith(b"HTTP/1.1 %d " % expected), data
            assert answer.count(b"\r\nconnection: ") == answer.count(b"\r\nconnection: close\r\n") == 1, data
            assert answer.endswith(b".\n"), data
        else:
            for _ in expected.lines if expected.last else (*expected.lines, "GET /behind"):
                status, _, _ = client.answer()
                assert status == 200, data
            if expected.last:
                assert client.read_to_end() == b"", data
        client.close()


def test_every_case_is_tried_with_every_parser_the_same(hosts: dict[str, Host]) -> None:
    """The two parsers give the application the same, down to the fields."""
    for rule_ in RULES:
        for data, _ in rule_.cases:
            first, second = (hosts[http].talk([data]) for http in PARSERS)
            assert first == second, data


def test_content_that_never_becomes_whole_is_not_served(hosts: dict[str, Host]) -> None:
    """RFC 9112 8: an incomplete request is not handled as if it were complete."""
    for data in (length(b" 5", b"abcd"), chunks(b"3\r\nabc\r\n0\r\n"), chunks(b"3\r\nab")):
        for http in PARSERS:
            outcome = hosts[http].talk([data], then=Then.CLIENT_ENDS)
            assert [seen.end for seen in outcome.seen] == ["lost"], data
            assert outcome.answers() == []


def test_the_absolute_form_wins_over_the_host_field(hosts: dict[str, Host]) -> None:
    """RFC 9112 3.2.2."""
    for http in PARSERS:
        outcome = hosts[http].talk([b"GET http://b:1/ HTTP/1.1\r\nX: y\r\nHost: a\r\n\r\n"])
        assert outcome.seen[0].headers == [(b"host", b"b:1"), (b"x", b"y")]


def test_the_application_sees_fields_as_they_were_sent(hosts: dict[str, Host]) -> None:
    data = field(b"X-A:  1 \t 2\t", b"x-a: 3", b"X_B: \xff", b"Transfer-Encoding: cHunked") + b"0\r\n\r\n"
    for http in PARSERS:
        outcome = hosts[http].talk([data])
        assert outcome.seen[0].headers == [
            (b"host", b"a"),
            (b"x-a", b"1 \t 2"),
            (b"x-a", b"3"),
            (b"x_b", b"\xff"),
            (b"transfer-encoding", b"cHunked"),
        ]
        assert isinstance(outcome, Outcome)
        assert isinstance(hosts[http].application, Application)
