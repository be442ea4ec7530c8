"""The usual formats of the access log: common, combined and JSON, one line per request.

A line is assembled from cached texts: the request's part is cached with its head (which equal requests share), as are
repeated clients, statuses, sizes and durations; the time is rendered once per second. So all escaping, without which a
request could forge lines, is done when such a text is rendered, and is free for repeated requests. It knows nothing of
protocols.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve_asgi.config.options import Config
from serve_asgi.logs import server_log as logs
from serve_asgi.logs.access_log import (
    MILLISECONDS,
    NOBODY,
    AccessLog,
    LoggedRequest,
    LoggedResponse,
    RefusedRequest,
    ServerResponse,
    TextCache,
    common_time,
    complain,
    escape,
    seconds,
    to_json,
)
from serve_asgi.logs.access_log_format import CustomLog, compile_format
from serve_asgi.logs.request_ids import RequestIds, traceparent

if TYPE_CHECKING:
    from serve_asgi.ipc.peer_address import Address

__all__ = ["AccessLog", "LoggedResponse", "RefusedRequest", "ServerResponse", "open_access_log"]


class CommonLog(AccessLog):
    """The NCSA common log format, and the duration in seconds as a last field."""

    __slots__ = ("_clients", "_durations", "_sizes", "_stamp", "_statuses")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._stamp = ""
        self._clients = TextCache[str](escape)
        self._statuses = TextCache[int](lambda status: f'" {status} ')  # with the closing quote of the request
        self._sizes = TextCache[int](lambda size: f"{size or '-'} ")
        self._durations = TextCache[int](lambda microseconds: seconds(microseconds) + "\n")

    def record(
        self,
        client: Address,
        request: LoggedRequest,
        status: int,
        size: int,
        begun: float,
        response: LoggedResponse = NOBODY,
    ) -> None:
        """See AccessLog."""
        try:
            now = time.perf_counter()
            if now >= self._until:
                self._new_second(now)
            before, after = request.logged or self._describe(request)
            line = (
                f"{self._clients[client[0]] if client else '-'}{self._stamp}{before}{self._statuses[status]}"
                f"{self._sizes[size]}{after}{self._durations[int((now - begun) * 1e6)]}"
            )
            # Inlined `_add`.
            self._lines.append(line)
            self._held += len(line)
            if self._held >= self._flush_at:
                self.flush()
        except Exception:
            complain()

    def _describe(self, request: LoggedRequest) -> tuple[str, str]:
        """The texts before and after status and size."""
        said = f"{request.method} {str(request.target, 'latin-1')} HTTP/{request.version}"
        if not said.isascii() or not said.isprintable() or '"' in said or "\\" in said:
            said = escape(said)
        request.logged = logged = said, self._further(request)
        return logged

    def _further(self, request: LoggedRequest) -> str:
        return ""

    def _new_second(self, now: float) -> None:
        wall = time.time()
        self._until = now + 1.0 - wall % 1.0
        self._stamp = f' - - {common_time(wall)} "'


class CombinedLog(CommonLog):
    """Apache's combined format: the common one with Referer and User-Agent; the duration comes last."""

    __slots__ = ()

    def _further(self, request: LoggedRequest) -> str:
        referer, agent = _two_headers(request.headers)
        return f'"{escape(referer) or "-"}" "{escape(agent) or "-"}" '


class JsonLog(AccessLog):
    """One JSON object per line, with the time in UTC (RFC 3339)."""

    __slots__ = ("_clients", "_durations", "_end", "_ids", "_since", "_sizes", "_stamp", "_statuses")

    def __init__(self, config: Config, generation: int, slot: int) -> None:
        super().__init__(config)
        self._stamp = ""
        self._since = 0.0
        self._ids = RequestIds(config)
        self._end = f'"generation":{generation},"slot":{slot},"pid":{os.getpid()}}}\n'
        self._clients = TextCache[str](to_json)
        self._statuses = TextCache[int](lambda status: f'"status":{status},')
        self._sizes = TextCache[int](lambda size: f'"size":{size},')
        self._durations = TextCache[int](lambda microseconds: f'"seconds":{seconds(microseconds)},')

    def record(
        self,
        client: Address,
        request: LoggedRequest,
        status: int,
        size: int,
        begun: float,
        response: LoggedResponse = NOBODY,
    ) -> None:
        """See AccessLog."""
        try:
            now = time.perf_counter()
            if now >= self._until:
                self._new_second(now)
            before, after = request.logged or self._describe(request)
            milliseconds = MILLISECONDS[min(int((now - self._since) * 1000), 999)]
            self._add(
                f'{self._stamp}{milliseconds}Z","client":{self._clients[client[0]] if client else "null"}{before}'
                f"{self._statuses[status]}{self._sizes[size]}{self._durations[int((now - begun) * 1e6)]}{after}"
            )
        except Exception:
            complain()

    def _describe(self, request: LoggedRequest) -> tuple[str, str]:
        target = to_json(str(request.target, "latin-1"))
        referer, agent = _two_headers(request.headers)
        request_id, trace = self._ids.carried(request.headers), traceparent(request.headers)
        request.logged = logged = (
            f',"method":{to_json(request.method)},"target":{target},"version":{to_json(request.version)},',
            f'"referer":{to_json(referer or None)},"user_agent":{to_json(agent or None)},'
            f'"request_id":{to_json(request_id or None)},"traceparent":{to_json(trace or None)},{self._end}',
        )
        return logged

    def _new_second(self, now: float) -> None:
        wall = time.time()
        self._since = now - wall % 1.0
        self._until = self._since + 1.0
        self._stamp = time.strftime('{"time":"%Y-%m-%dT%H:%M:%S.', time.gmtime(wall))


JSON_FIELDS = (
    "json:time,client,method,target,version,status,size,seconds,referer,user_agent,request_id,traceparent,"
    "generation,slot,pid"
)
"""The fields that JsonLog writes."""


def _two_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, str]:
    referer = agent = b""
    for name, value in headers:
        if name == b"referer":
            referer = value
        elif name == b"user-agent":
            agent = value
    return referer.decode("latin-1"), agent.decode("latin-1")


def open_access_log(config: Config, generation: int = 0, slot: int = 0) -> AccessLog | None:
    """The access log that `config` asks for, or None; `generation` and `slot` are the worker's.

    Raises UsageError if its file cannot be opened, ValueError for an unknown format.
    """
    if not config.access_log:
        return None
    wanted = config.access_log_format
    if wanted == "auto":
        wanted = "json" if logs.as_json(config.log_format, config.access_log_file, 1) else "common"
    if wanted == "common":
        return CommonLog(config)
    if wanted == "combined":
        return CombinedLog(config)
    if wanted == "json":
        if not RequestIds(config).generates:
            return JsonLog(config, generation, slot)
        wanted = JSON_FIELDS  # the id is not part of the head, which equal requests share
    return CustomLog(config, compile_format(wanted), generation, slot)
