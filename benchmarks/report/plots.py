"""Plots of the results: a contender has the same colour, mark and place in all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import plain

from .bars import handover, service
from .looks import FACES, HANDLERS, STYLE, look, measured
from .readings import Cell, Group, Results, Spread, is_ours, shown


def draw(results: Results, folder: Path) -> list[str]:
    """Draw what there are results for; the names of the files, all in `folder`."""
    import matplotlib

    plots: dict[str, tuple[str, Callable[[Any, Group], bool]]] = {
        "throughput.png": ("closed-loop", throughput),
        "latency.png": ("open-loop", latency),
        "service.png": ("service", service),
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (group, plot) in plots.items():
            if group in results.groups and _saved(folder / name, lambda f: plot(f, results.groups[group])):  # noqa: B023
                written.append(name)
        if _saved(folder / "handover.png", lambda figure: handover(figure, results)):
            written.insert(min(2, len(written)), "handover.png")
    return written


def _saved(path: Path, plot: Callable[[Any], bool]) -> bool:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    drawn = plot(figure)
    if drawn:
        figure.savefig(path, dpi=170, metadata={"Software": None})
    return drawn


def throughput(figure: Any, group: Group) -> bool:
    """Throughput over the closed form against the number of callers."""
    cells = [cell for cell in group.cells if cell.ideal.get("rate") and cell.case.get("cores", "free") == "free"]
    faces = [face for face in FACES if measured(cells, "rate", face)]
    handlers = [handler for handler in HANDLERS if any(cell.case.get("handler") == handler for cell in cells)]
    if not faces or not handlers:
        return False
    figure.set_size_inches(10, 0.6 + 2.75 * len(faces))
    grid = figure.subplots(len(faces), len(handlers), sharex=True, sharey=True, squeeze=False)
    counts = sorted({cell.case["callers"] for cell in cells})
    for row, face in enumerate(faces):
        for column, handler in enumerate(handlers):
            axes = grid[row][column]
            some = [cell for cell in cells if cell.case.get("handler") == handler]
            lines = _by(some, "callers", counts, measured(some, "rate", face), Cell.of_ideal)
            axes.axhline(1, color="#999999", linewidth=1, zorder=1)
            _lines(axes, lines)
            axes.set(xlim=(-0.2, len(counts) - 1 + 0.15), ylim=(0, 1.08))
            axes.set_xticks(range(len(counts)), [f"{count:,}" for count in counts])
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
            if not row:
                axes.set_title(HANDLERS[handler], loc="left", fontweight="bold")
            if row == len(faces) - 1:
                axes.set_xlabel("callers")
            _labels(axes, lines, gap=0.083, arrows={})
        grid[row][0].set_ylabel(f"items/s over the ideal,\n{FACES[face]}")
    figure.suptitle("Closed loop: throughput as a share of what the handler allows", x=0.01, ha="left", fontsize=11)
    return True


Points = Sequence[tuple[float, Spread]]


def _by(
    cells: Sequence[Cell],
    key: str,
    values: Sequence[Any],
    names: Sequence[str],
    read: Callable[[Cell, str], Spread | None],
) -> dict[str, Points]:
    """For each name, what is read of its cells, at the place of the case's value among all."""
    lines: dict[str, Points] = {}
    for name in names:
        read_off = {cell.case[key]: read(cell, name) for cell in cells if name in cell.entries}
        lines[name] = [(values.index(value), spread) for value, spread in sorted(read_off.items()) if spread]
    return lines


def _lines(axes: Any, lines: Mapping[str, Points]) -> None:
    """Medians joined, a bar from quartile to quartile at each."""
    for place, (name, points) in enumerate(lines.items()):
        style = look(name)
        finite = [(x, spread) for x, spread in points if math.isfinite(spread[1])]
        ours = is_ours(name)
        order = 10 - place * 0.1 + (5 if ours else 0)
        xs, middles = [x for x, _ in finite], [spread[1] for _, spread in finite]
        axes.plot(xs, middles, color=style.colour, linestyle=style.dashes, linewidth=style.width, zorder=order)
        if style.marker or len(xs) == 1:  # a line of one point would not be seen
            edge = {"markeredgecolor": "white", "markeredgewidth": 0.5} if style.marker else {}
            dot = {"marker": style.marker or "_", "markersize": 5, "linestyle": "", **edge}
            axes.plot(xs, middles, color=style.colour, zorder=order + 0.05, **dot)
        for x, (low, _, high) in finite:
            axes.vlines(x, low, min(high, 1e9), color=style.colour, linewidth=1, alpha=0.6, zorder=order)


def _labels(axes: Any, lines: Mapping[str, Points], gap: float, arrows: Mapping[str, float]) -> None:
    """Each line's name at its right end, moved apart where they would overlap, with a thin leader.

    Args:
        axes: where.
        lines: what is drawn.
        gap: the least distance between names, as a share of the height.
        arrows: names whose last point is an arrow, and where it is.
    """
    ends = {name: (points[-1][0], points[-1][1][1]) for name, points in lines.items() if points}
    ends |= {name: (x, arrows[name]) for name, (x, y) in ends.items() if name in arrows and math.isinf(y)}
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [to_axes.transform(end)[1] for end in ends.values()]
    for (name, end), at in zip(ends.items(), _apart(wanted, gap), strict=True):
        style = look(name)
        leader = {"arrowstyle": "-", "color": style.colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            plain(name) + (" ↑" if end[1] == arrows.get(name) else ""),
            xy=end,
            xytext=(1.07, at),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=style.colour,
            fontweight="bold" if style.width > 2 else "normal",
            annotation_clip=False,
            arrowprops=leader,
        )


def _apart(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Places near the wanted ones, in their order, at least `gap` apart, within the bounds if they have room."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    places = [min(max(wanted[index], low), high) for index in order]
    for _ in range(200):  # push pairs apart until all fit; few labels, so this settles fast
        for one in range(len(places) - 1):
            lacking = gap - (places[one + 1] - places[one])
            if lacking > 1e-6:
                places[one] -= lacking / 2
                places[one + 1] += lacking / 2
        places = [min(max(place, low), high) for place in places]
    found = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        found[index] = place
    return found


def latency(figure: Any, group: Group) -> bool:
    """p50 and p99 against the load."""
    cells = [cell for cell in group.cells if cell.case.get("load") and cell.case.get("burst", 1) == 1]
    faces = [face for face in FACES if measured(cells, "p50", face)]
    handlers = [handler for handler in HANDLERS if any(cell.case.get("handler") == handler for cell in cells)]
    rows = [(face, percentile) for face in faces for percentile in ("p50", "p99")]
    values = [v for cell in cells for e in cell.entries.values() for p in ("p50", "p99") for v in e.column(p)]
    finite = [value for value in values if 0 < value < math.inf]
    if not handlers or not finite:
        return False
    figure.set_size_inches(10, 0.6 + 2.45 * len(rows))
    grid = figure.subplots(len(rows), len(handlers), sharex=True, sharey=True, squeeze=False)
    loads = sorted({cell.case["load"] for cell in cells})
    low, high = 10 ** math.floor(math.log10(min(finite) * 0.8)), 10 ** math.ceil(math.log10(max(finite) * 1.6))
    for row, (face, percentile) in enumerate(rows):
        for column, handler in enumerate(handlers):
            axes = grid[row][column]
            axes.set(yscale="log", xlim=(-0.15, len(loads) - 1 + 0.12), ylim=(low, high))
            some = [cell for cell in cells if cell.case.get("handler") == handler]
            names = measured(some, percentile, face)
            lines = _by(some, "load", loads, names, lambda cell, name: cell.entries[name].spread(percentile))  # noqa: B023
            _lines(axes, lines)
            _labels(axes, lines, gap=0.092, arrows=_unanswered(axes, lines, high))
            axes.set_xticks(range(len(loads)), [f"{load:.0%}".replace("%", " %") for load in loads])
            _seconds(axes, low, high)
            if not row:
                axes.set_title(HANDLERS[handler], loc="left", fontweight="bold")
            if row == len(rows) - 1:
                axes.set_xlabel("load, of the capacity in full batches")
        grid[row][0].set_ylabel(f"{percentile}, {FACES[face]}".replace(" of one", "\nof one"))
    title = "Open loop, random arrivals: latency (log scale; ↑ arrivals that were not answered in time)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return True


def _unanswered(axes: Any, lines: Mapping[str, Points], top: float) -> dict[str, float]:
    """An arrow at the upper edge where too few arrivals were answered for the percentile to exist; their heights."""
    lost = {name: [x for x, spread in points if math.isinf(spread[1])] for name, points in lines.items()}
    heights = {name: top / 1.35 / 1.9**row for row, name in enumerate(name for name, places in lost.items() if places)}
    for name, height in heights.items():
        style = {"color": look(name).colour, "linestyle": "", "clip_on": False}
        axes.plot(lost[name], [height] * len(lost[name]), marker="$\\uparrow$", markersize=7, **style)
    return heights


def _seconds(axes: Any, low: float, high: float) -> None:
    decades = [10.0**power for power in range(-6, 4) if low <= 10.0**power <= high]
    axes.set_yticks(decades, [shown(value, "s").replace(".00", "").replace(".0", "") for value in decades])
    axes.minorticks_off()
