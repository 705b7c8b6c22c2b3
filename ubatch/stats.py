"""Counters of a batcher and the frozen snapshot of them that its users see.

Pure: no thread, lock or clock. A batcher has two sets of counters, so that the worker counts without a lock: its
own, and one for what others count under a lock. Sizes and times are in `_recorder`.
"""

from __future__ import annotations

from ._histogram import Frozen, Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, TypeAlias

    from ._process_stats import ProcessStats

    Types: TypeAlias = tuple[tuple[str, int], ...]
    """Names of types of errors, each with a count."""

__all__ = ["REASONS", "Counters", "Histogram", "Stats"]

REASONS = ("full", "window", "gathered", "burst", "deadline", "idle", "drained")
"""Why batches leave."""

MOST_TYPES = 64
"""Errors are counted under their types' names, as long as there are no more; then as "others"."""


class Stats(Frozen):
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
        "processes",
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
    processes: ProcessStats | None
    """What the child processes of a `ProcessExecutor` have done, in which the handler runs; `None` without one.

    Since this batcher was made, for all that use the executor: batchers that share one each have its numbers here, and
    so in metrics."""
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
        values["processes"] = None if self.processes is None else self.processes.asdict()
        return {**{name: getattr(self, name) for name in ("batches", "errors", "utilisation")}, **values}

    def without_children(self) -> Stats:
        """What was done by a batcher that is no more, as it were: its child processes are not shown."""
        processes = None if self.processes is None else self.processes.without_children()
        return Stats(**{**self._values(), "processes": processes})

    def __add__(self, other: Stats) -> Stats:
        """What both have done."""
        if not isinstance(other, Stats):
            return NotImplemented
        busier = self if self.items >= other.items else other
        values = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__ if name not in _OTHERS}
        types = _added(dict(self.error_types), other.error_types)
        return Stats(
            **values,
            processes=_both(self.processes, other.processes),
            queued=self.queued + other.queued,
            running=self.running + other.running,
            a=busier.a,
            c=busier.c,
            error_types=tuple(sorted(types.items())),
        )

    def __sub__(self, before: Stats) -> Stats:
        """What was done since an earlier snapshot. Raises ValueError: it is not an earlier one of this batcher."""
        if not isinstance(before, Stats):
            return NotImplemented
        try:
            return self._since(before)
        except ValueError as error:  # of a histogram, it may be
            raise ValueError(
                "only an earlier snapshot can be taken from a later one, of the same batcher, in the same process"
            ) from error

    def _since(self, before: Stats) -> Stats:
        values = {name: getattr(self, name) - getattr(before, name) for name in self.__slots__ if name not in _OTHERS}
        if min(value for value in values.values() if isinstance(value, int)) < 0:
            raise ValueError("a count has become less")
        processes = self.processes
        if processes is not None and before.processes is not None:
            processes = processes - before.processes
        present = {name: getattr(self, name) for name in ("queued", "running", "a", "c")}
        return Stats(
            **values,
            **present,
            processes=processes,
            error_types=types_since(self.error_types, before.error_types),
        )

    def __repr__(self) -> str:
        shown = {"batches": self.batches, "errors": self.errors, **self._values()}
        return f"Stats({', '.join(f'{name}={value}' for name, value in shown.items())})"


_OTHERS = {"queued", "running", "a", "c", "error_types", "processes"}


def types_since(now: Types, before: Types) -> Types:
    """How many more there are of each type of errors. Raises ValueError: there are fewer."""
    changes = dict(now)
    for kind, count in before:
        changes[kind] = changes.get(kind, 0) - count
    if min(changes.values(), default=0) < 0:
        raise ValueError("a count has become less")
    return tuple((kind, count) for kind, count in sorted(changes.items()) if count)


def _both(one: ProcessStats | None, other: ProcessStats | None) -> ProcessStats | None:
    return one + other if one is not None and other is not None else one or other


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

    def snapshot(self, other: Counters, recorded: Mapping[str, Any], **present: Any) -> Stats:
        """Freeze the sums of these counters and `other`.

        Args:
            other: what others have counted.
            recorded: sizes and times, see `Recorder.recorded`.
            present: numbers of now, `queued` and `running`, and `a` and `c`, what was learned; `processes`.
        """
        counts = {name: getattr(self, name) + getattr(other, name) for name in _PLAIN}
        cuts = {reason: self.cuts[reason] + other.cuts[reason] for reason in REASONS}
        types = _added(self.error_types.copy(), other.error_types.copy().items())
        return Stats(**present, **recorded, **counts, **cuts, error_types=tuple(sorted(types.items())))


_PLAIN = ("cancelled", "dropped", "expired", "items", "rejected")
