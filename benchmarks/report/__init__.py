"""From the results folder to a summary on the terminal, `table.md`, the plots, and the part of README.md.

Only the files count: a report of another day's results is the same as that day's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .judged import MET, MISSED, Judged, judge
from .main_table import block, write_readme
from .plots import draw
from .readings import Group, Results, load
from .tables import absent, head, lines, lost, machine_shown, markdown

COLOURS = {MET: "green", MISSED: "bold red"}


README = Path(__file__).resolve().parents[2] / "README.md"


def main(folder: Path, readme: bool = False) -> int:
    """What the command line does once the files are there.

    Args:
        folder: with the results.
        readme: whether README.md is to show them.

    Returns:
        The exit status.
    """
    try:
        report(folder, README if readme else None)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def report(folder: Path, readme: Path | None = None, console: Console | None = None) -> list[Judged]:
    """Write `table.md` and the plots beside the results, and show a summary.

    Args:
        folder: with the results.
        readme: a file whose marked part is to show the main table; `None` for none.
        console: where the summary goes; by default standard output.

    Returns:
        The targets and what became of them.

    Raises:
        ValueError: `readme` has no marked part.
    """
    results = load(folder)
    judged = judge(results)
    plots = draw(results, folder)
    (folder / "table.md").write_text(markdown(results, judged, plots), encoding="utf-8")
    if readme is not None:
        near = Path(os.path.relpath(folder, readme.parent)).as_posix()
        write_readme(readme, block(results, judged, f"{near}/table.md"))
    summary(results, judged, console or Console())
    return judged


def summary(results: Results, judged: list[Judged], console: Console) -> None:
    """Show all groups, what is lost, what is missing, and the targets."""
    for group in results.groups.values():
        console.print(group_table(group))
    _list(console, "Lost to another contender", lost(results))
    _list(console, "Not measured", absent(results))
    console.print(target_table(judged))
    facts = results.facts()
    console.print(escape(f"{machine_shown(facts.get('machine', {}))}; started {facts.get('started', 'unknown')}"))


def group_table(group: Group) -> Table:
    """A group's cells, one below the other."""
    heads = head(group)
    shown = Table(title=escape(group.title), title_justify="left", title_style="bold", header_style="dim")
    for place, name in enumerate(heads):
        shown.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=not place)
    for cell in group.cells:
        shown.add_row(f"[bold]{escape(cell.id)}[/bold]")
        for line in lines(group, cell, brief=True):
            shown.add_row(f"  {escape(line[0])}", *(_marked(text) for text in line[1:]))
        shown.add_section()
    return shown


def _marked(text: str) -> str:
    return f"[red]{escape(text)}[/red]" if "lost" in text or text.startswith("failed") else escape(text)


def target_table(judged: list[Judged]) -> Table:
    """The targets."""
    shown = Table(title="Targets", title_justify="left", title_style="bold", header_style="dim")
    for name in ("figure", "target", "measured", ""):
        shown.add_column(name, overflow="fold")
    for one in judged:
        colour = COLOURS.get(one.verdict, "yellow")
        shown.add_row(*map(escape, (one.title, one.aim, one.measured)), f"[{colour}]{one.verdict}[/{colour}]")
    return shown


def _list(console: Console, title: str, sentences: list[str]) -> None:
    if sentences:
        console.print(f"[bold]{title}[/bold]")
        for sentence in sentences:
            console.print(escape(f"- {sentence}"), soft_wrap=True)
