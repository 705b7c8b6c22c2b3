"""The adaptive policy: what it reaches, in virtual time, and what holds whatever it has learned."""

from __future__ import annotations

import sys
from collections import deque
from itertools import chain, repeat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ubatch._cost import Cost
from ubatch._policy import GREEDY_BATCHES, LIGHT, SAMPLE, STAGGER, Adaptive, Window
from ubatch._returns import Guard, relative_cost

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import virtual

SETTINGS = pytest.mark.parametrize("setting", virtual.SETTINGS, ids=lambda setting: setting.name)


def beside_greedy(setting, make, *, batches=500, workers=1, **options):
    """Runs of the adaptive policy and of greedy on the same traffic."""
    until = batches * setting.duration(setting.max_size / 4)
    policies = Adaptive(workers, **options), Window(0.0)
    return [virtual.simulate(policy, setting, arrivals=make(), until=until, workers=workers) for policy in policies]


# -- the figures, reduced ---------------------------------------------------------------------------------


@SETTINGS
@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", [virtual.poisson, lambda rate, seed: virtual.on_off(rate, 0.25, seed)])
def test_in_open_loop_it_is_as_good_as_greedy(setting, load, kind):
    """Callers that do not wait for each other lose nothing: random arrivals are not taken for anything else."""
    ours, greedy = beside_greedy(setting, lambda: kind(load * setting.capacity, 5), batches=400)
    assert ours.mean <= 1.01 * greedy.mean


@SETTINGS
@pytest.mark.parametrize("callers", [2, 8, 64])
@pytest.mark.parametrize(("think", "target"), [(0.05, 0.97), (0.3, 0.97), (0.6, 0.90)])
def test_returning_callers_are_gathered(setting, callers, think, target):
    """All that come back soon share one fixed cost."""
    size = min(callers, setting.max_size)
    wait = 0.0 if callers > setting.max_size else think * setting.a
    until = 250 * (setting.duration(size) + wait)
    run = virtual.simulate(Adaptive(), setting, callers=callers, think=virtual.constant(think * setting.a), until=until)
    assert run.throughput >= target * size / (setting.duration(size) + wait)


@SETTINGS
def test_a_burst_on_an_idle_system_is_gathered(setting):
    """The first of a fan-out waits for the others, where that pays."""
    target = {"gpu": 0.75, "cpu": 1.02, "net": 0.70}[setting.name]
    make = lambda: virtual.fan_out(0.05 * setting.capacity, 16, 20e-6, 1)  # noqa: E731
    ours, greedy = beside_greedy(setting, make, batches=6000)
    assert ours.mean <= target * greedy.mean


@SETTINGS
def test_the_starts_of_several_workers_are_staggered(setting):
    """Where the fixed cost dominates; elsewhere nothing is lost."""
    make = lambda: virtual.poisson(0.4 * 4 * setting.capacity, 2)  # noqa: E731
    ours, greedy = beside_greedy(setting, make, batches=600, workers=4)
    mean, p99 = (1.01, 1.01) if setting is virtual.CPU else (0.90, 0.80)
    assert ours.mean <= mean * greedy.mean
    assert ours.quantile(0.99) <= p99 * greedy.quantile(0.99)


@SETTINGS
def test_overload_is_served_in_full_batches(setting):
    """Nothing is held when more comes than can be served."""
    until = 200 * setting.duration(setting.max_size)
    run = virtual.simulate(Adaptive(), setting, arrivals=virtual.poisson(1.1 * setting.capacity, 3), until=until)
    assert run.throughput >= 0.99 * setting.capacity


def test_each_part_can_be_switched_off():
    """Without R, returning callers are served greedily; the rest goes on."""
    until = 200 * virtual.GPU.duration(8)
    think = virtual.uniform(0.05 * virtual.GPU.a)
    runs = [
        virtual.simulate(Adaptive(returns=returns, bursts=False), virtual.GPU, callers=8, think=think, until=until)
        for returns in (True, False)
    ]
    assert runs[0].throughput > 1.5 * runs[1].throughput


# -- the pieces -------------------------------------------------------------------------------------------


def test_the_cost_is_found():
    """Sizes that vary tell what a batch and what an item costs."""
    cost = Cost()
    for size in chain.from_iterable(repeat((1, 7, 20, 3), 60)):
        cost.update(size, 5e-3 + 1e-4 * size)
    assert (cost.a, cost.c) == (pytest.approx(5e-3, rel=0.01), pytest.approx(1e-4, rel=0.05))
    assert cost.predict(64) == pytest.approx(11.4e-3, rel=0.02)


def test_a_change_of_the_fixed_cost_is_followed_at_one_size():
    """The slope that was learned stands, while all batches have one size."""
    cost = Cost()
    for size in chain(chain.from_iterable(repeat((1, 8), 100)), repeat(8, 400)):
        cost.update(size, 5e-3 + 1e-4 * size)
    for _ in range(300):
        cost.update(8, 1e-3 + 8e-4)
    assert cost.a == pytest.approx(1e-3, rel=0.15)


def test_one_slow_batch_is_not_believed():
    """A pause of a second moves the fit by no more than eight times the usual would; a slow first call by nothing."""
    cost = Cost()
    for duration in (2.0, *repeat(5e-3, 100), 1.0):
        cost.update(1, duration)
    assert cost.duration <= 5e-3 * (1 + 8 / 50)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-1, 1e6)), max_size=50))
def test_the_cost_stays_within_its_bounds(batches):
    """Whatever the clock says: `0 <= c <= d/b`, `a >= 0`."""
    cost = Cost()
    for size, duration in batches:
        cost.update(size, duration)
        cost._check()


@given(st.floats(0.01, 1.0), st.floats(0.5, 20), st.integers(1, 8))
def test_random_arrivals_do_not_pay(wait, load, workers):
    """Open loop brings F = u/D, at most u/a: no window is taken up, with any number of workers."""
    share = min(wait / (1 + load), 1.0)
    assert relative_cost(share, wait, 2 * load + 1, workers, 64) > 0.97


def test_the_guard_ends_gathering_that_costs_more_than_it_saves():
    """For 64 batches, then twice as long each time, up to 512."""
    guard, pauses = Guard(), []
    for _ in range(5):
        while not guard.barred:
            guard.finished(True, 1, 2.0, 1.0)
        pauses.append(guard.barred)
        while guard.barred:
            guard.finished(False, 1, 1.0, 1.0)
    assert pauses == [64, 128, 256, 512, 512]


# -- what holds whatever was learned ----------------------------------------------------------------------

gaps = st.one_of(st.just(0.0), st.floats(0, 2e-3), st.floats(0, 0.5))
durations = st.one_of(st.just(0.0), st.floats(0, 1e-3), st.floats(1e-3, 0.1))


@settings(max_examples=60)
@given(st.integers(1, 4), st.lists(st.tuples(gaps, durations), min_size=1, max_size=120))
def test_a_single_sequential_caller_is_never_held(workers, calls):
    """Whatever its think times and however the handler's durations vary."""
    policy, now = Adaptive(workers), 100.0
    for think, duration in calls:
        now += think + 1e-6
        assert policy.decide(now, 1, now, 8, now) is None
        if policy.watch():
            policy.cut(now, [now], 0, 8)
        now += duration
        if not policy.light or policy._busy:
            policy.finished(now, 1, duration, 0)
        assert policy.expect(now, 8) is None
        policy._check()


class AnyTraffic(RuleBasedStateMachine):
    """A driver of one worker or several that does what the policy says, with a clock that may do anything."""

    @initialize(workers=st.integers(1, 3), max_size=st.integers(1, 8), steady=st.booleans())
    def begin(self, workers, max_size, steady):
        self.policy = Adaptive(workers)
        self.max_size, self.steady = max_size, steady
        self.now = self.free_at = 1000.0
        self.free = workers
        self.queue: deque[tuple[float, int]] = deque()
        self.running: list[tuple[float, bool, int]] = []
        self.count = self.served = 0

    def look(self):
        while self.free and self.queue:
            oldest = self.queue[0][0]
            bound = max(self.policy.cost.a, STAGGER * self.policy.load.duration / self.policy.workers)
            hold = self.policy.decide(self.now, len(self.queue), oldest, self.max_size, self.queue[-1][0])
            if hold is not None:
                assert len(self.queue) < hold.wake_at <= self.max_size
                assert hold.until <= self.now + bound + 1e-9
                if self.steady:
                    assert self.now < hold.until <= max(oldest, self.free_at) + bound + 1e-9
                return
            batch = [self.queue.popleft() for _ in range(min(len(self.queue), self.max_size))]
            assert [number for _, number in batch] == list(range(self.served, self.served + len(batch)))
            self.served += len(batch)
            self.free -= 1
            watched = self.policy.watch()
            if watched:
                self.policy.cut(self.now, [arrived for arrived, _ in batch], len(self.queue), self.max_size)
            self.running.append((self.now, watched, len(batch)))

    @rule(count=st.integers(1, 12), step=st.sampled_from([0.0, 1e-5, 1e-3]))
    def submit(self, count, step):
        for _ in range(count):
            self.now += step
            self.queue.append((self.now, self.count))
            self.count += 1
            self.look()

    @precondition(lambda self: self.running)
    @rule(duration=durations, ok=st.booleans(), which=st.integers(0, 2))
    def finish(self, duration, ok, which):
        started, watched, size = self.running.pop(which % len(self.running))
        self.now = max(self.now, started + duration) if self.steady else self.now + duration
        if not self.free:
            self.free_at = self.now
        self.free += 1
        if watched:
            self.policy.finished(self.now, size, duration, len(self.queue), ok)
        self.look()

    @rule(time=gaps)
    def wait(self, time):
        self.now += time
        self.look()

    @precondition(lambda self: not self.steady)
    @rule(back=st.floats(0, 1000))
    def jump_back(self, back):
        self.now -= back
        self.look()

    @precondition(lambda self: self.free and self.queue and self.steady)
    @rule()
    def wait_until_the_bound(self):
        """Once its bound is over, nothing is held."""
        bound = max(self.policy.cost.a, STAGGER * self.policy.load.duration / self.policy.workers)
        self.now = max(self.now, max(self.queue[0][0], self.free_at) + bound + 1e-9)
        self.look()
        assert not (self.free and self.queue)

    @invariant()
    def check(self):
        if hasattr(self, "policy"):
            self.policy._check()


TestAnyTraffic = AnyTraffic.TestCase
TestAnyTraffic.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


@given(st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 2), st.integers(1, 9))
def test_a_window_ignores_what_it_does_not_look_at(timeout, oldest, age, queued):
    """`timeout=t` is never exceeded, whoever came last."""
    now = oldest + age
    with_all = Window(timeout).decide(now, queued, oldest, 10, now)
    bare = Window(timeout).decide(now, queued, oldest, 10)
    assert (with_all is None) == (bare is None)
    assert with_all is None or with_all.until <= oldest + timeout


def test_the_first_batches_and_short_ones_are_greedy():
    """Nothing is held before the fifth batch, nor where the fixed cost is below 200 µs; then 1 in 16 is timed."""
    policy, now, watched = Adaptive(), 0.0, 0
    for number in range(GREEDY_BATCHES + 160):
        now += 1.0
        assert policy.decide(now, 1, now, 8, now) is None
        if number <= GREEDY_BATCHES:
            assert policy.passive
        if policy.watch():
            watched += 1
            policy.cut(now, [now], 0, 8)
            policy.finished(now, 1, LIGHT / 10, 0)
    assert policy.light
    assert watched <= 2 + (GREEDY_BATCHES + 160) / SAMPLE


def test_a_handler_that_becomes_slow_is_learned_again():
    """Of short batches one in sixteen is timed, so a change is seen."""
    policy, now = Adaptive(), 0.0
    for number in range(3000):
        now += 1.0
        if policy.watch():
            policy.cut(now, [now], 0, 8)
            policy.finished(now, 1, 50e-6 if number < 200 else 5e-3, 0)
    assert not policy.light


@pytest.mark.parametrize(
    ("before", "after", "think"), [(0.001, 0.02, 0.002), (0.0001, 0.02, 0.0004), (1e-6, 0.02, 0.002)]
)
def test_a_handler_that_becomes_slow_under_returning_callers_is_learned_again(before, after, think):
    """Batches grow as it slows down, and what the fixed cost does to both is not put down to their size for good."""
    run = virtual.simulate(
        Adaptive(),
        virtual.GPU,
        callers=8,
        think=virtual.constant(think),
        cost=lambda now, size: before if now < 1.0 else after,
        until=9.0,
        stamps=True,
    )
    late = sum(at > 5.0 for at in run.finished)
    assert late >= 0.95 * 4.0 * 8 / (after + think)


@SETTINGS
def test_once_bursts_are_over_nobody_is_held_for_more(setting):
    """A single caller that follows them is held for a few companions that do not come, then no more."""
    bursts = [at + index * 1e-5 for at in (0.1 * n for n in range(1, 21)) for index in range(16)]
    alone = [2.5 + 0.1 * n for n in range(20)]
    run = virtual.simulate(Adaptive(), setting, arrivals=[*bursts, *alone], until=5.0, warm_up=0.0, noise=0.0)
    latencies = run.latencies[-20:]
    assert latencies[4:] == pytest.approx([setting.duration(1)] * 16)
