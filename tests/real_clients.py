"""Clients that people use, over reloads: what they ask tells the generation that answered, and on which connection."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.certificates import Authority
from tests.running import RunningServer

RELOADS = 2
FEW = 5


class Serving:
    """A server that several clients ask, one after another: each begins with the generation that it finds."""

    def __init__(self, server: RunningServer, scheme: str = "http") -> None:
        self.server = server
        self.port = server.address()[1]
        self.url = f"{scheme}://localhost:{self.port}/who"

    def generations(self) -> Iterator[int]:
        """Reload it RELOADS times; the generation that each leads to."""
        for _ in range(RELOADS):
            self.server.reload()
            generation: int = self.server.status()["generation"]
            yield generation


class Secure(Serving):
    """One that speaks TLS."""

    def __init__(self, server: RunningServer, authority: Authority, directory: Path) -> None:
        super().__init__(server, "https")
        self.authority = authority
        self.trusted = str(directory / "authority.pem")
        Path(self.trusted).write_bytes(authority.pem)


def over_reloads(serving: Serving, answers: Iterator[dict[str, Any]]) -> list[int]:
    """Take some answers before the reloads, between them and after them; the connections on which they came."""
    seen = list(itertools.islice(answers, FEW))
    for generation in serving.generations():
        while seen[-1]["generation"] < generation:
            seen.append(next(answers))
        seen += itertools.islice(answers, FEW)
    generations = [answer["generation"] for answer in seen]
    assert generations == sorted(generations)
    assert generations[-1] == generation == generations[0] + RELOADS
    assert len({answer.get("version") for answer in seen}) == 1
    return list(dict.fromkeys(answer["connection"] for answer in seen))


@contextlib.contextmanager
def client(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A client's process, ended by its PID when the block ends."""
    environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """The answers of a client that prints one per line."""
    assert process.stdout is not None
    for line in process.stdout:
        assert line.startswith(b"{"), (line + process.stdout.read()).decode(errors="replace")
        yield json.loads(line)
    raise AssertionError(f"the client has ended with status {process.wait()}")
