"""One adapter for each contender: how its callers call it.

Each takes the case and the handler. A contender is imported when its adapter is made, so that no process has more
than one of them in it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bare import BareLoop, Caller, LoopCaller, all_at_once, in_a_chain, in_hub, in_loop
from case import Case, Handler
from handlers import Counting

DEPTH = 16_384
"""Room in queues that have a bound, so that none is full before the others are."""

PATIENCE = 300.0
"""Seconds, for systems that give items up."""


class System:
    """What callers call.

    Args:
        case: which contender, the largest batch, its settings.
        handler: the batch handler.
    """

    def __init__(self, case: Case, handler: Handler) -> None:
        self.counting = handler if isinstance(handler, Counting) else None

    def caller(self) -> Callable[[Any], Any]:
        """What one thread or greenlet calls with one item; it returns that item's result."""
        raise NotImplementedError(f"{type(self).__name__} has no face for threads")

    def task(self, item: Any) -> Awaitable[Any]:
        """What a task awaits."""
        raise NotImplementedError(f"{type(self).__name__} has no face for tasks")

    def counts(self) -> tuple[int, int] | None:
        """Items and batches that the handler was given so far; `None` where that is not known."""
        return None if self.counting is None else (self.counting.items, self.counting.batches)

    def gathering(self, on: bool) -> None:
        """Whether a worker may wait until all callers are there; not while they leave."""


class Ubatch(System):
    """This project: threads, greenlets, and tasks that a worker thread serves."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        from ubatch import UBatch

        self.batch: Any = UBatch(case.max_size, handler=handler, **case.settings)
        self.task = self.batch.aubatch  # type: ignore

    def caller(self) -> Callable[[Any], Any]:
        call: Callable[[Any], Any] = self.batch.ubatch
        return call


class UbatchAio(System):
    """This project on an event loop alone: a no-op handler is a coroutine, others run in a thread of the batcher."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        from ubatch.aio import UBatch

        self.task = UBatch(case.max_size, handler=_best_async(case, handler), **case.settings).ubatch  # type: ignore


class Ubatch1(System):
    """The published ubatch."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        from ubatch import UBatch

        self.batch: Any = UBatch(max_size=case.max_size, **case.settings)
        self.batch.set_handler(handler)
        self.batch.start()

    def caller(self) -> Callable[[Any], Any]:
        call: Callable[[Any], Any] = self.batch.ubatch
        return call


class Batched(System):
    """batched, with its thread or on an event loop."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        if case.face == "tasks":
            from batched.aio import dynamically

            handler = _best_async(case, handler)
        else:
            from batched import dynamically

        def batched(items: list[Any]) -> Any:  # its decorator wants a function
            return handler(items)

        async def abatched(items: list[Any]) -> Any:
            return await handler(items)

        plain = abatched if asyncio.iscoroutinefunction(handler) else batched
        self.call: Any = dynamically(plain, batch_size=case.max_size, **case.settings)
        self.task = self.call  # type: ignore

    def caller(self) -> Callable[[Any], Any]:
        call: Callable[[Any], Any] = self.call
        return call


class AsyncBatcher(System):
    """async-batcher."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        best = _best_async(case, handler)
        plain, coroutine = _async_batchers()
        settings = {"max_batch_size": max(case.max_size, 2), **case.settings}
        if asyncio.iscoroutinefunction(best):
            batcher = coroutine(**settings)
        else:
            batcher = plain(**settings, executor=ThreadPoolExecutor(1))
        batcher.handler = best
        self.task = batcher.process  # type: ignore


@functools.cache
def _async_batchers() -> tuple[Any, Any]:
    """Subclasses as async-batcher wants them, for a plain function and for a coroutine; once for all objects."""
    from async_batcher.batcher import AsyncBatcher as Base

    class Plain(Base):  # type: ignore
        def process_batch(self, batch: list[Any]) -> Any:
            return self.handler(batch)

    class Coroutine(Base):  # type: ignore
        async def process_batch(self, batch: list[Any]) -> Any:
            return await self.handler(batch)

    return Plain, Coroutine


class Aqueduct(System):
    """aqueduct: the handler runs in a process of its own."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        from aqueduct import BaseTask, BaseTaskHandler, Flow, FlowStep, log

        log.setLevel("ERROR")

        class Step(BaseTaskHandler):  # type: ignore
            def handle(self, *tasks: Any) -> None:
                for task, result in zip(tasks, handler([task.item for task in tasks]), strict=True):
                    task.result = result

        global AqueductTask

        class AqueductTask(BaseTask):  # type: ignore  # global, as it is pickled by its name
            def __init__(self, item: Any) -> None:
                super().__init__()
                self.item = item
                self.result = None

        AqueductTask.__qualname__ = "AqueductTask"
        step = FlowStep(Step(), batch_size=case.max_size, **case.settings)
        self.flow: Any = Flow(step, metrics_enabled=False, queue_size=DEPTH)
        self.flow.start(timeout=30)

    async def task(self, item: Any) -> Any:
        task = AqueductTask(item)
        await self.flow.process(task, timeout_sec=PATIENCE)
        return task.result

    def counts(self) -> tuple[int, int] | None:
        return None  # its process knows


class Unbatched(System):
    """No batching: each caller calls the handler with its item alone."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        self.handler = handler
        self.waits = case.handler != "no-op"
        self.executor = ThreadPoolExecutor(1)  # one device, one batch at a time

    def caller(self) -> Callable[[Any], Any]:
        handler = self.handler
        return lambda item: handler([item])[0]

    async def task(self, item: Any) -> Any:
        if self.waits:
            results = await asyncio.get_running_loop().run_in_executor(self.executor, self.handler, [item])
        else:
            results = self.handler([item])
            await asyncio.sleep(0)  # or no other task would ever run
        return results[0]

    def counts(self) -> tuple[int, int] | None:
        return None  # every batch has one item


class Executor(System):
    """A thread pool of one thread; each call is a batch of one."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        self.handler = handler
        self.executor = ThreadPoolExecutor(1)

    def caller(self) -> Callable[[Any], Any]:
        handler, submit = self.handler, self.executor.submit
        return lambda item: submit(handler, [item]).result()[0]


class Bare(System):
    """A bare loop. Its setting `gather` is how many items the worker waits for before each batch."""

    def __init__(self, case: Case, handler: Handler) -> None:
        super().__init__(case, handler)
        self.gather = case.settings.get("gather", 1)
        self.face = case.face
        wake: Callable[[list[Any]], None] = in_a_chain if case.contender == "bare chain" else all_at_once
        if case.face == "tasks":
            self.event_loop = asyncio.get_running_loop()
            wake = in_loop(self.event_loop)
        elif case.face == "greenlets":
            import gevent

            self.hub = gevent.get_hub()
            wake = in_hub(self.hub.loop.async_())
        self.loop = BareLoop(handler, case.max_size, self.gather, wake)

    def caller(self) -> Callable[[Any], Any]:
        if self.face != "greenlets":
            return Caller(self.loop).call
        import gevent

        caller, hub = Caller(self.loop, gevent.getcurrent().switch), self.hub

        def call(item: Any) -> Any:
            caller.item = item
            self.loop.put(caller)
            hub.switch()
            return caller.result

        return call

    def task(self, item: Any) -> Awaitable[Any]:
        future = self.event_loop.create_future()
        self.loop.put(LoopCaller(item, future))
        return future

    def gathering(self, on: bool) -> None:
        self.loop.gather = self.gather if on else 1
        self.loop.ring()


SYSTEMS: dict[str, type[System]] = {
    "ubatch": Ubatch,
    "ubatch.aio": UbatchAio,
    "ubatch 1.0.0": Ubatch1,
    "batched": Batched,
    "async-batcher": AsyncBatcher,
    "aqueduct": Aqueduct,
    "none": Unbatched,
    "bare loop": Bare,
    "bare chain": Bare,
    "ThreadPoolExecutor(1)": Executor,
}


def open_system(case: Case, handler: Handler, counting: bool = True) -> System:
    """The contender's face for threads or greenlets, ready for its first call.

    Args:
        case: tells which contender, and with which settings.
        handler: the batch handler.
        counting: whether `counts` is wanted; counting costs some 100 ns a batch.
    """
    return SYSTEMS[case.contender](case, Counting(handler) if counting else handler)


async def open_tasks(case: Case, handler: Handler, counting: bool = True) -> System:
    """The contender's face for tasks of the running event loop; see `open_system`."""
    return open_system(case, handler, counting)


def _best_async(case: Case, handler: Handler) -> Any:
    """The form of the handler that serves an event loop best.

    A coroutine if it costs nothing, as a thread would only add to it. A plain function for a thread otherwise: an
    event loop's own sleep is rounded up to the next millisecond.
    """
    if case.handler != "no-op":
        return handler

    async def coroutine(items: list[Any]) -> Any:
        return handler(items)

    return coroutine
