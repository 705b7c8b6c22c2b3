"""The frozen snapshot of a batcher's counters."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubatch import Stats
from ubatch.stats import Counters

NAMES = tuple(Stats.__slots__)
counts = st.fixed_dictionaries({name: st.integers(0, 10**9) for name in NAMES})


@given(counts)
def test_each_count_is_kept_under_its_name(values):
    """What goes in by name comes out by the same name."""
    stats = Stats(**values)
    assert {name: getattr(stats, name) for name in NAMES} == stats.asdict() == values


@given(counts)
def test_every_accepted_item_is_counted_somewhere(values):
    """What was submitted waits, was given to the handler, was cancelled or was dropped."""
    parts = ("queued", "items", "cancelled", "dropped")
    assert Stats(**values).submitted == sum(values[name] for name in parts)


@given(counts, counts)
def test_snapshots_compare_by_their_counts(one, other):
    """Equal counts make equal snapshots with equal hashes, and only they do."""
    assert Stats(**one) == Stats(**one)
    assert hash(Stats(**one)) == hash(Stats(**one))
    assert (Stats(**one) == Stats(**other)) == (one == other)
    assert Stats(**one) != one


@given(counts)
def test_snapshots_can_be_sent_around(values):
    """A copied or pickled snapshot equals the original."""
    stats = Stats(**values)
    assert stats == copy.copy(stats) == copy.deepcopy(stats)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert stats == pickle.loads(pickle.dumps(stats, protocol))


@pytest.mark.parametrize("name", [*NAMES, "submitted", "mean_batch_size", "another"])
def test_a_snapshot_cannot_be_changed(name):
    """Neither a count nor anything else can be set or deleted."""
    stats = Counters().snapshot(Counters(), queued=1, running=2)
    before = repr(stats)
    with pytest.raises(AttributeError):
        setattr(stats, name, 5)
    with pytest.raises(AttributeError):
        delattr(stats, name)
    assert repr(stats) == before


def test_the_mean_batch_size_of_no_batches_is_zero():
    """Before the first batch there is a number, too."""
    stats = Counters().snapshot(Counters(), queued=3, running=0)
    assert stats.mean_batch_size == 0.0
    assert isinstance(stats.mean_batch_size, float)


def test_the_mean_batch_size_is_items_per_batch():
    """Of all batches so far."""
    counters = Counters()
    counters.items, counters.batches = 10, 4
    assert counters.snapshot(Counters(), queued=0, running=0).mean_batch_size == 2.5


def test_a_snapshot_stays_as_it_was_taken():
    """Counting goes on without it."""
    counters = Counters()
    counters.items, counters.batches, counters.errors, counters.cancelled, counters.dropped = 1, 2, 3, 4, 5
    stats = counters.snapshot(Counters(), queued=6, running=7)
    counters.items += 10
    assert stats == Stats(items=1, batches=2, errors=3, cancelled=4, dropped=5, queued=6, running=7)
    assert counters.snapshot(Counters(), queued=6, running=7) != stats


@given(counts, counts)
def test_a_snapshot_adds_up_two_sets_of_counters(one, other):
    """Those of the worker and those of everybody else."""
    both = Counters(), Counters()
    for counters, values in zip(both, (one, other), strict=True):
        for name in Counters.__slots__:
            setattr(counters, name, values[name])
    stats = both[0].snapshot(both[1], queued=6, running=7)
    sums = {name: one[name] + other[name] for name in Counters.__slots__}
    assert stats == Stats(queued=6, running=7, **sums)


def test_the_repr_shows_every_count():
    """And evaluates to an equal snapshot."""
    stats = Stats(items=1, batches=2, errors=3, cancelled=4, dropped=5, queued=6, running=7)
    assert eval(repr(stats)) == stats
