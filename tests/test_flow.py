"""Flows: every item goes through all steps, or its caller is told why not. Those with processes have another file."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from gates import FOREVER, PATIENCE, Gate, echo, eventually, in_thread, inject, results

import ubatch
from ubatch import (
    BadBatchOutputSize,
    DeadlineExceeded,
    Flow,
    HandlerFailed,
    QueueFull,
    Step,
    Stopped,
    WorkerDied,
)
from ubatch._course import Farewell
from ubatch._steps import Here
from ubatch._waiters import ThreadTicket, deliver
from ubatch.flow import FlowStats


def double(items: list[Any]) -> list[Any]:
    return [2 * item for item in items]


def increase(items: list[Any]) -> list[Any]:
    return [item + 1 for item in items]


class Increase:
    """A handler that is made."""

    made: list[int] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.made.append(threading.get_ident())

    def __call__(self, items: list[int]) -> list[int]:
        return increase(items)


@pytest.fixture(autouse=True)
def _none_made() -> None:
    Increase.made = []


# -- calling it ----------------------------------------------------------------------------------------------


def test_all_faces_go_through_all_steps():
    """As with a batcher: wait, take a future, many, a stream, await."""

    async def awaited() -> list[Any]:
        streamed = [result async for result in flow.astream([7])]
        return [await flow.aubatch(5), *await flow.amap([6]), *streamed]

    with Flow(double, increase, double) as flow:
        assert flow.ubatch(1) == 6
        assert flow.submit(2).result(PATIENCE) == 10
        assert flow.map([3, 4]) == [14, 18]
        assert list(flow.stream(range(300))) == [4 * item + 2 for item in range(300)]
        assert asyncio.run(awaited()) == [22, 26, 30]
        assert flow.options(priority=1, deadline=FOREVER, key="k").map([1, 2]) == [6, 10]


def test_one_step_is_enough():
    """It may also be made of a `Step`."""
    with Flow(Step(double)) as flow:
        assert flow.ubatch(1) == 2


def test_it_starts_by_itself():
    """Without `start`, and without a thread before the first item."""
    before = threading.active_count()
    flow = Flow(double, increase)
    assert flow.map([]) == []
    assert threading.active_count() == before
    assert flow.ubatch(1) == 3
    assert flow.stop()


def test_the_first_step_takes_all_arguments():
    """Bound by its handler's signature; a call that does not fit fails alone."""

    def power(numbers, exponents=2):
        return [number**exponent for number, exponent in zip(numbers, exponents, strict=True)]

    with Flow(Step(power, max_size=3, timeout=FOREVER), increase) as flow:
        with pytest.raises(TypeError, match="power"):
            flow.submit(1, 2, 3)
        assert results([flow.submit(3, 3), flow.submit(3, exponents=0), flow.submit(2, 1)]) == [28, 2, 3]


def test_a_batch_stays_together(gate):
    """What leaves a step as a batch comes to the next one as a batch."""
    with Flow(Step(echo, max_size=8, timeout=FOREVER), Step(gate, timeout=FOREVER, max_size=8)) as flow:
        gate.opened.set()
        assert flow.map(range(16)) == list(range(16))
    assert [len(batch) for batch in gate.batches] == [8, 8]


def test_steps_work_beside_each_other(gate):
    """While a step is busy, the one before it takes the next batch."""
    seen: list[Any] = []

    def first(items):
        seen.extend(items)
        return items

    with Flow(Step(first, timeout=0), Step(gate, timeout=0)) as flow:
        one = flow.submit(1)
        gate.wait_for_batch()
        others = [flow.submit(item) for item in (2, 3)]
        eventually(lambda: seen == [1, 2, 3])
        assert gate.batches == [[1]]
        gate.opened.set()
        assert results([one, *others]) == [1, 2, 3]


# -- what a step is ------------------------------------------------------------------------------------------


def test_a_step_is_a_plain_description():
    """It shows what was given, cannot be changed, may be used again, copied and pickled."""
    step = Step(double, max_size=8, name="twice")
    assert repr(step) == "Step(double, name='twice', max_size=8)"
    with pytest.raises(AttributeError):
        step.max_size = 9  # type: ignore[misc]
    assert copy.copy(step) == step == pickle.loads(pickle.dumps(step))
    with Flow(step) as one, Flow(step) as other:
        assert one.ubatch(1) == other.ubatch(1) == 2


def test_names():
    """A step's batcher is called after flow and handler, or as it was given; each has a name of its own."""
    flow = Flow(double, Step(Increase), double, Step(lambda items: items, name="double-2"), name="images")
    assert [step.name for step in flow.steps] == [
        "images.double",
        "images.Increase",
        "images.double-3",
        "images.double-2",
    ]
    assert (flow.name, Flow(double).name) == ("images", "flow")
    assert repr(flow).startswith("<Flow 'images' running, 0 under way; images.double: 0 queued, ")


async def coroutine(items: list[int]) -> list[int]:
    return items


class Coroutine:
    async def __call__(self, items: list[int]) -> list[int]:
        return items


class Needy:
    def __init__(self, path: str) -> None:
        raise NotImplementedError

    def __call__(self, items: list[int]) -> list[int]:
        raise NotImplementedError


class KeywordOnly:
    def __call__(self, *, items: list[int]) -> list[int]:
        raise NotImplementedError


POOL = ThreadPoolExecutor


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Flow(), TypeError, "at least one step"),
        (lambda: Flow(double, 5), TypeError, "callable, not 5"),
        (lambda: Flow(double, name=5), TypeError, "name .* not 5"),
        (lambda: Flow(double, deadline=0), ValueError, "deadline .* not 0"),
        (lambda: Flow(Step(double, name="a"), Step(echo, name="a")), ValueError, "different names, not 'a'"),
        (lambda: Flow(double, lambda *, items: items), TypeError, "without arguments: missing .* 'items'"),
        (lambda: Step(partial(object)), TypeError, "cannot be called"),
        (lambda: Step(Needy), TypeError, "Needy.* without arguments: missing .* 'path'"),
        (lambda: Flow(double, lambda a, b: a), TypeError, "must take one argument"),
        (lambda: Step(coroutine), TypeError, "coroutine function"),
        (lambda: Step(Coroutine), TypeError, "coroutine functions"),
        (lambda: Step(object), TypeError, "cannot be called"),
        (lambda: Step([]), ValueError, "at least one"),
        (lambda: Step(double, processes=-1), ValueError, "processes .* not -1"),
        (lambda: Step(double, processes=1.5), TypeError, "processes .* not 1.5"),
        (lambda: Step(double, when=3), TypeError, "when .* not 3"),
        (lambda: Step(double, when=coroutine), TypeError, "when"),
        (lambda: Step(double, stacked=1), TypeError, "stacked .* not 1"),
        (lambda: Step(double, name=1), TypeError, "name .* not 1"),
        (lambda: Step(double, max_size=0), ValueError, "max_size .* not 0"),
        (lambda: Step(double, timeout=-1), ValueError, "timeout .* not -1"),
        (lambda: Step(double, weight=len), ValueError, "max_weight"),
        (lambda: Step(double, overflow="drop"), ValueError, "overflow .* not 'drop'"),
        (lambda: Step(double, isolate=1), TypeError, "isolate .* not 1"),
        (lambda: Step(double, observer=1), TypeError, "observer .* not 1"),
        (lambda: Step(double, workers=0), ValueError, "workers .* not 0"),
        (lambda: Step(double, executor=3), TypeError, "executor .* not 3"),
        (lambda: Step(Increase, executor=POOL), ValueError, "Increase"),
        (lambda: Step(double, stacked=True, executor=POOL), ValueError, "stacked=True"),
        (lambda: Step(KeywordOnly, stacked=True), TypeError, "array as its first argument, unlike .*KeywordOnly"),
        (lambda: Step(double, start_method="fork"), ValueError, "start_method='fork'"),
        (lambda: Step(double, start_timeout=1.0), ValueError, "start_timeout=1.0"),
        (lambda: Step(double, handler_timeout=1.0), ValueError, "handler_timeout=1.0"),
        (lambda: Step(double, retries=1), ValueError, "retries=1"),
        (lambda: Step(double, writable=True), ValueError, "writable=True"),
        (lambda: Step(double, processes=1, start_method="new"), ValueError, "start_method .* not 'new'"),
        (lambda: Step(double, processes=1, start_timeout=0), ValueError, "start_timeout .* not 0"),
        (lambda: Step(double, processes=1, handler_timeout=-1), ValueError, "handler_timeout .* not -1"),
        (lambda: Step(double, processes=1, retries=-1), ValueError, "retries .* not -1"),
        (lambda: Step(double, processes=2, workers=3), ValueError, "workers=3"),
        (lambda: Step(double, processes=2, executor=POOL), ValueError, "processes=2"),
        (lambda: Step([double, double], processes=2), ValueError, "list of handlers"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(make, error, message):
    """Where it is given, and it names the value."""
    with pytest.raises(error, match=message):
        make()


def test_options_of_a_batcher_hold_at_a_step():
    """All of them; here some that show."""
    seen: list[Any] = []
    step = Step(echo, max_size=4, timeout=0.0, workers=2, max_queue=50, observer=seen.append, isolate=True)
    with Flow(double, step) as flow:
        batcher = flow.steps[1]
        assert (batcher.max_size, batcher.timeout, batcher.workers, batcher.max_queue) == (4, 0.0, 2, 50)
        assert flow.map(range(5)) == [0, 2, 4, 6, 8]
        eventually(lambda: sum(batch.size for batch in seen) == 5)
        assert {batch.batcher for batch in seen} == {"flow.echo"}
        batcher.reconfigure(max_size=1)
        flow.map(range(5))
        eventually(lambda: sum(batch.size for batch in seen) == 10)
        assert [batch.size for batch in seen[-5:]] == [1] * 5


def test_an_executor_of_ones_own():
    """Also one in which a handler that calls its own flow is found."""

    def nested(items):
        return [flow.ubatch(item) for item in items]

    flow = Flow(Step(nested, executor=lambda: ThreadPoolExecutor(1)), double)
    with flow, pytest.raises(RuntimeError, match="use submit"):
        flow.ubatch(1)


# -- handlers that are made ----------------------------------------------------------------------------------


def test_a_class_is_called_once_at_the_start():
    """In a thread of its own; a second start makes no other."""
    flow = Flow(double, Increase)
    assert Increase.made == []
    assert flow.start() is flow
    assert len(Increase.made) == 1
    assert flow.start(timeout=PATIENCE).map([1, 2]) == [3, 5]
    assert flow.stop()
    assert flow.start().ubatch(1) == 3
    assert flow.stop()
    assert len(Increase.made) == 1


def test_a_class_is_called_once_at_the_first_item():
    """By several workers that need it at once, too."""

    def load():
        time.sleep(0.05)
        return Increase()

    flow = Flow(double, Step(lambda: load(), workers=4, max_size=1))
    assert flow.map(range(50)) == [2 * item + 1 for item in range(50)]
    assert len(Increase.made) == 1
    assert flow.stop()


def test_a_function_without_arguments_makes_a_handler():
    """It may have others, by name; so does a list of them, each for its own worker."""

    def load(*, by: int = 2):
        Increase.made.append(by)
        return lambda items: [by * item for item in items]

    with Flow(load, [load, load]) as flow:
        assert flow.ubatch(1) == 4
        assert Increase.made == [2, 2, 2]
        assert flow.steps[1].workers == 2


def test_handlers_are_made_side_by_side():
    """Each of the two waits for the other."""
    both = threading.Barrier(2)

    def load():
        both.wait(PATIENCE)
        return double

    with Flow(load, load) as flow:
        assert flow.ubatch(1) == 4


def failing() -> Any:
    raise OSError("no model")


def test_a_handler_that_cannot_be_made_fails_the_start():
    """With what it raised; the flow is stopped then."""
    flow = Flow(double, failing, Increase)
    with pytest.raises(OSError, match="no model"):
        flow.start()
    assert not flow.alive
    with pytest.raises(Stopped, match="'flow'"):
        flow.ubatch(1)


def test_a_failed_start_waits_for_no_other_handler():
    """It raises while another is still being made."""
    go_on, ended = threading.Event(), threading.Event()

    def load():
        go_on.wait(PATIENCE)
        ended.set()
        return double

    flow = Flow(load, failing)
    with pytest.raises(OSError, match="no model"):
        flow.start()
    assert not ended.is_set()
    go_on.set()


def test_a_handler_that_takes_too_long_to_make_fails_the_start():
    """As a `TimeoutError` that says how long; what it makes in the end is of use later."""
    go_on = threading.Event()

    def load():
        assert go_on.wait(PATIENCE)
        return double

    flow = Flow(load)
    with pytest.raises(TimeoutError, match=r"'flow' was not ready within 0.01 s"):
        flow.start(timeout=0.01)
    assert not flow.alive
    go_on.set()
    assert flow.start().ubatch(1) == 2
    assert flow.stop()


def test_without_a_start_a_handler_that_cannot_be_made_fails_its_batch():
    """And is tried again with the next."""
    attempts = iter([OSError("no model"), TypeError("neither")])

    def load():
        error = next(attempts, None)
        if error is not None:
            raise error
        return double

    flow = Flow(load)
    with pytest.raises(OSError, match="no model"):
        flow.ubatch(1)
    with pytest.raises(TypeError, match="neither"):
        flow.ubatch(1)
    assert flow.ubatch(1) == 2
    assert flow.stop()


def test_what_is_made_must_be_a_handler():
    """Something that can be called."""
    with pytest.raises(TypeError, match="must make a handler"), Flow(lambda: 5):
        pass


# -- stacked -------------------------------------------------------------------------------------------------


def test_stacked_arrays():
    """The handler gets one array; those that differ in shape or dtype share no batch, whatever `key` says."""
    shapes: list[Any] = []

    def total(array, scale=1.0):
        shapes.append((array.shape, str(array.dtype)))
        return array.sum(axis=1)

    arrays = [np.ones(size, dtype) for size in (3, 5) for dtype in ("f4", "f8") for _ in range(2)]
    step = Step(total, stacked=True, max_size=8, timeout=0.0, key=lambda array: 0)
    with Flow(echo, step) as flow:
        assert flow.map(arrays) == flow.options(key="one").map(arrays) == [3, 3, 3, 3, 5, 5, 5, 5]
    expected = [((2, size), dtype) for size in (3, 5) for dtype in ("float32", "float64")]
    assert sorted(shapes) == sorted(expected * 2)


def test_stacked_takes_arrays_alone():
    """Anything else is that item's error, in the caller or behind another step."""
    for flow in (Flow(Step(echo, stacked=True)), Flow(echo, Step(echo, stacked=True))):
        with flow, pytest.raises(TypeError, match="takes arrays, not 'int'"):
            flow.ubatch(5)


def test_stacked_without_its_array():
    """The parameter is named, if it has a name, to that caller alone."""
    with Flow(Step(lambda images=None, scales=1: images, stacked=True)) as flow:
        with pytest.raises(TypeError, match="'images'"):
            flow.submit(scales=5)
        with pytest.raises(TypeError, match="takes arrays, not 'NoneType'"):
            flow.submit(images=None)
        assert flow.ubatch(images=np.float64(3)) == 3
    with Flow(Step(lambda *columns: columns[0], stacked=True)) as flow, pytest.raises(TypeError, match=r"argument$"):
        flow.submit()


class Sparse:
    """Has a shape and a dtype, but numpy makes no array of it but one of a single object."""

    shape, dtype = (2, 2), np.dtype(float)


@pytest.mark.parametrize("odd", [np.ma.masked_greater(np.arange(4.0), 1), Sparse()], ids=["masked", "sparse"])
def test_what_cannot_be_stacked_is_one_items_error(odd):
    """At the hand-over, or when it comes out of the step before; its neighbours are served."""

    def total(array):
        return array.sum(axis=1)

    for flow in (Flow(Step(total, stacked=True)), Flow(echo, Step(total, stacked=True, timeout=0.0))):
        with flow:
            with pytest.raises(TypeError, match="cannot be stacked"):
                flow.ubatch(odd)
            got = flow.map([np.ones(3), np.ones(3)])
            assert got == [3, 3]
            assert flow.steps[-1].stats.errors == 0


def test_what_was_made_unlike_since_is_found_out():
    """A thread stacks by the same rules as a process."""
    handler = Here(echo, stacked=True)
    for arrays, error in ([[np.ma.masked_array([1], [True])], TypeError], [[np.ones(2), np.ones(3)], ValueError]):
        with pytest.raises(error, match="stacked"):
            handler(arrays)


def test_stacked_and_a_class():
    """It is made as ever."""

    class Total:
        def __call__(self, array):
            return array.sum(axis=1)

    with Flow(Step(Total, stacked=True)) as flow:
        assert flow.ubatch(np.ones(3)) == 3


# -- when ----------------------------------------------------------------------------------------------------

ODD = {"when": lambda item: item % 2}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([Step(double, **ODD), increase], [1, 3, 3, 7]),
        ([increase, Step(double, **ODD)], [2, 2, 6, 4]),
        ([increase, Step(double, **ODD), increase], [3, 3, 7, 5]),
        ([Step(double, **ODD), Step(double, **ODD)], [0, 2, 2, 6]),
        ([Step(double, **ODD)], [0, 2, 2, 6]),
    ],
    ids=["first", "last", "in the middle", "all", "the only one"],
)
def test_what_a_step_does_not_take_passes_it_by(steps, expected):
    """As it is; also past all steps, and in each face."""

    async def awaited():
        return await flow.amap(range(4)), [await flow.aubatch(item) for item in range(4)]

    with Flow(*steps) as flow:
        assert flow.map(range(4)) == expected
        assert [flow.ubatch(item) for item in range(4)] == expected
        assert results([flow.submit(item) for item in range(4)]) == expected
        assert asyncio.run(awaited()) == (expected, expected)
        stats = flow.stats
    assert (stats.items, stats.running, stats.errors) == (20, 0, 0)


def test_when_sees_all_arguments_of_the_first_step():
    """But only a single one can pass by."""

    def first(items, flags):
        return items

    with Flow(Step(first, when=lambda item, flag=True: flag), double) as flow:
        assert flow.ubatch(1, True) == 2
        with pytest.raises(TypeError, match="passes by the first step"):
            flow.ubatch(1, False)
        assert flow.stats.submitted == 1


def check(item: Any) -> bool:
    if item == 7:
        raise KeyError("seven")
    if item == 8:
        raise SystemExit(8)
    return True


def weigh(item: Any) -> float:
    check(item)
    return 1.0


USER_CODE = [{"when": check}, {"key": check}, {"weight": weigh, "max_weight": 100.0}]


@pytest.mark.parametrize("options", USER_CODE, ids=["when", "key", "weight"])
def test_what_user_code_raises_behind_a_step_is_one_items_error(options):
    """The others of its batch go on; what must not be raised in a caller is wrapped."""
    with Flow(Step(echo, timeout=FOREVER, max_size=4), Step(double, **options)) as flow:
        futures = [flow.submit(item) for item in (6, 7, 8, 9)]
        assert [futures[0].result(PATIENCE), futures[3].result(PATIENCE)] == [12, 18]
        with pytest.raises(KeyError, match="seven") as raised:
            futures[1].result(PATIENCE)
        frames = [frame.name for frame in raised.traceback]
        assert frames[-1] == "check"
        assert "pass_on" not in frames and "_take_in" not in frames
        assert isinstance(futures[2].exception(PATIENCE), HandlerFailed)
        assert flow.steps[1].stats.items == 2


@pytest.mark.parametrize("options", USER_CODE, ids=["when", "key", "weight"])
def test_what_user_code_raises_at_the_first_step_is_raised_at_the_hand_over(options):
    """Then nothing of the call is accepted."""
    with Flow(Step(double, **options)) as flow:
        with pytest.raises(KeyError, match="seven"):
            flow.submit(7)
        with pytest.raises(KeyError, match="seven"):
            flow.map([5, 6, 7])
        assert flow.map([1, 2]) == [2, 4]
        assert (flow.stats.submitted, flow.steps[0].stats.items) == (2, 2)


# -- errors --------------------------------------------------------------------------------------------------


def broken(items: list[Any]) -> Any:
    if items == ["instance", "fine"]:
        return [KeyError("instance"), "well"]
    if "size" in items:
        return items[1:]
    if "exit" in items:
        raise SystemExit(1)
    raise KeyError("all")


@pytest.mark.parametrize("behind", [False, True], ids=["first step", "second step"])
@pytest.mark.parametrize(
    ("item", "error"), [("raise", KeyError), ("size", BadBatchOutputSize), ("exit", HandlerFailed)]
)
def test_errors_reach_the_callers_of_a_batch(behind, item, error):
    """Each an object of its own; they go no further, and the next batch is unaffected."""
    seen: list[Any] = []

    def last(items):
        seen.extend(items)
        return items

    steps = [Step(echo, timeout=FOREVER, max_size=2)] if behind else []
    with Flow(*steps, Step(broken, timeout=FOREVER, max_size=2), last) as flow:
        futures = [flow.submit(item), flow.submit(item)]
        errors = [future.exception(PATIENCE) for future in futures]
        assert [type(each) for each in errors] == [error, error]
        assert errors[0] is not errors[1]
        futures = [flow.submit("instance"), flow.submit("fine")]
        assert isinstance(futures[0].exception(PATIENCE), KeyError)
        assert futures[1].result(PATIENCE) == "well"
        assert seen == ["well"]
        assert dict(flow.stats.error_types) in ({error.__name__: 2, "KeyError": 1}, {"KeyError": 3})


def test_a_dead_worker_is_replaced(gate):
    """Its batch fails; items at other steps are unaffected."""

    class Died(BaseException):
        pass

    with Flow(Step(gate, timeout=0), Step(increase)) as flow:
        lost = flow.submit(1)
        gate.wait_for_batch()
        station = flow._course.first

        def dies(legs, took):
            station.__dict__.pop("pass_on")
            raise Died

        station.pass_on = dies  # type: ignore[method-assign]
        gate.opened.set()
        assert lost.result(PATIENCE) == 2  # its outcome was there, and is delivered all the same
        assert flow.ubatch(1) == 2


def test_an_interrupt_while_moving_on_loses_nothing(monkeypatch):
    """An exception injected between two steps is an error of the items on their way, not a hang."""

    class Died(BaseException):
        pass

    with Flow(double, increase) as flow:
        second = flow.steps[1]

        def enter(*args: Any, **kwargs: Any) -> int:
            monkeypatch.undo()
            raise Died

        monkeypatch.setattr(second, "_enter", enter)
        with pytest.raises(HandlerFailed, match="Died"):
            flow.ubatch(1)
        assert flow.ubatch(1) == 3
        assert flow.stats.running == 0


# -- order ---------------------------------------------------------------------------------------------------


def test_priorities_hold_at_each_step(gate):
    """Lower runs first, at the second step too."""
    with Flow(Step(echo, timeout=0), Step(gate, timeout=0, max_size=1)) as flow:
        first = flow.submit("first")
        gate.wait_for_batch()
        futures = [flow.options(priority=priority).submit(priority) for priority in (3, 1, 2)]
        eventually(lambda: flow.steps[1].stats.queued == 3)
        gate.opened.set()
        results([first, *futures])
    assert gate.batches == [["first"], [1], [2], [3]]


def test_the_time_waited_travels_along():
    """At the next step, who came into the flow earlier runs first, though it came to the step later."""
    slow, last = Gate(), Gate()
    steps = [Step(slow, timeout=0, when=lambda item: item == "slow"), Step(last, timeout=0, max_size=1)]
    with Flow(*steps) as flow:
        before = flow.options(priority=0)
        futures = [before.submit("first")]
        last.wait_for_batch()
        futures.append(before.submit("slow"))
        slow.wait_for_batch()
        futures.append(before.submit("quick"))
        slow.opened.set()
        eventually(lambda: flow.steps[1].stats.queued == 2)
        last.opened.set()
        results(futures)
    assert last.batches == [["first"], ["slow"], ["quick"]]


def test_a_key_of_options_holds_at_each_step(gate):
    """Items of different keys share no batch anywhere."""
    gate.opened.set()
    with Flow(Step(echo, timeout=0), Step(gate, timeout=0.05)) as flow:
        futures = [flow.options(key=item % 2).submit(item) for item in range(6)]
        assert results(futures) == list(range(6))
    assert all(len({item % 2 for item in batch}) == 1 for batch in gate.batches)


# -- deadlines, leaving --------------------------------------------------------------------------------------


def test_a_deadline_is_for_all_steps_together(gate):
    """It is told in time while a later step is busy, whose handler never sees the item; it names the flow."""
    seen: list[Any] = []

    def first(items):
        seen.extend(items)
        return items

    async def awaited():
        await hasty.aubatch("task")

    with Flow(Step(first, timeout=0), Step(gate, timeout=0), name="images") as flow:
        kept = flow.submit("kept")
        gate.wait_for_batch()
        hasty = flow.options(deadline=0.02)
        message = "'images' had no result within the item's deadline of 0.02 s"
        with pytest.raises(DeadlineExceeded, match=message):
            hasty.submit("future").result(PATIENCE)
        with pytest.raises(DeadlineExceeded, match=message):
            hasty.ubatch("thread")
        with pytest.raises(DeadlineExceeded, match=message):
            hasty.map(["map"])
        with pytest.raises(DeadlineExceeded, match=message):
            asyncio.run(awaited())
        eventually(lambda: seen == ["kept", "future", "thread", "map", "task"])
        gate.opened.set()
        assert kept.result(PATIENCE) == "kept"
        assert flow.ubatch("next") == "next"
        assert (flow.stats.expired, flow.stats.errors, flow.stats.running) == (4, 0, 0)
    assert gate.batches == [["kept"], ["next"]]


def test_a_deadline_that_passes_in_a_batch_goes_no_further(gate):
    """The step behind it never sees the item."""
    seen: list[Any] = []

    def last(items):
        seen.extend(items)
        return items

    with Flow(gate, last, deadline=0.02) as flow:
        with pytest.raises(DeadlineExceeded):
            flow.ubatch("late")
        gate.opened.set()
        assert flow.options(deadline=FOREVER).ubatch("in time") == "in time"
    assert seen == ["in time"]


def test_a_step_leaves_the_steps_behind_the_time_that_they_need():
    """As much as their batches took so far, and half as much again: a result is there in time, each time."""

    def slow(items):
        time.sleep(0.2)
        return items

    with Flow(Step(echo, timeout=FOREVER), slow, Step(echo, timeout=FOREVER), deadline=1.0) as flow:
        assert [flow.ubatch(n) for n in range(3)] == [0, 1, 2]
        assert flow.stats.steps[0].batches.deadline == 3


def test_a_deadline_in_the_past_is_refused_at_once():
    """Nothing of it is accepted."""
    with Flow(double) as flow:
        with pytest.raises(DeadlineExceeded, match="'flow'"):
            flow.options(deadline=0).submit(1)
        assert flow.stats.submitted == 0


def test_a_deadline_found_passed_by_a_step_names_the_flow(gate):
    """Also where the step's worker is the first to notice, as its caller looks no more."""
    with Flow(echo, Step(gate, timeout=0), name="images") as flow:
        kept = flow.submit("kept")
        gate.wait_for_batch()
        future = flow.options(deadline=0.01).submit("late")
        future.late = None  # its alarm does nothing
        eventually(lambda: flow.steps[1].stats.queued == 1)
        time.sleep(0.02)
        gate.opened.set()
        error = future.exception(PATIENCE)
        assert isinstance(error, DeadlineExceeded)
        assert (error.name, error.deadline) == ("images", 0.01)
        assert kept.result(PATIENCE) == "kept"
        assert flow.stats.expired == 1


def test_a_deadline_is_fixed_at_the_entrance(gate):
    """It is the same moment at each step, also for a `map` whose items took their time."""

    def slowly():
        yield 1
        time.sleep(0.6)
        yield 2

    with Flow(Step(echo, timeout=0), Step(gate, timeout=0), deadline=FOREVER) as flow:
        flow.submit(1)
        gate.wait_for_batch()
        future = flow.submit(2)
        eventually(lambda: flow.steps[1].stats.queued)
        (leg,) = flow.steps[1]._schedule.queued()
        assert leg.terms is not None
        assert (leg.terms.expires, leg.terms.deadline) == (future.terms.expires, FOREVER)
        gate.opened.set()
        assert flow.options(deadline=0.5).map(slowly()) == [1, 2]


def test_cancelling_a_future(gate):
    """It can be until its item is in its first batch; then it goes through."""
    seen: list[Any] = []

    def last(items):
        seen.extend(items)
        return items

    with Flow(Step(gate, timeout=0), last) as flow:
        running = flow.submit("running")
        gate.wait_for_batch()
        queued = flow.submit("queued")
        assert queued.cancel()
        assert not running.cancel()
        gate.opened.set()
        assert running.result(PATIENCE) == "running"
        assert not running.cancel()
        with pytest.raises(CancelledError):
            queued.result()
        assert flow.ubatch("next") == "next"
        assert (flow.stats.cancelled, flow.stats.running) == (1, 0)
    assert seen == ["running", "next"]


def test_a_caller_that_leaves_while_its_item_is_in_a_batch(gate, run):
    """The item goes no further than that; the others of the batch do."""
    seen: list[Any] = []

    def last(items):
        seen.extend(items)
        return items

    async def main():
        tasks = [asyncio.ensure_future(flow.aubatch(item)) for item in ("leaves", "stays")]
        await asyncio.sleep(0)
        await asyncio.to_thread(gate.wait_for_batch)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert tasks[0].cancelled()
        gate.opened.set()
        return await tasks[1]

    asked: list[Any] = []
    steps = Step(gate, max_size=2, timeout=FOREVER), Step(last, when=lambda item: asked.append(item) or True)
    with Flow(*steps) as flow:
        assert run(main) == "stays"
        assert flow.stats.cancelled == 1
    assert seen == asked == ["stays"]


def test_one_wake_up_for_a_batch(run):
    """However many tasks of one event loop are in the last step's batch."""

    async def main():
        loop = asyncio.get_running_loop()
        wakes: list[Any] = []
        original = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args, **more: (wakes.append(args), original(*args, **more))[1]
        assert await asyncio.gather(*(flow.aubatch(item) for item in range(20))) == [4 * item for item in range(20)]
        return len(wakes)

    with Flow(Step(double, max_size=20, timeout=FOREVER), Step(double, max_size=20, timeout=FOREVER)) as flow:
        loop = asyncio.new_event_loop()
        try:
            assert loop.run_until_complete(main()) == 1
        finally:
            loop.close()


# -- full queues ---------------------------------------------------------------------------------------------


def test_a_full_first_step_refuses(gate):
    """At the hand-over, and all of a `map`; the flow counts them."""
    with Flow(Step(gate, timeout=0, max_queue=2), double, name="images") as flow:
        futures = [flow.submit(0)]
        gate.wait_for_batch()
        futures.append(flow.submit(1))
        with pytest.raises(QueueFull, match=r"images\.Gate"):
            flow.map([2, 3])
        futures.append(flow.submit(2))
        with pytest.raises(QueueFull):
            flow.ubatch(3)
        gate.opened.set()
        assert results(futures) == [0, 2, 4]
        assert (flow.stats.rejected, flow.stats.submitted) == (3, 3)


def test_a_full_first_step_refuses_a_map_of_which_some_pass_it_by(gate):
    """All of it."""
    with Flow(Step(gate, timeout=0, max_queue=1, when=lambda item: item < 9), double) as flow:
        futures = [flow.submit(0)]
        gate.wait_for_batch()
        futures.append(flow.submit(1))
        with pytest.raises(QueueFull):
            flow.map([10, 2])
        assert (flow.stats.rejected, flow.stats.submitted) == (2, 2)
        gate.opened.set()
        assert results(futures) == [0, 2]


def test_a_full_first_step_lets_wait(gate):
    """In order, as at a batcher; a future is given once there is room."""
    with Flow(Step(gate, timeout=0, max_queue=1, max_size=1, overflow="block"), double) as flow:
        first = flow.submit(0)
        gate.wait_for_batch()
        second = flow.submit(1)
        submitted = in_thread(flow.submit, 2)
        mapped = in_thread(flow.map, [3, 4])
        with pytest.raises(DeadlineExceeded):
            flow.options(deadline=0.02).submit(5)
        assert not submitted.done()
        gate.opened.set()
        assert results([first, second]) == [0, 2]
        assert submitted.result(PATIENCE).result(PATIENCE) == 4
        assert mapped.result(PATIENCE) == [6, 8]


def test_a_cancelled_item_makes_room_at_its_step(gate):
    """At once, before any worker looks: at the first step and at a later one."""
    with Flow(Step(gate, timeout=0, max_queue=1), double) as flow:
        first = flow.submit(0)
        gate.wait_for_batch()
        assert flow.submit(1).cancel()
        last = flow.submit(2)
        gate.opened.set()
        assert results([first, last]) == [0, 4]
    later = Gate()
    with Flow(Step(echo, timeout=0), Step(later, timeout=0, max_queue=1)) as flow:
        first = flow.submit(0)
        later.wait_for_batch()
        task = flow.submit(1)
        eventually(lambda: flow.stats.steps[1].batches.queued == 1)
        flow._leave([task])
        last = flow.submit(2)
        eventually(lambda: flow.stats.steps[1].batches.queued == 1)
        later.opened.set()
        assert results([first, last]) == [0, 2]


def test_who_passes_the_first_step_by_is_let_in_or_refused_by_the_next(gate):
    """As it would be by the first; of a `map`, the others are not refused with it."""
    steps = [Step(double, when=lambda item: item > 9), Step(gate, timeout=0, max_queue=1)]
    with Flow(*steps) as flow:
        first = flow.submit(0)
        gate.wait_for_batch()
        second = flow.submit(1)
        with pytest.raises(QueueFull, match="Gate"):
            flow.submit(2)
        with pytest.raises(QueueFull, match="Gate"):
            flow.map([10, 3])
        gate.opened.set()
        assert results([first, second]) == [0, 1]


def test_a_full_later_step_fails_those_for_which_there_is_no_room(gate):
    """One by one, with `QueueFull`; the others of their batch go on."""
    with Flow(Step(echo, timeout=FOREVER, max_size=4), Step(gate, timeout=0, max_queue=3)) as flow:
        first = [flow.submit(item) for item in range(4)]
        assert [type(future.exception(PATIENCE)) for future in first[3:]] == [QueueFull]
        gate.wait_for_batch()
        futures = [flow.submit(item) for item in range(4, 8)]
        assert isinstance(futures[3].exception(PATIENCE), QueueFull)
        gate.opened.set()
        assert results([*first[:3], *futures[:3]]) == [0, 1, 2, 4, 5, 6]
        assert flow.steps[1].stats.rejected == 2
        assert flow.stats.rejected == 0


def test_a_full_later_step_lets_the_one_before_wait(gate):
    """And that one's full queue in its turn who submits: that is back-pressure."""
    seen: list[int] = []

    def first(items):
        seen.extend(items)
        return items

    steps = [
        Step(first, timeout=0, max_size=1, max_queue=1, overflow="block"),
        Step(gate, timeout=0, max_size=1, max_queue=1, overflow="block"),
    ]
    with Flow(*steps) as flow:
        submitted = in_thread(lambda: [flow.submit(item) for item in range(8)])
        gate.wait_for_batch()  # 0 is there, 1 in the queue, 2 waits for room with its worker, 3 in the first queue
        eventually(lambda: seen == [0, 1, 2])
        eventually(lambda: flow.steps[0].stats.queued == 1)
        time.sleep(0.02)
        assert seen == [0, 1, 2]
        assert not submitted.done()
        gate.opened.set()
        assert results(submitted.result(PATIENCE)) == list(range(8))


@pytest.fixture
def waiting(gate):
    """A flow of which a worker waits for room: the futures are those of what runs, is queued, and waits."""
    steps = [Step(echo, timeout=0, max_size=1), Step(gate, timeout=0, max_size=1, max_queue=1, overflow="block")]
    with Flow(*steps) as flow:
        futures = [flow.submit(0)]
        gate.wait_for_batch()
        futures += [flow.submit(1)]
        eventually(lambda: flow.steps[1].stats.queued == 1)
        futures += [flow.options(deadline=0.1).submit(2)]
        eventually(lambda: len(flow.steps[1]._schedule.lobby) == 1)
        futures += [flow.submit(3)]
        yield flow, futures
        gate.opened.set()


def test_a_worker_that_waits_goes_on_when_the_item_expires(waiting, gate):
    """Though there is still no room."""
    flow, futures = waiting
    assert isinstance(futures[2].exception(PATIENCE), DeadlineExceeded)
    eventually(lambda: flow.steps[0].stats.items == 4)
    gate.opened.set()
    assert results([futures[0], futures[1], futures[3]]) == [0, 1, 3]


def test_a_worker_that_waits_goes_on_when_the_flow_gives_up(waiting):
    """Everything fails with `Stopped`, wherever it is, and the flow can be started again."""
    flow, futures = waiting
    assert not flow.stop(timeout=0.01)
    for future in [*futures[:2], futures[3]]:
        with pytest.raises(Stopped, match="'flow'"):
            future.result(PATIENCE)
    assert isinstance(futures[2].exception(PATIENCE), (Stopped, DeadlineExceeded))
    assert flow.stats.running == 0


def test_a_worker_that_waits_is_drained(waiting, gate):
    """A stop waits for it, as for all."""
    flow, futures = waiting
    stopped = in_thread(flow.stop)
    eventually(lambda: not flow.alive)
    gate.opened.set()
    assert stopped.result(PATIENCE) is True
    assert results([futures[0], futures[1], futures[3]]) == [0, 1, 3]


def test_a_flows_own_workers_do_not_wait_for_room():
    """A done-callback that submits anew where all is full gets `QueueFull`, and the flow does not stand still."""
    outcomes: list[Any] = []

    def again(future):
        try:
            outcomes.append(flow.submit(10))
        except QueueFull as error:
            outcomes.append(error)

    block = {"timeout": 0.0, "max_size": 1, "max_queue": 1, "overflow": "block"}
    gates = Gate(), Gate()
    with Flow(*(Step(gate, name=f"gate{index}", **block) for index, gate in enumerate(gates))) as flow:
        futures = [flow.submit(0)]
        gates[0].wait_for_batch()
        gates[0].opened.set()
        gates[1].wait_for_batch()
        futures += [flow.submit(1), flow.submit(2)]
        eventually(lambda: len(flow.steps[1]._schedule.lobby) == 1)
        futures += [flow.submit(3)]
        futures[0].add_done_callback(again)
        gates[1].opened.set()
        assert results(futures) == [0, 1, 2, 3]
        eventually(lambda: outcomes)
        assert isinstance(outcomes[0], QueueFull) or outcomes[0].result(PATIENCE) == 10


# -- starting, stopping --------------------------------------------------------------------------------------


def test_a_stop_drains_all_steps(gate):
    """Step by step, and refuses new items meanwhile."""
    flow = Flow(Step(gate, timeout=0, max_size=2), Step(double, timeout=FOREVER), increase, name="images")
    futures = [flow.submit(item) for item in range(7)]
    gate.wait_for_batch()
    stopped = in_thread(flow.stop)
    eventually(lambda: not flow.alive)
    with pytest.raises(Stopped, match="'images' is stopped"):
        flow.submit(9)
    assert not stopped.done()
    gate.opened.set()
    assert stopped.result(PATIENCE) is True
    assert results(futures) == [2 * item + 1 for item in range(7)]
    assert flow.stop() is True


def test_a_stop_without_draining(gate):
    """What waits fails at once, also behind the batch that runs."""
    last = Gate()
    flow = Flow(Step(gate, timeout=0, max_size=1), Step(last, timeout=0, max_size=1), increase)
    gate.opened.set()
    futures = [flow.submit(0)]
    last.wait_for_batch()
    futures += [flow.submit(1)]
    eventually(lambda: flow.steps[1].stats.queued == 1)
    gate.opened.clear()
    gate.wait_for_batch()
    gate.wait_for_batch()
    futures += [flow.submit(2)]
    gate.wait_for_batch()
    futures += [flow.submit(3)]
    stopped = in_thread(flow.stop, False)
    for waits in (futures[1], futures[3]):
        with pytest.raises(Stopped, match="'flow'"):
            waits.result(PATIENCE)
    assert not futures[0].done() and not futures[2].done()
    gate.opened.set()
    last.opened.set()
    assert stopped.result(PATIENCE) is True
    for running in (futures[0], futures[2]):
        with pytest.raises(Stopped, match="'flow'"):
            running.result(PATIENCE)


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_is_bounded(gate, at, run):
    """After `timeout`, everything fails; with a handler that never returns at whatever step, also for `astop`.

    The flow can be started again while that still hangs.
    """
    steps: list[Any] = [Step(echo, timeout=0), Step(echo, timeout=0, name="last")]
    steps[at] = Step(lambda items: gate(items) if 0 in items else items, timeout=0)
    for stop in (Flow.stop, lambda flow, **bound: run(lambda: flow.astop(**bound))):
        flow = Flow(*steps)
        futures = [flow.submit(0)]
        gate.wait_for_batch()
        futures += [flow.submit(1)]
        assert stop(flow, timeout=0.02) is False
        for future in futures:
            with pytest.raises(Stopped, match="'flow'"):
                future.result(PATIENCE)
        assert flow.stats.running == 0
        assert flow.start().options(deadline=PATIENCE / 2).ubatch(5) == 5
        assert flow.stop()


def test_a_stop_is_bounded_between_steps():
    """Also where a predicate never returns."""
    entered, opened = threading.Event(), threading.Event()

    def when(item):
        entered.set()
        return opened.wait(PATIENCE)

    flow = Flow(double, Step(double, when=when))
    future = flow.submit(1)
    assert entered.wait(PATIENCE)
    assert not flow.stop(timeout=0.02)
    with pytest.raises(Stopped, match="'flow'"):
        future.result(PATIENCE)
    opened.set()


def test_a_stop_tells_those_who_wait_for_room_at_a_later_step(gate):
    """They passed by the first one, and have not been let in."""
    block = Step(gate, timeout=0, max_size=1, max_queue=1, overflow="block")
    flow = Flow(Step(double, when=lambda item: False), block)
    futures = [flow.submit(1)]
    gate.wait_for_batch()
    futures += [flow.submit(2)]
    waits = in_thread(flow.ubatch, 3)
    eventually(lambda: flow.steps[1]._schedule.lobby)
    stopped = in_thread(flow.stop)
    with pytest.raises(Stopped, match="'flow'"):
        waits.result(PATIENCE)
    gate.opened.set()
    assert stopped.result(PATIENCE) is True
    assert results(futures) == [1, 2]


def test_astop_drains(run):
    """While the event loop goes on."""

    async def main():
        flow = Flow(double, increase)
        tasks = [asyncio.ensure_future(flow.aubatch(item)) for item in range(5)]
        await asyncio.sleep(0)
        assert await flow.astop()
        return await asyncio.gather(*tasks)

    assert run(main) == [1, 3, 5, 7, 9]


def test_start_overtakes_a_stop(gate):
    """The stop says so; whatever was accepted goes through."""
    flow = Flow(Step(gate, timeout=0), double)
    first = flow.submit(1)
    gate.wait_for_batch()
    stopped = in_thread(flow.stop)
    eventually(lambda: not flow.alive)
    flow.start()
    assert stopped.result(PATIENCE) is False
    second = flow.submit(2)
    gate.opened.set()
    assert results([first, second]) == [2, 4]
    assert flow.stop()


def test_a_stop_behind_the_first_step_does_not_close_what_was_opened_again(gate):
    """A stop that waits for a later step is overtaken, too."""
    flow = Flow(double, Step(gate, timeout=0), increase)
    first = flow.submit(1)
    gate.wait_for_batch()
    stopped = in_thread(flow.stop)
    eventually(lambda: flow.steps[1]._closed)
    flow.start()
    assert stopped.result(PATIENCE) is False
    second = flow.submit(2)
    gate.opened.set()
    assert results([first, second]) == [3, 5]
    assert flow.ubatch(3) == 7
    assert flow.stop()


def test_a_stop_that_was_overtaken_closes_and_fails_nothing():
    """Not even if it comes to the next step, or runs out of time, only now."""
    flow = Flow(double, increase)
    openings = flow._course.close(drain=True)
    ticket = ThreadTicket((), {}, 0)
    farewell = Farewell(ticket, flow._course.first, openings)
    flow.start()
    deliver([farewell], [True])
    assert ticket.outcome is False
    flow._course.give_up(openings)
    assert flow.ubatch(1) == 3
    assert flow.stop()


@pytest.mark.parametrize("at", [0, 1])
def test_a_stop_from_within_does_not_wait(at):
    """From a handler and from a done-callback: the flow ends by itself."""
    told: list[Any] = []

    def stops(items):
        told.append(flow.stop())
        return items

    steps: list[Any] = [double, increase]
    steps.insert(at, stops)
    flow = Flow(*steps)
    assert flow.ubatch(1) == 3
    assert told == [False]
    assert not flow.alive
    eventually(lambda: all(batcher._closed and not batcher._crew for batcher in flow.steps))


def test_many_stops_at_once():
    """All of them return."""
    flow = Flow(double, increase)
    futures = [flow.submit(item) for item in range(100)]
    stops = [in_thread(flow.stop) for _ in range(8)]
    assert all(stop.result(PATIENCE) for stop in stops)
    assert results(futures) == [2 * item + 1 for item in range(100)]


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("call", ["ubatch", "map", "aubatch", "stream"])
def test_a_flows_own_worker_cannot_wait(at, call):
    """It raises at once at any step, and `submit` works."""
    caught: list[Any] = []

    def within(items):
        if items == [5]:
            return items
        try:
            if call == "aubatch":
                asyncio.run(flow.aubatch(5))
            else:
                list(getattr(flow, call)([5]) if call != "ubatch" else [flow.ubatch(5)])
        except RuntimeError as error:
            caught.append(str(error))
        later.append(flow.submit(5))
        return items

    later: list[Any] = []
    steps: list[Any] = [echo]
    steps.insert(at, Step(within, max_size=1))
    with Flow(*steps) as flow:
        assert flow.ubatch(1) == 1
        assert results(later) == [5]
    assert ["use submit()" in message for message in caught] == [True]


def test_copies_are_refused():
    """A flow has threads."""
    with pytest.raises(TypeError, match="make one where it is needed"):
        copy.copy(Flow(double))


# -- being let go of -----------------------------------------------------------------------------------------


def test_a_forgotten_flow_is_collected():
    """Without a garbage collection, and its threads end; what is under way goes through before."""
    before = threading.active_count()
    gate = Gate()
    flow: Any = Flow(Step(gate, timeout=0), double, increase)
    gone = [weakref.ref(flow), *map(weakref.ref, flow.steps)]
    gc.disable()
    try:
        future = flow.submit(1)
        gate.wait_for_batch()
        del flow
        assert gone[0]() is None
        gate.opened.set()
        assert future.result(PATIENCE) == 3
        eventually(lambda: all(ref() is None for ref in gone))
        eventually(lambda: threading.active_count() == before)
    finally:
        gc.enable()


class Item:
    """Something that can be referred to weakly."""


@pytest.mark.parametrize("outcome", ["result", "error", "leave", "stop"])
def test_nothing_is_kept_of_an_item(outcome, gate):
    """Once it is resolved, and while workers idle: neither itself nor what steps made of it; not even by a cycle."""
    made: list[weakref.ref[Any]] = []

    def first(items):
        made.extend(map(weakref.ref, items))
        results = [Item() for _ in items]
        made.extend(map(weakref.ref, results))
        gate([None])
        return results

    def last(items):
        return [KeyError() if outcome == "error" else Item() for _ in items]

    gc.disable()
    try:
        flow = Flow(first, last)
        future = flow.submit(Item())
        gate.wait_for_batch()
        if outcome == "leave":
            flow._leave([future])
        elif outcome == "stop":
            assert not flow.stop(timeout=0.01)
        gate.opened.set()
        if outcome != "leave":
            future.exception(PATIENCE)
        del future
        eventually(lambda: len(made) == 2 and all(ref() is None for ref in made))
        flow.stop()
    finally:
        gc.enable()


# -- looking at it -------------------------------------------------------------------------------------------


def test_stats():
    """End to end, and each step's; they add up, and can be shown as dictionaries."""

    def picky(items):
        return [KeyError(item) if item == 3 else item for item in items]

    with Flow(double, Step(picky, when=lambda item: item != 4), name="images") as flow:
        for item in range(5):
            flow.submit(item).exception(PATIENCE)
        flow.submit(1.5).exception(PATIENCE)
        stats = flow.stats
    assert isinstance(stats, FlowStats)
    assert (stats.submitted, stats.running, stats.items, stats.errors) == (6, 0, 6, 1)
    assert stats.error_types == (("KeyError", 1),)
    assert stats.time.count == 6
    assert 0 < stats.time.p50 < PATIENCE
    assert [(step.name, step.batches.items) for step in stats.steps] == [("images.double", 6), ("images.picky", 5)]
    assert stats.steps[0].processes is None
    shown = stats.asdict()
    assert shown["items"] == 6 and shown["time"]["count"] == 6
    assert shown["steps"][1]["items"] == 5
    assert "items=6" in repr(stats) and "images.picky" in repr(stats)
    assert pickle.loads(pickle.dumps(stats)) == stats
    with pytest.raises(AttributeError):
        stats.running = 1  # type: ignore[misc]


def test_the_difference_of_two_snapshots():
    """What was done between them, in the flow and at each step; not of another flow, nor the other way round."""

    def picky(items):
        return [KeyError(item) if item == 3 else item for item in items]

    with Flow(double, picky, name="images") as flow, Flow(double, name="others") as other:
        flow.map([1, 2])
        before = flow.stats
        flow.submit(1.5).exception(PATIENCE)
        flow.map([3, 4])
        change = flow.stats - before
        assert (change.items, change.errors, change.error_types) == (3, 1, (("KeyError", 1),))
        assert [step.batches.items for step in change.steps] == [3, 3]
        assert change.steps[1].batches.errors == 1
        assert (flow.stats - flow.stats).items == 0
        for later, earlier in ((before, flow.stats), (other.stats, before), (flow.stats, other.stats)):
            with pytest.raises(ValueError, match="an earlier snapshot"):
                later - earlier
        with pytest.raises(ValueError, match=r"'images.picky' .* 'images.double'"):
            before.steps[0] - before.steps[1]
        with pytest.raises(TypeError):
            before - 3  # type: ignore[operator]


def test_observers_see_each_step():
    """Under the step's name, whether of all batchers or of one."""
    seen: list[Any] = []
    end = ubatch.observe(lambda batch: seen.append(batch.batcher))
    try:
        with Flow(double, increase, name="images") as flow:
            ubatch.observe(lambda batch: seen.append(batch.size), flow.steps[1])
            flow.ubatch(1)
            eventually(lambda: len(seen) == 3)
    finally:
        end()
    assert sorted(map(str, seen)) == ["1", "images.double", "images.increase"]


def test_traces_link_each_step_to_the_caller():
    """A tracer gets the caller's context at each step."""
    from contextvars import ContextVar

    caller: ContextVar[str] = ContextVar("caller")
    begun: list[Any] = []

    class Tracer:
        def begin(self, batcher, contexts):
            begun.append((batcher, [context[caller] for context in contexts]))
            return self

        def leave(self):
            pass

        def end(self, batch):
            pass

    with Flow(Step(double, when=lambda item: item != 7), increase) as flow:
        end = ubatch.observe(Tracer(), flow.steps[1])
        caller.set("me")
        assert flow.map([1, 7]) == [3, 8]
        end()
    assert sorted(contexts for _, contexts in begun) in ([["me"], ["me"]], [["me", "me"]])


def test_each_step_has_a_context_of_its_own():
    """A tracer may be in that of one step when the next begins."""
    inside, begun = threading.Event(), threading.Event()

    class Tracer:
        def begin(self, batcher, contexts):
            if batcher.endswith("second"):
                assert inside.wait(PATIENCE)
                contexts[0].run(begun.set)
            self.contexts = contexts
            return self if batcher.endswith("second") else First(contexts)

        def leave(self):
            pass

        def end(self, batch):
            pass

    class First:
        def __init__(self, contexts):
            self.contexts = contexts

        def leave(self):
            pass

        def end(self, batch):
            def stay():
                inside.set()
                return begun.wait(PATIENCE)

            assert self.contexts[0].run(stay)

    with Flow(Step(echo, name="first"), Step(echo, name="second")) as flow:
        end = ubatch.observe(Tracer())
        assert flow.ubatch(1) == 1
        end()
    assert begun.is_set()


# -- races ---------------------------------------------------------------------------------------------------


def test_one_set_of_outcomes_only(gate):
    """What a step makes of an item that was given up is passed over."""
    flow = Flow(Step(gate, timeout=0), double)
    future = flow.submit(1)
    gate.wait_for_batch()
    flow._trips.give_up(KeyError)
    assert isinstance(future.exception(PATIENCE), KeyError)
    flow._trips.land([future], [1])
    gate.opened.set()
    assert flow.ubatch(2) == 4
    assert flow.steps[1].stats.items == 1
    assert flow.stats.items == 2
    assert flow.stop()


def test_a_killed_worker_thread_is_replaced(gate, caplog):
    """An exception injected into the handler's thread is its batch's error."""
    with Flow(Step(gate, timeout=0), double) as flow:
        future = flow.submit(1)
        gate.wait_for_batch()
        inject(SystemExit, next(iter(flow.steps[0]._threads)))
        gate.opened.set()
        assert isinstance(future.exception(PATIENCE), HandlerFailed | WorkerDied)
        assert flow.ubatch(2) == 4
