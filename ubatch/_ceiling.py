"""How large a batch may be for the memory that there is: learned from batches that ran out of it.

Pure: no thread, lock or clock; time is counted in batches. The rule is that of a sender on a network of unknown
capacity: less, at once, after a failure; more, slowly, after successes; more slowly each time that this was too much.
"""

from __future__ import annotations

PATIENCE = 16
"""Batches that fill the ceiling and go through, after which it is raised."""

LONGEST = 1024
"""So many batches it takes at most, however often raising it was too much."""

STEP = 8
"""It is raised by one part in so many, at least by one item."""


class Ceiling:
    """The largest batch to take. Asked and told by one worker at a time, or by the tasks of one event loop.

    - Nothing is known: there is none.
    - A batch ran out of memory: the ceiling is the size of its largest part that went through. If it had been raised,
      it is again what it was before, which is known to be borne.
    - So many batches as `PATIENCE` says filled it and went through: it is raised by an eighth. Each time that it is
      lowered again, twice as many are waited for.
    - As many of the batcher's `max_size` went through: it is forgotten.
    """

    __slots__ = ("_borne", "_filled", "_max_size", "_wait", "size")

    def __init__(self) -> None:
        self.size: int | None = None
        """In items; `None` if there is none."""
        self._max_size = 1
        self._forget()

    def _forget(self) -> None:
        self.size = None
        self._borne: int | None = None  # what it was before it was raised
        self._filled = 0  # batches of its size that went through, since it was set
        self._wait = PATIENCE

    def limit(self, max_size: int) -> int:
        """The largest batch to take now, in items, where `max_size` is the largest that is wanted."""
        self._max_size = max_size
        size = self.size
        return max_size if size is None or size > max_size else size

    def borne(self, count: int) -> None:
        """A batch of `count` items went through whole."""
        size = self.size
        if size is None or count < min(size, self._max_size):
            return
        self._filled += 1
        if self._filled < self._wait:
            return
        if size >= self._max_size:
            self._forget()
            return
        self._borne, self._filled = size, 0
        self.size = min(size + max(size // STEP, 1), self._max_size)

    def exceeded(self, count: int, good: int) -> None:
        """A batch of `count` items ran out of memory; the largest part of it that went through had `good` >= 1."""
        if self.size is None:
            self.size = good
            return
        if count > self.size:  # one of several in flight, cut before another one lowered the ceiling
            return
        self.size = good if self._borne is None or self._borne >= count else self._borne
        self._borne, self._filled = None, 0
        self._wait = min(2 * self._wait, LONGEST)

    def _check(self) -> None:
        assert self.size is None or self.size >= 1
        assert self._borne is None or (self.size is not None and 1 <= self._borne < self.size)
        assert 0 <= self._filled < self._wait
        assert PATIENCE <= self._wait <= LONGEST
