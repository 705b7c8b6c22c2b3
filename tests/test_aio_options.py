"""Priorities, keys, weights, deadlines and bounded queues of `ubatch.aio`, in virtual time."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import pytest

from ubatch import DeadlineExceeded, QueueFull, Stopped
from ubatch.aio import UBatch, dynamically, ubatch_decorator


class Handler:
    """A coroutine handler that takes its time and remembers its batches."""

    def __init__(self, a: float = 0.0) -> None:
        self.a = a
        self.batches: list[list[Any]] = []

    async def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(list(items))
        await asyncio.sleep(self.a)
        return items


FACES = ("ubatch", "submit", "map", "stream")


def call(view: Any, face: str, item: Any) -> asyncio.Future[Any]:
    """A task with the result of one item, by whichever face."""

    async def result() -> Any:
        if face == "submit":
            return await view.submit(item)
        if face == "map":
            return (await view.map([item]))[0]
        if face == "stream":
            async for one in view.stream([item]):
                return one
        return await view.ubatch(item)

    return asyncio.ensure_future(result())


async def settled() -> None:
    """All that can happen without time has happened."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("face", FACES)
def test_a_view_has_all_faces(virtual, face):
    """They go by its options: here, with a key of their own."""

    async def main() -> None:
        handler = Handler(a=1.0)
        async with UBatch(8, 0, handler=handler) as batch:
            tasks = [call(batch, "ubatch", 0)]
            await settled()
            view = batch.options(key="mine")
            tasks += [call(batch, "ubatch", 1), call(view, face, 2), call(batch, "ubatch", 3)]
            assert await asyncio.gather(*tasks) == [0, 1, 2, 3]
            assert view.stats == batch.stats
        assert handler.batches == [[0], [1, 3], [2]]

    virtual(main)


def test_more_urgent_items_leave_first(virtual):
    """Lower first; a waiting item gains a level in each `aging` seconds."""

    async def main() -> None:
        handler = Handler(a=1.0)
        async with UBatch(1, 0, handler=handler, aging=2.5) as batch:
            tasks = [call(batch, "ubatch", 0)]
            await settled()
            tasks.append(call(batch.options(priority=1), "ubatch", "patient"))
            for n in range(1, 6):
                tasks.append(call(batch, "ubatch", n))
                await asyncio.sleep(1.0)
            await asyncio.gather(*tasks)
        assert handler.batches == [[0], [1], [2], [3], ["patient"], [4], [5]]

    virtual(main)


def test_keys_share_no_batch_and_a_full_one_is_not_held(virtual):
    """By another key's window."""

    async def main() -> None:
        handler = Handler()
        async with UBatch(3, 5.0, handler=handler, key=lambda n: n % 2) as batch:
            lone = call(batch, "ubatch", 1)
            await asyncio.sleep(1.0)
            began = virtual.now
            assert await batch.map([2, 4, 6]) == [2, 4, 6]
            assert virtual.now == began
            assert await lone == 1
            assert virtual.now == pytest.approx(began + 4.0)
        assert handler.batches == [[2, 4, 6], [1]]

    virtual(main)


def test_the_weight_of_a_batch_is_bounded(virtual):
    """And an item that weighs more than the limit runs alone."""

    async def main() -> None:
        handler = Handler()
        async with UBatch(8, 0, handler=handler, weight=lambda n: n, max_weight=10) as batch:
            await batch.map([6, 9, 3, 3, 3, 3, 50, 1])
        assert handler.batches == [[6], [9], [3, 3, 3], [3], [50], [1]]

    virtual(main)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("queued", [True, False])
def test_an_item_is_told_when_its_time_is_up(virtual, face, queued):
    """At that very moment, while it waits and while it runs; if it waited the handler never sees it."""

    async def main() -> None:
        handler = Handler(a=10.0)
        async with UBatch(8, 0, handler=handler) as batch:
            plug = call(batch, "ubatch", 0) if queued else None
            await settled()
            began = virtual.now
            with pytest.raises(DeadlineExceeded):
                await call(batch.options(deadline=3.0), face, 1)
            assert virtual.now == pytest.approx(began + 3.0)
            if plug is not None:
                await plug
        stats = batch.stats
        assert handler.batches == ([[0]] if queued else [[1]])
        assert (stats.expired, stats.errors) == ((1, 0) if queued else (0, 1))
        assert stats.queued == stats.running == 0

    virtual(main)


def test_a_batch_leaves_early_for_a_deadline(virtual):
    """By one and a half times what it is expected to take."""

    async def main() -> None:
        handler = Handler(a=1.0)
        async with UBatch(8, 100.0, handler=handler, deadline=50.0) as batch:
            await batch.options(deadline=4.0).ubatch(0)
            plain = call(batch, "ubatch", 1)
            await asyncio.sleep(10.0)
            began = virtual.now
            assert await batch.options(deadline=6.0).ubatch(2) == 2
            assert virtual.now <= began + 6.0
            assert await plain == 1
            assert batch.stats.deadline == 2
        assert handler.batches == [[0], [1, 2]]

    virtual(main)


def test_the_time_of_an_item_may_be_over_before_it_comes(virtual):
    """Nothing is accepted then."""

    async def main() -> None:
        async with UBatch(8, 0, handler=Handler()) as batch:
            with pytest.raises(DeadlineExceeded):
                batch.options(deadline=0).submit(1)
            assert batch.stats.submitted == 0

    virtual(main)


@pytest.mark.parametrize("face", FACES)
def test_a_full_queue_refuses(virtual, face):
    """At once; what is there is unaffected."""

    async def main() -> None:
        async with UBatch(8, 0, handler=Handler(a=1.0), max_queue=2) as batch:
            tasks = [call(batch, "ubatch", 0)]
            await settled()
            tasks += [call(batch, "ubatch", 1), call(batch, "ubatch", 2)]
            await settled()
            with pytest.raises(QueueFull):
                await call(batch, face, 3)
            assert batch.stats.rejected == 1
            assert await asyncio.gather(*tasks) == [0, 1, 2]

    virtual(main)


@pytest.mark.parametrize("face", ["ubatch", "map", "stream"])
def test_a_full_queue_may_let_callers_wait(virtual, face):
    """In order, until there is room; `submit`, which cannot wait, is refused."""

    async def main() -> None:
        handler = Handler(a=1.0)
        async with UBatch(1, 0, handler=handler, max_queue=1, overflow="block") as batch:
            tasks = [call(batch, "ubatch", 0)]
            await settled()
            tasks += [call(batch, face, n) for n in range(1, 4)]
            await settled()
            with pytest.raises(QueueFull):
                batch.submit(9)
            assert batch.stats.queued == 1
            tasks.pop(2).cancel()
            assert await asyncio.gather(*tasks) == [0, 1, 3]
        assert handler.batches == [[0], [1], [3]]

    virtual(main)


def test_waiting_for_room_ends_with_the_deadline_or_with_stop(virtual):
    """These were not accepted yet."""

    async def main() -> None:
        batch = UBatch(1, 0, handler=Handler(a=10.0), max_queue=1, overflow="block")
        tasks = [call(batch, "ubatch", 0)]
        await settled()
        tasks += [call(batch, "ubatch", 1), call(batch, "ubatch", 2)]
        with pytest.raises(DeadlineExceeded):  # it comes before them, as they are tasks; then there is room
            await batch.options(deadline=1.0).ubatch(3)
        await batch.stop()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert outcomes[:2] == [0, 1]
        assert isinstance(outcomes[2], Stopped)

    virtual(main)


def test_options_may_change_while_it_runs(virtual):
    """Also the number of workers: what waits is taken up at once."""

    async def main() -> None:
        handler = Handler(a=1.0)
        async with UBatch(1, 0, handler=handler) as batch:
            tasks = [call(batch, "ubatch", n) for n in range(5)]
            await settled()
            assert len(handler.batches) == 1
            batch.reconfigure(workers=2, max_size=2, max_queue=2)
            await settled()
            assert handler.batches == [[0], [1, 2]]
            assert (batch.workers, batch.max_size, batch.max_queue) == (2, 2, 2)
            with pytest.raises(QueueFull):
                batch.submit(7)
            batch.max_queue = None
            tasks.append(call(batch, "ubatch", 5))
            assert await asyncio.gather(*tasks) == [*range(6)]
            with pytest.raises(ValueError, match="workers"):
                batch.reconfigure(max_size=9, workers=0)
            assert batch.max_size == 2

    virtual(main)


def test_decorated_functions_take_all_options(virtual):
    """And a long list is less urgent than a single call."""
    handler = Handler(a=1.0)

    @ubatch_decorator(max_size=8, timeout=0, key=lambda n: n % 2)
    async def parity(items: list[int]) -> list[int]:
        assert len({item % 2 for item in items}) == 1
        return items

    async def main() -> None:
        assert await parity.map([1, 2, 3]) == [1, 2, 3]
        assert await parity.options(priority=1).ubatch(4) == 4

        @dynamically(max_size=2, timeout=0, small_batch_threshold=3)
        async def function(items: list[int]) -> list[int]:
            return await handler(items)

        tasks = [asyncio.ensure_future(function(0))]
        await settled()
        for item in ([1, 2, 3, 4], [5, 6, 7], 8):
            tasks.append(asyncio.ensure_future(function.options(priority=0)(item)))
            await settled()
        await asyncio.gather(*tasks)
        assert handler.batches == [[0], [5, 6], [7, 8], [1, 2], [3, 4]]

    virtual(main)


def test_a_soak_of_random_options(virtual, seed):
    """Cancels, deadlines, errors, keys, weights, priorities, full queues: every item resolves, counters are zero."""
    rng = random.Random(seed)

    async def handler(items: list[tuple[int, int]]) -> list[Any]:
        assert len({key for key, _ in items}) == 1
        assert len(items) == 1 or sum(weight for _, weight in items) <= 20
        await asyncio.sleep(rng.uniform(0, 0.01))
        if rng.random() < 0.05:
            raise ValueError("unlucky")
        return [KeyError(item) if rng.random() < 0.05 else item for item in items]

    async def caller(batch: Any) -> None:
        for _ in range(60):
            item = (rng.randrange(3), rng.randrange(1, 25))
            view = batch.options(priority=rng.randrange(-2, 3), deadline=rng.choice([float("inf"), 0.002, 0.05, 5.0]))
            task = call(view, rng.choice(FACES), item)
            await asyncio.sleep(rng.choice([0, 0.001, 0.05]))
            if rng.random() < 0.2:
                task.cancel()
            try:
                assert await task == item
            except (ValueError, KeyError, DeadlineExceeded, QueueFull, asyncio.CancelledError):
                pass

    async def main() -> None:
        batch: UBatch[Any, Any] = UBatch(
            8,
            rng.choice([0, 0.001, None]),
            handler=handler,
            workers=rng.choice([1, 3]),
            key=lambda item: item[0],
            weight=lambda item: item[1],
            max_weight=20,
            max_queue=10,
            overflow=rng.choice(["block", "reject"]),
            aging=0.01,
        )
        await asyncio.gather(*(caller(batch) for _ in range(20)))
        await batch.stop()
        stats = batch.stats
        assert stats.queued == stats.running == 0
        home = batch._home()
        assert not home.schedule.next(sys.maxsize)
        home.schedule._check()

    virtual(main)
