"""Counters of a batcher and the frozen snapshot of them that its users see.

Pure: no thread, lock or clock. A batcher has two sets of counters, so that the worker counts without a lock: its
own, and one for what others count under a lock.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

REASONS = ("full", "window", "gathered", "burst", "deadline", "idle", "drained")
"""Why batches leave."""


class Stats:
    """What a batcher has done since it was made, at one moment; it cannot be changed.

    Taking a snapshot blocks nobody; its numbers are read one after another, so while items are in flight
    they can differ by those that moved meanwhile.
    """

    __slots__ = (
        "a",
        "c",
        "cancelled",
        "dropped",
        "errors",
        "expired",
        "items",
        "queued",
        "rejected",
        "running",
        *REASONS,
    )

    queued: int
    """Items that wait for a worker."""
    running: int
    """Items in a batch that the handler has not returned yet."""
    items: int
    """Items given to the handler, those of running batches included."""
    errors: int
    """Items given to the handler whose callers got an exception."""
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

    def __init__(self, **values: float) -> None:
        if values.keys() != set(self.__slots__):
            raise TypeError(f"a snapshot has the numbers {', '.join(self.__slots__)}; not {', '.join(values)}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def batches(self) -> int:
        """Batches given to the handler, running ones included. One that was split, or took several calls, is one."""
        return sum(getattr(self, reason) for reason in REASONS)

    @property
    def submitted(self) -> int:
        """Items accepted."""
        return self.queued + self.items + self.cancelled + self.expired + self.dropped

    @property
    def mean_batch_size(self) -> float:
        """Items per batch; 0.0 before the first batch."""
        return self.items / self.batches if self.batches else 0.0

    def asdict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {name: getattr(self, name) for name in ("batches", *self.__slots__)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and self.asdict() == other.asdict()

    def __hash__(self) -> int:
        return hash(tuple(self.asdict().values()))

    def __repr__(self) -> str:
        return f"Stats({', '.join(f'{name}={value}' for name, value in self.asdict().items())})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a snapshot cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a snapshot cannot be changed: {name}")

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, ({name: getattr(self, name) for name in self.__slots__},)


def _restored(values: dict[str, float]) -> Stats:
    return Stats(**values)


class Counters:
    """The mutable side of `Stats`."""

    __slots__ = ("cancelled", "cuts", "dropped", "errors", "expired", "items", "rejected")

    def __init__(self) -> None:
        self.cuts: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.cancelled = 0
        self.dropped = 0
        self.errors = 0
        self.expired = 0
        self.items = 0
        self.rejected = 0

    def add(self, other: Counters) -> None:
        """Add what others have counted."""
        for reason in REASONS:
            self.cuts[reason] += other.cuts[reason]
        for name in self.__slots__:
            if name != "cuts":
                setattr(self, name, getattr(self, name) + getattr(other, name))

    def snapshot(self, other: Counters, *, queued: int, running: int, a: float, c: float) -> Stats:
        """Freeze the sums of these counters and `other`, beside the present numbers and what was learned."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__ if name != "cuts"}
        cuts = {reason: self.cuts[reason] + other.cuts[reason] for reason in REASONS}
        return Stats(queued=queued, running=running, a=a, c=c, **counts, **cuts)
