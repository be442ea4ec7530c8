"""The application's own metrics, as prometheus_client's collector: the sums over all memories (docs/guides/metrics.md).

A metric whose name is one of the server's own (`serve_…`) is left out: a page with two of one name cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve_asgi.ipc.metric_totals import MetricTotals

OURS: Final = "serve_"


class ApplicationCollector(Collector):
    """All metrics that the application has in memories."""

    def __init__(self, totals: MetricTotals) -> None:
        self._totals = totals

    def describe(self) -> Iterable[Metric]:
        """Nothing is known beforehand: registering must not collect."""
        return []

    def collect(self) -> Iterable[Metric]:
        readers = self._totals.readers.values()
        families = self._totals.families()
        if not families:
            return
        series = max(reader.series for reader in readers)
        yield GaugeMetricFamily(
            "serve_application_series",
            "Time series in the application's metrics of the process that has most (--metrics-series).",
            series,
        )
        yield CounterMetricFamily(
            "serve_application_series_refused",
            "Time series of the application's metrics for which there was no room (--metrics-series).",
            sum(reader.refused for reader in readers),
        )
        for family in families:
            if not family.name.startswith(OURS):
                metric = Metric(family.name, family.help, family.kind)
                for name, labels, value in family.samples:
                    metric.add_sample(name, labels, value)
                yield metric
