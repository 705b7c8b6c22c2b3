"""A soak: every face of one batcher at once, with cancels, errors, stops, starts and forks mixed in.

    python benchmarks/soak.py --seconds 600
    python benchmarks/soak.py --options --items 1000000

Threads, asyncio tasks and forked children call one batcher at random, while others stop it, start it and change its
options. With `--options` items have keys, weights, priorities and deadlines, and the queue is bounded. A ledger
follows every item. What must hold: each accepted item resolves exactly once, with its own result or an error that
it may get; the handler sees no item twice, and none whose `cancel()` said yes; nobody hangs; in the end all
counters are at zero; throughput and memory do not drift. Violations end it with status 1. The result, with the
throughput of each interval, goes to `benchmarks/results/soak.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import gc
import itertools
import json
import os
import platform
import random
import secrets
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import ubatch
import ubatch._driver

PATIENCE = 30.0  # seconds after which what has not ended hangs
RESULTS = Path(__file__).parent / "results" / "soak.json"


class ItemError(Exception):
    """What one item gets, by its number."""


class BatchError(Exception):
    """What a whole batch gets."""


REFUSED = (ubatch.Stopped, ubatch.QueueFull, ubatch.DeadlineExceeded)  # a submit may raise these
SHARED = (BatchError, ubatch.HandlerFailed, ubatch.BadBatchOutputSize, *REFUSED)  # any item may get these

MAX_WEIGHT = 40


def value(item: int) -> int:
    """The right result of an item."""
    return 3 * item + 1


class Ledger:
    """Which items are on their way, and what went wrong. Lock-free: it is used in forked children too."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.unseen: set[int] = set()
        self.vague: set[int] = set()  # given up by their callers: the handler may see them, or not
        self.vague_before: set[int] = set()
        self.violations: deque[str] = deque(maxlen=100)
        self.attempts = itertools.count()
        self.resolutions = itertools.count()
        self.seen = itertools.count()

    def new(self) -> int:
        """A new item, about to be handed over."""
        next(self.attempts)
        item = next(self.numbers)
        self.unseen.add(item)
        return item

    def see(self, items: list[int]) -> None:
        """The handler got these."""
        for item in items:
            next(self.seen)
            try:
                self.unseen.remove(item)
            except KeyError:
                if item in self.vague:
                    self.vague.discard(item)
                elif item not in self.vague_before:
                    self.violations.append(f"the handler got item {item} twice, or after it was cancelled")

    def resolved(self, item: int, outcome: Any) -> None:
        """An item's caller got a result or an exception."""
        next(self.resolutions)
        if isinstance(outcome, SHARED):
            self.let_go(item)
        elif item in self.unseen:
            self.violations.append(f"item {item} resolved unseen with {outcome!r}")
        elif isinstance(outcome, ItemError):
            if outcome.args != (item,):
                self.violations.append(f"item {item} got the error of another: {outcome!r}")
        elif outcome != value(item):
            self.violations.append(f"item {item} got {outcome!r}")

    def cancelled(self, item: int) -> None:
        """`cancel()` of an item's future said yes: the handler must not see it."""
        next(self.resolutions)
        try:
            self.unseen.remove(item)
        except KeyError:
            self.violations.append(f"item {item} was cancelled, yet the handler has seen it")

    def left(self, item: int) -> None:
        """An item's caller stopped waiting."""
        next(self.resolutions)
        self.let_go(item)

    def let_go(self, item: int) -> None:
        """It can no longer be told whether the handler sees this item."""
        if item in self.unseen:
            self.vague.add(item)
            self.unseen.discard(item)

    def forget(self) -> None:
        """Drop what was given up long ago."""
        self.vague_before, self.vague = self.vague, set()


def key(item: int) -> int:
    """The key of an item."""
    return item // 16 % 3


def weight(item: int) -> int:
    """The weight of an item, now and then more than a batch may have."""
    return item * 7 % 43


def count(counter: itertools.count[int]) -> int:
    """How often a counter was stepped; for a counter that nobody steps any more, or roughly."""
    return int(repr(counter)[6:-1])


class Soak:
    """One batcher and all that happens to it."""

    def __init__(self, seed: int, *, forks: bool = True, special: bool = False) -> None:
        self.seeds = random.Random(seed)
        self.ledger = Ledger()
        self.ending = threading.Event()
        self.handler_random = random.Random(self.seeds.random())
        self.special = special
        options: dict[str, Any] = {}
        if special:
            options = {"key": key, "weight": weight, "max_weight": MAX_WEIGHT, "aging": 0.01}
            options |= {"max_queue": 200, "overflow": self.seeds.choice(("block", "reject"))}
        self.batch: ubatch.UBatch[int, int] = ubatch.UBatch(16, handler=self.handle, name="soak", **options)
        self.actors: list[Callable[[random.Random], None]] = [
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
        """The handler: what it does to a batch depends on the numbers of its items."""
        self.ledger.see(items)
        if self.special and len({key(item) for item in items}) > 1:
            self.ledger.violations.append(f"items of different keys: {items}")
        if self.special and len(items) > 1 and sum(map(weight, items)) > MAX_WEIGHT:
            self.ledger.violations.append(f"more than the largest weight: {items}")
        chance = self.handler_random.random()
        if chance < 0.02:
            time.sleep(0.002)
        elif chance < 0.03:
            with contextlib.suppress(*REFUSED):
                self.follow(self.ledger.new(), self.handler_random)
        elif chance < 0.031:
            self.batch.stop(drain=False)
        for item in items:
            if item % 499 == 0:
                raise BatchError(item)
            if item % 1009 == 0:
                raise SystemExit(item)
            if item % 1511 == 0:
                return []
        return [ItemError(item) if item % 97 == 0 else value(item) for item in items]

    def view(self, chance: random.Random) -> Any:
        """The batcher, perhaps with options for a call."""
        if not self.special or chance.random() < 0.3:
            return self.batch
        deadline = chance.choice((float("inf"), float("inf"), PATIENCE, 0.05, 0.002, 0.0))
        return self.batch.options(priority=chance.randrange(-1, 3), deadline=deadline)

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
            for item in items:
                self.ledger.left(item)
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
            except (Exception, asyncio.CancelledError):
                for item in items:
                    self.ledger.left(item)
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
            self.batch.max_queue = chance.choice((None, 20, 50, 200))
        ubatch._driver.IDLE_EXIT = chance.choice((10.0, 0.0, 0.0002))
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
                ubatch._driver.IDLE_EXIT = 10.0
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

    # -- all of it ----------------------------------------------------------------------------------------

    def act(self, actor: Callable[[random.Random], None], chance: random.Random) -> None:
        """Do one thing again and again."""
        while not self.ending.is_set():
            try:
                actor(chance)
            except BaseException:
                self.ledger.violations.append(f"{actor.__name__}: {traceback.format_exc()}")
                return

    def run(self, seconds: float, interval: float, items: float = float("inf")) -> dict[str, Any]:
        """Run for so many seconds, or until so many items were handed over, and say what came of it."""
        threads = [
            threading.Thread(
                target=self.act,
                args=(actor, random.Random(self.seeds.random())),
                name=actor.__name__,
                daemon=True,
            )
            for actor in self.actors
        ]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        throughput: list[float] = []
        memory: list[float] = []
        before, at = 0, begin
        while time.monotonic() < begin + seconds and count(self.ledger.attempts) < items and not self.ledger.violations:
            time.sleep(min(interval, max(0.0, begin + seconds - time.monotonic())))
            self.ledger.forget()
            done, now = count(self.ledger.seen), time.monotonic()
            throughput.append(round((done - before) / (now - at)))
            memory.append(round(resident(), 1))
            before, at = done, now
        self.end(threads)
        return {
            "seconds": round(time.monotonic() - begin, 1),
            "interval": interval,
            "items_per_second": throughput,
            "drift": drift(throughput),
            "memory_mb": memory,
            "attempts": count(self.ledger.attempts),
            "resolved": count(self.ledger.resolutions),
            "stats": self.batch.stats.asdict(),
            "violations": list(self.ledger.violations),
        }

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
        if not self.batch.stop(timeout=PATIENCE):
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


def resident() -> float:
    """Memory of this process, in MiB; 0 where that cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def drift(throughput: list[float]) -> float | None:
    """Throughput of the last third over that of the first; `None` if there is too little to tell."""
    third = len(throughput) // 3
    first = sum(throughput[:third])
    return round(sum(throughput[-third:]) / first, 3) if third and first else None


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Every face of one batcher at once, for as long as asked.")
    parser.add_argument("--seconds", type=float, default=None, help="60 by default, if --items is not given")
    parser.add_argument("--items", type=float, default=float("inf"), help="items after which it ends")
    parser.add_argument("--options", action="store_true", help="with keys, weights, priorities, deadlines and a bound")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds for each throughput figure")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--switch", type=float, default=1e-6, help="sys.setswitchinterval")
    parser.add_argument("--no-forks", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"UBATCH_SEED={seed}", flush=True)
    sys.setswitchinterval(options.switch)
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
    import logging

    logging.getLogger("concurrent.futures").disabled = True  # callbacks that raise are part of it
    seconds = options.seconds or (60.0 if options.items == float("inf") else float("inf"))
    soak = Soak(seed, forks=hasattr(os, "fork") and not options.no_forks, special=options.options)
    result = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seed": seed,
        "switch_interval": options.switch,
        **soak.run(seconds, options.interval, options.items),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.stdout.flush()
    if result["violations"]:
        os._exit(1)  # what hangs would hang the exit, too
    return 0


if __name__ == "__main__":
    sys.exit(main())
