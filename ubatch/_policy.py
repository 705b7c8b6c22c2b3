"""When a free worker takes what is queued.

Pure: decisions from numbers, `now` among them; no thread, lock or clock. A policy is asked each time a worker
is free and something is queued. It says "cut now" (`None`) or "hold" (`Hold`: until when, and from how many
queued items on it wants to be asked again before that). `Window` is the fixed window, `Adaptive` finds out by
itself when waiting pays.

The words: `s` workers, batches of at most `B` items (`max_size`); a batch of `b` items takes `a + c·b`, D on
average; X items come a second; P are in the system, queued or running, when a batch is completed.
"""

from __future__ import annotations

from math import ceil

from ._bursts import Bursts
from ._cost import Cost
from ._returns import Guard, Returns
from ._traffic import Arrivals, Load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GREEDY_BATCHES = 4
"""Batches before the first hold."""

LIGHT = 200e-6
"""Fixed cost, in seconds, below which a hold would be timer noise."""

HEAVIER = 1.25
"""A fixed cost of this many times `LIGHT` ends what `LIGHT` began."""

SAMPLE = 16
"""Where the fixed cost is below `LIGHT`, one batch in this many is timed."""

STAGGER = 1.25
"""Time between starts after which a held batch leaves, as a multiple of D/s."""

ENOUGH = 1.1
"""Items at which it leaves before that, as a multiple of X·D/s. At 1 batches bunch again: many leave too early."""

TOGETHER = 4
"""Batches that are learned from together: code that is run once a batch finds the processor's caches cold, and
callers wait for it."""

_NEVER = float("-inf")


class Hold:
    """The worker is to wait.

    Args:
        until: monotonic time, in seconds, at which to ask again at the latest.
        wake_at: number of queued items at which to ask again before that.
    """

    __slots__ = ("until", "wake_at")

    def __init__(self, until: float, wake_at: int) -> None:
        self.until = until
        self.wake_at = wake_at


class Window:
    """The fixed window: a batch leaves when it is full or when its oldest item is `timeout` old.

    The window runs from the arrival of the oldest item, not from the moment a worker looks: an item that
    arrived while the worker was busy has used up its time, and what is queued then leaves at once.

    Args:
        timeout: the longest time, in seconds, that an item is held for companions while a worker is free.
            Zero is greedy: whatever is queued when a worker is free leaves at once.
    """

    __slots__ = ("cost", "passive", "reason", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.passive = timeout <= 0.0
        """Whether there is nothing to decide: whatever is there is cut at once."""
        self.reason = "idle"
        """Why what is cut now is cut: "full", "window", "gathered", "burst", "idle". If its hold times out, too."""
        self.cost: Cost | None = None
        """What has been learned of the cost of a batch; `None` before `observe`."""

    def expect(self, now: float, max_size: int) -> Hold | None:
        """See `Adaptive`."""
        return None

    def observe(self) -> None:
        """Learn what batches cost, from now on: there are deadlines, which the window does not know."""
        self.cost = self.cost or Cost()

    def watch(self) -> bool:
        """Whether `cut` and `finished` are to be called for the batch that is taken now."""
        return self.cost is not None

    def cut(self, now: float, arrived: Sequence[float], queued: int, max_size: int) -> None:
        """See `Adaptive`."""

    def finished(self, now: float, size: int, duration: float, queued: int, ok: bool = True) -> None:
        """See `Adaptive`."""
        if ok and self.cost is not None:
            self.cost.update(size, duration)

    def decide(self, now: float, queued: int, oldest: float, max_size: int, newest: float = _NEVER) -> Hold | None:
        """Say what a free worker does with `queued` >= 1 items, the oldest of which arrived at `oldest`.

        Args:
            now: monotonic time, in seconds.
            queued: items that are there.
            oldest: arrival of the oldest of them, on the clock of `now`.
            max_size: the largest batch, in items.
            newest: not looked at.

        Returns:
            `None` to cut `min(queued, max_size)` items now, or how long to hold.
        """
        if queued >= max_size:
            self.reason = "full"
            return None
        if now - oldest >= self.timeout:
            self.reason = "window" if self.timeout else "idle"
            return None
        self.reason = "window"
        return Hold(min(oldest, now) + self.timeout, max_size)


class Adaptive:
    """Waits when it pays, as learned from timestamps and durations; else greedy.

    One worker and callers that do not wait for each other: greedy is optimal to within a percent, whatever the
    load, so no rate makes it wait. There are three situations in which waiting pays, and a part for each:

    R. Callers return soon after their results (`_returns`): after a completion, wait until they are back.
    I. A burst comes upon an idle system (`_bursts`): wait until the submits pause.
    S. Several workers, and the fixed cost dominates: batches that start together find little queued, so their
       starts are staggered.

    Whatever has been learned, no item is held, while a worker is free, beyond the later of its arrival and that
    worker's becoming free plus the larger of `a` and 1.25·D/s (the hard bound); a full batch is never held.
    Where the fixed cost is less than 200 µs a hold would be timer noise: greedy, with next to no bookkeeping.

    What drivers do: ask `decide` when a worker is free and something is queued. Call `watch` for each batch, and
    if it says so, `cut` when the batch is taken and `finished` when its handler has returned, with the time before
    callers are woken. While nothing is queued, `expect` says how long to sleep through arrivals. With several
    workers these calls are made one at a time.

    Args:
        workers: s, the number of batches that can run at once.
        returns, bursts, stagger, guard: the parts; each can be switched off.
    """

    def __init__(
        self, workers: int = 1, *, returns: bool = True, bursts: bool = True, stagger: bool = True, guard: bool = True
    ) -> None:
        self.workers = workers
        self.cost = Cost()
        self.load = Load()
        self.arrivals = Arrivals()
        self.returns = Returns() if returns else None
        self.bursts = Bursts() if bursts else None
        self.stagger = stagger and workers > 1
        self.guard = Guard() if guard else None
        self.reason = "idle"
        self.passive = True
        """Whether there is nothing to decide: whatever is there is cut at once."""
        self.light = False
        """Whether batches are too short to wait for: greedy, and only every 16th is timed."""
        self._skip = 0  # batches since one was timed, where they are too short to wait for
        self._busy = 0  # batches that run
        self._running = 0  # items in them
        self._idle_since = _NEVER  # since when at least one worker has been free
        self._held: str | None = None  # the part that made the latest decision a hold
        # the latest completion: when, how many callers it released, how many items it found queued
        self._completed = _NEVER
        self._released = 0
        self._left = 0
        # the latest start: when, after which hold? was it time to gather?
        self._started = _NEVER
        self._hold_time = 0.0
        self._gathering = False
        self._unread: list[tuple[float, int, float, int, float | None, bool]] = []  # what `_learn` is to learn from
        self._max_size = 1

    # -- decisions ----------------------------------------------------------------------------------------

    def expect(self, now: float, max_size: int) -> Hold | None:
        """Say when a free worker with an empty queue wants to be asked, if not at the next item.

        So gathering K returners costs one wake-up, not two.
        """
        if self.passive:
            return None
        hold = self._for_returners(now, 0)
        if hold is None:
            return None
        if hold.wake_at <= 1:
            self._held = None
            return None
        hold.wake_at = min(hold.wake_at, max_size)
        return hold

    def decide(self, now: float, queued: int, oldest: float, max_size: int, newest: float = _NEVER) -> Hold | None:
        """See `Window.decide`.

        Args:
            now, queued, oldest, max_size: as there.
            newest: arrival of the item that came last.
        """
        if queued >= max_size:
            self.reason = "full"
            return None
        if self.passive:
            self.reason = "idle"
            return None
        free = min(max(oldest, self._idle_since), now)
        bound = free + max(self.cost.a, self._turn())
        if now < bound:
            hold = (
                self._for_returners(now, queued)
                or (self._alone(oldest) and self._for_followers(now, oldest, newest, max_size))
                or (self.stagger and self._for_its_turn(now, queued))
            )
            if hold:
                hold.until = min(hold.until, bound)
                hold.wake_at = min(hold.wake_at, max_size)
                self.reason = "burst" if self._held == "burst" and queued > 1 else "window"
                return hold
        self.reason = self._why(now, queued)
        return None

    def _alone(self, oldest: float) -> bool:
        """Whether the oldest item found the system idle: nothing queued, no batch running."""
        return not self._busy and oldest >= self._completed

    def _for_returners(self, now: float, queued: int) -> Hold | None:
        """R: until the expected number is back, or u* after the completion."""
        until = self._completed + self._window()
        expected = self._left + self._expected()
        if now >= until or queued >= expected:
            return None
        self._held = "gathered"
        return Hold(until, expected)

    def _window(self) -> float:
        if self.returns is None or (self.guard is not None and self.guard.barred):
            return 0.0
        return self.returns.window

    def _expected(self) -> int:
        return 0 if self.returns is None else ceil(self.returns.share * self._released - 1e-9)

    def _for_followers(self, now: float, oldest: float, newest: float, max_size: int) -> Hold | None:
        """I: until nothing has come for the gap, at most `a` after the first. Returners follow nobody."""
        if self.bursts is None or not self.bursts.gap or oldest <= self._completed + self._window():
            return None
        until = min(min(newest, now) + self.bursts.gap, min(oldest, now) + self.cost.a)
        if now >= until:
            return None
        self._held = "burst"
        return Hold(until, max_size)

    def _for_its_turn(self, now: float, queued: int) -> Hold | None:
        """S: until a little over a worker's share of the traffic is queued, or of the time has passed.

        With s workers a batch should start every D/s and find X·D/s items. Where the time per item dominates,
        at c·X/s > s/(s + 3.3), there is nothing to gain.
        """
        share = self.load.rate / self.workers
        until = min(self._started, now) + self._turn()
        enough = round(ENOUGH * share * self.load.duration)
        if now >= until or queued >= enough or self.cost.c * share > self.workers / (self.workers + 3.3):
            return None
        self._held = "turn"
        return Hold(until, enough)

    def _turn(self) -> float:
        """Seconds between two starts that are too long to wait any more."""
        return STAGGER * self.load.duration / self.workers

    def _why(self, now: float, queued: int) -> str:
        held = self._held
        if held is None:
            return "idle"
        if held == "gathered":
            return "gathered" if queued >= self._left + self._expected() else "window"
        if held == "burst":
            return "burst" if queued > 1 else "window"
        return "gathered" if now < self._started + self._turn() else "window"

    # -- events -------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """See `Window`; it does so anyway."""

    def watch(self) -> bool:
        """Whether `cut` and `finished` are to be called for the batch that is taken now."""
        if not self.light or self.cost.strange:
            return True
        self._skip = (self._skip + 1) % SAMPLE
        return self._skip == 0

    def cut(self, now: float, arrived: Sequence[float], queued: int, max_size: int) -> None:
        """A batch was taken.

        Args:
            now: monotonic time, in seconds.
            arrived: arrivals of its items, at least one, in about their order.
            queued: items left behind.
            max_size: the largest batch, in items.
        """
        oldest = arrived[0]
        if self._busy >= self.workers:  # a batch was given up, its worker never came back
            self._busy = self._running = 0
        if not self.light:
            self.arrivals.cut(now, arrived, queued)
            window = self._window()
            if self.bursts is not None and oldest > self._completed + window and self._alone(oldest):
                self.bursts.first(oldest)
            self._gathering = window > 0.0
            self._hold_time = max(now - max(oldest, self._idle_since), 0.0)
        self._busy += 1
        self._running += len(arrived)
        self._started = now
        self._held = None
        self._max_size = max_size

    def finished(self, now: float, size: int, duration: float, queued: int, ok: bool = True) -> None:
        """A batch's handler returned; its callers are about to be woken.

        Args:
            now: monotonic time, in seconds, at which it returned, before anybody was woken.
            size: items of the batch.
            duration: seconds that the handler took.
            queued: items that waited at that time.
            ok: whether it succeeded; how long a failure takes says nothing about the cost.
        """
        if self._busy >= self.workers:
            self._idle_since = now
        self._busy = max(self._busy - 1, 0)
        self._running = max(self._running - size, 0)
        self._completed, self._released, self._left = now, size, queued
        if self.bursts is not None:
            self.bursts.finished(now)
        held = self._hold_time if self._gathering else None
        self._unread.append((now, size, duration, size + queued + self._running, held, ok))
        if len(self._unread) >= TOGETHER or self.light or self.cost.batches < GREEDY_BATCHES:
            self._learn()

    def _learn(self) -> None:
        """Learn from the completions that have not been learned from."""
        unread, self._unread = self._unread, []
        cost, load, guard, returns = self.cost, self.load, self.guard, self.returns
        for _, size, duration, _, _, ok in unread:
            if ok:
                cost.update(size, duration)
        if self.light or (cost.batches and cost.a < LIGHT):
            self._lighten(cost.a < LIGHT * HEAVIER)
        if self.light:
            return
        for now, size, duration, present, held, _ in unread:
            load.finished(now, size, duration, present)
            if guard is not None:
                greedy = min(self._max_size, max(1.0, load.present / (self.workers + 1)))
                expected = (held or 0.0) + cost.predict(size)  # one slow batch would say nothing about the hold
                guard.finished(held is not None, size, expected, cost.a / greedy + cost.c)
            if returns is not None:
                returns.finished(now, size)
        if returns is not None and returns.learn(self.arrivals, cost.a):
            returns.choose(cost.a, load.present, self.workers, self._max_size)
        if self.bursts is not None:
            self.bursts.learn(self.arrivals, cost, self._max_size)
        waits = self._window() or self.stagger or (self.bursts is not None and self.bursts.gap)
        self.passive = not waits or cost.batches < GREEDY_BATCHES
        if self.passive:
            self.reason = "idle"

    def _lighten(self, light: bool) -> None:
        """Go over to serving greedily, or come back from it; then what was seen before is no history of now."""
        if not light:
            self.load = Load()
            self.arrivals = Arrivals()
            for part in (self.returns, self.bursts):
                if part is not None:
                    part.forget_pending()
        self.light = self.passive = light
        self.reason = "idle"

    def _check(self) -> None:
        for part in (self.cost, self.returns, self.bursts):
            if part is not None:
                part._check()
        assert self._busy >= 0
        assert self._running >= 0
        assert self.light <= self.passive
        assert self._left >= 0 <= self._expected() <= max(self._released, 0)
        assert self.load.rate >= 0.0 <= self.load.present
