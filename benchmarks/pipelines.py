"""Pipelines in child processes, beside `aqueduct` with shared memory, and `ProcessPoolExecutor` with plain pickling.

    python -m benchmarks.pipelines [--quick] [--readme]

One step, and three, with a child process each; all but the last hand their arrays on as they are. Items are eight
floats, which are summed, or images of 224 x 224 x 3 float32, which are averaged, or of which one element is looked at.
1 and 32 are in flight: threads or tasks of one event loop, each of which hands over its next item when it has its
answer, which is checked. This project runs as it comes. For aqueduct a few settings are tried at each cell, and the
best is measured; its images go through shared memory. `memcpy` copies the same images, one after another in one thread.

Each contender has a process of its own, and the rounds take turns. CPU time is that of parent and children together.
Writes `results/pipelines.json`, `results/pipelines.md`, and with `--readme` the table of README.md. Ends with status 1
if an answer was wrong, or if any contender failed. The extra `bench` is needed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .child.case import Case
from .child.payloads import FLOATS, SHAPES
from .contenders import CACHE, Directories, install
from .harness import Progress, interleaved
from .report import readings
from .report.judged import Judged, judge
from .report.main_table import write_readme
from .report.readings import Group, Results, shown, times
from .report.tables import about, head, lines, lost, machine_shown, markdown_table, settings_of, target_rows
from .results import entry, read, write
from .results import head as facts_of
from .runner import Run
from .scenario import Scenario
from .sweep import Settings, choose
from .targets import PIPELINES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
SHARED = Path("/dev/shm")
GROUP, TITLE = "pipelines", "pipelines in child processes"
BEGIN, END = "<!-- pipelines: begin -->", "<!-- pipelines: end -->"

CONTENDERS = (
    "ubatch",
    "ubatch, tasks",
    "aqueduct",
    "ProcessPoolExecutor(1)",
    "ProcessPoolExecutor(1), tasks",
    "memcpy",
)
"""In the order of their turns."""

STEPS, IN_FLIGHT = (1, 3), (32, 1)

ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 1.0, 0.3
SWEEP_ROUNDS, SWEEP_SECONDS = 2, 0.5


def scenarios(seconds: float) -> list[Scenario]:
    """All cells, in the order of the report, with rounds of that length."""
    found = []
    for steps in STEPS:
        for handler, shape in SHAPES.items():
            for callers in IN_FLIGHT:
                id = f"{handler}, {steps} step{'s' * (steps > 1)}, {callers} in flight"
                case = Case("pipeline", "ubatch", callers=callers, handler=handler, steps=steps)
                some = [name for name in CONTENDERS if name != "memcpy" or shape != FLOATS]
                found.append(Scenario(GROUP, id, case, tuple(some), seconds=seconds, swept=False))
    return found


def settings(case: Case) -> list[dict[str, Any]]:
    """What of aqueduct's own is tried: how items are gathered; whether arrays come back with the answers."""
    gathered: list[dict[str, Any]] = [{"batch_size": 1}]
    if case.callers > 1:
        gathered += [{"batch_size": 8}, *({"batch_size": 32, "batch_timeout": wait} for wait in (0.0, 0.001, 0.005))]
    if SHAPES[case.handler] == FLOATS:
        return [one | {"shared": False} for one in gathered]
    return [one | {"let_go": let_go} for one in gathered for let_go in (False, True)]


# -- measuring --------------------------------------------------------------------------------------------


def sweep(scenario: Scenario, directories: Directories, progress: Progress) -> tuple[Scenario, dict[str, Any] | None]:
    """The cell with aqueduct's best settings, and all that was tried."""
    try:
        directory = directories.of("aqueduct")
    except LookupError:
        return scenario, None
    case = scenario.case_of("aqueduct")
    cases = {str(one): (replace(case, settings=one), directory) for one in settings(case)}
    seconds = min(SWEEP_SECONDS, scenario.seconds)

    def after_each(name: str) -> None:
        progress.advance(f"{scenario.id}: aqueduct {name}", seconds * 1.25)

    outcomes = interleaved(cases, SWEEP_ROUNDS, seconds, after_each=after_each)
    tried = [entry(outcome, cases[name][0]) for name, outcome in outcomes.items()]
    best = choose(tried, "rate") or {}
    return replace(scenario, others={"aqueduct": replace(case, settings=best)}), {"best": best, "tried": tried}


def orphans(before: set[str]) -> list[Path]:
    """Shared memory that came since and that no process has mapped: aqueduct leaves it when it is killed.

    Args:
        before: the names that there were.
    """
    found = [path for path in SHARED.glob("psm_*") if path.name not in before]
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        try:
            mapped += maps.read_text()
        except OSError:  # it has ended, or is another user's
            pass
    return [path for path in found if path.name not in mapped]


def planned(chosen: Sequence[Scenario], run: Run) -> float:
    """Seconds that all of it is thought to take."""
    swept = sum(len(settings(one.case)) * SWEEP_ROUNDS * min(SWEEP_SECONDS, one.seconds) * 1.25 for one in chosen)
    return swept + run.planned(chosen)


def measure(chosen: Sequence[Scenario], run: Run) -> None:
    """Measure all cells, and write the file after each."""
    start = time.monotonic()
    found = facts_of(GROUP, TITLE, run.command, run.quick, run.directories) | {"rounds": run.rounds, "sweep": {}}
    with Progress(planned(chosen, run)) as progress:
        for scenario in chosen:
            before = {path.name for path in SHARED.glob("psm_*")}
            scenario, tried = sweep(scenario, run.directories, progress)
            if tried is not None:
                found["sweep"][scenario.id] = tried
            found["cells"].append(run.cell(scenario, progress))
            for path in orphans(before):
                path.unlink(missing_ok=True)
            found["seconds"] = time.monotonic() - start
            write(run.output / f"{GROUP}.json", found)


# -- the report -------------------------------------------------------------------------------------------


def judged(group: Group) -> list[Judged]:
    """The targets, and what became of them."""
    return judge(Results({GROUP: group}, {}), PIPELINES)


def table(group: Group) -> str:
    """The part of README.md, from the results file alone."""
    rows = [("items/s", *map(face, CONTENDERS), "× aqueduct")]
    for cell in group.cells:
        rates = [(cell.entries[name].median("rate") if name in cell.entries else None) for name in CONTENDERS]
        ratio = cell.better("aqueduct", "rate", "ubatch, tasks")
        rows.append((cell.id, *(shown(rate, "") for rate in rates), times(ratio[1]) if ratio else "–"))
    contenders = group.facts["contenders"]
    versions = [f"{name} {contenders[name]['version']}" for name in ("ubatch", "aqueduct") if name in contenders]
    how = f"Medians of {group.facts['rounds']} rounds in turns; × aqueduct: called by tasks, as it is."
    words = f"{how} {machine_shown(group.facts['machine'])}; {', '.join(versions)}."
    bounds = [f"{one.title} {one.aim}: {one.measured}, {one.verdict}" for one in judged(group)]
    counted = (
        f"Targets: {', '.join(f'{count} {verdict}' for verdict, count in verdicts(group).items())}." if bounds else ""
    )
    return f"{markdown_table(rows)}\n\n{words} {counted}"


def face(name: str) -> str:
    """A contender's heading."""
    return name if ", " in name or name in ("aqueduct", "memcpy") else f"{name}, threads"


def verdicts(group: Group) -> dict[str, int]:
    """How many targets were met, missed, not measured."""
    found = [one.verdict for one in judged(group)]
    return {verdict: found.count(verdict) for verdict in dict.fromkeys(found)}


def report(group: Group) -> str:
    """The whole report, as Markdown."""
    results = Results({GROUP: group}, {})
    parts = [
        f"# {TITLE.capitalize()}",
        about(results),
        "## Targets",
        markdown_table(target_rows(judged(group)), right=()),
    ]
    parts += ["## Lost", "\n".join(f"- {one}" for one in lost(results)) or "No case is lost to another contender."]
    for cell in group.cells:
        parts += [f"## {cell.id}", markdown_table([head(group), *lines(group, cell, "**{}**")])]
        parts += [f"Settings: {written}." for written in (settings_of(cell),) if written]
    return "\n\n".join(parts) + "\n"


def failures(group: Group) -> list[str]:
    """What failed, with the reason."""
    return [
        f"{cell.id}: {name}: {one.reason}" for cell in group.cells for name, one in cell.entries.items() if one.reason
    ]


# -- the command line -------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipelines", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="short rounds: whether it works, not how well")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells that have this text in their names")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where contenders are installed")
    parser.add_argument("--report", action="store_true", help="only write the tables again, from the results")
    parser.add_argument("--readme", action="store_true", help="write the table of README.md")
    options = parser.parse_args(arguments)
    partial = options.quick or options.only
    output = options.output or (RESULTS / "partial" if partial else RESULTS)
    if not options.report:
        chosen = [one for one in scenarios(QUICK_SECONDS if options.quick else SECONDS) if options.only in one.id]
        if not chosen:
            parser.error(f"--only {options.only!r}: no cell is called like that")
        directories = install(["ubatch", "aqueduct"], options.cache, {})
        command = " ".join(["python -m benchmarks.pipelines", *(["--quick"] if options.quick else [])])
        rounds = QUICK_ROUNDS if options.quick else ROUNDS
        measure(chosen, Run(rounds, output, command, options.quick, directories, Settings()))
    return finish(output, ROOT / "README.md" if options.readme else None)


def finish(output: Path, readme: Path | None) -> int:
    """Write the tables, and say what became of the targets; the exit status."""
    file: Mapping[str, Any] | None = read(output / f"{GROUP}.json")
    if file is None:
        print(f"there is no {GROUP}.json in {output}", file=sys.stderr)
        return 2
    group = readings.group_of(GROUP, dict(file))
    (output / f"{GROUP}.md").write_text(report(group), encoding="utf-8")
    if readme is not None:
        write_readme(readme, table(group), BEGIN, END)
    print(table(group))
    for row in target_rows(judged(group))[1:]:
        print(": ".join(part for part in row if part))
    failed = failures(group)
    print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
