"""The adaptive policy in virtual time: the figures that it has to reach, and the peers' rules beside it.

    python -m benchmarks.simulate [--quick]

prints a table of targets and reached figures and writes `results/simulate.json` and two plots: latency against
load, throughput against the number of callers. The policy is the package's own, the clock is not. Seeds are fixed.
The extra `bench` is needed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ubatch._policy import Adaptive, Window

from .curves import draw
from .theory import best_throughput, greedy_latency, greedy_throughput, optimal_latency
from .virtual import (
    CPU,
    GPU,
    NET,
    SETTINGS,
    Cork,
    PolledWindow,
    Setting,
    SleepIfNotFull,
    Unbatched,
    constant,
    fan_out,
    on_off,
    poisson,
    simulate,
    uniform,
)

RESULTS = Path(__file__).parent / "results"


class Figure(NamedTuple):
    """One cell of the table, simulated."""

    scenario: str
    case: str
    what: str
    target: str
    reached: float
    met: bool
    greedy: float | None = None


class Effort(NamedTuple):
    """How much is simulated."""

    batches: int
    seeds: int
    loads: tuple[float, ...]
    callers: tuple[int, ...]


FULL = Effort(2500, 3, (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95), (1, 2, 4, 8, 16, 32, 64, 128))
QUICK = Effort(600, 1, (0.05, 0.2, 0.5, 0.8, 0.95), (2, 8, 32, 64))

greedy = partial(Window, 0.0)
Step = Callable[[], Iterator[Figure]]


def at_most(scenario: str, case: str, what: str, target: float, reached: float) -> Figure:
    return Figure(scenario, case, what, f"<= {target:g}", reached, round(reached, 3) <= target)


def at_least(scenario: str, case: str, what: str, target: float, reached: float, beside: float | None = None) -> Figure:
    return Figure(scenario, case, what, f">= {target:g}", reached, round(reached, 3) >= target, beside)


# -- the rows ---------------------------------------------------------------------------------------------


def open_loop(effort: Effort, setting: Setting, load: float, kind: str) -> Iterator[Figure]:
    rate = load * setting.capacity
    until = effort.batches * setting.duration(setting.max_size / 4)
    ours = theirs = 0.0
    for seed in range(effort.seeds):
        make = partial(poisson, rate) if kind == "Poisson" else partial(on_off, rate, 50 * setting.a)
        ours += simulate(Adaptive(), setting, arrivals=make(seed), until=until).mean
        theirs += simulate(greedy(), setting, arrivals=make(seed), until=until).mean
    yield at_most(
        f"{kind} arrivals, 1 worker", f"{setting.name} {load:.0%}", "mean latency / greedy", 1.01, ours / theirs
    )


THINK = {"uniform": uniform, "constant": constant}


def returning(effort: Effort, setting: Setting, callers: int, share: float, kind: str) -> Iterator[Figure]:
    longest = share * setting.a
    spread = longest * callers / (callers + 1) if kind == "uniform" else longest
    until = effort.batches / 3 * (setting.duration(min(callers, setting.max_size)) + spread)
    run = partial(simulate, setting=setting, callers=callers, think=THINK[kind](longest), until=until)
    best = best_throughput(setting, callers, spread)
    yield at_least(
        f"K callers, think time {share:g} a",
        f"{setting.name} K={callers} {kind}",
        "throughput / X*",
        0.97 if share <= 0.3 else 0.90,
        run(Adaptive()).throughput / best,
        run(greedy()).throughput / best,
    )


def fan_outs(effort: Effort, setting: Setting) -> Iterator[Figure]:
    ours = theirs = 0.0
    for seed in range(effort.seeds):
        make = partial(fan_out, 0.05 * setting.capacity, 16, 20e-6)
        until = max(effort.batches * setting.a, effort.batches * 16 / 0.05 / setting.capacity / 8)
        ours += simulate(Adaptive(), setting, arrivals=make(seed), until=until).mean
        theirs += simulate(greedy(), setting, arrivals=make(seed), until=until).mean
    target = {"gpu": 0.75, "net": 0.70, "cpu": 1.02}[setting.name]
    yield at_most("fan-out of 16, 5 % load", setting.name, "mean latency / greedy", target, ours / theirs)


def four_workers(effort: Effort, setting: Setting) -> Iterator[Figure]:
    until = effort.batches / 2 * setting.duration(setting.max_size / 4)
    sums = [0.0] * 4
    for seed in range(effort.seeds):
        for offset, policy in ((0, Adaptive(4)), (2, greedy())):
            arrivals = poisson(0.4 * 4 * setting.capacity, seed)
            run = simulate(policy, setting, arrivals=arrivals, until=until, workers=4)
            sums[offset] += run.mean
            sums[offset + 1] += run.quantile(0.99)
    slow = setting is CPU
    scenario = "4 workers, Poisson 40 %"
    yield at_most(scenario, setting.name, "mean / greedy", 1.01 if slow else 0.90, sums[0] / sums[2])
    yield at_most(scenario, setting.name, "p99 / greedy", 1.01 if slow else 0.80, sums[1] / sums[3])


def drift(effort: Effort, callers: int) -> Iterator[Figure]:
    """The fixed cost changes while it runs: one policy object lives through all phases."""
    longest = effort.batches * 12e-3
    phases = ((5e-3, longest), (1e-3, longest), (10e-3, longest))
    now, policy = 0.0, Adaptive()
    changes: list[tuple[float, float]] = []
    for a, length in phases:
        changes.append((now, a))
        now += length

    def cost(at: float, size: int) -> float:
        return max(change for change in changes if change[0] <= at)[1] + GPU.c * size

    think = 0.2e-3
    run = simulate(policy, GPU, callers=callers, think=uniform(think), until=now, cost=cost, warm_up=0.0, stamps=True)
    for (start, a), (_, length) in zip(changes, phases, strict=True):
        done = sum(start <= at < start + length for at in run.finished) / length
        best = best_throughput(GPU._replace(a=a), callers, think * callers / (callers + 1))
        yield at_least(
            "a changes 5, 1, 10 ms", f"a={a * 1e3:g} ms K={callers}", "throughput / optimum", 0.92, done / best
        )


def overload(effort: Effort, setting: Setting) -> Iterator[Figure]:
    until = effort.batches / 5 * setting.duration(setting.max_size)
    run = simulate(Adaptive(), setting, arrivals=poisson(1.1 * setting.capacity, 1), until=until)
    # batches are counted whole, so the share of a last one that runs is worth a little either way
    yield at_least("overload 110 %", setting.name, "throughput / capacity", 0.99, run.throughput / setting.capacity)


def steps(effort: Effort) -> Iterator[Step]:
    for setting in SETTINGS:
        for kind in ("Poisson", "on-off"):
            for load in effort.loads:
                yield partial(open_loop, effort, setting, load, kind)
        for share in (0.05, 0.3, 0.6):
            for callers in (2, 8, 32, 64) if share < 0.6 else (2, 4, 8):
                for kind in THINK:
                    yield partial(returning, effort, setting, callers, share, kind)
        yield partial(fan_outs, effort, setting)
        yield partial(four_workers, effort, setting)
        yield partial(overload, effort, setting)
    for callers in (2, 8, 32):
        yield partial(drift, effort, callers)


# -- beside the others ------------------------------------------------------------------------------------

WINDOW = 10e-3

CONTENDERS: dict[str, Callable[[Setting], Any]] = {
    "adaptive": lambda setting: Adaptive(),
    "greedy": lambda setting: greedy(),
    "window 10 ms": lambda setting: Window(WINDOW),
    "sleep if not full (batched)": lambda setting: SleepIfNotFull(WINDOW),
    "polled window (ubatch 1.0)": lambda setting: PolledWindow(WINDOW),
    "BentoML's rule": lambda setting: Cork(setting.a),
    "no batching": lambda setting: Unbatched(0.0),
}


def beside(effort: Effort, name: str, setting: Setting) -> dict[str, Any]:
    """Mean latencies against load, in seconds, and throughputs against callers, in items per second."""
    alone = setting._replace(max_size=1) if name == "no batching" else setting
    latency, throughput = {}, {}
    for load in effort.loads:
        rate = load * setting.capacity
        if rate < 0.98 * alone.capacity:
            until = effort.batches / 2 * setting.duration(setting.max_size / 4)
            run = simulate(CONTENDERS[name](setting), alone, arrivals=poisson(rate, 7), until=until)
            latency[load] = run.mean
    for callers in effort.callers:
        until = effort.batches / 4 * (setting.duration(min(callers, setting.max_size)))
        think = uniform(0.05 * setting.a)
        throughput[callers] = simulate(
            CONTENDERS[name](setting), alone, callers=callers, think=think, until=until
        ).throughput
    return {"latency": latency, "throughput": throughput}


def bounds(effort: Effort, setting: Setting) -> dict[str, Any]:
    """The optimum, and the closed forms."""
    rates = {load: load * setting.capacity for load in effort.loads}
    optimum = {load: optimal_latency(setting, rate) for load, rate in rates.items()}
    return {
        "optimal latency": {load: best for load, (best, _, _) in optimum.items()},
        "greedy latency, exact": {load: exact for load, (_, exact, _) in optimum.items()},
        "greedy latency, closed form": {load: greedy_latency(setting, rate) for load, rate in rates.items()},
        "X*": {callers: best_throughput(setting, callers) for callers in effort.callers},
        "greedy throughput, closed form": {
            callers: greedy_throughput(setting, callers) for callers in effort.callers if callers <= setting.max_size
        },
    }


# -- the table --------------------------------------------------------------------------------------------


def show(console: Console, figures: list[Figure]) -> None:
    """One line for each scenario and figure: the worst of its cases."""
    table = Table(
        "scenario", "figure", "cases", "target", "worst reached", "at", "met", "greedy", title="Figures to reach"
    )
    groups: dict[tuple[str, ...], list[Figure]] = {}
    for figure in figures:
        split = figure.case.split()[0] if figure.scenario.startswith(("fan-out", "4 workers")) else ""
        groups.setdefault((figure.scenario, figure.what, figure.target, split), []).append(figure)
    for (scenario, what, target, _), group in groups.items():
        worst = (max if target.startswith("<") else min)(group, key=lambda figure: figure.reached)
        beside = [figure.greedy for figure in group if figure.greedy is not None]
        met = all(figure.met for figure in group)
        table.add_row(
            scenario,
            what,
            str(len(group)),
            target,
            f"{worst.reached:.3f}",
            worst.case,
            "yes" if met else "[bold red]NO[/]",
            f"{min(beside):.2f} to {max(beside):.2f}" if beside else "",
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs; writes nothing")
    effort = QUICK if parser.parse_args().quick else FULL
    console = Console(width=150)
    started = time.perf_counter()
    figures: list[Figure] = []
    curves: dict[str, dict[str, Any]] = {}
    todo = list(steps(effort))
    with Progress(console=console, transient=True) as progress:
        for step in progress.track(todo, description="figures"):
            figures.extend(step())
        for setting in progress.track((GPU, CPU, NET), description="peers"):
            curves[setting.name] = {name: beside(effort, name, setting) for name in CONTENDERS}
            curves[setting.name]["bounds"] = bounds(effort, setting)
    show(console, figures)
    for setting in SETTINGS:
        exact = curves[setting.name]["bounds"]
        gap = max(exact["greedy latency, exact"][load] / exact["optimal latency"][load] - 1 for load in effort.loads)
        console.print(f"{setting.name}: greedy is at most {gap:.2%} above the exact optimum (1 worker, Poisson)")
    console.print(f"{len(figures)} cells, {sum(f.met for f in figures)} met, {time.perf_counter() - started:.0f} s")
    if effort is FULL:
        RESULTS.mkdir(exist_ok=True)
        result = {
            "python": platform.python_version(),
            "settings": {s.name: s._asdict() for s in SETTINGS},
            "figures": [figure._asdict() for figure in figures],
            "curves": curves,
        }
        (RESULTS / "simulate.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        draw(result, RESULTS)
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
