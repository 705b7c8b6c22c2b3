"""R: returning callers. After a batch its callers come back; is it worth waiting for them, and how long?

Pure: no thread, lock or clock.

K callers that each wait for a result and then call again form a closed queueing network. A greedy worker takes the
first one that is back alone, and the other K - 1 wait a whole service time for it: two fixed costs a round, where
one would do. In a fluid picture the P items of the system are spread over s + 1 places, one for each of the s
workers and one for the queue, so a greedy batch has P/(s+1) items; if a share F of the released callers is back
before the next batch is cut, they skip the queue, and a batch has P/(s+1-F). At most `max_size` each. Waiting `w`
costs the worker w/a of a fixed cost. So the fixed cost per item, relative to greedy, is

    J = (1 + w/a) · min(B, P/(s+1)) / min(B, P/(s+1-F))

In open-loop traffic F(u) = u/D, D the mean duration, while J < 1 wants F > 2u/(a+u), about twice as much: random
arrivals are not taken for returning callers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from math import sqrt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._traffic import Arrivals

WINDOWS = (1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""How long to wait, as multiples of the fixed cost `a`: the candidates."""

START, KEEP = 0.92, 0.97
"""J below which a window is taken up; below which one in use is kept."""

INFINITE = float("inf")

FORGET = 1 / 32
"""Weight that a completion loses with each later one."""

DOUBT = 1.0
"""Standard errors by which F is taken to be smaller than its estimate: a chance find is none. Near 1 it has none."""

EVIDENCE = 4
"""Completions before the first window."""


class Returns:
    """Learns how soon the callers of a batch are back."""

    __slots__ = ("_back", "_batches", "_pending", "_released", "_waited", "chosen", "share", "window")

    window: float
    """u*: seconds after a completion for which to wait; 0.0 if it does not pay."""
    share: float
    """F(u*): share of the released callers that are back by then."""

    def __init__(self) -> None:
        self.window = self.share = 0.0
        self.chosen = -1  # index of the window in use
        self._pending: deque[tuple[float, int]] = deque(maxlen=64)  # completions not learned from: when, how many
        self._back = [0.0] * len(WINDOWS)  # weighted number of callers back within each window
        self._waited = [0.0] * len(WINDOWS)  # weighted time until the window ended, or all were back
        self._released = 0.0  # weighted number of callers released
        self._batches = 0.0  # weighted number of completions

    def finished(self, now: float, size: int) -> None:
        """The callers of `size` items were released at `now`."""
        self._pending.append((now, size))

    def learn(self, arrivals: Arrivals, a: float) -> bool:
        """Look at the completions that are at least `a` old; whether there were any."""
        learned = False
        while self._pending and self._pending[0][0] + a <= arrivals.until:
            self._observe(*self._pending.popleft(), arrivals.times, a)
            learned = True
        return learned

    def _observe(self, completed: float, size: int, times: list[float], a: float) -> None:
        keep = 1.0 - FORGET
        first = bisect_left(times, completed)
        last = min(first + size, len(times))
        complete = times[last - 1] - completed if last - first == size else INFINITE
        back, waited = self._back, self._waited
        for index, length in enumerate(WINDOWS):
            window = length * a
            if complete <= window:
                back[index] = keep * back[index] + size
                waited[index] = keep * waited[index] + complete
            else:
                found = bisect_right(times, completed + window, first, last) - first if first < last else 0
                back[index] = keep * back[index] + found
                waited[index] = keep * waited[index] + window
        self._released = keep * self._released + size
        self._batches = keep * self._batches + 1.0

    def choose(self, a: float, present: float, workers: int, max_size: int) -> None:
        """Set `window` to the best one, given that `present` items are in the system at a completion."""
        best, chosen = 1.0, -1
        released, batches = self._released, self._batches
        if batches >= EVIDENCE * (1.0 - EVIDENCE * FORGET) and a > 0.0:
            waited, scale = self._waited, batches * a
            for index, back in enumerate(self._back):
                share = back / released
                wait = waited[index] / scale
                if share * (1.0 + wait) > 2.0 * wait:  # else it does not pay; less doubt, it does so even less
                    if share < 1.0:
                        share -= DOUBT * sqrt(share * (1.0 - share) / batches)
                    cost = relative_cost(share, wait, present, workers, max_size)
                    if cost < best and cost < (KEEP if index == self.chosen else START):
                        best, chosen = cost, index
        self.chosen = chosen
        self.window = WINDOWS[chosen] * a if chosen >= 0 else 0.0
        self.share = self._back[chosen] / released if chosen >= 0 else 0.0

    def forget_pending(self) -> None:
        """Nothing was recorded for a while."""
        self._pending.clear()

    def _check(self) -> None:
        assert 0.0 <= self.share <= 1.0 + 1e-9
        assert self.window >= 0.0
        assert (self.window > 0.0) <= (self.chosen >= 0)
        assert all(0.0 <= back <= self._released * (1 + 1e-9) for back in self._back)
        assert all(less <= more * (1 + 1e-9) for less, more in zip(self._back, self._back[1:], strict=False))


def relative_cost(share: float, wait: float, present: float, workers: int, max_size: int) -> float:
    """J: the worker's fixed cost per item, relative to greedy; infinite if others would lose too much by it.

    Of the items of a gathered batch a share F are returners; each saves the fixed cost of the batch it would have
    waited for, less the wait. The others wait for nothing, which counts twice.

    Args:
        share: F, of the released callers that are back in time.
        wait: what it takes, as a multiple of `a`.
        present: P, items in the system at a completion.
        workers: s.
        max_size: B.
    """
    if share * (1.0 - wait) <= 2.0 * (1.0 - share) * wait or present <= 0.0:
        return INFINITE
    greedy = present / (workers + 1)
    if greedy >= max_size:
        return 1.0 + wait
    gathered = present / (workers + 1 - share)
    if gathered <= 1.0:  # a batch has at least one item
        return 1.0 + wait
    return (1.0 + wait) * (greedy if greedy > 1.0 else 1.0) / (gathered if gathered < max_size else max_size)


class Guard:
    """Takes the window away if gathering turns out worse than greedy would be, whatever the estimates say."""

    __slots__ = ("_batches", "_items", "_pause", "_time", "barred")

    LEAST, SHORTEST, LONGEST = 12, 64, 512  # batches
    SLACK = 1.05

    def __init__(self) -> None:
        self.barred = 0
        """Batches for which there is to be no gathering."""
        self._pause = self.SHORTEST
        self._clear()

    def _clear(self) -> None:
        self._batches = 0
        self._items = self._time = 0.0

    def finished(self, gathering: bool, size: int, time: float, greedy: float) -> None:
        """A batch was completed.

        Args:
            gathering: whether there was a window.
            size: items of the batch.
            time: seconds for which the worker was held and then busy.
            greedy: seconds per item that a greedy worker would need.
        """
        if self.barred:
            self.barred -= 1
            return
        if not gathering:
            self._clear()
            return
        keep = 1.0 - 1.0 / self.LEAST
        self._batches += 1
        self._items = keep * self._items + size
        self._time = keep * self._time + time
        if self._batches < self.LEAST:
            return
        if self._time > self.SLACK * greedy * self._items:
            self.barred, self._pause = self._pause, min(2 * self._pause, self.LONGEST)
            self._clear()
        elif self._batches > self.LONGEST:
            self._pause = self.SHORTEST
