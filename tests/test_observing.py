"""What a batcher shows of itself: histograms, records for observers, warnings; threads and event loops alike."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import random
import signal
import sys
import threading
import time
import unittest.mock
import weakref
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import ubatch
from ubatch import (
    Batch,
    DeadlineExceeded,
    Histogram,
    QueueFull,
    UBatch,
    _buckets,
    _log,
    dynamically,
    observe,
    ubatch_decorator,
)
from ubatch import aio as _aio
from ubatch._attempt import Attempt
from ubatch._buckets import rounded
from ubatch._future import FutureTicket
from ubatch._log import MOST_KINDS, MOST_NAMES, OTHERS, PAUSE, catch_up, report, report_once
from ubatch._recorder import FOLD, Recorder
from ubatch._tally import Tally

PATIENCE = 10.0


def eventually(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.001)


class Threads:
    """A batcher of threads, and what is done with it."""

    name = "threads"
    decorators = (ubatch_decorator, dynamically)
    make = UBatch

    @staticmethod
    def run(batch: Any, *maps: list[Any]) -> list[Any]:
        """Each list by a `map`, one after another; results, or the exception that it raised."""
        results: list[Any] = []
        for items in maps:
            try:
                results.append(batch.map(items))
            except Exception as error:
                results.append(error)
        batch.stop()
        return results


class Loop:
    """A batcher of event loops, and the same."""

    name = "loop"
    decorators = (_aio.ubatch_decorator, _aio.dynamically)
    make = _aio.UBatch

    @staticmethod
    def run(batch: Any, *maps: list[Any]) -> list[Any]:
        async def main() -> list[Any]:
            results: list[Any] = []
            for items in maps:
                try:
                    results.append(await batch.map(items))
                except Exception as error:
                    results.append(error)
            await batch.stop()
            return results

        return asyncio.run(main())


drivers = pytest.mark.parametrize("driver", [Threads, Loop], ids=lambda driver: driver.name)


def handler(items: list[Any]) -> list[Any]:
    if "bad" in items:
        raise KeyError("bad")
    return [ValueError("odd") if item == "odd" else item for item in items]


@pytest.fixture
def records() -> Iterator[list[Batch]]:
    """The records of all batches."""
    found: list[Batch] = []
    end = observe(found.append)
    yield found
    end()


# -- what is counted and measured --------------------------------------------------------------------------


@drivers
def test_snapshots_tell_sizes_waits_and_run_times(driver):
    """Of every item and every batch, and how full these were."""

    def slow(items: list[int]) -> list[int]:
        time.sleep(0.01)
        return items

    batch = driver.make(8, 0.0, handler=slow)
    driver.run(batch, [*range(20)], [1])
    stats = batch.stats
    assert stats.size.buckets == ((1, 1), (4, 1), (8, 2))
    assert (stats.size.sum, stats.items, stats.room) == (21, 21, 4 * 8)
    assert stats.utilisation == 21 / 32
    assert (stats.wait.count, stats.run.count) == (21, 4)
    assert stats.run.p50 >= 0.01 * 15 / 16
    assert stats.run.sum >= 4 * 0.01
    assert stats.wait.quantile(1.0) >= 2 * 0.01 * 15 / 16, "the last four wait for two batches"
    assert stats.wait.sum >= 8 * 0.01 + 4 * 0.02
    assert stats.wait.sum < 1 + 21 * stats.run.sum


@drivers
def test_errors_are_counted_by_type(driver):
    """Whether the handler raised, or put them in its output; and nothing of a batch that is lost is measured."""
    batch = driver.make(4, 0.0, handler=handler)
    driver.run(batch, [1, "bad"], ["odd", 2], [3])
    stats = batch.stats
    assert stats.error_types == (("KeyError", 2), ("ValueError", 1))
    assert stats.errors == 3
    assert stats.size.count == stats.batches == 3


@drivers
def test_an_interval_is_a_difference(driver):
    """Two snapshots, one subtraction."""
    batch = driver.make(4, 0.0, handler=handler)
    driver.run(batch, [1, 2, 3, 4])
    before = batch.stats
    batch.start()
    driver.run(batch, [5, 6])
    since = batch.stats - before
    assert (since.items, since.batches, since.size.buckets, since.wait.count) == (2, 1, ((2, 1),), 2)


@pytest.mark.parametrize("calls", ["one at a time", "in batches"])
def test_snapshots_under_load_never_fail_nor_go_backwards(calls, hurry):
    """Taken by eight threads beside eight that call; in the end every item is in each of them."""
    over = threading.Event()
    failures: list[BaseException] = []
    done = [0] * 8

    def call(number: int) -> None:
        while not over.is_set():
            if calls == "in batches":
                done[number] += len(batch.map(range(7)))
            else:
                done[number] += batch.ubatch(1)

    def look() -> None:
        try:
            before = batch.stats
            while not over.is_set():
                after = batch.stats
                since = after - before  # raises if anything has become less
                assert since.items >= 0 <= since.wait.count
                assert after.size.sum == after.wait.count <= after.items
                assert after.size.count == after.run.count <= after.batches
                before = after
        except BaseException as error:
            failures.append(error)

    with UBatch(16, handler=lambda items: items) as batch:
        threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        threads += [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    stats = batch.stats
    assert stats.items == stats.size.sum == stats.wait.count == sum(done)
    assert stats.batches == stats.size.count == stats.run.count


def test_several_workers_may_record_at_once(hurry):
    """Nothing is lost or counted twice, whoever folds."""
    recorder = Recorder()
    rounds = 3000

    def work() -> None:
        for _ in range(rounds):
            after = recorder.note([Item(1.0), Item(1.0)], 1.5, 0.5, 4)
            if after is not None:
                after()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        recorded = recorder.recorded()
        assert 2 * recorded["size"].count == recorded["size"].sum == recorded["wait"].count
    recorded = recorder.recorded()
    assert recorded["size"].buckets == ((2, 4 * rounds),)
    assert (recorded["wait"].count, recorded["wait"].sum) == (8 * rounds, 4.0 * rounds)
    assert (recorded["run"].count, recorded["run"].sum, recorded["room"]) == (4 * rounds, 2.0 * rounds, 16 * rounds)


class Item:
    """What a recorder is told of: somebody who arrived at some time."""

    def __init__(self, arrived: float) -> None:
        self.arrived = arrived


def test_what_was_recorded_is_what_is_shown(seed):
    """Batches of one item and of many, small and large, against sums and counts of their own; folded now and then."""
    rng = random.Random(seed)
    recorder = Recorder()
    sizes: Counter[int] = Counter()
    waits: list[float] = []
    runs: list[float] = []
    room = 0
    for number in range(400):
        size = rng.choice([1, 1, 2, 5, 64, rng.randrange(1, 300)]) if number != 200 else 3 * FOLD
        mine = [rng.lognormvariate(-7.0, 2.0) for _ in range(size)]
        run, most = rng.lognormvariate(-5.0, 2.0), size + rng.randrange(9)
        began = 1e5
        items = [Item(began - wait) for wait in mine]
        after = recorder.note(items, began, run, most)
        sizes[rounded(size)] += 1
        waits += [began - item.arrived for item in items]
        runs.append(run)
        room += most
        if after is not None:
            after()
            assert not recorder._batches and not recorder._singles
    recorded = recorder.recorded()
    assert recorded["size"] == Histogram(sorted(sizes.items()), len(waits))
    assert recorded["room"] == room
    for name, times in (("wait", waits), ("run", runs)):
        assert recorded[name].count == len(times)
        assert recorded[name].sum == pytest.approx(math.fsum(times), rel=1e-12)
        times.sort()
        for q in (0.0, 0.1, 0.5, 0.9, 1.0):
            exact = times[max(1, math.ceil(q * len(times) - 1e-9)) - 1]
            assert abs(recorded[name].quantile(q) - exact) <= exact / 16, (name, q)


@pytest.mark.parametrize("size", [1, 2, 5, 64, 3 * FOLD])
def test_what_waits_to_be_folded_is_bounded(size):
    """In bytes, whatever the batches are like, but for the one that is too much; the collector need not look at it."""
    recorder = Recorder()
    items = [Item(float(number)) for number in range(size)]
    batches = 0
    held: list[Any] = []
    while recorder.note(items, 1e5, batches / 7, 2 * size) is None:
        batches += 1
        held = recorder._singles + recorder._batches
    assert batches * size < FOLD <= (batches + 1) * size * 8
    assert sum(map(sys.getsizeof, held)) + 8 * len(held) < 40 * FOLD
    assert not any(map(gc.is_tracked, held))
    recorder.fold()
    assert (recorder.note(items, 1e5, 0.0, 2 * size) is None) == (size < FOLD), "it begins anew"


@pytest.mark.parametrize("size", [1, 5])
def test_what_waits_to_be_folded_is_bounded_where_somebody_is_told(size):
    recorder = Recorder([lambda record: None])
    items = [Item(float(number)) for number in range(size)]
    attempt = Attempt()
    attempt.outcomes, attempt.errors = [None] * size, 0
    for _ in range(2 * FOLD):
        after = recorder.tell("told", items, 1e5, 0.25, size, "full", attempt, None, (), None)
        assert after is not None
        after()
        assert len(recorder._singles) + len(recorder._batches) < FOLD


class Folding:
    """What is folded, and looked at: of a batcher, or of the child processes that its handler runs in."""

    def __init__(self, kind: str) -> None:
        recorder, tally = Recorder(), Tally()

        def note_batches() -> None:
            for size in 1, 2:
                recorder.note([Item(1.0)] * size, 1.5, 0.25, 4)

        def note_call() -> None:
            tally.note(0.5, Answer(seconds=0.25, size=7, copied=0, passed=0), 9, 1, 2)

        self.note: Callable[[], None] = note_batches if kind == "batches" else note_call
        self.look: Callable[[], Any] = recorder.recorded if kind == "batches" else lambda: tally.snapshot((), 0)


Answer = namedtuple("Answer", "seconds size copied passed")
STEPS = [("batches", "rounded"), ("batches", "count_times"), ("batches", "unpacked"), ("calls", "count_times")]


@pytest.mark.parametrize(("kind", "step"), STEPS)
def test_a_snapshot_from_within_the_making_of_one(monkeypatch, kind, step):
    """As by a signal handler, wherever: it sees what was folded before, and waits for nobody."""
    folding, plain = Folding(kind), Folding(kind)
    folding.note()
    before = folding.look()
    folding.note()
    inner: list[Any] = []
    with after_each(monkeypatch, step, lambda: inner.append(folding.look())):
        after = folding.look()
    assert inner == [before] * len(inner) != []
    plain.note()
    plain.note()
    assert after == folding.look() == plain.look() != before


@pytest.mark.parametrize(("kind", "step"), STEPS)
def test_a_fold_that_is_interrupted_loses_nothing_and_counts_nothing_twice(monkeypatch, kind, step):
    """As by Ctrl-C."""
    folding, plain = Folding(kind), Folding(kind)
    folding.note()
    with after_each(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        folding.look()
    folding.note()
    plain.note()
    plain.note()
    assert folding.look() == plain.look()


@contextmanager
def after_each(monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], object]) -> Iterator[None]:
    """Something comes between, each time that a step of folding has been done."""
    whole = getattr(_buckets, step)

    def then_act(*args: Any) -> Any:
        result = whole(*args)
        act()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(_buckets, step, then_act)
        yield


# -- observers ---------------------------------------------------------------------------------------------


@drivers
def test_an_observer_gets_a_record_of_each_batch(driver):
    """Who, how many, how long, why, and what went wrong: nothing else, and nothing of it can be changed."""
    seen: list[Batch] = []
    batch = driver.make(2, 0.0, handler=handler, name="mine", observer=seen.append)
    began = time.monotonic()
    driver.run(batch, [1, 2, 3], [4, "bad"], ["odd", 5])
    assert [(record.batcher, record.size, record.max_size) for record in seen] == [
        ("mine", 2, 2), ("mine", 1, 2), ("mine", 2, 2), ("mine", 2, 2),
    ]  # fmt: skip
    assert [record.reason for record in seen] == ["full", "idle", "full", "full"]
    assert [record.errors for record in seen] == [0, 0, 2, 1]
    assert [repr(record.error) for record in seen] == ["None", "None", "KeyError('bad')", "ValueError('odd')"]
    for record in seen:
        assert len(record.waits) == record.size
        assert began < record.began < record.began + record.duration < time.monotonic()
        assert all(0 <= wait < time.monotonic() - began for wait in record.waits)
        with pytest.raises(AttributeError):
            record.size = 3  # type: ignore[misc]
        assert "waits" not in repr(record)
    assert seen[1].waits[0] > seen[0].duration, "the third item has waited for the first batch"


@drivers
def test_the_records_error_is_the_observers_own(driver, records):
    """Callers raise theirs, with a traceback that grows."""
    batch = driver.make(handler=handler)
    [error] = driver.run(batch, ["bad"])
    assert type(error) is type(records[0].error) is KeyError
    assert error is not records[0].error


@drivers
def test_an_observer_that_raises_is_logged_once(driver, caplog):
    """It harms neither the batch nor those to come, nor other observers. A worker's thread is not its to end."""
    seen: list[Batch] = []
    failure = SystemExit if driver is Threads else asyncio.CancelledError

    def broken(record: Batch) -> None:
        raise failure("no more")

    end = observe(seen.append)
    batch = driver.make(handler=handler, observer=broken, name="mine")
    assert driver.run(batch, [1], [2], [3]) == [[1], [2], [3]]
    end()
    assert len(seen) == 3
    [record] = caplog.records
    assert (record.name, record.levelname) == ("ubatch", "WARNING")
    assert "'mine'" in record.getMessage() and "broken" in record.getMessage()
    assert record.exc_info is not None and record.exc_info[0] is failure


def test_an_observer_may_submit_but_not_wait(caplog):
    """Waiting for its own worker is an error at once, which is its own fault alone."""
    errors: list[Exception] = []
    futures: list[Any] = []

    def observer(record: Batch) -> None:
        if record.size == 2:
            futures.append(batch.submit(3))
            try:
                batch.ubatch(4)
            except RuntimeError as error:
                errors.append(error)

    with UBatch(handler=handler, observer=observer) as batch:
        assert batch.map([1, 2]) == [1, 2]
        eventually(lambda: errors)
        assert futures[0].result(PATIENCE) == 3
    assert "cannot wait" in str(errors[0])
    assert caplog.records == []


def test_callers_do_not_wait_for_an_observer():
    """They are awake before it is called; the next batch is after it."""
    proceed, entered = threading.Event(), threading.Event()

    def observer(record: Batch) -> None:
        entered.set()
        assert proceed.wait(PATIENCE)

    with UBatch(handler=handler, observer=observer) as batch:
        assert batch.ubatch(1) == 1
        assert entered.wait(PATIENCE)
        later = batch.submit(2)
        time.sleep(0.05)
        assert not later.done()
        proceed.set()
        assert later.result(PATIENCE) == 2


def test_all_batchers_are_observed_those_to_come_and_those_that_are(records):
    """Of either kind, decorated functions too, until it is ended; a part of a batcher is not told apart."""
    before = [UBatch(handler=handler, name="before"), _aio.UBatch(handler=handler, name="loop, in a thread")]
    decorated = [decorator(handler) for driver in (Threads, Loop) for decorator in driver.decorators]
    for batch in before:
        (Threads if isinstance(batch, UBatch) else Loop).run(batch, [1])
    for function in decorated:
        driver = Threads if isinstance(function.batcher, UBatch) else Loop
        driver.run(function.batcher, [1])
    names = ["before", "loop, in a thread", *["handler"] * 4]
    assert [record.batcher for record in records] == names


@drivers
def test_one_batcher_is_observed_by_many(driver):
    """Each as often as it was added, until its own end is called, which may be called again."""
    seen: list[str] = []
    batch, other = driver.make(handler=handler), driver.make(handler=handler)
    observers = [lambda _: seen.append("a"), lambda _: seen.append("b")]
    ends = [observe(observer, batch) for observer in (*observers, observers[0])]
    driver.run(batch, [1])
    assert seen == ["a", "b", "a"]
    ends[0]()
    ends[0]()
    batch.start()
    driver.run(batch, [1])
    driver.run(other, [1])
    assert seen[3:] == ["b", "a"]
    for end in ends:
        end()
    batch.start()
    driver.run(batch, [1])
    assert len(seen) == 5


@pytest.mark.parametrize("make", [UBatch, _aio.UBatch, ubatch_decorator, dynamically, _aio.dynamically])
@pytest.mark.parametrize("wrong", ["print", 0, [print]])
def test_an_observer_is_callable(make, wrong):
    """Anything else is refused where it is given, by its value."""
    with pytest.raises(TypeError, match="observer must be callable"):
        make(observer=wrong)
    with pytest.raises(TypeError, match="observer must be callable"):
        observe(wrong)
    with pytest.raises(TypeError, match="batcher must be a UBatch"):
        observe(print, wrong)


def test_an_observed_batcher_is_collected(records):
    """Observers of all keep no batcher, and no item, result or exception."""

    class Thing:
        pass

    gc.collect()
    gc.disable()
    try:
        batch = UBatch(handler=lambda items: items)
        item = Thing()
        refs = [weakref.ref(batch), weakref.ref(item)]
        assert batch.ubatch(item) is item
        eventually(lambda: records)
        del batch, item
        eventually(lambda: all(ref() is None for ref in refs))
    finally:
        gc.enable()


def test_a_batch_given_up_is_not_told(records):
    """What `stop` took from a handler has no outcome to tell of, and no times."""
    proceed = threading.Event()

    def stuck(items: list[int]) -> list[int]:
        proceed.wait(PATIENCE)
        return items

    batch = UBatch(handler=stuck)
    future = batch.submit(1)
    eventually(lambda: batch.stats.running)
    assert not batch.stop(timeout=0.01)
    proceed.set()
    assert isinstance(future.exception(PATIENCE), ubatch.Stopped)
    eventually(lambda: not batch._leaving)
    stats = batch.stats
    assert (records, stats.batches, stats.size.count, stats.error_types) == ([], 1, 0, (("Stopped", 1),))


# -- tracers -----------------------------------------------------------------------------------------------


class Tracer:
    """Notes what it is told."""

    def __init__(self, told: list[Any], fails: str = "") -> None:
        self.told = told
        self.fails = fails

    def note(self, what: str, *more: Any) -> None:
        self.told.append((what, *more))
        if what == self.fails:
            raise LookupError(what)

    def begin(self, batcher: str, contexts: Any) -> Any:
        self.note("begin", [context and context.get(where) for context in contexts])
        return self

    def leave(self) -> None:
        self.note("leave", threading.get_ident())

    def end(self, batch: Batch | None) -> None:
        self.note("end", batch and batch.size)


where: contextvars.ContextVar[str] = contextvars.ContextVar("where")


@pytest.mark.parametrize("fails", ["", "begin", "leave", "end"])
@drivers
def test_a_tracer_is_given_the_context_of_each_caller(driver, fails, caplog):
    """Before the handler is called; it is told of the handler's return, and of the callers' waking."""
    told: list[Any] = []
    seen: list[Batch] = []

    def noting(items: list[Any]) -> list[Any]:
        told.append(("handler",))
        return items

    batch = driver.make(handler=noting, observer=seen.append)
    end = observe(Tracer(told, fails), batch)
    token = where.set("here")
    driver.run(batch, [1, 2])
    where.reset(token)
    end()
    batch.start()
    driver.run(batch, [3])
    assert told[:2] == [("begin", ["here", "here"]), ("handler",)]
    after = [] if fails == "begin" else ["leave", "end"]
    assert [what for what, *_ in told[2:]] == [*after, "handler"]
    assert [record.size for record in seen] == [2, 1]
    assert len(caplog.records) == bool(fails)


def test_a_tracer_of_a_batch_that_is_given_up():
    """It is told so, and the context is left."""
    told: list[Any] = []
    proceed = threading.Event()

    def stuck(items: list[int]) -> list[int]:
        proceed.wait(PATIENCE)
        return items

    batch = UBatch(handler=stuck)
    end = observe(Tracer(told), batch)
    batch.submit(1)
    eventually(lambda: batch.stats.running)
    batch.stop(timeout=0.01)
    proceed.set()
    eventually(lambda: told and told[-1] == ("end", None))
    assert [what for what, *_ in told] == ["begin", "leave", "end"]
    end()

    told.clear()
    slow = _aio.UBatch(handler=_sleep)
    end = observe(Tracer(told), slow)

    async def main() -> None:
        future = slow.submit(1)
        while not slow.stats.running:
            await asyncio.sleep(0.001)
        await slow.stop(timeout=0.01)
        with pytest.raises(ubatch.Stopped):
            await future
        await asyncio.sleep(0.01)

    asyncio.run(main())
    end()
    assert [what for what, *_ in told] == ["begin", "leave", "end"]


async def _sleep(items: list[int]) -> list[int]:
    await asyncio.sleep(PATIENCE)
    return items


def test_items_that_came_before_the_tracer():
    """They have no context, and are none the worse."""
    told: list[Any] = []
    batch: UBatch[int, int] = UBatch(handler=None)
    with pytest.warns(RuntimeWarning, match="items wait"):
        future = batch.submit(1)
    end = observe(Tracer(told), batch)
    token = where.set("here")
    later = batch.submit(2)
    where.reset(token)
    batch.set_handler(lambda items: items)
    batch.start()
    assert (future.result(PATIENCE), later.result(PATIENCE)) == (1, 2)
    batch.stop()
    end()
    assert told[0] == ("begin", [None, "here"])
    assert later.context is None, "a future that is held keeps nobody's context"  # type: ignore[attr-defined]


# -- warnings ----------------------------------------------------------------------------------------------


class Sentry(logging.Handler):
    """Stands for one that sends errors away."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sent.append(record)


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    handler = Sentry()
    logging.getLogger("ubatch").addHandler(handler)
    yield handler
    logging.getLogger("ubatch").removeHandler(handler)


@drivers
def test_a_handler_that_fails_is_warned_of_once_a_minute(driver, sentry, now):
    """With its traceback, and how many items have failed since; no item is in the message."""

    def failing(items: list[str]) -> list[str]:
        raise KeyError if items[0] == "secret" else OSError

    batch = driver.make(handler=failing, name="mine")
    driver.run(batch, ["secret", "x"])
    batch.start()
    driver.run(batch, ["secret", "x", "y"], ["secret"], ["other"])
    now[0] += PAUSE
    batch.start()
    driver.run(batch, ["secret"])
    texts = [record.getMessage() for record in sentry.sent]
    assert [text.rpartition(" ")[2] for text in texts] == ["2", "1", "5"]
    assert ["KeyError" in text for text in texts] == [True, False, True]
    assert all("'mine'" in text and "secret" not in text for text in texts)
    assert len({record.msg for record in sentry.sent}) == 1, "they are grouped by it"
    for record in sentry.sent:
        assert record.exc_info is not None
        traceback = record.exc_info[2]
        assert traceback is not None and traceback.tb_frame.f_code.co_name == "failing"


@drivers
def test_output_that_is_no_batch_is_warned_of(driver, sentry):
    """It is the handler's failure as well."""
    batch = driver.make(handler=lambda items: items[:-1])
    driver.run(batch, [1, 2])
    assert ["BadBatchOutputSize" in record.getMessage() for record in sentry.sent] == [True]


def test_a_full_queue_is_warned_of(sentry):
    """Once, not for each item."""
    batch: UBatch[int, int] = UBatch(max_queue=2)
    with pytest.warns(RuntimeWarning):
        batch.submit(1)
    for _ in range(3):
        with pytest.raises(QueueFull):
            batch.map([1, 2, 3])
    batch.stop(drain=False)
    assert [record.getMessage().rpartition(" ")[2] for record in sentry.sent] == ["3"]
    assert "queue is full" in sentry.sent[0].getMessage()


@drivers
def test_deadlines_that_pass_are_warned_of(driver, sentry):
    """Of items that the handler has not seen."""
    batch = driver.make(1, 0.0, handler=_slowly, deadline=0.05)
    driver.run(batch, [1, 2, 3])
    eventually(lambda: batch.stats.expired)
    assert len([record for record in sentry.sent if "deadline" in record.getMessage()]) == 1


class Recording:
    """An observer that records, and so can be told to begin."""

    def __init__(self) -> None:
        self.told: list[Batch] = []

    def begin(self) -> None:
        raise AssertionError("nobody asked for it")

    def __call__(self, record: Batch) -> None:
        self.told.append(record)


@drivers
def test_what_can_be_called_is_no_tracer(driver):
    """Whatever methods it has, such as a mock's."""
    recording, mock = Recording(), unittest.mock.Mock()
    driver.run(driver.make(handler=handler, observer=recording), [1, 2])
    driver.run(driver.make(handler=handler, observer=mock), [1, 2])
    assert [record.size for record in recording.told] == [2]
    assert [call.args[0].size for call in mock.call_args_list] == [2]
    assert not mock.begin.called


@drivers
def test_a_coroutine_function_is_no_observer(driver):
    """Nobody would await it."""

    async def told(record: Batch) -> None: ...

    with pytest.raises(TypeError, match=r"plain function, as nobody awaits it, not <function .*told"):
        driver.make(handler=handler, observer=told)
    with pytest.raises(TypeError, match="plain function"):
        observe(told)


@drivers
def test_a_deadline_that_passes_while_the_handler_works_is_told(driver, sentry):
    """By a warning, and in the record: its caller got an exception."""
    seen: list[Batch] = []
    batch = driver.make(handler=_slowly, deadline=0.05, observer=seen.append, name="slow")
    [error] = driver.run(batch, [1])
    assert isinstance(error, DeadlineExceeded)
    assert batch.stats.error_types == (("DeadlineExceeded", 1),)
    [record] = seen
    assert (record.errors, str(record.error)) == (1, str(error))
    assert record.error is not error
    [warned] = sentry.sent
    assert "'slow'" in warned.getMessage() and "deadline" in warned.getMessage()
    assert warned.getMessage().endswith(": 1")


@drivers
def test_batchers_of_one_name_warn_as_one(driver, sentry):
    """As those of a method's instances do: one for each request, perhaps. And those of another name by themselves."""
    for number in range(MOST_NAMES):
        for name in "mine", f"other {number}":
            driver.run(driver.make(handler=handler, name=name, observer=_fails), ["bad"])
    texts = [record.getMessage() for record in sentry.sent]
    mine = [text for text in texts if "'mine'" in text]
    assert ["observer" in text for text in mine] == [False, True]
    others = [text for text in texts if str(OTHERS) in text]
    assert ["observer" in text for text in others] == [False, True], "there is one name too many"
    assert len(texts) == 2 * (MOST_NAMES + 1)


def _fails(record: Batch) -> None:
    raise OSError


def _slowly(items: list[int]) -> list[int]:
    time.sleep(0.2)
    return items


def counts(sentry: Sentry, start: str = "") -> list[int]:
    """Of the warnings so far that start like that."""
    texts = [record.getMessage() for record in sentry.sent]
    return [int(text.rpartition(" ")[2]) for text in texts if text.startswith(start)]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, by which minutes are told; it stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr("ubatch._log.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("most", "names"), [(MOST_NAMES, lambda i: (f"name {i}", "kind")), (MOST_KINDS, lambda i: ("name", f"kind {i}"))]
)
def test_what_is_not_told_apart_is_one_kind(sentry, now, most, names):
    """However many names and kinds there are: a warning for each that is, one for all others, and every one counts."""
    for _ in range(4):
        for number in range(most + 40):
            name, kind = names(number)
            report(name, 1, "%r %s: %d", kind)
    assert counts(sentry) == [1] * (most + 1)
    assert str(OTHERS) in sentry.sent[-1].getMessage()
    now[0] += 2 * PAUSE
    catch_up()
    assert counts(sentry)[most + 1 :] == [3] * most + [4 * 40 - 1]


def test_a_name_is_forgotten_after_a_while(now, sentry):
    """But not what is said once."""
    for number in range(MOST_NAMES):
        report(f"name {number}", 1, "%r: %d")
    report_once("name 1", "%r: once")
    report("name 2", 1, "%r: %d")
    now[0] += 2 * PAUSE
    report("another", 1, "%r: %d")  # the last for which there is no room
    sentry.sent.clear()
    report_once("name 1", "%r: once")
    report("yet another", 1, "%r: %d")
    assert [record.getMessage() for record in sentry.sent] == ["'yet another': 1"]
    assert len(_log.known) == 4


def test_the_rest_of_a_burst_is_told_with_whatever_is_next(now, sentry):
    """Once another of its kind, which would have a traceback, has not come for long enough."""
    report("mine", 1, "%r: %d")
    report("mine", 7, "%r: %d")
    report("mine", 8, "%r: %d")
    for seconds in 0.0, PAUSE, PAUSE - 1.0:
        now[0] += seconds
        report("another", 1, "%r: %d")
    assert counts(sentry, "'mine'") == [1]
    now[0] += 1.0
    report("another", 1, "%r: %d")
    assert counts(sentry, "'mine'") == [1, 15]
    now[0] += 2 * PAUSE
    report("another", 1, "%r: %d")
    assert counts(sentry, "'mine'") == [1, 15], "once"


def test_each_burst_has_its_time(now, sentry):
    """The one that began later is told later."""
    for name in "first", "second":
        report(name, 1, "%s: %d")
        report(name, 2, "%s: %d")
        now[0] += PAUSE
    sentry.sent.clear()
    told = []
    for _ in range(3):
        catch_up()
        told.append([record.getMessage() for record in sentry.sent])
        now[0] += PAUSE
    assert told == [["first: 2"], ["first: 2", "second: 2"], ["first: 2", "second: 2"]]


def test_trouble_that_goes_on_is_told_with_a_traceback(now, sentry):
    """Nobody else tells it before: not while it comes more often than once a minute."""
    for _ in range(300):
        now[0] += PAUSE / 10 + 0.1
        report("another", 1, "%r: %d")
        report("mine", 1, "%r: %d", error=KeyError())
    told = [record.exc_info is not None for record in sentry.sent if "mine" in record.getMessage()]
    assert len(told) > 20 and all(told)


@drivers
@pytest.mark.parametrize("occasion", ["work", "stop"])
def test_the_rest_of_a_burst_is_told_by_a_batcher(driver, now, sentry, occasion):
    """That works on, or is stopped; which need not be the one that has failed."""
    driver.run(driver.make(handler=handler, name="mine"), ["bad"], ["bad"], ["bad", "x"])
    assert counts(sentry) == [1]
    batch = driver.make(max_size=1, handler=handler, observer=lambda record: told.append(counts(sentry)))
    told: list[list[int]] = []
    now[0] += 2 * PAUSE
    driver.run(batch, *([[1], [2]] if occasion == "work" else []))
    assert counts(sentry) == [1, 3]
    assert told == ([[1], [1, 3]] if occasion == "work" else [])


def test_the_rest_of_a_burst_is_told_by_a_batcher_that_a_coroutine_stops(now, sentry):
    """Likewise."""
    Threads.run(UBatch(handler=handler), ["bad"], ["bad", "x"])
    now[0] += 2 * PAUSE
    assert asyncio.run(UBatch(handler=handler).astop())
    assert counts(sentry) == [1, 2]


def test_the_rest_of_a_burst_is_told_at_the_interpreters_exit(run_python):
    """Before `logging` closes what it has been told to."""
    printed = run_python(
        """
        import atexit
        import ubatch
        def fail(items):
            raise OSError("alas")
        batch = ubatch.UBatch(max_size=1, handler=fail, name="mine")
        def call():
            try:
                batch.ubatch(1)
            except OSError:
                pass
        call()
        import logging  # only now, so that what it does at exit comes first
        class Sentry(logging.Handler):
            closed = False
            def emit(self, record):
                print(record.getMessage().rpartition(" ")[2], self.closed)
            def close(self):
                self.closed = True
                super().close()
        logging.getLogger("ubatch").addHandler(Sentry())
        for _ in range(100):
            call()
        batch.stop()
        """,
        stderr=None,
    )
    assert printed == "100 False\n"


# -- interrupts --------------------------------------------------------------------------------------------


class Interrupt(BaseException):
    """Stands for what a signal handler raises."""


@pytest.fixture
def interrupting(sentry: Sentry, monkeypatch: pytest.MonkeyPatch) -> Sentry:
    """A log handler that is interrupted."""

    def emit(record: logging.LogRecord) -> None:
        sentry.sent.append(record)
        raise Interrupt

    monkeypatch.setattr(sentry, "emit", emit)
    return sentry


def test_a_log_handler_that_raises_does_not_end_a_worker(interrupting):
    """Whatever it raises, when a handler fails, and when deadlines pass."""
    with UBatch(1, 0.0, handler=_slowly_bad, deadline=0.1) as batch:
        thread = batch.ubatch(1)
        late = [batch.submit(item) for item in ("bad", 2, 3)]
        errors = [type(future.exception(PATIENCE)) for future in late]
        assert errors == [DeadlineExceeded] * 3
        eventually(lambda: batch.stats.expired == 2)
        assert batch.ubatch(1) == thread
    assert len(interrupting.sent) == 2


def _slowly_bad(items: list[Any]) -> list[int]:
    if "bad" in items:
        time.sleep(0.3)
        raise KeyError("bad")
    return [threading.get_ident()]


def test_threads_that_are_nobodys_but_ours(run_python):
    """Those that are there, in this process."""
    printed = run_python(
        """
        import os, threading, warnings
        from ubatch import _native
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        proceed, told, ended = threading.Event(), threading.Event(), []
        def run():
            ended.append(_native.is_own_thread())
            told.set()
            proceed.wait(10)
        _native.start_thread("ours", run)
        told.wait(10)
        if not (pid := os.fork()):
            os._exit(len(_native._own_threads))
        print(ended, _native.is_own_thread(), len(_native._own_threads), os.waitpid(pid, 0)[1])
        proceed.set()
        for thread in threading.enumerate():
            if thread.name == "ours":
                thread.join()
        print(len(_native._own_threads))
        """
    )
    assert printed == "[True] False 1 0\n0\n"


def test_a_caller_is_interrupted_while_it_is_warned(interrupting):
    """It is told that, rather than that its item was refused; nobody else is the worse for it."""
    proceed = threading.Event()

    def stuck(items: list[int]) -> list[int]:
        proceed.wait(PATIENCE)
        return items

    with UBatch(1, 0.0, handler=stuck, max_queue=1) as batch:
        futures = [batch.submit(1)]
        eventually(lambda: batch.stats.running)
        futures.append(batch.submit(2))
        with pytest.raises(Interrupt):
            batch.submit(3)
        with pytest.raises(QueueFull):
            batch.submit(4)
        proceed.set()
        assert [future.result(PATIENCE) for future in futures] == [1, 2]
    assert batch.stats.rejected == 2


def test_some_are_let_in_though_the_warning_of_others_is_interrupted(interrupting):
    """A worker is called for them all the same."""
    with UBatch(handler=handler, max_queue=2) as batch:
        assert batch.map([1]) == [1]
        tickets = [FutureTicket((item,), {}, batch._specialise()) for item in range(3)]
        for ticket in tickets:
            ticket.terms = batch._rules.terms(ticket.args, {}, ticket.arrived, None)
        with pytest.raises(Interrupt):
            batch._enter(tickets, True, math.inf, block=False, whole=False)
        assert [ticket.result(PATIENCE) for ticket in tickets[:2]] == [0, 1]


class Interrupted(Tracer):
    """One that is, once."""

    def note(self, what: str, *more: Any) -> None:
        self.told.append(what)
        if what == self.fails and self.told.count(what) == 1:
            raise SystemExit

    def __repr__(self) -> str:
        return self.fails


@pytest.mark.parametrize("fails", ["observer", "begin", "leave", "end"])
def test_an_interrupt_leaves_the_event_loop(fails, sentry):
    """Which raises it as of any callback. If it goes on then, nobody has missed anything, and nobody is accused."""
    first, second = Interrupted([], fails), Interrupted([])
    seen: list[int] = []

    def observer(record: Batch) -> None:
        first.note("observer")
        seen.append(record.size)

    batch = _aio.UBatch(2, 0.0, handler=handler, observer=observer)
    ends = [observe(one, batch) for one in (first, second, lambda record: seen.append(-record.size))]
    assert interrupted(batch, lambda: [batch.submit(item) for item in "abcd"]) == ["a", "b", "c", "d"]
    for end in ends:
        end()
    assert seen == ([-2, 2, -2] if fails == "observer" else [2, -2, 2, -2])
    assert second.told == ["begin", "leave", "end"] * 2
    assert sentry.sent == []


@pytest.mark.parametrize("fails", [True, False])
def test_an_interrupt_of_a_log_handler_leaves_the_event_loop(fails, sentry, monkeypatch):
    """Likewise: while it is told that the handler fails, or that the deadline of what is queued has passed."""

    def emit(record: logging.LogRecord) -> None:
        sentry.sent.append(record)
        raise SystemExit

    async def slowly(items: list[str]) -> list[str]:
        await asyncio.sleep(0.2)
        return handler(items)

    monkeypatch.setattr(sentry, "emit", emit)
    batch = _aio.UBatch(1, 0.0, handler=slowly)
    views = [batch, batch if fails else batch.options(deadline=0.1), batch]
    items = ["bad" if fails else "good", "x", "y"]
    outcomes = interrupted(batch, lambda: [view.submit(item) for view, item in zip(views, items, strict=True)])
    assert [type(outcome) for outcome in outcomes] == ([KeyError, str, str] if fails else [str, DeadlineExceeded, str])
    assert len(sentry.sent) == 1


def interrupted(batch: Any, submit: Callable[[], list[asyncio.Future[Any]]]) -> list[Any]:
    """The outcomes of what is submitted in a loop that is interrupted, and goes on."""

    async def main() -> list[Any]:
        outcomes = await asyncio.gather(*submit(), return_exceptions=True)
        await batch.stop()
        return outcomes

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(main())
        with pytest.raises(SystemExit):
            loop.run_until_complete(task)
        return loop.run_until_complete(task)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_warnings_of_one_kind_from_many_threads(sentry, now, hurry):
    """One is given, and all are counted."""

    def report_some() -> None:
        for _ in range(500):
            report("mine", 1, "%r: %d")

    threads = [threading.Thread(target=report_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now[0] += PAUSE
    report("mine", 1, "%r: %d")
    assert [record.getMessage() for record in sentry.sent] == ["'mine': 1", "'mine': 2000"]


def test_no_handler_is_installed(run_python):
    """And logging is not so much as imported before there is something to log."""
    printed = run_python(
        """
        import sys
        import ubatch
        assert "logging" not in sys.modules
        batch = ubatch.UBatch(handler=lambda items: items, observer=lambda record: None)
        assert batch.ubatch(1) == 1
        batch.stats
        import logging
        print(logging.getLogger("ubatch").handlers, logging.getLogger().handlers)
        """
    )
    assert printed == "[] []\n"


def test_snapshots_in_a_forked_child(run_python):
    """The child counts anew, whatever its parent's threads were about."""
    printed = run_python(
        """
        import os, threading, ubatch, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        from ubatch import _recorder, _log, _observing
        seen = []
        ubatch.observe(seen.append)
        batch = ubatch.UBatch(handler=lambda items: items, name="mine")
        batch.map(range(10))
        held = threading.Event()
        def hold():
            with _recorder._folding, _log._lock, _observing._lock:
                held.set()
                threading.Event().wait(1)
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        pid = os.fork()
        if not pid:
            seen.clear()
            batch.map(range(3))
            ubatch.observe(print)()
            stats = batch.stats
            batch.stop()
            os._exit(0 if (stats.size.sum, stats.wait.count, len(seen)) == (3, 3, 1) else 1)
        print(os.waitpid(pid, 0)[1])
        """
    )
    assert printed == "0\n"
