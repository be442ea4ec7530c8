"""Has prometheus_client count in this process's memory of metrics, so that what it shows are sums over all workers.

prometheus_client takes the class of its values from `prometheus_client.values.ValueClass` when a metric is created
(0.26 and every release since 0.4). It is replaced right after that module has run, by a finder on `sys.meta_path`,
so that processes whose application does not use prometheus_client do not import it; where the application has set
PROMETHEUS_MULTIPROC_DIR, which is the library's own way to the same end, nothing is replaced. `collect` of its metrics
is replaced as well, and a collector added to the default registry for metrics that only other workers have created so
far: a route of the application's own that shows that registry then has the same sums, whichever worker answers.

What is computed when it is read (`Gauge.set_function`, Info, Enum, collectors) stays as it is: of one process.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from serve_asgi.app.metric_store import store
from serve_asgi.ipc.metric_memory import KINDS, MetricKey

MULTIPROCESS_MODES: Final = {"": "", "all": "worker", "mostrecent": "last"}
"""prometheus_client's modes of a gauge that have another name here; of ended processes only `last` is shown."""
VARIABLES: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
CREATED: Final[set[str]] = set()
"""The metrics of which prometheus_client has created a value in this process, for whichever registry."""


class SharedValue:
    """A value of a metric, as prometheus_client calls it (`MutexValue` in prometheus_client/values.py)."""

    _multiprocess = False

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        mode = multiprocess_mode.removeprefix("live")
        labels = tuple((str(label), str(value)) for label, value in zip(labelnames, labelvalues, strict=True))
        cells = store.cells(MetricKey(typ, metric_name, name, labels, help_text, MULTIPROCESS_MODES.get(mode, mode)))
        self.inc = cells.inc
        self.set = cells.set
        self.get = cells.get
        self._exemplar: Any = None
        CREATED.add(metric_name)

    def set_exemplar(self, exemplar: Any) -> None:
        """Remembered, and shown by no sum."""
        self._exemplar = exemplar

    def get_exemplar(self) -> Any:
        return self._exemplar


class ElsewhereCollector:
    """The metrics that this process does not have in a registry of prometheus_client: those that other workers have
    created already, and those of `serve_asgi.metrics`."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def describe(self) -> Iterable[Any]:
        """Nothing is known beforehand: registering must not collect."""
        return []

    def collect(self) -> Iterable[Any]:
        from prometheus_client.metrics_core import Metric

        here = CREATED | set(getattr(self._registry, "_names_to_collectors", ()))
        for family in store.families():
            if family.name not in here:
                metric = Metric(family.name, family.help, family.kind)
                for name, labels, value in family.samples:
                    metric.add_sample(name, labels, value)
                yield metric


class _Loader(importlib.abc.Loader):
    """The module's own loader, and what follows it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        ADAPTED[module.__name__](module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that are adapted, each once, and leaves the rest to others."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in ADAPTED:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """Adapt prometheus_client as soon as the application imports it; before the application is imported."""
    if any(os.environ.get(variable) for variable in VARIABLES) or "prometheus_client" in sys.modules:
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _adapt_values(module: Any) -> None:
    module.ValueClass = SharedValue
    store.want()


def _adapt_registry(module: Any) -> None:
    module.REGISTRY.register(ElsewhereCollector(module.REGISTRY))


def _adapt_metrics(module: Any) -> None:
    """Have a metric show the sums over all processes where there are some."""
    base = module.MetricWrapperBase
    alone = base.collect

    def collect(self: Any) -> Iterable[Any]:
        if self._type not in KINDS or _computed(self) or (family := store.family(self._name)) is None:
            found: Iterable[Any] = alone(self)
            return found
        metric = self._get_metric()
        if family.kind == self._type:
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
        return [metric]

    base.collect = collect


def _computed(metric: Any) -> bool:
    """Whether a gauge's value is computed when it is read (`set_function`)."""
    children = getattr(metric, "_metrics", None) or {}
    return any("_child_samples" in vars(each) for each in (metric, *list(children.values())))


ADAPTED: Final = {
    "prometheus_client.values": _adapt_values,
    "prometheus_client.metrics": _adapt_metrics,
    "prometheus_client.registry": _adapt_registry,
}
