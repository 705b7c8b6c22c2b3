"""The benchmarks' own machinery; nothing here is timed, and nothing is downloaded."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT))

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import plan, results, sweep, targets  # noqa: E402
from benchmarks.child.case import MODELS, Case, seconds_of  # noqa: E402
from benchmarks.contenders import (  # noqa: E402
    CHECKOUT,
    CONTENDERS,
    PEERS,
    Directories,
    Installed,
    install,
    plain,
    version,
)
from benchmarks.harness import FAILURES, ROUNDS_OF_A_CHILD, Child, Failed, interleaved  # noqa: E402
from benchmarks.runner import REFERENCES, Run  # noqa: E402
from benchmarks.scenario import Scenario  # noqa: E402
from benchmarks.soak import memory  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the benchmarks need Linux")

EVERY = plan.scenarios()


def failing(how: str = "", after: int = 0) -> Case:
    """A case of a contender that fails in the round of that number."""
    return Case("fails", "none", handler=how, callers=after)


def run(output: Path, directories: Directories | None = None, rounds: int = 2, **best: Any) -> Run:
    """A run with settings swept for the cells given by name."""
    return Run(rounds, output, "as typed", False, directories or Directories(), sweep.Settings(best, EVERY))


# -- the harness ----------------------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    """A B, A B: rounds are interleaved, in one process each, after a warm-up that is not kept."""
    order: list[str] = []
    outcomes = interleaved({"A": (failing(), None), "B": (failing(), None)}, 3, 0.0, after_each=order.append)
    assert order == ["A", "B"] * 3
    a, b = (outcomes[name].samples for name in "AB")
    moments = [sample["moment"] for pair in zip(a, b, strict=True) for sample in pair]
    assert moments == sorted(moments)
    assert len({sample["process"] for sample in a}) == 1 and a[0]["process"] != b[0]["process"]
    assert [sample["time"] for sample in a] == [1.0, 2.0, 3.0]  # 0 was the warm-up


def test_a_process_serves_some_rounds_only() -> None:
    """After a number of rounds each contender gets a new process; where rounds are afresh, each one has its own."""
    samples = interleaved({"A": (failing(), None)}, ROUNDS_OF_A_CHILD + 1, 0.0)["A"].samples
    assert len({sample["process"] for sample in samples}) == 2
    samples = interleaved({"A": (failing(), None)}, 3, 0.0, afresh=True)["A"].samples
    assert len({sample["process"] for sample in samples}) == 3
    assert {sample["time"] for sample in samples} == {0.0}


@pytest.mark.parametrize(
    ("how", "said"), [("raises", "RuntimeError: as it was told to"), ("exits", "ended with status 3: about to exit")]
)
def test_a_crash_is_recorded_and_the_others_go_on(how: str, said: str) -> None:
    """The last line that the contender wrote is kept; it is tried again, but not for ever."""
    rounds = FAILURES + 2
    cases = {"bad": (failing(how), None), "good": (failing(), None)}
    outcomes = interleaved(cases, rounds, 0.0)
    assert said in str(outcomes["bad"].error)
    assert outcomes["bad"].failures == FAILURES and not outcomes["bad"].samples
    assert outcomes["good"].error is None and len(outcomes["good"].samples) == rounds


def test_rounds_before_a_crash_count() -> None:
    """A contender that crashes late keeps what it has measured, and says that it crashed."""
    outcome = interleaved({"A": (failing("raises", after=2), None)}, 2, 0.0)["A"]
    assert len(outcome.samples) == 1 and outcome.failures == 1 and "as it was told to" in str(outcome.error)


def test_a_hang_ends() -> None:
    """A contender that does not answer is killed, with all that it has started."""
    child = Child(failing("hangs"), patience=0.3)
    with pytest.raises(Failed, match="did not answer within 0 s"):
        child.round(0.0)
    child.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(child.process.pid, 0)


@pytest.mark.parametrize("contender", ["none", "bare loop", "bare chain", "ThreadPoolExecutor(1)"])
def test_references_measure(contender: str) -> None:
    """The references measure a closed loop of threads, from the case to the sample."""
    case = Case("closed loop", contender, callers=2, handler="cpu", max_size=32)
    outcome = interleaved({"A": (case, None)}, 1, 0.05)["A"]
    assert outcome.error is None
    (sample,) = outcome.samples
    assert sample["rate"] > 0 and sample["cpu"] > 0 and sample["p50"] <= sample["p99"] <= sample["p99.9"]
    assert sum(sample["histogram"].values()) > 0


# -- what is measured -----------------------------------------------------------------------------------------


def test_cells_have_names_of_their_own() -> None:
    """Each cell is found by its group and its id; quick cells are some of all."""
    names = [(one.group, one.id) for one in EVERY]
    assert len(set(names)) == len(names)
    quick = {(one.group, one.id) for one in plan.scenarios(quick=True)}
    assert quick <= set(names) and quick
    assert {group for group, _ in quick} == {group for group, _ in names} == plan.GROUPS.keys() - {"service"}
    assert set(names) >= plan.QUICK
    assert len(plan.left_out()) == len(names) - len(quick)


@pytest.mark.parametrize("scenario", EVERY, ids=lambda one: f"{one.group}: {one.id}")
def test_everybody_is_accounted_for(scenario: Scenario) -> None:
    """Each peer is measured in each cell, by a face that it has, or it says why not."""
    listed = {plain(name) for name in scenario.contenders} | scenario.missing.keys()
    assert listed >= set(PEERS)
    for name in scenario.contenders:
        case = scenario.case_of(name)
        if case.contender in CONTENDERS and scenario.group != "import":
            assert case.face in CONTENDERS[case.contender].faces or case.contender == "ping-pong"
        assert case.contender in CONTENDERS or case.contender in REFERENCES


def test_closed_forms() -> None:
    """Batches of as many as there are callers, full ones at most."""
    ideal = {one.id: one.ideal["rate"] for one in EVERY if one.group == "closed-loop"}
    assert round(ideal["gpu, K = 64"]) == 5614
    assert round(ideal["gpu, K = 2"]) == 385
    assert ideal["cpu, K = 64"] == 32 / seconds_of("cpu", 32)
    assert set(MODELS) == {"gpu", "cpu", "net"}


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda one: f"{one.group}: {one.cell}: {one.figure}")
def test_targets_name_what_there_is(target: targets.Target) -> None:
    """Each target's cell exists, and so does all that it compares."""
    (scenario,) = [one for one in EVERY if (one.group, one.id) == (target.group, target.cell)]
    for name in (target.contender, *target.beside):
        if name == targets.IDEAL:
            assert target.figure in scenario.ideal
        elif name != targets.BEST_PEER:
            assert name in scenario.contenders
    assert (target.least is None) != (target.most is None)


# -- installing -----------------------------------------------------------------------------------------------


def test_a_failed_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip says last is what the results say; nothing half-installed stays."""

    def pip(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "a warning\nERROR: no such thing\n")

    monkeypatch.setattr("subprocess.run", pip)
    directories = install(["batched", "none"], tmp_path, {})
    assert directories.installed["batched"].as_json() == {
        "version": None,
        "requirement": CONTENDERS["batched"].requirement,
        "installed": False,
        "error": "ERROR: no such thing",
    }
    assert "none" not in directories.installed
    with pytest.raises(LookupError, match="ERROR: no such thing"):
        directories.of("batched, tasks")
    assert not list(tmp_path.glob("*/*"))


def test_what_is_there_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory from an earlier run is used as it is, and its metadata says the version."""
    requirement = str(CONTENDERS["batched"].requirement)
    directory = tmp_path / str(sys.implementation.cache_tag) / requirement
    metadata = directory / "batched-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: batched\nVersion: 9.9\n")
    monkeypatch.setattr("subprocess.run", None)
    assert install(["batched"], tmp_path, {}).installed == {"batched": Installed(requirement, str(directory), "9.9")}
    assert version(directory, "another") is None


def test_a_contender_comes_from_its_own_directory(tmp_path: Path) -> None:
    """A package of the same name elsewhere is an error, not a measurement."""
    wrong = tmp_path / "wrong"
    (wrong / "ubatch").mkdir(parents=True)
    source = "class UBatch:\n aubatch = 0\n def __init__(*_, **__): ...\n def ubatch(self, item): return item\n"
    (wrong / "ubatch" / "__init__.py").write_text(source)
    child = Child(Case("round trip", "ubatch"), str(wrong))
    assert child.round(0.001)["time"] > 0
    child.close()
    child = Child(Case("round trip", "ubatch"), os.pathsep.join([str(tmp_path), str(wrong)]))
    with pytest.raises(Failed, match=r"ImportError: ubatch was found at"):
        child.round(0.001)
    child.close()


# -- a run and its files --------------------------------------------------------------------------------------


def test_a_run_keeps_what_failed(tmp_path: Path) -> None:
    """A contender that is not installed, was not swept, lacks a module or crashes is in the file with the reason."""
    for package in ("ubatch", "batched"):
        (tmp_path / package).mkdir()
    here = {"ubatch": Installed(CHECKOUT, str(tmp_path), "1"), "ubatch.aio": Installed(CHECKOUT, str(tmp_path), "1")}
    here |= {"batched": Installed("batched", str(tmp_path), "1"), "aqueduct": Installed("aqueduct", error="no wheel")}
    case = Case("fails", "", "tasks")
    scenario = Scenario(
        "tasks",
        "64 tasks; free",
        case,
        ("ubatch.aio", "batched", "aqueduct", "none", "bare loop"),
        {"ubatch 1.0.0": "no face"},
        {"none": failing("raises")},
        seconds=0.0,
    )
    todo = run(tmp_path, Directories(here))
    done: list[float] = []

    class Progress:
        def advance(self, title: str, seconds: float) -> None:
            done.append(seconds)

    todo.group("tasks", [scenario], Progress())  # type: ignore
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert (found["group"], found["command"], found["quick"]) == ("tasks", "as typed", False)
    assert found["contenders"]["aqueduct"]["error"] == "no wheel"
    (cell,) = found["cells"]
    entries = cell["contenders"]
    assert entries["ubatch.aio"] == {"missing": "this version has no ubatch.aio"}
    assert "no swept settings" in entries["batched"]["error"]
    assert entries["aqueduct"]["error"] == "not installed: no wheel"
    assert "as it was told to" in entries["none"]["error"]
    assert len(entries["bare loop"]["samples"]) == 2
    assert entries["ubatch 1.0.0"] == {"missing": "no face"}
    assert math.isclose(sum(done), todo.planned([scenario]))


def test_copies_stand_beside_this_project(tmp_path: Path) -> None:
    """Another copy of the package takes its turn right after this one, with the same case."""
    scenario = Scenario("threads", "x", Case("fails", ""), ("none", "ubatch", "bare loop"))
    todo = run(tmp_path, Directories(copies={"before": "/there"}))
    assert todo.names(scenario) == ["none", "ubatch", "before", "bare loop"]
    assert todo._prepared(scenario, "before") == (Case("fails", "ubatch"), "/there")


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    """One sample a line; six digits; nothing is lost."""
    content = {
        "cells": [{"contenders": {"a": {"samples": [{"rate": 1 / 3, "histogram": {"1": 2}}] * 3, "error": "é" * 200}}}]
    }
    results.write(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert text.count('"histogram"') == len([line for line in text.splitlines() if "histogram" in line]) == 3
    read = results.read(tmp_path / "x.json")["cells"][0]["contenders"]["a"]
    assert read["samples"][0] == {"rate": 0.333333, "histogram": {"1": 2}} and read["error"] == "é" * 200
    assert results.read(tmp_path / "none.json") is None


def test_histogram() -> None:
    """Buckets of 2 %, from 1 µs; percentiles are values that occurred. Run as the contenders' processes run it."""
    code = (
        "import json, figures\n"
        "times = [5e-7, 1e-6, 1e-3, *[1e-2] * 97]\n"
        "print(json.dumps(figures.latencies(times) | {'none': figures.latencies([])}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks" / "child")},
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["none"] == {}
    assert (found["p50"], found["p99.9"]) == (0.01, 0.01)
    buckets = {math.floor(math.log(time / 1e-6) / math.log(1.02)): n for time, n in ((1e-3, 1), (1e-2, 97))}
    assert found["histogram"] == {"0": 2} | {str(index): n for index, n in buckets.items()}


# -- the sweep ------------------------------------------------------------------------------------------------


def test_the_best_settings() -> None:
    """The highest median rate; the lowest p99, and among equals the lowest p50; what failed is not chosen."""

    def tried(value: float, *samples: dict[str, float | None]) -> dict[str, Any]:
        return {"settings": {"window": value}, "samples": list(samples)}

    rates = [tried(1, {"rate": 5.0}, {"rate": 9.0}), tried(2, {"rate": 8.0}), tried(3)]
    assert sweep.choose(rates, "rate") == {"window": 2}
    late = [
        tried(1, {"p99": None, "p50": 1.0}),
        tried(2, {"p99": 2.0, "p50": 1.5}),
        tried(3, {"p99": 2.0, "p50": 1.0}),
    ]
    assert sweep.choose(late, "p99") == {"window": 3}
    assert sweep.choose([tried(1, {"time": 3.0}), tried(2, {"time": 2.0})], "time") == {"window": 2}
    assert sweep.choose([tried(1)], "rate") is None


def test_every_peer_is_swept_wherever_it_is_measured() -> None:
    """A sweep of everything leaves no cell without settings, and each peer has some values to be tried."""
    todo = sweep.cells(EVERY, EVERY)
    best = {sweep.key(one.scenario): {name: {"found": sweep.key(one.scenario)} for name in one.names} for one in todo}
    settings = sweep.Settings(best, EVERY)
    for scenario in EVERY:
        for name in scenario.contenders:
            found = settings.of(scenario, name)
            assert bool(found) == (scenario.swept and plain(name) in PEERS)
    assert all(len(CONTENDERS[name].values) >= 4 and CONTENDERS[name].setting for name in PEERS)
    with pytest.raises(LookupError, match="--sweep"):
        sweep.Settings({}, EVERY).of(next(one for one in EVERY if one.group == "threads"), "batched")


# -- the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "no such thing"], "no group and no cell is called like that"),
        (["--rounds", "0"], "at least 1"),
        (["--rounds", "many"], "at least 1"),
        (["--copy", "before"], "is not NAME=FOLDER"),
        (["--copy", "none=/"], "is the name of another contender"),
        (["--copy", "before=/nowhere"], "no package ubatch"),
        (["--output", __file__], "is not a folder"),
    ],
)
def test_bad_input_is_told(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message has the value, and nothing is measured."""
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_a_report_needs_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any file there is nothing to draw."""
    with pytest.raises(SystemExit, match="2"):
        command.main(["--report", "--output", str(tmp_path)])
    assert "there are no results" in capsys.readouterr().err


def test_list_shows_what_would_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """A group's name stands for its cells, a text for those that have it."""
    assert command.main(["--list", "--only", "threads", "--only", "gpu, K"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = [f"{one.group}: {one.id}" for one in EVERY if one.group == "threads" or "gpu, K" in one.id]
    assert lines == expected
    assert command.main(["--list", "--quick"]) == 0
    assert "service" in capsys.readouterr().out.splitlines()


def test_folders_are_not_published() -> None:
    """The command in the results is what one would type elsewhere."""
    typed = ["--quick", "--output", "/secret", "--copy=a=/secret", "--only", "gpu, K = 8"]
    assert command._quoted(typed) == ["--quick", "--output", "…", "--copy=…", "--only", "'gpu, K = 8'"]


# -- the soak -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "resident", "items", "grown"),
    [
        (memory.MAX_BLOCKS, memory.MAX_RESIDENT, memory.LEAST, []),
        (memory.MAX_BLOCKS + 1, 0.0, memory.LEAST, ["blocks"]),
        (-1, memory.MAX_RESIDENT + 0.1, memory.LEAST, ["resident_mb"]),
        (10**6, 10**3, memory.LEAST - 1, []),
    ],
    ids=["as much as may be", "blocks", "resident", "too few items to judge"],
)
def test_a_soak_judges_how_memory_grows_after_half_time(blocks, resident, items, grown):
    """What came before does not count; the message has the figures."""
    begin, half = memory.Mark(0, 0.0, 0, 0), memory.Mark(5, 30.0, 80_000, 100)
    end = memory.Mark(5 + items, 30.0 + resident, 80_000 + blocks, 100)
    found = memory.violations([begin, half, half, end])
    assert [violation.split()[0] for violation in found] == grown
    assert all(str(items) in violation for violation in found)
    assert memory.violations([begin, half, half]) == []
