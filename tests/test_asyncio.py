"""A thread batcher awaited from event loops: of asyncio, of uvloop, one or several, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import ubatch._driver
from ubatch import HandlerFailed, Stopped, UBatch, WorkerDied

PATIENCE = 10.0  # seconds; what takes longer never ends


class Gate:
    """A handler that records its batches and, while it is shut, keeps them waiting."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.entered.release()
        assert self.opened.wait(PATIENCE)
        return items

    async def wait_for_batch(self) -> None:
        while not self.entered.acquire(blocking=False):
            await asyncio.sleep(0.001)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


async def busy(gate: Gate, *args: Any) -> UBatch[Any, Any]:
    """A batcher whose worker is held up in a batch of one."""
    batch: UBatch[Any, Any] = UBatch(*args, handler=gate)
    batch.submit("plug")
    await gate.wait_for_batch()
    return batch


async def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.001)


def double(items: list[Any]) -> list[Any]:
    return [2 * item for item in items]


def spawn(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(coroutine) for coroutine in coroutines]


# -- many tasks ------------------------------------------------------------------------------------------------


def test_many_tasks(run):
    """A thousand tasks of one loop get their own results; the loop runs on meanwhile."""

    ticks = 0

    def handler(items: list[int]) -> list[int]:
        deadline, begin = time.monotonic() + PATIENCE, ticks
        while ticks < begin + 2:
            assert time.monotonic() < deadline, "the loop stands still"
            time.sleep(0.0001)
        return double(items)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> None:
        ticking = asyncio.ensure_future(tick())
        batch: UBatch[int, int] = UBatch(64, handler=handler)
        assert await asyncio.gather(*map(batch.aubatch, range(1000))) == [*range(0, 2000, 2)]
        assert 16 <= batch.stats.batches < 100
        await batch.astop()
        ticking.cancel()

    run(main)


def test_arguments(run):
    """Several arguments and keywords, as with the other faces; what does not fit fails alone, before it is queued."""

    async def main() -> None:
        with UBatch(handler=lambda a, b=3: [x * y for x, y in zip(a, b, strict=True)]) as batch:
            assert await batch.aubatch(2, b=5) == 10
            assert await batch.amap([1, 2], [3, 4]) == [3, 8]
            with pytest.raises(TypeError):
                await batch.aubatch(1, 2, 3)
            with pytest.raises(TypeError):
                await batch.amap([1], [2], [3])
            assert batch.stats.submitted == 3

    run(main)


def test_one_wake_up_for_each_batch_and_loop(run, gate):
    """The tasks of one batch are woken by one call into their loop, those of `amap` among them."""

    async def main() -> None:
        batch = await busy(gate, 100)
        loop = asyncio.get_running_loop()
        calls: list[str] = []
        tasks = spawn(*map(batch.aubatch, range(40)), batch.amap(range(40, 60)))
        await eventually(lambda: batch.stats.queued == 60)
        original = loop.call_soon_threadsafe
        spied = Spy(loop, calls)
        for ticket in list(batch._schedule.queue):
            ticket.home = spied  # type: ignore[attr-defined]
        gate.opened.set()
        assert await asyncio.gather(*tasks) == [*range(40), [*range(40, 60)]]
        assert original
        assert calls == ["_resolve"]
        assert gate.batches[1:] == [[*range(60)]]
        await batch.astop()

    run(main)


class Spy:
    """A loop whose thread-safe calls are counted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, calls: list[str]) -> None:
        self.loop = loop
        self.calls = calls

    def call_soon_threadsafe(self, callback: Callable[..., None], *args: Any) -> None:
        self.calls.append(callback.__name__)
        self.loop.call_soon_threadsafe(callback, *args)


def test_tasks_threads_and_futures_share_a_batch(run, gate):
    """All kinds of callers may be in one batch."""

    async def main() -> None:
        batch = await busy(gate, 100)
        tasks = spawn(*map(batch.aubatch, range(5)), batch.amap([5, 6]))
        futures = [batch.submit(n) for n in range(7, 10)]
        threads = spawn(*(asyncio.to_thread(batch.ubatch, n) for n in range(10, 13)))
        wrapped = [asyncio.wrap_future(batch.submit(n)) for n in range(13, 15)]
        await eventually(lambda: batch.stats.queued == 15)
        gate.opened.set()
        assert await asyncio.gather(*tasks, *threads, *wrapped) == [0, 1, 2, 3, 4, [5, 6], 10, 11, 12, 13, 14]
        assert [future.result(PATIENCE) for future in futures] == [7, 8, 9]
        assert len(gate.batches) == 2
        await batch.astop()

    run(main)


def test_amap(run):
    """`amap` gives all results in order; with errors it raises the first, once all items are done."""
    done: list[list[int]] = []

    def handler(items: list[int]) -> list[Any]:
        done.append(items)
        return [KeyError(item) if item in (3, 5) else item for item in items]

    async def main() -> None:
        with UBatch(2, handler=handler) as batch:
            assert await batch.amap([0, 1, 2]) == [0, 1, 2]
            assert await batch.amap([]) == []
            assert await batch.amap(iter([1])) == [1]
            done.clear()
            with pytest.raises(KeyError, match="3"):
                await batch.amap(range(8))
            assert [item for items in done for item in items] == [*range(8)]

    run(main)


# -- loops -----------------------------------------------------------------------------------------------------


def test_two_loops_at_once(run, gate):
    """Loops in two threads share a batcher and its batches; each is woken on its own."""
    batch: UBatch[Any, Any] = UBatch(100, handler=gate)
    batch.submit("plug")
    assert gate.entered.acquire(timeout=PATIENCE)
    results: dict[str, Any] = {}

    def loop(name: str) -> None:
        async def main() -> None:
            thread = threading.get_ident()

            async def one(n: int) -> int:
                result = await batch.aubatch((name, n))
                assert threading.get_ident() == thread
                return result

            results[name] = await asyncio.gather(*map(one, range(20)))

        run(main)

    threads = [threading.Thread(target=loop, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    while batch.stats.queued < 40 and time.monotonic() < deadline:
        time.sleep(0.001)
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert results == {name: [(name, n) for n in range(20)] for name in "ab"}
    assert len(gate.batches) == 2
    batch.stop()


def test_one_loop_after_another(run):
    """A batcher, and its worker, serve successive loops."""
    workers: set[int] = set()

    def handler(items: list[int]) -> list[int]:
        workers.add(threading.get_native_id())
        return items

    with UBatch(handler=handler) as batch:
        for n in range(10):

            async def main(n: int = n) -> None:
                assert await batch.aubatch(n) == n
                assert await batch.amap([n, n]) == [n, n]

            run(main)
    assert len(workers) == 1


def test_a_loop_closed_before_its_batch_ends(run, gate, caplog):
    """Its tasks are gone; the worker survives, and other callers of the batch are unaffected."""
    batch: UBatch[Any, Any] = UBatch(10, handler=gate)
    batch.submit("plug")
    abandoned: list[Any] = []

    async def main() -> None:
        await gate.wait_for_batch()
        abandoned.extend(spawn(batch.aubatch(0), batch.aubatch(1), batch.amap([2, 3])))
        await eventually(lambda: batch.stats.queued == 4)
        for task in abandoned[:1]:
            task._log_destroy_pending = False

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    future = batch.submit(4)

    async def other() -> None:
        task = asyncio.ensure_future(batch.aubatch(5))
        await eventually(lambda: batch.stats.queued == 6)
        gate.opened.set()
        assert await task == 5
        assert await batch.aubatch(6) == 6

    run(other)
    assert future.result(PATIENCE) == 4
    assert batch.stop()
    assert gate.batches[1] == [0, 1, 2, 3, 4, 5]
    for task in abandoned:  # as asyncio.run would have done
        task._log_destroy_pending = False
        task.get_coro().close()
    abandoned.clear()
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def test_a_loop_stopped_before_its_batch_fails(run, gate, caplog):
    """An error for tasks of a loop that has ended disturbs nobody and is not logged."""

    def handler(items: list[Any]) -> list[Any]:
        gate(items)
        raise ZeroDivisionError

    batch: UBatch[Any, Any] = UBatch(10, handler=handler)

    async def main() -> None:
        task = asyncio.ensure_future(batch.aubatch(0))
        tasks = asyncio.ensure_future(batch.amap([1, 2]))
        await gate.wait_for_batch()
        await asyncio.sleep(0)
        for one in (task, tasks):
            one.cancel()

    run(main)
    gate.opened.set()
    assert batch.stop()
    with pytest.raises(ZeroDivisionError), batch:
        batch.ubatch(1)


# -- cancelling ------------------------------------------------------------------------------------------------


def test_a_task_cancelled_before_the_cut(run, gate):
    """The handler never sees the item, and the task counts as cancelled."""

    async def main() -> None:
        batch = await busy(gate, 3)
        tasks = spawn(*map(batch.aubatch, range(6)), batch.amap([6, 7]))
        await eventually(lambda: batch.stats.queued == 8)
        for task in (tasks[0], tasks[3], tasks[6]):
            assert task.cancel()
        await asyncio.wait([tasks[0], tasks[3], tasks[6]])
        assert all(tasks[n].cancelled() for n in (0, 3, 6))
        gate.opened.set()
        assert [await tasks[n] for n in (1, 2, 4, 5)] == [1, 2, 4, 5]
        await batch.astop()
        assert gate.batches[1:] == [[1, 2, 4], [5]]
        assert batch.stats.cancelled == 4
        assert batch.stats.queued == 0

    run(main)


def test_a_task_cancelled_while_its_batch_runs(run, gate):
    """The canceller sees a cancelled task at once; the others of the batch get their results."""

    async def main() -> None:
        batch = await busy(gate, 4)
        tasks = spawn(*map(batch.aubatch, range(4)))
        await eventually(lambda: batch.stats.queued == 4)
        gate.opened.set()
        await gate.wait_for_batch()
        gate.opened.clear()
        later = asyncio.ensure_future(batch.aubatch(4))
        await eventually(lambda: batch.stats.queued + batch.stats.running >= 1 or later.done())
        gate.opened.set()
        await asyncio.gather(*tasks, later)

        gate.opened.clear()
        gate.entered = threading.Semaphore(0)
        batch.timeout = 1000.0
        running = spawn(*map(batch.aubatch, range(4)))
        await gate.wait_for_batch()
        running[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await running[1]
        assert running[1].cancelled()
        assert not running[0].done()
        gate.opened.set()
        assert [await running[n] for n in (0, 2, 3)] == [0, 2, 3]
        batch.timeout = None
        await batch.astop()
        assert batch.stats.cancelled == 0

    run(main)


def test_cancelled_tasks_do_not_fill_a_batch(run, gate):
    """Neither `max_size` nor the age of a window counts tasks that were cancelled."""
    gate.opened.set()

    async def main() -> None:
        with UBatch(3, 1000, handler=gate) as batch:
            for _ in range(5):
                gone = asyncio.ensure_future(batch.aubatch("gone"))
                await asyncio.sleep(0)
                gone.cancel()
                tasks = spawn(*map(batch.aubatch, range(2)))
                await asyncio.sleep(0)
                assert gone.cancelled()
                assert await asyncio.gather(*tasks, batch.aubatch(2)) == [0, 1, 2]
        assert gate.batches == [[0, 1, 2]] * 5

    run(main)


@pytest.mark.parametrize("failing", [False, True])
def test_cancelling_at_every_moment(run, failing, hurry):
    """Tasks cancelled at any time end as cancelled or with their outcome; nothing is logged, nobody else hurt."""

    def handler(items: list[int]) -> list[Any]:
        if failing and len(items) % 2:
            raise KeyError(items[0])
        return [KeyError(item) if failing and item % 3 == 0 else item for item in items]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with UBatch(5, handler=handler) as batch:
            for round_ in range(40):
                tasks = spawn(*map(batch.aubatch, range(10)), batch.amap(range(10, 15)))
                for n, task in enumerate(tasks[::2]):
                    loop.call_later(n * 0.00005 * (round_ % 8), task.cancel)
                await asyncio.wait(tasks)
                for n, task in enumerate(tasks[:10]):
                    if task.cancelled():
                        assert n % 2 == 0
                    elif task.exception() is None:
                        assert task.result() == n
                    else:
                        assert failing
                        assert type(task.exception()) is KeyError
                assert tasks[10].cancelled() or tasks[10].exception() or tasks[10].result() == [*range(10, 15)]
        assert batch.stats.queued == 0

    run(main, timeout=30)


def test_wait_for(run, gate):
    """`asyncio.wait_for` gives up in time, and the item is dropped."""

    async def main() -> None:
        batch = await busy(gate)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batch.aubatch(1), 0.01)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batch.amap([2, 3]), 0.01)
        gate.opened.set()
        assert await asyncio.wait_for(batch.aubatch(4), PATIENCE) == 4
        await batch.astop()
        assert gate.batches[1:] == [[4]]

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs asyncio.timeout and TaskGroup")
def test_timeout_and_task_groups(run, gate):
    """`asyncio.timeout` and task groups behave: an error of one cancels the others, and their items."""

    def handler(items: list[Any]) -> list[Any]:
        gate(items)
        if items == ["bad"]:
            gate.opened.clear()
            return [KeyError("bad")]
        return items

    async def main() -> None:
        batch: UBatch[Any, Any] = UBatch(1, handler=handler)
        batch.submit("plug")
        await gate.wait_for_batch()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batch.aubatch(1)
        gate.opened.set()

        async def group(*items: Any) -> list[asyncio.Task[Any]]:
            async with asyncio.TaskGroup() as tasks:
                return [tasks.create_task(batch.aubatch(item)) for item in items]

        assert [task.result() for task in await group(2, 3, 4)] == [2, 3, 4]
        with pytest.raises(ExceptionGroup) as raised:  # noqa: F821 (not in 3.10)
            await group("bad", *range(20))
        assert [type(error) for error in raised.value.exceptions] == [KeyError]
        gate.opened.set()
        assert await batch.aubatch(5) == 5
        await batch.astop()
        # the first of the cancelled ones may have been under way
        assert [items for items in gate.batches if items != [0]] == [["plug"], [2], [3], [4], ["bad"], [5]]

    run(main)


def test_shield(run, gate):
    """A shielded call goes on when its waiter is cancelled."""

    async def main() -> None:
        batch = await busy(gate)
        inner = asyncio.ensure_future(batch.aubatch(1))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(inner), 0.01)
        gate.opened.set()
        assert await inner == 1
        await batch.astop()

    run(main)


def test_a_coroutine_that_is_closed(run, gate):
    """Closing the coroutine drops the item, and no error of it is logged."""

    async def main() -> None:
        batch = await busy(gate)
        coroutine = batch.aubatch(1)
        coroutine.send(None)
        assert batch.stats.queued == 1
        coroutine.close()
        never = batch.aubatch(2)
        never.close()
        gate.opened.set()
        await batch.astop()
        assert gate.batches == [["plug"]]

    run(main)


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration, GeneratorExit])
def test_errors_that_would_end_a_task_or_the_loop(run, error):
    """They come as ordinary errors with the original as cause; the tasks do not count as cancelled."""

    def handler(items: list[Any]) -> list[Any]:
        if "raise" in items:
            raise error("inner")
        return [error("inner") if item == "return" else item for item in items]

    async def main() -> None:
        with UBatch(handler=handler) as batch:
            for item in ("raise", "return"):
                task = asyncio.ensure_future(batch.aubatch(item))
                await asyncio.wait([task])
                assert not task.cancelled()
                raised = task.exception()
                assert type(raised) is HandlerFailed
                assert type(raised.__cause__) is error
                with pytest.raises(HandlerFailed):
                    await batch.amap([item])
                assert await batch.aubatch(1) == 1

    run(main)


def test_each_task_gets_an_error_of_its_own(run, gate):
    """An error of the whole batch is a distinct object for each task."""

    def handler(items: list[Any]) -> list[Any]:
        gate(items)
        raise ZeroDivisionError("all")

    async def main() -> None:
        batch: UBatch[Any, Any] = UBatch(10, handler=handler)
        tasks = spawn(*map(batch.aubatch, range(5)))
        gate.opened.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(error) for error in errors} == {ZeroDivisionError}
        assert len({id(error) for error in errors}) == 5
        await batch.astop()

    run(main)


def test_errors_that_nobody_looks_at(run, gate):
    """Where the call itself fails, the item's future is not reported as never looked at."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        batch: UBatch[Any, Any] = UBatch(handler=gate)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ubatch._native, "_start_new_thread", refuse)
            with pytest.raises(WorkerDied):
                await batch.aubatch(1)
            with pytest.raises(WorkerDied):
                await batch.amap([1, 2])
            await asyncio.sleep(0.01)
        await batch.astop()
        with pytest.raises(Stopped):
            await batch.aubatch(1)
        with pytest.raises(Stopped):
            await batch.amap([1, 2])

    run(main)


def test_no_reference_is_kept(run, caplog):
    """Items, results and exceptions are let go of without a garbage collection, and the loop with them."""
    caplog.set_level(logging.ERROR, "ubatch")  # pytest keeps what is logged, tracebacks and all

    class Thing:
        pass

    class Refused(Exception):
        pass

    passed: list[weakref.ref[Any]] = []

    def remember(thing: Any) -> Any:
        passed.append(weakref.ref(thing))
        return thing

    def handler(items: list[Any]) -> list[Any]:
        for item in items:
            remember(item)
        if hasattr(items[0], "refuse"):
            raise remember(Refused())
        return [remember(Thing()) for _ in items]

    def refused() -> Thing:
        thing = Thing()
        thing.refuse = True  # type: ignore[attr-defined]
        return thing

    async def main() -> None:
        for make in (Thing, refused):
            for face in (batch.aubatch, lambda item: batch.amap([item, Thing()])):
                with contextlib.suppress(Refused):
                    await face(make())
        await eventually(lambda: batch._seat.wake_at == 1)
        assert len(passed) == 2 + 4 + 2 + 3
        await eventually(lambda: not any(ref() for ref in passed))
        # the main coroutine ends with the loop still in use: nothing of ours refers to it afterwards

    gc.collect()
    with UBatch(handler=handler) as batch:
        gc.disable()
        try:
            run(main)
        finally:
            gc.enable()


# -- stopping --------------------------------------------------------------------------------------------------


def test_astop(run, gate):
    """`astop` drains while the loop runs on, as `stop` does."""

    async def main() -> None:
        batch = await busy(gate, 2)
        tasks = spawn(*map(batch.aubatch, range(5)))
        await eventually(lambda: batch.stats.queued == 5)
        stopping = asyncio.ensure_future(batch.astop())
        await eventually(lambda: not batch.alive)
        with pytest.raises(Stopped):
            await batch.aubatch(6)
        assert not stopping.done()
        gate.opened.set()
        assert await stopping is True
        assert await asyncio.gather(*tasks) == [*range(5)]
        assert await batch.astop() is True
        assert await batch.astop(drain=False, timeout=0) is True

    run(main)


def test_astop_without_draining(run, gate):
    """Queued items fail at once."""

    async def main() -> None:
        batch = await busy(gate)
        tasks = spawn(*map(batch.aubatch, range(3)), batch.amap([4, 5]))
        await eventually(lambda: batch.stats.queued == 5)
        stopping = asyncio.ensure_future(batch.astop(drain=False))
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(error) for error in errors} == {Stopped}
        assert not stopping.done()
        gate.opened.set()
        assert await stopping is True

    run(main)


def test_astop_gives_up_after_its_timeout(run, gate):
    """After the timeout all that is left fails with Stopped, the running batch too; a new start works."""

    async def main() -> None:
        batch: UBatch[Any, Any] = UBatch(2, handler=gate)
        running = spawn(*map(batch.aubatch, range(2)))
        await gate.wait_for_batch()
        queued = spawn(*map(batch.aubatch, range(3)))
        await asyncio.sleep(0)
        assert await batch.astop(timeout=0.02) is False
        errors = await asyncio.gather(*running, *queued, return_exceptions=True)
        assert {type(error) for error in errors} == {Stopped}
        batch.start()
        gate.opened.set()
        assert await batch.aubatch(1) == 1
        assert await batch.astop(timeout=float("inf")) is True

    run(main)


def test_cancelling_astop(run, gate):
    """Only the waiting is cancelled: the batcher drains and stops all the same."""

    async def main() -> None:
        batch = await busy(gate, 1)
        task = asyncio.ensure_future(batch.aubatch(1))
        await asyncio.sleep(0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batch.astop(), 0.01)
        assert not batch.alive
        assert not task.done()
        gate.opened.set()
        assert await task == 1
        assert await batch.astop() is True

    run(main)


def test_astop_that_a_start_has_overtaken(run, gate):
    """The end of an earlier `astop`'s time harms nothing that was accepted after a new `start`."""

    async def main() -> None:
        batch = await busy(gate, 1)
        stopping = asyncio.ensure_future(batch.astop(timeout=0.02))
        await eventually(lambda: not batch.alive)
        batch.start()
        task = asyncio.ensure_future(batch.aubatch(1))
        assert await stopping is False
        gate.opened.set()
        assert await task == 1
        await batch.astop()

    run(main)


def test_a_signal_ends_the_program(run_python):
    """Ctrl-C in `asyncio.run` with calls in flight: nothing hangs, nothing is written but its own traceback."""
    out = run_python(
        """
        import asyncio, os, signal, threading, time
        from ubatch import UBatch

        entered = threading.Event()

        def handler(items):
            entered.set()
            time.sleep(0.2)
            return items

        batch = UBatch(4, handler=handler)

        def kill():
            entered.wait(10)
            while batch.stats.queued < 36:
                time.sleep(0.001)
            time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        async def main():
            threading.Thread(target=kill).start()
            await asyncio.gather(*map(batch.aubatch, range(20)), batch.amap(range(20)))

        try:
            asyncio.run(main(), debug=True)
        except KeyboardInterrupt:
            print("interrupted")
        assert batch.ubatch(1) == 1
        assert batch.stop()
        assert batch.stats.queued == batch.stats.running == 0

        async def again():
            return await batch.aubatch(2)

        batch.start()
        assert asyncio.run(again()) == 2
        """
    )
    assert out == "interrupted\n"
