"""`python -m benchmarks.statistics`: what is compared differs in what it is about alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("rich")

from benchmarks import statistics
from ubatch._recorder import Recorder


@pytest.fixture(params=["8 threads; free", "64 tasks; free"])
def callers(request: pytest.FixtureRequest) -> Iterator[statistics.Callers]:
    found = statistics.Callers(request.param)
    yield found
    found.close()


def test_without_statistics_nothing_is_recorded(callers):
    """Though items are served; and with them again, each is."""
    note = Recorder.note
    with statistics.no_statistics(callers):
        callers.block(0.02, statistics.nothing)
        before = callers.batcher.stats
        assert callers.block(0.05, statistics.nothing) > 0
        since = callers.batcher.stats - before
        assert since.items > 0 == since.size.count
    assert Recorder.note is note
    before = callers.batcher.stats
    callers.block(0.05, statistics.nothing)
    assert (callers.batcher.stats - before).size.count > 0


@pytest.mark.parametrize("comparison", statistics.WAYS)
def test_each_comparison_finds_pairs(comparison, callers):
    """Of CPU time for each item; and nothing is left of what was added."""
    if comparison != "statistics":
        pytest.importorskip({"prometheus": "prometheus_client"}.get(comparison, "opentelemetry.sdk"))
    samples = statistics.compare(comparison, callers, 2, 0.04)
    assert len(samples) == 2
    assert all(seconds > 0 for pair in samples for seconds in pair)
    assert callers.batcher._observers == ()


def test_statistics_are_timed_in_a_process_of_its_own():
    """What they take is a part of all that is taken."""
    [(less, more)] = statistics.ask("timed", "8 threads; two cores", 1)
    assert 0 < less < more


def test_the_slowest_calls_count_as_the_others():
    """One in a hundred, at least, was interrupted."""
    assert statistics.usual([1.0] * 198 + [50.0] * 2) == pytest.approx(200.0)
    assert statistics.usual([2.0]) == 2.0
    assert statistics.usual([]) == 0.0


def test_where_threads_run():
    """All on one core, or the worker on another."""
    script = """
import os, sys, threading
from benchmarks import statistics
callers = statistics.Callers(sys.argv[1])
[worker] = [thread for thread in threading.enumerate() if thread.name.startswith("ubatch")]
print(*(sorted(os.sched_getaffinity(thread.native_id)) for thread in (*callers.threads, worker)))
callers.close()
"""
    allowed = sorted(os.sched_getaffinity(0))
    for cores, mine, workers in ("one core", allowed[-1:], allowed[-1:]), ("two cores", allowed[-1:], allowed[:1]):
        command = [sys.executable, "-c", script, f"2 threads; {cores}"]
        found = subprocess.run(command, cwd=statistics.ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert found.split("\n")[0] == f"{mine} {mine} {workers}"


def test_a_target_is_missed_by_the_mean_of_ratios():
    samples = [[1.0, 1.0], [1.0, 1.1]]
    ratio, error = statistics.mean(samples)
    assert ratio == pytest.approx(1.1**0.5) and error > 0
    assert statistics.misses("statistics", samples)
    assert not statistics.misses("prometheus", samples)
    assert not statistics.misses("opentelemetry", samples)
