"""The plots whose contenders stand side by side as bars, each with its value at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.contenders import plain

from .looks import LOOKS, in_order, look, measured
from .readings import Cell, Group, Results, Spread, shown

COUNTS = {"threads": (8, 64, 256), "tasks": (1, 64, 1000)}

ROWS = (
    ("threads", "free", "free to use all cores"),
    ("threads", "one core", "pinned to one core"),
    ("tasks", "free", "one event loop"),
)
"""Who calls, on which cores, and how that is said."""


def handover(figure: Any, results: Results) -> bool:
    """Items per second of a handler that does nothing, from threads and from tasks."""
    rows: list[tuple[str, dict[int, Cell]]] = []
    for face, cores, said in ROWS:
        group = results.groups.get(face)
        found: dict[int, Cell] = {}
        for cell in group.find(face=face, cores=cores, handler="no-op") if group else ():
            if cell.case["callers"] in COUNTS[face]:
                found.setdefault(cell.case["callers"], cell)
        if any(entry.column("rate") for cell in found.values() for entry in cell.entries.values()):
            rows.append((f"{{}} {face}, {said}", found))
    spreads = [_spreads(cell, "rate") for _, cells in rows for cell in cells.values()]
    values = [spread[1] for each in spreads for spread in each.values() if 0 < spread[1] < math.inf]
    if not values:
        return False
    low, high = 10 ** math.floor(math.log10(min(values)) - 0.05), max(values) * 1.15
    heights = [len(_who(cells.values())) for _, cells in rows]
    figure.set_size_inches(10, 0.8 + 0.21 * sum(heights) + 0.75 * len(rows))
    columns = max(len(cells) for _, cells in rows)
    grid = figure.subplots(len(rows), columns, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, (title, cells) in enumerate(rows):
        everyone = _who(cells.values())
        for axes in grid[row][len(cells) :]:
            axes.set_visible(False)
        for column, (count, axes) in enumerate(zip(sorted(cells), grid[row], strict=False)):
            spread = _spreads(cells[count], "rate")
            _bars(axes, everyone, spread, low, "/s", named=not column, why=_reasons(cells[count]))
            axes.set(xscale="log", xlim=(low, high * (high / low) ** 0.3))
            axes.set_title(title.format(f"{count:,}").replace("1 tasks", "1 task"), loc="left", fontweight="bold")
            _powers(axes, low, high)
            if row == len(rows) - 1:
                axes.set_xlabel("items/s (log scale)")
    figure.suptitle("Hand-over: a handler that does nothing", x=0.01, ha="left", fontsize=11)
    return True


def service(figure: Any, group: Group) -> bool:
    """Requests per second and p99 of the service, by worker class and number of clients."""
    cells = [cell for cell in group.cells if any(entry.column("rate") for entry in cell.entries.values())]
    if not cells:
        return False
    heights = [len(_who([cell])) for cell in cells]
    figure.set_size_inches(10, 0.9 + 0.22 * sum(heights) + 0.5 * len(cells))
    grid = figure.subplots(len(cells), 2, sharex="col", squeeze=False, gridspec_kw={"height_ratios": heights})
    rates = [spread[2] for cell in cells for spread in _spreads(cell, "rate").values()]
    tails = [s[1] for cell in cells for s in _spreads(cell, "p99").values() if 0 < s[1] < math.inf] or [1e-3, 1]
    low, high = 10 ** math.floor(math.log10(min(tails)) - 0.05), max(tails)
    for row, cell in enumerate(cells):
        names, why = _who([cell]), _reasons(cell)
        rate, tail = grid[row]
        _bars(rate, names, _spreads(cell, "rate"), 0, "/s", named=True, why=why)
        rate.set(xlim=(0, max(rates) * 1.12))
        _bars(tail, names, _spreads(cell, "p99"), low, "s", named=False, why=why)
        tail.set(xscale="log", xlim=(low, high * (high / low) ** 0.2))
        rate.set_title(cell.id, loc="left", fontweight="bold")
        _powers(tail, low, high, "s")
    grid[-1][0].set_xlabel("requests/s (more is better)")
    grid[-1][1].set_xlabel("p99 of the latency (log scale, less is better)")
    figure.suptitle(group.title, x=0.01, ha="left", fontsize=11)
    return True


def _spreads(cell: Cell, figure: str) -> Mapping[str, Spread]:
    found = {name: cell.entries[name].spread(figure) for name in measured([cell], figure)}
    return {name: spread for name, spread in found.items() if spread}


def _reasons(cell: Cell) -> dict[str, str]:
    """Who should have a bar and has none; not those that cannot be called so."""
    said = {name: entry.reason.partition(":")[0] for name, entry in cell.entries.items() if not entry.samples}
    return {name: why for name, why in said.items() if plain(name) in LOOKS and why in ("failed", "not installed")}


def _who(cells: Iterable[Cell]) -> list[str]:
    """Who gets a row: those with a throughput, and those that failed."""
    each = list(cells)
    return in_order([*measured(each, "rate"), *(name for cell in each for name in _reasons(cell))])


def _bars(
    axes: Any,
    names: Sequence[str],
    spreads: Mapping[str, Spread],
    low: float,
    unit: str,
    *,
    named: bool,
    why: Mapping[str, str],
) -> None:
    """A bar for each name that has a value, a line from quartile to quartile, and the median behind it."""
    for place, name in enumerate(names):
        if name not in spreads:
            said = {"va": "center", "fontsize": 8, "color": "#666666", "textcoords": "offset points"}
            axes.annotate(why.get(name, "not measured"), (0, place), (3, 0), ("axes fraction", "data"), **said)
            continue
        below, middle, above = spreads[name]
        style = look(name)
        if math.isinf(middle):
            text, end = "not answered", low or 0
        else:
            bare = not style.marker
            axes.barh(
                place, middle - low, left=low, height=0.72, color="white" if bare else style.colour,
                edgecolor=style.colour, linewidth=0.8, linestyle=style.dashes if bare else "-",
            )  # fmt: skip
            axes.plot([below, min(above, 1e12)], [place, place], color="#222222", linewidth=1.1, solid_capstyle="butt")
            text, end = shown(middle, unit), max(middle, min(above, middle * 2))
        axes.annotate(
            text, (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8,
            fontweight="bold" if style.width > 2 else "normal",
        )  # fmt: skip
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names if named else [""] * len(names))
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if look(name).width > 2 else "normal")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _powers(axes: Any, low: float, high: float, unit: str = "") -> None:
    ticks = [10.0**power for power in range(-6, 9) if low <= 10.0**power <= high]
    if unit:
        words = [shown(tick, unit).replace(".00", "").replace(".0", "") for tick in ticks]
    else:
        words = [f"{tick:,.0f}" if tick < 1e4 else f"{tick / 1e3:,.0f} k" if tick < 1e6 else "1 M" for tick in ticks]
    axes.set_xticks(ticks, words)
    axes.minorticks_off()
