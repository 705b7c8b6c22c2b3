"""Closed loops around pipelines in child processes: a child for each step, arrays in, a number for each out."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter
from typing import Any

from case import Case, Round, Sample
from closed import looped
from payloads import Stock, bytes_of, chain
from systems import System

STARTING = 60.0
"""Seconds that children may take to start."""


def pipeline(case: Case) -> Round:
    """See the module. A wrong answer, or none, ends the process."""
    size = bytes_of(case.handler)
    measured = copies(case) if case.contender == "memcpy" else looped(case, lambda: Checked(case, opened(case)))

    def measure(seconds: float) -> Sample:
        sample = {name: value for name, value in measured(seconds).items() if name not in ("histogram", "p99.9")}
        return {"rate": sample["rate"], "bandwidth": sample["rate"] * size} | sample

    return measure


def opened(case: Case) -> Pipeline:
    """A contender's pipeline, ready for its first item. Where tasks call it, in their event loop."""
    if case.contender == "aqueduct":
        from aqueduct_pipeline import Aqueduct

        return Aqueduct(case)
    return Pools(case) if case.contender == "ProcessPoolExecutor(1)" else Ubatch(case)


class Pipeline:
    """Several steps, each in a process of its own.

    Args:
        case: the number of steps, the handler of the last, the contender's settings.
    """

    def __init__(self, case: Case) -> None:
        raise NotImplementedError

    def call(self, array: Any) -> Any:
        """What a thread calls; returns the answer."""
        raise NotImplementedError

    async def acall(self, array: Any) -> Any:
        """What a task awaits."""
        raise NotImplementedError

    def counts(self) -> tuple[int, int] | None:
        """Items and batches of the first step so far, where that is known."""
        return None


class Ubatch(Pipeline):
    """This project, as it comes."""

    def __init__(self, case: Case) -> None:
        from ubatch import Flow, Step

        steps = [Step(handler, processes=1, **case.settings) for handler in chain(case.handler, case.steps)]
        self.flow: Any = Flow(*steps).start(timeout=STARTING)
        self.call = self.flow.ubatch  # type: ignore[method-assign]
        self.acall = self.flow.aubatch  # type: ignore[method-assign]

    def counts(self) -> tuple[int, int]:
        """As of `Pipeline`."""
        stats = self.flow.stats.steps[0].batches
        return stats.items, stats.batches


class Pools(Pipeline):
    """`ProcessPoolExecutor`, one for each step and with one process each; whatever is sent is pickled."""

    def __init__(self, case: Case) -> None:
        self.steps = [(ProcessPoolExecutor(1), handler) for handler in chain(case.handler, case.steps)]

    def call(self, array: Any) -> Any:
        """As of `Pipeline`."""
        for pool, handler in self.steps:
            array = pool.submit(alone, handler, array).result()
        return array

    async def acall(self, array: Any) -> Any:
        """As of `Pipeline`."""
        loop = asyncio.get_running_loop()
        for pool, handler in self.steps:
            array = await loop.run_in_executor(pool, alone, handler, array)
        return array


def alone(handler: Callable[[list[Any]], list[Any]], item: Any) -> Any:
    """Call a batch handler with a single item."""
    return handler([item])[0]


class Checked(System):
    """A pipeline whose callers have each an item of their own, and see that the answer is that item's."""

    def __init__(self, case: Case, pipeline: Pipeline) -> None:
        super().__init__(case, lambda items: items)
        self.pipeline = pipeline
        self.stock = Stock(case.handler, case.callers, case.seed)

    def caller(self) -> Callable[[Any], None]:
        """What a thread calls."""
        stock, call = self.stock, self.pipeline.call

        def checked(_: Any) -> None:
            try:
                item = stock.take()
                stock.put_back(item, call(item[0]))
            except BaseException:
                fail()

        return checked

    def task(self, _: Any) -> Awaitable[None]:
        """What a task awaits."""
        return self._task()

    async def _task(self) -> None:
        try:
            item = self.stock.take()
            self.stock.put_back(item, await self.pipeline.acall(item[0]))
        except Exception:
            fail()

    def counts(self) -> tuple[int, int] | None:
        """As of `System`."""
        return self.pipeline.counts()


def fail() -> None:
    """End the process; what was raised is the last line that it writes."""
    traceback.print_exc()
    os._exit(1)


def copies(case: Case) -> Round:
    """Bare copies: as many items as callers have, one after another, into one piece of memory that is used again."""
    import numpy as np

    stock = Stock(case.handler, case.callers)
    items = [array for array, _ in stock.items]
    block = np.ones((len(items), *items[0].shape), np.float32)

    def measure(seconds: float) -> Sample:
        done, start = 0, perf_counter()
        while (took := perf_counter() - start) < seconds:
            for place, item in zip(block, items, strict=True):
                np.copyto(place, item)
            done += len(items)
        return {"rate": done / took, "cpu": took / done}

    return measure
