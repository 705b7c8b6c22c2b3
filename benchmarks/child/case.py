"""What one process measures: a case. Also where its threads run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Sample = dict[str, Any]
"""The figures of one round: seconds, bytes, items per second, counts; and `histogram`, a dictionary of counts."""

Round = Callable[[float], Sample]
"""Measures for about that many seconds."""

Handler = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Case:
    """What a process measures.

    Args:
        figure: which of the measurements.
        contender: whom.
        face: how it is called: by `threads`, `tasks` or `greenlets`.
        cores: `free`, `one core` (all threads on it) or `two cores` (callers on one, worker on another).
        callers: how many threads, tasks or greenlets; or how many objects.
        handler: one of `handlers.HANDLERS`, or what else the measurement tells apart.
        max_size: the largest batch, in items.
        load: arrivals per second as a share of what the handler can do in full batches; 0 for a closed loop.
        burst: how many items arrive at one moment.
        steps: of a pipeline.
        seed: number of the first round that is kept; all contenders of one round see the same arrivals.
        settings: the contender's own, by its own names and in its own units.
    """

    figure: str
    contender: str
    face: str = "threads"
    cores: str = "free"
    callers: int = 1
    handler: str = "no-op"
    max_size: int = 64
    load: float = 0.0
    burst: int = 1
    steps: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


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


MODELS: dict[str, tuple[float, float, int]] = {
    "gpu": (0.005, 0.0001, 64),
    "cpu": (0.0005, 0.0004, 32),
    "net": (0.020, 0.00005, 100),
}
"""Handlers whose batch of `b` items takes `a + c * b` seconds: `a`, `c` and the largest batch."""


def seconds_of(handler: str, size: int) -> float:
    """How long a batch of that size takes one of `MODELS`."""
    a, c, _ = MODELS[handler]
    return a + c * size


def pin_children(core: int | None) -> None:
    """Keep the processes that this one has started on one core."""
    if core is None:
        return
    for process in children():
        for name in os.listdir(f"/proc/{process}/task"):
            try:
                os.sched_setaffinity(int(name), {core})
            except ProcessLookupError:
                pass


def children() -> list[int]:
    """The processes that this one has started."""
    found: list[int] = []
    for name in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{name}/children") as names:
                found += map(int, names.read().split())
        except OSError:  # the thread has ended
            pass
    return found
