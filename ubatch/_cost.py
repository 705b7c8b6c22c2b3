"""What a batch costs: `t(b) = a + c·b` seconds for `b` items, fitted while the program runs.

Pure: no thread, lock or clock. `a` is what a batch costs however small it is (a kernel launch, a round trip, an
interpreter's overhead), `c` what each item adds. The fit is an exponentially weighted least squares of durations
on sizes, done recursively, with three things that plain least squares lacks:

- Sizes that hardly vary say nothing about the slope. A ridge pulls it towards its previous value, by as much as
  would balance sizes that scatter by an eighth of their mean. So when all batches have one size, a change of the
  duration is taken to be one of `a`.
- One garbage collection or page fault must not be believed: a duration counts as at most eight times its prediction.
  Three such in a row are, and start the fit anew: sizes often change along with the handler, so what came before
  would put it down to the items.
- The first calls of a handler often load or compile something: a duration below an eighth of the mean so far
  starts the fit anew, as long as there are few.
"""

from __future__ import annotations

FORGET = 1 / 64
"""Weight that a batch loses with each later one."""

KEEP = 1 - FORGET

RIDGE = 1 / 8
"""Scatter of the sizes, as a share of their mean, at which they and the previous slope count alike."""

OUTLIER = 8.0
"""A duration counts as at most this many times its prediction."""

CHANGED = 3
"""So many durations in a row beyond that are no accident: the handler is another now, and the fit starts anew."""

GUESS = 1 / 4
"""Share of the first duration that is put down to the items."""

WARM_UP = 8
"""Batches among which a first, slow one is forgotten."""


class Cost:
    """The fit. Its attributes are read by anybody and written by `update`."""

    __slots__ = ("_deviation", "_weight", "a", "batches", "c", "duration", "size", "strange")

    a: float
    """Seconds that every batch costs."""
    c: float
    """Seconds that each item adds."""
    duration: float
    """Mean duration of a batch, in seconds."""
    size: float
    """Mean size of a batch, in items."""
    strange: int
    """How many durations in a row were beyond belief, up to the latest."""

    def __init__(self) -> None:
        self.a = self.c = self.duration = self.size = 0.0
        self.batches = 0
        self._weight = 0.0
        self._deviation = 0.0  # weighted sum of (b - mean b)²
        self.strange = 0

    def update(self, size: int, duration: float) -> None:
        """Learn from a batch of `size` items that took `duration` seconds. O(1)."""
        if duration < 0.0:
            duration = 0.0
        self.batches += 1
        if self._weight < 1.0 or (self._weight < WARM_UP and OUTLIER * duration < self.duration):
            self._begin(size, duration)
            return
        most = OUTLIER * (self.a + self.c * size)
        if 0.0 < most < duration:
            self.strange += 1
            if self.strange == CHANGED:
                self._begin(size, duration)
                return
            duration = most
        else:
            self.strange = 0
        weight = self._weight = KEEP * self._weight + 1.0
        off_size = size - self.size
        self.size = mean_size = self.size + off_size / weight
        self.duration = mean = self.duration + (duration - self.duration) / weight
        self._deviation = deviation = KEEP * self._deviation + off_size * (size - mean_size)
        ridge = weight * (RIDGE * mean_size) ** 2
        # recursive least squares: by as much as this batch is off the line, and off the mean size
        error = duration - mean - self.c * (size - mean_size)
        slope, steepest = self.c + off_size * error / (deviation + ridge), mean / mean_size
        self.c = slope = 0.0 if slope < 0.0 else slope if slope < steepest else steepest
        fixed = mean - slope * mean_size
        self.a = fixed if fixed > 0.0 else 0.0

    def _begin(self, size: int, duration: float) -> None:
        """One batch cannot tell `a` from `c`. A guess, which stands for as long as all batches have one size."""
        self._weight = 1.0
        self._deviation = 0.0
        self.strange = 0
        self.size, self.duration = float(size), duration
        self.c = GUESS * duration / size
        self.a = duration - self.c * size

    def predict(self, size: float) -> float:
        """Expected duration of a batch of `size` items, in seconds."""
        return self.a + self.c * size

    def _check(self) -> None:
        assert self.a >= 0.0
        assert self.c >= 0.0 <= self.duration
        assert self.c * self.size <= self.duration * (1 + 1e-9) + 1e-300  # denormal numbers are coarse
        assert self._deviation >= -1e-6 * (1 + self.size) ** 2
        assert 0.0 <= self._weight <= 1 / FORGET + 1
