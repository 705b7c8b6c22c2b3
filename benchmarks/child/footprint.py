"""Memory, and what an import takes."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeVar

from case import Case, Round, Sample, children
from figures import cpu_time
from handlers import no_op
from systems import System, open_system

LIMIT = 20.0
"""Seconds after which no more idle objects are made."""

WATCHED = 0.5
"""Seconds for which idle objects are watched: what they do to the processor all the same."""

ROUSED = 60.0
"""Seconds, at most, that idle workers are given to go."""

LOOPS: list[asyncio.AbstractEventLoop] = []
"""Kept, so that none is closed by the collector."""

T = TypeVar("T")

LONE_PATHS = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; "
"""So that an import does not load optional packages that happen to be installed."""


def importing(case: Case) -> Round:
    """Start an interpreter that imports the module that `handler` names, or nothing, from byte code, and ends."""
    code = LONE_PATHS + (f"import {case.handler}" if case.handler else "pass")
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


def _on_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns. The loop is left as it is, as some contenders' tasks and threads never end."""
    LOOPS.append(asyncio.new_event_loop())
    return LOOPS[-1].run_until_complete(work)


@contextmanager
def _traced() -> Iterator[list[int]]:
    """Bytes allocated by Python within the block and still there at its end."""
    grown: list[int] = []
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield grown
    gc.collect()
    grown.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()


def queued(case: Case) -> Round:
    """Memory of each of many items that wait in the queue, with what their callers wait with.

    The handler holds its first batch until the end, so all others stay queued. `handler` says how the items are
    queued: each by `submit`, all by one call of `map`, or each by a `task` of an event loop, which is counted too.
    """
    gate = threading.Event()

    def shut(items: list[Any]) -> list[Any]:
        gate.wait()
        return items

    def measure(_: float) -> Sample:
        if case.handler == "task":
            return {"memory": _on_a_loop(_queued_by_tasks(case, shut)) / case.callers}
        bare = {"bare Future": Future, "bare lock": threading.Lock}.get(case.contender)
        queue = _queued_by_submit if case.handler == "submit" else _queued_by_map
        grown = _kept(bare, case.callers) if bare else queue(case, shut)
        return {"memory": grown / case.callers}

    return measure


def _kept(make: Callable[[], Any], count: int) -> int:
    kept: list[Any] = [None] * count
    with _traced() as grown:
        for index in range(count):
            kept[index] = make()
    return grown[0]


def _queued_by_submit(case: Case, shut: Callable[[list[Any]], Any]) -> int:
    if case.contender == "ubatch":
        submit = open_system(case, shut).batch.submit  # type: ignore
    else:
        executor = ThreadPoolExecutor(1)

        def submit(item: Any) -> Any:
            return executor.submit(shut, [item])

    submit(0)  # loads what it needs, starts the worker
    time.sleep(0.1)
    return _kept(lambda: submit(0), case.callers)


def _queued_by_map(case: Case, shut: Callable[[list[Any]], Any]) -> int:
    system: Any = open_system(case, shut)
    whole = system.batch.map if case.contender == "ubatch" else system.call
    items = [0] * case.callers

    def length() -> int:
        return int(system.batch.stats.queued if case.contender == "ubatch" else system.call.stats.queue_size)

    threading.Thread(target=whole, args=([0],), daemon=True).start()
    time.sleep(0.1)
    with _traced() as grown:
        threading.Thread(target=whole, args=(items,), daemon=True).start()
        while length() < case.callers:
            time.sleep(0.01)
        time.sleep(0.05)
    return grown[0]


async def _queued_by_tasks(case: Case, shut: Callable[[list[Any]], Any]) -> int:
    loop = asyncio.get_running_loop()
    call: Callable[[Any], Awaitable[Any]]
    if case.contender == "bare future":

        def call(item: Any) -> Awaitable[Any]:
            return loop.create_future()

    else:
        call = open_system(case, shut).task

    async def work() -> None:
        await call(0)

    kept = [loop.create_task(work())]
    await asyncio.sleep(0.2)
    with _traced() as grown:
        kept += [loop.create_task(work()) for _ in range(case.callers)]
        await asyncio.sleep(0.2)
    return grown[0]


def resident() -> int:
    """Bytes of memory of this process and those that it has started; a shared page counts in parts."""
    gc.collect()
    total = 0
    for process in ("self", *map(str, children())):
        with open(f"/proc/{process}/smaps_rollup") as lines:
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


def running_threads() -> int:
    """Threads of this process and those that it has started."""
    return sum(len(os.listdir(f"/proc/{process}/task")) for process in ("self", *map(str, children())))


def idle(case: Case) -> Round:
    """Memory and threads of each of many batchers that nobody uses: `handler` says what happened to them before."""
    if case.face == "tasks":
        return lambda _: _on_a_loop(_idle(case, _use_by_task))
    return lambda _: _on_a_loop(_idle(case, _use_by_thread))


async def _use_by_task(system: System) -> None:
    await system.task(0)


async def _use_by_thread(system: System) -> None:
    system.caller()(0)


async def _idle(case: Case, use: Callable[[System], Awaitable[None]]) -> Sample:
    plain = Case(case.figure, case.contender, case.face, max_size=case.max_size, settings=case.settings)
    await use(open_system(plain, no_op, counting=False))
    kept: list[Any] = []
    threads_before, before = running_threads(), resident()
    until = perf_counter() + LIMIT
    try:
        while len(kept) < case.callers and perf_counter() < until:
            kept.append(open_system(plain, no_op, counting=False))
            if case.handler != "never used":
                await use(kept[-1])
    except (RuntimeError, OSError):  # no more threads, or processes, to be had here
        pass
    await asyncio.sleep(0)
    if case.handler.endswith("worker gone"):
        until = perf_counter() + ROUSED
        while running_threads() > threads_before and perf_counter() < until:
            time.sleep(0.25)
    grown, threads = resident() - before, running_threads() - threads_before
    count = max(len(kept), 1)
    start, cpu = perf_counter(), cpu_time()
    await asyncio.sleep(WATCHED)
    share = (cpu_time() - cpu) / (perf_counter() - start)
    return {"memory": grown / count, "threads": threads / count, "count": len(kept), "idle cpu": share}
