"""The adaptive policy and the window through the thread driver, in virtual time: what waits, how long, how it is woken.

The worker is a real thread, but its clock stands still until the test moves it, and what it sleeps by is counted. So
times are exact: the only tolerance is `ROUNDING`, for sums of floats.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ubatch._driver
import ubatch._seats
import ubatch._turns
import ubatch._waiters
from ubatch import UBatch
from ubatch._policy import GREEDY_BATCHES, LIGHT, SAMPLE, STAGGER

PATIENCE = 10.0  # real seconds; what takes longer never ends
ROUNDING = 1e-9
A, C = 5e-3, 0.1e-3  # of most handlers here


class VirtualTime:
    """The worker's clock and its sleeps. Time passes when the test says so, and stops wherever the worker acts."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses = self.rings = 0  # how often the worker was back from a pause; how often somebody rang
        self._changed = threading.Condition()
        self._sleep: tuple[float, Callable[[], bool]] | None = None  # the worker's: until when, or until what
        self._over = False

    def __call__(self) -> float:
        return self.now

    def _block(self, seconds: float, rung: Callable[[], bool]) -> None:
        with self._changed:
            deadline = self.now + seconds
            self._sleep = deadline, rung
            self._changed.notify_all()
            awake = lambda: self._over or self.now >= deadline or rung()  # noqa: E731
            assert self._changed.wait_for(awake, PATIENCE), "nobody moved the clock"
            self._sleep = None

    def sleep(self, seconds: float) -> None:
        """What a handler does."""
        if not self._over:
            self._block(seconds, lambda: False)

    def pause(self, seat: Any, seconds: float) -> bool:
        """In place of `Seat.pause`."""
        if self._over:
            return bool(seat.token.acquire(True, min(seconds, PATIENCE)))
        self._block(seconds, lambda: not seat.token.locked())
        self.pauses += 1
        return bool(seat.token.acquire(True, PATIENCE) if self._over else seat.token.acquire(False))

    def rung(self, ring: Callable[[Any], None], seat: Any) -> None:
        """In place of `Seat.ring`."""
        with self._changed:
            self.rings += 1
            ring(seat)
            self._changed.notify_all()

    def settle(self, batch: UBatch[Any, Any]) -> float:
        """Wait until the worker can only go on if time does, or an item comes; until when it sleeps."""

        def settled() -> bool:
            if batch._seat is ubatch._seats.NOBODY:
                return True
            return self._sleep is not None and self.now < self._sleep[0] and not self._sleep[1]()

        with self._changed:
            assert self._changed.wait_for(settled, PATIENCE), "the worker never sleeps"
            return self._sleep[0] if self._sleep else float("inf")

    def step(self, batch: UBatch[Any, Any], until: float) -> bool:
        """Go on to `until`, or to where the worker wakes before that; whether `until` is reached."""
        deadline = self.settle(batch)
        with self._changed:
            self.now = max(self.now, min(deadline, until))
            self._changed.notify_all()
        self.settle(batch)
        return self.now >= until

    def advance(self, batch: UBatch[Any, Any], seconds: float) -> None:
        until = self.now + seconds
        while not self.step(batch, until):
            pass

    def end(self) -> None:
        """Nobody sleeps any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


class Handler:
    """Takes `a + c·b` of virtual time; remembers what it got, when, and what the policy allowed by then."""

    def __init__(self, clock: VirtualTime, a: float = A, c: float = C) -> None:
        self.clock, self.a, self.c = clock, a, c
        self.batch: Any = None
        self.cuts: list[tuple[float, float, float, list[Any]]] = []  # when; when it was free; hard bound; items
        self.free_at = 0.0

    def __call__(self, items: list[Any]) -> list[Any]:
        policy = self.batch._policy
        bound = max(policy.cost.a, STAGGER * policy.load.duration) if policy.cost else policy.timeout
        self.cuts.append((self.clock.now, self.free_at, bound, items))
        self.clock.sleep(self.a + self.c * len(items))
        self.free_at = self.clock.now
        if "bad" in items:
            raise ArithmeticError
        return items

    @property
    def sizes(self) -> list[int]:
        return [len(items) for *_, items in self.cuts]


@contextmanager
def batcher(
    max_size: int = 64, timeout: float | None = None, a: float = A, c: float = C
) -> Iterator[tuple[UBatch[Any, Any], VirtualTime, Handler]]:
    """A batcher in virtual time, its clock and its handler."""
    clock = VirtualTime()
    handler = Handler(clock, a, c)
    ring = ubatch._seats.Seat.ring
    with pytest.MonkeyPatch.context() as patch:
        for module in (ubatch._driver, ubatch._waiters):
            patch.setattr(module, "monotonic", clock)
        patch.setattr(ubatch._turns, "IDLE_EXIT", 1e9)
        patch.setattr(ubatch._seats.Seat, "pause", lambda seat, seconds: clock.pause(seat, seconds))
        patch.setattr(ubatch._seats.Seat, "ring", lambda seat: clock.rung(ring, seat))
        batch: UBatch[Any, Any] = UBatch(max_size, timeout, handler=handler)
        handler.batch = batch
        try:
            yield batch, clock, handler
        finally:
            clock.end()
            assert batch.stop(timeout=PATIENCE)


def closed_loop(
    batch: UBatch[Any, Any], clock: VirtualTime, callers: int, batches: int, think: float = 0.1 * A
) -> None:
    """K callers that come back, one after another within `think` of their results, until so many batches have left."""
    wanted = batch.stats.batches + batches
    due = [(clock.now + think * (n + 1) / callers, n) for n in range(callers)]
    waiting: dict[int, Any] = {}
    while batch.stats.batches < wanted:
        if clock.step(batch, due[0][0] if due else float("inf")) and due:
            waiting[due[0][1]] = batch.submit(due[0][1])
            heapq.heappop(due)
            clock.settle(batch)
        for n in [n for n, future in waiting.items() if future.done()]:
            assert waiting.pop(n).result() == n
            heapq.heappush(due, (clock.now + think * (n + 1) / callers, n))
    while not all(future.done() for future in waiting.values()):
        clock.step(batch, float("inf"))


def burst(batch: UBatch[Any, Any], clock: VirtualTime, size: int, spacing: float = 2**-16) -> None:
    """So many items upon an idle system; then nothing for a second."""
    for n in range(size):
        batch.submit(n)
        clock.advance(batch, spacing)
    clock.advance(batch, 1.0)


# -- how it is woken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callers", [2, 8, 32])
def test_gathering_costs_one_wake_up_for_each_batch(callers):
    """Returning callers do not wake the worker one by one, and it does not poll: the last one wakes it."""
    with batcher() as (batch, clock, handler):
        closed_loop(batch, clock, callers, 40)
        before, pauses, rings = batch.stats, clock.pauses, clock.rings
        closed_loop(batch, clock, callers, 20)
        assert batch.stats.gathered - before.gathered == 20
        assert handler.sizes[-20:] == [callers] * 20
        assert (clock.pauses - pauses, clock.rings - rings) == (20, 20)


def test_a_window_costs_one_wake_up_for_its_first_item_and_one_for_its_end():
    """However many items come into it. (Times are sums of powers of two, so that none is rounded.)"""
    with batcher(64, 2**-6) as (batch, clock, handler):
        burst(batch, clock, 2)
        pauses, rings = clock.pauses, clock.rings
        burst(batch, clock, 30)
        assert (clock.pauses - pauses, clock.rings - rings) == (2, 1)
        assert handler.sizes == [2, 30]


# -- how long items are held ----------------------------------------------------------------------------------

actions = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 1e-5, 1e-3, 4e-3, 0.02, 0.3])), max_size=25)


def play(batch: UBatch[Any, Any], clock: VirtualTime, script: list[tuple[int, float]]) -> dict[int, float]:
    """Submit items, numbered, with pauses; when each came. All have left in the end."""
    arrived: dict[int, float] = {}
    for count, seconds in script:
        for _ in range(count):
            number = len(arrived)
            arrived[number] = clock.now
            batch.submit(number)
            clock.settle(batch)
        clock.advance(batch, seconds)
    clock.advance(batch, 100.0)
    return arrived


def check(handler: Handler, start: int, arrived: dict[int, float], max_size: int) -> None:
    """In order, none too many, none twice, none lost, and no item held beyond the bound."""
    left = handler.cuts[start:]
    assert [item for *_, items in left for item in items] == list(arrived)
    for at, free_at, bound, items in left:
        assert len(items) <= max_size
        assert at <= max(arrived[items[0]], free_at) + bound + ROUNDING


@settings(max_examples=25)
@given(actions, st.integers(1, 8), st.sampled_from([0.0, 1e-3, 7e-3, 0.1]))
def test_a_timeout_is_never_exceeded_while_the_worker_is_idle(script, max_size, timeout):
    """A batch leaves full, or exactly when its oldest item is `timeout` old, or as soon after as the worker is free."""
    with batcher(max_size, timeout) as (batch, clock, handler):
        arrived = play(batch, clock, script)
        check(handler, 0, arrived, max_size)
        for at, free_at, _, items in handler.cuts:
            closes = max(arrived[items[0]] + timeout, free_at)
            assert at <= closes + ROUNDING
            assert at >= closes - ROUNDING or len(items) == max_size


@settings(max_examples=25)
@given(actions, st.integers(2, 12), st.integers(1, 12), st.booleans())
def test_no_item_is_held_beyond_the_hard_bound_while_the_worker_is_idle(script, callers, max_size, bursts):
    """Whatever it has learned, and however much the traffic that follows differs from that."""
    with batcher(max_size) as (batch, clock, handler):
        if bursts:
            for _ in range(8):
                burst(batch, clock, callers)
        else:
            closed_loop(batch, clock, callers, 15)
        start = len(handler.cuts)
        check(handler, start, play(batch, clock, script), max_size)


@pytest.mark.parametrize("think", [0.0, 1e-4, 2e-3, 0.05])
def test_a_sequential_caller_is_not_held(think):
    """Its item is cut at the very moment that it comes, however soon that is after the last."""
    with batcher() as (batch, clock, handler):
        for n in range(60):
            came = clock.now
            future = batch.submit(n)
            while not future.done():
                clock.step(batch, float("inf"))
            assert handler.cuts[-1][0] == came
            clock.advance(batch, think)
        assert batch.stats.idle == batch.stats.batches == 60


def test_where_one_caller_does_not_return_the_others_wait_no_longer_than_was_learned():
    """At most the fixed cost; and then the batch counts as one whose time was over."""
    with batcher() as (batch, clock, handler):
        closed_loop(batch, clock, 8, 40)
        before = batch.stats
        for n in range(3):
            batch.submit(n)
        clock.advance(batch, 1.0)
        at, free_at, _, items = handler.cuts[-1]
        assert items == [0, 1, 2]
        assert 0 < at - free_at <= A * 1.05
        assert batch.stats.window == before.window + 1


# -- what is counted and learned ------------------------------------------------------------------------------


def full(batch, clock):
    for n in range(64):
        batch.submit(n)
    clock.advance(batch, 1.0)


def window(batch, clock):
    batch.timeout = 0.01
    batch.submit(0)
    clock.advance(batch, 0.01)


def gathered(batch, clock):
    closed_loop(batch, clock, 8, 30)
    assert batch.stats.gathered > 20


def bursts(batch, clock):
    for _ in range(12):
        burst(batch, clock, 6)
    assert batch.stats.burst > 5


def idle(batch, clock):
    batch.submit(0)
    clock.settle(batch)


def drained(batch, clock):
    batch.timeout = 1000.0
    batch.submit(0)
    clock.settle(batch)
    clock.end()
    assert batch.stop(timeout=PATIENCE)


@pytest.mark.parametrize("cause", [full, window, gathered, bursts, idle, drained], ids=lambda cause: cause.__name__)
def test_why_batches_left_is_counted(cause):
    """Each of the six reasons, under its name; together they are the batches."""
    with batcher() as (batch, clock, handler):
        cause(batch, clock)
        stats = batch.stats
        name = "burst" if cause is bursts else cause.__name__
        assert getattr(stats, name) >= 1
        if cause in (full, window, idle, drained):
            assert (getattr(stats, name), stats.batches) == (1, 1)
        assert stats.batches == len(handler.cuts)


def test_the_cost_of_a_batch_is_told():
    """`stats.a` and `stats.c` come to what the handler takes; with a `timeout` nothing is learned."""
    with batcher(a=5e-3, c=0.2e-3) as (batch, clock, _):
        assert (batch.stats.a, batch.stats.c) == (0.0, 0.0)
        for size in (1, 20, 5, 40) * 12:
            for future in [batch.submit(n) for n in range(size)]:
                while not future.done():
                    clock.step(batch, float("inf"))
        assert batch.stats.a == pytest.approx(5e-3, rel=0.05)
        assert batch.stats.c == pytest.approx(0.2e-3, rel=0.1)
        batch.timeout = 0.0
        assert (batch.stats.a, batch.stats.c) == (0.0, 0.0)


@pytest.mark.parametrize("timeout", [None, 0.0, 0.001])
def test_the_cost_is_learned_in_real_time(timeout):
    """Within what a busy machine adds to a sleep."""

    def handler(items):
        time.sleep(2e-3 + 0.2e-3 * len(items))
        return items

    with UBatch(32, timeout, handler=handler) as batch:
        for size in (1, 32, 8, 16) * 6:
            assert batch.map(range(size)) == [*range(size)]
        stats = batch.stats
    if timeout is None:
        assert 0.5e-3 < stats.a < 20e-3
        assert 0.02e-3 < stats.c < 2e-3
    else:
        assert (stats.a, stats.c) == (0.0, 0.0)


def test_failed_batches_do_not_feed_the_cost():
    """How long a handler takes to fail says nothing about the next batch."""
    with batcher() as (batch, clock, handler):
        closed_loop(batch, clock, 4, 20)
        learned = batch.stats.a, batch.stats.c
        handler.a = 3.0
        future = batch.submit("bad")
        clock.advance(batch, 10.0)
        assert isinstance(future.exception(), ArithmeticError)
        assert (batch.stats.a, batch.stats.c) == learned
        assert batch._policy.cost.batches == batch.stats.batches - 1


@pytest.mark.parametrize("warm", [0, 40])
def test_a_failed_batch_does_not_stop_the_gathering(warm):
    """Neither the first one, which tells nothing of the cost, nor a slow one later, which is no fault of waiting."""
    with batcher() as (batch, clock, handler):
        if warm:
            closed_loop(batch, clock, 8, warm)
        handler.a = 1.0
        batch.submit("bad")
        clock.advance(batch, 10.0)
        handler.a = A
        closed_loop(batch, clock, 8, 40)
        assert handler.sizes[-30:] == [8] * 30
        assert batch.stats.errors == 1


def test_short_batches_are_not_waited_for_and_seldom_timed():
    """With a fixed cost below 200 µs each batch leaves as soon as item and worker are there; 1 in 16 is timed."""
    with batcher(a=LIGHT / 2, c=1e-6) as (batch, clock, handler):
        timed = []
        finished = batch._policy.finished
        batch._policy.finished = lambda *args: (timed.append(args), finished(*args))
        closed_loop(batch, clock, 8, 400, think=10e-6)
        assert batch.stats.idle == batch.stats.batches
        assert all(at <= free_at + 10e-6 + ROUNDING for at, free_at, *_ in handler.cuts[1:])
        assert 400 / SAMPLE - 1 <= len(timed) <= 400 / SAMPLE + GREEDY_BATCHES + 1


# -- changes while it runs ------------------------------------------------------------------------------------


def test_the_policy_changes_while_it_runs():
    """From adaptive to a window and back: each takes over at the next cut, and adaptive learns anew."""
    with batcher() as (batch, clock, handler):
        closed_loop(batch, clock, 8, 30)
        assert batch.stats.gathered > 20
        batch.timeout = 0.05
        assert batch.stats.a == 0.0
        batch.submit(0)
        came = clock.now
        clock.advance(batch, 1.0)
        assert handler.cuts[-1][0] == pytest.approx(came + 0.05)
        batch.timeout = None
        batch.submit(1)
        came = clock.now
        clock.settle(batch)
        assert handler.cuts[-1][0] == came
        before = batch.stats
        closed_loop(batch, clock, 8, 30)
        assert batch.stats.gathered - before.gathered > 20
        assert batch.stats.a == pytest.approx(A, rel=0.3)


@pytest.mark.parametrize("timeouts", [(None, 0.05), (0.05, None), (None, 0.0), (0.0, None)])
def test_the_policy_changes_while_a_batch_runs(timeouts):
    """What the old one has begun to learn is of no concern to the new one."""
    with batcher(4, timeouts[0]) as (batch, clock, handler):
        futures = deque(batch.submit(n) for n in range(4))
        clock.settle(batch)
        batch.timeout = timeouts[1]
        futures.extend(batch.submit(n) for n in range(4, 14))
        clock.advance(batch, 1.0)
        assert [future.result(0) for future in futures] == [*range(14)]
        assert handler.sizes == [4, 4, 4, 2]
        assert batch.timeout == timeouts[1]
        if batch._policy.cost is not None:
            batch._policy._check()
            assert batch._policy.cost.batches == 3


def test_a_hold_ends_when_the_policy_changes():
    """Items that a window holds leave at once if nothing is to be held any more."""
    with batcher(64, 1000.0) as (batch, clock, handler):
        batch.submit(0)
        clock.advance(batch, 1.0)
        assert handler.cuts == []
        batch.timeout = None
        clock.settle(batch)
        assert handler.sizes == [1]


def test_random_think_times_never_hang(seed):
    """Callers that come back at random, with parts of them gone for long: all get their results."""
    rng = random.Random(seed)
    with batcher(16) as (batch, clock, handler):
        for _ in range(15):
            closed_loop(batch, clock, rng.randint(1, 24), rng.randint(1, 12), think=rng.choice([0, 1e-4, 3e-3, 0.02]))
            clock.advance(batch, rng.choice([0.0, 1e-3, 1.0]))
            batch._policy._check()
        assert max(handler.sizes) <= 16
        assert batch.stats.queued == batch.stats.running == 0
