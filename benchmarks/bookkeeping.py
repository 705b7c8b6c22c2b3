"""What the adaptive policy's bookkeeping costs: CPU time of one thread, in pairs with a batcher that does none.

    python -m benchmarks.bookkeeping [--quick]

One thread is caller and worker in turn: it submits 64 items, timed, then has the driver serve them, timed without the
handler. So nothing is woken and nothing waits, and what differs between a batcher with `timeout` left out and one with
`timeout=0`, otherwise the same code, is the policy. The handler takes longer than what is too short to wait for: it
computes, or it sleeps, after which this thread finds less in the processor's caches, and everything costs more. Blocks
of batches take turns; a round is the median over its batches, a difference that of a pair of rounds. Writes
`results/bookkeeping.json`. The extra `bench` is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from ubatch import UBatch
from ubatch._seats import NEVER, Seat

RESULTS = Path(__file__).parent / "results"
SUBMIT, BATCH = 0.3e-6, 25e-6  # targets: seconds for each submit, for each batch of 64
SIZES = 1, 64
HANDLERS = "computes", "sleeps"
TAKES = 400e-6
BLOCK, SKIPPED = 50, 10  # batches of one contender in a row; those at first that find other items in the caches


class Chair(Seat):
    """The place of a worker that need not wait: what it would wait for is submitted when it is back."""

    __slots__ = ()

    def pause(self, timeout: float) -> bool:
        return False


class Contender:
    """A batcher whose caller and worker are this thread."""

    def __init__(self, timeout: float | None, size: int, handler: str) -> None:
        self.computes = handler == "computes"
        self.batcher: UBatch[int, int] = UBatch(2 * size, timeout, handler=self.handle)
        self.seat = Chair()
        self.batcher._seat = self.seat
        self.size = size
        self.handled = 0.0

    def handle(self, items: list[int]) -> list[int]:
        began = time.thread_time()
        if self.computes:
            while time.thread_time() < began + TAKES:
                pass
        else:
            time.sleep(TAKES)
        self.handled = time.thread_time() - began
        return items

    def round(self) -> tuple[float, float]:
        """Seconds for each submit, and for the batch, of a block."""
        submits, batches = [], []
        clock, batcher, seat, items = time.thread_time, self.batcher, self.seat, range(self.size)
        for _ in range(BLOCK):
            submit = batcher.submit
            seat.wake_at = NEVER
            began = clock()
            for item in items:
                submit(item)
            submitted = clock()
            batcher._serve(seat)
            submits.append((submitted - began) / self.size)
            batches.append(clock() - submitted - self.handled)
        return median(submits[SKIPPED:]), median(batches[SKIPPED:])


def measure(size: int, handler: str, rounds: int) -> dict[str, Any]:
    """Samples of both, in turns, and what the adaptive one has done."""
    contenders = {"adaptive": Contender(None, size, handler), "greedy": Contender(0.0, size, handler)}
    for contender in contenders.values():
        contender.round()  # learns
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in sorted(contenders, reverse=bool(number % 2)):
            samples[name].append(contenders[name].round())
    batcher = contenders["adaptive"].batcher
    result: dict[str, Any] = {"light": batcher._policy.light, "stats": batcher.stats.asdict()}  # type: ignore[union-attr]
    for name, rows in samples.items():
        result[name] = {"submit": [row[0] for row in rows], "batch": [row[1] for row in rows]}
    for contender in contenders.values():
        contender.batcher._seat = Seat()
    return result


def difference(result: dict[str, Any], what: str) -> tuple[float, float, float]:
    """Quartiles of adaptive less greedy, in pairs, in seconds."""
    pairs = zip(result["adaptive"][what], result["greedy"][what], strict=True)
    low, middle, high = quantiles([ours - theirs for ours, theirs in pairs], n=4, method="inclusive")
    return low, middle, high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds; writes nothing")
    quick = parser.parse_args().quick
    rounds = 8 if quick else 30
    cases = [(size, handler) for size in SIZES for handler in HANDLERS]
    results = {f"{size}, {handler}": measure(size, handler, rounds) for size, handler in cases}
    table = Table("items, handler", "of", "greedy", "adaptive", "difference (quartiles)", "target", "met")
    missed = 0
    for case, result in results.items():
        for what in ("submit", "batch"):
            low, middle, high = difference(result, what)
            target = (SUBMIT if what == "submit" else BATCH) if case.startswith("64") else float("inf")
            missed += middle > target
            ours, theirs = (f"{median(result[name][what]) * 1e6:.2f} µs" for name in ("adaptive", "greedy"))
            spread = f"{middle * 1e6:+.2f} µs ({low * 1e6:+.2f} to {high * 1e6:+.2f})"
            verdict = "" if target > 1 else "yes" if middle <= target else "[bold red]NO[/]"
            said = "" if target > 1 else f"<= {target * 1e6:g} µs"
            table.add_row(case, what, theirs, ours, spread, said, verdict)
        if result["light"]:
            raise SystemExit("the handler was too short to be waited for: nothing was measured")
    Console(width=120).print(table)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        machine = {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()}
        text = json.dumps({"machine": machine, "rounds": rounds, "block": BLOCK, "cases": results}, indent=1)
        (RESULTS / "bookkeeping.json").write_text(text + "\n", encoding="utf-8")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
