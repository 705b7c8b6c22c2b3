"""`ubatch.aio`: batches of coroutines' items on their own event loop, without a thread.

Where time matters the loop's clock is virtual: it jumps to the next timer when there is nothing else to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import random
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ubatch._loop
import ubatch._loop_intake
from ubatch import BadBatchOutputSize, HandlerAlreadySet, HandlerFailed, HandlerNotSet, Stopped
from ubatch.aio import UBatch

Main = Callable[[], Coroutine[Any, Any, Any]]


class Handler:
    """A coroutine handler that takes a + c·b and remembers its batches."""

    def __init__(self, a: float = 0.0, c: float = 0.0) -> None:
        self.a, self.c = a, c
        self.batches: list[list[Any]] = []
        self.running = self.most = 0

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.a or self.c:
                await asyncio.sleep(self.a + self.c * len(items))
            for item in items:
                if isinstance(item, BaseException):
                    raise item
            return [("result", item) for item in items]
        finally:
            self.running -= 1


async def results(calls: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


# -- one result for each ----------------------------------------------------------------------------------


def test_many_tasks_share_batches(run):
    handler = Handler()

    async def main():
        batch = UBatch(16, handler=handler)
        got = await results([batch.ubatch(n) for n in range(100)])
        assert got == [("result", n) for n in range(100)]
        assert [len(items) for items in handler.batches] == [16] * 6 + [4]
        assert [n for items in handler.batches for n in items] == list(range(100))  # first in, first out
        stats = batch.stats
        assert (stats.items, stats.batches, stats.full, stats.queued, stats.running) == (100, 7, 6, 0, 0)

    run(main)


@pytest.mark.parametrize("workers", [1, 3])
def test_plain_functions_run_in_a_thread_of_the_batchers_own(run, workers):
    threads = set()

    def handler(items):
        threads.add(threading.current_thread())
        return [item * 2 for item in items]

    async def main():
        async with UBatch(4, handler=handler, name="doubles", workers=workers) as batch:
            assert await results([batch.ubatch(n) for n in range(20)]) == [n * 2 for n in range(20)]
        assert 1 <= len(threads) <= workers
        assert threading.current_thread() not in threads
        assert all("doubles" in thread.name for thread in threads)

    run(main)
    for thread in threads:
        thread.join(10)


def test_faces(run):
    """Each in its own way; the same under both of its names."""

    async def handler(items):
        return [item + 1 for item in items]

    async def main():
        batch = UBatch(8, handler=handler)
        assert await batch.ubatch(1) == await batch.aubatch(1) == 2
        future = batch.submit(2)
        assert isinstance(future, asyncio.Future)
        assert await future == 3
        assert await batch.map(range(20)) == await batch.amap(range(20)) == list(range(1, 21))
        assert await batch.map([]) == []
        assert [n async for n in batch.stream(range(50))] == list(range(1, 51))
        assert [n async for n in batch.astream(range(3))] == [1, 2, 3]

    run(main)


def test_arguments(run):
    """Bound by the handler's signature; what does not fit fails alone, before it is queued."""

    async def handler(numbers, plus=0):
        return numbers if plus == 0 else [number + more for number, more in zip(numbers, plus, strict=True)]

    async def main():
        batch = UBatch(8, handler=handler)
        assert await results([batch.ubatch(1), batch.ubatch(2, plus=5), batch.ubatch(numbers=3)]) == [1, 7, 3]
        with pytest.raises(TypeError):
            await batch.ubatch(1, 2, 3)
        with pytest.raises(TypeError):
            await batch.map([1], [2], [3])
        assert await batch.map([1, 2], [10, 20]) == [11, 22]
        assert batch.stats.queued == 0

    run(main)


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("k"), KeyError),
        (asyncio.CancelledError("inner"), HandlerFailed),
        (SystemExit(3), HandlerFailed),
        (KeyboardInterrupt(), HandlerFailed),
        (StopIteration(1), HandlerFailed),
        (StopAsyncIteration(1), HandlerFailed),
        (GeneratorExit(), HandlerFailed),
    ],
    ids=repr,
)
def test_each_caller_gets_an_error_of_its_own(run, error, kind, plain):
    """Also of what would end a task or the loop; then the next batch is served."""

    async def coroutine(items):
        if "bad" in items:
            raise error
        return items

    def function(items):
        if "bad" in items:
            raise error
        return items

    async def main():
        async with UBatch(2, handler=function if plain else coroutine) as batch:
            if isinstance(error, StopIteration) and not plain:
                pytest.skip("a coroutine cannot raise it")
            first, second, third = await results([batch.ubatch("bad"), batch.ubatch("good"), batch.ubatch("good")])
            assert type(first) is type(second) is kind
            assert first is not second
            assert kind is KeyError or first.__cause__ is error
            assert third == "good"
            assert batch.stats.errors == 2

    run(main)


@pytest.mark.parametrize("output", [[1], [1, 2, 3], None, (n for n in "ab"), {1: 2, 3: 4}, "ab"], ids=repr)
def test_what_is_no_batch_of_results(run, output):
    async def handler(items):
        return output

    async def main():
        batch = UBatch(2, handler=handler)
        got = await results([batch.ubatch(1), batch.ubatch(2)])
        assert [type(error) for error in got] == [BadBatchOutputSize] * 2

    run(main)


def test_an_exception_among_the_results_is_that_callers(run):
    async def handler(items):
        return [ValueError(item) if item % 2 else item for item in items]

    async def main():
        batch = UBatch(4, handler=handler)
        got = await results([batch.ubatch(n) for n in range(4)])
        assert [got[0], got[2]] == [0, 2]
        assert [error.args for error in got[1::2]] == [(1,), (3,)]
        with pytest.raises(ValueError):
            await batch.map(range(4))
        assert batch.stats.errors == 4

    run(main)


# -- time -------------------------------------------------------------------------------------------------


def test_late_binding(virtual):
    """While a batch runs, what arrives is gathered: 300 items, one a millisecond, in at most 7 batches."""
    handler = Handler(a=0.1)

    async def main():
        batch = UBatch(64, handler=handler, timeout=0)
        futures = []
        for n in range(300):
            futures.append(batch.submit(n))
            await asyncio.sleep(0.001)
        await asyncio.wait(futures)
        assert len(handler.batches) <= 7
        assert [n for items in handler.batches for n in items] == list(range(300))

    virtual(main)


def test_a_window_counts_from_the_arrival(virtual):
    """Also of an item that arrived while the batch before it ran, and however many keep coming."""
    handler = Handler(a=0.03)

    async def main():
        batch = UBatch(64, handler=handler, timeout=0.02)
        start = virtual.now
        first = batch.submit(0)
        for n in range(1, 5):
            await asyncio.sleep(0.009)
            batch.submit(n)
        await first
        assert virtual.now - start == pytest.approx(0.05)  # its window, then the handler
        assert handler.batches == [[0, 1, 2]]
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        assert handler.batches == [[0, 1, 2], [3, 4]]  # their windows passed meanwhile: at once
        assert batch.stats.window == 2
        await batch.stop()

    virtual(main)


def test_a_full_batch_does_not_wait(virtual):
    handler = Handler(a=0.01)

    async def main():
        batch = UBatch(4, handler=handler, timeout=10)
        start = virtual.now
        await batch.map(range(8))
        assert virtual.now - start == pytest.approx(0.02)
        assert handler.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]

    virtual(main)


def test_returning_callers_are_gathered(virtual):
    """As with threads: eight callers that return within a tenth of the fixed cost share every batch."""
    handler = Handler(a=0.005, c=0.0001)

    async def main():
        batch = UBatch(64, handler=handler)
        until = virtual.now + 2.0

        async def caller(n):
            while virtual.now < until:
                await batch.ubatch(n)
                await asyncio.sleep(0.0005 * (n + 1) / 8)

        await asyncio.gather(*(caller(n) for n in range(8)))
        stats = batch.stats
        assert stats.gathered > 0.9 * stats.batches
        assert stats.items / 2.0 >= 0.95 * 8 / (0.005 + 0.0008 + 0.0005)
        assert stats.a == pytest.approx(0.005, rel=0.2)

    virtual(main)


def test_a_lone_caller_is_never_held(virtual):
    handler = Handler(a=0.005)

    async def main():
        batch = UBatch(handler=handler)
        for _ in range(50):
            start = virtual.now
            await batch.ubatch(1)
            assert virtual.now - start == pytest.approx(0.005)
            await asyncio.sleep(0.02)

    virtual(main)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_bound_the_batches_in_flight(virtual, workers):
    handler = Handler(a=0.01)

    async def main():
        batch = UBatch(4, handler=handler, timeout=0, workers=workers)
        start = virtual.now
        await batch.map(range(40))
        assert handler.most == workers
        assert virtual.now - start == pytest.approx(0.01 * (10 / workers))
        assert [n for items in handler.batches for n in items] == list(range(40))

    virtual(main)


def test_idle_workers_do_not_split_a_batch(virtual):
    """Two are free, and one batch's worth of items comes: they leave together."""
    handler = Handler(a=0.01)

    async def main():
        batch = UBatch(8, handler=handler, workers=2)
        for _ in range(20):
            await batch.map(range(8))
            await asyncio.sleep(0.05)
        assert {len(items) for items in handler.batches} == {8}

    virtual(main)


def test_nothing_is_pending_while_a_batch_is_held(virtual):
    """A hold is a timer: a loop may end meanwhile, and has nothing to complain about."""
    handler = Handler()

    async def main():
        batch = UBatch(8, handler=handler, timeout=10)
        future = batch.submit(1)
        await asyncio.sleep(1)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        future.cancel()

    virtual(main)


def test_an_idle_batcher_does_nothing(virtual):
    """No timer, no task."""

    async def main():
        batch = UBatch(handler=Handler(a=0.001))
        await batch.map(range(10))
        await asyncio.sleep(1)
        virtual.loop._ready.clear()
        assert not virtual.loop._scheduled

    virtual(main)


@pytest.mark.parametrize("timeout", [None, 0.005])
def test_a_clock_that_jumps(monkeypatch, run, timeout):
    """To and fro, or stands still: nothing is lost, and nothing waits for long."""
    rng = random.Random(5)
    for room in (ubatch._loop, ubatch._loop_intake):
        monkeypatch.setattr(room, "monotonic", lambda: time.monotonic() + rng.choice([-1e3, -0.01, 0, 0.01, 1e3]))
    handler = Handler(a=0.001)

    async def main():
        batch = UBatch(4, timeout=timeout, handler=handler)

        async def caller(n):
            for _ in range(10):
                assert await batch.ubatch(n) == ("result", n)

        await asyncio.wait_for(asyncio.gather(*(caller(n) for n in range(3))), 8)
        assert batch.stats.items == 30

    run(main)


# -- leaving ----------------------------------------------------------------------------------------------


def test_a_cancelled_item_is_never_seen(virtual):
    """Cancelled before the cut: as a task, as a future, by a timeout."""
    handler = Handler(a=1.0)

    async def main():
        batch = UBatch(8, handler=handler, timeout=0)
        running = batch.submit("first")
        await asyncio.sleep(0.1)
        task = asyncio.create_task(batch.ubatch("task"))
        future = batch.submit("future")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batch.ubatch("timeout"), 0.1)
        task.cancel()
        future.cancel()
        last = batch.submit("last")
        assert await running == ("result", "first")
        assert await last == ("result", "last")
        assert task.cancelled()
        assert handler.batches == [["first"], ["last"]]
        assert batch.stats.cancelled == 3

    virtual(main)


def test_a_member_of_a_running_batch_leaves(virtual):
    """The others get their results."""
    handler = Handler(a=1.0)

    async def main():
        batch = UBatch(4, handler=handler)
        tasks = [asyncio.create_task(batch.ubatch(n)) for n in range(4)]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[1].cancelled()
        assert [got[0], got[2], got[3]] == [("result", n) for n in (0, 2, 3)]
        assert batch.stats.running == 0

    virtual(main)


def test_cancelling_a_map(virtual):
    handler = Handler(a=1.0)

    async def main():
        batch = UBatch(2, handler=handler, timeout=0)
        task = asyncio.create_task(batch.map(range(6)))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert await batch.ubatch("next") == ("result", "next")
        assert handler.batches == [[0, 1], ["next"]]

    virtual(main)


def test_a_batch_whose_callers_all_left_still_ends(virtual):
    handler = Handler(a=1.0)

    async def main():
        batch = UBatch(4, handler=handler)
        task = asyncio.create_task(batch.ubatch(1))
        await asyncio.sleep(0.5)
        task.cancel()
        assert await batch.ubatch(2) == ("result", 2)
        assert batch.stats.running == 0

    virtual(main)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_cancels_whatever(virtual, seed):
    """All tasks may be cancelled at any moment, the batcher's too: every item resolves, and the next works."""
    rng = random.Random(seed)
    handler = Handler(a=0.01, c=0.001)

    async def main():
        batch = UBatch(4, handler=handler, workers=rng.choice([1, 2]), timeout=rng.choice([None, 0, 0.005]))
        me = asyncio.current_task()

        async def caller(n):
            await asyncio.sleep(rng.random() * 0.2)
            return await batch.ubatch(n)

        tasks = [asyncio.create_task(caller(n)) for n in range(100)]
        for _ in range(20):
            await asyncio.sleep(rng.random() * 0.02)
            for victim in asyncio.all_tasks() - {me}:
                if rng.random() < 0.1:
                    victim.cancel()
        _, pending = await asyncio.wait(tasks, timeout=100)
        assert not pending
        for n, task in enumerate(tasks):
            if not task.cancelled():
                assert isinstance(task.exception(), HandlerFailed) or task.result() == ("result", n)
        assert await batch.ubatch("next") == ("result", "next")
        stats = batch.stats
        assert (stats.queued, stats.running) == (0, 0)
        assert stats.items == sum(map(len, handler.batches))

    virtual(main)


# -- starting and stopping --------------------------------------------------------------------------------


def test_items_wait_for_the_start(run):
    handler = Handler()

    async def main():
        batch = UBatch(4)
        with pytest.raises(HandlerNotSet):
            batch.start()
        with pytest.warns(RuntimeWarning, match="wait for set_handler"):
            first = batch.submit(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = batch.submit(2)
        batch.set_handler(handler)
        with pytest.raises(HandlerAlreadySet):
            batch.set_handler(handler)
        await asyncio.sleep(0.01)
        assert handler.batches == []
        assert batch.start() is batch
        assert await results([first, second]) == [("result", 1), ("result", 2)]
        assert handler.batches == [[1, 2]]

    run(main)


def test_stop_drains(virtual):
    handler = Handler(a=0.1)

    async def main():
        batch = UBatch(2, handler=handler, timeout=10)
        futures = [batch.submit(n) for n in range(5)]
        await asyncio.sleep(0.05)
        assert await batch.stop() is True
        assert [future.result() for future in futures] == [("result", n) for n in range(5)]
        assert (batch.stats.full, batch.stats.drained) == (1, 2)
        assert not batch.alive
        for call in (batch.ubatch(1), batch.map([1])):
            with pytest.raises(Stopped):
                await call
        with pytest.raises(Stopped):
            batch.submit(1)
        assert await batch.stop() is True
        batch.start()
        assert await batch.map([1, 2]) == [("result", 1), ("result", 2)]

    virtual(main)


def test_stop_without_draining(virtual):
    """What is queued fails, what runs ends."""
    handler = Handler(a=0.1)

    async def main():
        batch = UBatch(2, handler=handler)
        futures = [batch.submit(n) for n in range(5)]
        await asyncio.sleep(0.05)
        assert await batch.stop(drain=False) is True
        assert [future.result() for future in futures[:2]] == [("result", 0), ("result", 1)]
        assert [type(future.exception()) for future in futures[2:]] == [Stopped] * 3
        assert batch.stats.dropped == 3

    virtual(main)


def test_stop_gives_up_after_its_time(virtual):
    """Callers get `Stopped`; the handler's task is cancelled."""
    handler = Handler(a=1000.0)

    async def main():
        batch = UBatch(2, handler=handler)
        futures = [batch.submit(n) for n in range(5)]
        start = virtual.now
        assert await batch.stop(timeout=1.0) is False
        assert virtual.now - start == pytest.approx(1.0)
        assert [type(future.exception()) for future in futures] == [Stopped] * 5
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert handler.running == 0
        batch.start()
        handler.a = 0.1
        assert await batch.ubatch(7) == ("result", 7)
        assert batch.stats.running == 0

    virtual(main)


def test_stop_without_a_handler(run):
    async def main():
        batch = UBatch(4)
        with pytest.warns(RuntimeWarning):
            future = batch.submit(1)
        assert await batch.stop() is True
        assert type(future.exception()) is Stopped

    run(main)


def test_the_handler_may_not_wait_for_itself(run):
    """Nor may what it starts; once its batch is done, that may. `submit` is allowed, `stop` does not wait."""
    later = []

    async def handler(items):
        for call in (batch.ubatch(1), batch.map([1]), anext(batch.stream([1]))):
            with pytest.raises(RuntimeError, match="own batcher"):
                await call
        with pytest.raises(RuntimeError, match="own batcher"):
            await asyncio.create_task(batch.ubatch(1))
        if items == ["first"]:
            later.append(batch.submit("second"))
            later.append(asyncio.create_task(after()))
        if items == ["stop"]:
            assert await batch.stop() is False
        return items

    async def after():
        await asyncio.sleep(0.05)
        return await batch.ubatch("third")

    async def main():
        nonlocal batch
        batch = UBatch(1, handler=handler)
        assert await batch.ubatch("first") == "first"
        assert await asyncio.gather(*later) == ["second", "third"]
        assert await batch.ubatch("stop") == "stop"
        with pytest.raises(Stopped):
            await batch.ubatch("late")

    batch: Any = None
    run(main)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_that_a_start_has_overtaken(virtual, workers):
    """Ends at once, however much traffic goes on."""
    handler = Handler(a=0.01)

    async def main():
        batch = UBatch(4, timeout=0, handler=handler, workers=workers)
        first = batch.submit(0)
        stopping = asyncio.create_task(batch.stop())
        await asyncio.sleep(0)
        batch.start()
        assert await stopping is False
        assert not first.done()
        assert await batch.ubatch(1) == ("result", 1)
        assert await batch.stop() is True

    virtual(main)


def test_a_batcher_that_was_never_started_and_is_forgotten(run):
    """What it had fails."""

    async def main():
        with pytest.warns(RuntimeWarning):
            future = UBatch(4).submit(1)
        with pytest.raises(Stopped):
            await asyncio.wait_for(future, 5)

    run(main)


def test_no_room_for_another_task(run):
    """Then that call has failed, and the next one works."""

    def deep(batch, depth):
        return deep(batch, depth - 1) if depth else batch.submit("deep")

    async def main():
        for spare in range(40):
            batch = UBatch(4, timeout=0, handler=Handler())
            batch._home()
            frame, depth = sys._getframe(), 0
            while frame:
                depth, frame = depth + 1, frame.f_back
            try:
                future = deep(batch, sys.getrecursionlimit() - depth - 3 - spare)
            except RecursionError:
                pass
            else:
                assert await asyncio.wait_for(future, 5) == ("result", "deep")
            assert await asyncio.wait_for(batch.ubatch("next"), 5) == ("result", "next")
            assert await batch.stop(timeout=5)

    run(main)


def test_cancelled_futures_do_not_fill_a_batch(virtual):
    """Nor do they say how long it waits."""
    handler = Handler()

    async def main():
        batch = UBatch(4, timeout=1, handler=handler)
        for future in [batch.submit(n) for n in range(3)]:
            future.cancel()
        await asyncio.sleep(0.5)
        start = virtual.now
        assert await batch.ubatch("x") == ("result", "x")
        assert virtual.now - start == pytest.approx(1.0)
        assert handler.batches == [["x"]]
        assert (batch.stats.cancelled, batch.stats.full) == (3, 0)

    virtual(main)


# -- contexts, loops, references --------------------------------------------------------------------------

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")


@pytest.mark.parametrize("plain", [False, True])
def test_each_batch_has_a_clean_context(run, plain):
    """Neither the first caller's nor that of the batch before."""
    seen = []

    async def coroutine(items):
        return function(items)

    def function(items):
        seen.append(variable.get())
        variable.set("of a batch")
        return items

    async def main():
        variable.set("of a caller")
        async with UBatch(1, handler=function if plain else coroutine) as batch:
            await batch.map(range(3))
        assert seen == ["clean"] * 3
        assert variable.get() == "of a caller"

    run(main)


def test_one_loop_after_another(run):
    """Counters go on; what a loop that ended left behind disturbs nobody."""
    handler = Handler()
    batch = UBatch(4, handler=handler)

    async def main():
        assert await batch.map(range(4)) == [("result", n) for n in range(4)]

    async def leaves_something():
        batch.submit("lost")

    for _ in range(3):
        run(main)
    run(leaves_something)
    run(main)
    assert batch.stats.items >= 16
    assert len(batch._homes) == 1


def test_two_loops_at_once():
    """In two threads, each with batches of its own; `stop` in one refuses items in both."""
    handler = Handler()
    batch = UBatch(4, handler=handler)
    both = threading.Barrier(2, timeout=10)
    errors = []

    def thread(number):
        async def main():
            for _ in range(50):
                got = await asyncio.gather(*(batch.ubatch((number, n)) for n in range(8)))
                assert got == [("result", (number, n)) for n in range(8)]
            await asyncio.to_thread(both.wait)
            if number == 0:
                await batch.stop()
            await asyncio.to_thread(both.wait)
            with pytest.raises(Stopped):
                await batch.ubatch(1)

        try:
            asyncio.run(main())
        except BaseException as error:
            errors.append(error)
            both.abort()

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert all(len({number for number, _ in items}) == 1 for items in handler.batches)
    assert batch.stats.items == 800


def test_a_loop_that_ends_with_a_batch_in_flight():
    """`asyncio.run` cancels all tasks: the handler's too, and nothing is logged."""
    handler = Handler(a=1000.0)
    batch = UBatch(4, handler=handler)

    async def main():
        asyncio.create_task(batch.ubatch(1))  # noqa: RUF006
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert handler.running == 0


def test_nothing_is_begun_when_a_loop_ends():
    """`asyncio.run` cancels the batch in flight: those behind it do not follow, and nothing is logged."""
    handler = Handler(a=1000.0)
    batch = UBatch(1, timeout=0, handler=handler)
    futures = []

    async def main():
        futures.extend(batch.submit(n) for n in range(3))
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert handler.batches == [[0]]
    del futures[:]
    gc.collect()


def test_stopping_while_another_loop_ends(caplog):
    """A loop that has nothing queued is not given anything to do in its last moments."""
    batch = UBatch(4, timeout=0, handler=Handler())
    until = time.monotonic() + 1.0

    def user():
        while time.monotonic() < until:
            with contextlib.suppress(Stopped):
                asyncio.run(batch.ubatch(1))

    thread = threading.Thread(target=user)
    thread.start()
    while time.monotonic() < until:
        asyncio.run(batch.stop())
        batch.start()
    thread.join()
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("call", ["ubatch", "map"])
def test_an_error_does_not_keep_others_items(run, call):
    """Its traceback refers to frames: not to those that have the batch."""

    class Item:
        pass

    async def handler(items):
        del items
        raise ValueError

    async def main():
        batch = UBatch(2, timeout=0, handler=handler)
        other = Item()
        ref = weakref.ref(other)
        if call == "map":
            got = await results([batch.map([Item()]), batch.ubatch(other)])
        else:
            got = await results([batch.ubatch(Item()), batch.ubatch(other)])
        kept = got[0]
        del got, other
        await asyncio.sleep(0.01)
        gc.collect()
        assert ref() is None
        assert isinstance(kept, ValueError)

    run(main)


@pytest.mark.parametrize("plain", [False, True])
def test_no_reference_is_kept(run, plain):
    """To items, results or exceptions, while the batcher idles."""

    class Thing:
        pass

    refs = []

    def function(items):
        result = Thing()
        error = ValueError(Thing())
        refs.extend(map(weakref.ref, [*items, result, error.args[0]]))
        return [result, error]

    async def coroutine(items):
        return function(items)

    async def main():
        batch = UBatch(2, handler=function if plain else coroutine)
        await results([batch.ubatch(Thing()), batch.ubatch(Thing())])
        await asyncio.sleep(0.01)
        gc.collect()
        assert [ref() for ref in refs] == [None] * 4
        await batch.stop()

    run(main)


def test_forgotten_batchers_are_freed(run):
    async def main():
        refs = []
        for _ in range(100):
            batch = UBatch(handler=Handler())
            await batch.ubatch(1)
            refs.append(weakref.ref(batch))
        del batch
        await asyncio.sleep(0.01)
        gc.collect()
        assert [ref() for ref in refs] == [None] * 100

    run(main)


def test_no_loop_is_running():
    batch = UBatch(handler=Handler())
    with pytest.raises(RuntimeError, match="no running event loop"):
        batch.submit(1)
    assert batch.stats.items == 0


# -- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_size": 0}, ValueError, "max_size must be at least 1 item, not 0"),
        ({"max_size": 1.5}, TypeError, "max_size must be an integer, not 1.5"),
        ({"timeout": -1}, ValueError, "timeout must be None or at least 0 seconds, not -1"),
        ({"workers": 0}, ValueError, "workers must be at least 1 worker, not 0"),
        ({"workers": True}, TypeError, "workers must be an integer, not True"),
        ({"name": 3}, TypeError, "name must be a string, not 3"),
        ({"handler": 3}, TypeError, "handler must be callable, not 3"),
    ],
)
def test_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        UBatch(**options)


def test_options_change_while_it_runs(virtual):
    handler = Handler(a=0.01)

    async def main():
        batch = UBatch(8, handler=handler, timeout=10)
        future = batch.submit(0)
        await asyncio.sleep(1)
        batch.timeout = 0.5  # has passed
        await future
        batch.max_size = 2
        batch.timeout = 0
        await batch.map(range(4))
        assert handler.batches == [[0], [0, 1], [2, 3]]

    virtual(main)


def test_repr_and_pickle():
    import pickle

    batch = UBatch(8, 0.5, handler=Handler(), workers=2)
    assert repr(batch) == ("<ubatch.aio.UBatch 'Handler' running max_size=8 timeout=0.5 workers=2 queued=0 running=0>")
    with pytest.raises(TypeError, match="belongs to event loops"):
        pickle.dumps(batch)


def test_a_shift_that_dies_fails_its_batch(run, caplog):
    """Of a bug, or of no memory: nobody waits in vain, it is logged once, and the next batch is served."""

    async def main():
        batch = UBatch(2, handler=Handler())
        await batch.ubatch(0)
        home = batch._latest
        policy, home.policy = home.policy, None
        home.policy = type("Broken", (), {"passive": True, "reason": "idle", "watch": lambda self: 1 / 0})()
        got = await results([batch.ubatch(1), batch.ubatch(2)])
        assert [type(error).__name__ for error in got] == ["WorkerDied"] * 2
        home.policy = policy
        assert await batch.ubatch(3) == ("result", 3)

    with caplog.at_level(logging.ERROR, "ubatch"):
        run(main)
    assert [record.getMessage() for record in caplog.records] == ["a worker of batcher 'Handler' died"]
