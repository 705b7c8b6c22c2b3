"""The benchmarks' open loops and service: schedules that nothing changes, stalls that show, answers that lack."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHILD = ROOT / "benchmarks" / "child"
if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks need Linux", allow_module_level=True)

sys.path.append(str(ROOT))

from benchmarks import arrivals, contenders, service, serving  # noqa: E402
from benchmarks.child.case import MODELS, Case, seconds_of  # noqa: E402
from benchmarks.results import write  # noqa: E402
from benchmarks.sweep import FILE  # noqa: E402

FACES = ("threads", "tasks")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules that a contender's process has; they find each other without a package."""
    monkeypatch.syspath_prepend(str(CHILD))
    before = set(sys.modules)
    names = ("schedule", "figures", "open")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == CHILD:
            del sys.modules[name]


class Fake:
    """A system that answers each item by itself, after a function that may take its time or raise."""

    def __init__(self, before: Callable[[int], None]) -> None:
        self.before = before

    def caller(self) -> Callable[[int], int]:
        def call(item: int) -> int:
            self.before(item)
            return item

        return call

    async def task(self, item: int) -> int:
        self.before(item)  # holds up the event loop
        return item

    def counts(self) -> None:
        return None


def rounds(
    child: SimpleNamespace,
    face: str,
    before: Callable[[int], None],
    moments: list[float],
    size: int = 8,
    device: Any = None,
    system: type[Fake] = Fake,
) -> tuple[dict[str, Any], Any]:
    """One round of a fake system: its sample, its record."""
    made = []

    def plan(seconds: float) -> Any:
        made.append(child.schedule.Record(moments, 0.0, time.perf_counter() + 0.02))
        return made[0]

    async def opened() -> Fake:
        return system(before)

    case = Case("open loop", "fake", face, callers=size)
    device = device or child.schedule.Device("gpu")
    if face == "threads":
        loop = child.open.Threads(system(before), case, plan, device)
    else:
        loop = child.open.Tasks(opened, case, plan, device)
    try:
        return loop.measure(moments[-1]), made[0]
    finally:
        loop.close()


class TestSchedule:
    def test_the_number_alone_makes_it(self, child: SimpleNamespace) -> None:
        """One number always makes the same arrivals, another one others; in order, within the time."""
        made = child.schedule.poisson(500.0, 1, 2.0, 3)
        random.random()
        assert child.schedule.poisson(500.0, 1, 2.0, 3) == made
        assert child.schedule.poisson(500.0, 1, 2.0, 4) != made
        assert child.schedule.poisson(500.0, 1, 2.0, -3) != made
        assert made == sorted(made)
        assert made[0] > 0
        assert made[-1] < 2.0

    def test_poisson(self, child: SimpleNamespace) -> None:
        """As many arrivals as the rate says, and gaps as far from their mean as those of a Poisson process."""
        made = child.schedule.poisson(1000.0, 1, 20.0, 0)
        gaps = [later - moment for moment, later in itertools.pairwise(made)]
        assert len(made) == pytest.approx(20_000, abs=5 * 20_000**0.5)
        assert sum(gap > 0.001 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.02)

    def test_bursts(self, child: SimpleNamespace) -> None:
        """Arrivals of a burst have the same moment; the rate counts items, not bursts."""
        made = child.schedule.poisson(800.0, 16, 100.0, 0)
        assert len(made) == pytest.approx(80_000, rel=0.1)
        assert all(len(set(made[at : at + 16])) == 1 for at in range(0, len(made), 16))
        assert len(set(made)) == len(made) / 16

    def test_it_is_made_beforehand(self, child: SimpleNamespace) -> None:
        """What the system does changes no moment: a round's are the plan's, from its start on."""
        moments = [0.001 * number for number in range(50)]
        _, slow = rounds(child, "threads", lambda item: time.sleep(0.005), moments, size=2)
        start = slow.due[0]
        assert [moment - start for moment in slow.due] == pytest.approx(moments, abs=1e-6)


class TestStall:
    @pytest.mark.parametrize("face", FACES)
    def test_it_shows(self, child: SimpleNamespace, face: str) -> None:
        """All that is due while a system stalls is late, however few callers there are that can wait for it."""
        stalled: list[float] = []
        lock = threading.Lock()

        def stall_once(item: int) -> None:
            with lock:
                if item >= 20 and not stalled:
                    stalled.append(time.perf_counter())
                    time.sleep(0.3)
                    stalled.append(time.perf_counter())

        moments = [0.002 * number for number in range(200)]
        sample, record = rounds(child, face, stall_once, moments, size=4)
        begin, end = stalled
        due = [number for number, moment in enumerate(record.due) if begin < moment < end]
        assert len(due) > 10
        assert sample["answered"] == 1
        for number in due[4:]:  # a few callers may be past the stall already
            assert record.latencies[number] >= end - record.due[number] - 0.001
        least = math.floor(math.log(0.1 / 1e-6) / math.log(1.02)) - 1
        late = sum(count for index, count in sample["histogram"].items() if int(index) >= least)
        assert late >= sum(end - record.due[number] > 0.1 for number in due[4:])
        assert sample["p99"] > 0.1


class TestUnanswered:
    @pytest.mark.parametrize("face", FACES)
    def test_calls_that_end_too_late(self, child: SimpleNamespace, face: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Arrivals without an answer are counted, and infinitely late in the percentiles that they reach."""
        monkeypatch.setattr(child.open, "GRACE", 0.05)
        device = child.schedule.Device("gpu")

        class Slow(Fake):
            async def task(self, item: int) -> int:
                while item >= 40 and not device.hurried:
                    await asyncio.sleep(0.005)
                return item

        def hang(item: int) -> None:
            while item >= 40 and not device.hurried:
                time.sleep(0.005)

        moments = [0.0005 * number for number in range(100)]
        sample, _ = rounds(child, face, hang, moments, 4, device, Slow)
        assert sample["arrivals"] == 100
        assert sample["answered"] <= 0.4
        assert sum(sample["histogram"].values()) == round(100 * sample["answered"])
        assert (sample["p50"], sample["p99"], sample["p99.9"], sample["mean"]) == (None,) * 4
        json.dumps(sample, allow_nan=False)

    @pytest.mark.parametrize("face", FACES)
    def test_calls_that_raise(self, child: SimpleNamespace, face: str) -> None:
        """A call that raises is no answer; if there is none at all, the round fails."""

        def fail(item: int) -> None:
            if item % 2:
                raise ArithmeticError(f"item {item}")

        moments = [0.0005 * number for number in range(40)]
        sample, _ = rounds(child, face, fail, moments)
        assert (sample["answered"], sample["errors"], sample["p99"]) == (0.5, 20, None)
        with pytest.raises(ArithmeticError, match="item 1"):
            rounds(child, face, lambda item: fail(1), moments)

    def test_wrong_answers(self, child: SimpleNamespace) -> None:
        """Another item's answer is none."""
        record = child.schedule.Record([0.0, 0.1], 0.0, time.perf_counter())
        record.answer(0, 0)
        record.answer(1, 0)
        assert record.sample(1)["answered"] == 0.5
        assert "item 1 was answered 0" in str(record.errors[0])


class TestFigures:
    def test_bursts(self, child: SimpleNamespace) -> None:
        """A burst takes as long as its last item; one that lacks an answer is infinitely late."""
        record = child.schedule.Record([0.0] * 4 + [1.0] * 4 + [2.0] * 4, 0.5, 100.0)
        record.latencies = [0.9] * 4 + [0.1, 0.2, 0.3, 0.4] + [0.1, 0.1, 0.1, None]
        sample = record.sample(4)
        assert (sample["arrivals"], sample["bursts"]) == (8, 2)
        assert (sample["burst p50"], sample["burst p99"]) == (0.4, None)
        assert sum(sample["burst histogram"].values()) == 1

    def test_what_comes_before_the_round(self, child: SimpleNamespace) -> None:
        """Arrivals of the lead are made, but not counted; a round without any other has no percentiles."""
        record = child.schedule.Record([0.0, 0.01], 0.5, time.perf_counter())
        record.answer(0, 0)
        sample = record.sample(1)
        assert sample["arrivals"] == 0
        assert "p50" not in sample

    def test_mean_of_greedy(self) -> None:
        """The closed form is within a few per cent of a simulated worker that always takes all there is."""
        for handler, (a, c, size) in MODELS.items():
            rate = 0.5 * size / seconds_of(handler, size)
            assert _simulated(rate, a, c, size) == pytest.approx(arrivals.mean_of_greedy(rate, a, c), rel=0.05)


def _simulated(rate: float, a: float, c: float, size: int, count: int = 40_000) -> float:
    chance = random.Random(1)
    moments = [0.0]
    while len(moments) < count:
        moments.append(moments[-1] + chance.expovariate(rate))
    free = total = 0.0
    first = 0
    while first < count:
        start = max(free, moments[first])
        last = first + 1
        while last < count and last - first < size and moments[last] <= start:
            last += 1
        free = start + a + c * (last - first)
        total += sum(free - moment for moment in moments[first:last])
        first = last
    return total / count


@pytest.mark.parametrize("quick", [False, True], ids=["", "quick"])
def test_cells(quick: bool) -> None:
    """Every cell is called differently, and everybody in it is a contender with the face that calls it."""
    cells = arrivals.scenarios(quick)
    assert len({(cell.group, cell.id) for cell in cells}) == len(cells)
    assert {cell.group for cell in cells} == {"open-loop", "bursts"}
    for cell in cells:
        for name in cell.contenders:
            known = contenders.CONTENDERS[contenders.plain(name)]
            assert cell.case_of(name).face in (known.faces or (contenders.THREADS,))


@pytest.mark.parametrize("face", FACES)
def test_in_a_process(face: str) -> None:
    """For real: the contender's process measures this project and answers with a sample, round after round."""
    case = Case("open loop", "ubatch", face, callers=32, handler="cpu", max_size=32, load=0.2, burst=4)
    import ubatch

    directory = str(Path(ubatch.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(CHILD)],
        input=json.dumps(asdict(case)) + "\n0.1\n0.3\n",
        env={**os.environ, "PYTHONPATH": directory, "BENCHMARKED": directory},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    sample = [json.loads(line) for line in done.stdout.splitlines()][1]
    assert sample["arrivals"] > 0
    assert 0 < sample["answered"] <= 1
    assert {"generator", "starved", "mean batch", "bursts"} <= sample.keys()


class Silent:
    """A progress display that shows nothing."""

    def advance(self, title: str, seconds: float) -> None:
        pass


PUBLISHED = """
    class UBatch:
        def __init__(self, max_size, timeout):
            self.given = max_size, timeout
        def set_handler(self, handler):
            self.handler = handler
        def start(self):
            pass
        def ubatch(self, item):
            return self.handler([item])[0]
"""
"""What the service needs of the published ubatch."""


class TestService:
    def _imported(self, directory: Path, cache: Path) -> subprocess.CompletedProcess[str]:
        environment = serving.Serving(str(directory), 0.004).environment()
        environment |= {"SEARCH_CACHE": str(cache), "SEARCH_LIMIT": "20"}
        script = """
            import json, service_wsgi
            client = service_wsgi.app.test_client()
            both = [client.get(path + "?q=abstract+base+class").get_json() for path in ("/search", "/search_unbatched")]
            assert both[0] == both[1], both
            print(service_wsgi.app.extensions["batch"].given, json.dumps(client.get("/stats").get_json()["batching"]))
        """
        return subprocess.run(
            [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines())],
            cwd=serving.EXAMPLES,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def test_published_package(self, tmp_path: Path) -> None:
        """The application batches with the package that lies in the directory, and counts for it."""
        pytest.importorskip("flask")
        pytest.importorskip("numpy")
        package = tmp_path / "published" / "ubatch"
        package.mkdir(parents=True)
        lines = [line[4:] for line in PUBLISHED.splitlines()]
        (package / "__init__.py").write_text("\n".join(lines))
        done = self._imported(package.parent, tmp_path)
        assert done.returncode == 0, done.stderr
        given, _, counted = done.stdout.partition("{")
        assert given == "(64, 0.004) "
        assert json.loads("{" + counted)["items"] == 2  # the warm-up, the question

    def test_another_package(self, tmp_path: Path) -> None:
        """A directory without the package is noticed: no other copy is measured in its place."""
        pytest.importorskip("flask")
        pytest.importorskip("numpy")
        done = self._imported(tmp_path, tmp_path)
        assert done.returncode != 0
        assert "ubatch was found at" in done.stderr or "No module named 'ubatch'" in done.stderr

    def test_not_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What cannot be installed or has no swept settings is named in the results, with the reason."""
        monkeypatch.setattr(service, "_questions", lambda limit: [])
        monkeypatch.setattr(service.Measuring, "measure", lambda *_: None)
        monkeypatch.setattr(service.Measuring, "compared", lambda _: {})
        write(tmp_path / FILE, {"cells": []})
        ours = contenders.Installed("this checkout", str(tmp_path), "2.0.0")
        broken = contenders.Installed("ubatch==1.0.0", error="no network")
        for published, reason in (
            (broken, "not installed: no network"),
            (ours, "no swept settings for service: gevent"),
        ):
            directories = contenders.Directories({"ubatch": ours, "ubatch 1.0.0": published})
            service.run(True, 1, tmp_path, Silent(), directories)  # type: ignore
            cells = json.loads((tmp_path / "service.json").read_text())["cells"]
            assert [cell["id"] for cell in cells] == ["gevent, 64 clients", "gthread, 64 clients"]
            assert cells[0]["contenders"]["ubatch 1.0.0"]["error"].startswith(reason)

    def test_last_line(self) -> None:
        """Of a server's log, the error is what is reported."""
        log = "the server has died\nTraceback\n  File\nImportError: no such thing\n[1] [INFO] Shutting down"
        assert service._last_line(RuntimeError(log)) == "ImportError: no such thing"
        assert service._last_line(OSError("refused")) == "refused"
        assert service._last_line(OSError()) == "OSError"
