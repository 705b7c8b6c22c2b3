"""From moments and durations to the figures of a sample."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from time import process_time

from case import Sample, children

FIRST, STEP = 1e-6, math.log(1.02)
"""Buckets of a histogram: the upper end of those below the first, in seconds, and the log of their width."""


def histogram(times: Iterable[float]) -> dict[str, int]:
    """Counts of durations in seconds, by bucket: index `floor(log(t / 1 µs) / log(1.02))`, 0 below 1 µs."""
    counts = Counter(math.floor(math.log(max(time, FIRST) / FIRST) / STEP) for time in times)
    return {str(index): counts[index] for index in sorted(counts)}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the ordered values that at least that share of them does not exceed."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def latencies(times: Iterable[float]) -> Sample:
    """`p50`, `p99`, `p99.9` and `histogram` of durations; nothing if there are none."""
    ordered = sorted(times)
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found: Sample = {name: percentile(ordered, share) for name, share in shares.items()}
    return found | {"histogram": histogram(ordered)}


def cpu_time() -> float:
    """Seconds of CPU time so far, of this process and of those that it has started and that are alive."""
    return process_time() + sum(map(_cpu_time_of, children()))


def _cpu_time_of(process: int) -> float:
    total = 0
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/schedstat") as counters:
                total += int(counters.read().split()[0])
    except OSError:  # it has ended
        pass
    return total / 1e9
