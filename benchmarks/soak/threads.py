"""One `ubatch.UBatch` and all that happens to it: threads, event loops, forked children."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import random
import signal
import sys
import time
import traceback
from concurrent.futures import CancelledError, Future
from typing import Any

import ubatch
import ubatch._turns

from .course import PATIENCE, Course
from .ledger import MAX_WEIGHT, REFUSED, SHARED, ItemError, Ledger, key, value, weight


class Threads(Course):
    """A batcher that is used from anywhere.

    Args:
        seed: of everything that is left to chance.
        forks: whether there are forked children.
        special: whether items have keys, weights, priorities and deadlines, and the queue is bounded.
    """

    def __init__(self, seed: int, *, forks: bool = True, special: bool = False) -> None:
        super().__init__(seed, Ledger(), special)
        options: dict[str, Any] = {}
        if special:
            options = {"key": key, "weight": weight, "max_weight": MAX_WEIGHT, "aging": 0.01}
            options |= {"max_queue": 200, "overflow": self.seeds.choice(("block", "reject"))}
        self.batch: ubatch.UBatch[int, int] = ubatch.UBatch(16, handler=self.handle, name="soak", **options)
        self.actors = [
            *[self.calls] * 3,
            *[self.futures] * 3,
            self.maps,
            *[self.loops] * 2,
            *[self.stops] * 2,
            self.options,
            self.forgets,
            *([self.forks] if forks else []),
        ]

    def handle(self, items: list[int]) -> list[Any]:
        """The handler."""
        self.look_at(items)
        chance = self.handler_random.random()
        if chance < 0.02:
            time.sleep(0.002)
        elif chance < 0.03:
            with contextlib.suppress(*REFUSED):
                self.follow(self.ledger.new(), self.handler_random)
        elif chance < 0.031:
            self.batch.stop(drain=False)
        return self.outcomes(items)

    def stop(self) -> bool:
        """As of `Course`."""
        return self.batch.stop(timeout=PATIENCE)

    def follow(self, item: int, chance: random.Random) -> Future[int]:
        """Submit an item and settle it in the ledger when it is done."""
        fired: list[bool] = []

        def done(future: Future[int]) -> None:
            fired.append(True)
            if len(fired) > 1:
                self.ledger.violations.append(f"item {item}: its callback was called twice")
            if future.cancelled():
                self.ledger.cancelled(item)
            else:
                self.ledger.resolved(item, future.exception() or future.result())
            if item % 3001 == 0:
                self.batch.stop(drain=False)
            if item % 4001 == 0:
                raise SystemExit(item)

        try:
            future: Future[int] = self.view(chance).submit(item)
        except REFUSED as error:
            self.ledger.resolved(item, error)
            raise
        future.add_done_callback(done)
        return future

    # -- the actors: each runs in threads of its own, again and again --------------------------------------

    def calls(self, chance: random.Random) -> None:
        """A thread that calls and waits."""
        item = self.ledger.new()
        try:
            outcome: Any = self.view(chance).ubatch(item)
        except Exception as error:
            outcome = error
        self.ledger.resolved(item, outcome)
        self.pause(outcome)

    def futures(self, chance: random.Random) -> None:
        """A thread that submits, and cancels, waits, or forgets."""
        pending: list[Future[int]] = []
        try:
            for _ in range(chance.randrange(1, 40)):
                pending.append(self.follow(self.ledger.new(), chance))
        except REFUSED as error:
            self.pause(error)
        except SystemExit:  # raised by a callback that was added to a future that was done
            pass
        chance.shuffle(pending)
        for future in pending:
            what = chance.random()
            if what < 0.2:
                with contextlib.suppress(SystemExit):
                    future.cancel()
            elif what < 0.4:
                with contextlib.suppress(Exception):
                    future.result(timeout=chance.random() * 0.002)
            elif what < 0.9:
                with contextlib.suppress(Exception, CancelledError):
                    future.result(timeout=PATIENCE)
                if not future.done():
                    self.ledger.violations.append("a future was never done")

    def maps(self, chance: random.Random) -> None:
        """A thread that maps."""
        items = [self.ledger.new() for _ in range(chance.randrange(0, 50))]
        try:
            outcomes: list[Any] = self.view(chance).map(items)
        except Exception as error:
            if isinstance(error, ItemError) and error.args[0] not in items:
                self.ledger.violations.append(f"map got the error of another: {error!r}")
            self.ledger.failed(items, error)
            self.pause(error)
            return
        for item, outcome in zip(items, outcomes, strict=True):
            self.ledger.resolved(item, outcome)

    def pause(self, outcome: Any) -> None:
        """Wait a moment if the batcher is stopped, or full: until that changes there is nothing to do."""
        if isinstance(outcome, REFUSED):
            time.sleep(0.0005)

    def loops(self, chance: random.Random) -> None:
        """A thread with one event loop after another, many tasks on each."""

        async def task() -> None:
            item = self.ledger.new()
            try:
                if chance.random() < 0.2:
                    call = self.view(chance).aubatch(item)
                    outcome: Any = await asyncio.wait_for(call, chance.random() * 0.003)
                else:
                    outcome = await self.view(chance).aubatch(item)
            except (asyncio.CancelledError, TimeoutError, asyncio.TimeoutError):
                self.ledger.left(item)
                return
            except Exception as error:
                outcome = error
            self.ledger.resolved(item, outcome)

        async def tasks() -> None:
            items = [self.ledger.new() for _ in range(chance.randrange(0, 20))]
            try:
                outcomes: list[Any] = await self.view(chance).amap(items)
            except (Exception, asyncio.CancelledError) as error:
                self.ledger.failed(items, error)
                return
            for item, outcome in zip(items, outcomes, strict=True):
                self.ledger.resolved(item, outcome)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_debug(chance.random() < 0.2)
            loop.slow_callback_duration = PATIENCE
            loop.set_exception_handler(lambda _, context: self.ledger.violations.append(f"in a loop: {context}"))
            for _ in range(chance.randrange(1, 20)):
                running = [asyncio.ensure_future(task()) for _ in range(chance.randrange(1, 60))]
                running += [asyncio.ensure_future(tasks()) for _ in range(chance.randrange(2))]
                if chance.random() < 0.1:
                    running.append(asyncio.ensure_future(self.batch.astop(timeout=chance.choice((None, 0, 0.001)))))
                for one in running:
                    if chance.random() < 0.1:
                        loop.call_later(chance.random() * 0.003, one.cancel)
                if chance.random() < 0.1:
                    return  # and let asyncio.run cancel them
                _, late = await asyncio.wait(running, timeout=PATIENCE)
                if not self.batch.alive:
                    await asyncio.sleep(0.0005)
                if late:
                    self.ledger.violations.append(f"tasks that never end: {late}")

        asyncio.run(main())

    def stops(self, chance: random.Random) -> None:
        """A thread that stops and starts."""
        before = time.monotonic()
        self.batch.stop(drain=chance.random() < 0.5, timeout=chance.choice((None, 0, 0.0005, 1)))
        if time.monotonic() - before > PATIENCE:
            self.ledger.violations.append("a stop took too long")
        if chance.random() < 0.2:
            time.sleep(chance.random() * 0.001)
        self.batch.start()
        for _ in range(chance.randrange(20)):  # the handler and callbacks stop it too
            time.sleep(0.001)
            self.batch.start()

    def options(self, chance: random.Random) -> None:
        """A thread that changes options, and makes the worker come and go."""
        time.sleep(chance.random() * 0.01)
        self.batch.max_size = chance.randrange(1, 40)
        self.batch.timeout = chance.choice((None, None, 0, 0.0005, 0.003))
        if self.special:
            self.batch.reconfigure(max_queue=chance.choice((None, 20, 50, 200)), workers=chance.choice((1, 1, 2, 4)))
        ubatch._turns.IDLE_EXIT = chance.choice((10.0, 0.0, 0.0002))
        repr(self.batch)

    def forgets(self, chance: random.Random) -> None:
        """A thread that makes batchers, uses them and forgets them."""
        batch: ubatch.UBatch[int, int] = ubatch.UBatch(chance.randrange(1, 5), handler=lambda items: items)
        futures = [batch.submit(item) for item in range(5)]
        del batch
        if [future.result(PATIENCE) for future in futures] != [*range(5)]:
            self.ledger.violations.append("a forgotten batcher forgot its items")
        time.sleep(0.002)

    def forks(self, chance: random.Random) -> None:
        """A thread that forks; the child calls the inherited batcher."""
        inherited = []
        with contextlib.suppress(*REFUSED, SystemExit):
            inherited = [self.follow(self.ledger.new(), chance) for _ in range(5)]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(int(PATIENCE))
                faulthandler.dump_traceback_later(PATIENCE / 2)
                for future in inherited:
                    assert isinstance(future.exception(5), (ubatch.WorkerDied, *SHARED, ItemError, type(None)))
                self.batch.start()
                item = next(self.ledger.numbers)
                while any(item % bad == 0 for bad in (97, 499, 1009, 1511)):
                    item += 1
                self.ledger.unseen.add(item)
                ubatch._turns.IDLE_EXIT = 10.0
                while True:
                    try:
                        assert self.batch.ubatch(item) == value(item)
                        break
                    except ubatch.Stopped:  # the handler may stop it
                        self.batch.start()
                        self.ledger.unseen.add(item)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            self.ledger.violations.append(f"a child ended with status {status}")
        time.sleep(0.02)
