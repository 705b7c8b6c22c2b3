"""Counters of a batcher and the frozen snapshot of them that its users see.

Pure: no thread, lock or clock. A batcher has two sets of counters, so that the worker counts without a lock: its
own, and one for what others count under a lock.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Stats:
    """What a batcher has done since it was made, at one moment; it cannot be changed.

    Taking a snapshot blocks nobody; its numbers are read one after another, so while items are in flight
    they can differ by those that moved meanwhile.
    """

    __slots__ = ("batches", "cancelled", "dropped", "errors", "items", "queued", "running")

    queued: int
    """Items that wait for a worker."""
    running: int
    """Items in a batch that the handler has not returned yet."""
    items: int
    """Items given to the handler, those of running batches included."""
    batches: int
    """Batches given to the handler, running ones included."""
    errors: int
    """Items given to the handler whose callers got an exception."""
    cancelled: int
    """Items that their callers left before a worker took them; the handler never saw them."""
    dropped: int
    """Items given up by `stop()` or with a dead worker before the handler saw them."""

    def __init__(
        self, *, queued: int, running: int, items: int, batches: int, errors: int, cancelled: int, dropped: int
    ) -> None:
        values = (batches, cancelled, dropped, errors, items, queued, running)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def submitted(self) -> int:
        """Items accepted."""
        return self.queued + self.items + self.cancelled + self.dropped

    @property
    def mean_batch_size(self) -> float:
        """Items per batch; 0.0 before the first batch."""
        return self.items / self.batches if self.batches else 0.0

    def asdict(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}

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
        return _restored, (self.asdict(),)


def _restored(values: dict[str, int]) -> Stats:
    return Stats(**values)


class Counters:
    """The mutable side of `Stats`."""

    __slots__ = ("batches", "cancelled", "dropped", "errors", "items")

    def __init__(self) -> None:
        self.batches = 0
        self.cancelled = 0
        self.dropped = 0
        self.errors = 0
        self.items = 0

    def snapshot(self, other: Counters, *, queued: int, running: int) -> Stats:
        """Freeze the sums of these counters and `other`, beside the present numbers of queued and running items."""
        counts = {name: getattr(self, name) + getattr(other, name) for name in self.__slots__}
        return Stats(queued=queued, running=running, **counts)
