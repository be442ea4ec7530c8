"""The application's metrics in one process: as prometheus_client's, before and after there is a memory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_asgi import metrics
from serve_asgi.app import metric_store
from serve_asgi.app.metric_store import MetricStore
from serve_asgi.ipc import metric_memory


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> MetricStore:
    """A store for each test."""
    fresh = MetricStore()
    monkeypatch.setattr(metrics, "store", fresh)
    monkeypatch.setattr(metric_store, "store", fresh)
    return fresh


def shown() -> dict[str, float]:
    text, kind = metrics.exposition()
    assert kind.startswith("text/plain")
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def lend(store: MetricStore, series: int = 100, life: int = 1) -> int:
    fd = metric_memory.create(series)
    store.begin(series, life, lambda: {life: 0})
    store.take(os.dup(fd))
    return fd


def test_without_a_server_they_are_the_process_s_own() -> None:
    hits = metrics.Counter("hits_total", "Hits.", ["path", "status"])
    hits.labels("/", 200).inc()
    hits.labels(status="200", path="/").inc(2)
    took = metrics.Histogram("took", "Took.", buckets=[1, 2, float("inf")])
    for amount in (0.5, 1, 1.5, 7):
        took.observe(amount)
    busy = metrics.Gauge("busy", "Busy.")
    busy.set(4)
    busy.dec()
    assert shown() == {
        "hits_total,path=/,status=200": 3,
        "took_bucket,le=1.0": 2,
        "took_bucket,le=2.0": 3,
        "took_bucket,le=+Inf": 4,
        "took_count": 4,
        "took_sum": 10,
        "busy": 3,
    }


def test_what_was_counted_before_there_is_a_memory_goes_along(store: MetricStore) -> None:
    hits = metrics.Counter("hits", "Hits.")
    last = metrics.Gauge("last", "Last.", mode="last")
    hits.inc(2)
    last.set(7)
    lend(store)
    hits.inc()
    assert shown() == {"hits_total": 3, "last": 7}


@pytest.mark.parametrize("before", [True, False])
def test_a_memory_is_asked_for_once_and_only_by_who_has_metrics(store: MetricStore, before: bool) -> None:
    """A metric with labels asks before there is a value, so that the memory is there when the first request counts."""
    asked: list[int] = []

    async def ask() -> None:
        store.begin(100, 1, dict)
        if before:  # in a template that workers are forked from
            metrics.Counter("early", "Early.", ["path"])
        store.ask_in(asyncio.get_running_loop(), lambda: asked.append(1))
        await asyncio.sleep(0)
        assert len(asked) == before
        with ThreadPoolExecutor() as pool:
            pool.submit(metrics.Counter, "late", "Late.", ["path"]).result()
        await asyncio.sleep(0)
        metrics.Counter("later", "Later.").inc()
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert asked == [1]
    metrics.Counter("after_the_loop", "After.").inc()


def test_without_its_memory_a_process_counts_for_itself(store: MetricStore, caplog: pytest.LogCaptureFixture) -> None:
    store.begin(100, 1, dict)
    metrics.Counter("hits", "Hits.").inc(2)
    store.take(None)
    store.take(metric_memory.create(1))
    assert shown() == {"hits_total": 2}
    assert [record.message for record in caplog.records if "no memory for them" in record.message]


def test_the_next_process_goes_on(store: MetricStore) -> None:
    fd = lend(store)
    metrics.Counter("hits", "Hits.").inc(2)
    metrics.Gauge("last", "Last.", mode="last").set(7)
    metrics.Gauge("busy", "Busy.").set(5)
    following = MetricStore()
    following.begin(100, 2, lambda: {2: 0})
    following.take(os.dup(fd))
    metrics.store = following  # type: ignore[attr-defined]
    hits, busy = metrics.Counter("hits", "Hits."), metrics.Gauge("busy", "Busy.")
    metrics.Gauge("last", "Last.", mode="last")
    hits.inc()
    assert hits._cells.get() == 1
    assert shown() == {"hits_total": 3, "last": 7, "busy": 0}
    busy.inc()
    assert shown()["busy"] == 1


def test_a_series_without_room_works_and_is_told_of_once(store: MetricStore, caplog: pytest.LogCaptureFixture) -> None:
    lend(store, series=1)
    hits = metrics.Counter("hits", "Hits.", ["id"])
    for number in range(3):
        hits.labels(number).inc()
    assert shown() == {"hits_total,id=0": 1}
    assert [record.message for record in caplog.records if "--metrics-series" in record.message] == [
        "the metric hits with the labels {'id': '1'} is not in the sums over all workers, nor are further ones: there "
        "is no room for more time series; use labels with fewer values, or raise --metrics-series"
    ]


def test_decorators_and_blocks() -> None:
    took, busy = metrics.Histogram("took", "Took."), metrics.Gauge("busy", "Busy.")
    failed = metrics.Counter("failed", "Failed.")
    seen = []

    @took.time()
    @busy.track_inprogress()
    async def work() -> None:
        await asyncio.sleep(0)
        seen.append(busy._cells.get())

    @failed.count_exceptions(KeyError)
    def fail(error: Exception) -> None:
        raise error

    async def both() -> None:
        await asyncio.gather(work(), work())

    asyncio.run(both())
    for error in (KeyError(), ValueError()):
        with pytest.raises(type(error)):
            fail(error)
    with busy.time():
        pass
    assert max(seen) == 2
    assert shown()["took_count"] == 2
    assert shown()["failed_total"] == 1
    assert shown()["busy"] < 1


def test_threads_lose_nothing(store: MetricStore) -> None:
    lend(store)
    hits = metrics.Counter("hits", "Hits.", ["who"])

    def count() -> None:
        for _ in range(2000):
            hits.labels("all").inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert shown() == {"hits_total,who=all": 8000}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: metrics.Counter("a b", ""), "'a b' cannot be a metric's name"),
        (lambda: metrics.Counter("serve_requests", ""), "not serve_… at its beginning"),
        (lambda: metrics.Counter("a", "", ["b-c"]), "'b-c' cannot be a label's name"),
        (lambda: metrics.Histogram("a", "", ["le"]), "'le' cannot be a label's name"),
        (lambda: metrics.Counter("a", "", ["b", "b"]), "two labels of one name"),
        (lambda: metrics.Gauge("a", "", mode="livesum"), "one of sum, max, min, last, worker"),
        (lambda: metrics.Histogram("a", "", buckets=[2, 1]), "increasing order"),
        (lambda: metrics.Histogram("a", "", buckets=[]), "increasing order"),
        (lambda: metrics.Counter("a", "").inc(-1), "only grows"),
        (lambda: metrics.Counter("a", "", ["b"]).inc(), "has labels: call labels\\(b\\) first"),
        (lambda: metrics.Counter("a", "", ["b"]).labels(), "the labels of a are b"),
        (lambda: metrics.Counter("a", "", ["b"]).labels(c=1), "the labels of a are b"),
        (lambda: metrics.Counter("a", "", ["b"]).labels(1, b=1), "not both"),
        (lambda: metrics.Counter("a", "").labels("x"), "the labels of a are none"),
    ],
)
def test_mistakes_are_sentences(make: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()  # type: ignore[operator]


def test_openmetrics_where_it_is_asked_for() -> None:
    metrics.Counter("hits", "Hits.").inc()
    text, kind = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_prometheus_client_is_imported_by_nobody_else() -> None:
    code = "import sys; from serve_asgi import metrics; metrics.Counter('a', 'a').inc(); "
    code += "print('prometheus_client' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
