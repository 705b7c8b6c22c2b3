"""Time and throughput: one caller, threads, tasks, greenlets; of ubatch or of a bare loop beside it."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter, process_time
from typing import Any

from _bare import BareLoop, Caller, LoopCaller, all_at_once, in_a_chain, in_hub, in_loop, ping_pong
from _case import HANDLERS, Case, Handler, Round, Sample, no_op, pin, pin_others, pinned

from ubatch import UBatch

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
    if case.contender == "ubatch":
        call: Callable[[Any], Any] = UBatch(case.max_size, handler=handler).ubatch
    elif case.contender == "bare loop":
        call = Caller(BareLoop(handler, case.max_size, 1, all_at_once)).call
    else:
        submit = ThreadPoolExecutor(1).submit

        def call(item: Any) -> Any:
            return submit(handler, [item]).result()

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


class Crowd:
    """What many callers call: the batcher, or a bare loop; and how many items and batches it has done.

    Args:
        case: tells which.
        wake: of the bare loop, where its callers are not threads.
    """

    def __init__(self, case: Case, wake: Callable[[list[Any]], None] | None = None) -> None:
        handler = HANDLERS[case.handler]
        self.loop: BareLoop | None = None
        self.batch: UBatch[Any, Any] | None = None
        if case.contender.startswith("bare"):
            self.gather = case.callers if "gathering" in case.contender else 1
            wake = wake or (in_a_chain if "chain" in case.contender else all_at_once)
            self.loop = BareLoop(handler, case.max_size, self.gather, wake)
        else:
            self.batch = UBatch(case.max_size, handler=handler)

    def done(self) -> tuple[int, int]:
        """Items and batches so far."""
        if self.loop is not None:
            return self.loop.items, self.loop.batches
        assert self.batch is not None
        stats = self.batch.stats
        return stats.items, stats.batches

    def caller(self) -> Callable[[Any], Any]:
        """What one thread or greenlet calls."""
        if self.loop is not None:
            return Caller(self.loop).call
        assert self.batch is not None
        return self.batch.ubatch

    def gathering(self, on: bool) -> None:
        """Whether the bare loop waits for all callers; not while they leave."""
        if self.loop is not None:
            self.loop.gather = self.gather if on else 1
            self.loop.ring()


class Window:
    """What happens between two moments, per second and per item."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.start = (perf_counter(), process_time(), *crowd.done())

    def close(self) -> Sample:
        """The figures since the start."""
        end = (perf_counter(), process_time(), *self.crowd.done())
        seconds, cpu, items, batches = (b - a for a, b in zip(self.start, end, strict=True))
        items, batches = max(items, 1), max(batches, 1)
        return {"rate": items / seconds, "cpu": cpu / items, "mean batch": items / batches, "batches": batches}


def threads(case: Case) -> Round:
    """Threads in a closed loop: each calls again as soon as it has its result."""
    pin(pinned(case.cores)[0])
    crowd = Crowd(case)
    clocked = case.handler != "no-op"

    def measure(seconds: float) -> Sample:
        stop: list[bool] = []
        waits: list[float] = []

        def work() -> None:
            call = crowd.caller()
            while not stop:
                if clocked:
                    start = perf_counter()
                    call(0)
                    waits.append(perf_counter() - start)
                else:
                    call(0)

        crew = [threading.Thread(target=work) for _ in range(case.callers)]
        for thread in crew:
            thread.start()
        time.sleep(seconds / 4)
        waits.clear()
        window = Window(crowd)
        time.sleep(seconds)
        sample = window.close()
        if clocked:
            times = statistics.quantiles([*waits, 0.0, 0.0], n=100, method="inclusive")
            sample |= {"p50": times[49], "p99": times[98]}
        stop.append(True)
        for thread in crew:
            while thread.is_alive():
                crowd.gathering(False)
                thread.join(0.01)
        crowd.gathering(True)
        return sample

    return measure


def tasks(case: Case) -> Round:
    """Tasks of one event loop in a closed loop, on a batcher with a thread."""
    loop = asyncio.new_event_loop()
    wake_ups = [0]
    uncounted = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
        wake_ups[0] += 1
        return uncounted(*args, **kwargs)

    loop.call_soon_threadsafe = counted  # type: ignore
    crowd = Crowd(case, in_loop(loop))

    def bare_call(item: Any) -> asyncio.Future[Any]:
        assert crowd.loop is not None
        future = loop.create_future()
        crowd.loop.put(LoopCaller(item, future))
        return future

    async def measure(seconds: float) -> Sample:
        stop: list[bool] = []

        async def work() -> None:
            call: Callable[[Any], Any] = crowd.batch.aubatch if crowd.batch else bare_call
            while not stop:
                await call(0)

        crew = [loop.create_task(work()) for _ in range(case.callers)]
        await asyncio.sleep(seconds / 4)
        wake_ups[0] = 0
        window = Window(crowd)
        await asyncio.sleep(seconds)
        sample = window.close()
        sample["wake-ups"] = wake_ups[0] / sample["batches"]
        stop.append(True)
        await asyncio.gather(*crew)
        return sample

    return lambda seconds: loop.run_until_complete(measure(seconds))


def greenlets(case: Case) -> Round:
    """Greenlets of one gevent hub in a closed loop."""
    import gevent

    hub = gevent.get_hub()
    crowd = Crowd(case, in_hub(hub.loop.async_()) if case.contender.startswith("bare") else None)

    def measure(seconds: float) -> Sample:
        stop: list[bool] = []

        def bare_work() -> None:
            assert crowd.loop is not None
            caller = Caller(crowd.loop, gevent.getcurrent().switch)
            while not stop:
                crowd.loop.put(caller)
                hub.switch()

        def work() -> None:
            call = crowd.caller()
            while not stop:
                call(0)

        crew = [gevent.spawn(work if crowd.batch else bare_work) for _ in range(case.callers)]
        gevent.sleep(seconds / 4)
        window = Window(crowd)
        gevent.sleep(seconds)
        sample = window.close()
        stop.append(True)
        gevent.joinall(crew)
        return sample

    return measure
