"""Closed loops: threads, tasks or greenlets, each of which calls again as soon as it has its result."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from case import Case, Round, Sample, pin, pin_children, pin_others, pinned
from figures import cpu_time, latencies
from handlers import HANDLERS
from systems import System, open_system

LEAD = 0.25
"""Share of a round that runs before its figures are taken."""


class Crew:
    """Callers, what they have done, and how long they waited.

    Each has an entry of its own in `done`, so that counting needs no lock.

    Args:
        size: how many.
        clocked: whether each call is timed; where the handler does nothing, that would be a good part of it.
    """

    def __init__(self, size: int, clocked: bool) -> None:
        self.clocked = clocked
        self.done = [0] * size
        self.stopped = False
        self.waits: list[float] = []

    def work(self, index: int, call: Callable[[Any], Any]) -> None:
        """What a thread or a greenlet does."""
        done = self.done
        if self.clocked:
            waited = self.waits.append
            while not self.stopped:
                start = perf_counter()
                call(0)
                waited(perf_counter() - start)
                done[index] += 1
        else:
            while not self.stopped:
                call(0)
                done[index] += 1

    async def work_async(self, index: int, call: Callable[[Any], Awaitable[Any]]) -> None:
        """What a task does."""
        done = self.done
        if self.clocked:
            waited = self.waits.append
            while not self.stopped:
                start = perf_counter()
                await call(0)
                waited(perf_counter() - start)
                done[index] += 1
        else:
            while not self.stopped:
                await call(0)
                done[index] += 1


class Window:
    """What happens between two moments, per second and per item."""

    def __init__(self, crew: Crew, system: System) -> None:
        self.crew, self.system = crew, system
        self.first = len(crew.waits)
        self.counts = system.counts()
        self.start = (perf_counter(), cpu_time(), sum(crew.done))

    def close(self) -> Sample:
        """The figures since the start."""
        end = (perf_counter(), cpu_time(), sum(self.crew.done))
        seconds, cpu, items = (b - a for a, b in zip(self.start, end, strict=True))
        sample: Sample = {"rate": items / seconds, "cpu": cpu / max(items, 1)}
        counts = self.system.counts()
        if counts is not None and self.counts is not None:
            handled, batches = (b - a for a, b in zip(self.counts, counts, strict=True))
            sample |= {"mean batch": handled / max(batches, 1), "batches": batches}
        return sample | latencies(self.crew.waits[self.first :])


def closed_loop(case: Case) -> Round:
    """See the module."""
    caller_core, worker_core = pinned(case.cores)
    pin(caller_core)
    handler = HANDLERS[case.handler]

    def settle() -> None:
        pin_others(worker_core)
        pin_children(worker_core)

    return looped(case, lambda: open_system(case, handler), settle)


def looped(case: Case, opened: Callable[[], System], settle: Callable[[], None] = lambda: None) -> Round:
    """A closed loop around any system.

    Args:
        case: how many call it, and by which face.
        opened: makes the system; where tasks call it, their event loop is running then.
        settle: called before each round, when all workers are there.
    """
    measure = {"threads": _threads, "tasks": _tasks, "greenlets": _greenlets}[case.face]
    return measure(case, opened, settle)


def _threads(case: Case, opened: Callable[[], System], settle: Callable[[], None]) -> Round:
    system = opened()

    def measure(seconds: float) -> Sample:
        system.gathering(False)
        system.caller()(0)  # a worker that has gone is there again
        system.gathering(True)
        settle()
        crew = Crew(case.callers, case.handler != "no-op")
        gate = threading.Event()  # or those that have started would keep the others from being started

        def work(index: int) -> None:
            call = system.caller()
            gate.wait()
            crew.work(index, call)

        threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(case.callers)]
        for thread in threads:
            thread.start()
        gate.set()
        time.sleep(seconds * LEAD)
        window = Window(crew, system)
        time.sleep(seconds)
        sample = window.close()
        crew.stopped = True
        for thread in threads:
            while thread.is_alive():
                system.gathering(False)
                thread.join(0.01)
        return sample

    return measure


def _tasks(case: Case, opened: Callable[[], System], settle: Callable[[], None]) -> Round:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    wake_ups = [0]
    uncounted = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
        wake_ups[0] += 1
        return uncounted(*args, **kwargs)

    loop.call_soon_threadsafe = counted  # type: ignore

    async def open_here() -> System:
        return opened()

    system = loop.run_until_complete(open_here())

    async def measure(seconds: float) -> Sample:
        system.gathering(False)
        await system.task(0)
        system.gathering(True)
        settle()
        crew = Crew(case.callers, case.handler != "no-op")
        tasks = [loop.create_task(crew.work_async(index, system.task)) for index in range(case.callers)]
        await asyncio.sleep(seconds * LEAD)
        wake_ups[0] = 0
        window = Window(crew, system)
        await asyncio.sleep(seconds)
        sample = window.close()
        if sample.get("batches"):
            sample["wake-ups"] = wake_ups[0] / sample["batches"]
        crew.stopped = True
        system.gathering(False)
        await asyncio.gather(*tasks)
        return sample

    return lambda seconds: loop.run_until_complete(measure(seconds))


def _greenlets(case: Case, opened: Callable[[], System], settle: Callable[[], None]) -> Round:
    import gevent

    gevent.get_hub()
    system = opened()

    def measure(seconds: float) -> Sample:
        gevent.spawn(lambda: system.caller()(0)).join()
        settle()
        crew = Crew(case.callers, case.handler != "no-op")
        greenlets = [
            gevent.spawn(lambda index=index: crew.work(index, system.caller())) for index in range(case.callers)
        ]
        gevent.sleep(seconds * LEAD)
        window = Window(crew, system)
        gevent.sleep(seconds)
        sample = window.close()
        crew.stopped = True
        gevent.joinall(greenlets)
        return sample

    return measure
