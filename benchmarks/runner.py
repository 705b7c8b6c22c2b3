"""A run: each group's cells, one after another, into a results file each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .child.case import Case
from .contenders import Directories
from .harness import ROUNDS_OF_A_CHILD, Progress, interleaved
from .plan import GROUPS
from .results import entry, head, write
from .scenario import Scenario
from .sweep import Settings

START = 0.25
"""Seconds that starting a process is thought to take."""

LEADS = {"closed loop": 1.25, "open loop": 1.1}
"""A round's length with what runs before its figures are taken, as a multiple, by figure."""


@dataclass(frozen=True)
class Run:
    """How all is measured.

    Args:
        rounds: of each contender that are kept, at most.
        output: the folder for the results.
        command: what was typed.
        quick: whether it is small.
        directories: where the contenders are.
        settings: what the peers run with.
    """

    rounds: int
    output: Path
    command: str
    quick: bool
    directories: Directories
    settings: Settings

    def rounds_of(self, scenario: Scenario) -> int:
        """How many rounds of a cell are kept."""
        return min(self.rounds, scenario.rounds or self.rounds)

    def names(self, scenario: Scenario) -> list[str]:
        """Contenders, and copies of this project beside it, in the order of their turns."""
        found = []
        for name in scenario.contenders:
            found.append(name)
            if name == "ubatch":
                found += self.directories.copies
        return found

    def turn(self, scenario: Scenario) -> float:
        """Seconds that a round is thought to take, with its share of what comes before it."""
        length = scenario.seconds * LEADS.get(scenario.case.figure, 1.0) + scenario.extra
        if scenario.afresh:
            return length + START
        rounds = self.rounds_of(scenario)
        return length + (START + length / 2) * -(-rounds // ROUNDS_OF_A_CHILD) / rounds

    def planned(self, chosen: Sequence[Scenario]) -> float:
        """Seconds that all of it is thought to take."""
        return sum(len(self.names(one)) * self.rounds_of(one) * self.turn(one) for one in chosen)

    def group(self, group: str, chosen: Sequence[Scenario], progress: Progress) -> None:
        """Measure a group's cells and write its file."""
        start = time.monotonic()
        found = head(group, GROUPS[group], self.command, self.quick, self.directories)
        for scenario in chosen:
            found["cells"].append(self.cell(scenario, progress))
            found["seconds"] = time.monotonic() - start
            write(self.output / f"{group}.json", found)

    def cell(self, scenario: Scenario, progress: Progress) -> dict[str, Any]:
        """Measure one cell."""
        entries: dict[str, Any] = {}
        cases: dict[str, tuple[Case, str | None]] = {}
        turn, rounds = self.turn(scenario), self.rounds_of(scenario)
        title = f"{scenario.group}: {scenario.id}"
        for name in self.names(scenario):
            entries[name] = {}  # keeps the order of the turns
            found = self._prepared(scenario, name)
            if isinstance(found, dict):
                entries[name] = found
                progress.advance(title, turn * rounds)
            else:
                cases[name] = found

        def after_each(name: str) -> None:
            progress.advance(f"{title}: {name}", turn)

        outcomes = interleaved(
            cases,
            rounds,
            scenario.seconds,
            afresh=scenario.afresh,
            patience=scenario.patience,
            after_each=after_each,
        )
        entries |= {name: entry(outcome, cases[name][0]) for name, outcome in outcomes.items()}
        entries |= {name: {"missing": why} for name, why in scenario.missing.items()}
        case = {key: value for key, value in asdict(scenario.case).items() if key not in ("contender", "settings")}
        return {"id": scenario.id, "case": case, "ideal": dict(scenario.ideal), "contenders": entries}

    def _prepared(self, scenario: Scenario, name: str) -> tuple[Case, str | None] | dict[str, Any]:
        """A contender's case and directory, or what the results say instead of its samples."""
        if scenario.needs is not None and find_spec(scenario.needs) is None:
            return {"missing": f"{scenario.needs} is not installed"}
        case = scenario.case_of("ubatch" if name in self.directories.copies else name)
        if case.contender in REFERENCES:
            return case, None
        try:
            directory = self.directories.of(name)
            lacking = self.directories.lacks(name)
            if lacking is not None:
                return {"missing": lacking}
            settings = {**case.settings, **self.settings.of(scenario, name)}
        except LookupError as error:
            return {"settings": {}, "samples": [], "error": str(error)}
        return replace(case, settings=settings), directory


REFERENCES = ("bare Future", "bare future", "bare lock", "bare interpreter")
"""What nothing is installed for, beside those in `contenders`."""
