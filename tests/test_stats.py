"""The frozen snapshot of a batcher's counters."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubatch import Stats
from ubatch.stats import REASONS, Counters

NAMES = tuple(Stats.__slots__)
counts = st.fixed_dictionaries({name: st.integers(0, 10**9) for name in NAMES})


@given(counts)
def test_each_count_is_kept_under_its_name(values):
    """What goes in by name comes out by the same name."""
    stats = Stats(**values)
    assert {name: getattr(stats, name) for name in NAMES} == values
    assert stats.asdict() == {"batches": stats.batches, **values}


@given(counts)
def test_every_accepted_item_is_counted_somewhere(values):
    """What was submitted waits, was given to the handler, was cancelled, has expired or was dropped."""
    parts = ("queued", "items", "cancelled", "expired", "dropped")
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


def snapshot(counters, other=None, **present):
    return counters.snapshot(other or Counters(), **{"queued": 0, "running": 0, "a": 0.0, "c": 0.0, **present})


def filled(values):
    counters = Counters()
    for name in ("cancelled", "dropped", "errors", "expired", "items", "rejected"):
        setattr(counters, name, values[name])
    counters.cuts = {reason: values[reason] for reason in REASONS}
    return counters


@pytest.mark.parametrize("name", [*NAMES, "batches", "submitted", "mean_batch_size", "another"])
def test_a_snapshot_cannot_be_changed(name):
    """Neither a count nor anything else can be set or deleted."""
    stats = snapshot(Counters(), queued=1, running=2)
    before = repr(stats)
    with pytest.raises(AttributeError):
        setattr(stats, name, 5)
    with pytest.raises(AttributeError):
        delattr(stats, name)
    assert repr(stats) == before


@given(counts)
def test_each_batch_left_for_one_reason(values):
    """So their numbers add up to that of the batches."""
    assert Stats(**values).batches == sum(values[reason] for reason in REASONS)


@pytest.mark.parametrize("wrong", [{}, {"items": 1}, {**dict.fromkeys(NAMES, 0), "another": 1}])
def test_a_snapshot_takes_just_its_counts(wrong):
    """One that is missing or unknown is a mistake."""
    with pytest.raises(TypeError):
        Stats(**wrong)


def test_the_mean_batch_size_of_no_batches_is_zero():
    """Before the first batch there is a number, too."""
    stats = snapshot(Counters(), queued=3)
    assert stats.mean_batch_size == 0.0
    assert isinstance(stats.mean_batch_size, float)


def test_the_mean_batch_size_is_items_per_batch():
    """Of all batches so far."""
    counters = Counters()
    counters.items, counters.cuts["full"], counters.cuts["idle"] = 10, 1, 3
    assert snapshot(counters).mean_batch_size == 2.5


@given(counts)
def test_a_snapshot_stays_as_it_was_taken(values):
    """Counting goes on without it."""
    counters = filled(values)
    stats = snapshot(counters)
    before = stats.asdict()
    counters.items += 10
    counters.cuts["full"] += 1
    assert stats.asdict() == before
    assert snapshot(counters) != stats
    assert snapshot(counters).batches == stats.batches + 1


@given(counts, counts)
def test_a_snapshot_adds_up_two_sets_of_counters(one, other):
    """Those of the worker and those of everybody else."""
    stats = snapshot(filled(one), filled(other), queued=6, running=7, a=0.5, c=0.25)
    sums = {name: one[name] + other[name] for name in NAMES}
    assert stats == Stats(**{**sums, "queued": 6, "running": 7, "a": 0.5, "c": 0.25})


@given(counts)
def test_the_repr_shows_every_count(values):
    """By its name."""
    stats = Stats(**values)
    assert all(f"{name}={value}" in repr(stats) for name, value in stats.asdict().items())
