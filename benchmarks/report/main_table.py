"""The main table, and the part of README.md that is made of the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import PEERS, plain

from .judged import MET, MISSED, UNKNOWN, Judged, judge
from .readings import ALONE, FIGURES, OURS, Cell, Results, is_ours, shown, times
from .tables import Line, machine_shown, markdown_table

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

NO_PEER = "–"


@dataclass(frozen=True)
class Row:
    """A line of the main table.

    Args:
        title: what it says.
        group: the results file, without its ending.
        case: what the cell's case holds.
        figure: what is shown and compared.
        face: who calls; `None` for whoever calls in that cell.
        share: whether throughput is shown over the closed form.
        beside: contenders to compare with if no other library takes part.
        cell: what the cell's id must contain, where cases are alike.
    """

    title: str
    group: str
    case: Mapping[str, Any]
    figure: str
    face: str | None = None
    share: bool = False
    beside: tuple[str, ...] = ()
    cell: str = ""


def _rows() -> list[Row]:
    rows = [
        Row(f"round trip of one caller, {cores}", "round-trip", {"cores": cores, "figure": "round trip"}, "time")
        for cores in ("one core", "two cores")
    ]
    idle = {"handler": "no-op"}
    for cores in ("free", "one core", "two cores"):
        for count in (8, 64, 256):
            case = idle | {"callers": count, "cores": cores}
            rows.append(Row(f"{count} threads, {cores}", "threads", case, "rate", "threads"))
    for count in (64, 1000):
        rows.append(Row(f"{count} tasks", "tasks", idle | {"callers": count, "cores": "free"}, "rate", "tasks"))
    for count in (8, 64):
        for handler in ("gpu", "cpu", "net"):
            title, case = f"{handler}, {count} threads: share of the ideal", {"handler": handler, "callers": count}
            rows.append(Row(title, "closed-loop", case, "rate", "threads", share=True))
    for handler in ("gpu", "cpu", "net"):
        title, case = f"{handler}, random arrivals at 50 % load: p99", {"handler": handler, "load": 0.5, "burst": 1}
        rows.append(Row(title, "open-loop", case, "p99", "threads"))
    rows += [
        Row("gpu, bursts of 16: p50", "bursts", {"handler": "gpu", "burst": 16}, "p50", "threads"),
        *(
            Row(f"search service, {worker}, 64 clients", "service", {"callers": 64}, "rate", beside=ALONE, cell=worker)
            for worker in ("gevent", "gthread")
        ),
        Row("memory, an item queued", "memory", {"figure": "queued"}, "memory", beside=("bare Future", "bare lock")),
        Row("memory, an idle batcher", "memory", {"figure": "idle"}, "memory", beside=("ThreadPoolExecutor(1)",)),
        Row("of a core, one idle batcher", "memory", {"figure": "idle", "callers": 1}, "idle cpu"),
        Row("import", "import", {"figure": "import"}, "time", beside=("bare interpreter",)),
    ]
    return rows


ROWS = _rows()


def main_table(results: Results, judged: Sequence[Judged] | None = None) -> str:
    """The main table in Markdown: a line for each of `ROWS` that was measured."""
    verdicts = judge(results) if judged is None else judged
    lines = [line for row in ROWS if (line := _line(results, row, verdicts))]
    heads = ("", OURS, "best peer", "times better", "target")
    return markdown_table([heads, *lines]) if lines else "Nothing was measured."


def _line(results: Results, row: Row, judged: Sequence[Judged]) -> Line | None:
    group = results.groups.get(row.group)
    cell = next((cell for cell in group.find(**row.case) if row.cell in cell.id), None) if group else None
    if cell is None:
        return None
    ours = _ours(cell, row)
    if ours is None:
        return None
    peer = cell.best(row.figure, PEERS, row.face) or cell.best(row.figure, row.beside)
    target = "; ".join(
        f"{one.aim}: {one.verdict if one.verdict == MET else f'**{one.verdict}**'}"
        for one in judged
        if (one.target.group, one.target.cell) == (row.group, cell.id)
        and one.target.figure == row.figure
        and one.target.contender == ours
    )
    title = row.title if plain(ours) == OURS else f"{row.title} ({plain(ours)})"
    if peer is None:
        return (title, _value(cell, row, ours), _nobody(cell, row), "", target)
    ratio = cell.better(peer, row.figure, ours)
    factor = "" if ratio is None else times(ratio[1])
    if ratio is not None and ratio[1] < 1:
        factor = f"**{factor}**"
    return (title, _value(cell, row, ours), f"{plain(peer)} {_value(cell, row, peer)}", factor, target)


def _ours(cell: Cell, row: Row) -> str | None:
    """Our face in the cell: `ubatch.aio` where tasks call, as there is nothing else to choose there."""
    found = [name for name in cell.entries if is_ours(name) and cell.entries[name].median(row.figure) is not None]
    alike = [name for name in found if row.face in (None, cell.face(name))]
    return next((name for name in alike if (plain(name) != OURS) == (row.face == "tasks")), alike[0] if alike else None)


def _nobody(cell: Cell, row: Row) -> str:
    """Why there is no peer: those that should be there and crashed."""
    failed = [f"{plain(name)} {entry.reason.partition(':')[0]}" for name, entry in cell.entries.items() if entry.error]
    return ", ".join(failed) or NO_PEER


def _value(cell: Cell, row: Row, name: str) -> str:
    if row.share and (share := cell.of_ideal(name)):
        return f"{100 * share[1]:.0f} %"
    return shown(cell.entries[name].median(row.figure), FIGURES[row.figure].unit)


def block(results: Results, judged: Sequence[Judged], full: str) -> str:
    """What README.md shows: the main table and what it was measured with.

    Args:
        results: what was measured.
        judged: the targets.
        full: the address of the whole report, as README.md sees it.
    """
    facts = results.facts()
    versions = [
        f"{name} {about['version']}" if not name.endswith(about["version"]) else name
        for name, about in results.contenders().items()
        if about.get("version")
    ]
    missing = [name for name, about in results.contenders().items() if about.get("installed") is False]
    words = (
        f"{machine_shown(facts.get('machine', {}))}; {', '.join(versions)}; {str(facts.get('started', ''))[:10]}."
        + (f" Not installed: {', '.join(missing)}." if missing else "")
        + (" A quick run, which shows that all works, not how well." if facts.get("quick") else "")
    )
    counted = ", ".join(
        f"{count} {verdict}"
        for verdict in (MET, MISSED, UNKNOWN)
        if (count := [one.verdict for one in judged].count(verdict))
    )
    link = (
        f"All cells with the spread of their rounds, settings, targets and every case that is lost: [table.md]({full})."
    )
    return f"{main_table(results, judged)}\n\n{words}\nTargets: {counted or 'none'}. {link}"


def write_readme(readme: Path, text: str, begin: str = BEGIN, end: str = END) -> bool:
    """Replace what is between two markers of README.md.

    Returns:
        Whether the file changed.

    Raises:
        ValueError: it has not exactly one pair of markers.
    """
    before = readme.read_text(encoding="utf-8")
    if before.count(begin) != 1 or before.count(end) != 1:
        raise ValueError(f"{readme} needs one line {begin} and one line {end}")
    insert: Callable[[re.Match[str]], str] = lambda _: f"{begin}\n\n{text}\n\n{end}"  # noqa: E731
    after = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", insert, before, flags=re.DOTALL)
    if after != before:
        readme.write_text(after, encoding="utf-8")
    return after != before
