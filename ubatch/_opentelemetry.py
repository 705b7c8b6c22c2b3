"""Batchers as instruments of OpenTelemetry, and as spans. See `metrics`.

Counters are read from snapshots when they are collected (`_changes`), all of a collection's from the same. There is no
histogram that can be read so: each value is told to it, by the worker, once the callers are awake.
"""

from __future__ import annotations

import time
import weakref
from functools import partial

from ._changes import ITEMS, SECONDS, UNSERVED, Changes
from ._observing import Exporter, batchers_of, lock
from ._typing import Generic, TypeVar
from .stats import REASONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextvars import Context
    from typing import Any, TypeAlias

    from ._observing import Batch
    from .stats import Stats

    Reading: TypeAlias = Callable[[Stats], Iterable[tuple[float, dict[str, str]]]]
    """Values of a counter, each with attributes."""

E = TypeVar("E", bound=Exporter)


def opentelemetry(batcher: Any = None, meter_provider: Any = None) -> Callable[[], None]:
    """Let OpenTelemetry measure what batchers do; see `prometheus`.

    Counters have what a batcher did before this was called, too, and if it was ended for a while, what was done
    meanwhile; histograms have what was done since.

    Sizes, run times and waits are histograms, to which each value is told by the worker, once the callers are awake:
    some microseconds for each item. A view that drops `ubatch.item.wait_time` takes off the most of it.

    Args:
        batcher: as of `prometheus`.
        meter_provider: by default the global one, which may be set later.

    Returns:
        A function without arguments that ends it. It may be called again.

    Raises:
        ImportError: opentelemetry-api is not installed.
        TypeError: an argument is not as described; the message has its value.
    """
    from opentelemetry import metrics

    chosen = batchers_of(batcher)
    _check_provider("meter_provider", meter_provider, "get_meter")
    with lock():
        meters = _measuring.exporter(meter_provider, metrics.get_meter_provider(), _Meters)
    return meters.add(chosen)


def _check_provider(name: str, given: Any, method: str) -> None:
    if given is not None and not callable(getattr(given, method, None)):
        raise TypeError(f"{name} must have a method {method}, as a provider of OpenTelemetry has, not {given!r}")


class _Exporters(Generic[E]):
    """One exporter for each provider, made when it is first asked for.

    Neither a provider nor an exporter is kept alive from here. An exporter of metrics is kept by its provider, whose
    instruments have its callbacks; one that batches are told to is also kept by those who tell it.
    """

    def __init__(self) -> None:
        self._made: weakref.WeakKeyDictionary[Any, weakref.ref[E]] = weakref.WeakKeyDictionary()
        self._early: Callable[[], E | None] = _nothing  # that for the global provider, made before this was set

    def exporter(self, given: Any, current: Any, make: Callable[[Any], E]) -> E:
        """That of the given provider, or of the global one, which is now `current`. Called with the lock held."""
        provider = current if given is None else given
        exporter = self._made.get(provider, _nothing)()
        if exporter is None and provider is current:
            exporter = self._early()
        if exporter is None:
            exporter = make(provider)
            self._made[provider] = found = weakref.ref(exporter)
            if "Proxy" in type(provider).__name__:  # it stands for the one that will be set
                self._early = found
        return exporter


def _nothing() -> None:
    return None


class _Meters(Exporter):
    """Instruments, and the observer that feeds those that cannot be read."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.metrics import Observation

        meter = provider.get_meter("ubatch")
        self._changes = Changes(self)
        self._observation = Observation
        self._present: dict[str, Stats] = {}  # what this collection's look has brought
        self._readers: set[str] = set()  # the instruments that have read it

        def histogram(name: str, bounds: Sequence[float], unit: str, text: str) -> Any:
            try:
                return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)
            except TypeError:  # a provider that knows of no advice
                return meter.create_histogram(name, unit, text)

        self._size = histogram("ubatch.batch.size", ITEMS, "{item}", "Items in a batch.")
        self._run = histogram("ubatch.batch.duration", SECONDS, "s", "Time that the handler took for a batch.")
        self._wait = histogram(
            "ubatch.item.wait_time", SECONDS, "s", "Time from an item's arrival to the handler's call."
        )

        def counter(name: str, read: Reading, unit: str, text: str) -> None:
            meter.create_observable_counter(name, [partial(self._read, name, read)], unit, text)

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
        # of child processes, where handlers run in these
        counter(
            "ubatch.process.deaths",
            lambda s: [(s.processes.died, {})] if s.processes else [],
            "{process}",
            "Child processes that died.",
        )
        counter(
            "ubatch.process.payload",
            lambda s: [(getattr(s.processes, way), {"ubatch.direction": way}) for way in _WAYS if s.processes],
            "By",
            "Bytes to and from child processes.",
        )
        for name, text in (
            ("transfer", "Time of calls of child processes, beside the handler itself."),
            ("handling", "Time that the handler took there."),
        ):
            counter(f"ubatch.process.{name}_time", partial(_time, name), "s", text)
        for name, unit, text in (
            ("up", "{process}", "Whether a child process is there."),
            ("memory", "By", "Resident memory of a child process."),
        ):
            meter.create_observable_gauge(f"ubatch.process.{name}", [partial(self._read_children, name)], unit, text)
        for name, text in ("queued", "Items that wait for a worker."), ("running", "Items in batches that run."):
            meter.create_observable_up_down_counter(
                f"ubatch.items.{name}", [partial(self._read_present, name)], "{item}", text
            )

    def flush(self) -> None:
        """See `Exporter`."""
        self._changes.look()
        self._changes.complain()

    def _look(self, reader: str) -> dict[str, Stats]:
        """The present, as of this collection: it asks each instrument once, so one that comes again begins another."""
        if reader in self._readers or not self._readers:
            self._present = self._changes.look()
            self._readers.clear()
            self._changes.complain()
        self._readers.add(reader)
        return self._present

    def _read(self, reader: str, read: Reading, _: object) -> Iterator[Any]:
        self._look(reader)
        for name, stats in self._changes.totals.items() if self.is_wanted else ():  # instruments cannot be taken back
            for value, attributes in read(stats):
                yield self._observation(value, {"ubatch.batcher.name": name, **attributes})

    def _read_present(self, what: str, _: object) -> Iterator[Any]:
        for name, stats in self._look(what).items():
            yield self._observation(getattr(stats, what), {"ubatch.batcher.name": name})

    def _read_children(self, what: str, _: object) -> Iterator[Any]:
        for name, stats in self._look(what).items():
            for place, child in enumerate(stats.processes.children if stats.processes is not None else ()):
                value = int(child.alive) if what == "up" else child.memory
                yield self._observation(value, {"ubatch.batcher.name": name, "ubatch.process.place": place})

    def __call__(self, batch: Batch) -> None:
        attributes = {"ubatch.batcher.name": batch.batcher}
        self._size.record(batch.size, attributes)
        self._run.record(batch.duration, attributes)
        for wait in batch.waits:
            self._wait.record(wait, attributes)


_WAYS = ("sent", "received")


def _time(name: str, stats: Stats) -> list[tuple[float, dict[str, str]]]:
    return [] if stats.processes is None else [(getattr(stats.processes, name).sum, {})]


def traces(batcher: Any = None, tracer_provider: Any = None) -> Callable[[], None]:
    """Let OpenTelemetry trace batches.

    A batch is a span of its own trace, "batch NAME", linked to the spans of all its callers, as a batch has no parent:
    it serves many requests. It is the current span while the handler runs, so what the handler does is traced below it.
    For each item whose caller has a span that is sampled, the caller's trace gets a span "item NAME", from the item's
    arrival to the handler's return, linked to the batch. Spans begin and end in the worker; all but the batch's
    beginning is done once the callers are awake.

    Args:
        batcher: as of `prometheus`.
        tracer_provider: by default the global one, which may be set later.

    Returns, Raises:
        As `opentelemetry`.
    """
    from opentelemetry import trace

    chosen = batchers_of(batcher)
    _check_provider("tracer_provider", tracer_provider, "get_tracer")
    with lock():
        tracer = _tracing.exporter(tracer_provider, trace.get_tracer_provider(), _Tracer)
    return tracer.add(chosen)


class _Tracer(Exporter):
    """An observer that is told of the beginning of batches, too; see `_observing`."""

    def __init__(self, provider: Any) -> None:
        self.tracer = provider.get_tracer("ubatch")

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
        try:
            if batch is None:
                span.set_status(Status(StatusCode.ERROR, "given up by stop()"))
                return
            span.set_attribute("ubatch.batch.reason", batch.reason)
            link = [Link(span.get_span_context())]
            for context, caller, wait in zip(self._contexts, self._callers, batch.waits, strict=True):
                if context is not None and caller is not None and caller.trace_flags.sampled:
                    context.run(self._item, link, wait).end(end_time=self._returned)
            if batch.error is not None:
                span.set_attribute("ubatch.batch.errors", batch.errors)
                span.set_attribute("error.type", type(batch.error).__qualname__)
                span.set_status(Status(StatusCode.ERROR))
                span.record_exception(batch.error)  # at last: it asks the exception for its text
        finally:
            span.end(end_time=self._returned)

    def _item(self, links: list[Any], wait: float) -> Any:
        """The span of one item, in its caller's context."""
        return self._tracer.start_span(
            f"item {self._batcher}",
            links=links,
            attributes={"ubatch.batcher.name": self._batcher, "ubatch.item.wait_time": wait},
            start_time=self._began - int(wait * 1e9),
        )


_measuring: _Exporters[_Meters] = _Exporters()
_tracing: _Exporters[_Tracer] = _Exporters()
