"""What a batcher does with more items than it can serve: how many are answered in time, of those that could be.

    python -m benchmarks.overload [--quick]

Items come at random moments, half as many again as the handler, which takes a + c·b, can serve; the schedule does not
slow down when the system does. Each has a deadline of four times a full batch. In time is a result that its caller
has before that. Threads and an event loop, each with a queue bounded to a batch, with deadlines in a queue without a
bound, and without either. What is served in time, of all that is served with neither, where there is always a full
batch to serve: that is the capacity of handler and batcher. The rounds take turns. Writes `results/overload.json`.
The extra `bench` is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

import ubatch
from ubatch import DeadlineExceeded, QueueFull, UBatch

RESULTS = Path(__file__).parent / "results"
A, C, MAX_SIZE = 5e-3, 1e-4, 64
FULL = A + C * MAX_SIZE  # seconds that a full batch takes
CAPACITY = MAX_SIZE / FULL  # items a second
LOAD, DEADLINE, TARGET = 1.5, 4 * FULL, 0.95
WAYS: dict[str, dict[str, Any]] = {
    "bounded, deadline": {"max_queue": MAX_SIZE, "deadline": DEADLINE},
    "deadline": {"deadline": DEADLINE},
    "neither": {},
}
DRIVERS = "threads", "event loop"


class Score:
    """What became of the items."""

    def __init__(self, until: float) -> None:
        self.until = until  # what is served later does not count
        self.offered = self.refused = self.served = self.in_time = self.late = 0

    def add(self, future: Any, arrived: float) -> None:
        """An item is done."""
        now = time.monotonic()
        is_served = not future.cancelled() and future.exception() is None
        self.served += is_served and now <= self.until
        if is_served and now <= arrived + DEADLINE:
            self.in_time += now <= self.until
        else:
            self.late += 1


def moments(seconds: float, seed: int) -> list[float]:
    """When items come, from 0 on."""
    rng = random.Random(seed)
    now, found = 0.0, []
    while now < seconds:
        found.append(now)
        now += rng.expovariate(LOAD * CAPACITY)
    return found


def with_threads(seconds: float, seed: int, options: dict[str, Any]) -> Score:
    """One thread hands over items as they are due; a worker thread serves them."""

    def handle(items: list[int]) -> list[int]:
        time.sleep(A + C * len(items))
        return items

    batch: UBatch[int, int] = UBatch(MAX_SIZE, handler=handle, **options)
    began, futures = time.monotonic(), []
    score = Score(began + seconds)
    for due in moments(seconds, seed):
        wait = began + due - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        score.offered += 1
        try:
            future: Future[int] = batch.submit(score.offered)
        except QueueFull:
            score.refused += 1
            continue
        except DeadlineExceeded:  # the machine stood still
            score.late += 1
            continue
        futures.append(future)
        future.add_done_callback(_adder(score, began + due))
    time.sleep(DEADLINE)
    batch.stop(drain=False)
    return score


def with_event_loop(seconds: float, seed: int, options: dict[str, Any]) -> Score:
    """One task hands over items as they are due; the handler is a coroutine function."""

    async def handle(items: list[int]) -> list[int]:
        await asyncio.sleep(A + C * len(items))
        return items

    async def main() -> Score:
        batch: ubatch.aio.UBatch[int, int] = ubatch.aio.UBatch(MAX_SIZE, handler=handle, **options)
        began = time.monotonic()
        score = Score(began + seconds)
        for due in moments(seconds, seed):
            wait = began + due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            score.offered += 1
            try:
                future = batch.submit(score.offered)
            except QueueFull:
                score.refused += 1
                continue
            except DeadlineExceeded:  # the machine stood still
                score.late += 1
                continue
            future.add_done_callback(_adder(score, began + due))
        await asyncio.sleep(DEADLINE)
        await batch.stop(drain=False)
        return score

    return asyncio.run(main())


def _adder(score: Score, arrived: float) -> Callable[[Any], None]:
    return lambda future: score.add(future, arrived)


def measure(seconds: float, rounds: int) -> dict[str, Any]:
    """Shares of what the handler could serve, of each round, by driver and way."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {driver: {way: [] for way in WAYS} for driver in DRIVERS}
    for turn in range(rounds):
        for driver in DRIVERS:
            for way, options in WAYS.items():
                run = with_threads if driver == "threads" else with_event_loop
                score = run(seconds, turn, options)
                found[driver][way].append(
                    {
                        "in time": score.in_time / (seconds * CAPACITY),
                        "served": score.served / (seconds * CAPACITY),
                        "late": score.late / score.offered,
                        "refused": score.refused / score.offered,
                        "offered": score.offered / (seconds * CAPACITY),
                    }
                )
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough look, of a few seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seconds, rounds = (0.5, 1) if options.quick else (3.0, 5)
    found = measure(seconds, rounds)
    heads = ("in time, of a + c·b", "served, of a + c·b", "late or never, of offered", "refused, of offered")
    table = Table("driver", "queue", *heads, "in time, of capacity")
    for driver, ways in found.items():
        for way, samples in ways.items():
            shares = {name: median(sample[name] for sample in samples) for name in samples[0]}
            pairs = zip(samples, ways["neither"], strict=True)
            reached = median(sample["in time"] / most["served"] for sample, most in pairs)
            verdict = f"{reached:.1%}"
            if way == "bounded, deadline":
                verdict += f", ≥ {TARGET:.0%}: " + ("met" if reached >= TARGET else "MISSED")
            cells = (f"{shares[name]:.1%}" for name in ("in time", "served", "late", "refused"))
            table.add_row(driver, way, *cells, verdict)
    Console().print(table)
    result = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "a": A,
        "c": C,
        "max_size": MAX_SIZE,
        "load": LOAD,
        "deadline": DEADLINE,
        "seconds": seconds,
        "samples": found,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overload.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
