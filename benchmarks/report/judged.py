"""Targets beside results: met, missed, or not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.contenders import PEERS
from benchmarks.targets import BEST_PEER, IDEAL, TARGETS, Target

from .readings import FIGURES, Cell, Results, Spread, quartiles, ratio, ratio_shown, shown, spread_shown, times

MET, MISSED, UNKNOWN = "met", "MISSED", "not measured"


@dataclass(frozen=True)
class Judged:
    """What became of a target.

    Args:
        target: the target.
        title: the cell and the figure.
        aim: the bound in words.
        measured: the median and the quartiles, or why there are none.
        verdict: `MET`, `MISSED` or `UNKNOWN`.
    """

    target: Target
    title: str
    aim: str
    measured: str
    verdict: str


def judge(results: Results, targets: Iterable[Target] = TARGETS) -> list[Judged]:
    """All targets, in their order; one with several to stand beside, once for each."""
    return [_judged(results, target, beside) for target in targets for beside in target.beside or ("",)]


def _judged(results: Results, target: Target, beside: str) -> Judged:
    about = FIGURES[target.figure]
    title = f"{target.group}, {target.cell}: {about.title}" + (
        f" of {target.contender}" if target.contender != "ubatch" else ""
    )
    aim = _aim(target, beside)
    group = results.groups.get(target.group)
    cell = next((cell for cell in group.cells if cell.id == target.cell), None) if group else None
    if cell is None:
        return Judged(target, title, aim, "", UNKNOWN)
    against = cell.best(target.figure, PEERS) if beside == BEST_PEER else beside
    spread = _spread(cell, target, against)
    if against is None or spread is None:
        return Judged(target, title, aim, _why(cell, (target.contender, against or "")), UNKNOWN)
    plain = target.above or not beside
    text = spread_shown(spread, FIGURES[target.figure].unit) if plain else ratio_shown(spread)
    if beside == BEST_PEER:
        text += f", {against}"
    return Judged(target, title, aim, text, MET if target.met(spread[1]) else MISSED)


def _spread(cell: Cell, target: Target, beside: str | None) -> Spread | None:
    """Quartiles of the figure, of its ratios or of its distances, round by round."""
    ours = cell.entries[target.contender].column(target.figure) if target.contender in cell.entries else []
    if not ours or beside is None:
        return None
    if beside == IDEAL:
        ideal = cell.ideal.get(target.figure)
        return quartiles([value / ideal for value in ours]) if ideal else None
    if not beside:
        return quartiles(ours)
    if beside not in cell.entries:
        return None
    pairs = list(zip(ours, cell.entries[beside].column(target.figure)))  # noqa: B905 (one may have crashed)
    compare = (lambda one, other: one - other) if target.above else ratio
    known = [value for value in (compare(one, other) for one, other in pairs) if not math.isnan(value)]
    return quartiles(known) if known else None


def _why(cell: Cell, names: Sequence[str]) -> str:
    reasons = [f"{name}: {cell.entries[name].reason}" for name in names if name in cell.entries]
    return "; ".join(reason for reason in reasons if not reason.endswith(": "))


def _aim(target: Target, beside: str) -> str:
    bounds = (("≥", target.least), ("≤", target.most))
    words = " and ".join(f"{sign} {_written(target, beside, bound)}" for sign, bound in bounds if bound is not None)
    names = {"": "", BEST_PEER: " × the best peer", IDEAL: " of the ideal"}
    return words + names.get(beside, f" {'above' if target.above else '×'} {beside}")


def _written(target: Target, beside: str, value: float) -> str:
    return times(value) if beside and not target.above else shown(value, FIGURES[target.figure].unit)
