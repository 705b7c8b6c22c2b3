"""The benchmarks' report says what the results files say, what is missing, and what is missed."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402

from benchmarks.report import report  # noqa: E402
from benchmarks.report.judged import MET, MISSED, UNKNOWN, judge  # noqa: E402
from benchmarks.report.main_table import BEGIN, END, main_table, write_readme  # noqa: E402
from benchmarks.report.readings import better, load, quartiles, shown, spread_shown, times  # noqa: E402
from benchmarks.report.tables import absent, lost, markdown_table  # noqa: E402
from benchmarks.targets import BEST_PEER, IDEAL, Target  # noqa: E402


def entry(figure: str, *values: float | None, **others: float | None) -> dict[str, Any]:
    return {"settings": {}, "samples": [{figure: value, **others} for value in values]}


def cell(name: str, contenders: dict[str, Any], ideal: float | None = None, **case: Any) -> dict[str, Any]:
    whole = {"face": "threads", "cores": "free", "callers": 1, "handler": "no-op", "load": 0.0, "burst": 1, **case}
    return {"id": name, "case": whole, "contenders": contenders, **({"ideal": {"rate": ideal}} if ideal else {})}


def write(folder: Path, group: str, *cells: dict[str, Any], **facts: Any) -> None:
    file = {
        "title": group,
        "started": "2020-02-02T02:02:02Z",
        "seconds": 1.5,
        "command": "python -m benchmarks --quick",
        "quick": False,
        "machine": {"cpu": "a processor", "cores": 2, "python": "CPython 3"},
        "contenders": {"ubatch": {"version": "2.0.0", "requirement": "this checkout", "installed": True}},
        "cells": cells,
        **facts,
    }
    (folder / f"{group}.json").write_text(json.dumps(file))


@pytest.fixture(autouse=True)
def _plots_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plots here: matplotlib keeps its font files open."""
    monkeypatch.setattr("benchmarks.report.draw", lambda results, folder: ["throughput.png"] if results.groups else [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results in which something is won, lost, missing, crashed and unanswered."""
    results = tmp_path / "results"
    results.mkdir()
    threads = {
        "ubatch": entry("rate", 100.0, 200.0, 300.0, cpu=1e-5),
        "ubatch 1.0.0": entry("rate", 10.0, 10.0, 10.0, cpu=1e-5),
        "batched": entry("rate", 50.0, 50.0, 50.0, cpu=1e-6),
        "async-batcher": {"missing": "no face for threads"},
        "aqueduct": {"settings": {}, "samples": [], "error": "MemoryError: none left"},
    }
    write(results, "threads", cell("64 threads; free", threads, callers=64))
    closed = {"ubatch": entry("rate", 90.0, p99=0.1), "batched, tasks": entry("rate", 50.0, p99=0.2)}
    closed |= {"ubatch, tasks": entry("rate", 40.0, p99=0.3)}
    write(results, "closed-loop", cell("gpu, K = 8", closed, ideal=100.0, callers=8, handler="gpu"))
    waiting = {"ubatch": entry("p99", 0.01, 0.02, p50=0.01), "none": entry("p99", None, None, p50=None)}
    write(results, "open-loop", cell("gpu, 50 %", waiting, handler="gpu", load=0.5))
    rate = {"ubatch": entry("rate", 700.0, p99=0.1), "none": entry("rate", 100.0, p99=1.0)}
    write(results, "service", cell("gevent, 64 clients", rate, callers=64, handler="search"))
    return results


def test_quartiles_are_of_the_rounds_and_may_be_infinite() -> None:
    """A single round is its own quartiles; a percentile that nothing reached counts as endless."""
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([math.inf, 1.0, 2.0]) == (1.5, 2.0, math.inf)
    assert quartiles([math.inf, math.inf]) == (math.inf,) * 3


def test_ratios_are_taken_within_rounds_and_above_one_is_better() -> None:
    """The median of the ratios is not the ratio of the medians."""
    assert better([100, 200, 900], [50, 400, 300], more=True) == (1.25, 2.0, 2.5)
    assert better([1.0, 2.0], [2.0, 8.0], more=False) == (2.5, 3.0, 3.5)
    assert better([1.0, 2.0, 3.0], [2.0], more=False) == (2.0, 2.0, 2.0)  # the other crashed after a round
    assert better([1.0], [math.inf], more=False) == (math.inf,) * 3
    assert better([math.inf], [math.inf], more=False) is None
    assert better([1.0], [], more=False) is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (20.5e-6, "s", "20.5 µs"),
        (0.9999e-3, "s", "1.00 ms"),
        (1234.0, "/s", "1,234/s"),
        (143_210.0, "/s", "143 k/s"),
        (2_500_000.0, "/s", "2.50 M/s"),
        (812.0, "B", "812 B"),
        (0.998, "share", "99.8 %"),
        (math.inf, "s", "not answered"),
        (None, "s", "–"),
    ],
)
def test_values_have_units_and_three_figures(value: float | None, unit: str, text: str) -> None:
    """No exponents, no seven digits."""
    assert shown(value, unit) == text


def test_the_unit_is_said_once() -> None:
    """But each time where the quartiles have another."""
    assert spread_shown((0.0012, 0.0013, 0.0014), "s") == "1.30 ms (1.20 to 1.40)"
    assert spread_shown((0.0009, 0.0013, 0.0014), "s") == "1.30 ms (900 µs to 1.40 ms)"
    assert times(0.0046) == "0.0046"


def test_a_table_has_the_median_the_ratio_and_the_reasons(folder: Path) -> None:
    """Contenders without figures stay in it and say why."""
    report(folder, console=Console(file=io.StringIO()))
    text = (folder / "table.md").read_text()
    assert "| ubatch | 200/s (150 to 250) |" in text
    assert "| ubatch 1.0.0 | 10.0/s | 10.0 µs | 20.0 (15.0 to 25.0) | 1.00 |" in text
    assert "| batched | 50.0/s | 1.00 µs | 4.00 (3.00 to 5.00) | 0.10 **lost** |" in text
    assert "| async-batcher | no face for threads |" in text
    assert "| aqueduct | failed: MemoryError: none left |" in text
    assert "not answered" in text
    assert "a processor, 2 cores, CPython 3" in text and "`python -m benchmarks --quick`" in text
    assert "![throughput](throughput.png)" in text


def test_losses_and_gaps_are_listed(folder: Path) -> None:
    """A face is compared with contenders that are called alike; files that are not there are named."""
    results = load(folder)
    assert lost(results) == [
        "threads, 64 threads; free: CPU time per item of ubatch is 10.0 × that of batched",
        "closed-loop, gpu, K = 8: throughput of ubatch, tasks is 0.80 × that of batched, tasks",
        "closed-loop, gpu, K = 8: p99 of ubatch, tasks is 1.50 × that of batched, tasks",
    ]
    gaps = absent(results)
    assert "`import.json`: not there" in gaps
    assert "aqueduct: failed: MemoryError: none left (threads, 64 threads; free)" in gaps


def test_a_target_is_met_missed_or_not_measured(folder: Path) -> None:
    """As a ratio to the best peer, to the ideal, by itself; what is not there is not called met."""
    threads, closed = ("threads", "64 threads; free", "rate"), ("closed-loop", "gpu, K = 8", "rate")
    targets = {
        Target(*threads, (BEST_PEER,), least=3.0): (MET, "4.00 (3.00 to 5.00), batched"),
        Target(*threads, (BEST_PEER,), least=5.0): (MISSED, "4.00 (3.00 to 5.00), batched"),
        Target(*threads, ("aqueduct",), least=1.0): (UNKNOWN, "aqueduct: failed: MemoryError: none left"),
        Target(*threads, most=1000.0): (MET, "200/s (150 to 250)"),
        Target(*threads, ("batched",), most=100.0, above=True): (MISSED, "150/s (100 to 200)"),
        Target(*closed, (IDEAL,), least=0.9): (MET, "0.90"),
        Target(*closed, (IDEAL,), least=0.9, contender="ubatch.aio"): (UNKNOWN, ""),
        Target("import", "import", "time", most=0.015): (UNKNOWN, ""),
    }
    judged = judge(load(folder), targets)
    assert [(one.verdict, one.measured) for one in judged] == list(targets.values())
    assert judged[0].aim == "≥ 3.00 × the best peer"
    shown = io.StringIO()
    report(folder, console=Console(file=shown, width=200))
    assert UNKNOWN in shown.getvalue() and "64 threads; free" in shown.getvalue()


def test_the_summary_says_missed(folder: Path) -> None:
    """In capitals, on the terminal and in the file."""
    slow = {"ubatch": entry("time", 3e-5), "ping-pong": entry("time", 1e-5)}
    write(folder, "round-trip", cell("round trip; one core", slow, cores="one core", figure="round trip"))
    shown = io.StringIO()
    judged = report(folder, console=Console(file=shown, width=200))
    assert MISSED in {one.verdict for one in judged}
    assert MISSED in shown.getvalue() and "**MISSED**" in (folder / "table.md").read_text()


def test_the_plots_are_written(folder: Path, run_python: Callable[..., str]) -> None:
    """From as little as one round of one cell. Drawn in a process of its own: matplotlib keeps its font files open."""
    code = f"""
        import pathlib, sys
        sys.path.insert(0, {str(ROOT)!r})
        from benchmarks.report.plots import draw
        from benchmarks.report.readings import load
        print(*draw(load(pathlib.Path({str(folder)!r})), pathlib.Path({str(folder)!r})))
    """
    names = ["throughput.png", "latency.png", "handover.png", "service.png"]
    assert run_python(code, stderr=None).split() == names
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for group in ("threads", "closed-loop", "open-loop", "service"):
        (folder / f"{group}.json").unlink()
    assert run_python(code, stderr=None).split() == []


def test_an_empty_folder_and_an_unreadable_file_are_reported(tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "threads.json").write_text("{")
    shown = io.StringIO()
    judged = report(tmp_path, console=Console(file=shown, width=200))
    assert {one.verdict for one in judged} == {UNKNOWN}
    assert "threads.json`: unreadable" in shown.getvalue()


def test_a_contender_that_is_not_installed_says_why(tmp_path: Path) -> None:
    """Also where its cells only lack samples."""
    about = {"batched": {"version": None, "requirement": "batched==9", "installed": False, "error": "no such version"}}
    contenders = {"ubatch": entry("rate", 1.0), "batched": {"samples": []}}
    write(tmp_path, "threads", cell("8 threads; free", contenders, callers=8), contenders=about)
    report(tmp_path, console=Console(file=io.StringIO()))
    text = (tmp_path / "table.md").read_text()
    assert "batched: batched==9; **not installed**: no such version" in text
    assert "| batched | not installed: no such version |" in text


def test_the_main_table_names_the_best_peer(folder: Path) -> None:
    """And has a line only for what was measured."""
    table = main_table(load(folder))
    assert "| 64 threads, free | 200/s | batched 50.0/s | 4.00 |" in table
    assert "| gpu, 8 threads: share of the ideal | 90 % | – |  | ≥ 0.93 of the ideal: **MISSED** |" in table
    assert "| search service, gevent, 64 clients | 700/s | none 100/s | 7.00 |  |" in table
    assert "import" not in table


def test_the_readme_is_replaced_between_its_markers_only(folder: Path, tmp_path: Path) -> None:
    """The same results twice change nothing; without markers nothing is written."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nold \\1\n{END}\n\nafter\n")
    report(folder, readme, Console(file=io.StringIO()))
    once = readme.read_text()
    assert once.startswith(f"before\n\n{BEGIN}\n") and once.endswith(f"\n{END}\n\nafter\n")
    assert "old" not in once and "](results/table.md)" in once
    report(folder, readme, Console(file=io.StringIO()))
    assert readme.read_text() == once
    assert not write_readme(readme, once.partition(BEGIN)[2].partition(END)[0].strip())
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="benchmarks: begin"):
        report(folder, readme, Console(file=io.StringIO()))
    assert readme.read_text() == "no markers\n"


def test_markdown_cells_cannot_break_the_table() -> None:
    """An error may hold anything."""
    assert markdown_table([("a", "b"), ("x|y", "two\nlines")]).splitlines()[-1] == "| x\\|y | two lines |"
