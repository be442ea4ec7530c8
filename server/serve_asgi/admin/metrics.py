"""The metrics, as prometheus_client's collector: created from the view for each scrape (docs/guides/metrics.md).

Rules: names and units follow Prometheus' conventions; counters come from the scoreboard's totals or from the listener,
so that they never decrease over a reload, a crash or a recycling, nor when this process is replaced. Labels have few
values: slots, not processes or generations.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from serve_asgi.admin.app_metrics import ApplicationCollector
from serve_asgi.admin.open_files import open_files
from serve_asgi.admin.scoreboard_totals import (
    DURATIONS,
    STREAM_DURATIONS,
    STREAM_FIRST,
    WEBSOCKET_ACCEPTS,
    WEBSOCKET_DURATIONS,
    ScoreboardReading,
    Words,
)
from serve_asgi.admin.server_view import ServerView
from serve_asgi.hub.core import METRICS
from serve_asgi.ipc.lifecycle_states import OPEN_DEPLOYS, DeployOutcome, ServerState, WorkerState
from serve_asgi.ipc.scoreboard import DURATION_BOUNDS, NO_SLOT, STREAM_BOUNDS, WEBSOCKET_BOUNDS, Cell

NANO: Final = 1e9
CLASSES: Final = (Cell.STATUS_1XX, Cell.STATUS_2XX, Cell.STATUS_3XX, Cell.STATUS_4XX, Cell.STATUS_5XX)
CAUSES: Final = ("crash", "recycle", "blocked", "scale")
OUTCOMES: Final = ("done", "refused", "rolled_back")
LIVING: Final = tuple(state.value for state in WorkerState if state not in (WorkerState.PENDING, WorkerState.GONE))

SIMPLE: Final = (
    ("serve_requests", Cell.REQUESTS, "Requests completed or cut; health checks are not counted."),
    (
        "serve_requests_refused",
        Cell.REFUSED,
        "Requests that the server answered itself: malformed, or more than --max-concurrency.",
    ),
    ("serve_requests_timed_out", Cell.TIMED_OUT, "Requests that took longer than --request-timeout."),
    ("serve_connections_accepted", Cell.ACCEPTED, "Connections accepted from the kernel."),
    (
        "serve_connections_handed_over",
        Cell.HANDED_OVER,
        "Open connections that a retiring worker handed over to another.",
    ),
    ("serve_connections_taken_over", Cell.TAKEN_OVER, "Open connections that a worker took over from a retiring one."),
    ("serve_websockets_opened", Cell.WEBSOCKETS_OPENED, "WebSocket handshakes that the application accepted."),
    ("serve_survived", Cell.SURVIVED, "Calls of the application that went on with a connection which another had."),
    (
        "serve_not_survived",
        Cell.NOT_SURVIVED,
        "Connections that were to survive, and were ended as their worker retired.",
    ),
    (
        "serve_http2_connections",
        Cell.HTTP2_CONNECTIONS,
        "HTTP/2 connections begun; one that is handed over counts once.",
    ),
    ("serve_http2_streams", Cell.HTTP2_STREAMS, "Requests begun on HTTP/2 connections."),
    ("serve_http2_resets_received", Cell.HTTP2_RESETS_RECEIVED, "HTTP/2 streams that clients reset."),
    ("serve_http2_resets_sent", Cell.HTTP2_RESETS_SENT, "HTTP/2 streams that the server reset."),
    (
        "serve_http2_faults",
        Cell.HTTP2_FAULTS,
        "HTTP/2 connections that were ended because the client broke the protocol or a limit.",
    ),
    ("serve_http2_moved", Cell.HTTP2_MOVED, "HTTP/2 connections that a retiring worker handed over to another."),
    (
        "serve_http2_goaways",
        Cell.HTTP2_GOAWAYS,
        "HTTP/2 connections whose client had to open another because their worker retired.",
    ),
    ("serve_received_bytes", Cell.BYTES_RECEIVED, "Bytes received from clients; of TLS, its content."),
    ("serve_sent_bytes", Cell.BYTES_SENT, "Bytes written to clients; of TLS, its content."),
    (
        "serve_log_dropped_bytes",
        Cell.DROPPED_OUTPUT,
        "Bytes of the workers' output that nobody read in time, or that a full disk did not take.",
    ),
)
"""Counters of the whole server: name, word, meaning."""

OF_TLS: Final = (
    ("serve_tls_resumed", Cell.TLS_RESUMED, "TLS handshakes that resumed a session."),
    ("serve_tls_failed", Cell.TLS_FAILED, "TLS handshakes that failed, or were ended by a limit."),
    ("serve_tls_not_moved", Cell.TLS_NOT_MOVED, "TLS 1.2 connections that were closed because their worker retired."),
)
TLS_VERSIONS: Final = {"1.3": Cell.TLS_1_3, "1.2": Cell.TLS_1_2}
TLS_CIPHERS: Final = {
    "AES128-GCM": Cell.TLS_AES_128,
    "AES256-GCM": Cell.TLS_AES_256,
    "CHACHA20-POLY1305": Cell.TLS_CHACHA20,
}


class ServerCollector(Collector):
    """All metrics of one server."""

    def __init__(self, view: ServerView) -> None:
        self._view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing is known beforehand: registering must not collect."""
        return []

    def collect(self) -> Iterable[Metric]:
        reading = self._view.reading()
        return itertools.chain(
            self._server(reading),
            self._traffic(reading),
            self._tls(reading.total),
            self._slots(reading),
            self._certificates(),
            self._reloads(),
            self._queues(),
            self._hub(),
        )

    def _server(self, reading: ScoreboardReading) -> Iterator[Metric]:
        about, state = self._view.about, self._view.state
        build = {"version": about["version"], "python": about["python"]}
        yield InfoMetricFamily("serve_build", "The server and the interpreter of its listener.", build)
        yield gauge("serve_start_time_seconds", "When the server was started, in unix time.", about["started"])
        current = GaugeMetricFamily("serve_state", "1 for the state that the server is in.", labels=["state"])
        for each in ServerState:
            current.add_metric([each.value], state["state"] == each.value)
        yield current
        yield gauge("serve_generation", "The serving generation.", state["generation"])
        yield gauge(
            "serve_generations",
            "Generations that have a live process.",
            len({w["generation"] for w in state["workers"]}),
        )
        yield gauge(
            "serve_draining", "1 while the node drains (the health endpoint fails).", bool(reading.draining_since)
        )
        yield gauge("serve_workers_wanted", "The number of workers that should run.", state["size"])
        workers = GaugeMetricFamily("serve_workers", "Live workers by state.", labels=["state"])
        for name in LIVING:
            workers.add_metric([name], sum(each["state"] == name for each in state["workers"]))
        yield workers
        if (active := self._view.agent_active()) is not None:
            yield gauge("serve_agent_active", "1 while an agent is active.", active)
            returned = self._view.agent_returned()
            yield gauge("serve_agent_returned", "1 while its process is alive and its function has returned.", returned)
        restarts = CounterMetricFamily(
            "serve_worker_restarts", "Workers started other than those of a new generation.", labels=["cause"]
        )
        for cause in CAUSES:
            restarts.add_metric([cause], state["restarts"].get(cause, 0))
        yield restarts
        if (listener := self._view.listener()) is not None:
            yield counter("serve_listener_cpu_seconds", "Processor time of the listener.", listener[0])
            yield gauge("serve_listener_resident_memory_bytes", "Resident memory of the listener.", listener[1])
        if templates := state.get("templates"):
            resident = GaugeMetricFamily(
                "serve_template_resident_memory_bytes",
                "Resident memory of a generation's template, most of which its workers share.",
                labels=["generation"],
            )
            for each in templates:
                resident.add_metric([str(each["generation"])], each["rss"])
            yield resident

    def _traffic(self, reading: ScoreboardReading) -> Iterator[Metric]:
        total = reading.total
        for name, cell, meaning in SIMPLE:
            yield counter(name, meaning, total[cell])
        responses = CounterMetricFamily("serve_responses", "Responses by the class of their status.", labels=["class"])
        for number, cell in enumerate(CLASSES, start=1):
            responses.add_metric([f"{number}xx"], total[cell])
        yield responses
        yield from durations(total)
        connections = GaugeMetricFamily(
            "serve_connections",
            "Open client connections: idle between requests, active with a request, or a WebSocket.",
            labels=["state"],
        )
        for name, number in connections_by_state(reading).items():
            connections.add_metric([name], number)
        yield connections
        yield gauge("serve_requests_in_flight", "Requests in progress.", reading.gauge(Cell.IN_FLIGHT))
        yield gauge(
            "serve_oldest_request_seconds", "For how long the oldest request has been in progress.", oldest(reading)
        )
        lost = "Requests and WebSockets that were cut at the graceful timeout, or were in flight in a worker that died."
        yield counter("serve_requests_lost", lost, self._view.state["lost"])

    def _certificates(self) -> Iterator[Metric]:
        if certificates := self._view.state.get("certificates"):
            left = GaugeMetricFamily(
                "serve_tls_certificate_expiry_seconds",
                "Time until a certificate expires, negative if it has.",
                labels=["name", "file"],
            )
            for name, path, end in certificates:
                left.add_metric([name, path], end - time.time())
            yield left

    def _tls(self, total: Words) -> Iterator[Metric]:
        versions = CounterMetricFamily("serve_tls_handshakes", "TLS handshakes by version.", labels=["version"])
        for version, cell in TLS_VERSIONS.items():
            versions.add_metric([version], total[cell])
        ciphers = CounterMetricFamily("serve_tls_ciphers", "TLS handshakes by cipher.", labels=["cipher"])
        for cipher, cell in TLS_CIPHERS.items():
            ciphers.add_metric([cipher], total[cell])
        yield from (versions, ciphers)
        for name, cell, meaning in OF_TLS:
            yield counter(name, meaning, total[cell])

    def _named(self, slot: int) -> str:
        """The label of a slot; the agent fills none, and its counts are in the last totals."""
        last = self._view.slots - 1
        return "agent" if slot == NO_SLOT or slot == last >= self._view.state["size"] else str(slot)

    def _slots(self, reading: ScoreboardReading) -> Iterator[Metric]:
        requests = CounterMetricFamily("serve_slot_requests", "Requests by the slot of their worker.", labels=["slot"])
        cpu = CounterMetricFamily("serve_worker_cpu_seconds", "Processor time of the slot's workers.", labels=["slot"])
        late = CounterMetricFamily(
            "serve_event_loop_lag_seconds", "Total time by which the event loop's ticks were late.", labels=["slot"]
        )
        blocked = CounterMetricFamily(
            "serve_event_loop_blocked", "Times that the event loop was blocked beyond --block-warning.", labels=["slot"]
        )
        for slot, words in reading.slots.items():
            requests.add_metric([self._named(slot)], words[Cell.REQUESTS])
            cpu.add_metric([self._named(slot)], words[Cell.CPU] / NANO)
            late.add_metric([self._named(slot)], words[Cell.LAG_TOTAL] / NANO)
            blocked.add_metric([self._named(slot)], words[Cell.BLOCKED])
        yield from (requests, cpu, late, blocked)
        yield from self._gauges_of_slots(reading)

    def _gauges_of_slots(self, reading: ScoreboardReading) -> Iterator[Metric]:
        state = self._view.state
        memory = GaugeMetricFamily(
            "serve_worker_resident_memory_bytes", "Resident memory of the slot's processes.", labels=["slot"]
        )
        lag = GaugeMetricFamily(
            "serve_event_loop_lag_worst_seconds",
            "The largest delay of a tick in the last ten seconds.",
            labels=["slot"],
        )
        silent = GaugeMetricFamily(
            "serve_event_loop_silent_seconds",
            "Time since the last tick of the event loop; up to one second is normal.",
            labels=["slot"],
        )
        degraded = GaugeMetricFamily(
            "serve_slot_degraded", "1 while the slot has no serving worker because its workers die.", labels=["slot"]
        )
        files = GaugeMetricFamily("serve_open_files", "Open file descriptors of the slot's worker.", labels=["slot"])
        most = GaugeMetricFamily(
            "serve_open_files_limit", "How many it may have (RLIMIT_NOFILE, getrlimit(2)).", labels=["slot"]
        )
        living: dict[int, list[Words]] = {}
        for words in reading.rows.values():
            living.setdefault(words[Cell.SLOT], []).append(words)
        for slot, rows in sorted(living.items()):
            memory.add_metric([self._named(slot)], sum(words[Cell.RSS] for words in rows))
            lag.add_metric([self._named(slot)], max(words[Cell.LAG_WORST] for words in rows) / NANO)
            silent.add_metric([self._named(slot)], max(silence(words, reading.at) for words in rows))
            if found := [each for words in rows if (each := open_files(words[Cell.PID])) is not None]:
                number, limit = max(found, key=lambda each: each[0] / each[1])
                files.add_metric([self._named(slot)], number)
                most.add_metric([self._named(slot)], limit)
        for slot in range(state["size"]):
            degraded.add_metric([str(slot)], slot in state["degraded"])
        yield from (memory, lag, silent, degraded, files, most)

    def _reloads(self) -> Iterator[Metric]:
        state = self._view.state
        reloads = CounterMetricFamily(
            "serve_reloads", "Reloads and roll-backs that ended, by outcome.", labels=["outcome"]
        )
        seconds = SummaryMetricFamily("serve_reload_duration_seconds", "How long reloads took.", labels=["outcome"])
        for outcome in OUTCOMES:
            count = state["reloads"].get(outcome, 0)
            reloads.add_metric([outcome], count)
            seconds.add_metric([outcome], count, state["reload_seconds"].get(outcome, 0.0))
        yield from (reloads, seconds)
        deploys = CounterMetricFamily(
            "serve_deploys", "Deploys that ended, the start of the server too, by outcome.", labels=["outcome"]
        )
        for ended in DeployOutcome:
            if ended not in OPEN_DEPLOYS:
                deploys.add_metric([ended.value], state.get("deploy_outcomes", {}).get(ended.value, 0))
        yield deploys
        yield from self._canary()
        last = self._view.reloads[-1] if self._view.reloads else None
        refused = last is not None and last["outcome"] == "refused"
        yield gauge("serve_last_reload_successful", "0 if the last reload was refused.", not refused)
        if last is not None:
            yield gauge("serve_last_reload_timestamp_seconds", "When the last reload ended, in unix time.", last["at"])
            yield gauge(
                "serve_last_reload_duration_seconds", "How long the last reload took.", last.get("seconds", 0.0)
            )

    def _canary(self) -> Iterator[Metric]:
        """The trial under way; without one the requests are absent."""
        canary = self._view.state.get("canary")
        share = canary["share"] if canary else 0
        yield gauge("serve_canary_share", "Share of the traffic of the canary that is on trial; 0 if none is.", share)
        requests = GaugeMetricFamily("serve_canary_requests", "Requests since the trial began.", labels=["side"])
        errors = GaugeMetricFamily("serve_canary_errors", "Of these, requests that failed.", labels=["side"])
        for side in ("canary", "current"):
            if canary and side in canary:
                requests.add_metric([side], canary[side]["requests"])
                errors.add_metric([side], canary[side]["errors"])
        yield from (requests, errors)

    def _hub(self) -> Iterator[Metric]:
        """Messages, shared state and schedules, as the listener counts them."""
        if (connected := self._view.state.get("store_connected")) is not None:
            yield gauge(
                "serve_state_connected", "1 while the store of the shared state takes reads and writes.", connected
            )
        figures = self._view.state.get("hub", {})
        for name, meaning in METRICS.items():
            make = counter if name.endswith("_total") else gauge
            yield make(f"serve_{name.removesuffix('_total')}", meaning, figures.get(name, 0))

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("serve_accept_queue", "Clients waiting to be accepted.", labels=["listening"])
        limit = GaugeMetricFamily("serve_accept_queue_limit", "How many may wait (--backlog).", labels=["listening"])
        for name, (now, most) in self._view.queues().items():
            waiting.add_metric([name], now)
            limit.add_metric([name], most)
        yield from (waiting, limit)


def registry(view: ServerView) -> CollectorRegistry:
    """The registry that prometheus_client renders for a scrape."""
    made = CollectorRegistry(auto_describe=False)
    made.register(ServerCollector(view))
    made.register(ApplicationCollector(view.metrics))
    return made


def gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value)


def counter(name: str, meaning: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, meaning, value)


def durations(total: Words) -> Iterator[HistogramMetricFamily]:
    """The histograms of how long requests, streams and WebSockets took."""
    yield _histogram(
        "serve_request_duration_seconds",
        "From the end of a request's head to the end of its response, without streams.",
        *(DURATION_BOUNDS, total[DURATIONS], total[Cell.DURATION_TOTAL]),
    )
    yield _histogram(
        "serve_stream_first_byte_seconds",
        "Streams that have ended: from the end of a request's head to the first byte of its body.",
        *(DURATION_BOUNDS, total[STREAM_FIRST], total[Cell.STREAM_FIRST_TOTAL]),
    )
    yield _histogram(
        "serve_stream_duration_seconds",
        "Streams that have ended: from the end of a request's head to the end of its response.",
        *(STREAM_BOUNDS, total[STREAM_DURATIONS], total[Cell.STREAM_TIME_TOTAL]),
    )
    yield _histogram(
        "serve_websocket_accept_seconds",
        "WebSockets that were accepted: from the end of a request's head until the application accepted.",
        *(DURATION_BOUNDS, total[WEBSOCKET_ACCEPTS], total[Cell.WEBSOCKET_ACCEPT_TOTAL]),
    )
    yield _histogram(
        "serve_websocket_duration_seconds",
        "WebSockets that have ended: for how long they were open, over all workers that had them.",
        *(WEBSOCKET_BOUNDS, total[WEBSOCKET_DURATIONS], total[Cell.WEBSOCKET_TIME_TOTAL]),
    )


def _histogram(
    name: str, meaning: str, bounds: Sequence[float], counts: Sequence[int], nanoseconds: int
) -> HistogramMetricFamily:
    added = itertools.accumulate(counts)
    named = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    buckets = [(bound, float(count)) for bound, count in zip(named, added, strict=True)]
    return HistogramMetricFamily(name, meaning, buckets, nanoseconds / NANO)


def connections_by_state(reading: ScoreboardReading) -> dict[str, int]:
    """The numbers of idle and active connections, and of WebSockets."""
    sockets = active = idle = 0
    for words in reading.rows.values():
        others = max(0, words[Cell.CONNECTIONS] - words[Cell.WEBSOCKETS])
        sockets += words[Cell.WEBSOCKETS]
        busy = min(
            words[Cell.IN_FLIGHT], others
        )  # an application may continue after its response, or after its client has gone
        active += busy
        idle += others - busy
    return {"idle": idle, "active": active, "websocket": sockets}


def oldest(reading: ScoreboardReading) -> float:
    """For how long (s) the oldest request has been in progress; 0 if there is none."""
    began = [words[Cell.OLDEST] for words in reading.rows.values() if words[Cell.OLDEST]]
    return max(0.0, reading.at - min(began) / NANO) if began else 0.0


def silence(words: Words, now: float) -> float:
    """Time (s) since the last tick of a worker's loop; 0 before its first tick."""
    return max(0.0, now - words[Cell.HEARTBEAT] / NANO) if words[Cell.HEARTBEAT] else 0.0
