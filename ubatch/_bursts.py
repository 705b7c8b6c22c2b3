"""I: bursts on an idle system. When an item finds the system idle, do others follow at once?

Pure: no thread, lock or clock.

A burst of n on an idle system (one request fans out, `asyncio.gather`) is served greedily as 1 and n - 1: the
n - 1 wait for a whole service of the first. Waiting until the submits pause for a gap g gathers them. Had the
worker waited so for the first item, with m followers gathered in a wait of w and O more within the service time
that would have begun at once, then the latencies, summed over all, had been less by

    G(g) = m·(a - w + c·O) - (w + c·m) - 2·O·w

as the m followers save the fixed cost of the first batch less the wait, and are not served with the O; the first
waits w and is served with m more; the O wait w longer. These count twice, as where many come later it is not a
burst but traffic that goes on, in which all that follow are late by w as well.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._cost import Cost
    from ._traffic import Arrivals

GAPS = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Pauses that end a burst, as multiples of the fixed cost `a`: the candidates, from the shortest."""

FORGET = 1 / 16
"""Weight that a first item loses with each later one."""

OTHERS = 2.0
"""Weight of those who come too late to be gathered, but wait longer for it."""

EVIDENCE = 3
"""First items before the first gap; and so many in a row that nobody follows end it, until somebody does."""


class Bursts:
    """Learns which pause ends a burst."""

    __slots__ = ("_first", "_gains", "_lonely", "_pending", "_weight", "gap")

    gap: float
    """g*: seconds without a submit that end a burst; 0.0 if it does not pay to wait for it."""

    def __init__(self) -> None:
        self.gap = 0.0
        self._gains = [0.0] * len(GAPS)  # weighted sums of G
        self._weight = 0.0
        self._first: float | None = None  # arrival of an item that found the system idle
        self._pending: list[tuple[float, float]] = []  # those not learned from, and the next completion after each
        self._lonely = 0  # the latest first items that nobody followed, in a row

    def first(self, arrived: float) -> None:
        """An item that had found the system idle was cut."""
        self._first = arrived

    def finished(self, now: float) -> None:
        """A batch was completed: what comes from now on may come because of it, and follows nothing."""
        if self._first is not None:
            self._pending.append((self._first, now))
            self._first = None

    def forget_pending(self) -> None:
        """Nothing was recorded for a while."""
        self._first = None
        self._pending.clear()

    def learn(self, arrivals: Arrivals, cost: Cost, max_size: int) -> None:
        """See what waiting would have brought for the first items that came at least one service time ago."""
        while self._pending:
            first, end = self._pending[0]
            end = min(end, first + cost.a + cost.c)
            if end > arrivals.until:
                return
            del self._pending[0]
            self._observe(first, end, arrivals.times, cost, max_size)

    def _observe(self, first: float, end: float, times: list[float], cost: Cost, max_size: int) -> None:
        start = bisect_right(times, first)
        stop = max(start, bisect_left(times, end))
        keep = 1.0 - FORGET
        self._weight = keep * self._weight + 1.0
        best, self_gap = (cost.a + cost.c) / 2, 0.0
        at, last = start, first
        room = min(stop, start + max_size - 1)
        for index, share in enumerate(GAPS):
            gap = share * cost.a
            while at < room and times[at] - last <= gap:
                last = times[at]
                at += 1
            wait = min(last - first + (0.0 if at - start == max_size - 1 else gap), cost.a)
            gathered, others = at - start, stop - at
            gain = gathered * (cost.a - wait + cost.c * others) - (wait + cost.c * gathered)
            gain -= OTHERS * others * wait
            self._gains[index] = keep * self._gains[index] + gain
            if self._gains[index] > best * self._weight and self._weight >= EVIDENCE * (1.0 - EVIDENCE * FORGET):
                best, self_gap = self._gains[index] / self._weight, gap
        self._lonely = self._lonely + 1 if stop == start else 0
        self.gap = self_gap if self._lonely < EVIDENCE else 0.0

    def _check(self) -> None:
        assert self.gap >= 0.0
        assert self._weight <= 1 / FORGET + 1
