"""The command line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .contenders import CACHE, CONTENDERS, Directories, install, plain
from .plan import GROUPS, left_out, scenarios
from .results import read, write
from .scenario import Scenario

RESULTS = Path(__file__).with_name("results")

PARTIAL = RESULTS / "partial"
"""Where runs go that are quick, or of some cells of a group only, so that they do not take a full run's place."""

SERVICE = "service"

ROUNDS, QUICK_ROUNDS = 5, 2

SERVICE_ROUNDS = 3
"""At most; its rounds are long."""


def parser() -> argparse.ArgumentParser:
    """What may be typed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="ubatch beside other batching libraries, bare loops and closed forms.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="some cells, few short rounds: whether it works, not how well")
    add(
        "--rounds",
        type=_positive,
        help=f"rounds of each contender that are kept ({ROUNDS}; {QUICK_ROUNDS} with --quick)",
    )
    add(
        "--only",
        action="append",
        default=[],
        metavar="GROUP-OR-TEXT",
        help="a group, or cells that have this text in `group: cell`; may be repeated",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder for the results ({_shown(RESULTS)}; {_shown(PARTIAL)} for --quick and for parts of groups)",
    )
    add(
        "--copy",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="measure another copy of the package beside this one, that in FOLDER; may be repeated",
    )
    add("--cache", type=Path, default=CACHE, metavar="DIR", help=f"where contenders are installed ({CACHE})")
    add("--sweep", action="store_true", help="find the peers' best settings instead, and write sweep.json")
    add("--report", action="store_true", help="only redraw the table and the plots from the files")
    add("--readme", action="store_true", help="also put the main table into README.md")
    add("--list", action="store_true", help="only show what would be measured")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Returns:
        The exit status.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parse = parser()
    given = parse.parse_args(arguments)
    try:
        copies = _copies(given.copy)
        plan = scenarios(given.quick)
        groups, chosen = _chosen(plan, given.only)
    except ValueError as error:
        parse.error(str(error))
    whole = not given.quick and all(one in groups for one in given.only)
    output = given.output or (RESULTS if whole else PARTIAL)
    if output.exists() and not output.is_dir():
        parse.error(f"--output {output} is not a folder")
    if given.list:
        print("\n".join([f"{one.group}: {one.id}" for one in chosen] + [SERVICE] * (SERVICE in groups)))
        return 0
    if given.report and not any(read(output / f"{group}.json") for group in GROUPS):
        parse.error(f"there are no results in {output}")
    if find_spec("rich") is None or find_spec("matplotlib") is None:
        parse.error("rich or matplotlib is missing: install the checkout with its extra, pip install -e '.[bench]'")
    if given.report:
        return _report(output, given.readme)
    command = " ".join(["python -m benchmarks", *_quoted(arguments)])
    directories = _installed(chosen, SERVICE in groups, given.cache, copies)
    try:
        if given.sweep:
            return _sweep(chosen, SERVICE in groups, output, command, given.quick, directories)
        return _run(chosen, groups, output, command, given, directories)
    except KeyboardInterrupt:
        print(f"interrupted; the cells that were done are in {output}", file=sys.stderr)
        return 130


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return number


def _shown(path: Path) -> str:
    return str(path.relative_to(RESULTS.parents[1]))


def _quoted(arguments: Sequence[str]) -> list[str]:
    """As typed, but for folders, which mean nothing elsewhere."""
    shown, folder = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if folder:
            argument = "…"
        elif equals and name in ("--output", "--cache", "--copy"):
            argument = f"{name}=…"
        elif " " in argument:
            argument = f"'{argument}'"
        folder = not folder and argument in ("--output", "--cache", "--copy")
        shown.append(argument)
    return shown


def _copies(given: Sequence[str]) -> dict[str, str]:
    copies = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or not name or not folder:
            raise ValueError(f"--copy {one!r} is not NAME=FOLDER")
        if name in CONTENDERS or ", " in name or name in copies:
            raise ValueError(f"--copy {one!r}: {name!r} is the name of another contender")
        if not (Path(folder) / "ubatch" / "__init__.py").is_file():
            raise ValueError(f"--copy {one!r}: there is no package ubatch in {folder}")
        copies[name] = str(Path(folder).resolve())
    return copies


def _chosen(plan: Sequence[Scenario], only: Sequence[str]) -> tuple[set[str], list[Scenario]]:
    """Groups that were named or are all wanted, with the cells to be measured.

    Raises:
        ValueError: nothing is called like that.
    """
    if not only:
        return set(GROUPS), list(plan)
    for text in only:
        if text not in GROUPS and not any(text in f"{one.group}: {one.id}" for one in plan):
            raise ValueError(
                f"--only {text!r}: no group and no cell is called like that; groups are {', '.join(GROUPS)}; "
                "--list shows the cells"
            )
    groups = {one for one in only if one in GROUPS}
    texts = [one for one in only if one not in GROUPS]
    chosen = [one for one in plan if one.group in groups or any(text in f"{one.group}: {one.id}" for text in texts)]
    return groups, chosen


def _installed(chosen: Sequence[Scenario], service: bool, cache: Path, copies: dict[str, str]) -> Directories:
    names = {plain(name) for one in chosen for name in one.contenders} & CONTENDERS.keys()
    if service:
        names |= {"ubatch", "ubatch 1.0.0"}
    wanted = [name for name in CONTENDERS if name in names]
    if any(CONTENDERS[name].requirement for name in wanted):
        print("installing the contenders …", file=sys.stderr, flush=True)
    directories = install(wanted, cache, copies)
    for name, one in directories.installed.items():
        if one.error:
            print(f"NOT INSTALLED: {name} ({one.requirement}): {one.error}", file=sys.stderr)
    return directories


def _sweep(
    chosen: Sequence[Scenario], serving: bool, output: Path, command: str, quick: bool, directories: Directories
) -> int:
    from . import service, sweep
    from .harness import Progress

    todo, path = sweep.cells(chosen, scenarios()), output / sweep.FILE
    lacking = [name for name in service.NEEDED if find_spec(name) is None]
    if serving and (lacking or directories.installed[service.PUBLISHED].error):
        print(f"{SERVICE} is not swept: {lacking or service.PUBLISHED} is not installed", file=sys.stderr)
        serving = False
    if not todo and not serving:
        print("no contender in these cells has a setting to sweep")
        return 0
    start = time.monotonic()
    with Progress(sweep.planned(todo) + (service.sweep_planned(quick) if serving else 0)) as progress:
        sweep.run(todo, path, command, quick, directories, progress)
        if serving:
            service.sweep(quick, path, progress, directories)
    found = read(path)
    found["seconds"] = time.monotonic() - start
    write(path, found)
    for cell in found["cells"]:
        best = ", ".join(f"{name} {one['best']}" for name, one in cell["contenders"].items())
        print(f"{cell['id']}: {best}")
    return 0


def _run(
    chosen: Sequence[Scenario],
    groups: set[str],
    output: Path,
    command: str,
    given: argparse.Namespace,
    directories: Directories,
) -> int:
    from . import service
    from .harness import Progress
    from .runner import Run
    from .sweep import FILE, Settings

    swept = output / FILE if (output / FILE).exists() else RESULTS / FILE
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    run = Run(rounds, output, command, given.quick, directories, Settings.read(swept, scenarios()))
    if not swept.exists():
        print(f"there is no {FILE}: peers with settings of their own will be reported as such", file=sys.stderr)
    if given.quick and not given.only:
        print("--quick leaves out:", *left_out(), sep="\n  ", file=sys.stderr)
    serving = SERVICE in groups
    planned = run.planned(chosen) + (service.planned(given.quick, min(rounds, SERVICE_ROUNDS)) if serving else 0)
    with Progress(planned) as progress:
        for group in GROUPS:
            cells = [one for one in chosen if one.group == group]
            if group == SERVICE and serving:
                service.run(given.quick, min(rounds, SERVICE_ROUNDS), output, progress, directories, command)
            elif cells:
                run.group(group, cells, progress)
    return _report(output, given.readme)


def _report(output: Path, readme: bool) -> int:
    from . import report

    return report.main(output, readme)


if __name__ == "__main__":
    sys.exit(main())
