"""Results as tables: lines of text that the terminal and Markdown share, and the whole Markdown report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.contenders import PEERS, plain

from .judged import Judged
from .looks import in_order
from .readings import (
    ALONE,
    FIGURES,
    ORDER,
    Cell,
    Entry,
    Group,
    Results,
    is_ours,
    ratio_shown,
    shown,
    spread_shown,
    times,
)

COLUMNS = {
    "round-trip": ("time",),
    "threads": ("rate", "cpu", "mean batch"),
    "tasks": ("rate", "cpu", "mean batch", "wake-ups"),
    "closed-loop": ("rate", "of ideal", "p50", "p99", "mean batch"),
    "open-loop": ("mean", "p50", "p99", "p99.9", "answered", "mean batch"),
    "bursts": ("p50", "p99", "p99.9", "burst p50", "burst p99", "answered", "mean batch"),
    "service": ("rate", "p50", "p99", "mean batch"),
    "memory": ("memory", "idle cpu"),
    "import": ("time", "cpu"),
    "pipelines": ("rate", "bandwidth", "p50", "p99", "cpu", "mean batch"),
}
"""What is shown of each group, where its samples have it."""

COMPARED = {"threads": ("rate", "cpu"), "closed-loop": ("rate", "p99"), "open-loop": ("p50", "p99")}
COMPARED |= {"bursts": ("p50", "p99"), "service": ("rate", "p99"), "pipelines": ("rate", "p99")}
"""What ours and theirs are compared in; in the other groups, their first column."""

Line = tuple[str, ...]


def compared(group: Group) -> tuple[str, ...]:
    """The figures in which a group's contenders are compared."""
    return COMPARED.get(group.name, COLUMNS[group.name][:1])


def head(group: Group) -> Line:
    """The headings of a group's table."""
    names = {"of ideal": "of the ideal"} | {key: figure.title for key, figure in FIGURES.items()}
    figures = compared(group)
    ratios = [f"{names[figure]}: ours better, ×" for figure in figures]
    return ("contender", *(names[column] for column in _present(group)), *ratios)


def lines(group: Group, cell: Cell, mark: str = "{}", brief: bool = False) -> Iterator[Line]:
    """A line for each contender; a reason in place of the figures of one that has none.

    Args:
        group: what the cell belongs to.
        cell: what was measured in turns.
        mark: how a case that we lose is emphasised.
        brief: whether reasons are a word, and only figures that are compared have quartiles.
    """
    columns = _present(group)
    for name in in_order(cell.entries):
        entry = cell.entries[name]
        if not entry.samples:
            yield (
                name,
                entry.reason.partition(":")[0] if brief else entry.reason,
                *[""] * (len(columns) + len(compared(group)) - 1),
            )
            continue
        values = [_value(cell, entry, column) for column in columns]
        if brief:
            wide = (*compared(group), "of ideal")
            values = [v if c in wide else v.partition(" (")[0] for v, c in zip(values, columns, strict=True)]
        ratios = [_ratio(cell, name, figure, mark) for figure in compared(group)]
        yield (
            name + (f" ({entry.reason.partition(':')[0] if brief else entry.reason})" if entry.reason else ""),
            *values,
            *ratios,
        )


def _present(group: Group) -> tuple[str, ...]:
    entries = [entry for cell in group.cells for entry in cell.entries.values()]
    keys = {key for entry in entries for sample in entry.samples for key in sample}
    if any(cell.ideal.get("rate") for cell in group.cells):
        keys.add("of ideal")
    return tuple(column for column in COLUMNS[group.name] if column in keys) or COLUMNS[group.name][:1]


def _value(cell: Cell, entry: Entry, column: str) -> str:
    if column == "of ideal":
        share = cell.of_ideal(entry.name)
        return ratio_shown(share) if share else ""
    spread = entry.spread(column)
    return spread_shown(spread, FIGURES[column].unit) if spread else ""


def _ratio(cell: Cell, name: str, figure: str, mark: str) -> str:
    if name == cell.ours(name):
        return ""
    ratio = cell.better(name, figure)
    if ratio is None:
        return ""
    text = ratio_shown(ratio)
    lost = lost_to(cell, name, figure)
    return f"{text} {mark.format(lost)}" if lost else text


def lost_to(cell: Cell, name: str, figure: str, ours: str | None = None) -> str:
    """`lost`, `lost, within the spread`, or nothing. A bare loop bounds what can be had; nobody loses to it."""
    ratio = cell.better(name, figure, ours) if plain(name) in (*PEERS, *ALONE) else None
    if ratio is None or ratio[1] >= 1:
        return ""
    return "lost" if ratio[2] < 1 else "lost, within the spread"


def lost(results: Results) -> list[str]:
    """The cases that we lose, as sentences; those within the spread of the rounds are told apart."""
    found, nothing = [], []
    for group in results.groups.values():
        for cell in group.cells:
            faces = [ours for ours in cell.entries if is_ours(ours)]
            for figure, ours, name in itertools.product(compared(group), faces, cell.entries):
                how = lost_to(cell, name, figure, ours) if cell.face(ours) == cell.face(name) else ""
                if how and name in ALONE and cell.case.get("handler") == "no-op":
                    nothing.append(cell.better(name, figure, ours))
                elif how:
                    found.append(f"{group.name}, {cell.id}: {_less(cell, name, figure, ours)}")
                    found[-1] += " (within the spread of the rounds)" if how != "lost" else ""
    factors = [1 / ratio[1] for ratio in nothing if ratio and ratio[1]]
    if factors:
        spread = f"{times(min(factors))} to {times(max(factors))}"
        found.append(f"A handler that does nothing, called without a hand-over (none), is {spread} times better.")
    return found


def _less(cell: Cell, name: str, figure: str, ours: str) -> str:
    ratio = cell.better(name, figure, ours)
    assert ratio is not None
    share = ratio[1] if FIGURES[figure].more else 1 / ratio[1] if ratio[1] else math.inf
    return f"{FIGURES[figure].title} of {ours} is {times(share)} × that of {name}"


def absent(results: Results) -> list[str]:
    """What was not measured, and why: groups, contenders, cells."""
    found = [f"`{name}.json`: not there" for name in ORDER if name not in results.groups]
    found = [line for line in found if line.partition(":")[0].strip("`") not in results.unreadable]
    found += [f"`{name}`: unreadable: {reason}" for name, reason in results.unreadable.items()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for group in results.groups.values():
        for cell in group.cells:
            for name, entry in cell.entries.items():
                if entry.reason:
                    reasons.setdefault((name, entry.reason), []).append(f"{group.name}, {cell.id}")
    for (name, reason), cells in reasons.items():
        where = cells[0] if len(cells) == 1 else f"{len(cells)} cells, the first: {cells[0]}"
        found.append(f"{name}: {reason} ({where})")
    return found


def markdown_table(rows: Sequence[Line], right: Sequence[int] | None = None) -> str:
    """Rows, the first of them the heading, as a Markdown table; all columns but the first to the right."""
    columns = range(1, len(rows[0])) if right is None else right
    rule = ["---:" if column in columns else "---" for column in range(len(rows[0]))]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]])


def markdown(results: Results, judged: Sequence[Judged], plots: Sequence[str]) -> str:
    """The whole report."""
    parts = ["# Benchmarks", about(results), "## Targets"]
    parts.append(markdown_table(target_rows(judged), right=()) if judged else "None are given.")
    parts += ["## Lost", _listed(lost(results), "No case is lost to another contender.")]
    parts += ["## Not measured", _listed(absent(results), "Everything was measured.")]
    parts += [f"![{name.partition('.')[0]}]({name})" for name in plots]
    for group in results.groups.values():
        parts.append(f"## {group.title}")
        parts.append("Median of the rounds (lower quartile to upper quartile). " + _ran(group))
        for cell in group.cells:
            parts += [f"### {cell.id}", markdown_table([head(group), *lines(group, cell, "**{}**")])]
            if ideal := ", ".join(_ideal(name, value) for name, value in cell.ideal.items()):
                parts.append(f"Closed form: {ideal}.")
            if settings := settings_of(cell):
                parts.append(f"Settings: {settings}.")
    if rows := sweep_rows(results):
        parts += ["## Sweep", str(results.sweep.get("note", "")), markdown_table(rows, right=())]
    return "\n\n".join(part for part in parts if part) + "\n"


def sweep_rows(results: Results) -> list[Line]:
    """What was tried of the peers' own settings, and what was best."""
    rows: list[Line] = [("swept at", "chosen by", "contender", "best", "tried")]
    for cell in results.sweep.get("cells", ()):
        for name, one in cell.get("contenders", {}).items():
            tried = "; ".join(written_settings(each.get("settings", {})) for each in one.get("tried", ()))
            best = written_settings(one.get("best") or {}) or "none of them worked"
            rows.append((cell["id"], cell.get("chosen by", ""), name, best, tried))
    return rows if len(rows) > 1 else []


def _ideal(name: str, value: float) -> str:
    about = FIGURES.get(name)
    return f"{about.title if about else name} {shown(value, about.unit if about else '')}"


def _listed(sentences: Sequence[str], nothing: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) if sentences else nothing


def _ran(group: Group) -> str:
    rounds = sorted({len(entry.samples) for cell in group.cells for entry in cell.entries.values() if entry.samples})
    counted = " to ".join(dict.fromkeys(str(count) for count in rounds[:1] + rounds[-1:])) or "No"
    some = f"{counted} round{'' if rounds == [1] else 's'}"
    took = group.facts.get("seconds")
    return f"{some}, started {group.facts.get('started', 'at an unknown time')}" + (f", {took:.0f} s." if took else ".")


def settings_of(cell: Cell) -> str:
    """The contenders' own settings in a cell."""
    written = {name: written_settings(entry.settings) for name, entry in cell.entries.items() if entry.samples}
    return "; ".join(f"{name} {settings}" for name, settings in written.items() if settings)


def written_settings(settings: Mapping[str, Any]) -> str:
    """Settings as in a call."""
    return ", ".join(f"`{key}={value!r}`" for key, value in settings.items())


def about(results: Results) -> str:
    """Machine, date, command, versions."""
    facts = results.facts()
    lines = [f"- machine: {machine_shown(facts.get('machine', {}))}", f"- started: {facts.get('started', 'unknown')}"]
    commands = dict.fromkeys(group.facts.get("command") for group in results.groups.values())
    lines.append(f"- to repeat it: {', '.join(f'`{command}`' for command in commands if command) or 'unknown'}")
    if any(group.facts.get("quick") for group in results.groups.values()):
        lines.append("- **a quick run: few rounds, fewer cases; it shows that all works, not how well**")
    for name, contender in results.contenders().items():
        if contender.get("requirement") is None and contender.get("installed") is not False:
            continue  # nothing to install
        version = f" {contender['version']}" if contender.get("version") else ""
        known = contender.get("requirement")
        failed = f"; **not installed**: {contender.get('error')}" if contender.get("installed") is False else ""
        lines.append(f"- {name}{'' if name.endswith(version) else version}{f': {known}' if known else ''}{failed}")
    return "\n".join(lines)


def machine_shown(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    cores = machine.get("cores")
    words = [machine.get("cpu"), cores and f"{cores} core{'s' * (cores != 1)}", machine.get("kernel")]
    words.append(machine.get("python"))
    load = machine.get("load at the start")
    words.append(None if load is None else f"load {load:.1f} at the start")
    return ", ".join(str(word) for word in words if word) or "unknown"


def target_rows(judged: Sequence[Judged]) -> list[Line]:
    """The targets: what is aimed at, what was measured, and whether that is enough."""
    marks = {"MISSED": "**MISSED**"}
    return [
        ("figure", "target", "measured", ""),
        *((one.title, one.aim, one.measured, marks.get(one.verdict, one.verdict)) for one in judged),
    ]
