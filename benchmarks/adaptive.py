"""Real threads: the adaptive policy beside greedy, fixed windows, and a loop that always gathers exactly K.

    python -m benchmarks.adaptive [--quick]

K threads call, each again as soon as it has its result; the handler sleeps `a + c·b`. The contenders of a case are
interleaved, several rounds of each; medians are compared. Writes `results/adaptive.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ubatch import UBatch

from .theory import best_throughput
from .virtual import GPU, NET, Setting

RESULTS = Path(__file__).parent / "results"
TARGETS = {2: 0.95, 8: 0.93, 32: 0.93}  # of the ideal
TARGET_64 = 0.97  # of the loop without a policy, gpu
Call = Callable[[int], Any]


class Exactly:
    """No policy: gathers K items, always, and wakes the first caller, who wakes the next, as ubatch does."""

    def __init__(self, callers: int, handler: Callable[[list[int]], list[int]]) -> None:
        self._callers, self._handler = callers, handler
        self._queue: deque[tuple[int, list[Any]]] = deque()
        self._full = threading.Lock()
        self._full.acquire()
        self._stopped = False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def __call__(self, item: int) -> Any:
        lock = threading.Lock()
        lock.acquire()
        call: list[Any] = [lock, None, None]  # waiter, result, next in the chain
        self._queue.append((item, call))
        if len(self._queue) == self._callers:
            self._full.release()
        lock.acquire()
        if call[2] is not None:
            call[2][0].release()
        return call[1]

    def _work(self) -> None:
        while True:
            self._full.acquire()
            if self._stopped:
                return
            batch = [self._queue.popleft() for _ in range(self._callers)]
            results = self._handler([item for item, _ in batch])
            later = None
            for (_, call), result in zip(reversed(batch), reversed(results), strict=True):
                call[1], call[2] = result, later
                later = call
            later[0].release()  # type: ignore[index]

    def stop(self) -> None:
        self._stopped = True
        self._full.release()
        self._thread.join()


def measure(name: str, setting: Setting, callers: int, seconds: float) -> dict[str, Any]:
    """Items per second of one contender, after a warm-up of a quarter of the time."""

    def handler(items: list[int]) -> list[int]:
        time.sleep(setting.duration(len(items)))
        return items

    batcher: Any
    if name == "exactly K":
        batcher = Exactly(callers, handler)
        call: Call = batcher
    else:
        timeout = {"adaptive": None, "greedy": 0.0, "window 2 ms": 2e-3, "window 10 ms": 10e-3}[name]
        batcher = UBatch(setting.max_size, timeout, handler=handler)
        call = batcher.ubatch
    done = [0] * callers
    over = False

    def caller(index: int) -> None:
        count = 0
        while not over:
            call(index)
            count += 1
            done[index] = count
        if name == "exactly K":  # the others are in a batch that never fills: feed it until all are out
            leaving.append(index)
            while len(leaving) < callers:
                time.sleep(0.001)

    leaving: list[int] = []
    threads = [threading.Thread(target=caller, args=(index,), daemon=True) for index in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)
    begun, before = time.perf_counter(), sum(done)
    time.sleep(seconds)
    items, took = sum(done) - before, time.perf_counter() - begun
    over = True
    if name == "exactly K":
        while len(leaving) < callers:  # whoever waits gets company until it is out
            waiting = len(batcher._queue)
            if waiting and waiting + len(leaving) == callers:
                for _ in range(callers - waiting):
                    threading.Thread(target=call, args=(0,), daemon=True).start()
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    result: dict[str, Any] = {"throughput": items / took}
    if name == "adaptive":
        result["stats"] = batcher.stats.asdict()
    batcher.stop()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; writes nothing")
    quick = parser.parse_args().quick
    rounds, seconds = (1, 0.8) if quick else (3, 1.5)
    names = (
        ["adaptive", "greedy", "exactly K"]
        if quick
        else ["adaptive", "greedy", "window 2 ms", "window 10 ms", "exactly K"]
    )
    cases = [(setting, callers) for setting in (GPU, NET) for callers in (2, 8, 32, 64)]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    console = Console(width=150)
    with Progress(console=console, transient=True) as progress:
        todo = [(setting, callers, name) for setting, callers in cases for _ in range(rounds) for name in names]
        for setting, callers, name in progress.track(todo):
            case = runs.setdefault(f"{setting.name} K={callers}", {name: [] for name in names})
            case[name].append(measure(name, setting, callers, seconds))
    table = Table("case", "ideal/s", *(f"{name} / ideal" for name in names), "adaptive / exactly K", "target", "met")
    missed = 0
    for setting, callers in cases:
        case = runs[f"{setting.name} K={callers}"]
        ideal = best_throughput(setting, callers)
        medians = {name: median(run["throughput"] for run in case[name]) for name in names}
        of_loop = medians["adaptive"] / medians["exactly K"]
        reached, target = (
            (medians["adaptive"] / ideal, TARGETS[callers]) if callers in TARGETS else (of_loop, TARGET_64)
        )
        bound = callers in TARGETS or setting is GPU
        missed += bound and reached < target
        shares = (f"{medians[name] / ideal:.3f}" for name in names)
        verdict = ("yes" if reached >= target else "[bold red]NO[/]") if bound else ""
        of_what = "ideal" if callers in TARGETS else "exactly K"
        said = f">= {target} of {of_what}" if bound else ""
        table.add_row(f"{setting.name} K={callers}", f"{ideal:.0f}", *shares, f"{of_loop:.3f}", said, verdict)
    console.print(table)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()}
        text = json.dumps({"machine": machine, "rounds": rounds, "seconds": seconds, "runs": runs}, indent=1)
        (RESULTS / "adaptive.json").write_text(text + "\n", encoding="utf-8")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
