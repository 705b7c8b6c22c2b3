"""When something is tried again that failed."""

from __future__ import annotations

import pytest

from ubatch._backoff import FIRST_PAUSE, LONGEST_PAUSE, TRIES, Backoff

REASON = ValueError("no")


def failed(backoff: Backoff, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        backoff.failed(now, now, REASON)


def test_pauses_grow():
    """Twice as long each time, up to a limit; however many there were."""
    backoff = Backoff()
    pauses = []
    for _ in range(2000):
        backoff.failed(100.0, 100.0, REASON)
        pauses.append(backoff.until - 100.0)
    assert pauses[:4] == pytest.approx([FIRST_PAUSE * factor for factor in (1, 2, 4, 8)])
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)
    assert backoff.reason is REASON


@pytest.mark.parametrize("succeeded", [False, True])
def test_hope_is_lost(succeeded):
    """At once if nothing has ever succeeded; else when some have failed one after another."""
    backoff = Backoff()
    assert backoff.hopeful
    if succeeded:
        failed(backoff, TRIES)
        backoff.succeeded()
        assert backoff.hopeful
        failed(backoff, TRIES - 1)
        assert backoff.hopeful
    failed(backoff, 1)
    assert not backoff.hopeful


@pytest.mark.parametrize("how", ["succeeded", "forget"])
def test_an_end_of_the_pause(how):
    """The next try is due, and the first failure after it counts as the first."""
    backoff = Backoff()
    failed(backoff, 5, 100.0)
    getattr(backoff, how)()
    assert backoff.until < 100.0
    assert (backoff.failures, backoff.reason, backoff.hopeful) == (0, None, True)
    backoff.failed(99.0, 100.0, REASON)
    assert backoff.until == pytest.approx(100.0 + FIRST_PAUSE)


def test_hope_outlives_what_is_forgotten():
    """What has once succeeded has."""
    backoff = Backoff()
    backoff.succeeded()
    backoff.forget()
    failed(backoff, 1)
    assert backoff.hopeful


def test_failures_side_by_side_are_one():
    """They began before another of them failed; a pause follows each all the same."""
    backoff = Backoff()
    for began, now in ((1.0, 2.0), (1.5, 2.1), (1.9, 3.0)):
        backoff.failed(began, now, REASON)
    assert backoff.failures == 1
    assert backoff.until == pytest.approx(3.0 + FIRST_PAUSE)
    backoff.failed(2.5, 4.0, REASON)
    assert backoff.failures == 2
