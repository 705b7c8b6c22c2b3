"""What statistics and metrics cost: CPU time of the process for each item, beside the same without.

    python -m benchmarks.statistics [--quick]

Callers call again as soon as they are answered; the handler does nothing. So nothing but the library's own work is
there to hide the cost. The threads are free to run where they like, all on one core, or the callers on one and the
worker on another. Each process does one comparison: blocks with and without take turns, a round is a pair of blocks,
and what is told are ratios of a pair: their geometric mean, and twice its standard error.

- statistics: as they are, beside `Recorder.note`, the only part of them that the worker calls, replaced by a function
  that returns at once.
- timed: how long `Recorder.note` and `Recorder.fold` take where they are called, as a share of the CPU time; of the
  calls but for the slowest hundredth, which something else has interrupted. It varies less; what they cost others, whom
  they push out of the processor's caches, is not in it.
- prometheus, opentelemetry: `ubatch.metrics`, scraped or collected in the middle of each block of a second, beside
  none; statistics are in both.

Writes `results/statistics.json`. The extras `bench` and `metrics`, and opentelemetry-sdk, are needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from ubatch import UBatch
from ubatch._recorder import Recorder

from .child.case import pin, pin_others, pinned
from .harness import machine
from .results import now, write

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"

THREADS = [f"{callers} threads; {cores}" for callers in (8, 64, 256) for cores in ("free", "two cores", "one core")]
FEW = ["8 threads; one core", "64 threads; one core", "64 tasks; one core"]
CASES = {"statistics": THREADS + FEW[2:], "timed": THREADS + FEW[2:], "prometheus": FEW, "opentelemetry": FEW}
BLOCKS = {"statistics": 0.1, "timed": 0.25, "prometheus": 1.0, "opentelemetry": 1.0}  # seconds of each comparison's
ROUNDS = {"statistics": 80, "timed": 5, "prometheus": 8, "opentelemetry": 8}  # of each process
PROCESSES = 5  # for each comparison: the luck of memory layout is worth a few per cent
LEAD = 0.03  # seconds of a block that are not measured: the interpreter adapts to what was exchanged
TARGETS = {"statistics": 1.03, "timed": 1.03, "prometheus": 1.05}  # ratios, at most


# -- in the process that is measured ----------------------------------------------------------------------


class Callers:
    """Threads, or tasks of one event loop, that call again and again."""

    def __init__(self, case: str) -> None:
        number, kind, cores = case.replace(";", "").split(" ", 2)
        mine, workers = pinned(cores)
        pin(mine)
        self.batcher: UBatch[int, int] = UBatch(64, handler=lambda items: items)
        self.batcher.ubatch(1)
        pin_others(workers)
        self.counts = [0] * int(number)
        self.is_over = False
        self.threads = [threading.Thread(target=self.loop)]
        if kind == "threads":
            self.threads = [threading.Thread(target=self.call, args=(number,)) for number in range(len(self.counts))]
        for thread in self.threads:
            thread.start()

    def call(self, number: int) -> None:
        ubatch, counts = self.batcher.ubatch, self.counts
        while not self.is_over:
            ubatch(1)
            counts[number] += 1

    def loop(self) -> None:
        async def call(number: int) -> None:
            aubatch, counts = self.batcher.aubatch, self.counts
            while not self.is_over:
                await aubatch(1)
                counts[number] += 1

        async def all_of_them() -> None:
            await asyncio.gather(*map(call, range(len(self.counts))))

        asyncio.run(all_of_them())

    def block(self, seconds: float, work: Callable[[], object]) -> float:
        """CPU time of the process for each item, in seconds, with some work in the middle of it."""
        time.sleep(LEAD)
        items, began = sum(self.counts), time.process_time()
        time.sleep(seconds / 2)
        work()
        time.sleep(seconds / 2)
        return (time.process_time() - began) / (sum(self.counts) - items)

    def close(self) -> None:
        self.is_over = True
        for thread in self.threads:
            thread.join()
        self.batcher.stop()


def nothing(*_: Any) -> None:
    """Instead of what is not to be measured."""


@contextmanager
def no_statistics(callers: Callers) -> Iterator[Callable[[], object]]:
    note, Recorder.note = Recorder.note, nothing  # type: ignore[method-assign]
    try:
        yield nothing
    finally:
        Recorder.note = note  # type: ignore[method-assign]


@contextmanager
def as_it_is(callers: Callers) -> Iterator[Callable[[], object]]:
    yield nothing


@contextmanager
def prometheus(callers: Callers) -> Iterator[Callable[[], object]]:
    from prometheus_client import CollectorRegistry, generate_latest

    from ubatch import metrics

    registry = CollectorRegistry()
    end = metrics.prometheus(callers.batcher, registry)
    yield lambda: generate_latest(registry)
    end()


@contextmanager
def opentelemetry(callers: Callers) -> Iterator[Callable[[], object]]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from ubatch import metrics

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    end = metrics.opentelemetry(callers.batcher, provider)
    yield reader.get_metrics_data
    end()
    provider.shutdown()


WAYS = {
    "statistics": (no_statistics, as_it_is),
    "prometheus": (as_it_is, prometheus),
    "opentelemetry": (as_it_is, opentelemetry),
}
"""Of each comparison: without, and with."""


def compare(comparison: str, callers: Callers, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds for each item, without and with, of each round; the first one is thrown away."""
    samples = []
    for number in range(rounds + 1):
        found = {}
        for way in sorted((0, 1), reverse=bool(number % 2)):
            with WAYS[comparison][way](callers) as work:
                found[way] = callers.block(seconds, work)
        samples.append((found[0], found[1]))
    return samples[1:]


def timed(callers: Callers, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds for each item, all of it and all of it but for statistics, by the clock; of each round."""
    spent: dict[str, list[float]] = {"note": [], "fold": []}

    def within(name: str, clock: Callable[[], float]) -> None:
        whole, calls = getattr(Recorder, name), spent[name]
        empty = min(-clock() + clock() for _ in range(1000))

        def call(*args: Any) -> Any:
            began = clock()
            result = whole(*args)
            calls.append(clock() - began - empty)
            return result

        setattr(Recorder, name, call)

    within("note", time.perf_counter)
    within("fold", time.thread_time)  # it takes long enough to be interrupted, and to bear a clock that takes longer
    samples = []
    for _ in range(rounds + 1):
        for calls in spent.values():
            calls.clear()
        items = sum(callers.counts)
        total = callers.block(seconds, nothing)
        own = sum(map(usual, spent.values())) / (sum(callers.counts) - items)
        samples.append((total - own, total))
    return samples[1:]


def usual(calls: list[float]) -> float:
    """Their sum, had the slowest hundredth taken the mean of the others."""
    counted = sorted(calls)[: max(1, len(calls) * 99 // 100)]
    return sum(counted) / len(counted) * len(calls) if counted else 0.0


def serve(comparison: str, case: str, rounds: int) -> None:
    """Measure, and print what was found."""
    callers = Callers(case)
    try:
        measure = timed if comparison == "timed" else lambda *args: compare(comparison, *args)
        print(json.dumps(measure(callers, rounds, BLOCKS[comparison])))
    finally:
        callers.close()


# -- in the process that asks -----------------------------------------------------------------------------


def ask(comparison: str, case: str, rounds: int) -> list[list[float]]:
    """What one process finds."""
    command = [sys.executable, "-m", "benchmarks.statistics", "--serve", comparison, case, str(rounds)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=True)
    found: list[list[float]] = json.loads(answer.stdout)
    return found


def ratios(samples: list[list[float]]) -> list[float]:
    """With, as a multiple of without, of each round."""
    return [more / less for less, more in samples]


def mean(samples: list[list[float]]) -> tuple[float, float]:
    """The geometric mean of the ratios, and twice its standard error, relatively."""
    logs = [math.log(ratio) for ratio in ratios(samples)]
    return math.exp(fmean(logs)), 2 * stdev(logs) / math.sqrt(len(logs))


def misses(comparison: str, samples: list[list[float]]) -> bool:
    """Whether a target is missed."""
    return mean(samples)[0] > TARGETS.get(comparison, math.inf)


def table(results: dict[str, dict[str, list[list[float]]]]) -> Table:
    """All comparisons, and whether the targets are met."""
    shown = Table("comparison", "callers", "without", "with", "ratio", "target")
    for comparison, cases in results.items():
        for case, samples in cases.items():
            ratio, error = mean(samples)
            without, with_ = (f"{median(column) * 1e6:.2f} µs" for column in zip(*samples, strict=True))
            target = f"<= {TARGETS[comparison]}" if comparison in TARGETS else ""
            if misses(comparison, samples):
                target += ": [bold red]MISSED[/]"
            shown.add_row(comparison, case, without, with_, f"{ratio:.3f} ± {error:.3f}", target)
    return shown


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough look, of a minute; writes nothing")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        comparison, case, rounds = options.serve
        serve(comparison, case, int(rounds))
        return 0
    head = {"started": now(), "machine": machine(), "processes": PROCESSES, "rounds": ROUNDS, "blocks": BLOCKS}
    results: dict[str, dict[str, list[list[float]]]] = {name: {case: [] for case in CASES[name]} for name in CASES}
    for _ in range(1 if options.quick else PROCESSES):
        for comparison, rounds in ROUNDS.items():
            for case in CASES[comparison]:
                results[comparison][case] += ask(comparison, case, max(2, rounds // 5) if options.quick else rounds)
    Console(width=120).print(table(results))
    if not options.quick:
        write(RESULTS / "statistics.json", {**head, "seconds for each item, without and with": results})
    return sum(misses(comparison, samples) for comparison in results for samples in results[comparison].values())


if __name__ == "__main__":
    raise SystemExit(main())
