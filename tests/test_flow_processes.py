"""Flows whose steps run in child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import PATIENCE, eventually, results

from ubatch import BadBatchOutputSize, DeadlineExceeded, Flow, HandlerFailed, Step, Stopped, WorkerDied
from ubatch._crew import settle
from ubatch.processes import RemoteTraceback

pytestmark = pytest.mark.usefixtures("_processes_may_be_spawned")


def double(items: list[Any]) -> list[Any]:
    return [2 * item for item in items]


def where(items: list[Any]) -> list[int]:
    return [os.getpid() for _ in items]


def power(numbers: list[int], exponents: Any = 2) -> list[int]:
    return [number**exponent for number, exponent in zip(numbers, exponents, strict=True)]


def total(array: Any) -> Any:
    assert isinstance(array, np.ndarray) and not array.flags.writeable
    return array.sum(axis=(1, 2))


def scaled(images: Any, scales: Any = 1) -> Any:
    assert isinstance(images, np.ndarray) and isinstance(scales, list)
    return images.sum(axis=1) * np.array(scales)


def same(items: list[Any]) -> list[Any]:
    return items


def troubled(items: list[Any]) -> Any:
    if "die" in items:
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in items:
        os._exit(3)
    if "hang" in items:
        time.sleep(1000)
    if "raise" in items:
        raise KeyError("there")
    if "system exit" in items:
        raise SystemExit(1)
    return items[1:] if "size" in items else [item if item != "instance" else KeyError("one") for item in items]


def dies_once(items: list[Any]) -> list[Any]:
    path = Path(items[0])
    if path.exists():
        path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return items


class Model:
    """A handler that is made where it runs."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __call__(self, items: list[Any]) -> list[Any]:
        return [(self.pid, os.getpid()) for _ in items]


class Missing:
    def __init__(self) -> None:
        raise OSError("no model")

    def __call__(self, items: list[Any]) -> list[Any]:
        raise NotImplementedError


class Slow:
    def __init__(self) -> None:
        time.sleep(1000)

    def __call__(self, items: list[Any]) -> list[Any]:
        raise NotImplementedError


def pids(flow: Flow[Any, Any]) -> list[int]:
    return [child.pid for step in flow.stats.steps if step.processes for child in step.processes.children if child.pid]


def are_gone(processes: list[int]) -> bool:
    """Whether they have ended; they may not have been waited for."""
    return not any(is_running(pid) for pid in processes)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _waited_for() -> Iterator[None]:
    """Children that were killed are, before the next test, else with the next that is started."""
    yield
    settle(PATIENCE)


def test_steps_in_processes_and_here():
    """Each where it is to be; started side by side, and gone after a stop; they start again."""
    with Flow(Step(where, processes=2), same) as flow:
        children = pids(flow)
        assert len(children) == 2
        assert os.getpid() not in children
        assert set(flow.map(range(4))) <= set(children)
    assert are_gone(children)
    assert flow.start().ubatch(1) not in children
    assert flow.stop()


def test_it_starts_by_itself_with_its_first_item():
    """Items wait for the child meanwhile."""
    flow = Flow(Step(double, processes=1), Step(double, processes=1, name="again"))
    assert pids(flow) == []
    assert flow.map(range(5)) == [4 * item for item in range(5)]
    assert flow.stop()


def test_a_class_is_made_in_the_child_alone():
    """Once in each."""
    with Flow(Step(Model, processes=1)) as flow:
        pid = pids(flow)[0]
        assert {flow.ubatch(item) for item in range(3)} == {(pid, pid)}


def test_calls_are_bound_by_the_handlers_signature():
    """Which is looked at here: a call that does not fit fails alone, at the hand-over."""
    with Flow(Step(power, processes=1, max_size=2, timeout=0)) as flow:
        with pytest.raises(TypeError, match="power"):
            flow.ubatch(1, 2, 3)
        assert (flow.ubatch(3, exponents=3), flow.ubatch(3, 1)) == (27, 3)


def test_arrays_are_copied_once_and_passed_on():
    """A stacked batch is made in shared memory; a step that passes arrays on, and the next, copy nothing."""
    images = [np.full((64, 64), number, np.float32) for number in range(8)]
    step = Step(total, processes=1, stacked=True, max_size=8)
    with Flow(Step(same, processes=1, max_size=8, timeout=PATIENCE), step) as flow:
        assert flow.map(images) == [64 * 64 * number for number in range(8)]
        first, second = (each.processes for each in flow.stats.steps)
        assert first is not None and second is not None
        assert (first.copied, first.passed) == (8, 8)
        assert (second.copied, second.passed) == (0, 1)
        assert first.sent >= 8 * images[0].nbytes


@pytest.mark.parametrize("processes", [0, 1])
def test_stacked_is_the_first_of_the_handlers_arguments(processes):
    """However it is passed; the others are lists."""
    with Flow(Step(scaled, stacked=True, processes=processes, max_size=4, timeout=PATIENCE)) as flow:
        one = np.ones(3)
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((one,), {}),
            ((), {"images": one}),
            ((one, 2), {}),
            ((), {"scales": 3, "images": one}),
        ]
        assert results([flow.submit(*args, **kwargs) for args, kwargs in calls]) == [3, 3, 6, 9]


WRONG = {
    "raise": (KeyError, "there"),
    "instance": (KeyError, "one"),
    "size": (BadBatchOutputSize, "0 results for a batch of 1"),
    "system exit": ((HandlerFailed, WorkerDied), "1"),
    "die": (WorkerDied, "killed by SIGKILL"),
    "exit": (WorkerDied, "exited with code 3"),
    "hang": (WorkerDied, "hung"),
}


def test_a_batch_that_goes_wrong_fails_alone():
    """Whatever it is, the flow goes on, with another process if need be."""
    with Flow(same, Step(troubled, processes=1, handler_timeout=0.5), same) as flow:
        for item, (error, reason) in WRONG.items():
            with pytest.raises(error, match=reason):
                flow.ubatch(item)
            assert flow.ubatch("fine") == "fine"
        assert flow.stats.errors == len(WRONG)


def test_a_dead_child_is_told_to_the_flows_callers():
    """By the name of the step, in its batch alone; the next has another child."""
    with Flow(same, Step(troubled, processes=1, max_size=1), same, name="images") as flow:
        before = pids(flow)
        futures = [flow.submit(item) for item in ("well", "die", "fine")]
        error = futures[1].exception(PATIENCE)
        assert isinstance(error, WorkerDied) and "images.troubled" in str(error) and "SIGKILL" in str(error)
        assert results([futures[0], futures[2]]) == ["well", "fine"]
        assert dict(flow.stats.error_types) == {"WorkerDied": 1}
        eventually(lambda: pids(flow) and pids(flow) != before)


def test_a_batch_is_tried_again(tmp_path):
    """Once for each of `retries`."""
    mark = tmp_path / "mark"
    mark.touch()
    with Flow(Step(dies_once, processes=1, retries=1)) as flow:
        assert flow.ubatch(str(mark)) == str(mark)
        assert not mark.exists()


def test_a_handler_that_cannot_be_made_fails_the_start():
    """With what it raised there, and its traceback; the other steps' children are gone."""
    flow = Flow(Step(double, processes=2), Step(Missing, processes=1))
    with pytest.raises(OSError, match="no model") as raised:
        flow.start()
    assert isinstance(raised.value.__cause__, RemoteTraceback)
    assert "in __init__" in str(raised.value.__cause__)
    assert not flow.alive
    assert pids(flow) == []


def test_a_start_is_bounded():
    """By the call's own timeout, and by the step's."""
    for flow, timeout in (
        (Flow(Step(Slow, processes=1)), 1.0),
        (Flow(Step(Slow, processes=1, start_timeout=1.0)), None),
    ):
        with pytest.raises(TimeoutError):
            flow.start(timeout=timeout)
        assert not flow.alive


def test_a_stop_is_bounded_by_killing():
    """What hangs is killed, and nobody is left waiting."""
    flow = Flow(Step(troubled, processes=1), same).start()
    children = pids(flow)
    future = flow.submit("hang")
    eventually(lambda: flow.stats.steps[0].batches.running)
    assert not flow.stop(timeout=0.2)
    with pytest.raises(Stopped):
        future.result(PATIENCE)
    eventually(lambda: are_gone(children))


def test_deadlines_hold_while_a_child_works():
    """The caller is told in time, and the item goes no further."""
    seen: list[Any] = []

    def last(items):
        seen.extend(items)
        return items

    with Flow(Step(slowly, processes=1), last) as flow:
        with pytest.raises(DeadlineExceeded, match="'flow'"):
            flow.options(deadline=0.05).ubatch("late")
        assert flow.ubatch("next") == "next"
    assert seen == ["next"]


def slowly(items: list[Any]) -> list[Any]:
    time.sleep(0.2)
    return items


def test_a_forgotten_flow_leaves_no_child():
    """When it is collected."""
    flow: Any = Flow(Step(double, processes=1)).start()
    children = pids(flow)
    assert flow.ubatch(1) == 2
    before = threading.active_count()
    del flow
    eventually(lambda: are_gone(children))
    eventually(lambda: threading.active_count() < before)


def slow_model() -> Any:
    time.sleep(1000)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stop_does_not_wait_for_a_start(asynchronous):
    """What is being started is given up; the start says so."""
    flow: Flow[Any, Any] = Flow(Step(slow_model, processes=2, start_timeout=600))
    errors: list[BaseException] = []

    def start() -> None:
        try:
            flow.start()
        except Stopped as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    place = flow.steps[0]._place
    assert place is not None
    eventually(lambda: place._executor is not None and all(child.pid for child in place.stats.children))
    if asynchronous:
        asyncio.run(flow.astop(timeout=PATIENCE))
    else:
        flow.stop(timeout=PATIENCE)
    thread.join(PATIENCE)
    assert len(errors) == 1
    assert not flow.alive
    settle(PATIENCE)


@pytest.mark.parametrize("early", [True, False], ids=["before anything is there", "after all is"])
def test_a_stop_at_the_last_moment_of_a_start(monkeypatch, early):
    """It may have found nothing to end yet: then the start does. It says so."""
    flow: Flow[Any, Any] = Flow(Step(double, processes=1))
    load = flow._course._load

    def stop_beside(timeout):
        if early:
            assert flow.stop(timeout=PATIENCE)
        load(timeout)
        if not early:
            assert flow.stop(timeout=PATIENCE)

    monkeypatch.setattr(flow._course, "_load", stop_beside)
    with pytest.raises(Stopped):
        flow.start()
    stats = flow.steps[0].stats.processes
    assert stats is None or not any(child.alive for child in stats.children)
    settle(PATIENCE)


def started(flow: Flow[Any, Any]) -> None:
    with contextlib.suppress(Stopped):
        flow.start()


def test_a_start_beside_a_stop_leaves_nothing(seed):
    """Whichever comes first: a flow that is stopped has no children."""
    dice = random.Random(seed)
    flow: Flow[Any, Any] = Flow(Step(double, processes=1))
    for _ in range(8):
        thread = threading.Thread(target=started, args=(flow,))
        thread.start()
        time.sleep(dice.random() * 0.1)
        flow.stop()
        thread.join(PATIENCE)
        if not flow.alive:
            stats = flow.steps[0].stats.processes
            assert stats is None or not any(child.alive for child in stats.children)
        flow.stop()
    settle(PATIENCE)
