"""Priorities, keys, weights, deadlines and bounded queues, from threads, greenlets' threads and tasks of any loop."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import random
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from gates import PATIENCE, Gate, eventually, results

from ubatch import DeadlineExceeded, Flow, QueueFull, Step, Stopped, UBatch, aio, dynamically, ubatch_decorator
from ubatch.processes import ProcessExecutor

SOON = 0.05  # seconds; a deadline that passes while a test waits


def busy(gate: Gate, *args: Any, **options: Any) -> UBatch[Any, Any]:
    """A batcher whose worker is held up in a batch of one."""
    batch: UBatch[Any, Any] = UBatch(*args, handler=gate, **options)
    batch.submit(0)
    gate.wait_for_batch()
    return batch


class Caller(threading.Thread):
    """A thread that makes one call and keeps what came of it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__()
        self.function, self.args = function, args
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.function(*self.args)
        except BaseException as error:
            self.outcome = error

    def done(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.outcome


FACES = ("ubatch", "submit", "map", "aubatch", "amap", "stream", "astream")


def call(view: Any, face: str, item: Any) -> Any:
    """The result of one item, by whichever face."""
    if face == "submit":
        return view.submit(item).result(PATIENCE)
    if face == "map":
        return view.map([item])[0]
    if face == "aubatch":
        return asyncio.run(view.aubatch(item))
    if face == "amap":
        return asyncio.run(view.amap([item]))[0]
    if face == "stream":
        return next(iter(view.stream([item])))
    if face == "astream":

        async def first() -> Any:
            (result,) = [result async for result in view.astream([item])]
            return result

        return asyncio.run(first())
    return view.ubatch(item)


# -- per call -------------------------------------------------------------------------------------------------


def test_more_urgent_items_leave_first(gate):
    """Lower first, first in first out within a level; the batcher's own calls have level 0."""
    with busy(gate, 2, 0) as batch:
        futures = [
            batch.options(priority=priority).submit(n) if priority else batch.submit(n)
            for n, priority in enumerate([0, 0, 3, -1, 0, -1], 1)
        ]
        gate.opened.set()
        assert results(futures) == [1, 2, 3, 4, 5, 6]
    assert gate.batches[1:] == [[4, 6], [1, 2], [5, 3]]


def test_a_flood_of_urgent_items_holds_nobody_up_for_ever(gate):
    """An item of one level less urgent gives way for `aging` seconds, no longer."""
    with busy(gate, 1, 0, aging=SOON) as batch:
        patient = batch.options(priority=1).submit("patient")
        early = [batch.submit(n) for n in range(3)]
        time.sleep(2 * SOON)
        late = [batch.submit(n) for n in range(3, 6)]
        gate.opened.set()
        results([patient, *early, *late])
    assert gate.batches[1:] == [[0], [1], [2], ["patient"], [3], [4], [5]]


@pytest.mark.parametrize("face", FACES)
def test_a_view_has_all_faces(gate, face):
    """They go by its options: here, with a key of their own."""
    with busy(gate, 8, 0) as batch:
        view = batch.options(key="mine")
        plain = [batch.submit(1), batch.submit(2)]
        caller = Caller(call, view, face, 3)
        eventually(lambda: batch.stats.queued == 3)
        gate.opened.set()
        assert caller.done() == 3
        assert results(plain) == [1, 2]
        assert view.stats == batch.stats
    assert sorted(gate.batches[1:]) == [[1, 2], [3]]


def test_options_of_a_view_add_up():
    """What is not given stays as it is; the batcher's deadline is the default."""
    batch = UBatch(handler=list, deadline=5.0)
    view = batch.options(priority=2).options(key="k")
    assert (view.priority, view.deadline, view.key) == (2, 5.0, "k")
    assert view.options(deadline=1.5).deadline == 1.5
    assert view.options(priority=0).priority == 0
    assert "priority=2" in repr(view)
    assert copy.copy(view).options(priority=0).key == "k"
    assert view.name == batch.name
    with pytest.raises(AttributeError):
        view.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"priority": "high"}, TypeError),
        ({"priority": float("nan")}, ValueError),
        ({"priority": float("inf")}, ValueError),
        ({"deadline": "soon"}, TypeError),
        ({"deadline": float("nan")}, ValueError),
    ],
)
def test_wrong_options_of_a_call_are_told(options, error):
    """With the value."""
    with pytest.raises(error, match=next(iter(options))):
        UBatch(handler=list).options(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": 3}, TypeError, "key must be None or callable, not 3"),
        ({"weight": 3, "max_weight": 2}, TypeError, "weight must be None or callable, not 3"),
        ({"weight": len}, ValueError, "go together"),
        ({"max_weight": 3}, ValueError, "go together"),
        ({"weight": len, "max_weight": 0}, ValueError, "max_weight must be more than 0 and finite, not 0"),
        ({"weight": len, "max_weight": "9"}, TypeError, "max_weight must be a number, not '9'"),
        ({"padded": True}, ValueError, "needs weight and max_weight"),
        ({"padded": 1}, TypeError, "padded must be True or False, not 1"),
        ({"max_queue": 0}, ValueError, "max_queue must be at least 1 item, not 0"),
        ({"max_queue": 1.5}, TypeError, "max_queue must be an integer, not 1.5"),
        ({"overflow": "drop"}, ValueError, "overflow must be 'reject' or 'block', not 'drop'"),
        ({"deadline": 0}, ValueError, "deadline must be more than 0 seconds, or None, not 0"),
        ({"deadline": "1"}, TypeError, "deadline must be a number, not '1'"),
        ({"aging": 0}, ValueError, "aging must be more than 0 seconds, not 0"),
        ({"aging": None}, TypeError, "aging must be a number, not None"),
    ],
)
def test_wrong_options_are_told_where_they_stand(options, error, message):
    """By batchers and decorators alike, with the value."""
    with pytest.raises(error, match=message):
        UBatch(**options)
    with pytest.raises(error, match=message):
        ubatch_decorator(**options)
    with pytest.raises(error, match=message):
        dynamically(**options)


def test_a_coroutine_function_is_no_key():
    """It would give coroutines."""

    async def key(item):
        return item

    with pytest.raises(TypeError, match="coroutine function"):
        UBatch(key=key)


# -- keys and weights -----------------------------------------------------------------------------------------


def test_items_with_different_keys_share_no_batch(gate):
    """Each batch has all that is there of its key."""
    with busy(gate, 8, 0, key=lambda n: n % 2) as batch:
        futures = [batch.submit(n) for n in range(1, 8)]
        gate.opened.set()
        assert results(futures) == [*range(1, 8)]
    assert gate.batches[1:] == [[1, 3, 5, 7], [2, 4, 6]]


def test_key_and_weight_get_the_calls_own_arguments(gate):
    """Also those that were passed by name."""
    batch = UBatch(
        8,
        0,
        handler=lambda texts, lang: [(text, one) for text, one in zip(texts, lang, strict=True)],
        key=lambda text, lang="en": lang,
        weight=lambda text, lang="en": len(text),
        max_weight=100,
    )
    with batch:
        assert batch.ubatch("hallo", lang="de") == ("hallo", "de")


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("option", ["key", "weight"])
def test_a_callback_that_raises_fails_its_call_alone(face, option):
    """Later items are unaffected, and nothing is left in the queue."""

    def callback(item: Any) -> Any:
        return 1 / item

    options = {"key": callback} if option == "key" else {"weight": callback, "max_weight": 10}
    with UBatch(8, 0, handler=list, **options) as batch:
        with pytest.raises(ZeroDivisionError):
            call(batch, face, 0)
        assert call(batch, face, 1) == 1
        assert batch.stats.submitted == 1


def test_a_key_that_cannot_be_hashed_is_told_at_once():
    """Also one of a view."""
    with UBatch(8, 0, handler=list) as batch, pytest.raises(TypeError, match="unhashable"):
        batch.options(key=[]).submit(1)


def test_the_weight_of_a_batch_is_bounded(gate):
    """And an item that weighs more than the limit runs alone."""
    with busy(gate, 8, 0, weight=lambda n: n, max_weight=10) as batch:
        futures = [batch.submit(n) for n in (6, 9, 3, 3, 3, 3, 50, 1)]
        gate.opened.set()
        results(futures)
    assert gate.batches[1:] == [[6], [9], [3, 3, 3], [3], [50], [1]]


def test_a_full_weight_is_not_held():
    """Nobody waits for the end of the window."""
    with UBatch(64, 1000, handler=list, weight=lambda n: n, max_weight=10) as batch:
        assert results([batch.submit(4), batch.submit(4), batch.submit(4)][:2]) == [4, 4]
        batch.timeout = 0
    assert batch.stats.full == 1


def test_a_full_batch_of_one_key_is_not_held_by_anothers_window():
    """Though the other came first."""
    with UBatch(3, 1000, handler=list, key=lambda n: n % 2) as batch:
        waiting = batch.submit(1)
        assert results([batch.submit(n) for n in (2, 4, 6)]) == [2, 4, 6]
        assert not waiting.done()
        batch.timeout = 0
        assert waiting.result(PATIENCE) == 1


# -- deadlines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_an_item_that_waits_is_told_when_its_time_is_up(gate, face):
    """While the handler is busy with others; and the handler never sees it."""
    with busy(gate, 8, 0) as batch:
        with pytest.raises(DeadlineExceeded, match=f"deadline of {SOON}"):
            call(batch.options(deadline=SOON), face, 1)
        assert not gate.opened.is_set()
        gate.opened.set()
        assert call(batch, face, 2) == 2
        assert batch.stats.expired == 1
    assert gate.batches == [[0], [2]]


@pytest.mark.parametrize("face", FACES)
def test_an_item_that_runs_is_told_when_its_time_is_up(gate, face):
    """Its result is dropped; it counts as an error."""
    with UBatch(8, 0, handler=gate, deadline=6 * SOON) as batch:  # time to begin, on a busy machine too
        with pytest.raises(DeadlineExceeded):
            call(batch, face, 1)
        assert gate.batches == [[1]]
        gate.opened.set()
    assert batch.stats.errors == 1
    assert batch.stats.expired == batch.stats.running == batch.stats.queued == 0


def test_the_time_of_an_item_may_be_over_before_it_comes():
    """What a request has left may be negative; nothing is accepted then."""
    with UBatch(8, 0, handler=list) as batch:
        with pytest.raises(DeadlineExceeded):
            batch.options(deadline=-0.1).submit(1)
        assert batch.stats.submitted == 0


def test_of_a_map_those_in_time_run(gate):
    """The first error is raised after all of them are done."""
    with busy(gate, 2, 0, deadline=SOON) as batch, pytest.raises(DeadlineExceeded):
        batch.map([1, 2, 3])
    gate.opened.set()


def test_a_batch_leaves_early_for_a_deadline():
    """It would be held for longer than its tightest deadline; no result is late."""
    with UBatch(64, 1000, handler=list) as batch:
        plain = batch.submit(1)
        assert batch.options(deadline=1.0).ubatch(2) == 2
        assert plain.result(PATIENCE) == 1
        assert batch.stats.deadline == 1


def test_a_deadline_that_is_kept_leaves_nothing_behind():
    """Neither the item nor the future is kept until the deadline; the thread that watches goes."""

    class Item:
        pass

    with UBatch(8, 0, handler=list, deadline=1000.0) as batch:
        item = Item()
        future = batch.submit(item)
        assert future.result(PATIENCE) is item
        refs = [weakref.ref(item), weakref.ref(future)]
        del item, future
        gc.collect()
        eventually(lambda: [ref() for ref in refs] == [None, None])
    eventually(lambda: not any(thread.name == "ubatch-deadlines" for thread in threading.enumerate()))


def test_many_deadlines_are_told_in_time(gate, hurry, seed):
    """Some in the queue, some running, some cancelled; each future has one outcome."""
    rng = random.Random(seed)
    with busy(gate, 16, 0) as batch:
        futures = [batch.options(deadline=rng.uniform(0.05, 0.15)).submit(n) for n in range(300)]
        cancelled = [future for future in futures if rng.random() < 0.2 and future.cancel()]
        for future in futures:
            if future not in cancelled:
                assert isinstance(future.exception(PATIENCE), DeadlineExceeded)
        gate.opened.set()
    stats = batch.stats
    assert stats.queued == stats.running == 0
    assert stats.expired + stats.cancelled + stats.items + stats.dropped == 301
    assert gate.batches == [[0]]


# -- bounded queues -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_a_full_queue_refuses(gate, face):
    """At once, by whichever face; what is there is unaffected."""
    with busy(gate, 8, 0, max_queue=2) as batch:
        futures = [batch.submit(1), batch.submit(2)]
        with pytest.raises(QueueFull, match="2 items"):
            call(batch, face, 3)
        assert batch.stats.rejected == 1
        gate.opened.set()
        assert results(futures) == [1, 2]
        assert call(batch, face, 4) == 4


def test_a_map_is_accepted_as_a_whole_or_not_at_all(gate):
    """It obeys the same limit."""
    with busy(gate, 8, 0, max_queue=3) as batch:
        future = batch.submit(1)
        with pytest.raises(QueueFull):
            batch.map([2, 3, 4])
        assert batch.stats.queued == 1
        assert batch.stats.rejected == 3
        gate.opened.set()
        assert future.result(PATIENCE) == 1
        assert batch.map([2, 3, 4]) == [2, 3, 4]


def test_a_cancelled_item_makes_room(gate):
    """Though the worker has not looked."""
    with busy(gate, 8, 0, max_queue=1) as batch:
        assert batch.submit(1).cancel()
        future = batch.submit(2)
        gate.opened.set()
        assert future.result(PATIENCE) == 2
    assert batch.stats.cancelled == 1


@pytest.mark.parametrize("face", FACES)
def test_a_full_queue_may_let_callers_wait(gate, face):
    """In order, until there is room."""
    with busy(gate, 1, 0, max_queue=1, overflow="block") as batch:
        first = batch.submit(1)
        callers = []
        for n in (2, 3):
            callers.append(Caller(call, batch, face, n))
            eventually(lambda: len(batch._schedule.lobby) == len(callers))
        assert batch.stats.queued == 1
        gate.opened.set()
        assert first.result(PATIENCE) == 1
        assert [caller.done() for caller in callers] == [2, 3]
    assert gate.batches == [[0], [1], [2], [3]]


@pytest.mark.parametrize("how", ["cancel", "deadline", "leave"])
def test_whoever_leaves_makes_room_for_those_who_wait(gate, how):
    """At once, though the worker is busy."""
    with busy(gate, 8, 0, max_queue=1, overflow="block") as batch:
        if how == "leave":
            first = Caller(batch.options(deadline=4 * SOON).ubatch, 1)
        else:
            future = batch.options(deadline=4 * SOON if how == "deadline" else 1000.0).submit(1)
        eventually(lambda: batch.stats.queued == 1)
        caller = Caller(batch.submit, 2)
        eventually(lambda: batch._schedule.lobby or how != "cancel")
        if how == "cancel":
            assert future.cancel()
        accepted = caller.done()
        assert not gate.opened.is_set()
        gate.opened.set()
        assert accepted.result(PATIENCE) == 2
        if how == "leave":
            assert isinstance(first.done(), DeadlineExceeded)
    assert gate.batches == [[0], [2]]


@pytest.mark.parametrize("place", ["running", "queued"])
@pytest.mark.parametrize("how", ["a cancelled task", "a cancelled future", "a deadline"])
def test_whoever_leaves_a_bounded_queue_leaves_nothing_behind(gate, how, place):
    """Neither the item nor the key are kept for longer than the batch takes, though no other item comes."""

    class Thing:
        pass

    async def leave(item: Any, key: Any) -> None:
        task = asyncio.ensure_future(batch.options(key=key).aubatch(item))
        await asyncio.sleep(SOON)
        task.cancel()
        await asyncio.wait([task])

    item, key = Thing(), Thing()
    refs = [weakref.ref(item), weakref.ref(key)]
    with UBatch(handler=gate, max_queue=10) as batch:
        if place == "queued":
            batch.submit(0)
            gate.wait_for_batch()
        if how == "a cancelled task":
            asyncio.run(leave(item, key))
        else:
            future = batch.options(key=key, deadline=SOON if how == "a deadline" else 1e3).submit(item)
            if how == "a deadline":
                assert isinstance(future.exception(PATIENCE), DeadlineExceeded)
            future.cancel()
            del future
        gate.batches.clear()
        del item, key
        gate.opened.set()

        def gone() -> bool:
            gc.collect()
            return all(ref() is None for ref in refs)

        eventually(gone)


def test_a_map_is_fed_in_pieces(gate):
    """Where it may wait for room, it may be longer than the queue."""
    with busy(gate, 4, 0, max_queue=5, overflow="block") as batch:
        caller = Caller(batch.map, range(1, 100))
        eventually(lambda: batch._schedule.lobby)
        assert batch.stats.queued == 5
        gate.opened.set()
        assert caller.done() == [*range(1, 100)]


@pytest.mark.parametrize("face", ["ubatch", "submit", "map", "aubatch"])
def test_waiting_for_room_ends_with_the_deadline(gate, face):
    """And leaves nobody in the queue."""
    with busy(gate, 1, 0, max_queue=1, overflow="block") as batch:
        first = batch.submit(1)
        with pytest.raises(DeadlineExceeded):
            call(batch.options(deadline=SOON), face, 2)
        gate.opened.set()
        assert first.result(PATIENCE) == 1
    assert gate.batches == [[0], [1]]


@pytest.mark.parametrize("face", ["ubatch", "submit", "map", "aubatch"])
@pytest.mark.parametrize("drain", [True, False])
def test_waiting_for_room_ends_with_stop(gate, face, drain):
    """These were not accepted yet."""
    batch = busy(gate, 1, 0, max_queue=1, overflow="block")
    first = batch.submit(1)
    caller = Caller(call, batch, face, 2)
    eventually(lambda: batch._schedule.lobby)
    stopper = Caller(batch.stop, drain)
    assert isinstance(caller.done(), Stopped)
    gate.opened.set()
    assert stopper.done() is True
    assert isinstance(first.exception(PATIENCE), Stopped if not drain else type(None))


def test_the_worker_itself_cannot_wait_for_room():
    """Its own submit is refused instead."""
    outcomes: list[Any] = []

    def handler(items: list[Any]) -> list[Any]:
        if items == [0]:
            try:
                batch.submit(1)
                batch.submit(2)
            except QueueFull as error:
                outcomes.append(error)
        return items

    batch: UBatch[Any, Any] = UBatch(1, 0, handler=handler, max_queue=1, overflow="block")
    with batch:
        assert batch.ubatch(0) == 0
    assert len(outcomes) == 1


def test_a_storm_of_threads_does_not_overshoot(gate, hurry):
    """Exactly as many are accepted as there is room for."""
    with busy(gate, 64, 0, max_queue=50) as batch:
        barrier = threading.Barrier(16)

        def storm() -> int:
            barrier.wait(PATIENCE)
            accepted = 0
            for n in range(20):
                try:
                    batch.submit(n)
                    accepted += 1
                except QueueFull:
                    pass
            return accepted

        callers = [Caller(storm) for _ in range(16)]
        assert sum(caller.done() for caller in callers) == 50
        assert batch.stats.queued == 50
        assert batch.stats.rejected == 16 * 20 - 50
        gate.opened.set()


# -- changing them --------------------------------------------------------------------------------------------


def test_options_may_change_while_it_runs(gate):
    """At the next cut, and with the next item."""
    with busy(gate, 2, 0) as batch:
        futures = [batch.submit(n) for n in range(1, 9)]
        batch.reconfigure(max_size=3, timeout=None, max_queue=8)
        assert (batch.max_size, batch.timeout, batch.max_queue) == (3, None, 8)
        with pytest.raises(QueueFull):
            batch.submit(9)
        batch.max_queue = None
        futures.append(batch.submit(9))
        gate.opened.set()
        assert results(futures) == [*range(1, 10)]
    assert gate.batches[1:] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_more_room_lets_in_those_who_wait(gate):
    """At once."""
    with busy(gate, 8, 0, max_queue=1, overflow="block") as batch:
        batch.submit(1)
        caller = Caller(batch.submit, 2)
        eventually(lambda: batch._schedule.lobby)
        batch.max_queue = 2
        future = caller.done()
        gate.opened.set()
        assert future.result(PATIENCE) == 2


def test_a_wrong_option_changes_nothing():
    """All of them, or none."""
    batch = UBatch(4, 0.5, handler=list)
    with pytest.raises(ValueError, match="max_queue"):
        batch.reconfigure(max_size=5, timeout=1, max_queue=0)
    assert (batch.max_size, batch.timeout, batch.max_queue) == (4, 0.5, None)


def test_the_first_view_loses_nothing_that_is_queued(hurry, seed):
    """Items that were queued before items could have terms, and beside the change, are all answered."""
    rng = random.Random(seed)
    for _ in range(60):
        batch: UBatch[int, int] = UBatch(4, 0, handler=list)
        barrier = threading.Barrier(4)

        def calls(batch=batch, barrier=barrier, special=False, wait=0.0) -> list[int]:
            barrier.wait(PATIENCE)
            time.sleep(wait)
            view = batch.options(priority=-1) if special else batch
            return [future.result(PATIENCE) for future in [view.submit(n) for n in range(20)]]

        callers = [Caller(calls, batch, barrier, n == 3, rng.uniform(0, 2e-3) * (n == 3)) for n in range(4)]
        assert [caller.done() for caller in callers] == [[*range(20)]] * 4
        batch.stop()
        assert batch.stats.items == 80


# -- decorators -----------------------------------------------------------------------------------------------


def test_a_decorated_function_takes_all_options(gate):
    """And its faces come with options for a call."""

    @ubatch_decorator(max_size=8, timeout=0, key=lambda n: n % 2, max_queue=100)
    def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    assert double.ubatch(3) == 6
    assert double.options(priority=1, key="x").map([1, 2]) == [2, 4]
    assert double.batcher.max_queue == 100
    double.batcher.stop()


def test_a_long_list_is_less_urgent_than_a_single_call(gate):
    """Above the threshold; below it there is no difference."""
    function = dynamically(max_size=2, timeout=0, small_batch_threshold=3)(gate)
    plug = Caller(function, 0)
    gate.wait_for_batch()
    many = Caller(function, [1, 2, 3, 4])
    eventually(lambda: function.stats.queued == 4)
    few = Caller(function, [5, 6, 7])
    eventually(lambda: function.stats.queued == 7)
    one = Caller(function.options(priority=0), 8)
    eventually(lambda: function.stats.queued == 8)
    gate.opened.set()
    assert (plug.done(), many.done(), few.done(), one.done()) == (0, [1, 2, 3, 4], [5, 6, 7], 8)
    assert gate.batches[1:] == [[5, 6], [7, 8], [1, 2], [3, 4]]
    function.batcher.stop()


@pytest.mark.parametrize(("threshold", "error"), [(0, ValueError), ("3", TypeError)])
def test_a_wrong_threshold_is_told(threshold, error):
    """With its value."""
    with pytest.raises(error, match="small_batch_threshold"):
        dynamically(small_batch_threshold=threshold)


# -- all of it at once ----------------------------------------------------------------------------------------


def test_a_soak_of_random_options(hurry, seed):
    """Cancels, deadlines, errors, keys, weights, priorities, full queues: every item resolves, counters are zero."""
    rng = random.Random(seed)

    def handler(items: list[tuple[int, int]]) -> list[Any]:
        assert len({key for key, _ in items}) == 1
        assert len(items) == 1 or sum(weight for _, weight in items) <= 20
        if rng.random() < 0.05:
            raise ValueError("unlucky")
        return [KeyError(item) if rng.random() < 0.05 else item for item in items]

    batch: UBatch[Any, Any] = UBatch(
        8,
        rng.choice([0, 0.001, None]),
        handler=handler,
        key=lambda item: item[0],
        weight=lambda item: item[1],
        max_weight=20,
        max_queue=40,
        overflow=rng.choice(["block", "reject"]),
        aging=0.01,
    )

    def caller(seed: int) -> int:
        rng = random.Random(seed)
        resolved = 0
        for _ in range(150):
            item = (rng.randrange(3), rng.randrange(1, 25))
            view = batch.options(priority=rng.randrange(-2, 3), deadline=rng.choice([float("inf"), 0.002, 0.05, 5.0]))
            try:
                if rng.random() < 0.5:
                    assert view.ubatch(item) == item
                else:
                    future = view.submit(item)
                    if rng.random() < 0.3:
                        future.cancel()
                    future.exception(PATIENCE) if not future.cancelled() else None
            except (ValueError, KeyError, DeadlineExceeded, QueueFull):
                pass
            resolved += 1
        return resolved

    callers = [Caller(caller, rng.random()) for _ in range(12)]
    assert [one.done() for one in callers] == [150] * 12
    assert batch.stop(timeout=PATIENCE)
    stats = batch.stats
    assert stats.queued == stats.running == 0
    assert not batch._schedule.next(sys.maxsize)
    assert stats.submitted == stats.items + stats.cancelled + stats.expired + stats.dropped
    batch._schedule._check()


def test_the_alarm_is_anothers_in_a_forked_child(run_python):
    """A child has deadlines of its own, told by a thread of its own."""
    out = run_python(
        """
        import logging, os, threading, warnings
        from ubatch import DeadlineExceeded, UBatch

        logging.getLogger("ubatch").setLevel(logging.ERROR)  # it would say that deadlines have passed
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads

        go = threading.Event()
        batch = UBatch(8, 0, handler=lambda items: (go.wait(10), items)[1])
        future = batch.options(deadline=0.2).submit(1)
        pid = os.fork()
        if not pid:
            try:
                UBatch(8, 0, handler=lambda items: (go.wait(5), items)[1]).options(deadline=0.05).submit(1).result(5)
            except DeadlineExceeded:
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(type(future.exception(10)).__name__)
        go.set()
        """
    )
    assert out.split() == ["7", "DeadlineExceeded"]


@pytest.mark.parametrize(
    "make",
    [
        UBatch,
        aio.UBatch,
        ubatch_decorator,
        aio.ubatch_decorator,
        dynamically,
        aio.dynamically,
        functools.partial(Flow, Step(sorted)),
        functools.partial(Step, sorted),
        ProcessExecutor,
    ],
)
@pytest.mark.parametrize(("name", "kind"), [("a\ud800", ValueError), (3, TypeError)])
def test_a_name_that_metrics_cannot_show(make, name, kind):
    """A scrape of all batchers would fail for one of them."""
    with pytest.raises(kind, match=f"^name must be .* not {re.escape(repr(name))}$"):
        make(name=name)
