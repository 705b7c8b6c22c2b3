"""What ubatch costs: round trips, throughput without work, start-up, memory, each beside a bare reference.

Run `python benchmarks/overhead.py`. It needs nothing but ubatch, and Linux; where gevent is installed too,
greenlets are measured as well. Contenders live in processes of their own and take turns, A B C A B C …, so that
whatever else the machine does meets them alike. A figure is the median of the rounds; a ratio is the median of
the ratios within the rounds, with its quartiles. Absolute times move with the machine and with its scheduler:
what is aimed at are the ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _case import Case, Sample
from _harness import ROUNDS_OF_A_CHILD, Progress, interleaved, machine
from _scenarios import Scenario, scenarios
from _table import lines, missing, text

RESULTS = Path(__file__).with_name("results") / "overhead.json"

CHILD_SECONDS = 0.2
"""What starting a process is thought to take."""

AFRESH_ROUNDS = 3
"""Rounds, at most, where each takes a process of its own."""


@dataclass(frozen=True)
class Options:
    """How much is measured, and of what.

    Args:
        rounds: of each contender.
        quick: shorter rounds, smaller numbers.
        only: scenarios whose title has one of these in it; all if there are none.
        copies: other copies of the package, by name: the folder that each is in.
    """

    rounds: int = 15
    quick: bool = False
    only: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()

    def chosen(self) -> list[Scenario]:
        """What is to be measured."""
        return [one for one in scenarios(self.quick) if not self.only or any(part in one.title for part in self.only)]


def measure(options: Options) -> dict[str, dict[str, list[Sample]]]:
    """Measure everything: by scenario and contender, one sample a round."""
    plan = []
    planned = 0.0
    for scenario in options.chosen():
        if missing(scenario):
            continue
        cases: dict[str, tuple[Case, str | None]] = {name: (case, None) for name, case in scenario.cases().items()}
        cases |= {name: (scenario.case, folder) for name, folder in options.copies}
        rounds = min(options.rounds, AFRESH_ROUNDS) if scenario.afresh else options.rounds
        turn = scenario.seconds + scenario.extra
        children = rounds if scenario.afresh else -(-rounds // ROUNDS_OF_A_CHILD)
        turn += children / rounds * (CHILD_SECONDS + (0 if scenario.afresh else turn / 2))
        planned += len(cases) * rounds * turn
        plan.append((scenario, cases, rounds, turn))
    progress = Progress(planned)
    samples = {}
    for scenario, cases, rounds, turn in plan:

        def after_each(title: str = scenario.title, turn: float = turn) -> None:
            progress.advance(title, turn)

        samples[scenario.title] = interleaved(
            cases, rounds, scenario.seconds, afresh=scenario.afresh, after_each=after_each
        )
    progress.close()
    return samples


def versions() -> dict[str, str]:
    """The distributions that were measured."""
    found = {}
    for name in ("ubatch", "gevent", "greenlet"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(options: Options, output: Path) -> dict[str, Any]:
    """Measure, print the table, write the raw samples.

    Returns:
        What was written.
    """
    found: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "options": {name: value for name, value in asdict(options).items() if name != "copies"},
        "samples": measure(options),
    }
    here = found["machine"]
    print(f"{here['cpu']}, {here['cores']} cores, {here['kernel']}, {here['python']}; {options.rounds} rounds")
    print(text(list(lines(options.chosen(), found["samples"], [name for name, _ in options.copies]))))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; see `run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="three short rounds: whether it works, not how well")
    add("--rounds", type=int, help="rounds of each contender that are kept (15, or 3 with --quick)")
    add("--only", action="append", default=[], metavar="TEXT", help="what has this in its title; may be repeated")
    add("--output", type=Path, default=RESULTS, help="where to write the samples")
    add(
        "--copy",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="measure another copy of the package beside this one, that in FOLDER; may be repeated",
    )
    given = parser.parse_args(arguments)
    if find_spec("ubatch") is None:
        parser.error("this Python has no ubatch: install the checkout")
    copies = tuple((name, folder) for name, _, folder in (copy.partition("=") for copy in given.copy))
    rounds = given.rounds or (3 if given.quick else 15)
    return run(Options(rounds, given.quick, tuple(given.only), copies), given.output)


if __name__ == "__main__":
    main()
