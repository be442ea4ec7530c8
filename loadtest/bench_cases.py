"""What the bench asks of a server, and how wrk is told to ask it and read. Pure.

A `Case` is one kind of request over keep-alive connections. wrk gets it as a Lua script, whose last act is to print one
line that `read_wrk` understands.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from loadtest import bench_app

PIPELINED = 16
UPLOAD = 1 << 20
ECHO = 1024
MARK = "bench:"
COUNTER = "@" * 10
"""Stands where each request of a `varied` case has its own number, of as many digits."""
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/",
    "Connection": "keep-alive",
    "Cookie": "session=2b1f6f4dc0a94c1b8a6f0e3f5f6f0c55; theme=dark",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Priority": "u=0, i",
}
JSON_BODY = b'{"message":"Hello, World!"}'


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of request."""

    name: str
    title: str
    """What it is called in the picture, as in the README's table."""
    path: str = "/"
    app: str = "plain"
    """Which of the applications: loadtest/bench_app*.py."""
    body: int = 0
    """Bytes of content that a request has; 0 makes it a GET."""
    answer: bytes = bench_app.HELLO
    """The content of the right response."""
    connections: int = 32
    http2: bool = False
    """Over HTTP/2: with prior knowledge, or by ALPN over TLS."""
    streams: int = 1
    """Requests in progress at once on each connection of HTTP/2."""
    browser: bool = False
    """The header fields of a browser, in place of Host alone."""
    varied: str = ""
    """What no two requests have in common: "query", or "cookie" (with the query)."""
    close: bool = False
    """Each request on a new connection, which the server closes."""
    pipelined: int = 1
    websocket: bool = False
    tls: bool = False
    """Over TLS."""
    handshake: str = ""
    """Each request on a new TLS 1.3 connection, which the server closes: "new", or "resumed" by a ticket."""
    framework: bool = False
    """The application itself costs much, so the server is judged by what it adds."""


def http2(tls: bool) -> list[Case]:
    """The cases over HTTP/2, in clear text or over TLS."""
    many: dict[str, Any] = {"http2": True, "tls": tls, "connections": 8, "streams": 16}
    cases = [
        Case(name="h2", title="HTTP/2: 8 connections of 16 streams", **many),
        Case(name="h2-single", title="HTTP/2: 32 connections of 1 stream", http2=True, tls=tls),
        Case(name="h2-new-paths", title="HTTP/2: new path and cookie each time", browser=True, varied="cookie", **many),
        Case(name="h2-post", title="HTTP/2: POST 1 KiB, echoed", path="/echo", body=ECHO, answer=b"x" * ECHO, **many),
        Case(name="h2-64k", title="HTTP/2: GET, 64 KiB", path="/large", answer=bench_app.LARGE, **many),
    ]
    if not tls:
        return cases
    return [
        dataclasses.replace(case, name=f"{case.name}-tls", title=case.title.replace(":", " over TLS:"))
        for case in cases
    ]


ALL = [
    Case(name="plain", title="GET, 13 bytes"),
    Case(name="browser", title="GET by a browser", browser=True),
    Case(name="varied", title="GET by a browser, new query each time", browser=True, varied="query"),
    Case(name="unique", title="GET by a browser, new cookie each time", browser=True, varied="cookie"),
    Case(name="echo", title="POST 1 KiB, echoed", path="/echo", body=ECHO, answer=b"x" * ECHO),
    Case(name="stream", title="ten chunks of 1 KiB", path="/stream", answer=bench_app.CHUNK * bench_app.CHUNKS),
    Case(name="64k", title="GET, 64 KiB", path="/large", answer=bench_app.LARGE),
    Case(name="upload", title="upload of 1 MiB", path="/upload", body=UPLOAD, answer=b"%d" % UPLOAD, connections=8),
    Case(name="connect", title="a new connection each", close=True),
    Case(name="websocket", title="WebSocket, 64 bytes echoed", path="/", websocket=True),
    Case(name="starlette", title="a Starlette route", app="starlette", answer=JSON_BODY, framework=True),
    Case(name="fastapi", title="a FastAPI route", app="fastapi", answer=JSON_BODY, framework=True),
    Case(name="pipeline", title="GET, 16 pipelined", pipelined=PIPELINED),
    Case(name="tls", title="TLS: GET, 13 bytes", tls=True),
    Case(name="tls-new", title="TLS: a new connection each", tls=True, close=True, handshake="new"),
    Case(name="tls-resumed", title="TLS: a resumed connection each", tls=True, close=True, handshake="resumed"),
    Case(name="tls-64k", title="TLS: GET, 64 KiB", path="/large", answer=bench_app.LARGE, tls=True),
    *(case for tls in (False, True) for case in http2(tls)),
]
CASES = {case.name: case for case in ALL}


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a load generator saw in one round."""

    requests: int
    seconds: float
    p50: float
    """ms"""
    p99: float
    """ms"""
    errors: int
    """Failed to connect, read or write, timed out, or answered with a status beyond 399."""


def fields(case: Case) -> dict[str, str]:
    """The header fields of a request, besides Host and Content-Length."""
    made = dict(BROWSER) if case.browser else {}
    if case.varied == "cookie":
        made["Cookie"] += f"; seen={COUNTER}"
    if case.close:
        made["Connection"] = "close"
    return made


def lua(case: Case) -> str:
    """The script that makes wrk ask for this case."""
    lines = [f'wrk.method = "{"POST" if case.body else "GET"}"', f'wrk.path = "{case.path}"']
    if case.body:
        lines.append(f'wrk.body = string.rep("x", {case.body})')
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in fields(case).items()]
    if case.varied:
        lines += [
            "local number, parts = 1000000000, {}",
            "function init(args)",
            f'  local whole = wrk.format("GET", "{case.path}?page={COUNTER}") .. "{COUNTER}"',
            f'  for part in whole:gmatch("(.-){COUNTER}") do parts[#parts + 1] = part end',
            "end",
            "function request()",
            "  number = number + 1",
            "  return table.concat(parts, number)",
            "end",
        ]
    if case.pipelined > 1:
        lines += [
            "local many",
            f"function init(args) many = string.rep(wrk.format(), {case.pipelined}) end",
            "function request() return many end",
        ]
    lines += [
        "function done(summary, latency, requests)",
        "  local e = summary.errors",
        "  io.write(string.format(",
        f'    "{MARK} [%d, %d, %d, %d, %d]\\n", summary.requests, summary.duration,',
        "    latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))",
        "end",
    ]
    return "\n".join(lines) + "\n"


def read_wrk(output: str) -> Load:
    """What wrk found. Raises ValueError, with what it said instead, if it found nothing."""
    for line in output.splitlines():
        if line.startswith(MARK):
            requests, duration, p50, p99, errors = json.loads(line.removeprefix(MARK))
            return Load(requests, duration / 1e6, p50 / 1e3, p99 / 1e3, errors)
    raise ValueError(f"wrk has measured nothing; it said: {output.strip()[-400:]}")


def chosen(names: str, known: dict[str, Case]) -> list[Case]:
    """The cases of an option such as `plain,echo`. Raises ValueError for an unknown name."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"There is no case {unknown[0]!r}; there are {', '.join(known)}.")
    return [known[name] for name in wanted]
