"""The course of a soak: threads that each do one thing again and again, four quarters with a rest after each."""

from __future__ import annotations

import faulthandler
import gc
import random
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from . import memory
from .ledger import MAX_WEIGHT, BatchError, ItemError, Ledger, count, key, value, weight

PATIENCE = 30.0  # seconds after which what has not ended hangs

FORGET = 5.0  # seconds after which what callers have given up is not on its way to the handler any more

QUARTERS = 4


class Course:
    """One batcher and all that happens to it; what that is, is said by a subclass.

    Args:
        seed: of everything that is left to chance.
        ledger: follows the items.
        special: whether items have keys, weights, priorities and deadlines, and the queue is bounded.
    """

    batch: Any
    actors: Sequence[Callable[[random.Random], None]]
    """Each runs in a thread of its own."""

    def __init__(self, seed: int, ledger: Ledger, special: bool) -> None:
        self.special = special
        self.seeds = random.Random(seed)
        self.ledger = ledger
        self.ending = threading.Event()
        self.handler_random = random.Random(self.seeds.random())

    def stop(self) -> bool:
        """Stop the batcher for the last time in a quarter; whether that was done in time."""
        raise NotImplementedError

    def view(self, chance: random.Random) -> Any:
        """The batcher, perhaps with options for a call."""
        if not self.special or chance.random() < 0.3:
            return self.batch
        deadline = chance.choice((float("inf"), float("inf"), PATIENCE, 0.05, 0.002, 0.0))
        return self.batch.options(priority=chance.randrange(-1, 3), deadline=deadline)

    def look_at(self, items: list[int]) -> None:
        """The handler got these."""
        self.ledger.see(items)
        if self.special and len({key(item) for item in items}) > 1:
            self.ledger.violations.append(f"items of different keys: {items}")
        if self.special and len(items) > 1 and sum(map(weight, items)) > MAX_WEIGHT:
            self.ledger.violations.append(f"more than the largest weight: {items}")

    def outcomes(self, items: list[int]) -> list[Any]:
        """What the handler makes of a batch, which depends on the numbers of its items."""
        for item in items:
            if item % 499 == 0:
                raise BatchError(item)
            if item % 1009 == 0:
                raise SystemExit(item)
            if item % 1511 == 0:
                return []
        return [ItemError(item) if item % 97 == 0 else value(item) for item in items]

    def run(self, seconds: float, interval: float, items: float = float("inf")) -> dict[str, Any]:
        """Run for so many seconds, or until so many items were handed over, and say what came of it."""
        begin = time.monotonic()
        throughput: list[int] = []
        resident: list[float] = []
        marks: list[memory.Mark] = []
        for quarter in range(1, QUARTERS + 1):
            share = quarter / QUARTERS
            threads = self.begin()
            self.watch(begin + share * seconds, share * items, interval, throughput, resident)
            self.end(threads)
            if self.ledger.violations:
                break
            marks.append(memory.mark(count(self.ledger.attempts)))
        self.ledger.violations += memory.violations(marks)
        return {
            "seconds": round(time.monotonic() - begin, 1),
            "interval": interval,
            "items_per_second": throughput,
            "drift": drift(throughput),
            "memory_mb": resident,
            "memory_at_rest": [one._asdict() for one in marks],
            "growth_after_half_time": memory.growth(marks),
            "attempts": count(self.ledger.attempts),
            "resolved": count(self.ledger.resolutions),
            "stats": self.batch.stats.asdict(),
            "violations": list(self.ledger.violations),
        }

    def begin(self) -> list[threading.Thread]:
        """Let everything happen, until `end`."""
        self.ending.clear()
        self.batch.start()
        threads = [
            threading.Thread(
                target=self.act,
                args=(actor, random.Random(self.seeds.random())),
                name=actor.__name__,
                daemon=True,
            )
            for actor in self.actors
        ]
        for thread in threads:
            thread.start()
        return threads

    def act(self, actor: Callable[[random.Random], None], chance: random.Random) -> None:
        """Do one thing again and again."""
        while not self.ending.is_set():
            try:
                actor(chance)
            except BaseException:
                self.ledger.violations.append(f"{actor.__name__}: {traceback.format_exc()}")
                return

    def watch(self, until: float, enough: float, interval: float, throughput: list[int], resident: list[float]) -> None:
        """Look on until the time is up, or there were items enough; note throughput and memory now and then."""
        done, at = count(self.ledger.seen), time.monotonic()
        forgotten = at
        more = True
        while more:
            time.sleep(0.05)
            now = time.monotonic()
            more = now < until and count(self.ledger.attempts) < enough and not self.ledger.violations
            if now > forgotten + FORGET:
                self.ledger.forget()
                forgotten = now
            if now - at >= (interval if more else interval / 2):
                before, done = done, count(self.ledger.seen)
                throughput.append(round((done - before) / (now - at)))
                resident.append(memory.resident())
                at = now

    def end(self, threads: list[threading.Thread]) -> None:
        """Stop everything; whatever is left is a violation."""
        violations = self.ledger.violations
        self.ending.set()
        late = time.monotonic() + PATIENCE
        while any(thread.is_alive() for thread in threads) and time.monotonic() < late:
            time.sleep(0.01)
            self.batch.start()  # somebody may wait for what a stop() on the last round refused
        hanging = [thread.name for thread in threads if thread.is_alive()]
        if hanging:
            violations.append(f"threads that hang: {hanging}")
            faulthandler.dump_traceback(all_threads=True)
            return
        self.batch.start()
        if not self.stop():
            violations.append("the last stop() timed out")
        stats = self.batch.stats
        if stats.queued or stats.running:
            violations.append(f"not back at zero: {stats}")
        if self.ledger.unseen:
            violations.append(f"{len(self.ledger.unseen)} items never resolved")
        if count(self.ledger.resolutions) != count(self.ledger.attempts):
            violations.append("some items resolved never, or more than once")
        if not count(self.ledger.seen) <= stats.items <= count(self.ledger.attempts):
            violations.append(f"the handler saw {count(self.ledger.seen)} items: {stats}")
        if stats.submitted > count(self.ledger.attempts):
            violations.append(f"more items than were handed over: {stats}")
        late = time.monotonic() + PATIENCE
        while threading.active_count() > 1 and time.monotonic() < late:
            gc.collect()
            time.sleep(0.01)
        if threading.active_count() > 1:
            violations.append(f"threads left: {threading.enumerate()}")
        self.ledger.forget()  # nothing is on its way
        self.ledger.forget()


def drift(throughput: list[int]) -> float | None:
    """Throughput of the last third over that of the first; `None` if there is too little to tell."""
    third = len(throughput) // 3
    first = sum(throughput[:third])
    return round(sum(throughput[-third:]) / first, 3) if third and first else None
