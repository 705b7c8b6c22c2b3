"""What batchers do, for Prometheus and OpenTelemetry. One line switches it on, for all batchers or for one.

    ubatch.metrics.prometheus()         # then scrape prometheus_client's registry as ever
    ubatch.metrics.opentelemetry()      # metrics
    ubatch.metrics.traces()             # a span for each batch, linked to those of its callers

All times are seconds, all counts are of items or batches, and every series says which batcher it is of; batchers of one
name, as those of a method's instances, are one series. What a batcher has done is kept when it is forgotten.

How. Counts and histograms are not written by workers: they are the difference of two snapshots (`ubatch.Stats`), taken
when somebody scrapes, so callers and workers pay nothing for them. In prometheus_client's multi-process mode, in which
a scrape reads files of all processes, a thread of each process writes them every second and at exit. OpenTelemetry
has no histogram that can be read so: each batch is told to it as it comes, by the worker, once the callers are awake.

Nothing in the package imports this room, and it imports the clients where it uses them.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from bisect import bisect_left
from collections import deque
from functools import partial

from . import _native, _observing
from ._observing import batcher_of, observe
from .stats import REASONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextvars import Context
    from typing import Any, TypeAlias

    from ._observing import Batch, Observed
    from .stats import Histogram, Stats

    Reading: TypeAlias = Callable[[Stats], Iterable[tuple[int, dict[str, str]]]]
    """Values of a counter, each with attributes."""

__all__ = ["opentelemetry", "prometheus", "traces"]

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of times."""

ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of sizes."""

INTERVAL = 1.0
"""Seconds between two writes in prometheus_client's multi-process mode."""

MOST_GONE = 1000
"""Batchers that were forgotten whose last snapshots are kept until somebody scrapes; beyond, they are summed up."""

UNSERVED = ("cancelled", "dropped", "expired", "rejected")
"""Why items were never given to the handler; counts of `Stats`."""


class _Changes:
    """What the chosen batchers have done since the last look, by name. Safe to use from any thread."""

    def __init__(self) -> None:
        self.all = False  # whether all are chosen
        self.chosen: weakref.WeakSet[Observed] = weakref.WeakSet()
        self._gone: deque[tuple[int, str, Stats]] = deque()
        _observing.mourners.append(self._mourn)
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = _native.reentrant_lock()  # guards what follows
        self._seen: dict[int, Stats] = {}  # of each batcher that lives, by its number
        self._unread: dict[str, Stats] = {}  # of those that were forgotten, where there were many

    def close(self) -> None:
        """Look no more."""
        _observing.mourners.remove(self._mourn)

    def _mourn(self, batcher: Observed) -> None:
        if self.all or batcher in self.chosen:
            self._gone.append((batcher._number, batcher.name, batcher.stats))
            if len(self._gone) > MOST_GONE and not self._lock._is_owned() and self._lock.acquire(False):
                try:
                    self._bury(self._unread)
                finally:
                    self._lock.release()

    def _bury(self, changes: dict[str, Stats]) -> set[int]:
        """Add what those did that were forgotten; their numbers."""
        gone = set()
        while self._gone:
            number, name, stats = self._gone.popleft()
            gone.add(number)
            _add(changes, name, self._since(number, stats))
            del self._seen[number]
        return gone

    def _since(self, number: int, stats: Stats) -> Stats:
        before = self._seen.get(number)
        self._seen[number] = stats
        return stats if before is None else stats - before

    def look(self) -> dict[str, Stats]:
        """What was done since the last look; `queued`, `running`, `a` and `c` are those of now."""
        if self._pid != os.getpid():  # a forked child, which starts anew as its batchers do
            self._renew()
            self._gone.clear()
        with self._lock:
            changes, self._unread = self._unread, {}
            gone = self._bury(changes)
            for batcher in _observing.batchers() if self.all else list(self.chosen):
                if batcher._number not in gone:  # else it is about to be collected
                    _add(changes, batcher.name, self._since(batcher._number, batcher.stats))
            return changes


def _add(changes: dict[str, Stats], name: str, stats: Stats) -> None:
    changes[name] = changes[name] + stats if name in changes else stats


# -- Prometheus -------------------------------------------------------------------------------------------


def prometheus(batcher: Any = None, registry: Any = None) -> Callable[[], None]:
    """Let a scrape of `prometheus_client` show what batchers do. May be called once for each of several batchers.

    In its multi-process mode (`PROMETHEUS_MULTIPROC_DIR`, gunicorn with several workers) what is shown is up to a
    second old, and gauges are sums over the processes that live.

    Args:
        batcher: a `UBatch`, one of `ubatch.aio`, or a decorated function; `None` for all, those to come included.
        registry: a `prometheus_client.CollectorRegistry`; by default the one that prometheus_client uses.

    Returns:
        A function without arguments that ends it.

    Raises:
        ImportError: prometheus_client is not installed.
        TypeError: `batcher` is not as described.
        ValueError: the registry has metrics of these names already that are not ours.
    """
    from prometheus_client import REGISTRY

    target = None if batcher is None else batcher_of(batcher)
    registry = REGISTRY if registry is None else registry
    exporter = _exporters.get(registry)
    if exporter is None:
        exporter = _Exporter()
        registry.register(exporter)
        _exporters[registry] = exporter
        exporter.open()
    exporter.choose(target)
    return partial(_end, registry, exporter, target)


_exporters: weakref.WeakKeyDictionary[Any, _Exporter] = weakref.WeakKeyDictionary()


def _end(registry: Any, exporter: _Exporter, target: Observed | None) -> None:
    exporter.flush()
    if exporter.drop(target) and _exporters.get(registry) is exporter:
        del _exporters[registry]
        registry.unregister(exporter)
        exporter.close()


class _Exporter:
    """A collector, and the metrics that it brings up to date when it is asked for them."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram
        from prometheus_client.values import ValueClass

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"ubatch_{name}", text, ("batcher", *labels), registry=None)

        def gauge(name: str, text: str, mode: Any = "livesum") -> Any:
            return Gauge(f"ubatch_{name}", text, ("batcher",), registry=None, multiprocess_mode=mode)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Any:
            return Histogram(f"ubatch_{name}", text, ("batcher",), registry=None, buckets=buckets)

        self._items = counter("items", "Items given to the handler.")
        self._batches = counter("batches", "Batches given to the handler, by why they left.", "reason")
        self._errors = counter("errors", "Items given to the handler whose callers got an exception.", "type")
        self._unserved = counter("unserved_items", "Items that the handler never saw, by why.", "cause")
        self._room = counter("batch_room_items", "Items that the batches of ubatch_batch_size could have had.")
        self._queued = gauge("queued_items", "Items that wait for a worker.")
        self._running = gauge("running_items", "Items in batches that run.")
        self._batch_cost = gauge("batch_cost_seconds", "What a batch costs at least, as learned.", "livemostrecent")
        self._item_cost = gauge("item_cost_seconds", "What each item adds to it, as learned.", "livemostrecent")
        self._size = histogram("batch_size", "Items in a batch.", ITEMS)
        self._run = histogram("batch_run_seconds", "Time that the handler took for a batch.", SECONDS)
        self._wait = histogram("item_wait_seconds", "Time from an item's arrival to the handler's call.", SECONDS)
        self._metrics = [metric for metric in vars(self).values() if hasattr(metric, "collect")]
        self._is_shared: bool = ValueClass._multiprocess
        self._changes = _Changes()
        self._names: set[str] = set()
        self._renew()

    def _renew(self) -> None:
        self._lock = _native.reentrant_lock()  # guards the writing of the metrics
        self._stopped = _native.allocate_lock()  # released to end the thread
        self._stopped.acquire()
        self._disarm: Callable[[], None] | None = None

    # -- which batchers -----------------------------------------------------------------------------------

    def choose(self, target: Observed | None) -> None:
        """Show this batcher; `None` for all."""
        if target is None:
            self._changes.all = True
        else:
            self._changes.chosen.add(target)

    def drop(self, target: Observed | None) -> bool:
        """Show it no more; whether there is none left."""
        if target is None:
            self._changes.all = False
        else:
            self._changes.chosen.discard(target)
        return not self._changes.all and not self._changes.chosen

    # -- writing ------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Any]:
        """Called by the registry that is scraped."""
        self.flush()
        for metric in self._metrics:
            yield from metric.collect()

    def describe(self) -> Iterator[Any]:
        """Called by the registry to know the names."""
        for metric in self._metrics:
            yield from metric.describe()

    def flush(self) -> None:
        """Bring the metrics up to date."""
        with self._lock:
            changes = self._changes.look()
            for name in self._names - changes.keys():
                self._queued.labels(name).set(0)
                self._running.labels(name).set(0)
            self._names |= changes.keys()
            for name, stats in changes.items():
                self._write(name, stats)

    def _write(self, name: str, stats: Stats) -> None:
        self._items.labels(name).inc(stats.items)
        self._room.labels(name).inc(stats.room)
        for reason in REASONS:
            self._batches.labels(name, reason).inc(getattr(stats, reason))
        for cause in UNSERVED:
            self._unserved.labels(name, cause).inc(getattr(stats, cause))
        for kind, count in stats.error_types:
            self._errors.labels(name, kind).inc(count)
        self._queued.labels(name).set(stats.queued)
        self._running.labels(name).set(stats.running)
        self._batch_cost.labels(name).set(stats.a)
        self._item_cost.labels(name).set(stats.c)
        _add_all(self._size.labels(name), stats.size)
        _add_all(self._run.labels(name), stats.run)
        _add_all(self._wait.labels(name), stats.wait)

    # -- where a scrape reads files: a thread of each process that has batches ------------------------------

    def open(self) -> None:
        """It is registered."""
        if self._is_shared:
            atexit.register(self.flush)
            self._arm()

    def close(self) -> None:
        """It is registered no more."""
        self._changes.close()
        if self._is_shared:
            atexit.unregister(self.flush)
            if self._disarm is not None:
                self._disarm()
            self._disarm = None
            self._stopped.release()
        self._is_shared = False

    def _arm(self) -> None:
        self._disarm = observe(self._begin)

    def _begin(self, _: Batch) -> None:
        """The first batch of this process: begin to write, and look at no other."""
        if self._disarm is not None:
            self._disarm()
            self._disarm = None
            _native.start_thread("ubatch-metrics", partial(self._keep_writing, [True], self._stopped))

    def _keep_writing(self, begin: list[bool], stopped: Any) -> None:
        try:
            begin.pop()
        except IndexError:  # started twice
            return
        while not stopped.acquire(True, INTERVAL):
            self.flush()

    # -- forking: the client's locks are not to be held by a thread that the child does not have ------------

    def pause(self) -> None:
        """Write nothing until `resume`; wait for what is being written."""
        self._lock.acquire()

    def resume(self) -> None:
        """Go on."""
        self._lock.release()

    def reopen(self) -> None:
        """In the child: its thread comes with its first batch."""
        disarm = self._disarm
        self._renew()
        if self._is_shared:
            if disarm is not None:
                disarm()
            self._arm()


_paused: list[_Exporter] = []  # while there is a fork


def _before_fork() -> None:
    for exporter in list(_exporters.values()):
        exporter.pause()
        _paused.append(exporter)


def _forked_in_parent() -> None:
    while _paused:
        _paused.pop().resume()


def _forked_in_child() -> None:
    while _paused:
        _paused.pop().reopen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_forked_in_parent, after_in_child=_forked_in_child)


def _add_all(child: Any, histogram: Histogram) -> None:
    """Add many values at once to a histogram of prometheus_client, which can but take one at a time."""
    counts = [0] * len(child._buckets)
    for value, count in histogram.buckets:
        counts[bisect_left(child._upper_bounds, value)] += count
    for bucket, count in zip(child._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    child._sum.inc(histogram.sum)


# -- OpenTelemetry ----------------------------------------------------------------------------------------


def opentelemetry(batcher: Any = None, meter_provider: Any = None) -> Callable[[], None]:
    """Let OpenTelemetry measure what batchers do; see `prometheus`.

    Sizes, run times and waits are histograms, to which each value is told by the worker, once the callers are awake:
    some microseconds for each item. A view that drops `ubatch.item.wait_time` takes off the most of it.

    Args:
        batcher: as of `prometheus`.
        meter_provider: by default the global one.

    Returns:
        A function without arguments that ends it.

    Raises:
        ImportError: opentelemetry-api is not installed.
        TypeError: `batcher` is not as described.
    """
    from opentelemetry import metrics

    meters = _Meters(metrics.get_meter("ubatch", meter_provider=meter_provider))
    if batcher is None:
        meters.changes.all = True
    else:
        meters.changes.chosen.add(batcher_of(batcher))
    end = observe(meters, batcher)

    def stop() -> None:
        end()
        meters.close()

    return stop


class _Meters:
    """Instruments, and the observer that feeds those that cannot be read."""

    def __init__(self, meter: Any) -> None:
        from opentelemetry.metrics import Observation

        self.changes = _Changes()
        self._is_open = True
        self._observation = Observation
        self._totals: dict[str, Stats] = {}
        self._size = meter.create_histogram("ubatch.batch.size", "{item}", "Items in a batch.")
        self._run = meter.create_histogram("ubatch.batch.duration", "s", "Time that the handler took for a batch.")
        self._wait = meter.create_histogram(
            "ubatch.item.wait_time", "s", "Time from an item's arrival to the handler's call."
        )

        def counter(name: str, read: Reading, unit: str, text: str) -> None:
            meter.create_observable_counter(name, [partial(self._read, read)], unit, text)

        counter("ubatch.items", lambda s: [(s.items, {})], "{item}", "Items given to the handler.")
        counter(
            "ubatch.batches",
            lambda s: [(getattr(s, reason), {"ubatch.batch.reason": reason}) for reason in REASONS],
            "{batch}",
            "Batches given to the handler, by why they left.",
        )
        counter(
            "ubatch.errors",
            lambda s: [(count, {"error.type": kind}) for kind, count in s.error_types],
            "{item}",
            "Items given to the handler whose callers got an exception.",
        )
        counter(
            "ubatch.unserved_items",
            lambda s: [(getattr(s, cause), {"ubatch.cause": cause}) for cause in UNSERVED],
            "{item}",
            "Items that the handler never saw, by why.",
        )
        for name, text in ("queued", "Items that wait for a worker."), ("running", "Items in batches that run."):
            meter.create_observable_up_down_counter(
                f"ubatch.items.{name}", [partial(self._read_present, name)], "{item}", text
            )

    def close(self) -> None:
        """Instruments cannot be taken back, but be silent."""
        if self._is_open:
            self._is_open = False
            self.changes.close()

    def _look(self) -> dict[str, Stats]:
        changes = self.changes.look() if self._is_open else {}
        for name, stats in changes.items():
            _add(self._totals, name, stats)
        return changes

    def _read(self, read: Reading, _: object) -> Iterator[Any]:
        self._look()
        for name, stats in self._totals.items() if self._is_open else ():
            for value, attributes in read(stats):
                yield self._observation(value, {"ubatch.batcher.name": name, **attributes})

    def _read_present(self, what: str, _: object) -> Iterator[Any]:
        for name, stats in self._look().items():
            yield self._observation(getattr(stats, what), {"ubatch.batcher.name": name})

    def __call__(self, batch: Batch) -> None:
        attributes = {"ubatch.batcher.name": batch.batcher}
        self._size.record(batch.size, attributes)
        self._run.record(batch.duration, attributes)
        for wait in batch.waits:
            self._wait.record(wait, attributes)


def traces(batcher: Any = None, tracer_provider: Any = None) -> Callable[[], None]:
    """Let OpenTelemetry trace batches.

    A batch is a span of its own trace, "batch NAME", linked to the spans of all its callers, as a batch has no parent:
    it serves many requests. It is the current span while the handler runs, so what the handler does is traced below it.
    For each item whose caller has a span that is sampled, the caller's trace gets a span "item NAME", from the item's
    arrival to the handler's return, linked to the batch. Spans begin and end in the worker; all but the batch's
    beginning is done once the callers are awake.

    Args:
        batcher: as of `prometheus`.
        tracer_provider: by default the global one.

    Returns, Raises:
        As `opentelemetry`.
    """
    from opentelemetry import trace

    return observe(_Tracer(trace.get_tracer("ubatch", tracer_provider=tracer_provider)), batcher)


class _Tracer:
    """An observer that is told of the beginning of batches, too; see `_observing`."""

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer

    def begin(self, batcher: str, contexts: Sequence[Context | None]) -> _Span:
        return _Span(self.tracer, batcher, contexts)


class _Span:
    """The span of a batch."""

    def __init__(self, tracer: Any, batcher: str, contexts: Sequence[Context | None]) -> None:
        from opentelemetry import context, trace

        self._tracer = tracer
        self._batcher = batcher
        self._contexts = contexts
        attributes = {"ubatch.batcher.name": batcher, "ubatch.batch.size": len(contexts)}
        callers = [one.run(trace.get_current_span).get_span_context() if one is not None else None for one in contexts]
        self._callers = [caller if caller is not None and caller.is_valid else None for caller in callers]
        distinct = {
            (one.trace_id, one.span_id): one for one in self._callers if one is not None
        }  # a `map` has many items
        links = [trace.Link(caller) for caller in distinct.values()]
        self._began = time.time_ns()
        self._span = tracer.start_span(
            f"batch {batcher}", context.Context(), links=links, attributes=attributes, start_time=self._began
        )
        self._returned = self._began
        self._token = context.attach(trace.set_span_in_context(self._span))

    def leave(self) -> None:
        """See `_observing`."""
        from opentelemetry import context

        self._returned = time.time_ns()
        context.detach(self._token)

    def end(self, batch: Batch | None) -> None:
        """See `_observing`."""
        from opentelemetry.trace import Link, Status, StatusCode

        span = self._span
        if batch is None:
            span.set_status(Status(StatusCode.ERROR, "given up by stop()"))
        else:
            span.set_attribute("ubatch.batch.reason", batch.reason)
            if batch.error is not None:
                span.set_attribute("ubatch.batch.errors", batch.errors)
                span.set_attribute("error.type", type(batch.error).__qualname__)
                span.record_exception(batch.error)
                span.set_status(Status(StatusCode.ERROR))
            link = [Link(span.get_span_context())]
            for context, caller, wait in zip(self._contexts, self._callers, batch.waits, strict=True):
                if context is not None and caller is not None and caller.trace_flags.sampled:
                    context.run(self._item, link, wait).end(end_time=self._returned)
        span.end(end_time=self._returned)

    def _item(self, links: list[Any], wait: float) -> Any:
        """The span of one item, in its caller's context."""
        return self._tracer.start_span(
            f"item {self._batcher}",
            links=links,
            attributes={"ubatch.batcher.name": self._batcher, "ubatch.item.wait_time": wait},
            start_time=self._began - int(wait * 1e9),
        )
