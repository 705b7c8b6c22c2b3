"""What one process measures: a case; and the handlers that cases name."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from time import thread_time
from typing import Any

Sample = dict[str, float]
"""The figures of one round: seconds, bytes, items per second, counts."""

Round = Callable[[float], Sample]
"""Measures for about that many seconds."""

Handler = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Case:
    """What a process measures.

    Args:
        figure: which of the measurements.
        contender: `ubatch`, or the name of what is measured beside it.
        cores: `free`, `one core` (all threads on it) or `two cores` (callers on one, worker on another).
        callers: how many threads, tasks or greenlets; or how many objects.
        handler: one of `HANDLERS`, or what else the measurement tells apart.
        max_size: the largest batch, in items.
    """

    figure: str
    contender: str
    cores: str = "free"
    callers: int = 1
    handler: str = "no-op"
    max_size: int = 64


def no_op(items: list[Any]) -> list[Any]:
    """Costs nothing."""
    return items


def _asleep(items: list[Any]) -> list[Any]:
    time.sleep(0.005 + 0.0001 * len(items))
    return items


def _asleep_1(items: list[Any]) -> list[Any]:
    time.sleep(0.001)
    return items


def _busy_1(items: list[Any]) -> list[Any]:
    _compute(0.001)
    return items


def _busy_20(items: list[Any]) -> list[Any]:
    _compute(0.020)
    return items


def _compute(seconds: float) -> None:
    """Python code, which holds the GIL; measured by the thread's own time, so always the same work."""
    until = thread_time() + seconds
    while thread_time() < until:
        for _ in range(100):
            pass


HANDLERS: dict[str, Handler] = {
    "no-op": no_op,
    "sleeps 1 ms": _asleep_1,
    "sleeps 5 ms + 0.1 ms per item": _asleep,
    "computes 1 ms": _busy_1,
    "computes 20 ms": _busy_20,
}


def pin(core: int | None) -> None:
    """Keep the calling thread, and those that it starts from then on, on one core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def pin_others(core: int | None) -> None:
    """Keep all threads of this process but the calling one on one core."""
    if core is None:
        return
    for name in os.listdir("/proc/self/task"):
        thread = int(name)
        if thread != threading.get_native_id():
            try:
                os.sched_setaffinity(thread, {core})
            except ProcessLookupError:  # it has ended
                pass


def pinned(cores: str) -> tuple[int | None, int | None]:
    """The cores of the callers and of the worker. To be asked before anything is pinned."""
    if cores == "free":
        return None, None
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1], allowed[-1 if cores == "one core" else 0]
