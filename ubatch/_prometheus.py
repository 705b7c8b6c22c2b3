"""Batchers as metrics of `prometheus_client`. See `metrics`.

Workers write nothing: what was done since the last look (`_changes`) is added to the metrics when they are scraped. In
the client's multi-process mode a scrape reads files of all processes, whatever the registry; there a thread, which a
process begins with its first batch, writes every second, and so does the process at its end.

The client's histograms take one value at a time, which is too slow for each item; so many are added at once to the
parts that they are made of, as `observe` does. A test holds that these add up.

Guarantee: while there is a fork none of ours is within the client, whose locks would stay closed in the child.
"""

from __future__ import annotations

import os
import sys
import weakref
from bisect import bisect_left
from functools import partial

from . import _native, _observing
from ._changes import ITEMS, SECONDS, UNSERVED, Changes
from ._log import report_once
from ._observing import Exporter, batchers_of, lock, observe
from .stats import REASONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._observing import Batch
    from ._process_stats import ChildStats, ProcessStats
    from .stats import Histogram, Stats

INTERVAL = 1.0
"""Seconds between two writes in the multi-process mode."""


def prometheus(batcher: Any = None, registry: Any = None) -> Callable[[], None]:
    """Let a scrape of `prometheus_client` show what batchers do.

    May be called for several batchers, one after another, and by several who do not know of each other: what any of
    them wants is shown, once, until the last has ended it. What a batcher did before is shown, too. In the client's
    multi-process mode (`PROMETHEUS_MULTIPROC_DIR`, gunicorn with several workers) what is shown is up to a second old,
    and gauges are sums over the processes that live.

    Args:
        batcher: a `UBatch`, one of `ubatch.aio`, a decorated function, or a `Flow` for all its steps; `None` for all
            batchers, those to come included.
        registry: a `prometheus_client.CollectorRegistry`; by default the one that prometheus_client uses. In the
            multi-process mode it does not matter: what a `MultiProcessCollector` finds is in no other registry.

    Returns:
        A function without arguments that ends it. It may be called again.

    Raises:
        ImportError: prometheus_client is not installed.
        TypeError: an argument is not as described; the message has its value.
        ValueError: the registry has metrics of these names already that are not ours.
    """
    from prometheus_client import REGISTRY
    from prometheus_client.values import ValueClass

    chosen = batchers_of(batcher)
    registry = REGISTRY if registry is None else registry
    if not callable(getattr(registry, "register", None)):
        raise TypeError(f"registry must be a CollectorRegistry of prometheus_client, not {registry!r}")
    place, make = (ValueClass, _Files) if ValueClass._multiprocess else (registry, _Collector)
    with lock():
        exporter = _exporters.get(place)
        if exporter is None:
            exporter = _exporters[place] = make(place)
    return exporter.add(chosen)


_exporters: weakref.WeakKeyDictionary[Any, _Exporter] = weakref.WeakKeyDictionary()
"""Of each registry, which they do not hold; or the one that writes files."""

_writing = _native.reentrant_lock()  # guards the metrics of all exporters: it is short, and a fork waits for it


class _Exporter(Exporter):
    """Metrics, which `flush` brings up to date."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"ubatch_{name}", text, ("batcher", *labels), registry=None)

        def gauge(name: str, text: str, *labels: str, mode: Any = "livesum") -> Any:
            return Gauge(f"ubatch_{name}", text, ("batcher", *labels), registry=None, multiprocess_mode=mode)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Any:
            return Histogram(f"ubatch_{name}", text, ("batcher",), registry=None, buckets=buckets)

        self._items = counter("items", "Items given to the handler.")
        self._batches = counter("batches", "Batches given to the handler, by why they left.", "reason")
        self._errors = counter("errors", "Items given to the handler whose callers got an exception.", "type")
        self._unserved = counter("unserved_items", "Items that the handler never saw, by why.", "cause")
        self._room = counter("batch_room_items", "Items that the batches of ubatch_batch_size could have had.")
        self._queued = gauge("queued_items", "Items that wait for a worker.")
        self._running = gauge("running_items", "Items in batches that run.")
        self._batch_cost = gauge(
            "batch_cost_seconds", "What a batch costs at least, as learned.", mode="livemostrecent"
        )
        self._item_cost = gauge("item_cost_seconds", "What each item adds to it, as learned.", mode="livemostrecent")
        self._size = histogram("batch_size", "Items in a batch.", ITEMS)
        self._run = histogram("batch_run_seconds", "Time that the handler took for a batch.", SECONDS)
        self._wait = histogram("item_wait_seconds", "Time from an item's arrival to the handler's call.", SECONDS)
        # of child processes, where handlers run in these
        self._deaths = counter("process_deaths", "Child processes that died.")
        self._payload = counter("process_payload_bytes", "Bytes to and from child processes.", "direction")
        self._buffers = counter("process_buffers", "Arrays and such to and from child processes, by how.", "way")
        self._transfer = histogram("process_transfer_seconds", "Time of a call beside the handler itself.", SECONDS)
        self._handling = histogram("process_handling_seconds", "Time that the handler took there.", SECONDS)
        self._up = gauge("process_up", "Whether a child process is there; in multi-process mode how many.", "child")
        self._memory = gauge("process_memory_bytes", "Resident memory of a child process.", "child")
        self._metrics = [metric for metric in vars(self).values() if hasattr(metric, "collect")]
        self._changes = Changes(self)
        self._names: set[str] = set()
        self._children: dict[str, int] = {}  # places for child processes that were shown, by batcher

    def flush(self) -> None:
        """See `Exporter`. Does nothing in a signal handler that has come upon one."""
        if _writing._is_owned():
            return
        with _writing:
            changes = self._changes.look()
            for name in self._names - changes.keys():
                self._queued.labels(name).set(0)
                self._running.labels(name).set(0)
                self._show_children(name, ())
            self._names |= changes.keys()
            for name, stats in changes.items():
                self._write(name, stats)
        self._changes.complain()

    def reopen(self) -> None:
        """In a forked child."""

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
        if stats.processes is not None:
            self._write_processes(name, stats.processes)

    def _write_processes(self, name: str, stats: ProcessStats) -> None:
        self._deaths.labels(name).inc(stats.died)
        for direction in ("sent", "received"):
            self._payload.labels(name, direction).inc(getattr(stats, direction))
        for way in ("copied", "passed"):
            self._buffers.labels(name, way).inc(getattr(stats, way))
        _add_all(self._transfer.labels(name), stats.transfer)
        _add_all(self._handling.labels(name), stats.handling)
        self._show_children(name, stats.children)

    def _show_children(self, name: str, children: Sequence[ChildStats]) -> None:
        """Of each place, from 0; those that are no more are down."""
        known = self._children.get(name, 0)
        for place in range(max(known, len(children))):
            child = children[place] if place < len(children) else None
            self._up.labels(name, place).set(child is not None and child.alive)
            self._memory.labels(name, place).set(0 if child is None else child.memory)
        self._children[name] = max(known, len(children))


class _Collector(_Exporter):
    """What a registry asks for metrics."""

    def __init__(self, registry: Any) -> None:
        super().__init__()
        self._registry = weakref.ref(registry)

    def open(self) -> None:
        """See `Exporter`. Raises ValueError: the names are taken."""
        registry = self._registry()
        if registry is not None:
            registry.register(self)

    def close(self) -> None:
        """See `Exporter`."""
        registry = self._registry()
        if registry is not None:
            try:
                registry.unregister(self)
            except KeyError:  # somebody else has taken it out
                pass

    def collect(self) -> list[Any]:
        """Called by the registry that is scraped."""
        self.flush()
        with _writing:
            return [family for metric in self._metrics for family in metric.collect()]

    def describe(self) -> list[Any]:
        """Called by the registry to know the names."""
        return [family for metric in self._metrics for family in metric.describe()]


class _Files(_Exporter):
    """What writes the files of a process, which are one for all registries, and so is this."""

    def __init__(self, _: object) -> None:
        from multiprocessing.util import register_after_fork

        super().__init__()
        self._renew()
        _observing.last.append(self._try)
        self._finalize()
        register_after_fork(self, _Files._finalize)

    def _renew(self) -> None:
        self._stopped = _closed_lock()  # released to end the thread
        self._disarm: Callable[[], None] | None = None

    def _finalize(self) -> None:
        """See to it that a child of multiprocessing writes at its end, where nothing of `atexit` is done."""
        from multiprocessing.util import Finalize

        Finalize(None, self._try, exitpriority=-sys.maxsize)

    def open(self) -> None:
        """See `Exporter`."""
        self._disarm = observe(self._begin)

    def close(self) -> None:
        """See `Exporter`."""
        if self._disarm is not None:
            self._disarm()
        self._disarm = None
        self._stopped.release()
        self._stopped = _closed_lock()  # a thread that is about to end has the former

    def _begin(self, _: Batch) -> None:
        """The first batch of this process: begin to write, and look at no other."""
        stopped = self._stopped  # before the look at _disarm: `close` may have both changed at any moment
        disarm, self._disarm = self._disarm, None
        if disarm is None:
            return
        try:
            _native.start_thread("ubatch-metrics", partial(self._keep_writing, [True], stopped))
        except RuntimeError:  # a limit of the system: the next batch may do it. Or the interpreter exits
            self._disarm = disarm
            if stopped is self._stopped:
                return
        disarm()

    def _keep_writing(self, begin: list[bool], stopped: Any) -> None:
        try:
            begin.pop()
        except IndexError:  # started twice
            return
        while not stopped.acquire(True, INTERVAL):
            self._try()

    def _try(self) -> None:
        """Write; what hinders it, as a folder that is not there any more, is told once."""
        try:
            self.flush()
        except Exception as error:
            report_once("metrics", "%s could not be written for prometheus_client; this is told once", error=error)

    def reopen(self) -> None:
        """In a forked child: its thread comes with its first batch."""
        disarm = self._disarm
        self._renew()
        if disarm is not None:
            disarm()
        if self.is_wanted:
            self.open()


def _before_fork() -> None:
    _writing.acquire()  # a thread that the child does not have holds no lock of the client then


def _forked_in_parent() -> None:
    _writing.release()


def _forked_in_child() -> None:
    global _writing
    _writing = _native.reentrant_lock()
    for exporter in list(_exporters.values()):
        exporter.reopen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_forked_in_parent, after_in_child=_forked_in_child)


def _closed_lock() -> Any:
    lock = _native.allocate_lock()
    lock.acquire()
    return lock


def _add_all(child: Any, histogram: Histogram) -> None:
    """Add many values at once to a histogram of prometheus_client, which can but take one at a time."""
    counts = [0] * len(child._buckets)
    for value, count in histogram.buckets:
        counts[bisect_left(child._upper_bounds, value)] += count
    for bucket, count in zip(child._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    child._sum.inc(histogram.sum)
