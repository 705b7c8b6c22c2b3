"""The order of items, how long they are held, and what an idle batcher costs."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from typing import Any

import pytest
from gates import FOREVER, PATIENCE, Gate, eventually, results

import ubatch._driver
import ubatch._seats
import ubatch._turns
import ubatch._waiters
from ubatch import UBatch


def busy(gate: Gate, *args: Any, **options: Any) -> UBatch[Any, Any]:
    """A batcher whose worker is held up in a batch of one."""
    batch: UBatch[Any, Any] = UBatch(*args, handler=gate, **options)
    plug = batch.submit("plug")
    if batch.max_size > 1 and batch.timeout:
        age([plug], FOREVER)
        batch.timeout = batch.timeout  # look again
    gate.wait_for_batch()
    return batch


def age(futures: list[Any], seconds: float) -> None:
    """Let items have arrived longer ago."""
    for future in futures:
        future.arrived -= seconds


def asleep(batch: UBatch[Any, Any]) -> bool:
    return batch._seat.wake_at <= 1


# -- order ---------------------------------------------------------------------------------------------------


def test_first_in_first_out_across_batches(gate):
    """Items leave in the order in which they came, whichever face they came by."""
    with busy(gate, 7) as batch:
        futures = [batch.submit(n) for n in range(40)]
        mapper = threading.Thread(target=batch.map, args=(range(40, 80),))
        mapper.start()
        eventually(lambda: batch.stats.queued == 80)
        caller = threading.Thread(target=batch.ubatch, args=(80,))
        caller.start()
        eventually(lambda: batch.stats.queued == 81)
        gate.opened.set()
        assert results(futures) == [*range(40)]
        mapper.join()
        caller.join()
    _, *batches = gate.batches
    assert [item for items in batches for item in items] == [*range(81)]
    assert [len(items) for items in batches] == [7] * 11 + [4]


def test_each_thread_keeps_its_order(hurry):
    """However threads mix, the items of each leave in its own order."""
    seen: list[tuple[int, int]] = []

    def handler(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
        seen.extend(items)
        return items

    with UBatch(5, handler=handler) as batch:

        def submit(thread: int) -> None:
            for n in range(100):
                batch.submit((thread, n))

        threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for thread in range(6):
        assert [n for whose, n in seen if whose == thread] == [*range(100)]


def test_late_binding(gate):
    """What arrives while the handler is busy leaves in full batches: they are cut when the worker is free."""
    with busy(gate, 64) as batch:
        futures = [batch.submit(n) for n in range(300)]
        assert len(gate.batches) == 1
        gate.opened.set()
        results(futures)
    assert [len(items) for items in gate.batches] == [1, 64, 64, 64, 64, 44]


def test_arrivals_at_one_per_millisecond_during_a_long_batch():
    """300 arrivals, one per ms, at a handler that takes 100 ms make at most 7 batches of at most 64."""
    sizes: list[int] = []

    def handler(items: list[int]) -> list[int]:
        sizes.append(len(items))
        time.sleep(0.1)
        return items

    with UBatch(64, handler=handler) as batch:
        start = time.monotonic()
        futures = []
        for n in range(300):
            time.sleep(max(0.0, start + n * 0.001 - time.monotonic()))
            futures.append(batch.submit(n))
        assert results(futures) == [*range(300)]
    assert max(sizes) <= 64
    assert len(sizes) <= 7 + (time.monotonic() - start > 0.8)  # a machine that stalls arrives more slowly


# -- how long items are held ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0])
def test_a_lone_request_is_not_held(timeout, monkeypatch):
    """Without a window the worker never waits while an item is queued."""
    waits = []
    batch: UBatch[int, int] = UBatch(64, timeout, handler=lambda items: items)
    decide = batch._policy.decide
    monkeypatch.setattr(type(batch._policy), "decide", lambda _, *args: waits.append(decide(*args)))
    with batch:
        start = time.monotonic()
        for n in range(100):
            assert batch.ubatch(n) == n
        assert time.monotonic() - start < 2.0
    assert waits == [None] * len(waits)  # a policy with nothing to decide is not asked
    assert batch.stats.idle == batch.stats.batches == 100  # cut at once, each of them


def test_the_window_is_counted_from_arrival():
    """At an idle worker an item waits for `timeout` from its own arrival, though others keep arriving."""
    called: list[tuple[float, list[float]]] = []

    def handler(items: list[float]) -> list[float]:
        called.append((time.monotonic(), items))
        return items

    with UBatch(1000, 0.15, handler=handler) as batch:
        batch.ubatch(time.monotonic())
        futures = []
        start = time.monotonic()
        while time.monotonic() < start + 0.4:
            futures.append(batch.submit(time.monotonic()))
            time.sleep(0.005)
        results(futures)
    assert len(called) <= 1 + 4
    for at, items in called[:3]:
        assert 0.14 < at - items[0] < 0.35


def test_an_arrival_during_the_previous_run_has_used_its_window(gate):
    """An item that waited for the worker longer than its window leaves at once when the worker is free."""
    with busy(gate, 10, FOREVER) as batch:
        futures = [batch.submit(n) for n in range(3)]
        age(futures[:1], FOREVER)
        gate.opened.set()
        assert results(futures) == [0, 1, 2]


def test_what_is_left_of_a_window_is_waited_for(gate):
    """An item that arrived during the previous run waits for the rest of its window, and no longer."""
    with busy(gate, 10, FOREVER) as batch:
        future = batch.submit(0)
        age([future], FOREVER - 0.1)
        arrived = future.arrived
        gate.opened.set()
        assert future.result(PATIENCE) == 0
        assert FOREVER - 0.01 < time.monotonic() - arrived < FOREVER + 0.5
    assert len(gate.batches) == 2


def test_a_full_batch_left_in_the_queue_runs_at_once(gate):
    """After a cut, full batches that are still there leave though no window has closed and nothing arrives."""
    batch = busy(gate, 4, FOREVER)
    futures = [batch.submit(n) for n in range(13)]
    gate.opened.set()
    assert results(futures[:12]) == [*range(12)]
    assert not futures[12].done()
    batch.stop()
    assert results(futures) == [*range(13)]
    assert [len(items) for items in gate.batches] == [1, 4, 4, 4, 1]


def test_many_items_at_once_fill_an_idle_worker():
    """`map` of two full batches at an idle worker needs no window."""
    gate = Gate(is_open=True)
    with UBatch(4, FOREVER, handler=gate) as batch:
        assert batch.map(range(4)) == [*range(4)]
        eventually(lambda: asleep(batch))
        assert batch.map(range(8)) == [*range(8)]
    assert gate.batches == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_item_that_fills_the_batch_closes_the_window():
    """A held batch leaves with the item that makes it full."""
    gate = Gate(is_open=True)
    with UBatch(3, FOREVER, handler=gate) as batch:
        for _ in range(20):
            assert results([batch.submit(n) for n in range(3)]) == [0, 1, 2]
    assert gate.batches == [[0, 1, 2]] * 20


# -- clocks that cannot be trusted ---------------------------------------------------------------------------


def test_the_wall_clock_jumps(monkeypatch):
    """Nothing depends on the time of day."""
    jumps = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 1e9))
    gate = Gate(is_open=True)
    with UBatch(4, 0.01, handler=gate) as batch:
        start = time.monotonic()
        for n in range(20):
            assert batch.ubatch(n) == n
        assert time.monotonic() - start < 20 * 0.01 + 2.0


class Clock:
    """A clock that lies."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self.random = random.Random(seed)
        self.now = 1e6

    def __call__(self) -> float:
        if self.kind == "backwards":
            self.now -= 0.5
        elif self.kind == "leaps ahead":
            self.now += 1e5
        elif self.kind == "at random":
            self.now = self.random.uniform(-1e6, 1e6)
        return self.now


@pytest.mark.parametrize("kind", ["stands still", "backwards", "leaps ahead", "at random"])
@pytest.mark.parametrize("timeout", [None, 0.01])
def test_a_clock_that_lies(kind, timeout, seed, monkeypatch):
    """Whatever the monotonic clock says, each item gets its result, and none is held much longer than a window."""
    clock = Clock(kind, seed)
    monkeypatch.setattr(ubatch._driver, "monotonic", clock)
    monkeypatch.setattr(ubatch._waiters, "monotonic", clock)
    gate = Gate(is_open=True)
    batch: UBatch[int, int] = UBatch(4, timeout, handler=gate)
    for n in range(10):
        assert batch.submit(n).result(PATIENCE) == n
    futures = [batch.submit(n) for n in range(10)]
    assert futures[0].cancel() or futures[0].done()
    assert results(futures[1:]) == [*range(1, 10)]
    batch.stop()
    assert max(map(len, gate.batches)) <= 4


# -- options that change -------------------------------------------------------------------------------------


def test_max_size_changes_while_running(gate):
    """A new `max_size` holds from the next cut on."""
    with busy(gate, 64) as batch:
        futures = [batch.submit(n) for n in range(10)]
        batch.max_size = 3
        assert batch.max_size == 3
        gate.opened.set()
        assert results(futures) == [*range(10)]
        batch.max_size = 5
        batch.map(range(5))
    assert gate.batches[1:] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9], [0, 1, 2, 3, 4]]


def test_a_smaller_max_size_closes_a_window():
    """A batch that is held leaves when it has become full by a smaller `max_size`."""
    gate = Gate(is_open=True)
    with UBatch(10, FOREVER, handler=gate) as batch:
        futures = [batch.submit(n) for n in range(4)]
        eventually(lambda: batch._seat.wake_at == 10)
        batch.max_size = 4
        assert results(futures) == [0, 1, 2, 3]
        eventually(lambda: asleep(batch))
        held = batch.submit(4)
        batch.max_size = 2
        batch.submit(5)
        assert held.result(PATIENCE) == 4
    assert gate.batches == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("timeout", [None, 0, 0.01])
def test_a_shorter_timeout_closes_a_window(timeout):
    """A batch that is held leaves by a new, shorter `timeout`, counted from its arrival."""
    gate = Gate(is_open=True)
    with UBatch(10, FOREVER, handler=gate) as batch:
        future = batch.submit(0)
        eventually(lambda: batch._seat.wake_at == 10)
        batch.timeout = timeout
        assert batch.timeout == timeout
        assert future.result(PATIENCE) == 0


def test_a_longer_timeout_holds_from_the_next_item_on():
    """`timeout` may be set while the worker sleeps."""
    gate = Gate(is_open=True)
    with UBatch(2, handler=gate) as batch:
        assert batch.ubatch(0) == 0
        batch.timeout = FOREVER
        assert results([batch.submit(1), batch.submit(2)]) == [1, 2]
    assert gate.batches == [[0], [1, 2]]


@pytest.mark.parametrize(
    ("option", "wrong", "kind"),
    [
        ("max_size", 0, ValueError),
        ("max_size", -3, ValueError),
        ("max_size", 2.0, TypeError),
        ("max_size", True, TypeError),
        ("max_size", None, TypeError),
        ("timeout", -0.1, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "1", TypeError),
        ("timeout", True, TypeError),
    ],
)
def test_wrong_options_change_nothing(option, wrong, kind):
    """A wrong option is told with its value, when made and when set, and the old one stays."""
    with pytest.raises(kind, match=repr(wrong)):
        UBatch(**{option: wrong})
    batch: UBatch[int, int] = UBatch(5, 0.01, handler=lambda items: items)
    with pytest.raises(kind, match=repr(wrong)):
        setattr(batch, option, wrong)
    assert (batch.max_size, batch.timeout) == (5, 0.01)
    assert batch.ubatch(1) == 1


def test_an_endless_window():
    """`timeout` may be infinite: then only size, or `stop`, closes a window."""
    gate = Gate(is_open=True)
    batch: UBatch[int, int] = UBatch(2, float("inf"), handler=gate)
    futures = [batch.submit(n) for n in range(3)]
    assert results(futures[:2]) == [0, 1]
    assert batch.stop(timeout=float("inf"))
    assert results(futures) == [0, 1, 2]


# -- items whose callers left --------------------------------------------------------------------------------


def test_a_cancelled_item_never_reaches_the_handler(gate):
    """`cancel()` of a queued item says yes, and the handler does not see the item."""
    with busy(gate, 4) as batch:
        futures = [batch.submit(n) for n in range(10)]
        assert [future.cancel() for future in futures[::3]] == [True] * 4
        assert all(future.cancelled() for future in futures[::3])
        gate.opened.set()
        assert results(futures[1::3] + futures[2::3]) == [1, 4, 7, 2, 5, 8]
    assert gate.batches[1:] == [[1, 2, 4, 5], [7, 8]]
    assert batch.stats.cancelled == 4
    assert batch.stats.queued == 0


def test_an_item_of_a_running_batch_cannot_be_cancelled(gate):
    """`cancel()` after the cut says no."""
    with busy(gate) as batch:
        future = batch.submit(1)
        gate.opened.set()
        gate.wait_for_batch()
        gate.opened.clear()
    assert future.result(PATIENCE) == 1
    assert not future.cancel()


def test_cancelled_items_do_not_fill_a_batch():
    """An item whose caller has left does not count towards `max_size`."""
    gate = Gate(is_open=True)
    with UBatch(3, FOREVER, handler=gate) as batch:
        for _ in range(10):
            assert batch.submit("left").cancel()
            futures = [batch.submit(n) for n in range(2)]
            assert batch.submit("left").cancel()
            futures.append(batch.submit(2))
            assert results(futures) == [0, 1, 2]
    assert gate.batches == [[0, 1, 2]] * 10


def test_the_age_of_a_cancelled_item_closes_no_window(gate):
    """An item does not leave early because of the age of one before it whose caller has left."""
    with busy(gate, 2, FOREVER) as batch:
        old = batch.submit("old")
        age([old], FOREVER)
        future = batch.submit(0)
        assert old.cancel()
        gate.opened.set()
        eventually(lambda: batch._seat.wake_at == 2)  # it is held
        assert results([future, batch.submit(1)]) == [0, 1]
    assert gate.batches[1:] == [[0, 1]]


def test_a_window_of_cancelled_items_closes_unseen():
    """If all callers of a held batch leave, the handler is not called, and the worker goes to sleep."""
    gate = Gate(is_open=True)
    with UBatch(10, 0.02, handler=gate) as batch:
        futures = [batch.submit(n) for n in range(5)]
        assert all(future.cancel() for future in futures)
        eventually(lambda: asleep(batch) and not batch.stats.queued)
        assert batch.stats.cancelled == 5
        assert batch.ubatch("next") == "next"
    assert gate.batches == [["next"]]


def test_stop_does_not_wait_for_a_window_of_cancelled_items():
    """`stop` ends a window, whoever it was for."""
    gate = Gate(is_open=True)
    batch: UBatch[int, int] = UBatch(10, FOREVER, handler=gate)
    future = batch.submit(0)
    eventually(lambda: batch._seat.wake_at == 10)
    assert future.cancel()
    assert batch.stop(timeout=PATIENCE)
    assert gate.batches == []


def test_cancelling_while_the_worker_cuts(hurry, caplog):
    """Of `cancel()` and the cut one comes first: an item is cancelled or run, never both, never neither."""
    ran: set[int] = set()

    def handler(items: list[int]) -> list[int]:
        ran.update(items)
        return items

    with UBatch(8, handler=handler) as batch:
        for start in range(0, 2000, 20):
            futures = [batch.submit(n) for n in range(start, start + 20)]
            said_yes = {n for n, future in zip(range(start, start + 20), futures, strict=True) if future.cancel()}
            for n, future in zip(range(start, start + 20), futures, strict=True):
                assert future.cancelled() if n in said_yes else future.result(PATIENCE) == n
            assert not ran & said_yes
            assert {*range(start, start + 20)} <= ran | said_yes
    assert batch.stats.cancelled + batch.stats.items == 2000
    assert caplog.records == []


def test_a_cut_in_the_middle_of_cancelling(gate, caplog):
    """The worker may come upon an item whose `cancel()` is half done; nothing is logged about it."""
    with busy(gate) as batch:
        future, other = batch.submit(0), batch.submit(1)
        cut = threading.Event()

        class Condition:
            """As the future's own; who has let go of it for the last time in `cancel()` is held up then."""

            def __init__(self) -> None:
                self.real = future._condition
                self.uses = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(self.real, name)

            def __enter__(self) -> Any:
                return self.real.__enter__()

            def __exit__(self, *args: Any) -> None:
                self.real.__exit__(*args)
                if threading.current_thread() is threading.main_thread():
                    self.uses += 1
                    if self.uses == 3:  # cancel, notify, and the notifying within
                        gate.opened.set()
                        assert cut.wait(PATIENCE)

        other.add_done_callback(lambda _: cut.set())
        future._condition = Condition()
        assert future.cancel()
        assert future.cancelled()
        assert other.result(PATIENCE) == 1
    assert gate.batches[1:] == [[1]]
    assert caplog.records == []


# -- waking threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("took", "by_the_worker"), [(-70e-6, 1), (0.0, 1), (40e-6, 1), (60e-6, 2), (180e-6, 4), (0.001, 10), (10.0, 10)]
)
def test_the_longer_a_batch_took_the_more_threads_its_worker_wakes(gate, monkeypatch, took, by_the_worker):
    """Twenty threads are woken in one chain after a short batch, in pairs after a long one; each by another."""
    wakers: list[int] = []
    wake, deliver = ubatch._waiters.ThreadTicket.wake, ubatch._waiters.deliver

    def recorded(ticket: Any) -> None:
        wakers.append(threading.get_ident())
        wake(ticket)

    with busy(gate) as batch:
        threads = [threading.Thread(target=batch.ubatch, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        eventually(lambda: batch.stats.queued == 20)
        worker = batch._seat.thread
        monkeypatch.setattr(ubatch._waiters.ThreadTicket, "wake", recorded)
        monkeypatch.setattr(ubatch._driver, "deliver", lambda batch, outcomes, _: deliver(batch, outcomes, took))
        gate.opened.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        monkeypatch.setattr(ubatch._driver, "deliver", deliver)
        assert len(wakers) == 20
        assert wakers.count(worker) == by_the_worker
        assert len(set(wakers)) == 20 - by_the_worker + 1


# -- what idleness costs -------------------------------------------------------------------------------------


def test_idle_batchers_use_no_processor():
    """Sleeping workers, whatever their window, and one that holds a window, use less than 2 ms in a second."""
    batchers: list[UBatch[int, int]] = [
        UBatch(4, timeout, handler=lambda items: items) for timeout in (None, 0, 0.05, 10)
    ]
    for batch in batchers:
        assert batch.map(range(4)) == [*range(4)]
    holding: UBatch[int, int] = UBatch(4, FOREVER, handler=lambda items: items)
    held = holding.submit(0)
    eventually(lambda: holding._seat.wake_at == 4 and all(map(asleep, batchers)))
    gc.collect()
    before = time.process_time()
    time.sleep(1.0)
    used = time.process_time() - before
    holding.stop()
    assert held.result() == 0
    for batch in batchers:
        batch.stop()
    assert used < 0.002


# -- what an idle worker holds -------------------------------------------------------------------------------


class Thing:
    """Something whose end can be seen."""


class Refused(Exception):
    """What the handler raises."""


class Handler:
    """A handler whose end can be seen. It remembers, weakly, what went through it."""

    def __init__(self) -> None:
        self.passed: list[weakref.ref[Any]] = []

    def __call__(self, items: list[Any]) -> list[Any]:
        self.passed += [weakref.ref(item) for item in items]
        results = [Thing() for _ in items]
        self.passed += [weakref.ref(result) for result in results]
        if any(getattr(item, "refuse", "") == "all" for item in items):
            raise self.refusal()
        return [
            self.refusal() if hasattr(item, "refuse") else result for item, result in zip(items, results, strict=True)
        ]

    def refusal(self) -> Refused:
        error = Refused()
        self.passed.append(weakref.ref(error))
        return error


def thing(refuse: str = "") -> Thing:
    item = Thing()
    if refuse:
        item.refuse = refuse  # type: ignore[attr-defined]
    return item


def call(batch: UBatch[Any, Any], face: str, refuse: str) -> None:
    try:
        if face == "ubatch":
            batch.ubatch(thing(refuse))
        elif face == "submit":
            batch.submit(thing(refuse)).result(PATIENCE)
        elif face == "exception":
            batch.submit(thing(refuse)).exception(PATIENCE)
        elif face == "map":
            batch.map([thing(), thing(refuse), thing(refuse)])
        elif face == "cancel":
            batch.submit(thing(refuse)).cancel()
        else:
            batch.submit(thing(refuse))
    except Refused:
        assert refuse
    else:
        assert not refuse or face in ("exception", "cancel", "forget")


@pytest.mark.parametrize("refuse", ["", "one", "all"])
@pytest.mark.parametrize("face", ["ubatch", "submit", "exception", "map", "cancel", "forget"])
def test_nothing_is_kept_after_completion(face, refuse, caplog):
    """Items, results and exceptions are let go of when their callers let go, without a garbage collection."""
    caplog.set_level(logging.ERROR, "ubatch")  # pytest keeps what is logged, tracebacks and all
    handler = Handler()
    gc.collect()
    gc.disable()
    try:
        with UBatch(10, handler=handler) as batch:
            for _ in range(3):
                call(batch, face, refuse)
            eventually(lambda: asleep(batch) and not batch.stats.queued)
            assert len(handler.passed) >= 6 or face == "cancel"
            eventually(lambda: all(ref() is None for ref in handler.passed))
            assert batch._seat.thread, "the worker has left"
    finally:
        gc.enable()


def test_a_future_that_is_done_keeps_its_result_alone():
    """A future that is still held keeps no item."""
    item = Thing()
    ref = weakref.ref(item)
    with UBatch(handler=lambda items: ["result" for _ in items]) as batch:
        future = batch.submit(item)
        del item
        assert future.result(PATIENCE) == "result"
        eventually(lambda: ref() is None)


def test_a_forgotten_batcher_is_collected_with_its_worker():
    """Batcher, handler and thread go when the batcher is forgotten, idle or not, without a garbage collection."""
    gc.collect()
    gc.disable()
    try:
        for uses in (0, 1, 5):
            handler = Handler()
            batch: UBatch[Any, Any] = UBatch(handler=handler)
            for _ in range(uses):
                batch.ubatch(thing())
            refs = [weakref.ref(batch), weakref.ref(handler)]
            name = f"ubatch-{batch.name}"
            assert not uses or name in [thread.name for thread in threading.enumerate()]
            del batch, handler
            eventually(lambda refs=refs: all(ref() is None for ref in refs))
            eventually(lambda name=name: name not in [thread.name for thread in threading.enumerate()])
    finally:
        gc.enable()


def test_a_batcher_forgotten_with_work_left_does_it_first(gate):
    """Forgetting the batcher loses nothing that it has accepted."""
    ref = None
    futures = []
    for timeout in (None, 0.02):
        batch = busy(gate, 4, timeout)
        futures += [batch.submit(n) for n in range(9)]
        ref = weakref.ref(batch)
        del batch
    assert ref is not None
    assert ref() is not None
    gate.opened.set()
    assert results(futures) == [*range(9)] * 2
    eventually(lambda: ref() is None)


def test_an_idle_worker_ends_and_comes_back(monkeypatch, hurry):
    """After a time without items the thread ends; the next item starts another; none is lost in between."""
    monkeypatch.setattr(ubatch._turns, "IDLE_EXIT", 0.0)
    threads: set[int] = set()

    def handler(items: list[int]) -> list[int]:
        threads.add(threading.get_native_id())
        return items

    with UBatch(4, handler=handler) as batch:

        def call_it() -> None:
            for n in range(100):
                assert batch.ubatch(n) == n
                if n % 10 == 0:
                    time.sleep(0.001)

        callers = [threading.Thread(target=call_it) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(PATIENCE)
            assert not caller.is_alive()
        eventually(lambda: batch._seat is ubatch._seats.NOBODY)
        monkeypatch.setattr(ubatch._turns, "IDLE_EXIT", 10.0)
        assert batch.ubatch(1) == 1
    assert batch.stats.items == 301
    assert len(threads) > 1
