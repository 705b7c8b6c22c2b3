"""The results folder as objects, and the statistics that tables and plots share.

Nothing is measured here, and nothing but the files is looked at: what a report says can be checked against them.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import PEERS, plain

OURS = "ubatch"

ORDER = ("round-trip", "threads", "tasks", "closed-loop", "open-loop", "bursts", "service", "memory", "import")
"""The groups' files, without `.json`, in the order of every report."""


@dataclass(frozen=True)
class Figure:
    """A key of the samples.

    Args:
        title: heads its column.
        unit: `s`, `B`, `/s`, `share` or none.
        more: whether more of it is better.
    """

    title: str
    unit: str
    more: bool = False


FIGURES = {
    "time": Figure("time", "s"),
    "rate": Figure("throughput", "/s", more=True),
    "bandwidth": Figure("payload", "B/s", more=True),
    "mean": Figure("mean", "s"),
    "p50": Figure("p50", "s"),
    "p99": Figure("p99", "s"),
    "p99.9": Figure("p99.9", "s"),
    "burst p50": Figure("p50 of whole bursts", "s"),
    "burst p99": Figure("p99 of whole bursts", "s"),
    "answered": Figure("answered", "share", more=True),
    "cpu": Figure("CPU time per item", "s"),
    "mean batch": Figure("mean batch", "", more=True),
    "wake-ups": Figure("wake-ups per batch", ""),
    "memory": Figure("memory", "B"),
    "idle cpu": Figure("of a core, all of them idle", "share"),
}

FACES = ("threads", "tasks", "greenlets")

TASKS_ONLY = ("async-batcher", "aqueduct", f"{OURS}.aio")

ALONE = ("none", "unbatched")
"""What there is without batching."""

_NUMBER = re.compile(r"([\d.,-]*)(.*)")

Spread = tuple[float, float, float]
"""Lower quartile, median, upper quartile."""


def is_ours(name: str) -> bool:
    """Whether it is this project, by whatever face: `ubatch`, `ubatch, tasks`, `ubatch.aio`."""
    return plain(name) in (OURS, f"{OURS}.aio")


@dataclass(frozen=True)
class Entry:
    """One contender in one cell.

    Args:
        name: the contender's.
        settings: its own, as it was measured.
        samples: one for each round.
        missing: why it was not measured.
        error: the last line of its crash; rounds before it count.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    missing: str = ""
    error: str = ""

    def column(self, figure: str) -> list[float]:
        """The figure of each round. A percentile that no answer reached (`null`) is infinite."""
        values = (sample[figure] for sample in self.samples if figure in sample)
        return [math.inf if value is None else float(value) for value in values]

    def spread(self, figure: str) -> Spread | None:
        """The quartiles of the rounds; `None` if the figure was not measured."""
        column = self.column(figure)
        return quartiles(column) if column else None

    def median(self, figure: str) -> float | None:
        """The median of the rounds; `None` if the figure was not measured."""
        spread = self.spread(figure)
        return spread[1] if spread else None

    @property
    def reason(self) -> str:
        """Why there is less than there should be; empty if all is there."""
        if self.missing:
            return self.missing
        if self.error:
            rounds = len(self.samples)
            return f"failed{f' after {rounds} rounds' if rounds else ''}: {self.error}"
        return "" if self.samples else "no rounds"


@dataclass(frozen=True)
class Cell:
    """What several contenders measured in turns."""

    id: str
    case: Mapping[str, Any]
    ideal: Mapping[str, float]
    entries: Mapping[str, Entry]

    def face(self, name: str) -> str:
        """How a contender was called: by `threads`, `tasks` or `greenlets`."""
        said = name.partition(", ")[2]
        if said in FACES:
            return said
        return "tasks" if plain(name) in TASKS_ONLY else str(self.case.get("face", "threads"))

    def ours(self, name: str) -> str:
        """Our face that another contender is compared with: called as that is, if that was measured."""
        found = [one for one, entry in self.entries.items() if is_ours(one) and entry.samples]
        alike = [one for one in found if self.face(one) == self.face(name)] or found
        return next((one for one in alike if plain(one) == f"{OURS}.aio"), alike[0] if alike else OURS)

    def better(self, name: str, figure: str, ours: str | None = None) -> Spread | None:
        """How many times better ours is than `name`: quartiles of the ratios of rounds that took turns.

        Args:
            name: a contender.
            figure: what is compared.
            ours: which of our faces; by default `self.ours(name)`.
        """
        ours = ours or self.ours(name)
        if ours not in self.entries or name not in self.entries:
            return None
        return better(self.entries[ours].column(figure), self.entries[name].column(figure), FIGURES[figure].more)

    def of_ideal(self, name: str) -> Spread | None:
        """The throughput as a share of the closed form."""
        spread, ideal = self.entries[name].spread("rate"), self.ideal.get("rate")
        return tuple(value / ideal for value in spread) if spread and ideal else None  # type: ignore[return-value]

    def best(self, figure: str, names: Iterable[str] = PEERS, face: str | None = None) -> str | None:
        """The one whose median is best; `None` if none was measured.

        Args:
            figure: what is compared.
            names: contenders, by whatever face.
            face: only those called so.
        """
        wanted = tuple(names)
        some = [name for name in self.entries if plain(name) in wanted and face in (None, self.face(name))]
        found = {name: self.entries[name].median(figure) for name in some}
        measured = {name: value for name, value in found.items() if value is not None}
        if not measured:
            return None
        return (max if FIGURES[figure].more else min)(measured, key=lambda name: measured[name])


@dataclass(frozen=True)
class Group:
    """One file of the results."""

    name: str
    title: str
    cells: Sequence[Cell]
    facts: Mapping[str, Any]
    """The rest of the file: machine, contenders, command …"""

    def find(self, **case: Any) -> Iterator[Cell]:
        """The cells whose case has these values."""
        for cell in self.cells:
            if all(cell.case.get(key) == value for key, value in case.items()):
                yield cell

    def first(self, **case: Any) -> Cell | None:
        """The first of `find`."""
        return next(self.find(**case), None)

    def values(self, key: str, **case: Any) -> list[Any]:
        """The values that a key of the cases has, each once."""
        return list(dict.fromkeys(cell.case[key] for cell in self.find(**case) if key in cell.case))


@dataclass(frozen=True)
class Results:
    """All files of a results folder that are there."""

    groups: Mapping[str, Group]
    sweep: Mapping[str, Any]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """By file, why it could not be read."""

    def facts(self) -> Mapping[str, Any]:
        """Machine, command and so on, of the first group."""
        return next(iter(self.groups.values())).facts if self.groups else {}

    def contenders(self) -> dict[str, Mapping[str, Any]]:
        """By name, what the files say of versions and installation."""
        found: dict[str, Mapping[str, Any]] = {}
        for group in self.groups.values():
            for name, about in group.facts.get("contenders", {}).items():
                found.setdefault(name, about)
        return found


def load(folder: Path) -> Results:
    """Read a results folder. Files that are not there are left out; those that cannot be read are named."""
    groups, unreadable = {}, {}
    for name in ORDER:
        try:
            groups[name] = group_of(name, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable[f"{name}.json"] = f"{type(error).__name__}: {error}"
    sweep: Mapping[str, Any] = {}
    try:
        sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError as error:
        unreadable["sweep.json"] = f"{type(error).__name__}: {error}"
    return Results(groups, sweep, unreadable)


def group_of(name: str, file: dict[str, Any]) -> Group:
    """What a results file says."""
    about = file.get("contenders", {})
    cells = [
        Cell(
            id=cell["id"],
            case=cell.get("case", {}),
            ideal=cell.get("ideal") or {},
            entries={who: _entry(who, entry, about.get(who, {})) for who, entry in cell["contenders"].items()},
        )
        for cell in file["cells"]
    ]
    facts = {key: value for key, value in file.items() if key != "cells"}
    return Group(name, file.get("title", name), cells, facts)


def _entry(name: str, entry: Mapping[str, Any], about: Mapping[str, Any]) -> Entry:
    missing = entry.get("missing") or ""
    if not missing and about.get("installed") is False and not entry.get("samples"):
        missing = f"not installed: {about.get('error', 'no reason given')}"
    return Entry(
        name=name,
        settings=entry.get("settings") or {},
        samples=entry.get("samples") or (),
        missing=missing,
        error=str(entry.get("error") or ""),
    )


def quartiles(values: Sequence[float]) -> Spread:
    """The lower quartile, the median and the upper quartile; of a single value, that value. Values may be infinite."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    if all(map(math.isfinite, values)):
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, middle, high
    ordered = sorted(values)
    low, middle, high = (_between(ordered, (len(ordered) - 1) * quarter / 4) for quarter in (1, 2, 3))
    return low, middle, high


def _between(ordered: Sequence[float], place: float) -> float:
    below, share = int(place), place % 1
    if not share:
        return ordered[below]
    under, over = ordered[below], ordered[below + 1]
    return over if math.isinf(over) else under + share * (over - under)


def better(ours: Sequence[float], theirs: Sequence[float], more: bool) -> Spread | None:
    """How many times better ours is: the ratio of each pair of rounds, then quartiles. Above 1, ours is better."""
    pairs = list(zip(ours, theirs)) if more else list(zip(theirs, ours))  # noqa: B905 (one may have crashed)
    known = [value for value in itertools.starmap(ratio, pairs) if not math.isnan(value)]
    return quartiles(known) if known else None


def ratio(over: float, under: float) -> float:
    """Their ratio; not a number where there is nothing to compare."""
    if math.isinf(over) and math.isinf(under):
        return math.nan  # neither was answered: nothing to compare
    if under:
        return over / under
    return math.inf if over else math.nan


def shown(value: float | None, unit: str) -> str:
    """A value with its unit, to three figures."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "not answered"
    if unit == "share":
        return f"{100 * value:.3g} %"
    for least, scale, name in _SCALES.get(unit, ()):
        if abs(value) >= least:
            return f"{_three(value * scale)} {name}"
    return f"{_three(value)}{f' {unit}' if unit.isalpha() else unit}"


_SCALES = {
    "s": ((1.0, 1.0, "s"), (0.9995e-3, 1e3, "ms"), (0.9995e-6, 1e6, "µs"), (1e-12, 1e9, "ns")),
    "/s": ((999.5e3, 1e-6, "M/s"), (9995.0, 1e-3, "k/s")),
    "B/s": ((0.9995e9, 1e-9, "GB/s"), (1.0, 1e-6, "MB/s")),
    "B": ((0.9995e6, 1e-6, "MB"), (9995.0, 1e-3, "kB")),
}


def _three(value: float) -> str:
    """Three figures, without an exponent."""
    if abs(value) >= 99.95 or not value:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 9.995 else 2}f}"


def spread_shown(spread: Spread, unit: str) -> str:
    """The median, and the quartiles where they differ from it as shown."""
    low, middle, high = (shown(value, unit) for value in spread)
    if low == middle == high:
        return middle
    numbers, units = zip(*(_NUMBER.match(text).groups() for text in (low, middle, high)), strict=True)  # type: ignore
    if len(set(units)) == 1:  # it is said once
        low, _, high = numbers
    return f"{middle} ({low} to {high})"


def ratio_shown(spread: Spread) -> str:
    """The median of ratios, and the quartiles where they differ from it as shown."""
    low, middle, high = map(times, spread)
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def times(value: float) -> str:
    """A ratio, to three figures; to two if it is small."""
    if math.isinf(value):
        return "∞"
    return _three(value) if value >= 0.0995 else f"{value:.2g}"
