"""The health endpoint, answered by the worker itself.

It owns the verdict and its bytes. It follows the drain flag, and with `--agent-required` the flag of a missing agent:
a worker that retires says nothing about its node, which still serves. It must not know the connection.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.http.request_head import Head
from serve_asgi.http.response_head import CLOSE, STATUS_LINES
from serve_asgi.http.worker_context import WorkerContext

METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
"""The methods that load balancers probe with; the others go to the application."""

_SERVING: Final = b'{"status":"ok"}\n'
_DRAINING: Final = b'{"status":"draining"}\n'
_AGENT_MISSING: Final = b'{"status":"agent missing"}\n'


def response(worker: WorkerContext, head: Head, close: bool) -> bytes:
    """The whole response to a health request: 200, or `--drain-status` while the node drains or its agent is missing.

    `?live` is always 200.
    """
    body = _SERVING
    if worker.scoreboard.draining_since:
        body = _DRAINING
    elif worker.config.agent_required and worker.scoreboard.agent_missing:
        body = _AGENT_MISSING
    live = any(item == b"live" or item.startswith(b"live=") for item in head.query.split(b"&"))
    status = 200 if live or body is _SERVING else worker.config.drain_status
    return b"%b\r\n%bcontent-type: application/json\r\ncache-control: no-store\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        STATUS_LINES[status],
        worker.default_headers,
        len(body),
        b"allow: GET, HEAD, OPTIONS\r\n" if head.method == "OPTIONS" else b"",
        CLOSE if close else worker.keep_alive_lines,
        b"" if head.method == "HEAD" else body,
    )
