"""The frozen snapshot of a batcher's counters."""

from __future__ import annotations

import copy
import json
import math
import operator
import pickle
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubatch import Histogram, Stats
from ubatch._buckets import FEW, count_times, packers, rounded, time_of, unpacked
from ubatch._process_stats import ProcessStats
from ubatch._tally import Tally, child_stats
from ubatch.stats import MOST_TYPES, REASONS, Counters

NAMES = tuple(Stats.__slots__)
HISTOGRAMS = ("size", "wait", "run")
PRESENT = ("queued", "running", "a", "c")
PLAIN = tuple(name for name in NAMES if name not in (*HISTOGRAMS, "error_types", "processes"))

histograms = st.dictionaries(st.integers(1, 9), st.integers(1, 99), max_size=5).map(
    lambda counts: Histogram(sorted(counts.items()), sum(value * count for value, count in counts.items()))
)
types = st.dictionaries(st.sampled_from(["KeyError", "OSError", "Stopped"]), st.integers(1, 99)).map(
    lambda counts: tuple(sorted(counts.items()))
)
SUMS = ("calls", "died", "sent", "received", "copied", "passed")
processes = st.builds(
    ProcessStats,
    **{name: st.integers(0, 10**9) for name in SUMS},
    transfer=histograms,
    handling=histograms,
    blocks=st.integers(0, 10**9),
    children=st.lists(st.builds(child_stats), max_size=2).map(tuple),
)
counts = st.fixed_dictionaries(
    {
        "processes": st.none() | processes,
        **{name: st.integers(0, 10**9) for name in PLAIN},
        **dict.fromkeys(HISTOGRAMS, histograms),
        "error_types": types,
    }
)


@given(counts)
def test_each_count_is_kept_under_its_name(values):
    """What goes in by name comes out by the same name, and as plain data in a dictionary."""
    stats = Stats(**values)
    assert {name: getattr(stats, name) for name in NAMES} == values
    shown = stats.asdict()
    assert {name: shown[name] for name in PLAIN} == {name: values[name] for name in PLAIN}
    assert shown["error_types"] == dict(values["error_types"])
    assert shown["errors"] == stats.errors == sum(dict(values["error_types"]).values())
    assert shown["processes"] == (values["processes"] and values["processes"].asdict())
    assert shown["wait"] == {name: getattr(stats.wait, name) for name in ("count", "mean", "p50", "p90", "p99")}
    assert json.loads(json.dumps(shown)) == shown


@given(counts)
def test_every_accepted_item_is_counted_somewhere(values):
    """What was submitted waits, was given to the handler, was cancelled, has expired or was dropped."""
    parts = ("queued", "items", "cancelled", "expired", "dropped")
    assert Stats(**values).submitted == sum(values[name] for name in parts)


@given(counts, counts)
def test_what_was_done_in_an_interval_is_the_difference(one, other):
    """Each count less what it was before, each histogram likewise, and what is of now as it is now."""
    before, more = Stats(**one), Stats(**other)
    after = before + more
    since = after - before
    for name in NAMES:
        if name not in (*PRESENT, "processes"):
            assert getattr(since, name) == getattr(more, name), name
    if more.processes is not None:
        for name in (*SUMS, "transfer", "handling"):
            assert getattr(since.processes, name) == getattr(more.processes, name), name
        assert since.processes.children == after.processes.children
    assert [getattr(since, name) for name in PRESENT] == [getattr(after, name) for name in PRESENT]
    assert after.queued == before.queued + more.queued
    assert (after.a, after.c) == ((before.a, before.c) if before.items >= more.items else (more.a, more.c))
    nothing = after - after
    assert (nothing.batches, nothing.items, nothing.errors, nothing.wait) == (0, 0, 0, Histogram())


@given(processes, processes)
def test_so_it_is_for_processes(before, more):
    assert (before + more) - before == ProcessStats(
        **{**more._values(), "blocks": max(before.blocks, more.blocks), "children": before.children + more.children}
    )
    if more.calls:
        with pytest.raises(ValueError, match="later"):
            before - (before + more)
    assert json.loads(json.dumps(more.asdict())) == more.asdict()
    assert pickle.loads(pickle.dumps(more)) == more


@pytest.mark.parametrize("name", ["items", "full", "room", "error_types", "wait", "processes"])
def test_a_difference_the_wrong_way_round_is_an_error(name):
    """What has become less was not before."""
    wait = Histogram([(0.5, 1)], 0.5)
    idle = Tally().snapshot((), 0)
    busy = ProcessStats(**{**idle._values(), "handling": wait})
    more = {"error_types": (("KeyError", 1),), "wait": wait, "room": 9, "processes": busy}.get(name, 1)
    after = Stats(**{**snapshot(Counters())._values(), "processes": idle})
    before = Stats(**{**after._values(), name: more})
    with pytest.raises(ValueError, match=r"^only an earlier snapshot .* later one, of the same batcher"):
        after - before
    with pytest.raises(ValueError, match=r"^only an earlier snapshot .* later one, of the same executor"):
        idle - busy


# -- histograms -------------------------------------------------------------------------------------------


def histogram_of(times):
    counts: dict[int, int] = {}
    count_times(counts, packers[len(times)](*times))
    return Histogram(((time_of(code), counts[code]) for code in sorted(counts)), sum(times))


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_percentiles_are_within_a_sixteenth_of_the_truth(spread, seed):
    """Of random times of any scatter, against the sorted times themselves."""
    rng = random.Random(seed)
    times = [rng.lognormvariate(math.log(3e-3), spread) for _ in range(rng.randrange(1, 3000))]
    histogram = histogram_of(times)
    times.sort()
    for q in (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0, rng.random()):
        exact = times[max(1, math.ceil(q * len(times) - 1e-9)) - 1]
        assert abs(histogram.quantile(q) - exact) <= exact / 16, q
    assert histogram.count == len(times)
    assert histogram.mean == pytest.approx(sum(times) / len(times))
    assert (histogram.p50, histogram.p90, histogram.p99) == tuple(map(histogram.quantile, (0.5, 0.9, 0.99)))


@given(st.integers(-30, 30))
def test_a_power_of_two_has_eight_buckets(exponent):
    """However many times there are, a histogram stays small; none is lost, and nothing stays nothing."""
    times = [2.0**exponent * (1 + step / 64) for step in range(64)]
    histogram = histogram_of([*times, 0.0])
    assert [count for _, count in histogram.buckets] == [1, *[8] * 8]
    assert histogram.quantile(0.0) == pytest.approx(0.0)
    assert histogram_of([*times, 2.0, 2 * times[0]]).count == 66


usual = st.floats(2.0**-31, 2.0, exclude_max=True)


@given(st.lists(usual, min_size=1), st.sampled_from([None, 0.0, 1e-10, 2.0, 1e6]))
def test_a_time_is_in_the_same_bucket_whatever_is_counted_with_it(times, other):
    """Those that are counted all at once, and those that are not as there is one that is not usual."""
    alone = [histogram_of([time]).buckets[0][0] for time in times]
    if other is not None:
        times = [*times, other]
        alone.append(histogram_of([other]).buckets[0][0])
    for time, shown in zip(times, alone, strict=True):
        assert abs(shown - time) <= time / 16
    assert histogram_of(times).buckets == tuple(sorted(Counter(alone).items()))


@pytest.mark.parametrize("count", [0, 1, FEW - 1, FEW, 3 * FEW])
def test_any_number_of_times_is_packed_without_loss(count):
    """But what packs large lots, of which there are many sizes, is not kept."""
    times = [1 / (number + 3) for number in range(count)]
    assert list(unpacked(packers[count](*times))) == times
    assert (count in packers) == (count < FEW)


@given(st.integers(1, 10**9))
def test_sizes_are_exact_below_256(size):
    """From there on less than 1/128 too small."""
    assert rounded(size) == size if size < 256 else size * 127 / 128 < rounded(size) <= size


@given(histograms, histograms)
def test_histograms_add_up(one, other):
    """And what was added can be taken away again."""
    both = one + other
    assert (both.count, both.sum) == (one.count + other.count, one.sum + other.sum)
    assert both - other == one
    assert hash(both - other) == hash(one)
    assert pickle.loads(pickle.dumps(both)) == both


@pytest.mark.parametrize("q", [-0.01, 1.01, math.nan])
def test_a_quantile_is_between_none_and_all(q):
    """Another share is a mistake, and is named."""
    with pytest.raises(ValueError, match=str(q)):
        Histogram().quantile(q)


def test_nothing_has_no_percentiles():
    """Before the first batch there are numbers, too."""
    nothing = Histogram()
    assert (nothing.count, nothing.mean, nothing.p50, nothing.p99) == (0, 0.0, 0.0, 0.0)


# -- snapshots --------------------------------------------------------------------------------------------


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


RECORDED = {"size": Histogram([(3, 2)], 6), "wait": Histogram(), "run": Histogram(), "room": 8}


def snapshot(counters, other=None, processes=None, **present):
    present = {"queued": 0, "running": 0, "a": 0.0, "c": 0.0, **present}
    return counters.snapshot(other or Counters(), RECORDED, **present, processes=processes)


def filled(values):
    counters = Counters()
    for name in ("cancelled", "dropped", "expired", "items", "rejected"):
        setattr(counters, name, values[name])
    counters.cuts = {reason: values[reason] for reason in REASONS}
    counters.error_types = dict(values["error_types"])
    return counters


@pytest.mark.parametrize(
    "name", [*NAMES, "batches", "submitted", "mean_batch_size", "errors", "utilisation", "another"]
)
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
    added = filled(one)
    added.add(filled(other))
    assert stats == snapshot(added, queued=6, running=7, a=0.5, c=0.25)
    sums = {
        name: one[name] + other[name] for name in (*REASONS, "cancelled", "dropped", "expired", "items", "rejected")
    }
    assert {name: getattr(stats, name) for name in sums} == sums
    assert stats.errors == sum(count for values in (one, other) for _, count in values["error_types"])
    assert (stats.queued, stats.running, stats.a, stats.c) == (6, 7, 0.5, 0.25)
    assert {name: getattr(stats, name) for name in RECORDED} == RECORDED


def test_utilisation_is_the_share_of_the_room_that_was_used():
    """Of the batches that have returned."""
    assert snapshot(Counters()).utilisation == 0.75


def test_errors_of_more_types_than_anybody_reads_are_summed_up():
    """However a handler names its exceptions, their counts are few."""
    counters = Counters()
    for number in range(2 * MOST_TYPES):
        counters.failed(f"Error{number}", 1)
    counters.failed("Error0", 1)
    counters.failed_as([KeyError(), 1, None])
    types = dict(snapshot(counters).error_types)
    assert (len(types), types["Error0"], types["others"]) == (MOST_TYPES + 1, 2, MOST_TYPES + 1)


@given(counts)
def test_the_repr_shows_every_count(values):
    """By its name."""
    stats = Stats(**values)
    assert all(f"{name}={value}" in repr(stats) for name, value in values.items())


@pytest.mark.parametrize("operation", [operator.add, operator.sub])
@given(counts, processes)
def test_snapshots_and_other_things_do_not_add_up(operation, values, more):
    """Nor snapshots of different kinds."""
    kinds = (Stats(**values), more, Histogram())
    for one in kinds:
        for other in (3, None, *kinds):
            if other is not one:
                with pytest.raises(TypeError, match="unsupported operand"):
                    operation(one, other)
