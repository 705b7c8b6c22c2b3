"""Raw samples to lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from _case import Sample
from _harness import quartiles
from _scenarios import Row, Scenario

Line = tuple[str, ...]

HEAD: Line = ("", "ubatch", "beside", "", "compared", "quartiles", "aim", "", "")

UNITS = {
    "µs": (1e6, "{:,.1f} µs"),
    "ms": (1e3, "{:,.1f} ms"),
    "k/s": (1e-3, "{:,.1f} k/s"),
    "bytes": (1.0, "{:,.0f} B"),
    "kB": (1e-3, "{:,.1f} kB"),
    "": (1.0, "{:,.1f}"),
}
"""Of the figures in the samples: by how much to multiply, how to write."""


def lines(
    chosen: Sequence[Scenario], samples: Mapping[str, Mapping[str, list[Sample]]], copies: Sequence[str]
) -> Iterator[Line]:
    """The table.

    Args:
        chosen: what was to be measured.
        samples: by title and contender, one a round; a scenario whose module is missing is not in it.
        copies: names of other copies of ubatch that were measured too.
    """
    yield HEAD
    for scenario in chosen:
        if scenario.title not in samples:
            yield (scenario.title, *[""] * 7, f"not measured: {scenario.needs} is not installed")
            continue
        title = scenario.title
        figures = {row.figure: Row(row.figure, row.unit, None, above=row.above) for row in scenario.rows}
        beside_copies = [(row, name) for row in figures.values() for name in copies]
        for row, other in [*((row, row.beside) for row in scenario.rows), *beside_copies]:
            yield (title, *_compared(row, samples[scenario.title], other))
            title = ""


def missing(scenario: Scenario) -> bool:
    """Whether it cannot be measured here."""
    return scenario.needs is not None and find_spec(scenario.needs) is None


def _compared(row: Row, samples: Mapping[str, list[Sample]], other: str | None) -> Line:
    scale, form = UNITS[row.unit]

    def column(contender: str) -> list[float]:
        return [sample[row.figure] for sample in samples[contender]]

    def shown(value: float) -> str:
        return form.format(value * scale)

    ours = column("ubatch")
    theirs = ours if other is None else column(other)
    if other is None:
        compared, write = ours, shown
    elif row.above:
        compared, write = [a - b for a, b in zip(ours, theirs, strict=True)], shown
    else:
        compared, write = [a / b for a, b in zip(ours, theirs, strict=True)], "{:.2f}".format
    low, middle, high = quartiles(compared)
    aim = row.aim and (f"≤ {write(row.aim.most)}" if row.aim.most is not None else f"≥ {write(row.aim.least or 0)}")
    name = row.figure if row.figure in ("mean batch", "p99", "wake-ups") else ""
    return (
        shown(quartiles(ours)[1]),
        other or "",
        shown(quartiles(theirs)[1]) if other else "",
        "" if other is None else f"+{write(middle)}" if row.above else f"{write(middle)} times",
        f"{write(low)} to {write(high)}",
        aim or "",
        "" if row.aim is None else "met" if row.aim.met(middle) else "MISSED",
        "; ".join(filter(None, (name, row.remark))),
    )


def text(table: Sequence[Line]) -> str:
    """The lines in columns."""
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD) - 1)]
    right = {1, 3, 4}
    rows = [
        "  ".join(
            [
                *(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=False))),
                line[-1],
            ]
        ).rstrip()
        for line in table
    ]
    return "\n".join([rows[0], "-" * max(map(len, rows)), *rows[1:]])
