"""A batcher in virtual time: arrivals, a policy, workers that take `a + c·b`; and the rules of other libraries.

The policies of `ubatch._policy` run here unchanged, driven as a real driver would: asked when a worker is free
and something is queued, woken at `Hold.until` or when `Hold.wake_at` items are queued, told of each batch.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

from ubatch._policy import Hold, Window


class Setting(NamedTuple):
    """A handler, `a + c·b` seconds for `b` items, and the largest batch."""

    name: str
    a: float
    c: float
    max_size: int

    def duration(self, size: float) -> float:
        return self.a + self.c * size

    @property
    def capacity(self) -> float:
        """Items per second of one worker that runs full batches only."""
        return self.max_size / self.duration(self.max_size)


GPU = Setting("gpu", 5e-3, 0.1e-3, 64)
CPU = Setting("cpu", 0.5e-3, 0.4e-3, 32)
NET = Setting("net", 20e-3, 0.05e-3, 100)
SETTINGS = (GPU, CPU, NET)


class Run(NamedTuple):
    """What came of a simulation after its warm-up."""

    latencies: list[float]
    finished: list[float]
    batches: int
    span: float

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.span

    @property
    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies)

    def quantile(self, q: float) -> float:
        return sorted(self.latencies)[int(q * (len(self.latencies) - 1))]


def simulate(
    policy: Any,
    setting: Setting,
    *,
    until: float,
    arrivals: Iterable[float] = (),
    callers: int = 0,
    think: Callable[[random.Random], float] = lambda rng: 0.0,
    workers: int = 1,
    warm_up: float = 0.2,
    noise: float = 0.1,
    seed: int = 0,
    cost: Callable[[float, int], float] | None = None,
    stamps: bool = False,
) -> Run:
    """Run a batcher for `until` virtual seconds.

    Args:
        policy: anything with the methods of `ubatch._policy.Adaptive`.
        arrivals: times, in order, of items whose callers do not come back.
        callers: how many callers come back, each `think(rng)` seconds after its result.
        warm_up: share of the time that is not counted.
        noise: standard deviation of a batch's duration, relative to its mean.
        stamps: whether to record when each item was finished.
        cost: `cost(now, size)` in place of the setting's `a + c·size`.
    """
    rng = random.Random(seed)
    thinking = random.Random(seed + 1)
    tick = count()
    events: list[tuple[float, int, str, Any]] = []
    push, pop = heapq.heappush, heapq.heappop
    stream = iter(arrivals)
    queue: deque[tuple[float, bool]] = deque()  # arrival; whether its caller comes back
    free, hold, asked = workers, None, 0
    latencies: list[float] = []
    finished: list[float] = []
    batches = 0
    counted_from = warm_up * until

    def feed() -> None:
        at = next(stream, None)
        if at is not None:
            push(events, (at, next(tick), "open", None))

    feed()
    for _ in range(callers):
        push(events, (think(thinking), next(tick), "closed", None))
    while events:
        now, _, kind, what = pop(events)
        if now > until:
            break
        if kind == "done":
            batch, duration, watched = what
            free += 1
            if watched:
                policy.finished(now, len(batch), duration, len(queue))
            for arrived, returns in batch:
                if returns:
                    push(events, (now + think(thinking), next(tick), "closed", None))
                if now >= counted_from:
                    latencies.append(now - arrived)
            if stamps:
                finished.extend([now] * len(batch))
        elif kind == "timer":
            if what != asked:  # of a hold that is over
                continue
        else:
            queue.append((now, kind == "closed"))
            if kind == "open":
                feed()
            if not free or (hold is not None and len(queue) < hold.wake_at):
                continue
        hold = None
        while free and queue:
            asked += 1
            oldest = queue[0][0]
            hold = policy.decide(now, len(queue), oldest, setting.max_size, queue[-1][0])
            if hold is not None and hold.until <= now:  # its time is up, but for the rounding of floats
                hold = None
            if hold is not None:
                push(events, (hold.until, next(tick), "timer", asked))
                break
            batch = [queue.popleft() for _ in range(min(len(queue), setting.max_size))]
            free -= 1
            watched = policy.watch()
            if watched:
                policy.cut(now, [arrived for arrived, _ in batch], len(queue), setting.max_size)
            duration = setting.duration(len(batch)) if cost is None else cost(now, len(batch))
            duration *= max(0.5, rng.gauss(1.0, noise)) if noise else 1.0
            push(events, (now + duration, next(tick), "done", (batch, duration, watched)))
            batches += now >= counted_from
    return Run(latencies, finished, batches, until - counted_from)


# -- arrivals ---------------------------------------------------------------------------------------------


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Independent arrivals."""
    rng, now = random.Random(seed), 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def on_off(rate: float, period: float, seed: int) -> Iterator[float]:
    """Arrivals at twice the rate in phases of `period` seconds on average, and none in the phases between."""
    rng, now, end = random.Random(seed), 0.0, 0.0
    while True:
        if now >= end:
            now = end + rng.expovariate(1 / period)
            end = now + rng.expovariate(1 / period)
        now += rng.expovariate(2 * rate)
        if now < end:
            yield now


def fan_out(rate: float, size: int, spacing: float, seed: int) -> Iterator[float]:
    """Bursts of `size` items, `spacing` seconds apart, `rate` items a second in all."""
    rng = random.Random(seed)
    now = at = 0.0
    while True:
        now += rng.expovariate(rate / size)
        at = max(at, now)
        for _ in range(size):
            at += spacing * rng.uniform(0.5, 1.5)
            yield at


def uniform(longest: float) -> Callable[[random.Random], float]:
    """Think times between (almost) 0 and `longest`."""
    return lambda rng: rng.uniform(0.001, 1.0) * longest


def constant(time: float) -> Callable[[random.Random], float]:
    """Think times that differ by 1 %."""
    return lambda rng: time * rng.uniform(0.99, 1.01)


# -- the rules of others ----------------------------------------------------------------------------------


class Peer(Window):
    """A rule that is asked at the times of its own choosing."""

    __slots__ = ("_next",)

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self._next: float | None = None

    def watch(self) -> bool:
        return True

    def cut(self, now: float, arrived: Any, queued: int, max_size: int) -> None:
        self._next = None


class Unbatched(Peer):
    """Every item alone: the setting's `max_size` is 1, there is nothing to decide."""

    def decide(self, *_: Any) -> Hold | None:
        return None


class SleepIfNotFull(Peer):
    """If the batch is not full, sleep for the whole window, then take what is there (`batched`)."""

    def decide(self, now: float, queued: int, oldest: float, max_size: int, *_: Any) -> Hold | None:
        if queued >= max_size or (self._next is not None and now >= self._next):
            return None
        self._next = now + self.timeout
        return Hold(self._next, 1 << 60)


class PolledWindow(Window):
    """A fixed window that is looked at every 2 ms (`ubatch` 1.0)."""

    TICK = 2e-3

    def decide(self, now: float, queued: int, oldest: float, max_size: int, *_: Any) -> Hold | None:
        if queued >= max_size or now - oldest >= self.timeout:
            return None
        return Hold((now // self.TICK + 1) * self.TICK + 1e-9, 1 << 60)


class Cork(Peer):
    """Wait while n·(w_n + dt + a) <= 0.95 · mean wait, looked at every millisecond (BentoML)."""

    TICK = 1e-3

    __slots__ = ("_a", "_wait")

    def __init__(self, a: float) -> None:
        super().__init__(0.0)
        self._a = a
        self._wait = 0.0

    def decide(self, now: float, queued: int, oldest: float, max_size: int, newest: float = 0.0) -> Hold | None:
        if queued < max_size and queued * (now - newest + self.TICK + self._a) <= 0.95 * self._wait:
            return Hold(now + self.TICK, 1 << 60)
        return None

    def cut(self, now: float, arrived: Any, queued: int, max_size: int) -> None:
        mean = sum(now - at for at in arrived) / len(arrived)
        self._wait = 0.95 * self._wait + 0.05 * mean
