"""One `ubatch.aio.UBatch` and all that happens to it: event loops in several threads, one after another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

from ubatch import aio

from .course import PATIENCE, Course
from .ledger import MAX_WEIGHT, REFUSED, Ledger, key, weight


class Loops(Course):
    """A batcher of several event loops, with everything that its items can have.

    Args:
        seed: of everything that is left to chance.
        plain: whether the handler is a plain function, which runs in threads, and not a coroutine function.
    """

    def __init__(self, seed: int, *, plain: bool = False) -> None:
        super().__init__(seed, Ledger(exact=not plain), special=True)
        self.pending: dict[int, asyncio.Future[int]] = {}  # of `submit`; their loops may end before
        self.batch: aio.UBatch[int, int] = aio.UBatch(
            16,
            handler=self.function if plain else self.coroutine,
            name="soak",
            workers=2,
            key=key,
            weight=weight,
            max_weight=MAX_WEIGHT,
            aging=0.01,
            max_queue=200,
            overflow=self.seeds.choice(("block", "reject")),
        )
        self.actors = [*[self.loops] * 3, self.options]
        self.kinds = {
            self.one: 30,
            self.many: 2,
            self.stream: 2,
            self.futures: 2,
            self.stops: 1,
            self.forgets: 1,
        }

    async def coroutine(self, items: list[int]) -> list[Any]:
        """The handler."""
        self.look_at(items)
        chance = self.handler_random.random()
        if chance < 0.2:
            await asyncio.sleep(self.handler_random.choice((0, 0, 0.001, 0.003)))
        elif chance < 0.23:
            with contextlib.suppress(*REFUSED):
                self.follow(self.ledger.new(), self.handler_random)
        elif chance < 0.231:
            await self.batch.stop(drain=False)
        return self.outcomes(items)

    def function(self, items: list[int]) -> list[Any]:
        """The handler, if it is to be a plain function."""
        self.look_at(items)
        if self.handler_random.random() < 0.02:
            time.sleep(0.002)
        return self.outcomes(items)

    def stop(self) -> bool:
        """As of `Course`; on a loop of its own, so that nothing is left of the others."""
        return asyncio.run(self.batch.stop(timeout=PATIENCE))

    def follow(self, item: int, chance: random.Random) -> asyncio.Future[int]:
        """Submit an item and settle it in the ledger when it is done, or its loop has ended."""

        def done(future: asyncio.Future[int]) -> None:
            del self.pending[item]
            self.settle(item, future)

        try:
            future: asyncio.Future[int] = self.view(chance).submit(item)
        except REFUSED as error:
            self.ledger.resolved(item, error)
            raise
        self.pending[item] = future
        future.add_done_callback(done)
        return future

    def settle(self, item: int, future: asyncio.Future[int]) -> None:
        """Nothing more will become of a future."""
        if future.done() and not future.cancelled():
            self.ledger.resolved(item, future.exception() or future.result())
        else:
            self.ledger.left(item)

    # -- what tasks do --------------------------------------------------------------------------------------

    async def one(self, chance: random.Random) -> None:
        """Call and wait."""
        item = self.ledger.new()
        call = self.view(chance).ubatch(item)
        try:
            outcome: Any = await (asyncio.wait_for(call, chance.random() * 0.003) if chance.random() < 0.2 else call)
        except (asyncio.CancelledError, asyncio.TimeoutError):
            self.ledger.left(item)
            return
        except Exception as error:
            outcome = error
        self.ledger.resolved(item, outcome)

    async def many(self, chance: random.Random) -> None:
        """Map."""
        items = [self.ledger.new() for _ in range(chance.randrange(0, 20))]
        try:
            outcomes: list[Any] = await self.view(chance).map(items)
        except (Exception, asyncio.CancelledError) as error:
            self.ledger.failed(items, error)
            return
        for item, outcome in zip(items, outcomes, strict=True):
            self.ledger.resolved(item, outcome)

    async def stream(self, chance: random.Random) -> None:
        """Stream, and perhaps stop in the middle."""
        items: list[int] = []
        resolved = 0

        def source() -> Iterator[int]:
            for _ in range(chance.randrange(0, 40)):
                items.append(self.ledger.new())
                yield items[-1]

        try:
            async with contextlib.aclosing(
                self.view(chance).stream(source(), ahead=chance.choice((None, 1, 5)))
            ) as results:
                async for outcome in results:
                    self.ledger.resolved(items[resolved], outcome)
                    resolved += 1
                    if chance.random() < 0.03:
                        break
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.ledger.resolved(items[resolved], error)
            resolved += 1
        for item in items[resolved:]:
            self.ledger.left(item)

    async def futures(self, chance: random.Random) -> None:
        """Submit, and cancel, wait, or forget."""
        futures: list[asyncio.Future[int]] = []
        with contextlib.suppress(*REFUSED):
            for _ in range(chance.randrange(1, 40)):
                futures.append(self.follow(self.ledger.new(), chance))
        await asyncio.sleep(chance.random() * 0.002)
        for future in futures:
            if chance.random() < 0.2:
                future.cancel()
        if futures and chance.random() < 0.7:
            await asyncio.wait(futures)

    async def stops(self, chance: random.Random) -> None:
        """Stop and start."""
        if chance.random() < 0.5:
            await self.batch.stop(drain=chance.random() < 0.5, timeout=chance.choice((None, 0, 0.0005, 1)))
            self.batch.start()

    async def forgets(self, chance: random.Random) -> None:
        """Make a batcher, use it and forget it."""

        async def handler(items: list[int]) -> list[int]:
            return items

        batch: aio.UBatch[int, int] = aio.UBatch(chance.randrange(1, 5), handler=handler)
        futures = [batch.submit(item) for item in range(5)]
        del batch
        if await asyncio.gather(*futures) != [*range(5)]:
            self.ledger.violations.append("a forgotten batcher forgot its items")

    # -- the actors: each runs in threads of its own, again and again -----------------------------------------

    def loops(self, chance: random.Random) -> None:
        """A thread with one event loop after another, many tasks on each."""
        asyncio.run(self.tasks(chance))
        for item, future in list(self.pending.items()):
            if future.get_loop().is_closed() and self.pending.pop(item, None) is not None:
                self.settle(item, future)

    async def tasks(self, chance: random.Random) -> None:
        """Tasks by the dozen, of which some are cancelled, some perhaps by the end of their loop."""
        loop = asyncio.get_running_loop()
        loop.set_debug(chance.random() < 0.2)
        loop.slow_callback_duration = PATIENCE
        loop.set_exception_handler(self.complain)
        for _ in range(chance.randrange(1, 20)):
            kinds = chance.choices([*self.kinds], [*self.kinds.values()], k=chance.randrange(1, 60))
            running = [asyncio.ensure_future(kind(chance)) for kind in kinds]
            for one in running:
                if chance.random() < 0.1:
                    loop.call_later(chance.random() * 0.003, one.cancel)
            if chance.random() < 0.1:
                return  # and let asyncio.run cancel them
            _, late = await asyncio.wait(running, timeout=PATIENCE)
            if late:
                self.ledger.violations.append(f"tasks that never end: {late}")
            if not self.batch.alive:
                await asyncio.sleep(0.0005)

    def complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a loop reports is a violation, with one exception.

        A loop that ends with items queued whose callers are not tasks, and so are not cancelled, may have been told
        by another thread to go on with them: the batcher's task for that is not run any more.
        """
        coroutine = context["task"].get_coro() if "task" in context else None
        if not (context["message"].startswith("Task was destroyed") and coroutine.__qualname__ == "Home._serve"):
            self.ledger.violations.append(f"in a loop: {context}")

    def options(self, chance: random.Random) -> None:
        """A thread that changes options, and starts what others have stopped."""
        time.sleep(chance.random() * 0.01)
        self.batch.reconfigure(
            max_size=chance.randrange(1, 40),
            timeout=chance.choice((None, None, 0, 0.0005, 0.003)),
            max_queue=chance.choice((None, 20, 50, 200)),
            workers=chance.randrange(1, 4),
        )
        self.batch.start()
        repr(self.batch)
