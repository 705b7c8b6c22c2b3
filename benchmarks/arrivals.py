"""Scenarios of an open loop: random arrivals that do not wait for each other, one by one or 16 at a time."""

from __future__ import annotations

import math

from .child.case import MODELS, Case, seconds_of
from .contenders import FIXED
from .scenario import Scenario, fixed

LOADS = (0.2, 0.5, 0.8)
"""Arrivals per second, as shares of what the handler can do in full batches."""

BURST, BURST_LOAD = 16, 0.05

CALLERS = 512
"""Threads that stand ready. Even a system that answers after 0.1 s needs no more, at the highest rate of all."""

CONTENDERS = ("ubatch", *FIXED, "ubatch, tasks", "ubatch 1.0.0", "batched", "async-batcher", "aqueduct", "none")

QUICK = (("gpu", 0.5),)
"""Handlers and loads of `--quick`."""

EXTRA = 0.3
"""Seconds beyond a round's length: threads that start, answers that are waited for."""


def scenarios(quick: bool = False) -> list[Scenario]:
    """The cells of the groups `open-loop` and `bursts`; the quick ones are some of them, and shorter."""
    cells = [(handler, load) for handler in MODELS for load in LOADS]
    found = [open_loop(*cell, seconds=0.7 if quick else 1.5) for cell in (QUICK if quick else cells)]
    bursting = ["gpu"] if quick else list(MODELS)
    return found + [bursts(handler, seconds=1.0 if quick else 1.5) for handler in bursting]


def open_loop(handler: str, load: float, seconds: float) -> Scenario:
    """Poisson arrivals."""
    size = MODELS[handler][2]
    case = Case("open loop", "", callers=CALLERS, handler=handler, max_size=size, load=load)
    rate = load * size / seconds_of(handler, size)
    ideal = {"rate": rate, "mean": mean_of_greedy(rate, *MODELS[handler][:2])}
    id = f"{handler}, load {load:.0%}"
    return _scenario("open-loop", id, case, ideal, seconds)


def bursts(handler: str, seconds: float) -> Scenario:
    """Items that arrive together, at random moments that are far from each other."""
    size = MODELS[handler][2]
    case = Case("open loop", "", callers=CALLERS, handler=handler, max_size=size, load=BURST_LOAD, burst=BURST)
    # An idle system that runs each burst as one batch. No burst is complete earlier.
    ideal = {"p50": seconds_of(handler, BURST), "burst p50": seconds_of(handler, BURST)}
    id = f"{handler}, bursts of {BURST}"
    return _scenario("bursts", id, case, ideal, seconds)


def _scenario(group: str, id: str, case: Case, ideal: dict[str, float], seconds: float) -> Scenario:
    return Scenario(
        group,
        id,
        case,
        CONTENDERS,
        others=fixed(case),
        ideal=ideal,
        seconds=seconds,
        extra=EXTRA,
        rounds=3,
        best="p99",
    )


def mean_of_greedy(rate: float, a: float, c: float) -> float:
    """Mean latency of a worker without overhead that takes all that is queued whenever it is free: a lower bound of it.

    Close: by simulation and by the upper bound it is at most one per cent above that (cpu at a load of 0.5: 6 % by the
    upper bound alone). No policy has a mean that is more than 0.7 % smaller. Batches have no largest size here.

    Args:
        rate: Poisson arrivals per second; `rate * c` must be less than 1.
        a: seconds of a batch, whatever its size.
        c: seconds more for each item.
    """
    size = (rate * a + math.exp(-rate * (a + c))) / (1 - rate * c)
    moment = (1 + 2 * rate**2 * a * c + rate**2 * a**2 / size) / (1 - rate**2 * c**2)
    return rate / 2 * (c**2 * moment + 2 * a * c + a**2 / size) + c * moment + a
