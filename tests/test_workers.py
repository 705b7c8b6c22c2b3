"""Several workers of one batcher: how many batches run at once, which handler runs them, who looks after the queue."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from collections import Counter
from typing import Any

import pytest
from gates import FOREVER, PATIENCE, Gate, echo, eventually, in_thread, inject, results

import ubatch._driver
import ubatch._seats
import ubatch._turns
from ubatch import Stopped, UBatch, WorkerDied, aio, cached

KINDS = ("threads", "tasks")


def busy(gate: Gate, workers: int, *args: Any, **options: Any) -> tuple[UBatch[Any, Any], list[Any]]:
    """A batcher all of whose workers are in the handler, with a batch of one each; and these items' futures."""
    batch: UBatch[Any, Any] = UBatch(*args, handler=gate, workers=workers, **options)
    futures = []
    for n in range(workers):
        futures.append(batch.submit(("busy", n)))
        gate.wait_for_batch()
    return batch, futures


class Crowd:
    """A handler that knows how many threads are in it, and how many there were at most."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.lock = threading.Lock()
        self.inside = self.most = 0
        self.batches: list[list[Any]] = []

    def __call__(self, items: list[Any]) -> list[Any]:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.batches.append(items)
        time.sleep(self.seconds)
        with self.lock:
            self.inside -= 1
        return items


def all_of(kind: str, items: range, *args: Any, **options: Any) -> list[Any]:
    """The results of items from a batcher of the kind, called by many at once, one item each."""
    if kind == "tasks":

        async def tasks() -> list[Any]:
            async with aio.UBatch(*args, **options) as batch:
                return list(await asyncio.gather(*map(batch.ubatch, items)))

        return asyncio.run(tasks())
    with UBatch(*args, **options) as batch:
        return results([batch.submit(item) for item in items])


# -- how many -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_bound_the_batches_that_run_at_once(gate, workers):
    """As many run as there are workers, where there is enough to do, and no more; the queue waits for the first."""
    batch, running = busy(gate, workers, 4, 0)
    with batch:
        queued = [batch.submit(n) for n in range(10)]
        assert not gate.entered.acquire(timeout=0.02)
        assert batch.stats.running == workers
        assert batch.stats.queued == 10
        assert len(set(gate.threads)) == workers
        gate.opened.set()
        assert results(queued) == list(range(10))
        assert results(running) == [("busy", n) for n in range(workers)]
    assert batch.stats.running == batch.stats.queued == 0
    assert batch.stats.items == 10 + workers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timeout", [0, 0.001, None])
def test_everything_is_answered(kind, timeout):
    """Whatever the policy, each item gets its own result, and there are never more in the handler than may be."""
    crowd = Crowd(0.001)
    assert all_of(kind, range(300), 4, timeout, handler=crowd, workers=3) == list(range(300))
    assert 1 < crowd.most <= 3
    assert sorted(item for batch in crowd.batches for item in batch) == list(range(300))
    assert all(batch == list(range(batch[0], batch[0] + len(batch))) for batch in crowd.batches)


def test_no_worker_comes_that_is_not_needed():
    """One caller after another is served by one thread, however many there may be."""
    gate = Gate(is_open=True)
    with UBatch(4, handler=gate, workers=4) as batch:
        for n in range(100):
            assert batch.ubatch(n) == n
        assert len(set(gate.threads)) == len(batch._crew) == 1


@pytest.mark.parametrize("timeout", [0, 0.001, None])
def test_idle_workers_do_not_split_a_batch(timeout):
    """A `map` of one batch's size is one batch, though all workers idle: one of them looks at the queue."""
    crowd = Crowd(0.002)
    with UBatch(16, timeout, handler=crowd, workers=4) as batch:
        batch.map(range(64))
        eventually(lambda: len(batch._idle) == len(batch._crew) - 1)
        assert len(batch._crew) > 1
        crowd.batches.clear()
        for _ in range(50):
            batch.map(range(16))
    assert crowd.batches == [list(range(16))] * 50


def test_a_batch_is_cut_when_a_worker_is_free(gate):
    """What comes while all are busy leaves together, with the first that is done."""
    batch, _ = busy(gate, 2, 64, 0)
    with batch:
        queued = [batch.submit(n) for n in range(40)]
        gate.opened.set()
        results(queued)
    assert gate.batches[2:] == [list(range(40))]


@pytest.mark.parametrize("cache", [None, {}])
def test_a_stream_keeps_all_workers_busy(cache):
    """By default there is a batch for each of them, and one more."""
    together = threading.Barrier(3)

    def handler(items: list[Any]) -> list[Any]:
        together.wait(PATIENCE)
        return items

    with UBatch(2, 0.5, handler=handler, workers=3) as batch:
        source: Any = batch if cache is None else cached(batch, cache)
        assert list(source.stream(range(24))) == list(range(24))


def test_the_first_that_is_done_takes_the_queue():
    """Another that is still busy holds nobody up."""
    held, inside = threading.Event(), threading.Semaphore(0)

    def handler(items: list[Any]) -> list[Any]:
        inside.release()
        if items[0] == "slow":
            assert held.wait(PATIENCE)
        return items

    with UBatch(4, 0, handler=handler, workers=2) as batch:
        slow = batch.submit("slow")
        assert inside.acquire(timeout=PATIENCE)
        for n in range(20):
            assert batch.submit(n).result(PATIENCE) == n
        assert not slow.done()
        held.set()
        assert slow.result(PATIENCE) == "slow"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2", None])
def test_a_wrong_number_of_workers(kind, wrong):
    make: Any = UBatch if kind == "threads" else aio.UBatch
    with pytest.raises((TypeError, ValueError), match=f"workers .*{wrong!r}"):
        make(handler=echo, workers=wrong)
    with pytest.raises((TypeError, ValueError), match=f"workers .*{wrong!r}"):
        make(handler=echo).reconfigure(workers=wrong)


# -- a handler for each ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_list_of_handlers_means_a_worker_for_each(kind, sequence):
    """Each handler is called by one worker at a time, as a model on a GPU of its own wants it; all of them are used."""
    crowds = [Crowd(0.002) for _ in range(3)]
    assert all_of(kind, range(200), 4, 0, handler=sequence(crowds)) == list(range(200))
    assert [crowd.most for crowd in crowds] == [1, 1, 1]
    assert sum(len(batch) for crowd in crowds for batch in crowd.batches) == 200


@pytest.mark.parametrize("kind", KINDS)
def test_handlers_that_are_set_later(kind):
    """The number of workers is known then; items that waited are run by all of them."""
    crowds = [Crowd(0.002) for _ in range(2)]
    if kind == "threads":
        batch: UBatch[Any, Any] = UBatch(4, 0)
        with pytest.warns(RuntimeWarning, match="items wait"):
            futures = [batch.submit(n) for n in range(40)]
        batch.set_handler(crowds)
        assert batch.start().workers == 2
        assert results(futures) == list(range(40))
        batch.stop()
    else:

        async def later() -> list[Any]:
            batch: aio.UBatch[Any, Any] = aio.UBatch(4, 0)
            with pytest.warns(RuntimeWarning, match="items wait"):
                futures = [batch.submit(n) for n in range(40)]
            batch.set_handler(crowds)
            assert batch.start().workers == 2
            done = await asyncio.gather(*futures)
            await batch.stop()
            return list(done)

        assert asyncio.run(later()) == list(range(40))
    assert [crowd.most for crowd in crowds] == [1, 1]


class Models(list[Any]):
    """A callable that is a list as well."""

    def __call__(self, items: list[Any]) -> list[Any]:
        return [(len(self), item) for item in items]


def test_a_callable_is_one_handler_even_if_it_is_a_list():
    with UBatch(handler=Models("ab")) as batch:
        assert batch.ubatch(1) == (2, 1)
        assert batch.workers == 1


async def coroutine(items: list[Any]) -> list[Any]:
    return items


def two(items: list[Any], other: list[Any]) -> list[Any]:
    return items


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"handler": []}, ValueError, r"at least one, not \[\]"),
        ({"handler": [echo, 3]}, TypeError, "must be callable, not 3"),
        ({"handler": [echo, coroutine]}, TypeError, "coroutine"),
        ({"handler": [echo, two]}, ValueError, "same parameters.*two"),
        ({"handler": [echo, echo], "workers": 3}, ValueError, "2 handlers .* workers=3"),
        ({"handler": [echo, echo], "executor": dict}, ValueError, "excludes executor"),
    ],
)
def test_wrong_lists_of_handlers(kind, options, error, message):
    make: Any = UBatch if kind == "threads" else aio.UBatch
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_workers_is_that_of_the_handlers(kind):
    """It cannot be changed, but for the other options."""
    make: Any = UBatch if kind == "threads" else aio.UBatch
    batch = make(handler=[echo, echo])
    with pytest.raises(ValueError, match=r"2 handlers .* workers=1"):
        batch.reconfigure(workers=1, max_size=3)
    assert (batch.workers, batch.max_size) == (2, 64)
    batch.reconfigure(workers=2, max_size=3)
    assert (batch.workers, batch.max_size) == (2, 3)


# -- while it runs --------------------------------------------------------------------------------------------


def test_more_workers_come_at_once(gate):
    """A batcher whose only worker is busy gets another when it may have one, not only after that batch."""
    batch, _ = busy(gate, 1, 4, 0)
    with batch:
        queued = batch.submit("queued")
        batch.workers = 3
        gate.wait_for_batch()
        later = batch.submit("later")
        gate.wait_for_batch()
        batch.submit("last")
        assert not gate.entered.acquire(timeout=0.02)
        gate.opened.set()
        assert results([queued, later]) == ["queued", "later"]


def test_fewer_workers_remain(gate):
    """Those that are too many finish what they have, and leave; from then on there are no more than there may be."""
    crowd = Crowd(0.001)

    def handler(items: list[Any]) -> list[Any]:
        return gate(items) if gate.opened.is_set() is False else crowd(items)

    batch: UBatch[Any, Any] = UBatch(4, 0, handler=handler, workers=4)
    running = []
    for n in range(4):
        running.append(batch.submit(n))
        gate.wait_for_batch()
    batch.reconfigure(workers=2)
    assert batch.workers == 2
    gate.opened.set()
    assert results(running) == [0, 1, 2, 3]
    eventually(lambda: len(batch._crew) <= 2)
    results([batch.submit(n) for n in range(100)])
    assert crowd.most == 2
    assert batch.stop()


def test_another_number_of_workers_loses_nothing(hurry, seed):
    """It changes all the time, while many submit; and the policy is talked to by one at a time."""
    rng = random.Random(seed)
    crowd = Crowd(0.0005)
    batch: UBatch[Any, Any] = UBatch(4, handler=crowd)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            batch.reconfigure(workers=rng.randrange(1, 5), timeout=rng.choice([None, 0, 0.0005]))
            time.sleep(rng.random() * 0.002)

    changing = in_thread(change)
    callers = [in_thread(lambda base=base: [batch.ubatch(base + n) for n in range(60)]) for base in range(0, 800, 100)]
    for base, caller in zip(range(0, 800, 100), callers, strict=True):
        assert caller.result(PATIENCE) == [base + n for n in range(60)]
    ended.set()
    changing.result(PATIENCE)
    assert batch.stop()
    assert batch.stats.items == 480
    assert batch.stats.queued == batch.stats.running == 0
    assert crowd.most <= 4


class Alone:
    """A policy that notices when two talk to it at once."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self.told: Counter[str] = Counter()
        self.clashes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._policy, name)
        if name not in ("decide", "expect", "cut", "finished", "watch"):
            return found

        def alone(*args: Any) -> Any:
            if not self._lock.acquire(blocking=False):
                self.clashes.append(name)
                return found(*args)
            try:
                self.told[name] += 1
                time.sleep(0)
                return found(*args)
            finally:
                self._lock.release()

        return alone


def test_one_at_a_time_talks_to_the_policy(hurry):
    """Each batch's end is told, by whoever leads then; and never by two workers at once."""
    batch: UBatch[Any, Any] = UBatch(4, handler=Crowd(0.0005), workers=4)
    policy: Any = Alone(batch._policy)
    batch._policy = policy
    callers = [in_thread(lambda: [batch.ubatch(n) for n in range(50)]) for _ in range(12)]
    for caller in callers:
        caller.result(PATIENCE)
    assert batch.stop()
    assert policy.clashes == []
    assert len(batch._untold) < 4  # of those that ended last; the next to lead would tell
    batch._tell_policy()
    policy._policy._check()
    assert policy.told["cut"] == policy.told["finished"] > 100


# -- coming and going -----------------------------------------------------------------------------------------


def test_all_workers_go_when_they_have_idled(monkeypatch):
    """No thread is left after a time without items; the next item brings one again."""
    monkeypatch.setattr(ubatch._turns, "IDLE_EXIT", 0.02)
    crowd = Crowd(0.002)
    batch: UBatch[Any, Any] = UBatch(1, 0, handler=crowd, workers=3)
    for _ in range(3):
        results([batch.submit(n) for n in range(30)])
        eventually(lambda: not batch._crew)
        assert batch._seat is ubatch._seats.NOBODY
        assert not batch._idle
        assert not batch._threads
    assert crowd.most > 1
    assert batch.stop()


def test_a_forgotten_batcher_with_several_idle_workers():
    """It is collected, and its threads end."""
    batch: UBatch[Any, Any] = UBatch(1, 0, handler=Crowd(0.002), name="forgotten", workers=3)
    results([batch.submit(n) for n in range(30)])
    crew, idle = batch._crew, batch._idle
    assert len(crew) > 1
    eventually(lambda: len(idle) == len(crew) - 1)
    gone = weakref.ref(batch)
    del batch
    gc.collect()
    eventually(lambda: gone() is None)
    eventually(lambda: "ubatch-forgotten" not in [thread.name for thread in threading.enumerate()])


def test_stop_waits_for_all(gate):
    """Also for those that are busy while the queue is empty; then all are gone."""
    batch, running = busy(gate, 3, 4, 0)
    stopping = in_thread(batch.stop)
    eventually(lambda: not batch.alive)
    assert not stopping.done()
    gate.opened.set()
    assert stopping.result(PATIENCE) is True
    assert all(future.done() for future in running)
    assert not batch._crew
    assert not batch._threads


def test_stop_drains_with_all_of_them():
    crowd = Crowd(0.005)
    batch: UBatch[Any, Any] = UBatch(1, 0, handler=crowd, workers=3)
    futures = [batch.submit(n) for n in range(30)]
    assert batch.stop()
    assert results(futures) == list(range(30))
    assert crowd.most == 3


def test_stop_gives_up_on_all_of_them(gate):
    """After its timeout the callers of every running batch get `Stopped`; others come in their place after `start`."""
    batch, running = busy(gate, 3, 4, 0)
    queued = batch.submit("queued")
    assert batch.stop(timeout=0.01) is False
    for future in [*running, queued]:
        assert isinstance(future.exception(PATIENCE), Stopped)
    batch.start()
    again = [batch.submit("again")]
    gate.wait_for_batch()
    again.append(batch.submit("and again"))
    gate.wait_for_batch()
    gate.opened.set()  # old and new ones come back
    assert results(again) == ["again", "and again"]
    assert batch.stop()
    assert batch.stats.running == batch.stats.queued == 0
    eventually(lambda: not batch._leaving)


def test_a_handler_does_not_call_its_own_batcher():
    """Whichever worker runs it; but one that was given up on may."""
    entered = threading.Barrier(3)

    def handler(items: list[Any]) -> list[Any]:
        entered.wait(PATIENCE)
        with pytest.raises(RuntimeError, match="could run"):
            batch.ubatch(1)
        with pytest.raises(RuntimeError, match="could run"):
            batch.map([1])
        return items

    with UBatch(1, 0, handler=handler, workers=3) as batch:
        assert results([batch.submit(n) for n in range(3)]) == [0, 1, 2]


def test_a_worker_that_stops_its_batcher_does_not_wait():
    """The others finish what they have, and all leave."""
    inside = threading.Barrier(2)

    def handler(items: list[Any]) -> list[Any]:
        inside.wait(PATIENCE)
        return [batch.stop() if item == "stop" else item for item in items]

    batch: UBatch[Any, Any] = UBatch(1, 0, handler=handler, workers=2)
    futures = [batch.submit("stop"), batch.submit("go on")]
    assert results(futures) == [False, "go on"]
    assert batch.stop()
    assert not batch._crew


def test_a_worker_that_dies_leaves_the_rest_to_the_others(gate, caplog):
    """Its batch fails; another's is unaffected, and so is what comes after."""
    batch, running = busy(gate, 2, 4, 0)
    victim = next(seat for seat in batch._crew if seat.batch[0].args[0] == ("busy", 0))
    original = ubatch._driver.deliver

    def deadly(tickets: Any, *args: Any) -> None:
        if threading.get_ident() == victim.thread and len(args) == 2 and victim.batch:
            ubatch._driver.deliver = original
            raise MemoryError("delivering")
        original(tickets, *args)

    ubatch._driver.deliver = deadly
    try:
        batch.submit("queued")
        gate.opened.set()
        assert isinstance(running[0].exception(PATIENCE), WorkerDied)
        assert running[1].result(PATIENCE) == ("busy", 1)
    finally:
        ubatch._driver.deliver = original
    assert batch.ubatch("later") == "later"
    assert batch.stop()
    eventually(lambda: "MemoryError" in caplog.text)


def test_a_worker_that_is_killed_while_it_idles(caplog):
    """Whoever leads, the next items are run."""
    crowd = Crowd(0.002)
    with UBatch(1, 0, handler=crowd, workers=3) as batch:
        for _ in range(5):
            results([batch.submit(n) for n in range(12)])
            eventually(lambda: len(batch._idle) == len(batch._crew) - 1)
            for seat in list(batch._crew):
                inject(SystemExit, seat.thread)
                seat.ring()
                eventually(lambda seat=seat: seat not in batch._crew)
        assert crowd.most > 1
        results([batch.submit(n) for n in range(12)])
    eventually(lambda: caplog.text.count("died") >= 5)


def test_threads_that_cannot_be_started(monkeypatch):
    """The workers that there are do it all; nothing fails, and nothing is lost."""
    start = ubatch._turns._start
    started: list[Any] = []

    def limited(driver: Any, seat: Any) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(seat)
        start(driver, seat)

    monkeypatch.setattr(ubatch._turns, "_start", limited)
    crowd = Crowd(0.001)
    with UBatch(2, 0, handler=crowd, workers=4) as batch:
        callers = [in_thread(lambda: [batch.ubatch(n) for n in range(50)]) for _ in range(6)]
        for caller in callers:
            assert caller.result(PATIENCE) == list(range(50))
        assert len(batch._crew) == 1
    assert crowd.most == 1


def test_a_hold_does_not_keep_others_from_finishing(gate):
    """While one worker waits for companions, another's batch comes back to its callers."""
    batch, (first,) = busy(gate, 1, 1, FOREVER)
    with batch:
        batch.reconfigure(workers=2, max_size=2)
        held = batch.submit("held")
        eventually(lambda: batch._seat.wake_at == 2)
        gate.opened.set()
        assert first.result(PATIENCE) == ("busy", 0)
        assert not held.done()
        assert batch.ubatch("companion") == "companion"
        assert held.result(PATIENCE) == "held"


def test_workers_go_on_while_a_caller_holds_the_lock():
    """A signal handler that comes upon a caller there, and waits for what is queued, gets it."""
    with UBatch(1, 0, handler=Crowd(0.001), workers=3) as batch:
        assert batch.ubatch("first") == "first"
        with batch._lock:
            assert results([batch.submit(n) for n in range(5)]) == list(range(5))


def test_a_stop_that_a_start_overtakes_while_others_are_busy(gate, monkeypatch):
    """It returns at once, and says that not all is done; not when one of the workers has nothing to do."""
    batch, running = busy(gate, 2, 4, 0)
    gate.opened.set()
    results(running)
    eventually(lambda: batch._idle)
    gate.opened.clear()
    running = [batch.submit("running")]
    rouse = batch._rouse

    def overtaken() -> None:
        monkeypatch.undo()
        batch.start()
        rouse()

    monkeypatch.setattr(batch, "_rouse", overtaken)
    assert in_thread(batch.stop).result(PATIENCE) is False
    assert not running[0].done()
    gate.opened.set()
    assert results(running) == ["running"]
    assert batch.stop()


def test_a_worker_of_an_earlier_life_does_not_end_a_stop(gate):
    """One that had left, and is late to tell an earlier `stop`, tells a later one nothing."""
    batch, running = busy(gate, 2, 4, 0)
    stopping = in_thread(batch.stop)
    eventually(lambda: batch._farewells)
    batch._farewell()
    assert batch._farewells
    gate.opened.set()
    assert stopping.result(PATIENCE) is True
    assert results(running) == [("busy", 0), ("busy", 1)]


# -- with terms -----------------------------------------------------------------------------------------------


def test_items_of_different_keys_run_side_by_side():
    """One batch has one key, also with several workers; each key's items keep their order."""
    crowd = Crowd(0.002)
    with UBatch(8, 0, handler=crowd, workers=3, key=lambda item: item % 5) as batch:
        assert batch.map(range(200)) == list(range(200))
    assert all(len({item % 5 for item in items}) == 1 for items in crowd.batches)
    assert all(items == sorted(items) for items in crowd.batches)
    assert 1 < crowd.most <= 3


def test_a_bounded_queue_with_several_workers(hurry):
    """Callers wait for room, all are let in, and no more are inside than may be."""
    crowd = Crowd(0.0005)
    with UBatch(4, 0, handler=crowd, workers=3, max_queue=5, overflow="block", deadline=30) as batch:
        callers = [in_thread(lambda: [batch.ubatch(n) for n in range(30)]) for _ in range(20)]
        for caller in callers:
            assert caller.result(PATIENCE) == list(range(30))
    assert batch.stats.items == 600


def test_each_worker_has_a_ceiling_of_its_own():
    """A handler that runs out of memory on one device says nothing of the others'."""

    def small(items: list[Any]) -> list[Any]:
        if len(items) > 4:
            raise MemoryError
        return items

    large = Crowd()
    with UBatch(16, 0, handler=[small, large], isolate=True) as batch:
        for _ in range(20):
            assert batch.map(range(64)) == list(range(64))
    assert max(map(len, large.batches)) == 16


# -- forks ----------------------------------------------------------------------------------------------------


def test_a_fork_while_several_batches_run(run_python):
    """The child works at once, what it inherited fails there, and the parent is unaffected; also from a handler."""
    run_python(
        """
        import os, sys, threading, warnings
        from ubatch import UBatch, WorkerDied
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        inside, opened = threading.Barrier(3), threading.Event()

        def handler(items):
            if items == ["fork"]:
                pid = os.fork()
                if not pid:
                    try:
                        with UBatch(handler=list) as other:
                            other.ubatch(1)
                        assert threading.active_count() == 1
                        os._exit(0)
                    except BaseException:
                        sys.excepthook(*sys.exc_info())
                        os._exit(1)
                return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
            if items[0] == "hold":
                inside.wait(10)
                opened.wait(10)
            return items

        batch = UBatch(1, 0, handler=handler, workers=2)
        held = [batch.submit("hold"), batch.submit("hold")]
        inside.wait(10)
        queued = batch.submit("queued")
        pid = os.fork()
        if not pid:
            try:
                for future in [*held, queued]:
                    assert isinstance(future.exception(10), WorkerDied), future
                assert batch.map(range(20)) == list(range(20))
                assert batch.stop()
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        opened.set()
        assert [future.result(10) for future in [*held, queued]] == ["hold", "hold", "queued"]
        assert batch.ubatch("fork") == 0
        assert batch.stop()
        """
    )


# -- all at once ----------------------------------------------------------------------------------------------


def test_every_item_resolves_once(hurry, seed, monkeypatch):
    """Submits, cancels, errors, stops, starts, changes and idle exits at random: the books balance in the end."""
    rng = random.Random(seed)
    crowd = Crowd()
    seen: Counter[int] = Counter()

    def handler(items: list[int]) -> list[Any]:
        crowd(items)
        with crowd.lock:
            seen.update(items)
        if items[0] % 7 == 0:
            time.sleep(0.0005)
        if items[0] % 31 == 0:
            raise SystemExit(items[0])
        return [ValueError(item) if item % 13 == 0 else item for item in items]

    batch: UBatch[Any, Any] = UBatch(4, 0, handler=handler, workers=3)
    end = time.monotonic() + 1.5
    numbers = iter(range(10**9))

    def work(chance: random.Random) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        while time.monotonic() < end:
            item = next(numbers)
            try:
                view = batch.options(priority=chance.choice([0, 1]), deadline=chance.choice([1.0, 0.002]))
                future = (view if chance.random() < 0.3 else batch).submit(item)
                if chance.random() < 0.1:
                    future.cancel()
                assert future.result(PATIENCE) == item
                outcomes["result"] += 1
            except (Exception, asyncio.CancelledError) as error:
                outcomes[type(error).__name__] += 1
        return outcomes

    def trouble() -> None:
        while time.monotonic() < end:
            what = rng.random()
            if what < 0.3:
                batch.stop(drain=rng.random() < 0.5, timeout=rng.choice([None, 0, 0.001]))
                batch.start()
            elif what < 0.6:
                batch.reconfigure(workers=rng.randrange(1, 5), timeout=rng.choice([None, 0, 0.001]))
            else:
                monkeypatch.setattr(ubatch._turns, "IDLE_EXIT", rng.choice([0.0, 0.001, 10.0]))
            time.sleep(rng.random() * 0.01)

    workers = [in_thread(work, random.Random(seed + n)) for n in range(8)]
    troubling = in_thread(trouble)
    outcomes = sum((worker.result(PATIENCE) for worker in workers), Counter())
    troubling.result(PATIENCE)
    batch.start()
    assert batch.ubatch(-1) == -1
    assert batch.stop()
    stats = batch.stats
    assert stats.queued == stats.running == 0
    assert not batch._crew
    assert not batch._idle
    assert max(seen.values()) == 1
    assert crowd.most <= 4 + 4  # those given up on beside those that came in their place
    assert set(outcomes) <= {
        "result",
        "ValueError",
        "HandlerFailed",
        "Stopped",
        "CancelledError",
        "DeadlineExceeded",
    }
    assert outcomes["result"] > 100
