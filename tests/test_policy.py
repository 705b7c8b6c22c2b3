"""When a free worker takes what is queued."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from ubatch._policy import Window

times = st.floats(0, 1e9)
timeouts = st.one_of(st.just(0.0), st.just(math.inf), st.floats(0, 1e6))
sizes = st.integers(1, 10_000)
more = st.integers(0, 10_000)


@given(timeouts, times, times, sizes, more)
def test_a_full_batch_is_never_held(timeout, now, oldest, max_size, beyond):
    """Once `max_size` items are there, nothing is waited for."""
    assert Window(timeout).decide(now, max_size + beyond, oldest, max_size) is None


@given(times, times, sizes, sizes)
def test_without_a_timeout_nothing_is_held(oldest, age, queued, max_size):
    """`timeout=0` is greedy, on any clock that does not run backwards."""
    assert Window(0.0).decide(oldest + age, queued, oldest, max_size) is None


@given(timeouts, times, times, sizes, sizes)
def test_no_item_is_held_longer_than_the_timeout(timeout, now, oldest, queued, max_size):
    """A hold ends `timeout` after the oldest item's arrival, and `timeout` from now if the clock ran backwards."""
    hold = Window(timeout).decide(now, queued, oldest, max_size)
    if hold is not None:
        assert hold.until <= oldest + timeout
        assert hold.until <= now + timeout


@given(times, times, times, sizes, sizes)
def test_an_item_that_has_waited_its_time_is_not_held(oldest, age, rest, queued, max_size):
    """Wherever it spent that time: the window runs from the arrival, not from the worker's look."""
    now = oldest + age + rest
    assert Window(min(age, now - oldest)).decide(now, queued, oldest, max_size) is None


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.integers(1, 10**6), sizes, st.integers(1, 10_000))
def test_what_is_young_and_not_full_is_held(oldest, age, rest, queued, missing):
    """Until its time is up or the batch is full, whichever comes first."""
    hold = Window(float(age + rest)).decide(float(oldest + age), queued, float(oldest), queued + missing)
    assert hold is not None
    assert (hold.until, hold.wake_at) == (oldest + age + rest, queued + missing)


@given(timeouts, times, times, st.integers(1, 99), st.integers(0, 99))
def test_more_arrivals_do_not_prolong_a_hold(timeout, now, oldest, queued, arrivals):
    """However many come, the hold ends at the same time, or at once."""
    policy = Window(timeout)
    first = policy.decide(now, queued, oldest, 100)
    second = policy.decide(now, queued + arrivals, oldest, 100)
    assert second is None or (first is not None and second.until == first.until)


@given(st.floats(1e-6, 1e6), times)
@example(0.1, 1e9)
def test_a_hold_ends_when_it_says(timeout, oldest):
    """Asked again at that time, but for the rounding of floats, the policy says to cut."""
    policy = Window(timeout)
    hold = policy.decide(oldest, 1, oldest, 2)
    assert hold is not None
    assert policy.decide(hold.until + 4 * math.ulp(hold.until), 1, oldest, 2) is None


@given(st.floats(0.001, 10), st.lists(st.floats(-5, 5), max_size=30))
def test_a_clock_that_jumps_holds_nobody_for_ever(timeout, jumps):
    """Whatever the clock does, each hold is at most `timeout` long, and ends once the clock goes on."""
    policy, oldest = Window(timeout), 1000.0
    now = oldest
    for jump in jumps:
        hold = policy.decide(now, 1, oldest, 2)
        assert hold is None or hold.until - now <= timeout + 1e-9
        now += jump
    assert policy.decide(max(now, oldest) + timeout + 1e-9, 1, oldest, 2) is None


def test_a_clock_that_stands_still_changes_no_answer():
    """The same question at the same time has the same answer."""
    policy = Window(0.5)
    answers = [policy.decide(7.0, 1, 6.75, 2) for _ in range(3)]
    assert [(hold.until, hold.wake_at) for hold in answers] == [(7.25, 2)] * 3


def test_an_endless_timeout_waits_for_a_full_batch():
    """Whatever the time, only the size closes the window."""
    policy = Window(math.inf)
    assert policy.decide(1e9, 9, 0.0, 10).until == math.inf
    assert policy.decide(1e9, 10, 0.0, 10) is None
