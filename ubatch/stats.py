"""Counters of a batcher and the frozen snapshot of them that its users see.

Pure: no thread, lock or clock. A batcher has two sets of counters, so that the worker counts without a lock: its
own, and one for what others count under a lock. Sizes and times are in `_recorder`.
"""

from __future__ import annotations

from math import ceil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

REASONS = ("full", "window", "gathered", "burst", "deadline", "idle", "drained")
"""Why batches leave."""

MOST_TYPES = 64
"""Errors are counted under their types' names, as long as there are no more; then as "others"."""


class _Frozen:
    """A value that cannot be changed: what its slots hold is given once."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: {name}")

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self._values())


def _restored(kind: type[_Frozen], values: dict[str, Any]) -> _Frozen:
    return kind(**values)


class Histogram(_Frozen):
    """How many of which value there were; it cannot be changed. Histograms can be added and subtracted.

    Times are within 1/16 of the truth, sizes exact below 256 and within 1/128 from there on; `sum`, and so the mean,
    is exact. However many values there are, a histogram has at most 8 (of sizes: 128) different ones in each power
    of two.

    Args:
        buckets: pairs of a value and how often it was, in ascending order of the values.
        sum: of all values.
    """

    __slots__ = ("buckets", "sum")

    buckets: tuple[tuple[float, int], ...]
    """Pairs of a value and how often it was, in ascending order of the values."""
    sum: float
    """Of all values."""

    def __init__(self, buckets: Iterable[tuple[float, int]] = (), sum: float = 0) -> None:
        super().__init__(buckets=tuple(buckets), sum=sum)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(count for _, count in self.buckets)

    @property
    def mean(self) -> float:
        """Their mean; 0.0 if there were none."""
        return self.sum / self.count if self.buckets else 0.0

    def quantile(self, q: float) -> float:
        """The least value that a share `q` of all does not exceed; 0.0 if there were none.

        Args:
            q: from 0 (the smallest value) to 1 (the largest).

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be between 0 and 1, not {q!r}")
        wanted = max(1, ceil(q * self.count - 1e-9))
        for value, count in self.buckets:
            wanted -= count
            if wanted <= 0:
                return value
        return 0.0

    @property
    def p50(self) -> float:
        """The median."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """What nine in ten do not exceed."""
        return self.quantile(0.9)

    @property
    def p99(self) -> float:
        """What 99 in a hundred do not exceed."""
        return self.quantile(0.99)

    def asdict(self) -> dict[str, float]:
        """Count, mean and percentiles by name."""
        return {name: getattr(self, name) for name in ("count", "mean", "p50", "p90", "p99")}

    def __add__(self, other: Histogram) -> Histogram:
        """The values of both."""
        counts = dict(self.buckets)
        for value, count in other.buckets:
            counts[value] = counts.get(value, 0) + count
        return Histogram(sorted(counts.items()), self.sum + other.sum)

    def __sub__(self, other: Histogram) -> Histogram:
        """The values of this one without those of `other`. Raises ValueError: it has others."""
        counts = dict(self.buckets)
        for value, count in other.buckets:
            counts[value] = counts.get(value, 0) - count
        if min(counts.values(), default=0) < 0:
            raise ValueError("a histogram can be taken from a later one of the same values alone")
        left = [(value, count) for value, count in sorted(counts.items()) if count]
        return Histogram(left, max(self.sum - other.sum, 0) if left else 0)

    def __repr__(self) -> str:
        return f"Histogram({', '.join(f'{name}={value:.4g}' for name, value in self.asdict().items())})"


class Stats(_Frozen):
    """What a batcher has done since it was made, at one moment; it cannot be changed.

    Taking a snapshot blocks nobody; its numbers are read one after another, so while items are in flight
    they can differ by those that moved meanwhile. No number but `queued`, `running`, `a` and `c` ever goes down.

    `after - before`, two snapshots of one batcher, is what it did between them, with `queued`, `running`, `a` and `c`
    as they were at the end. `one + other` is what two batchers did, `a` and `c` those of the busier one.
    """

    __slots__ = (
        "a",
        "c",
        "cancelled",
        "dropped",
        "error_types",
        "expired",
        "items",
        "queued",
        "rejected",
        "room",
        "run",
        "running",
        "size",
        "wait",
        *REASONS,
    )

    queued: int
    """Items that wait for a worker."""
    running: int
    """Items in a batch that the handler has not returned yet."""
    items: int
    """Items given to the handler, those of running batches included."""
    error_types: tuple[tuple[str, int], ...]
    """Items given to the handler whose callers got an exception: pairs of its type's name and their number."""
    cancelled: int
    """Items that their callers left before a worker took them; the handler never saw them."""
    expired: int
    """Items whose deadline passed before a worker took them; the handler never saw them."""
    rejected: int
    """Items that were not accepted, as the queue was full."""
    dropped: int
    """Items given up by `stop()` or with a dead worker before the handler saw them."""

    full: int
    """Batches that left because `max_size` items were there, or as many as memory is known to bear (`isolate`)."""
    window: int
    """Batches that left because the time to wait was over."""
    gathered: int
    """Batches that left because those had come that were waited for."""
    burst: int
    """Batches that left because a burst of items had come to its end."""
    deadline: int
    """Batches that left because of an item's deadline."""
    idle: int
    """Batches that left at once, as a worker was free and there was nothing to wait for."""
    drained: int
    """Batches that left because the batcher was stopped."""
    a: float
    """What a batch costs however small it is, in seconds, as learned; 0.0 while unknown, and with a `timeout` alone."""
    c: float
    """What each item of a batch adds, in seconds, as learned; 0.0 as above."""

    size: Histogram
    """Items in a batch. This and the following are of batches whose handler has returned."""
    wait: Histogram
    """Seconds from an item's arrival to the handler's call."""
    run: Histogram
    """Seconds that the handler took for a batch, all of its calls together."""
    room: int
    """Items that these batches could have had: `max_size` of each, or what memory is known to bear (`isolate`)."""

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.__slots__):
            raise TypeError(f"a snapshot has the numbers {', '.join(self.__slots__)}; not {', '.join(values)}")
        super().__init__(**values)

    @property
    def batches(self) -> int:
        """Batches given to the handler, running ones included. One that was split, or took several calls, is one."""
        return sum(getattr(self, reason) for reason in REASONS)

    @property
    def errors(self) -> int:
        """Items given to the handler whose callers got an exception."""
        return sum(count for _, count in self.error_types)

    @property
    def submitted(self) -> int:
        """Items accepted."""
        return self.queued + self.items + self.cancelled + self.expired + self.dropped

    @property
    def mean_batch_size(self) -> float:
        """Items per batch; 0.0 before the first batch."""
        return self.items / self.batches if self.batches else 0.0

    @property
    def utilisation(self) -> float:
        """How full batches were, as a share of `max_size`; 0.0 before the first batch has returned."""
        return self.size.sum / self.room if self.room else 0.0

    def asdict(self) -> dict[str, Any]:
        """The numbers by name; errors by type, and `size`, `wait` and `run`, are dictionaries of their own."""
        values = self._values()
        for name in ("size", "wait", "run"):
            values[name] = values[name].asdict()
        values["error_types"] = dict(self.error_types)
        return {**{name: getattr(self, name) for name in ("batches", "errors", "utilisation")}, **values}

    def __add__(self, other: Stats) -> Stats:
        """What both have done."""
        busier = self if self.items >= other.items else other
        values = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__ if name not in _OTHERS}
        types = _added(dict(self.error_types), other.error_types)
        return Stats(
            **values,
            queued=self.queued + other.queued,
            running=self.running + other.running,
            a=busier.a,
            c=busier.c,
            error_types=tuple(sorted(types.items())),
        )

    def __sub__(self, before: Stats) -> Stats:
        """What was done since an earlier snapshot. Raises ValueError: it is not an earlier one of this batcher."""
        values = {name: getattr(self, name) - getattr(before, name) for name in self.__slots__ if name not in _OTHERS}
        types = dict(self.error_types)
        for kind, count in before.error_types:
            types[kind] = types.get(kind, 0) - count
        counts = [*types.values(), *(value for value in values.values() if isinstance(value, int))]
        if min(counts) < 0:
            raise ValueError("a snapshot can be taken from a later one of the same batcher alone")
        present = {name: getattr(self, name) for name in ("queued", "running", "a", "c")}
        return Stats(
            **values, **present, error_types=tuple((kind, count) for kind, count in sorted(types.items()) if count)
        )

    def __repr__(self) -> str:
        shown = {"batches": self.batches, "errors": self.errors, **self._values()}
        return f"Stats({', '.join(f'{name}={value}' for name, value in shown.items())})"


_OTHERS = {"queued", "running", "a", "c", "error_types"}


def _added(counts: dict[str, int], more: Iterable[tuple[str, int]]) -> dict[str, int]:
    for kind, count in more:
        counts[kind] = counts.get(kind, 0) + count
    return counts


class Counters:
    """The mutable side of `Stats`."""

    __slots__ = ("cancelled", "cuts", "dropped", "error_types", "expired", "items", "rejected")

    def __init__(self) -> None:
        self.cuts: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.error_types: dict[str, int] = {}
        self.cancelled = 0
        self.dropped = 0
        self.expired = 0
        self.items = 0
        self.rejected = 0

    def failed(self, kind: str, count: int) -> None:
        """Count items whose callers get an exception of a type of that name."""
        types = self.error_types
        if count:
            kind = kind if kind in types or len(types) < MOST_TYPES else "others"
            types[kind] = types.get(kind, 0) + count

    def failed_as(self, outcomes: Iterable[object]) -> None:
        """Count those of the outcomes that are exceptions."""
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self.failed(type(outcome).__name__, 1)

    def add(self, other: Counters) -> None:
        """Add what others have counted."""
        for reason in REASONS:
            self.cuts[reason] += other.cuts[reason]
        _added(self.error_types, list(other.error_types.items()))
        for name in _PLAIN:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def snapshot(self, other: Counters, recorded: Mapping[str, Any], **present: float) -> Stats:
        """Freeze the sums of these counters and `other`.

        Args:
            other: what others have counted.
            recorded: sizes and times, see `Recorder.recorded`.
            present: numbers of now, `queued` and `running`, and `a` and `c`, what was learned.
        """
        counts = {name: getattr(self, name) + getattr(other, name) for name in _PLAIN}
        cuts = {reason: self.cuts[reason] + other.cuts[reason] for reason in REASONS}
        types = _added(self.error_types.copy(), other.error_types.copy().items())
        return Stats(**present, **recorded, **counts, **cuts, error_types=tuple(sorted(types.items())))


_PLAIN = ("cancelled", "dropped", "expired", "items", "rejected")
