"""When items arrive: made before the round starts, and never changed by what the system under test does.

That is all that keeps a benchmark from omitting what it should show. A generator that waits for an answer before it
sends the next request stops asking just while the system stalls; here those requests are due all the same, and each
one's latency counts from the moment that it is due.
"""

from __future__ import annotations

import math
import random
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from case import MODELS, Sample, seconds_of
from figures import histogram, percentile

LEAD = 0.1
"""Share of a round whose arrivals come before it and are not counted: a system that just starts is a fast one."""


def capacity(handler: str) -> float:
    """Items per second that the handler can do, in full batches."""
    largest = MODELS[handler][2]
    return largest / seconds_of(handler, largest)


def poisson(rate: float, burst: int, seconds: float, number: int) -> list[float]:
    """Moments of arrivals, in seconds from the start, in order.

    Args:
        rate: items per second.
        burst: how many items arrive at each moment; the moments are a Poisson process of rate `rate / burst`.
        seconds: arrivals come before that.
        number: the same number makes the same arrivals, another one others.
    """
    chance = random.Random(f"arrivals {number}")
    moments: list[float] = []
    moment = chance.expovariate(rate / burst)
    while moment < seconds:
        moments += [moment] * burst
        moment += chance.expovariate(rate / burst)
    return moments


class Device:
    """The handler: as `handlers.device`, but it can be hurried, so that what is left of a round ends soon."""

    def __init__(self, name: str) -> None:
        self.a, self.c, _ = MODELS[name]
        self.busy = threading.Lock()
        self.hurried = False

    def __call__(self, items: list[Any]) -> list[Any]:
        with self.busy:
            if not self.hurried:
                time.sleep(self.a + self.c * len(items))
        return items


class Record:
    """One round: when its arrivals are due, and how long after that each had its answer.

    Args:
        moments: of the arrivals, in order, in seconds from the start.
        lead: arrivals before that are made but not counted.
        start: on the clock `time.perf_counter`.
    """

    def __init__(self, moments: Sequence[float], lead: float, start: float) -> None:
        self.due = [start + moment for moment in moments]
        self.first = bisect_left(moments, lead)
        # None: no answer yet; infinite: there will be none, as the call raised an exception.
        self.latencies: list[float | None] = [None] * len(moments)
        self.errors: list[Exception] = []
        self.lateness: list[float] = []
        self.over = False

    def answer(self, number: int, answer: Any) -> None:
        """An arrival has its answer, now."""
        self.latencies[number] = perf_counter() - self.due[number]
        if answer != number:
            self.fail(number, ValueError(f"item {number} was answered {answer!r}"))

    def fail(self, number: int, error: Exception) -> None:
        """An arrival has an exception instead of an answer."""
        self.latencies[number] = math.inf
        self.errors.append(error)

    def pending(self) -> bool:
        """Whether there are arrivals without an answer."""
        return None in self.latencies

    def sample(self, burst: int) -> Sample:
        """The figures, as they are now.

        Arrivals without an answer are infinitely late: percentiles that they reach are `None`, and so is the mean
        if there is any; `histogram` and `burst histogram` leave them out, but `arrivals` and `bursts` count them.

        - `arrivals`: how many were counted; `answered`: the share of them that had their answer.
        - `mean`, `p50`, `p99`, `p99.9`, `histogram`: of the seconds from when an item was due until its answer.
        - `burst p50`, `burst p99`, `burst histogram`, of `bursts`: until the last of a burst had its answer.
        - `generator`: the 99th percentile of how late the generator itself was to make a call that was due;
          `starved`: the share of all arrivals that no thread was free for when they were due. That time is part of
          their latency, as it should be when the system is to blame.
        - `errors`: how many calls raised an exception, if any.
        """
        latencies = [math.inf if latency is None else latency for latency in self.latencies[self.first :]]
        answered = [latency for latency in latencies if latency < math.inf]
        sample: Sample = {"arrivals": len(latencies), "answered": len(answered) / max(len(latencies), 1)}
        if latencies:
            ordered = sorted(latencies)
            sample["mean"] = _finite(sum(ordered) / len(ordered))
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)):
                sample[name] = _finite(percentile(ordered, share))
            sample["histogram"] = histogram(answered)
        if latencies and burst > 1:
            bursts = sorted(max(latencies[at : at + burst]) for at in range(0, len(latencies), burst))
            sample |= {"bursts": len(bursts), "burst p50": _finite(percentile(bursts, 0.5))}
            sample["burst p99"] = _finite(percentile(bursts, 0.99))
            sample["burst histogram"] = histogram(latency for latency in bursts if latency < math.inf)
        lateness = sorted(self.lateness)
        if lateness:
            sample["generator"] = percentile(lateness, 0.99)
        sample["starved"] = 1 - len(lateness) / max(len(self.due), 1)
        if self.errors:
            sample["errors"] = len(self.errors)
        return sample


def _finite(value: float) -> float | None:
    return value if value < math.inf else None
