"""Starting, stopping, dying: whatever happens to a batcher, nobody waits for ever."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from gates import FOREVER, PATIENCE, Gate, echo, eventually, in_thread, inject

import ubatch._driver
import ubatch._native
import ubatch._seats
import ubatch._turns
from ubatch import (
    HandlerAlreadySet,
    HandlerFailed,
    HandlerNotSet,
    Stopped,
    UBatch,
    WorkerDied,
)


def busy(gate: Gate, *args: Any) -> tuple[UBatch[Any, Any], Future[Any]]:
    """A batcher whose worker is in the handler, and the item that it has there."""
    batch: UBatch[Any, Any] = UBatch(*args, handler=gate)
    first = batch.submit("first")
    gate.wait_for_batch()
    return batch, first


# -- before the first item, and the two steps ----------------------------------------------------------------


def test_no_thread_before_the_first_item():
    """Making, starting, looking at, mapping nothing with and stopping a batcher starts no thread."""
    before = threading.active_count()
    with UBatch(handler=echo) as batch:
        batch.start()
        assert batch.map([]) == []
        assert batch.alive
        repr(batch)
        batch.max_size = 5
        assert threading.active_count() == before
        assert batch._seat is ubatch._seats.NOBODY
    assert batch._seat is ubatch._seats.NOBODY


def test_two_steps():
    """`set_handler`, then `start`, which returns the batcher."""
    batch: UBatch[int, int] = UBatch(max_size=10, timeout=0.001)
    batch.set_handler(handler=echo)
    assert batch.start() is batch
    assert batch.ubatch(1) == 1
    assert batch.start() is batch
    assert batch.stop()


def test_items_wait_in_order_for_the_start(gate):
    """Items handed over before `set_handler` and `start` are queued, with one warning, and run in order."""
    batch: UBatch[int, int] = UBatch(4)
    gate.opened.set()
    with pytest.warns(RuntimeWarning, match=r"set_handler\(\) and start\(\)") as told:
        futures = [batch.submit(n) for n in range(5)]
    assert [warning.filename for warning in told] == [__file__]
    waiting = in_thread(batch.map, range(5, 8))
    eventually(lambda: batch.stats.queued == 8)
    batch.set_handler(gate)
    futures += [batch.submit(n) for n in range(8, 10)]
    assert batch._seat is ubatch._seats.NOBODY
    batch.start()
    assert [future.result(PATIENCE) for future in futures] == [*range(5), 8, 9]
    assert waiting.result(PATIENCE) == [5, 6, 7]
    batch.stop()
    assert gate.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_only_start_is_missing():
    """With a handler set, the warning speaks of `start` alone, and `ubatch` and `map` warn where they are called."""
    batch: UBatch[int, int] = UBatch()
    batch.set_handler(echo)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        waiting = in_thread(lambda: batch.ubatch(1))
        eventually(lambda: told)
    assert "items wait for start()" in str(told[0].message)
    assert told[0].filename == __file__
    batch.start()
    assert waiting.result(PATIENCE) == 1
    batch.stop()


@pytest.mark.parametrize("face", ["submit", "ubatch", "map"])
def test_warnings_made_errors_lose_nothing(face):
    """Where the program makes warnings errors, the call that would warn fails, and later ones are queued."""
    batch: UBatch[int, int] = UBatch()
    with pytest.raises(RuntimeWarning):
        getattr(batch, face)([0])
    assert batch.stats.queued == 0
    futures = [batch.submit(n) for n in range(1, 4)]
    batch.set_handler(echo)
    batch.start()
    assert [future.result(PATIENCE) for future in futures] == [1, 2, 3]
    batch.stop()
    assert batch.stats.items == 3


def test_a_way_of_showing_warnings_that_fails(monkeypatch):
    """If showing the warning raises, the call fails, and its item is not accepted."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("no terminal")

    batch: UBatch[int, int] = UBatch()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", broken)
        with pytest.raises(OSError, match="no terminal"):
            batch.submit(1)
    assert batch.stats.queued == 0


def test_an_item_that_does_not_fit_the_handler_that_comes_later():
    """Arguments accepted before there was a handler are checked when there is one; others are unaffected."""
    batch: UBatch[Any, Any] = UBatch()
    with pytest.warns(RuntimeWarning):
        futures = [batch.submit(1), batch.submit(1, 2, 3), batch.submit(2)]
    batch.set_handler(echo)
    with batch:
        assert futures[0].result(PATIENCE) == 1
        assert futures[2].result(PATIENCE) == 2
        assert isinstance(futures[1].exception(PATIENCE), TypeError)


def test_start_without_a_handler():
    """`start`, and `with`, say what is missing; the batcher is not broken by it."""
    batch: UBatch[int, int] = UBatch(name="mine")
    with pytest.raises(HandlerNotSet, match="mine"):
        batch.start()
    with pytest.raises(HandlerNotSet), batch:
        pass
    batch.set_handler(echo)
    with batch:
        assert batch.ubatch(1) == 1


def test_the_handler_is_set_once():
    """A second handler is refused, and the first one stays."""
    batch: UBatch[int, int] = UBatch(name="mine")
    batch.set_handler(echo)
    with pytest.raises(HandlerAlreadySet, match="mine"):
        batch.set_handler(lambda items: [None for _ in items])
    with pytest.raises(HandlerAlreadySet):
        UBatch(handler=echo).set_handler(echo)
    with batch:
        assert batch.ubatch(1) == 1


class Coroutine:
    """An object whose calls are coroutines."""

    async def __call__(self, items: list[int]) -> list[int]:
        return items


async def coroutine(items: list[int]) -> list[int]:
    return items


async def generator(items: list[int]) -> Any:
    yield items


@pytest.mark.parametrize("handler", [coroutine, generator, Coroutine()])
def test_a_coroutine_function_is_no_handler_for_a_thread(handler):
    """It is a TypeError that says where such functions belong."""
    with pytest.raises(TypeError, match=r"ubatch\.aio"):
        UBatch(handler=handler)
    batch: UBatch[int, int] = UBatch()
    with pytest.raises(TypeError, match=r"ubatch\.aio"):
        batch.set_handler(handler)
    with pytest.raises(HandlerNotSet):
        batch.start()


@pytest.mark.parametrize("wrong", [None, 3, "handler", [echo, 3]])
def test_a_handler_must_be_callable(wrong):
    """What cannot be called is refused with its value."""
    with pytest.raises(TypeError, match="handler"):
        UBatch().set_handler(wrong)


@pytest.mark.parametrize("wrong", [3, b"name"])
def test_a_name_is_a_string(wrong):
    """Anything else is refused with its value."""
    with pytest.raises(TypeError, match="name"):
        UBatch(name=wrong)


def test_a_batcher_that_was_never_made():
    """An error in making one leaves nothing behind that fails when it is freed."""

    class Half(UBatch[int, int]):
        def __init__(self) -> None:
            raise KeyError("half-way")

    with pytest.raises(KeyError):
        Half()
    gc.collect()


# -- looking at it -------------------------------------------------------------------------------------------


def test_alive_and_repr(gate):
    """`alive` says whether items are accepted; `repr` shows the state."""
    batch: UBatch[Any, Any] = UBatch(8, 0.5, name="mine")
    assert repr(batch) == "<UBatch 'mine' waiting for start() max_size=8 timeout=0.5 workers=1 queued=0 running=0>"
    assert batch.alive
    batch.timeout = None
    batch.set_handler(gate)
    batch.start()
    future = batch.submit(1)
    gate.wait_for_batch()
    batch.submit(2)
    assert repr(batch) == "<UBatch 'mine' running max_size=8 timeout=None workers=1 queued=1 running=1>"
    gate.opened.set()
    assert batch.stop()
    assert future.result() == 1
    assert not batch.alive
    assert repr(batch) == "<UBatch 'mine' stopped max_size=8 timeout=None workers=1 queued=0 running=0>"
    batch.start()
    assert batch.alive


def test_names():
    """A batcher is called as it was told to be, or as its handler."""

    class Model:
        def encode(self, items: list[int]) -> list[int]:
            return items

        def __call__(self, items: list[int]) -> list[int]:
            return items

    assert UBatch(name="mine", handler=echo).name == "mine"
    assert UBatch(handler=echo).name == "echo"
    assert UBatch(handler=Model().encode).name.endswith("Model.encode")
    assert UBatch(handler=Model()).name.endswith("Model")
    assert UBatch().name == "ubatch"


def test_the_thread_has_the_batchers_name():
    """`threading` and log records show whose thread it is."""
    with UBatch(name="mine", handler=lambda items: [threading.current_thread().name for _ in items]) as batch:
        assert batch.ubatch(1) == "ubatch-mine"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_batcher_cannot_be_copied(duplicate):
    """Copying and pickling are a TypeError that names the batcher."""
    with pytest.raises(TypeError, match=r"'echo'.*cannot be copied or pickled"):
        duplicate(UBatch(handler=echo))


# -- stopping ------------------------------------------------------------------------------------------------


def test_stop_runs_what_is_queued(gate):
    """By default `stop` refuses new items, runs the queued ones, returns `True`, and the thread is gone."""
    batch, first = busy(gate, 4)
    batch.timeout = FOREVER
    futures = [batch.submit(n) for n in range(10)]
    stopping = in_thread(batch.stop)
    eventually(lambda: not batch.alive)
    for refused in (batch.submit, batch.ubatch):
        with pytest.raises(Stopped, match=batch.name):
            refused(1)
    with pytest.raises(Stopped):
        batch.map([1])
    assert not stopping.done()
    gate.opened.set()
    assert stopping.result(PATIENCE) is True
    assert first.done()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [*range(10)]
    eventually(lambda: f"ubatch-{batch.name}" not in [thread.name for thread in threading.enumerate()])


def test_stop_without_draining(gate):
    """With `drain=False` queued items fail at once; the running batch completes first."""
    batch, first = busy(gate, 4)
    futures = [batch.submit(n) for n in range(5)]
    caller, mapper = in_thread(batch.ubatch, 5), in_thread(batch.map, [6, 7])
    eventually(lambda: batch.stats.queued == 8)
    stopping = in_thread(batch.stop, False)
    for future in [*futures, caller, mapper]:
        assert isinstance(future.exception(PATIENCE), Stopped)
    assert not first.done()
    assert not stopping.done()
    gate.opened.set()
    assert stopping.result(PATIENCE) is True
    assert first.result(PATIENCE) == "first"
    assert gate.batches == [["first"]]
    assert batch.stats.dropped == 8
    assert batch.stats.submitted == 9


@pytest.mark.parametrize("drain", [True, False])
def test_stop_gives_up_after_its_timeout(gate, drain):
    """A handler that does not return in time: queued and running callers get Stopped, and `stop` says `False`."""
    batch, first = busy(gate, 2)
    futures = [batch.submit(n) for n in range(5)]
    caller, mapper = in_thread(batch.ubatch, 5), in_thread(batch.map, [6, 7])
    eventually(lambda: batch.stats.queued == 8)
    assert batch.stop(drain, timeout=0.05) is False
    for future in [first, *futures, caller, mapper]:
        assert isinstance(future.exception(PATIENCE), Stopped)
    assert (batch.stats.queued, batch.stats.running) == (0, 0)
    assert (batch.stats.items, batch.stats.dropped, batch.stats.errors) == (1, 8, 1)
    assert batch.stop()


def test_start_after_a_stop_that_gave_up(gate):
    """A new worker takes over; the old one, when its handler returns at last, harms nothing."""
    batch, first = busy(gate)
    queued = batch.submit("queued")
    assert batch.stop(timeout=0) is False
    batch.start()
    second = batch.submit("second")
    gate.wait_for_batch()
    assert isinstance(first.exception(PATIENCE), Stopped)
    assert isinstance(queued.exception(PATIENCE), Stopped)
    assert len(set(gate.threads)) == 2
    third = batch.submit("third")
    stopping = in_thread(batch.stop)
    gate.opened.set()
    assert second.result(PATIENCE) == "second"
    assert third.result(PATIENCE) == "third"
    assert stopping.result(PATIENCE) is True
    assert gate.batches == [["first"], ["second"], ["third"]]
    assert len(set(gate.threads)) == 2
    assert batch.stats.items == 3
    assert batch.stats.errors == 1


def test_an_old_worker_that_comes_back_first(gate):
    """The result of a batch that was given up is dropped, also if nothing has happened since."""
    batch, first = busy(gate)
    assert batch.stop(timeout=0) is False
    gate.opened.set()
    eventually(lambda: f"ubatch-{batch.name}" not in [thread.name for thread in threading.enumerate()])
    assert isinstance(first.exception(PATIENCE), Stopped)
    with batch:
        assert batch.ubatch(1) == 1
        assert gate.threads[1] != gate.threads[0]


def test_giving_up_on_a_worker_that_is_cutting(gate, monkeypatch):
    """A batch that is cut at the very moment in which `stop` gives up fails too: its handler is not called."""
    cutting, cut = threading.Event(), threading.Event()
    batch: UBatch[int, int] = UBatch(handler=gate)
    take = type(batch._schedule).take

    def slowly(schedule: Any, *args: Any) -> int:
        count = take(schedule, *args)
        if threading.current_thread().name.startswith("ubatch-"):
            cutting.set()
            assert cut.wait(PATIENCE)
        return count

    monkeypatch.setattr(type(batch._schedule), "take", slowly)
    future = batch.submit(1)
    assert cutting.wait(PATIENCE)
    assert batch.stop(timeout=0) is False
    cut.set()
    assert isinstance(future.exception(PATIENCE), Stopped)
    assert gate.batches == []


def test_stop_again_and_again(gate):
    """`stop` may be called twice, by many threads at once, and on a batcher that never ran."""
    batch, _ = busy(gate)
    stopping = [in_thread(batch.stop) for _ in range(5)]
    stopping += [in_thread(batch.stop, False) for _ in range(5)]
    eventually(lambda: not batch.alive)
    gate.opened.set()
    assert [stop.result(PATIENCE) for stop in stopping] == [True] * 10
    assert batch.stop() is True
    assert batch.stop(drain=False, timeout=0) is True
    assert UBatch(handler=echo).stop()
    assert UBatch().stop()


@pytest.mark.parametrize("wrong", [-1, float("nan"), "1", True])
def test_stop_checks_its_timeout(wrong):
    """A wrong timeout is told with its value, and nothing is stopped."""
    with UBatch(handler=echo) as batch:
        with pytest.raises((ValueError, TypeError), match=repr(wrong)):
            batch.stop(timeout=wrong)
        assert batch.ubatch(1) == 1


def test_start_after_stop():
    """A batcher may be stopped and started as often as one likes."""
    batch: UBatch[int, int] = UBatch(handler=echo)
    for n in range(20):
        assert batch.ubatch(n) == n
        assert batch.stop()
        with pytest.raises(Stopped):
            batch.submit(n)
        batch.start()
    batch.stop()
    assert batch.stats.items == 20


def test_with_stops_whatever_happens():
    """Leaving `with` drains, also by an exception; the batcher may be entered again."""
    batch: UBatch[int, int] = UBatch(2, FOREVER, handler=echo)
    futures = []

    def fail_inside() -> None:
        with batch:
            futures.append(batch.submit(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert futures[0].result(0) == 1
    assert not batch.alive
    with batch:
        assert batch.map([1, 2]) == [1, 2]


def test_stop_before_start_with_items_queued():
    """Without a handler queued items fail with Stopped; with one they are run, or dropped if so asked."""
    for drain in (True, False):
        batch: UBatch[int, int] = UBatch()
        with pytest.warns(RuntimeWarning):
            future = batch.submit(1)
        assert batch.stop(drain) is True
        assert isinstance(future.exception(0), Stopped)
        assert batch._seat is ubatch._seats.NOBODY
        with pytest.raises(Stopped):
            batch.submit(2)
    for drain in (True, False):
        batch = UBatch()
        batch.set_handler(echo)
        with pytest.warns(RuntimeWarning):
            future = batch.submit(1)
        assert batch.stop(drain) is True
        assert future.result(0) == 1 if drain else isinstance(future.exception(0), Stopped)


def test_forgetting_a_batcher_that_was_never_started():
    """Items that wait for a start that can no longer come get Stopped."""
    batch: UBatch[int, int] = UBatch()
    with pytest.warns(RuntimeWarning):
        future = batch.submit(1)
    del batch
    gc.collect()
    assert isinstance(future.exception(PATIENCE), Stopped)


def test_a_submit_that_comes_upon_the_stop_of_a_batcher_without_a_handler(caplog):
    """An item that enters the queue just after `stop` has emptied it is refused; no worker is called for it."""
    batch: UBatch[int, int] = UBatch()
    batch._warned = True
    entering, entered, stopped = threading.Event(), threading.Event(), threading.Event()
    attend, give_up = batch._attend, batch._give_up_queue

    class Queue(type(batch._schedule.queue)):  # type: ignore[misc]
        def extend(self, tickets: Any) -> None:
            entering.set()
            assert closing.wait(PATIENCE)
            super().extend(tickets)

    def attend_later(tickets: Any) -> None:
        entered.set()
        assert stopped.wait(PATIENCE)
        attend(tickets)

    def give_up_then_wait(error: Any) -> None:
        give_up(error)
        closing.set()
        assert entered.wait(PATIENCE)

    closing = threading.Event()
    batch._schedule.queue = Queue()
    batch._attend = attend_later  # type: ignore[method-assign]
    batch._give_up_queue = give_up_then_wait  # type: ignore[method-assign]
    submitting = in_thread(batch.submit, 1)
    assert entering.wait(PATIENCE)
    assert batch.stop(timeout=PATIENCE) is True
    stopped.set()
    assert isinstance(submitting.exception(PATIENCE), Stopped)
    assert caplog.records == []


def test_stop_concurrently_with_submits(hurry):
    """Each submit either raises Stopped, or its item resolves; all are accounted for, none hangs."""
    for round_ in range(15):
        batch: UBatch[int, int] = UBatch(8, handler=echo)
        outcomes: list[list[str]] = [[] for _ in range(6)]
        begin = threading.Barrier(7)

        def submit(mine: list[str], batch: Any = batch, begin: Any = begin) -> None:
            begin.wait()
            accepted = []
            for n in range(60):
                try:
                    accepted.append(batch.submit(n))
                except Stopped:
                    mine.append("refused")
                try:
                    mine.append("result" if batch.ubatch(n) == n else "wrong")
                except Stopped:
                    mine.append("stopped")
            for future in accepted:
                error = future.exception(PATIENCE)
                mine.append("result" if error is None else type(error).__name__)

        threads = [threading.Thread(target=submit, args=(mine,)) for mine in outcomes]
        for thread in threads:
            thread.start()
        begin.wait()
        time.sleep(0.0005 * round_)
        assert batch.stop(drain=round_ % 2 == 0, timeout=PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        flat = [outcome for mine in outcomes for outcome in mine]
        assert len(flat) == 6 * 120
        assert set(flat) <= {"result", "refused", "stopped", "Stopped"}
        stats = batch.stats
        assert (stats.queued, stats.running, stats.errors) == (0, 0, 0)
        assert stats.items == flat.count("result")
        assert stats.dropped <= flat.count("stopped") + flat.count("Stopped")


def test_starting_and_stopping_at_once(hurry):
    """`start` and `stop` from many threads at once, under load: both always return, and every item resolves."""
    batch: UBatch[int, int] = UBatch(4, handler=echo)
    end = time.monotonic() + 0.7
    outcomes: list[object] = []

    def call() -> None:
        while time.monotonic() < end:
            try:
                assert batch.ubatch(1) == 1
            except Stopped:
                outcomes.append("stopped")

    def toggle(timeout: float | None) -> None:
        while time.monotonic() < end:
            batch.stop(timeout=timeout)
            batch.start()

    threads = [in_thread(call) for _ in range(4)] + [in_thread(toggle, timeout) for timeout in (None, None, 0)]
    for thread in threads:
        thread.result(PATIENCE)
    batch.start()
    assert batch.ubatch(2) == 2
    assert batch.stop()


def test_a_stop_that_a_start_has_overtaken_gives_nothing_up(gate):
    """If somebody starts the batcher again meanwhile, the end of an earlier `stop`'s time harms no new item."""
    batch, first = busy(gate)
    stopping = in_thread(batch.stop, True, 0.05)
    eventually(lambda: not batch.alive)
    batch.start()
    future = batch.submit(1)
    assert stopping.result(PATIENCE) is False
    gate.opened.set()
    assert first.result(PATIENCE) == "first"
    assert future.result(PATIENCE) == 1
    batch.stop()


def test_stop_from_the_handler():
    """`stop` in the handler does not wait; the batch completes, the rest is drained, the worker ends."""
    said = []
    queued = threading.Event()

    def handler(items: list[int]) -> list[int]:
        if not said:
            assert queued.wait(PATIENCE)
            said.append(batch.stop())
        return items

    batch: UBatch[int, int] = UBatch(1, handler=handler)
    futures = [batch.submit(n) for n in range(5)]
    queued.set()
    assert [future.result(PATIENCE) for future in futures] == [*range(5)]
    assert said == [False]
    assert not batch.alive
    assert batch.stop() is True


@pytest.mark.parametrize("drain", [True, False])
def test_stop_from_a_done_callback(gate, drain):
    """`stop` in a callback, which the worker runs, does not wait either."""
    batch, first = busy(gate, 1)
    said: list[bool] = []
    first.add_done_callback(lambda _: said.append(batch.stop(drain)))
    futures = [batch.submit(n) for n in range(5)]
    gate.opened.set()
    for n, future in enumerate(futures):
        error = future.exception(PATIENCE)
        assert future.result() == n if drain else isinstance(error, Stopped)
    assert said == [False]
    assert batch.stop() is True


def test_stop_by_the_callback_of_an_item_that_stop_gives_up(gate):
    """Callbacks that `stop` itself runs may call `stop`, and `submit`, which is refused."""
    batch, first = busy(gate, 1)
    said: list[Any] = []

    def callback(_: Any) -> None:
        said.append(batch.stop(drain=False, timeout=0.01))
        with pytest.raises(Stopped):
            batch.submit(1)
        said.append("refused")

    batch.submit(0).add_done_callback(callback)
    stopping = in_thread(batch.stop, False)
    eventually(lambda: len(said) == 2)
    gate.opened.set()
    assert stopping.result(PATIENCE)
    assert said == [False, "refused"]
    assert isinstance(first.exception(PATIENCE), Stopped)


class Owner:
    """An object that stops its batcher, and submits to another, when it is freed."""

    def __init__(self, batch: UBatch[Any, Any], other: UBatch[Any, Any], said: list[Any]) -> None:
        self.batch = batch
        self.other = other
        self.said = said
        self.me = self  # only the garbage collector can free it

    def __del__(self) -> None:
        try:
            self.said.append(self.other.submit("from __del__"))
            self.said.append(self.batch.stop())
        except BaseException as error:
            self.said.append(error)


def test_stop_from_a_del():
    """`stop` and `submit` in a `__del__`, run by the garbage collector in a caller's thread."""
    said: list[Any] = []
    with UBatch(handler=echo) as other:
        batch: UBatch[int, int] = UBatch(handler=echo)
        assert batch.ubatch(1) == 1
        Owner(batch, other, said)
        gc.collect()
        assert said[0].result(PATIENCE) == "from __del__"
        assert said[1:] == [True]
    assert not batch.alive


def test_a_del_in_the_workers_thread():
    """The garbage collector may run a `__del__` in the worker, where it may stop or submit to the same batcher."""
    said: list[Any] = []

    def handler(items: list[int]) -> list[int]:
        Owner(batch, batch, said)
        gc.collect()
        return items

    batch: UBatch[int, int] = UBatch(1, handler=handler)
    futures = [batch.submit(n) for n in range(3)]
    assert futures[0].result(PATIENCE) == 0
    assert batch.stop()
    assert said[0].exception(PATIENCE) is None or said[0].result() == "from __del__"
    assert said[1] is False
    assert not batch.alive


@pytest.mark.parametrize("where", ["callers", "worker"])
def test_collections_at_any_step(where):
    """Garbage collections at every possible moment, each running a `__del__` that submits, break nothing."""
    extra: list[Future[Any]] = []
    collected = 0

    def handler(items: list[Any]) -> list[Any]:
        Garbage()
        return items

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal collected
            in_worker = threading.current_thread().name.startswith("ubatch-")
            if in_worker == (where == "worker") and len(extra) < 2000 and batch.alive:
                collected += 1
                extra.append(batch.submit("extra"))
                if collected % 3 == 0:
                    extra[-1].cancel()

    batch: UBatch[Any, Any] = UBatch(50, 0.002, handler=handler)
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline:
            for _ in range(3):
                Garbage()
            futures = [batch.submit(n) for n in range(4)]
            assert futures[1].cancel() or futures[1].result(PATIENCE) == 1
            assert batch.ubatch("x") == "x"
            assert [futures[n].result(PATIENCE) for n in (0, 2, 3)] == [0, 2, 3]
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert collected
    assert all(future.cancelled() or future.result(PATIENCE) == "extra" for future in extra)
    assert batch.stop(timeout=PATIENCE)
    assert batch.stats.queued == 0


def test_a_del_while_the_thread_holds_the_locks_of_threading():
    """`submit`, and `stop` of a running batcher, in a `__del__` that comes upon the inside of `threading`."""
    said: list[Any] = []
    batch: UBatch[int, int] = UBatch(handler=echo)
    other: UBatch[Any, Any] = UBatch(handler=echo)  # has no thread yet
    assert batch.ubatch(1) == 1
    Owner(batch, other, said)
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        gc.collect()
        assert said[1] is True
    assert said[0].result(PATIENCE) == "from __del__"
    assert not batch.alive
    other.stop()


def test_the_collection_comes_upon_the_hiring_of_a_worker(monkeypatch):
    """A `stop`, or a call, within the very `submit` that starts the thread ends: it starts the thread itself."""
    start = ubatch._turns._start
    for inner in ("stop", "ubatch", "map"):
        batch: UBatch[Any, Any] = UBatch(handler=echo)
        said: list[Any] = []

        def interrupted(*args: Any, batch: Any = batch, inner: str = inner, said: Any = said) -> None:
            monkeypatch.setattr(ubatch._turns, "_start", start)
            said.append(getattr(batch, inner)(*{"stop": (), "ubatch": (5,), "map": ([5, 6],)}[inner]))
            start(*args)

        monkeypatch.setattr(ubatch._turns, "_start", interrupted)
        assert in_thread(batch.ubatch, 1).result(PATIENCE) == 1
        assert said == [{"stop": True, "ubatch": 5, "map": [5, 6]}[inner]]
        batch.stop()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "ubatch-echo"])


def test_stop_by_a_thread_that_looks_at_a_future(gate):
    """`stop` within a look at a queued or running future, as by a signal handler, does not wait for that thread."""
    batch, first = busy(gate, 1)
    futures = [batch.submit(n) for n in range(3)]
    gate.opened.set()
    with futures[1]._condition:  # type: ignore[attr-defined]
        assert first.result(PATIENCE) == "first"
        assert batch.stop() is False
        assert not batch.alive
    assert [future.result(PATIENCE) for future in futures] == [0, 1, 2]
    assert batch.stop() is True


def test_stop_by_a_thread_that_is_about_to_wait_for_the_future(gate):
    """A future that `stop` gives up from within its own `result` is not told before that begins to wait."""
    batch, _ = busy(gate)
    future: Any = batch.submit(1)
    wait = future._condition.wait
    said: list[bool] = []

    def interrupted(timeout: float | None = None) -> bool:
        future._condition.wait = wait
        said.append(batch.stop(drain=False, timeout=0))
        return wait(timeout)

    future._condition.wait = interrupted
    waiting = in_thread(future.result)
    assert isinstance(waiting.exception(PATIENCE), Stopped)
    gate.opened.set()
    assert batch.stop(timeout=PATIENCE)
    eventually(lambda: "ubatch-late" not in [thread.name for thread in threading.enumerate()])


# -- signal handlers, in a process of their own --------------------------------------------------------------


def test_stop_in_a_signal_handler(run_python):
    """A signal handler may stop the batcher while the main thread waits in `ubatch`, or submits, or starts."""
    run_python(
        """
        import os, random, signal, threading, time
        from ubatch import Stopped, UBatch

        inside, opened = threading.Event(), threading.Event()

        def handler(items):
            if items == ["wait"]:
                inside.set()
                opened.wait(10)
            return items

        batch = UBatch(1, handler=handler)
        said = []

        def on_signal(*_):
            opened.set()
            said.append(batch.stop())

        signal.signal(signal.SIGUSR1, on_signal)

        def kill():
            inside.wait(10)
            os.kill(os.getpid(), signal.SIGUSR1)

        threading.Thread(target=kill).start()
        assert batch.ubatch("wait") == "wait"
        assert said == [True], said
        assert not batch.alive
        batch.start()

        # at any moment of anything
        signal.signal(signal.SIGALRM, lambda *_: batch.stop())
        delays = random.Random(1)
        counts = {"ok": 0, "stopped": 0}
        end = time.monotonic() + 1.5
        n = 0
        while time.monotonic() < end:
            n += 1
            try:
                batch.start()
                signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, 1e-3))
                if n % 3:
                    assert batch.ubatch(n) == n
                else:
                    futures = [batch.submit(n) for _ in range(3)]
                    assert [future.result(5) for future in futures] == [n] * 3
                counts["ok"] += 1
            except Stopped:
                counts["stopped"] += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        batch.start()
        assert batch.ubatch(0) == 0
        assert min(counts.values()) > 0, counts
        """
    )


def test_submit_in_a_signal_handler(run_python):
    """`submit` in a signal handler is safe at any moment, that of another `submit` to the same batcher included."""
    run_python(
        """
        import signal, time
        import ubatch._turns
        from ubatch import UBatch

        ubatch._turns.IDLE_EXIT = 0.0
        batch = UBatch(4, handler=lambda items: items)
        futures = []
        signal.signal(signal.SIGALRM, lambda *_: futures.append(batch.submit("signal")))
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        end = time.monotonic() + 1.0
        n = 0
        while time.monotonic() < end:
            n += 1
            assert batch.ubatch(n) == n
            assert batch.submit(n).result(5) == n
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(futures) > 50
        assert {future.result(5) for future in futures} == {"signal"}
        """
    )


def test_an_interrupted_caller_leaves(run_python):
    """Ctrl-C in `ubatch`, `map` and `result`: the caller leaves, and an item that has not started is dropped."""
    run_python(
        """
        import os, signal, threading, time
        from ubatch import UBatch

        seen, entered, opened = [], threading.Event(), threading.Event()

        def handler(items):
            seen.append(items)
            entered.set()
            opened.wait(10)
            return items

        batch = UBatch(4, handler=handler)
        main = threading.get_ident()

        def interrupted(call, when):
            def kill():
                while not when():
                    time.sleep(0.001)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=kill).start()
            try:
                call()
            except KeyboardInterrupt:
                return
            raise AssertionError("not interrupted")

        interrupted(lambda: batch.ubatch("running"), entered.is_set)
        interrupted(lambda: batch.ubatch("queued"), lambda: batch.stats.queued == 1)
        interrupted(lambda: batch.map(["queued"] * 3), lambda: batch.stats.queued == 4)
        future = batch.submit("stays")
        interrupted(future.result, lambda: batch.stats.queued == 5)
        opened.set()
        assert future.result(10) == "stays"
        assert batch.stop()
        assert seen == [["running"], ["stays"]], seen
        assert batch.stats.cancelled == 4, batch.stats
        """
    )


def test_interrupts_again_and_again(run_python):
    """The main thread is interrupted hundreds of times; threads that share its batches do not notice."""
    run_python(
        """
        import os, signal, sys, threading, time
        import ubatch._turns
        from ubatch import UBatch

        sys.setswitchinterval(1e-5)
        ubatch._turns.IDLE_EXIT = 0.001
        batch = UBatch(16, handler=lambda items: [2 * item for item in items])
        armed = ending = False
        interrupts = 0

        def on_interrupt(*_):
            global armed, interrupts
            if armed:
                armed = False
                interrupts += 1
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, on_interrupt)
        rounds = [0] * 12

        def call(mine):
            while not ending:
                assert batch.ubatch(mine) == 2 * mine
                if mine % 3 == 0:
                    assert batch.map([mine, 1]) == [2 * mine, 2]
                rounds[mine] += 1

        def kill():
            while not ending:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.001)

        threads = [threading.Thread(target=call, args=(mine,)) for mine in range(12)]
        threads.append(threading.Thread(target=kill))
        for thread in threads:
            thread.start()
        end = time.monotonic() + 3
        n = 0
        while time.monotonic() < end and interrupts < 1000:
            n += 1
            try:
                armed = True
                if n % 2:
                    assert batch.ubatch(n) == 2 * n
                else:
                    assert batch.map([n, n + 1]) == [2 * n, 2 * n + 2]
                armed = False
            except KeyboardInterrupt:
                pass
        armed = False
        ending = True
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), (thread, batch)
        assert interrupts > 50, interrupts
        assert min(rounds) > 5, rounds
        assert batch.ubatch(1) == 2
        assert batch.stop()
        assert batch.stats.queued == batch.stats.running == 0
        """,
    )


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "TimeoutError"])
@pytest.mark.parametrize("call", ["submit", "ubatch"])
def test_a_signal_that_interrupts_the_hiring_of_a_worker(run_python, error, call):
    """An exception raised by a signal handler at any step of a batcher's first call leaves a batcher that works."""
    run_python(
        f"""
        import random, signal, sys
        from ubatch import UBatch

        armed = False
        interrupts = 0

        def on_timer(*_):
            global armed, interrupts
            if armed:
                armed = False
                interrupts += 1
                raise {error}

        signal.signal(signal.SIGALRM, on_timer)
        delays = random.Random(1)
        for n in range(600):
            batch = UBatch(handler=lambda items: items)
            future = None
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, 2e-4))
                future = batch.{call}("interrupted")
                armed = False
            except {error}:
                pass
            armed = False
            if hasattr(future, "result"):
                assert future.result(10) == "interrupted"
            assert batch.submit("next").result(10) == "next", n
            assert batch.stop(timeout=10), n
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert interrupts > 50, interrupts
        """
    )


# -- at the interpreter's exit -------------------------------------------------------------------------------

EXITS = {
    "idle": "assert batch.ubatch(1) == 1",
    "an item just submitted": "batch.submit(1)",
    "many items just submitted": "futures = [batch.submit(n) for n in range(1000)]",
    "a handler that runs and items queued": "batch.submit('nap'); time.sleep(0.05); "
    "futures = [batch.submit(n) for n in range(100)]",
    "a handler that never returns": "batch.submit('sleep'); time.sleep(0.05); futures = [batch.submit(1)]",
    "several handlers that never return": "soon(); batches = [UBatch(handler=handler) for _ in range(5)]; "
    "[b.submit('sleep') for b in batches]; time.sleep(0.05)",
    "a window that is held": "batch.timeout = 1000; batch.submit(1); time.sleep(0.05)",
    "callers that wait in daemon threads": "soon(); batch.submit('sleep'); [threading.Thread(target=call, daemon=True)"
    ".start() for _ in range(10)]; time.sleep(0.05)",
    "a caller that waits in a thread": "batch.submit('nap'); threading.Thread(target=call).start()",
    "never started, items queued": "warnings.simplefilter('ignore'); UBatch().submit(1); held = UBatch(); "
    "held.submit(1)",
    "stopped": "batch.submit(1); batch.stop()",
    "stop() given up": "batch.submit('sleep'); time.sleep(0.05); batch.stop(timeout=0)",
    "a batcher in a reference cycle": "cycle = [batch]; cycle.append(cycle); batch.submit(1); del batch, cycle",
    "thousands of batchers": "batches = [UBatch(handler=handler) for _ in range(3000)]; "
    "[b.ubatch(1) for b in batches[:100]]",
    "submit in an exit handler": "import atexit; atexit.register(lambda: batch.submit(1)); batch.ubatch(1)",
    "an exception": "batch.submit('nap'); raise SystemExit(0)",
}


@pytest.mark.parametrize("what", EXITS)
def test_exit(run_python, what):
    """At the interpreter's exit nothing hangs, nothing is written, and nobody waits long for handlers."""
    start = time.monotonic()
    run_python(
        f"""
        import threading, time, warnings
        import atexit

        def late():  # registered before the package is imported, so called after the package's own
            if "batch" in globals():
                try:
                    batch.submit(1)
                except Stopped:
                    pass

        atexit.register(late)
        from ubatch import Stopped, UBatch

        def handler(items):
            if "nap" in items:
                time.sleep(0.2)
            if "sleep" in items:
                time.sleep(1000)
            return items

        def call():
            try:
                assert batch.ubatch(1) == 1
            except Stopped:
                pass

        def soon():
            import ubatch._driver
            ubatch._driver.EXIT_WAIT = 0.3

        batch = UBatch(handler=handler)
        {EXITS[what]}
        """,
        timeout=20,
    )
    assert time.monotonic() - start < 10


# -- death of the worker -------------------------------------------------------------------------------------


def died(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "ubatch"]


def test_death_while_idle(caplog):
    """A worker that dies in its sleep: items that it was woken for get WorkerDied, the next item a new worker."""
    with UBatch(name="mine", handler=lambda items: [threading.get_native_id() for _ in items]) as batch:
        first = batch.ubatch(0)
        eventually(lambda: batch._seat.wake_at == 1)
        inject(SystemExit, batch._seat.thread)
        future = batch.submit(1)
        error = future.exception(PATIENCE)
        if error is None:
            assert future.result() == first
        else:
            assert isinstance(error, WorkerDied)
            assert isinstance(error.__cause__, SystemExit)
            assert "mine" in str(error)
            assert "SystemExit" in str(error)
        assert batch.ubatch(2) != first
    eventually(lambda: died(caplog) == ["the worker of batcher 'mine' died"])


def test_death_while_holding_a_window(caplog):
    """A worker that dies while items are held: all of them get WorkerDied, whatever they wait by."""
    batch: UBatch[int, int] = UBatch(6, FOREVER, handler=echo)
    futures = [batch.submit(n) for n in range(2)]
    callers = [in_thread(batch.ubatch, n) for n in range(2)]
    mapper = in_thread(batch.map, [1])
    eventually(lambda: batch.stats.queued == 5 and batch._seat.wake_at == 6)
    inject(SystemExit, batch._seat.thread)
    futures.append(batch.submit(5))
    for future in [*futures, *callers, mapper]:
        assert isinstance(future.exception(PATIENCE), WorkerDied)
    assert batch.map(range(6)) == [*range(6)]
    assert batch.stop()
    assert batch.stats.queued == 0
    assert batch.stats.dropped == 6
    eventually(lambda: len(died(caplog)) == 1)


def test_an_exception_injected_into_a_handler(caplog):
    """SystemExit that hits the handler is that batch's error; the worker survives."""
    looping = threading.Event()

    def handler(items: list[Any]) -> list[Any]:
        while items == ["loop"]:
            looping.set()
            time.sleep(0.001)
        return [threading.get_native_id() for _ in items]

    with UBatch(handler=handler) as batch:
        worker = batch.ubatch(1)
        future = batch.submit("loop")
        assert looping.wait(PATIENCE)
        inject(SystemExit, batch._seat.thread)
        error = future.exception(PATIENCE)
        assert isinstance(error, HandlerFailed)
        assert isinstance(error.__cause__, SystemExit)
        assert batch.ubatch(2) == worker
    assert [message for message in died(caplog) if "the handler failed with SystemExit" not in message] == []


def test_death_while_delivering(gate, caplog):
    """An exception that hits the worker between two deliveries costs nobody their result."""
    looping = threading.Event()

    def callback(_: Any) -> None:
        looping.set()
        for _ in range(1000):
            time.sleep(0.001)

    batch, _ = busy(gate)
    slow = batch.submit(0)
    slow.add_done_callback(callback)
    futures = [batch.submit(n) for n in range(3)]
    callers = [in_thread(batch.ubatch, n) for n in range(3)]
    eventually(lambda: batch.stats.queued == 7)
    gate.opened.set()
    assert looping.wait(PATIENCE)
    inject(SystemExit, batch._seat.thread)
    assert [future.result(PATIENCE) for future in [slow, *futures, *callers]] == [0, 0, 1, 2, 0, 1, 2]
    assert batch.ubatch(3) == 3
    assert batch.stop()


@pytest.mark.parametrize(("chains", "dies_after"), [(1, 1), (3, 1), (3, 2), (3, 3), (10, 1), (10, 5), (10, 10)])
def test_death_while_waking_threads(gate, monkeypatch, chains, dies_after):
    """A worker that dies waking one thread after another strands none of them, however many chains there were."""
    wake, deliver = ubatch._waiters.ThreadTicket.wake, ubatch._waiters.deliver
    batch, first = busy(gate)
    callers = [in_thread(batch.ubatch, n) for n in range(20)]
    eventually(lambda: batch.stats.queued == 20)
    worker, woken, went_on = batch._seat.thread, [], threading.Event()

    def fatal(ticket: Any) -> None:
        wake(ticket)
        if threading.get_ident() == worker:
            woken.append(ticket)
            if len(woken) == dies_after:
                went_on.wait(0.05)  # those that were woken go on meanwhile
                raise MemoryError

    def in_chains(tickets: Any, outcomes: Any, took: Any = None) -> None:
        deliver(tickets, outcomes, None if took is None else (chains - 0.5) * ubatch._waiters.WAKING)

    monkeypatch.setattr(ubatch._driver, "deliver", in_chains)
    monkeypatch.setattr(ubatch._waiters.ThreadTicket, "wake", fatal)
    gate.opened.set()
    assert [caller.result(PATIENCE) for caller in callers] == [*range(20)]
    assert first.done() and len(woken) >= dies_after
    eventually(lambda: batch._seat.thread != worker)
    monkeypatch.undo()
    assert batch.ubatch(3) == 3
    assert batch.stop()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, ValueError])
def test_callbacks_that_raise(gate, caplog, error):
    """Done-callbacks may raise what they like: later callbacks, other items and the worker are unaffected."""
    batch, first = busy(gate)
    called: list[Any] = []

    def callback(_: Any) -> None:
        raise error

    futures = [batch.submit(n) for n in range(4)]
    for future in [first, *futures[:3]]:
        future.add_done_callback(callback)
        future.add_done_callback(called.append)
        future.add_done_callback(callback)
    caller = in_thread(batch.ubatch, 4)
    eventually(lambda: batch.stats.queued == 5)
    gate.opened.set()
    assert [future.result(PATIENCE) for future in [*futures, caller]] == [0, 1, 2, 3, 4]
    assert called == [first, *futures[:3]]
    assert batch.ubatch(5) == 5
    assert len(set(gate.threads)) == 1
    assert batch.stop()
    assert {record.name for record in caplog.records} == {"concurrent.futures"}
    assert died(caplog) == []


def test_death_of_a_worker_that_stop_has_given_up(gate, monkeypatch, caplog):
    """A worker that dies delivering, after `stop` has given up on it, still costs nobody an outcome."""
    batch, first = busy(gate)
    delivering, given_up = threading.Event(), threading.Event()
    deliver = ubatch._driver.deliver

    def fatal(*args: Any) -> None:
        if threading.current_thread().name.startswith("ubatch-") and not delivering.is_set():
            delivering.set()
            assert given_up.wait(PATIENCE)
            raise SystemExit
        deliver(*args)

    monkeypatch.setattr(ubatch._driver, "deliver", fatal)
    gate.opened.set()
    assert delivering.wait(PATIENCE)
    assert batch.stop(timeout=0) is False
    given_up.set()
    assert isinstance(first.exception(PATIENCE), WorkerDied)
    with batch:
        assert batch.ubatch(1) == 1


def test_a_log_handler_that_fails(monkeypatch):
    """The report of a worker's death comes last: whatever a log handler does, everybody has their outcome."""
    import logging

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            states.append([future.done() for future in futures])
            raise OSError("no space left")

    states: list[list[bool]] = []
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    log = logging.getLogger("ubatch")
    broken = Broken()
    log.addHandler(broken)
    try:
        batch: UBatch[int, int] = UBatch(4, FOREVER, handler=echo)
        futures = [batch.submit(n) for n in range(3)]
        eventually(lambda: batch._seat.wake_at == 4)
        inject(SystemExit, batch._seat.thread)
        futures.append(batch.submit(3))
        for future in futures:
            assert isinstance(future.exception(PATIENCE), WorkerDied)
        assert batch.map(range(4)) == [*range(4)]
        assert batch.stop()
        eventually(lambda: states)
    finally:
        log.removeHandler(broken)
    assert states == [[True] * 4]


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError("no room")])
def test_no_thread_can_be_started(monkeypatch, caplog, error):
    """The caller is told at once; others that count on the same thread are, too; the next call works."""
    starting, fail = threading.Event(), threading.Event()

    def refuse(*_: Any) -> None:
        starting.set()
        assert fail.wait(PATIENCE)
        raise error

    with UBatch(name="mine", handler=echo) as batch:
        with monkeypatch.context() as patch:
            patch.setattr(ubatch._native, "_start_new_thread", refuse)
            first = in_thread(batch.ubatch, 0)
            assert starting.wait(PATIENCE)
            others = [in_thread(batch.ubatch, n) for n in range(1, 6)] + [in_thread(batch.map, [6])]
            eventually(lambda: batch.stats.queued == 7)
            fail.set()
            assert isinstance(first.exception(PATIENCE), (WorkerDied, MemoryError))
            assert str(error) in str(first.exception())
            for other in others:
                assert isinstance(other.exception(PATIENCE), WorkerDied)
            for face in (batch.ubatch, batch.submit, lambda item: batch.map([item])):
                with pytest.raises((WorkerDied, MemoryError), match=str(error)):
                    face(1)
            assert batch.stats.queued == 0
            assert batch.stop(timeout=PATIENCE)
            batch.start()
        assert batch.ubatch(1) == 1


def test_threading_cannot_start_a_thread(monkeypatch):
    """A thread that `threading` refuses to start, at a limit or at the exit, is done without."""

    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with UBatch(handler=echo) as batch:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert batch.ubatch(1) == 1
            assert batch.map([1, 2]) == [1, 2]
        assert batch.stop()
        batch.start()
        assert batch.ubatch(1) == 1


def test_no_thread_for_what_waits_for_the_start(monkeypatch, caplog):
    """If `start`, or `stop`, finds no thread for items queued before it, they get WorkerDied."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    for finish in ("start", "stop"):
        batch: UBatch[int, int] = UBatch()
        batch.set_handler(echo)
        with pytest.warns(RuntimeWarning):
            future = batch.submit(1)
        with monkeypatch.context() as patch:
            patch.setattr(ubatch._native, "_start_new_thread", refuse)
            if finish == "start":
                with pytest.raises(WorkerDied):
                    batch.start()
            else:
                assert batch.stop(timeout=PATIENCE)
        assert isinstance(future.exception(PATIENCE), WorkerDied)
        with batch.start():
            assert batch.ubatch(1) == 1


# -- calls by the worker itself ------------------------------------------------------------------------------


def from_handler(call: Callable[[UBatch[Any, Any]], Any]) -> Any:
    """What a call made by the handler of the batcher that is called comes to."""
    said: list[Any] = []

    def handler(items: list[Any]) -> list[Any]:
        if items == ["call"]:
            try:
                said.append(call(batch))
            except BaseException as error:
                said.append(error)
        return items

    with UBatch(handler=handler) as batch:
        assert batch.ubatch("call") == "call"
    return said[0]


@pytest.mark.parametrize("face", ["ubatch", "map", "aubatch", "amap"])
def test_the_worker_cannot_wait_for_itself(face):
    """A blocking call by the batcher's own worker is a RuntimeError at once, which says what to use."""

    def call(batch: UBatch[Any, Any]) -> Any:
        if face in ("ubatch", "map"):
            return getattr(batch, face)([1])
        import asyncio

        async def await_it() -> Any:
            return await getattr(batch, face)([1])

        return asyncio.run(await_it())

    error = from_handler(call)
    assert type(error) is RuntimeError
    assert "submit()" in str(error)


def test_the_worker_may_submit():
    """`submit` by the handler is queued behind."""
    future = from_handler(lambda batch: batch.submit("later"))
    assert future.result(PATIENCE) == "later"


def test_a_callback_is_run_by_the_worker(gate):
    """In a done-callback too, `ubatch` is a RuntimeError, and `submit` works."""
    batch, first = busy(gate)
    said: list[Any] = []

    def callback(_: Any) -> None:
        try:
            batch.ubatch(1)
        except RuntimeError as error:
            said.append(error)
        said.append(batch.submit(2))

    first.add_done_callback(callback)
    gate.opened.set()
    eventually(lambda: len(said) == 2)
    assert said[1].result(PATIENCE) == 2
    assert batch.stop()
    assert type(said[0]) is RuntimeError


def test_workers_may_wait_for_other_batchers():
    """A handler may call another batcher, also one whose handler calls a third."""
    third: UBatch[int, int] = UBatch(handler=lambda items: [3 * item for item in items])
    second: UBatch[int, int] = UBatch(handler=lambda items: [item + 1 for item in third.map(items)])
    first: UBatch[int, int] = UBatch(handler=lambda items: [2 * second.ubatch(item) for item in items])
    with third, second, first:
        assert first.map(range(5)) == [2, 8, 14, 20, 26]


# -- many ----------------------------------------------------------------------------------------------------


def test_ten_thousand_batchers(run_python):
    """10,000 batchers made, used and forgotten leave no thread, no descriptor and no memory behind."""
    run_python(
        """
        import gc, os, time
        from ubatch import UBatch
        import ubatch._driver

        def measure():
            deadline = time.monotonic() + 10
            while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
                time.sleep(0.001)
            gc.collect()
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
            return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), pages * 4096

        def use(count):
            for n in range(count):
                batch = UBatch(4, handler=lambda items: items)
                if n % 3 == 0:
                    assert batch.ubatch(n) == n
                elif n % 3 == 1:
                    batch.submit(n)
                else:
                    batch.stop()

        use(1000)
        threads, fds, memory = measure()
        use(9000)
        threads_after, fds_after, memory_after = measure()
        assert threads_after == threads == 1, (threads, threads_after)
        assert fds_after == fds, (fds, fds_after)
        assert memory_after - memory < 4e6, memory_after - memory
        assert not ubatch._observing.living
        """
    )
