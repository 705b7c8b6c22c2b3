"""`python -m benchmarks.pipelines`: every answer is checked, and what is reported is what was measured."""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy")
pytest.importorskip("rich")
ROOT = Path(__file__).parents[1]
if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks need Linux", allow_module_level=True)
sys.path.insert(0, str(ROOT))

import ubatch  # noqa: E402
from benchmarks import pipelines, results  # noqa: E402
from benchmarks.child import payloads  # noqa: E402
from benchmarks.child.case import Case  # noqa: E402
from benchmarks.harness import interleaved  # noqa: E402
from benchmarks.report.judged import MET, MISSED, UNKNOWN  # noqa: E402
from benchmarks.report.readings import group_of  # noqa: E402
from benchmarks.soak import kills  # noqa: E402

SYSTEMS = [
    pytest.param(contender, face, id=f"{contender}, {face}")
    for contender in ("ubatch", "ProcessPoolExecutor(1)")
    for face in ("threads", "tasks")
]


def answer(handler: str, taken: tuple[Any, int, int]) -> Any:
    """What a pipeline makes of an item."""
    return payloads.HANDLERS[handler]([taken[0]])[0]


# -- the answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", payloads.SHAPES)
def test_an_answer_is_right_for_its_own_item_alone(handler: str) -> None:
    """Of many items no two have the same answer; the one before is refused."""
    stock = payloads.Stock(handler, 1)
    before = set()
    for _ in range(100):
        taken = stock.take()
        right = answer(handler, taken)
        for wrong in before:
            with pytest.raises(payloads.WrongAnswer, match=f"of item {taken[1]}"):
                stock.put_back(taken, wrong)
        stock.put_back(taken, right)
        before.add(right)


@pytest.mark.parametrize("handler", payloads.SHAPES)
def test_large_numbers_are_told_apart(handler: str) -> None:
    """The sum of an image is exact, and so is its number, up to the last one."""
    stock = payloads.Stock(handler, 1)
    stock.numbers = iter(range(payloads.NUMBERS - 1, payloads.NUMBERS + 1))  # type: ignore[assignment]
    first = stock.take()
    before = answer(handler, first)
    stock.put_back(first, before)
    with pytest.raises(payloads.WrongAnswer, match=f"of item {payloads.NUMBERS}"):
        stock.put_back(stock.take(), before)


# -- measuring ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("contender", "face"), SYSTEMS)
@pytest.mark.parametrize(("handler", "steps"), [("sums", 1), ("averages", 3)])
def test_contenders_measure(contender: str, face: str, handler: str, steps: int) -> None:
    """From the case to the sample, by either face, with one step and with three."""
    case = Case("pipeline", contender, face=face, callers=4, handler=handler, steps=steps)
    outcome = interleaved({"A": (case, None)}, 1, 0.1)["A"]
    assert outcome.error is None
    sample = outcome.samples[0]
    assert sample["rate"] > 0 and 0 < sample["p50"] <= sample["p99"] and sample["cpu"] > 0
    assert sample["bandwidth"] == pytest.approx(sample["rate"] * payloads.bytes_of(handler))


AQUEDUCT = """
import asyncio
class BaseTask:
    def share_value(self, name): getattr(self, name)
class BaseTaskHandler: pass
class FlowStep:
    def __init__(self, handler, batch_size): self.handler = handler
class Flow:
    def __init__(self, *steps, **options): self.steps, self.off = steps, 0
    def start(self, timeout): pass
    async def process(self, task, timeout_sec):
        for step in self.steps: step.handler.handle(task)
        await asyncio.sleep(0)
        self.off += OFF
        task.answer += self.off // 10
class log: setLevel = str
"""
"""As much of a library as its adapter uses; from the tenth item on its answers are off."""


@pytest.mark.parametrize(("off", "said"), [(0, None), (1, r"WrongAnswer: sums of item \d+: .* instead of")])
def test_a_wrong_answer_ends_the_contender(tmp_path: Path, off: int, said: str | None) -> None:
    """Which item got which answer is in the results."""
    (tmp_path / "aqueduct.py").write_text(AQUEDUCT.replace("OFF", str(off)), encoding="utf-8")
    case = Case("pipeline", "aqueduct", face="tasks", callers=2, handler="sums", settings={"batch_size": 1})
    outcome = interleaved({"A": (case, str(tmp_path))}, 1, 0.05)["A"]
    assert len(outcome.samples) == (said is None)
    assert outcome.error is None if said is None else re.search(said, str(outcome.error))


def test_what_a_killed_contender_leaves_is_found() -> None:
    """Shared memory that is new and that nobody has mapped; what is in use, and what was there before, is not."""
    used, left = (pipelines.SHARED / f"psm_{name}_{os.getpid()}" for name in ("used", "left"))
    try:
        left.write_bytes(b"1")
        used.write_bytes(b"1")
        with used.open("r+b") as file, mmap.mmap(file.fileno(), 1):
            assert not {left, used} & {*pipelines.orphans({left.name, used.name})}
            assert {left, used} & {*pipelines.orphans(set())} == {left}
    finally:
        left.unlink()
        used.unlink()


# -- the report -----------------------------------------------------------------------------------------------


def group(rates: dict[str, float], handler: str = "looks") -> Any:
    """The results of one cell, two rounds each; a rate of 0 is a contender that failed."""
    entries = {
        name: {"samples": [{"rate": rate, "p99": 1 / rate}] * 2} if rate else {"error": "WrongAnswer: 1 instead of 2"}
        for name, rate in rates.items()
    }
    cell = {"id": f"{handler}, 1 step, 32 in flight", "case": {"handler": handler}, "contenders": entries}
    about = {"ubatch": {"version": "2.0.0"}, "aqueduct": {"version": "1.15.0"}}
    return {"cells": [cell], "contenders": about, "rounds": 2, "machine": {"cpu": "a processor", "cores": 2}}


@pytest.mark.parametrize(
    ("handler", "ours", "verdict"),
    [
        ("looks", 5.0, MET),
        ("looks", 4.9, MISSED),
        ("averages", 3.0, MET),
        ("averages", 2.9, MISSED),
        ("sums", 2.0, MET),
        ("sums", 1.9, MISSED),
    ],
)
def test_targets(handler: str, ours: float, verdict: str) -> None:
    """Each handler has a bound of its own; what was not measured is not met."""
    rates = {"ubatch, tasks": 100 * ours, "ubatch": 1.0, "aqueduct": 100.0}
    judged = pipelines.judged(group_of("pipelines", group(rates, handler)))
    found = {one.target.contender: one.verdict for one in judged if one.target.cell.startswith(handler)}
    assert found == {"ubatch, tasks": verdict, "ubatch": MISSED}
    assert {one.verdict for one in judged if not one.target.cell.startswith(handler)} == {UNKNOWN}


def test_what_failed_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong answer is named, and ends the command with a status of its own; the others' figures are there."""
    (tmp_path / "pipelines.json").write_text(json.dumps(group({"ubatch, tasks": 0.0, "aqueduct": 1234.0})))
    assert pipelines.finish(tmp_path, None) == 1
    said = capsys.readouterr()
    assert "1,234" in said.out and "ubatch, tasks: failed: WrongAnswer: 1 instead of 2" in said.err
    assert "WrongAnswer" in (tmp_path / "pipelines.md").read_text(encoding="utf-8")
    (tmp_path / "pipelines.json").write_text(json.dumps(group({"ubatch, tasks": 5000.0, "aqueduct": 1000.0})))
    assert pipelines.finish(tmp_path, None) == 0
    assert "5.00" in capsys.readouterr().out
    assert pipelines.finish(tmp_path / "nowhere", None) == 2


def test_the_readme_shows_the_results() -> None:
    """Between the marks is the table of the committed file, and nothing before there is one."""
    file = results.read(pipelines.RESULTS / "pipelines.json")
    shown = "" if file is None else pipelines.table(group_of("pipelines", file))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.partition(pipelines.BEGIN)[2].partition(pipelines.END)[0].strip() == shown


def test_what_is_tried_of_aqueduct() -> None:
    """Images go through shared memory with every setting, small payloads with none; a lone item never waits."""
    for scenario in pipelines.scenarios(1.0):
        tried = pipelines.settings(scenario.case)
        shared = {one.get("shared", True) for one in tried}
        assert shared == {payloads.SHAPES[scenario.case.handler] == payloads.IMAGE}
        assert {one["batch_size"] for one in tried} == ({1} if scenario.case.callers == 1 else {1, 8, 32})
        assert len({str(one) for one in tried}) == len(tried)


# -- the soak -------------------------------------------------------------------------------------------------


def test_a_soak_with_kills(tmp_path: Path) -> None:
    """All kills are done, all items resolve, nothing is left; some items do die with their child."""
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--kills", "4", "--items", "4000", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["violations"] == [] and done.returncode == 0
    assert result["kills"] == 4 and result["children"] > 3, "others come for those that are killed"
    assert result["items"] == result["resolved"] == sum(result["outcomes"].values())
    assert result["outcomes"]["result"] >= 4000
    assert "Traceback" not in done.stderr


def test_a_soak_with_kills_sees_wrong_results() -> None:
    """An item may get its own result, or hear that its child died, and nothing else."""
    course = kills.Kills(1, 0)
    for right in (kills.wanted(3), ubatch.WorkerDied("step", "its process was killed by SIGKILL; more")):
        course.resolved(3, right)
    assert not course.violations
    for wrong in (kills.wanted(4), (3, 4), ValueError("3"), ubatch.WorkerDied("step", "it is gone")):
        course.resolved(3, wrong)
    assert len(course.violations) == 4
    died = {"WorkerDied: its process was killed by SIGKILL": 1, "WorkerDied: it is gone": 1}
    assert course.outcomes == {"result": 1, "tuple": 2, "ValueError": 1, **died}


def test_a_soak_with_kills_sees_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes, shared memory, descriptors and threads that were not there before, and items that never resolved."""
    monkeypatch.setattr(kills, "PATIENCE", 0.0)
    course = kills.Kills(1, 0)
    next(course.numbers)
    course.seen.add(os.getpid())
    before = kills.belongings()
    with open(os.devnull), subprocess.Popen(["sleep", "60"]) as child:
        course.judge(before)
        child.kill()
    assert [one.partition(":")[0] for one in course.violations] == [
        "1 items, of which 0 resolved",
        "children",
        "descriptors",
        "children that were not reaped",
    ]
