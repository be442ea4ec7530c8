"""The application's own metrics, over all its workers and generations (docs/guides/metrics.md).

    from serve_asgi import metrics

    ORDERS = metrics.Counter("orders", "Orders taken.", ["kind"])
    ORDERS.labels(kind="book").inc()

Names, arguments and behaviour follow prometheus_client's, so that code can move from one to the other. Counters and
histograms never go back while the server runs: not at a reload, a crash or a recycling. The server shows the sums at
--admin, under /metrics; elsewhere (under another server, in a test) they are this process's own.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Self, TypeVar, cast

from serve_asgi.app.metric_store import MetricCells, store
from serve_asgi.ipc.metric_memory import LABEL, MOST_CELLS, NAME, MetricKey

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of a histogram's buckets if it names none: prometheus_client's, for seconds."""
OURS: Final = "serve_"
"""What the names of the server's own metrics begin with."""
MODES: Final = ("sum", "max", "min", "last", "worker")

__all__ = ["DEFAULT_BUCKETS", "Counter", "Gauge", "Histogram", "exposition"]


class Around:
    """Something that is done before and after a block of code, or each call of a function, also of a coroutine's."""

    __slots__ = ("_after", "_before", "_began")

    def __init__(self, before: Callable[[], float], after: Callable[[float], None]) -> None:
        """`after` gets what `before` has returned."""
        self._before = before
        self._after = after
        self._began: list[float] = []

    def __enter__(self) -> None:
        self._began.append(self._before())

    def __exit__(self, *_: object) -> None:
        self._after(self._began.pop())

    @contextmanager
    def _once(self) -> Generator[None]:
        began = self._before()
        try:
            yield
        finally:
            self._after(began)

    def __call__(self, function: F) -> F:
        if asyncio.iscoroutinefunction(function):

            @functools.wraps(function)
            async def around_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self._once():
                    return await function(*args, **kwargs)

            return cast("F", around_coroutine)

        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            with self._once():
                return function(*args, **kwargs)

        return cast("F", around)


class ApplicationMetric:
    """What all metrics have in common: a name, a help text, and labels."""

    kind: ClassVar[str]
    _cells: MetricCells

    def __init__(self, name: str, documentation: str, labelnames: Iterable[str] = ()) -> None:
        """`labels` is needed first if there are `labelnames`. Raises ValueError for a name that cannot be."""
        if self.kind == "counter":
            name = name.removesuffix("_total")
        if not NAME.fullmatch(name) or name.startswith(OURS):
            raise ValueError(
                f"{name!r} cannot be a metric's name: letters, digits, _ and : only, and not {OURS}… at its beginning"
            )
        self.name = name
        self.documentation = documentation
        self.labelnames = tuple([labelnames] if isinstance(labelnames, str) else labelnames)
        reserved = {"le"} if self.kind == "histogram" else set()
        for each in self.labelnames:
            if not LABEL.fullmatch(each) or each.startswith("__") or each in reserved:
                raise ValueError(f"{each!r} cannot be a label's name")
        if len(set(self.labelnames)) < len(self.labelnames):
            raise ValueError(f"the metric {name} has two labels of one name")
        self._children: dict[tuple[str, ...], Self] = {}
        store.want()
        if not self.labelnames:
            self._begin(())

    def labels(self, *values: object, **named: object) -> Self:
        """The metric with these label values, in the order of the names or by name. Raises ValueError."""
        if named:
            if values:
                raise ValueError("label values are given in the order of the names, or by name, not both")
            if named.keys() != set(self.labelnames):
                raise ValueError(f"the labels of {self.name} are {', '.join(self.labelnames) or 'none'}")
            values = tuple(named[name] for name in self.labelnames)
        found = tuple([value if type(value) is str else str(value) for value in values])
        try:
            return self._children[found]
        except KeyError:
            pass
        if len(found) != len(self.labelnames) or not found or "_cells" in self.__dict__:
            raise ValueError(f"the labels of {self.name} are {', '.join(self.labelnames) or 'none'}")
        child = type(self).__new__(type(self))
        child.__dict__.update({**self.__dict__, "_children": {}})
        child._begin(tuple(zip(self.labelnames, found, strict=True)))
        return self._children.setdefault(found, child)

    def _begin(self, labels: tuple[tuple[str, str], ...]) -> None:
        self._cells = store.cells(self._key(labels))

    def _key(self, labels: tuple[tuple[str, str], ...]) -> MetricKey:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name == "_cells" and self.__dict__.get("labelnames"):
            raise ValueError(f"the metric {self.name} has labels: call labels({', '.join(self.labelnames)}) first")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class CountExceptions:
    """What `Counter.count_exceptions` returns."""

    __slots__ = ("_counter", "_exception")

    def __init__(self, counter: Counter, exception: type[BaseException] | tuple[type[BaseException], ...]) -> None:
        self._counter = counter
        self._exception = exception

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, self._exception):
            self._counter.inc()

    def __call__(self, function: F) -> F:
        if asyncio.iscoroutinefunction(function):

            @functools.wraps(function)
            async def counted_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return cast("F", counted_coroutine)

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast("F", counted)


class Counter(ApplicationMetric):
    """A number that only grows."""

    kind = "counter"

    def _key(self, labels: tuple[tuple[str, str], ...]) -> MetricKey:
        return MetricKey(self.kind, self.name, f"{self.name}_total", labels, self.documentation)

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`. Raises ValueError if it is negative."""
        if amount < 0:
            raise ValueError("a counter only grows")
        cells = self._cells
        with cells.lock:
            cells.values[cells.at] += amount

    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> CountExceptions:
        """A context manager and decorator that counts the exceptions that leave it."""
        return CountExceptions(self, exception)


class Gauge(ApplicationMetric):
    """A number that goes up and down. That of a process ends with it, unless its mode is `last`."""

    kind = "gauge"

    def __init__(self, name: str, documentation: str, labelnames: Iterable[str] = (), *, mode: str = "sum") -> None:
        """`mode` says what is shown of the living processes: their `sum`, the largest (`max`) or smallest (`min`), one
        value for each `worker`, or what was set `last`, also by one that has ended. Raises ValueError."""
        if mode not in MODES:
            raise ValueError(f"the mode of a gauge is one of {', '.join(MODES)}, not {mode!r}")
        self.mode = mode
        super().__init__(name, documentation, labelnames)

    def _key(self, labels: tuple[tuple[str, str], ...]) -> MetricKey:
        return MetricKey(self.kind, self.name, self.name, labels, self.documentation, self.mode)

    def set(self, value: float) -> None:
        """Set it."""
        self._cells.set(float(value), time.time() if self.mode == "last" else None)

    def set_to_current_time(self) -> None:
        """Set it to the current unix time."""
        self.set(time.time())

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount` to this process's value. Raises RuntimeError if its mode is `last`."""
        if self.mode == "last":
            raise RuntimeError("a gauge of which the last value counts can only be set")
        self._cells.inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Subtract `amount`. Raises RuntimeError if its mode is `last`."""
        self.inc(-amount)

    def track_inprogress(self) -> Around:
        """A context manager and decorator: 1 more while the code runs."""

        def begin() -> float:
            self.inc()
            return 0.0

        return Around(begin, lambda _: self.dec())

    def time(self) -> Around:
        """A context manager and decorator that sets it to the seconds that the code took."""
        return Around(time.perf_counter, lambda began: self.set(time.perf_counter() - began))


class Histogram(ApplicationMetric):
    """Counts of how large something was, in buckets, with their sum."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        *,
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> None:
        """`buckets` are upper bounds in increasing order; one for all that is larger is added. Raises ValueError."""
        bounds = [float(each) for each in buckets if not math.isinf(each)]
        if not bounds or bounds != sorted(set(bounds)) or len(bounds) + 2 > MOST_CELLS:
            raise ValueError("the buckets of a histogram are different numbers in increasing order")
        self.buckets = tuple(bounds)
        super().__init__(name, documentation, labelnames)

    def _key(self, labels: tuple[tuple[str, str], ...]) -> MetricKey:
        return MetricKey(self.kind, self.name, self.name, labels, self.documentation, "", self.buckets)

    def observe(self, amount: float) -> None:
        """Count `amount`."""
        self._cells.observe(bisect.bisect_left(self.buckets, amount), amount)

    def time(self) -> Around:
        """A context manager and decorator that counts the seconds that the code took."""
        return Around(time.perf_counter, lambda began: self.observe(time.perf_counter() - began))


def exposition(accept: str = "") -> tuple[bytes, str]:
    """The sums over all workers as Prometheus reads them, and their content type, for a route of the application's own.

    `accept` is the request's Accept header: OpenMetrics if it is asked for. The server shows the same at --admin.
    """
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

    class Own:
        """A collector of what this process can read."""

        def describe(self) -> Iterable[Metric]:
            return []

        def collect(self) -> Iterable[Metric]:
            for family in store.families():
                metric = Metric(family.name, family.help, family.kind)
                for name, labels, value in family.samples:
                    metric.add_sample(name, labels, value)
                yield metric

    registry = CollectorRegistry(auto_describe=False)
    registry.register(cast("Any", Own()))
    write, kind = choose_encoder(accept)
    return write(registry), kind
