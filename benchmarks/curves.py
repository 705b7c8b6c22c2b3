"""The simulator's two plots, drawn from `results/simulate.json` alone: `python -m benchmarks.curves`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"


class Look(NamedTuple):
    """How a contender is drawn, in both plots."""

    label: str
    colour: str
    marker: str = ""
    dashes: Any = "-"
    width: float = 1.4


BLACK = "#000000"
LOOKS = {
    "adaptive": Look("ubatch, adaptive", "#0072b2", "o", width=3.4),
    "greedy": Look("greedy", "#e69f00", ".", (0, (3, 2))),
    "BentoML's rule": Look("BentoML's rule", "#882255", "v", (0, (1, 1.5))),
    "window 10 ms": Look("window of 10 ms", "#7a8b2a", "d", width=2.0),
    "polled window (ubatch 1.0)": Look("ubatch 1.0.0, 10 ms", "#56b4e9", "s"),
    "sleep if not full (batched)": Look("batched, 10 ms", "#d55e00", "^", (0, (4, 1.5))),
    "no batching": Look("no batching", "#7f7f7f", "X"),
}
"""In the order in which they are drawn and, at one height, named. Okabe and Ito's colours, as in the other plots."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}

Line = dict[float, float]
Draw = Callable[[Any, Mapping[str, Any]], dict[str, Line]]


def draw(result: Mapping[str, Any], folder: Path) -> list[str]:
    """Draw both plots into a folder; their names."""
    import matplotlib

    plots: dict[str, tuple[str, Draw]] = {
        "simulate-latency.png": (
            "Open loop, random arrivals, one worker: mean latency against load (virtual time; log scale)",
            latency,
        ),
        "simulate-throughput.png": (
            "Closed loop, one worker: K callers that return within 5 % of the fixed cost; throughput as a share of the "
            "best possible (virtual time)",
            throughput,
        ),
    }
    with matplotlib.rc_context(STYLE):
        for name, (title, plot) in plots.items():
            _save(folder / name, title, plot, result)
    return list(plots)


def _save(path: Path, title: str, plot: Draw, result: Mapping[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = result["curves"]
    figure = Figure(figsize=(13, 3.9), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, (axes, name) in enumerate(zip(figure.subplots(1, len(curves)), curves, strict=True)):
        setting = result["settings"][name]
        costs = f"{setting['a'] * 1e3:g} ms + {setting['c'] * 1e3:g} ms per item"
        axes.set_title(f"{name}: {costs}, at most {setting['max_size']}")
        ends = plot(axes, curves[name])
        if number:
            axes.set_ylabel("")
        figure.canvas.draw()  # fixes the scales that labels are placed by
        _labels(axes, ends)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def latency(axes: Any, curves: Mapping[str, Any]) -> dict[str, Line]:
    """Milliseconds on a log scale, beside the exact optimum."""
    lines = {name: _points(curves[name]["latency"], 1e3) for name in LOOKS}
    lines = {name: line for name, line in lines.items() if line}
    best = _points(curves["bounds"]["optimal latency"], 1e3)
    axes.set_yscale("log")
    axes.set(xlabel="load, of the capacity in full batches", ylabel="mean latency", xlim=(0, 1))
    values = [value for line in lines.values() for value in line.values()]
    low, high = min(values) * 0.9, max(values) * 1.1
    axes.set_ylim(low, high)
    ticks = [t for t in (0.5, 1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 70, 100) if low <= t <= high]
    if high / low > 8:
        ticks = [tick for tick in ticks if tick not in (3, 7, 15, 25, 30, 40, 70)]
    axes.set_yticks(ticks, [f"{tick:g} ms" for tick in ticks])
    axes.minorticks_off()
    axes.set_xticks([0.05, 0.3, 0.5, 0.7, 0.95], ["5 %", "30 %", "50 %", "70 %", "95 %"])
    _lines(axes, lines)
    axes.plot(list(best), list(best.values()), color=BLACK, linewidth=1, linestyle=(0, (5, 3)), zorder=20)
    return lines | {"optimum": best}


def throughput(axes: Any, curves: Mapping[str, Any]) -> dict[str, Line]:
    """The share of X*, the closed form."""
    best = _points(curves["bounds"]["X*"])
    places = {callers: place for place, callers in enumerate(best)}
    lines = {
        name: {places[at]: done / best[at] for at, done in _points(curves[name]["throughput"]).items()}
        for name in LOOKS
    }
    axes.set(xlabel="K, callers", ylabel="items/s over the best possible", ylim=(0, 1.06))
    axes.set_xlim(-0.2, len(places) - 0.8)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xticks(list(places.values()), [f"{callers:g}" for callers in places])
    axes.axhline(1, color=BLACK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    _lines(axes, lines)
    return lines


def _points(line: Mapping[Any, float], scale: float = 1.0) -> Line:
    return {float(x): scale * y for x, y in line.items()}  # keys are strings if they come from a file


def _lines(axes: Any, lines: Mapping[str, Line]) -> None:
    """Thick ones below, so that thin ones at the same place are seen on them."""
    for place, (name, line) in enumerate(lines.items()):
        look = LOOKS[name]
        axes.plot(
            list(line),
            list(line.values()),
            color=look.colour,
            linestyle=look.dashes,
            linewidth=look.width,
            marker=look.marker,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=5 + place,
            clip_on=False,
        )


def _labels(axes: Any, lines: Mapping[str, Line]) -> None:
    """Each line's name at its right end, moved apart where they would overlap, with a thin leader."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right = max(x for line in lines.values() for x in line)
    ends: list[tuple[float, float, float, Look]] = []
    for name, line in lines.items():
        look = LOOKS.get(name, Look(name, BLACK))
        x, y = list(line.items())[-1]
        if x < right:  # it ends early, as it can serve no more: named there
            axes.annotate(look.label, (x, y), (0, 6), textcoords="offset points", ha="center", color=look.colour)
        else:
            ends.append((to_axes.transform((x, y))[1], x, y, look))
    ends.reverse()  # at one height in the order of LOOKS, from above
    ends.sort(key=lambda end: round(end[0], 2))
    for (_, x, y, look), place in zip(ends, _apart([end[0] for end in ends], 0.068), strict=True):
        axes.annotate(
            look.label,
            xy=(x, y),
            xytext=(1.08, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=look.colour,
            fontweight="bold" if look.width > 3 else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.5, "relpos": (0, 0.5)}
            | {"shrinkA": 1, "shrinkB": 5},
        )


def _apart(wanted: list[float], gap: float) -> list[float]:
    """Places near the wanted ones, which are in order, at least `gap` apart and within the height."""
    places = list(wanted)
    for _ in range(300):
        for one in range(len(places) - 1):
            lacking = gap - (places[one + 1] - places[one])
            if lacking > 1e-6:
                places[one] -= lacking / 2
                places[one + 1] += lacking / 2
        places = [min(max(place, 0.0), 0.96) for place in places]
    return places


if __name__ == "__main__":
    print(*draw(json.loads((RESULTS / "simulate.json").read_text(encoding="utf-8")), RESULTS))
