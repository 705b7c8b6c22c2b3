"""Each peer's own setting, how long it holds items: a few values are tried at each kind of cell, the best is kept.

This project is not swept: it is measured as it comes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .child.case import Case, Sample
from .contenders import CONTENDERS, PEERS, Directories, plain
from .harness import Progress, interleaved
from .results import entry, head, read, write
from .scenario import Scenario

FILE = "sweep.json"

ROUNDS = 2

SECONDS = {"closed-loop": 0.2, "open-loop": 0.4, "bursts": 0.4}
"""Lengths of the rounds, by group; 0.2 s for others."""

START = 0.3
"""Seconds that starting a process is thought to take."""

NOTE = (
    "One sweep serves all cells in which the same window must be best: pinned to cores or not, with the same callers "
    "and handler; any call of one caller; two callers and eight; 32 callers and 64; one caller and whatever handler; "
    "64 callers of cpu and of gpu, whose batches are full; cpu, and net, at every load; bursts on whatever handler; a "
    "handler that computes for 20 ms and one that sleeps for that long; memory, which hardly depends on it, and 64 "
    "callers."
)


def stands_for(scenario: Scenario, name: str, plan: Sequence[Scenario]) -> Scenario:
    """The cell whose sweep a contender's settings in a cell are taken from; see `NOTE`."""
    case, face = scenario.case, scenario.case_of(name).face

    def first(group: str, **wanted: Any) -> Scenario:
        fitting = (
            one
            for one in plan
            if one.group == group
            and "lone" not in one.case.figure
            and all(getattr(one.case, key) == value for key, value in wanted.items())
        )
        return next(fitting, scenario)

    if scenario.group == "round-trip":
        return first("round-trip", cores="free")
    if scenario.group == "memory":
        return first(face, callers=64, cores="free", face=face, handler="no-op")
    if scenario.group in ("threads", "tasks") and case.handler == "no-op":
        return first(scenario.group, callers=case.callers, cores="free", face=face)
    if scenario.group == "threads":
        return first("closed-loop", callers=64, handler="net")
    if scenario.group == "closed-loop":
        if case.callers == 1:
            return first("closed-loop", callers=1, handler="gpu")
        if case.callers > 8:
            return first("closed-loop", callers=64, handler="gpu" if case.handler == "cpu" else case.handler)
        return first("closed-loop", callers=8, handler=case.handler)
    if scenario.group == "bursts":
        return first("bursts", handler="gpu")
    if scenario.group == "open-loop" and case.handler != "gpu":
        return first("open-loop", handler=case.handler, load=0.5)
    return scenario


def key(scenario: Scenario) -> str:
    """What a cell is called in the sweep's file."""
    return f"{scenario.group}: {scenario.id}"


@dataclass(frozen=True)
class Settings:
    """The best settings that a sweep found.

    Args:
        best: by the sweep's cell and by contender.
        plan: all cells.
    """

    best: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    plan: Sequence[Scenario] = ()

    @classmethod
    def read(cls, path: Path, plan: Sequence[Scenario]) -> Settings:
        """Those in a sweep's file, if there is one."""
        cells = (read(path) or {"cells": []})["cells"]
        return cls(
            {cell["id"]: {name: one["best"] for name, one in cell["contenders"].items()} for cell in cells}, plan
        )

    def of(self, scenario: Scenario, name: str) -> dict[str, Any]:
        """What a contender runs with in a cell, beyond what the cell says.

        Raises:
            LookupError: there was no sweep for it.
        """
        if not scenario.swept or plain(name) not in PEERS:
            return {}
        cell = key(stands_for(scenario, name, self.plan))
        swept = self.best.get(cell, {})
        found = swept.get(name) or swept.get(plain(name))
        if found is None:
            raise LookupError(f"no swept settings for {cell}: run `python -m benchmarks --sweep`")
        return dict(found)


@dataclass
class Cell:
    """What is swept together.

    Args:
        scenario: where.
        names: whom.
        users: cells that use it.
    """

    scenario: Scenario
    names: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)


def cells(chosen: Sequence[Scenario], plan: Sequence[Scenario]) -> list[Cell]:
    """What has to be swept for the chosen cells."""
    found: dict[str, Cell] = {}
    for scenario in chosen:
        for name in scenario.contenders:
            if not scenario.swept or plain(name) not in PEERS:
                continue
            source = stands_for(scenario, name, plan)
            cell = found.setdefault(key(source), Cell(source))
            known = name if name in source.contenders else plain(name)
            if known not in cell.names:
                cell.names.append(known)
            if key(scenario) not in cell.users:
                cell.users.append(key(scenario))
    return list(found.values())


def planned(todo: Sequence[Cell]) -> float:
    """Seconds that the sweep is thought to take."""
    return sum(len(_cases(one)) * _turn(one.scenario) * ROUNDS for one in todo)


def _seconds(scenario: Scenario) -> float:
    return SECONDS.get(scenario.group, 0.2)


def _turn(scenario: Scenario) -> float:
    return _seconds(scenario) * 1.25 * (ROUNDS + 0.5) / ROUNDS + START / ROUNDS


def _cases(cell: Cell) -> dict[tuple[str, float], Case]:
    found = {}
    for name in cell.names:
        contender = CONTENDERS[plain(name)]
        for value in contender.values:
            case = cell.scenario.case_of(name)
            found[name, value] = replace(case, settings={**case.settings, str(contender.setting): value})
    return found


def run(
    todo: Sequence[Cell], path: Path, command: str, quick: bool, directories: Directories, progress: Progress
) -> None:
    """Sweep, and write the file; cells of an earlier sweep that are not swept now stay in it."""
    start = time.monotonic()
    earlier = {cell["id"]: cell for cell in (read(path) or {"cells": []})["cells"]}
    found = head("sweep", "the peers' own settings", command, quick, directories) | {"note": NOTE}
    found["cells"] = list(earlier.values())
    write(path, found)
    for cell in todo:
        earlier[key(cell.scenario)] = _swept(cell, directories, progress)
        found["cells"] = list(earlier.values())
        found["seconds"] = time.monotonic() - start
        write(path, found)


def _swept(cell: Cell, directories: Directories, progress: Progress) -> dict[str, Any]:
    scenario, turn = cell.scenario, _turn(cell.scenario)
    contenders: dict[str, Any] = {}
    cases: dict[str, tuple[Case, str | None]] = {}
    labels = {}
    for (name, value), case in _cases(cell).items():
        try:
            cases[f"{name} {value:g}"] = (case, directories.of(name))
            labels[f"{name} {value:g}"] = name
        except LookupError:
            progress.advance(key(scenario), turn * ROUNDS)

    def after_each(label: str) -> None:
        progress.advance(f"sweep of {label}, {key(scenario)}", turn)

    outcomes = interleaved(cases, ROUNDS, _seconds(scenario), after_each=after_each)
    for name in cell.names:
        tried = [entry(outcomes[label], cases[label][0]) for label, whose in labels.items() if whose == name]
        for one in tried:
            one["samples"] = [{k: v for k, v in sample.items() if k != "histogram"} for sample in one["samples"]]
        contenders[name] = {"best": choose(tried, scenario.best), "tried": tried}
    return {
        "id": key(scenario),
        "chosen by": scenario.best,
        "used by": cell.users,
        "contenders": contenders,
    }


def choose(tried: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Any] | None:
    """The settings whose median figure is best, `None` if nothing was measured with any.

    Args:
        tried: entries with `settings` and `samples`.
        figure: the highest `rate` is best; of `p99` the lowest, and then the lowest `p50`; of others the lowest.
    """
    figures = ("p99", "p50") if figure == "p99" else (figure,)
    measured = [one for one in tried if one["samples"]]
    if not measured:
        return None

    def badness(one: Mapping[str, Any]) -> list[float]:
        medians = [_median(one["samples"], name) for name in figures]
        return [-one if name == "rate" else one for name, one in zip(figures, medians, strict=True)]

    return dict(min(measured, key=badness)["settings"])


def _median(samples: Sequence[Sample], figure: str) -> float:
    """A percentile that no answer reached is endless."""
    values = [sample.get(figure) for sample in samples]
    return statistics.median(math.inf if value is None else float(value) for value in values)
