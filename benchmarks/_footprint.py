"""Start-up time and memory."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from _case import Case, Round, Sample, no_op

from ubatch import UBatch


def start_up(case: Case) -> Round:
    """Start an interpreter that imports ubatch, or nothing, from byte code, and wait for its end."""
    code = "import ubatch" if case.contender == "ubatch" else "pass"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def once() -> tuple[float, float]:
        start = perf_counter()
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", code], environment)
        _, status, usage = os.wait4(child, 0)
        if status:
            raise RuntimeError(f"the interpreter ended with status {status}")
        return perf_counter() - start, usage.ru_utime + usage.ru_stime

    def measure(seconds: float) -> Sample:
        runs = [once()]
        until = perf_counter() + seconds
        while perf_counter() < until:
            runs.append(once())
        wall, cpu = zip(*runs, strict=True)
        return {"time": statistics.median(wall), "cpu": statistics.median(cpu)}

    return measure


@contextmanager
def _traced() -> Iterator[list[int]]:
    """Bytes allocated within the block and still there at its end."""
    grown: list[int] = []
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield grown
    gc.collect()
    grown.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()


def queued(case: Case) -> Round:
    """Memory of each of many items that wait in the queue, or of what their callers would wait with."""

    def by_map(batch: UBatch[Any, Any]) -> None:
        def wait() -> None:
            try:
                batch.map(range(case.callers))
            except RuntimeError:  # stopped in the end
                pass

        already = batch.stats.queued
        threading.Thread(target=wait, daemon=True).start()
        while batch.stats.queued < already + case.callers:
            time.sleep(0.01)

    def measure(_: float) -> Sample:
        warnings.simplefilter("ignore", RuntimeWarning)  # that items wait for a handler
        batch: UBatch[Any, Any] = UBatch(case.max_size)
        batch.submit(0)  # imports what it needs
        kept: list[Any] = [None] * case.callers
        make: dict[str, Callable[[], Any]] = {
            "ubatch": lambda: batch.submit(0),
            "bare Future": Future,
            "bare lock": threading.Lock,
        }
        with _traced() as grown:
            if case.contender == "ubatch" and case.handler == "map":
                by_map(batch)
            else:
                for index in range(case.callers):
                    kept[index] = make[case.contender]()
        batch.stop(drain=False)
        return {"memory": grown[0] / case.callers}

    return measure


def idle(case: Case) -> Round:
    """Resident memory and threads of each of many batchers, or executors, that nobody uses."""

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def make() -> Any:
        return UBatch(handler=no_op) if case.contender == "ubatch" else ThreadPoolExecutor(1)

    def use(one: Any) -> None:
        one.ubatch(0) if case.contender == "ubatch" else one.submit(no_op, [0]).result()

    def measure(_: float) -> Sample:
        use(make())
        kept: list[Any] = []
        threads_before, before = threading.active_count(), resident()
        try:
            for _ in range(case.callers):
                kept.append(make())
                if case.handler != "never used":
                    use(kept[-1])
        except RuntimeError:  # no more threads to be had here
            kept.pop()
        if case.handler.endswith("worker gone"):
            until = perf_counter() + 60
            while threading.active_count() > threads_before and perf_counter() < until:
                time.sleep(0.25)
        grown, threads = resident() - before, threading.active_count() - threads_before
        return {"memory": grown / len(kept), "threads": threads / len(kept), "count": len(kept)}

    return measure
