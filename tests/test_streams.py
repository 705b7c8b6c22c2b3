"""Streams: results in order, as they come, with a bounded number in flight."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time

import pytest

import ubatch.aio
from ubatch import Stopped, UBatch


def doubled(items):
    return [item * 2 for item in items]


async def adoubled(items):
    await asyncio.sleep(0)
    return [item * 2 for item in items]


class Source:
    """Counts how far it was read."""

    def __init__(self, count=None):
        self.numbers = itertools.count() if count is None else range(count)
        self.read = 0
        self.closed = False

    def __iter__(self):
        for number in self.numbers:
            self.read += 1
            yield number

    async def __aiter__(self):
        try:
            for number in self.numbers:
                self.read += 1
                yield number
                await asyncio.sleep(0)
        finally:
            self.closed = True


@pytest.mark.parametrize("ahead", [None, 1, 3, 1000])
def test_all_results_in_order(ahead):
    with UBatch(8, handler=doubled) as batch:
        assert list(batch.stream(range(500), ahead=ahead)) == [n * 2 for n in range(500)]
        assert list(batch.stream([])) == []


@pytest.mark.parametrize("ahead", [1, 5, None])
def test_no_more_are_in_flight_than_asked_for(ahead):
    """The source may be endless; it is read no further than there is room."""
    source = Source()
    with UBatch(4, handler=doubled) as batch:
        results = batch.stream(source, ahead=ahead)
        assert source.read == 0
        for taken in range(1, 50):
            assert next(results) == (taken - 1) * 2
            assert source.read <= taken + (ahead or 8)
        results.close()
        assert batch.stats.queued == 0


def test_results_come_while_the_source_is_slow():
    """The first results need not wait until the flight is full."""

    def slowly():
        for number in range(6):
            yield number
            deadline = time.monotonic() + 10
            while batch.stats.running + batch.stats.queued and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            events.append(("read on after", number))

    events = []
    with UBatch(64, timeout=0, handler=doubled) as batch:
        for result in batch.stream(slowly()):
            events.append(("result", result))
    assert events.index(("result", 0)) < events.index(("read on after", 5))


def test_an_error_ends_it():
    """In its turn, after the results before it; those behind it that no batch has are dropped."""

    def picky(items):
        return [ValueError(item) if item == 10 else item for item in items]

    source = Source()
    with UBatch(4, handler=picky) as batch:
        got = []
        with pytest.raises(ValueError, match="10"):
            got.extend(batch.stream(source))
        assert got == list(range(10))
        assert source.read <= 10 + 1 + 8
    stats = batch.stats
    assert stats.submitted == source.read
    assert stats.queued == 0


def test_an_error_of_the_source_reaches_the_consumer():
    def broken():
        yield 1
        raise OSError("disk")

    with UBatch(4, handler=doubled) as batch:
        got = []
        with pytest.raises(OSError, match="disk"):
            got.extend(batch.stream(broken()))
        assert got == [2]  # in its turn


def test_stopping_ends_it():
    with UBatch(4, handler=doubled) as batch:
        results = batch.stream(Source())
        next(results)
        batch.stop(drain=False)
        with pytest.raises(Stopped):
            for _ in results:
                pass


def test_not_from_its_own_handler():
    def handler(items):
        with pytest.raises(RuntimeError, match="worker"):
            batch.stream([1])
        return items

    with UBatch(4, handler=handler) as batch:
        assert batch.ubatch(1) == 1


@pytest.mark.parametrize("make", [UBatch, ubatch.aio.UBatch])
@pytest.mark.parametrize(("ahead", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_arguments(make, ahead, kind):
    """Told at the call, not at the first result."""
    batch = make(handler=doubled)
    with pytest.raises(kind, match=f"ahead must be .*, not {ahead!r}"):
        batch.stream([], ahead=ahead)
    with pytest.raises(kind, match="ahead"):
        batch.astream([], ahead=ahead)


def batchers():
    return [
        pytest.param(lambda handler: UBatch(8, handler=handler), doubled, id="threads"),
        pytest.param(lambda handler: ubatch.aio.UBatch(8, handler=handler), adoubled, id="aio"),
    ]


@pytest.mark.parametrize(("make", "handler"), batchers())
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("ahead", [None, 1, 100])
def test_on_a_loop(run, make, handler, asynchronous, ahead):
    """From iterables and asynchronous iterables, as far as there is room."""

    async def main():
        batch = make(handler)
        source = Source(200)
        items = source if asynchronous else iter(source)
        got = []
        async for result in batch.astream(items, ahead=ahead):
            got.append(result)
            assert source.read <= len(got) + (ahead or 16)
        assert got == [n * 2 for n in range(200)]
        assert [n async for n in batch.astream([])] == []
        await batch.astop()

    run(main)


@pytest.mark.parametrize(("make", "handler"), batchers())
def test_leaving_a_stream_on_a_loop(run, make, handler):
    """What is in flight is dropped, and the source is not read on."""

    async def main():
        batch = make(handler)
        source = Source()
        results = batch.astream(source)
        async for result in results:
            if result == 20:
                break
        await results.aclose()
        read = source.read
        await asyncio.sleep(0.01)
        assert source.read == read
        await batch.astop()
        assert batch.stats.queued == 0

    run(main)


def test_results_come_while_an_asynchronous_source_is_slow(run):
    """A result that is there is not held back by an item that is not."""

    async def main():
        more = asyncio.Event()

        async def items():
            yield 1
            await more.wait()
            yield 2

        batch = ubatch.aio.UBatch(8, handler=adoubled)
        results = batch.stream(items())
        assert await asyncio.wait_for(anext(results), 5) == 2
        more.set()
        assert await anext(results) == 4
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main)


def test_errors_on_a_loop(run):
    async def picky(items):
        return [ValueError(item) if item == 10 else item for item in items]

    async def broken():
        yield 1
        raise OSError("disk")

    async def main():
        batch = ubatch.aio.UBatch(4, handler=picky)
        got = []

        async def consume(source):
            async for result in batch.stream(source):
                got.append(result)

        with pytest.raises(ValueError, match="10"):
            await consume(Source())
        assert got == list(range(10))
        with pytest.raises(OSError, match="disk"):
            await consume(broken())
        assert got[10:] == [1]  # in its turn

    run(main)


def test_cancelling_a_consumer(run):
    """Its items are dropped, and its source is let go."""
    gate = threading.Event()

    def blocked(items):
        gate.wait(10)
        return items

    async def main():
        with UBatch(2, timeout=0, handler=blocked) as batch:

            async def consume():
                async for _ in batch.astream(Source()):
                    pass

            task = asyncio.create_task(consume())
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            gate.set()
            assert await batch.astop()
            assert batch.stats.cancelled > 0
            assert batch.stats.queued == 0

    run(main)


def test_a_stop_drains_a_stream(run):
    """What is in flight has its results; then the stream ends with `Stopped`."""

    async def main():
        batch = ubatch.aio.UBatch(4, timeout=0, handler=adoubled)
        got = []

        async def consume():
            async for result in batch.stream(Source(), ahead=8):
                got.append(result)
                await asyncio.sleep(0)

        task = asyncio.create_task(consume())
        while len(got) < 20:
            await asyncio.sleep(0)
        assert await batch.stop()
        with pytest.raises(Stopped):
            await task
        assert got == [n * 2 for n in range(len(got))]
        assert batch.stats.items == len(got)

    run(main)


def test_a_source_is_read_by_one_task(run):
    """So its timeouts, task groups and context variables are what they are in an `async for`."""
    variable = contextvars.ContextVar("variable", default=0)
    tasks = set()

    async def items():
        for number in range(20):
            assert variable.get() == number
            variable.set(number + 1)
            tasks.add(asyncio.current_task())
            yield number
            await asyncio.sleep(0)

    async def main():
        batch = ubatch.aio.UBatch(4, handler=adoubled)
        assert [n async for n in batch.stream(items())] == [n * 2 for n in range(20)]
        assert len(tasks) == 1

    run(main)
