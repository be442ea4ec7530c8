"""The total time that a request may take (`--request-timeout`), by the path that it asks for.

It owns the rules, the verdict, and what is counted and logged; the connection ends the response. Looked at once a
second for all connections (`serve_asgi.worker.deadline_sweep`), so that a request pays nothing for it. Rules:
WebSockets have no such limit; event streams, and responses that are to survive their worker, have one only if their
path is named.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Final

from serve_asgi.config.values import read_path_time
from serve_asgi.http.response import Response
from serve_asgi.http.response_states import DONE, LOST, OVER, STARTED, WAITING
from serve_asgi.http.worker_context import ClientConnection
from serve_asgi.ipc.scoreboard import Cell
from serve_asgi.logs.request_ids import named, of_request
from serve_asgi.logs.server_log import about

EVENT_STREAM: Final = b"text/event-stream"
"""WHATWG HTML 9.2, server-sent events."""
_ENDED: Final = frozenset({DONE, LOST, OVER})

log = logging.getLogger("serve")


class RequestTimeouts:
    """Of one worker."""

    __slots__ = ("_rules", "_shortest")

    def __init__(self, rules: Sequence[str]) -> None:
        """Raises ValueError for what is no rule."""
        self._rules = sorted(map(read_path_time, rules), key=lambda rule: len(rule[0]), reverse=True)
        self._shortest = min([seconds for _, seconds in self._rules], default=math.inf)

    def limit(self, path: str) -> tuple[float, bool]:
        """How long (s) a request for this path may take, and whether a rule names the path: the longest prefix wins."""
        for prefix, seconds in self._rules:
            if not prefix or path == prefix or path.startswith(prefix + "/"):
                return seconds, bool(prefix)
        return math.inf, False

    def overdue(self, response: Response, survives: bool) -> float:
        """The limit (s) that a response in progress has exceeded, or 0."""
        took = perf_counter() - response.request.begun
        if took < self._shortest or response.state in _ENDED:
            return 0.0
        seconds, is_named = self.limit(response.head.text)
        if took < seconds or (not is_named and (survives or _is_event_stream(response))):
            return 0.0
        return seconds

    def sweep(self, connections: Iterable[ClientConnection]) -> None:
        """End the requests that have taken too long."""
        for connection in list(connections):
            try:
                connection.end_overdue(self)
            except Exception:
                log.exception("a request could not be ended at its timeout", extra=about("internal_error"))


def is_unanswered(response: Response) -> bool:
    """Whether the client has seen nothing of it, so that it can be answered with 503."""
    return response.state is WAITING or response.state is STARTED


def report(response: Response, seconds: float) -> None:
    """Count and log a request that is about to be ended."""
    cells, request = response.worker.cells, response.request
    unanswered = is_unanswered(response)
    cells[Cell.TIMED_OUT] += 1
    if not unanswered and response.status < 500:
        cells[Cell.FAILED_WITHOUT_5XX] += 1
    method, path = request.head.method, request.path()
    request_id, trace = request.identity(), request.trace()
    log.warning(
        "%s %s%s took longer than %g s (--request-timeout): it was %s, and its call of the application cancelled",
        *(method, path, named(request_id, trace), seconds, "answered with 503" if unanswered else "cut"),
        extra=about("request_timed_out", **of_request(method, path, request_id, trace), seconds=seconds),
    )


def _is_event_stream(response: Response) -> bool:
    return response.response_header(b"content-type").lower().startswith(EVENT_STREAM)
