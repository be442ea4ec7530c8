"""How h2load is told to ask for a case over HTTP/2, and what it says. Pure.

It begins with the connection preface in clear text, as prior knowledge has it, and chooses `h2` by ALPN over TLS; its
windows are 2^30 bytes, so that flow control stops nobody. All its requests are alike, so each but the first of a
connection is a few bytes of indexes. What has to change from request to request is asked for by `loadtest.bench_http2`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from loadtest.bench_cases import Case, Load
from loadtest.ledger import percentile

_FINISHED = re.compile(r"^finished in ([0-9.]+)(us|ms|s|m|h),", re.MULTILINE)
_REQUESTS = re.compile(r"^requests: .* ([0-9]+) done, .* ([0-9]+) failed,", re.MULTILINE)
_CODES = re.compile(r"^status codes: [0-9]+ 2xx, ([0-9]+) 3xx, ([0-9]+) 4xx, ([0-9]+) 5xx", re.MULTILINE)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def command(case: Case, port: int, seconds: int, directory: Path, requests: int = 0) -> list[str]:
    """Its command line, for so many `seconds`; with `requests`, for so many and as long as they take.

    Its log and the content that it sends are written into `directory`.
    """
    words = ["h2load", "--clients", str(case.connections), "--max-concurrent-streams", str(case.streams)]
    words += ["--requests", str(requests)] if requests else ["--duration", f"{seconds}s"]
    log = log_file(directory)
    log.unlink(missing_ok=True)  # it would write behind what is there
    words += ["--log-file", str(log)]
    if case.body:
        content = directory / "content"
        content.write_bytes(b"x" * case.body)
        words += ["--data", str(content)]
    return [*words, f"{'https' if case.tls else 'http'}://127.0.0.1:{port}{case.path}"]


def log_file(directory: Path) -> Path:
    """Where it writes a line for each request."""
    return directory / "h2load.log"


def read(output: str, log: str) -> Load:
    """What it found. Raises ValueError, with what it said instead, if it found nothing."""
    finished, requests, codes = _FINISHED.search(output), _REQUESTS.search(output), _CODES.search(output)
    if finished is None or requests is None or codes is None or "Application protocol: h2" not in output:
        raise ValueError(f"h2load has measured nothing over HTTP/2; it said: {output.strip()[-400:]}")
    latencies = sorted(int(line.rpartition("\t")[2]) for line in log.splitlines())
    return Load(
        requests=int(requests[1]),
        seconds=float(finished[1]) * _SECONDS[finished[2]],
        p50=percentile(latencies, 0.5) / 1e3,
        p99=percentile(latencies, 0.99) / 1e3,
        errors=int(requests[2]) + sum(map(int, codes.groups())),
    )


def together(loads: Sequence[Load]) -> Load:
    """Several runs, one after the other, as one; the percentiles are those of the run that was worst."""
    return Load(
        requests=sum(load.requests for load in loads),
        seconds=sum(load.seconds for load in loads),
        p50=max(load.p50 for load in loads),
        p99=max(load.p99 for load in loads),
        errors=sum(load.errors for load in loads),
    )
