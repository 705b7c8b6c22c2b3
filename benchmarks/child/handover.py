"""One caller: what it costs to hand an item over and get its result back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

from bare import ping_pong
from case import Case, Handler, Round, Sample, pin, pin_others, pinned
from handlers import HANDLERS, no_op
from systems import open_system

SERIES = 25
"""Round trips that are timed together."""

IDLE = 0.005
"""Seconds without a call before a lone one."""


def _one_caller(case: Case, handler: Handler) -> tuple[Callable[[int], None], Callable[[], None]]:
    """Two functions: one makes that many calls, one after another; one puts all threads in their places."""
    caller_core, worker_core = pinned(case.cores)
    pin(caller_core)
    calls = _calls(case, handler)

    def settle() -> None:
        calls(SERIES)
        pin_others(worker_core)  # each time, as the worker may be another thread than in the last round

    return calls, settle


def _calls(case: Case, handler: Handler) -> Callable[[int], None]:
    if case.contender == "ping-pong":
        return ping_pong(None if handler is no_op else handler)
    call = open_system(case, handler, counting=False).caller()

    def calls(count: int) -> None:
        for _ in range(count):
            call(0)

    return calls


def round_trip(case: Case) -> Round:
    """One caller, one call after another, a no-op handler: the median of short series."""
    calls, settle = _one_caller(case, no_op)

    def measure(seconds: float) -> Sample:
        settle()
        times = []
        start = perf_counter()
        until = start + seconds
        while start < until:
            start = perf_counter()
            calls(SERIES)
            times.append((perf_counter() - start) / SERIES)
        return {"time": statistics.median(times)}

    return measure


def lone(case: Case) -> Round:
    """One call at a time to a system that idled before: the median of the call's time without the handler's."""
    taken: list[float] = []
    handler = HANDLERS[case.handler]

    def timed(items: list[Any]) -> list[Any]:
        start = perf_counter()
        handler(items)
        taken.append(perf_counter() - start)
        return items

    calls, settle = _one_caller(case, timed)

    def measure(seconds: float) -> Sample:
        settle()
        times: list[float] = []
        until = perf_counter() + seconds
        while len(times) < 3 or perf_counter() < until:
            time.sleep(IDLE)
            taken.clear()
            start = perf_counter()
            calls(1)
            times.append(perf_counter() - start - taken[0])
        return {"time": statistics.median(times)}

    return measure
