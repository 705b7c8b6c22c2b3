"""Stress: all faces of a flow at once, with cancels, deadlines, errors, full queues, stops and starts, in a hurry.

`UBATCH_STRESS_SECONDS` says how long each test takes, `UBATCH_SEED` repeats a run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from typing import Any

import pytest
from gates import PATIENCE, eventually

from ubatch import DeadlineExceeded, Flow, QueueFull, Step, Stopped

SECONDS = float(os.environ.get("UBATCH_STRESS_SECONDS", "3"))
EXPECTED = (KeyError, ValueError, DeadlineExceeded, QueueFull, Stopped, CancelledError, asyncio.CancelledError)

pytestmark = pytest.mark.stress


class Bad(KeyError):
    """What a handler, or a predicate, does not like."""


class Item:
    """An item on its way: which steps it has seen is what is to come out."""

    def __init__(self, number: int, *steps: int) -> None:
        self.number = number
        self.steps = steps


def skips(item: Item, step: int) -> bool:
    return (item.number >> step) % 4 == 0


def is_bad(item: Item, step: int) -> bool:
    return item.number % 97 == step


def expected(item: Item, steps: int) -> tuple[int, ...]:
    return tuple(step for step in range(steps) if not skips(item, step))


class Soak:
    """A flow, those who use it, and what they got."""

    def __init__(self, seed: int, workers: int, overflow: str, max_queue: int | None) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.numbers = iter(range(10**9))
        self.flow: Flow[Item, Item] = Flow(
            *(
                Step(
                    self.handler(step),
                    name=f"step{step}",
                    when=self.predicate(step),
                    max_size=8,
                    timeout=self.chance.choice([0.0, 0.001, None]),
                    workers=workers,
                    max_queue=max_queue if step else 2 * (max_queue or 50),
                    overflow=overflow,
                    key=(lambda item: item.number % 2) if step == 1 else None,
                    isolate=step == 2,
                )
                for step in range(3)
            )
        )
        self.end = time.monotonic() + SECONDS

    def handler(self, step: int) -> Any:
        chance = random.Random(self.seed + step)

        def handle(items: list[Item]) -> list[Any]:
            if chance.random() < 0.05:
                time.sleep(chance.random() * 0.003)
            if chance.random() < 0.01:
                raise ValueError(step)
            if any(skips(item, step) for item in items):
                self.violations.append(f"step {step} got an item that it does not take")
            if any(item.steps and item.steps[-1] >= step for item in items):
                self.violations.append(f"step {step} got an item twice")
            return [Bad(step) if is_bad(item, step) else Item(item.number, *item.steps, step) for item in items]

        return handle

    def predicate(self, step: int) -> Any:
        def when(item: Item) -> bool:
            if item.number % 101 == step:
                raise Bad("when")
            return not skips(item, step)

        return when

    def check(self, item: Item, result: Any) -> None:
        if result.number != item.number or result.steps != expected(item, 3):
            self.violations.append(f"item {item.number} came out as {result.number} {result.steps}")
        self.count("result")

    def count(self, kind: str) -> None:
        with self.counting:
            self.outcomes[kind] += 1

    def asked(self, chance: random.Random) -> Any:
        if chance.random() < 0.6:
            return self.flow
        options: dict[str, Any] = {}
        if chance.random() < 0.5:
            options["priority"] = chance.randrange(-2, 3)
        if chance.random() < 0.5:
            options["deadline"] = chance.random() * 0.02
        if chance.random() < 0.1:
            options["key"] = chance.randrange(3)
        return self.flow.options(**options)

    def call(self, chance: random.Random) -> None:
        flow, item = self.asked(chance), Item(next(self.numbers))
        what = chance.random()
        try:
            if what < 0.4:
                self.check(item, flow.ubatch(item))
            elif what < 0.6:
                items = [item, *(Item(next(self.numbers)) for _ in range(chance.randrange(6)))]
                for one, result in zip(items, flow.map(items), strict=True):
                    self.check(one, result)
            else:
                told: list[Any] = []
                future = flow.submit(item)
                future.add_done_callback(told.append)
                if chance.random() < 0.3:
                    time.sleep(chance.random() * 0.001)
                    future.cancel()
                try:
                    self.check(item, future.result(PATIENCE))
                finally:
                    if not future.done():
                        self.violations.append(f"item {item.number} is lost")
                    eventually(lambda: told == [future])
        except EXPECTED as error:
            self.count(type(error).__name__)
            if isinstance(error, Stopped):
                time.sleep(0.001)

    def thread(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        try:
            while time.monotonic() < self.end and not self.violations:
                self.call(chance)
        except BaseException as error:
            self.violations.append(f"a thread got {error!r}")

    async def task(self, chance: random.Random) -> None:
        item = Item(next(self.numbers))
        try:
            if chance.random() < 0.3:
                self.check(item, await asyncio.wait_for(self.asked(chance).aubatch(item), chance.random() * 0.01))
            else:
                self.check(item, await self.asked(chance).aubatch(item))
        except (asyncio.TimeoutError, *EXPECTED) as error:
            self.count(type(error).__name__)

    async def tasks(self) -> None:
        chance = random.Random(self.seed * 1000 + 999)
        while time.monotonic() < self.end and not self.violations:
            tasks = [asyncio.ensure_future(self.task(chance)) for _ in range(chance.randrange(1, 30))]
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.002)
                for task in chance.sample(tasks, len(tasks) // 3):
                    task.cancel()
            _, pending = await asyncio.wait(tasks, timeout=PATIENCE)
            if pending:
                self.violations.append(f"{len(pending)} tasks that never end")

    def stops(self) -> None:
        chance = random.Random(self.seed * 1000 + 998)
        try:
            while time.monotonic() < self.end and not self.violations:
                time.sleep(chance.random() * 0.1)
                timeout = None if chance.random() < 0.5 else chance.random() * 0.01
                self.flow.stop(drain=chance.random() < 0.7, timeout=timeout)
                self.flow.start()
        except BaseException as error:
            self.violations.append(f"who stops got {error!r}")

    def run(self, threads: int) -> None:
        run = [threading.Thread(target=self.thread, args=(number,)) for number in range(threads)]
        run.append(threading.Thread(target=lambda: asyncio.run(self.tasks())))
        run += [threading.Thread(target=self.stops) for _ in range(2)]
        for thread in run:
            thread.start()
        for thread in run:
            thread.join(SECONDS + 3 * PATIENCE)
            if thread.is_alive():
                self.violations.append("a thread that never ends")


@pytest.mark.parametrize(("overflow", "max_queue"), [("block", 6), ("reject", 6), ("reject", None)])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_resolves_once_and_right(workers, overflow, max_queue, seed, hurry, caplog):
    """Whatever is mixed: each gets what its steps made of it, or an error that was to be; and nothing is left."""
    caplog.set_level(logging.CRITICAL, "ubatch")
    soak = Soak(seed, workers, overflow, max_queue)
    soak.run(threads=8)
    assert soak.violations == []
    flow = soak.flow
    assert flow.start().stop(timeout=PATIENCE)
    assert flow.stats.running == 0
    assert not flow._trips._landing
    assert all(step.batches.queued == step.batches.running == 0 for step in flow.stats.steps)
    assert all(not getattr(batcher._schedule, "lobby", ()) for batcher in flow.steps)
    assert soak.outcomes["result"] > 500
    print(dict(soak.outcomes))
