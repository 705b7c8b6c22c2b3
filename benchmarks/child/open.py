"""Open loops: items arrive on a schedule of their own, whether or not earlier ones have been answered.

What keeps the figures honest is in `schedule`; here the calls are made when they are due, by threads or by tasks. The
generator shares the process, the cores and the GIL with the system, as real callers do. How late it was by itself is
a figure of each sample (`generator`).

A round ends when all arrivals have their answers, or `GRACE` after the last one was due; what has none by then counts
as infinitely late. Before the next round, the rest is answered by a device that takes no time.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from case import Case, Round, Sample
from schedule import LEAD, Device, Record, capacity, poisson
from systems import System, open_system, open_tasks

GRACE = 1.0
"""Seconds that answers are waited for after the last arrival."""

HEAD_START = 0.05
"""Seconds from the making of a schedule to its start."""

PATIENCE = 20.0
"""Seconds in which calls that were given up must end."""

STACK = 256 * 1024
"""Bytes of each caller's stack."""


class StuckError(RuntimeError):
    """Calls of a round did not end."""


def open_loop(case: Case) -> Round:
    """Arrivals at `case.load` of the handler's capacity, `case.burst` of them at a time.

    Where `case.face` is threads, `case.callers` says how many there are: as many as may ever wait together.
    """
    rate = case.load * capacity(case.handler)
    numbers = itertools.count(case.seed - 1)  # the first round is a warm-up

    def plan(seconds: float) -> Record:
        lead = LEAD * seconds
        moments = poisson(rate, case.burst, lead + seconds, next(numbers))
        return Record(moments, lead, perf_counter() + HEAD_START)

    device = Device(case.handler)
    if case.face == "tasks":
        return Tasks(partial(open_tasks, case, device), case, plan, device).measure
    return Threads(open_system(case, device), case, plan, device).measure


class Threads:
    """Threads that stand ready: each takes the next arrival, sleeps until it is due, calls, and takes another.

    Args:
        system: what is called.
        case: how many threads; what arrives.
        plan: makes a round's arrivals.
        device: is hurried when a round is over.
    """

    def __init__(self, system: System, case: Case, plan: Callable[[float], Record], device: Device) -> None:
        self.system, self.plan, self.device = system, plan, device
        self.size, self.burst = case.callers, case.burst
        self.rounds: SimpleQueue[tuple[Record, Iterable[int]] | None] = SimpleQueue()
        self.back = threading.Semaphore(0)
        usual = threading.stack_size(STACK)
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.size)]
        for thread in self.threads:
            thread.start()
        threading.stack_size(usual)

    def measure(self, seconds: float) -> Sample:
        """One round.

        Raises:
            StuckError: there are calls that do not end.
        """
        before = self.system.counts()
        record = self.plan(seconds)
        numbers = itertools.count()  # `next` on it is atomic
        for _ in range(self.size):
            self.rounds.put((record, numbers))
        if record.due:
            time.sleep(max(record.due[-1] - perf_counter(), 0.0))
            until = record.due[-1] + GRACE
            while record.pending() and perf_counter() < until:
                time.sleep(0.005)
        sample = record.sample(self.burst) | mean_batch(before, self.system.counts())
        record.over = self.device.hurried = True
        until = perf_counter() + PATIENCE
        for left in range(self.size, 0, -1):
            if not self.back.acquire(timeout=max(until - perf_counter(), 0.0)):
                raise StuckError(f"{left} calls did not end within {PATIENCE:.0f} s")
        self.device.hurried = False
        return _checked(sample, record)

    def close(self) -> None:
        """End the threads."""
        for _ in self.threads:
            self.rounds.put(None)
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        call = self.system.caller()
        while (given := self.rounds.get()) is not None:
            _attend(*given, call)
            self.back.release()


def _attend(record: Record, numbers: Iterable[int], call: Callable[[Any], Any]) -> None:
    """What one thread does in a round."""
    due = record.due
    for number in numbers:
        if record.over or number >= len(due):
            return
        wait = due[number] - perf_counter()
        if wait > 0:
            time.sleep(wait)
            record.lateness.append(perf_counter() - due[number])
        try:
            record.answer(number, call(number))
        except Exception as error:
            record.fail(number, error)


class Tasks:
    """A thread hands arrivals to an event loop when they are due, where each becomes a task.

    Not tasks that sleep: an event loop rounds that up to the next millisecond. The way into the loop is part of the
    latency, not of what the generator is to blame for.

    Args:
        opened: makes what is called, within the event loop.
        case: what arrives.
        plan: makes a round's arrivals.
        device: is hurried when a round is over.
    """

    def __init__(
        self,
        opened: Callable[[], Coroutine[Any, Any, System]],
        case: Case,
        plan: Callable[[float], Record],
        device: Device,
    ) -> None:
        self.plan, self.device, self.burst = plan, device, case.burst
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.system = self.loop.run_until_complete(opened())

    def measure(self, seconds: float) -> Sample:
        """One round.

        Raises:
            StuckError: there are calls that do not end.
        """
        return self.loop.run_until_complete(self._measure(seconds))

    def close(self) -> None:
        """Close the event loop."""
        asyncio.set_event_loop(None)
        self.loop.close()

    async def _measure(self, seconds: float) -> Sample:
        before = self.system.counts()
        record = self.plan(seconds)
        tasks: set[asyncio.Task[None]] = set()

        def begin(numbers: Iterable[int]) -> None:
            for number in numbers:
                task = self.loop.create_task(_ask(record, number, self.system.task))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        feeder = threading.Thread(target=_feed, args=(record, self.loop, begin), daemon=True)
        feeder.start()
        if record.due:
            await asyncio.sleep(max(record.due[-1] - perf_counter(), 0.0))
            until = record.due[-1] + GRACE
            while record.pending() and perf_counter() < until:
                await asyncio.sleep(0.005)
        sample = record.sample(self.burst) | mean_batch(before, self.system.counts())
        record.over = self.device.hurried = True
        feeder.join()
        await asyncio.sleep(0)  # what it handed over last
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=PATIENCE)
            if left:
                raise StuckError(f"{len(left)} calls did not end within {PATIENCE:.0f} s")
        self.device.hurried = False
        return _checked(sample, record)


def _feed(record: Record, loop: asyncio.AbstractEventLoop, begin: Callable[[Iterable[int]], None]) -> None:
    """What the feeding thread does in a round: all that is due enters the loop together."""
    due = record.due
    first = 0
    while first < len(due) and not record.over:
        time.sleep(max(due[first] - perf_counter(), 0.0))
        now = perf_counter()
        last = bisect_right(due, now, first)
        if last > first:
            record.lateness += [now - moment for moment in due[first:last]]
            loop.call_soon_threadsafe(begin, range(first, last))
        first = last


async def _ask(record: Record, number: int, call: Callable[[Any], Awaitable[Any]]) -> None:
    try:
        record.answer(number, await call(number))
    except Exception as error:
        record.fail(number, error)


def mean_batch(before: tuple[int, int] | None, after: tuple[int, int] | None) -> Sample:
    """The mean batch between two counts of items and batches; nothing if they are not known."""
    if before is None or after is None or after[1] == before[1]:
        return {}
    return {"mean batch": (after[0] - before[0]) / (after[1] - before[1])}


def _checked(sample: Sample, record: Record) -> Sample:
    """The sample, unless every call has failed: then there is nothing to it."""
    if record.errors and not sample["answered"]:
        raise record.errors[0]
    return sample
