"""What is known of the traffic: when items came, how many a second, how many are in the system.

Pure: no thread, lock or clock. All of it is seen in the timestamps of items, whatever the policy does with them,
so nothing has to be tried out to learn it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FORGET = 1 / 64
"""Weight that a completion loses with each later one."""

KEEP = 1 - FORGET

REMEMBERED = 512
"""Timestamps that are kept at least, in items."""


class Arrivals:
    """The timestamps of the latest items, in order, as they are cut."""

    __slots__ = ("times", "until")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.until = float("-inf")
        """All items that arrived before this moment, in seconds, are among `times` (or forgotten)."""

    def cut(self, now: float, arrived: Sequence[float], queued: int) -> None:
        """A batch was cut at `now`; its items arrived at `arrived`, and `queued` items were left behind."""
        times = self.times
        if len(times) > 2 * REMEMBERED:
            del times[:-REMEMBERED]
        last = times[-1] if times else float("-inf")
        latest = sorted(arrived)  # stamped just before they are queued, so two can have changed places
        times += latest
        if latest and latest[0] < last:
            times.sort()
        self.until = times[-1] if queued and times else now


class Load:
    """Rates, durations and numbers at completions, as exponentially weighted means.

    All over the same batches, so for a single caller X·D is at most 1, whatever its think times and durations.
    """

    __slots__ = ("_busy", "_items", "_last", "_present", "_time", "_weight")

    def __init__(self) -> None:
        self._busy = 0.0
        self._items = 0.0
        self._time = 0.0
        self._present = 0.0
        self._weight = 0.0
        self._last: float | None = None

    def finished(self, now: float, size: int, duration: float, present: int) -> None:
        """A batch of `size` items was completed; `present` items are in the system, those of the batch included."""
        last = self._last
        if last is not None:  # else there is no time that it can be counted in
            self._items = KEEP * self._items + size
            self._time = KEEP * self._time + (now - last if now > last else 0.0)
            self._busy = KEEP * self._busy + (duration if duration > 0.0 else 0.0)
            self._present = KEEP * self._present + present
            self._weight = KEEP * self._weight + 1.0
        self._last = now

    @property
    def rate(self) -> float:
        """X: items per second; 0.0 while unknown."""
        return self._items / self._time if self._time > 0.0 else 0.0

    @property
    def duration(self) -> float:
        """D: mean seconds that a batch takes; 0.0 while unknown."""
        return self._busy / self._weight if self._weight else 0.0

    @property
    def present(self) -> float:
        """P: mean number of items in the system at completions."""
        return self._present / self._weight if self._weight else 0.0
