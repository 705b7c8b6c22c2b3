"""`cached`: results from a cache, and one computation for all who ask for the same item at the same time."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import random
import threading
import time
import weakref
from collections import Counter, OrderedDict
from concurrent.futures import CancelledError, Future

import cachetools
import diskcache
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ubatch.aio
from ubatch import HandlerFailed, Stopped, UBatch, WorkerDied, cached, dynamically, ubatch_decorator
from ubatch._cached import CacheStats, call_key
from ubatch._flights import SharedFuture
from ubatch._waiters import ThreadTicket

PATIENCE = 10.0

# Since Python 3.13 a database connection that was not closed complains; diskcache leaves that to each thread's end.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


class Gate:
    """Who passes waits while it is closed."""

    def __init__(self):
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.opened.set()

    def close(self):
        self.entered.clear()
        self.opened.clear()

    def open(self):
        self.opened.set()

    def wait_for_somebody(self):
        assert self.entered.wait(PATIENCE)

    def __call__(self):
        self.entered.set()
        assert self.opened.wait(PATIENCE)


class Result:
    """Made anew by each computation; can be pickled."""

    def __init__(self, item):
        self.item = item

    def __eq__(self, other):
        return isinstance(other, Result) and self.item == other.item

    def __hash__(self):
        return hash(self.item)


class Model:
    """A handler with a gate, that keeps a list of what it was asked."""

    def __init__(self):
        self.seen = []
        self.gate = Gate()

    def __call__(self, items):
        self.seen += items
        self.gate()
        return [ValueError(item) if item == "bad" else Result(item) for item in items]


class Slow:
    """A mapping that may block, for all that `cached` knows. Keeps a list of the threads that read and write."""

    def __init__(self):
        self.data = {}
        self.readers = []
        self.writers = []
        self.reading = Gate()
        self.writing = Gate()
        self.inside = 0

    def __getitem__(self, key):
        self.readers.append(threading.get_ident())
        self.enter(self.reading)
        return self.data[key]

    def __setitem__(self, key, value):
        self.writers.append(threading.get_ident())
        self.enter(self.writing)
        self.data[key] = value

    def enter(self, gate):
        self.inside += 1
        assert self.inside == 1, "two at a time"
        gate()
        self.inside -= 1


class Broken:
    """Fails as told."""

    def __init__(self, get=KeyError, put=None):
        self.get = get
        self.put = put

    def __getitem__(self, key):
        raise self.get(f"secret {key}")

    def __setitem__(self, key, value):
        if self.put is not None:
            raise self.put(f"secret {key} {value}")


CACHES = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "LRUCache": lambda: cachetools.LRUCache(1000),
    "TTLCache": lambda: cachetools.TTLCache(1000, ttl=1000),
    "mapping": Slow,
}
both_kinds = pytest.mark.parametrize("kind", [dict, Slow])  # in memory, and such that it may block


@pytest.fixture
def disk(tmp_path):
    with diskcache.Cache(str(tmp_path / "cache")) as cache:
        yield cache


@pytest.fixture(params=[*CACHES, "diskcache"])
def cache(request):
    return request.getfixturevalue("disk") if request.param == "diskcache" else CACHES[request.param]()


@pytest.fixture
def model():
    model = Model()
    yield model
    model.gate.open()


@pytest.fixture
def batch(model):
    with UBatch(1, 0.0, handler=model) as batch:
        yield batch
        model.gate.open()


def eventually(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


async def aeventually(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.001)


def in_thread(function, *args):
    future = Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def counts(fast):
    stats = fast.stats
    return stats.hits, stats.misses, stats.shared, stats.errors


# -- the faces --------------------------------------------------------------------------------------------


def test_each_face_finds_what_another_has_stored(cache, batch, model):
    fast = cached(batch, cache)
    assert fast.ubatch(1) == Result(1)
    assert fast.submit(1).result(PATIENCE) == Result(1)
    assert fast.map([1, 2, 1]) == [Result(1), Result(2), Result(1)]
    assert list(fast.stream([2, 3])) == [Result(2), Result(3)]

    async def main():
        assert await fast.aubatch(3) == Result(3)
        assert await fast.amap([1, 4]) == [Result(1), Result(4)]
        assert [result async for result in fast.astream([4, 5])] == [Result(4), Result(5)]

    asyncio.run(main())
    assert model.seen == [1, 2, 3, 4, 5]
    assert counts(fast) == (7, 5, 0, 0)
    assert all((cache.data if isinstance(cache, Slow) else cache)[item] == Result(item) for item in model.seen)


def test_what_is_stored_is_taken(cache, batch, model):
    """`None` is a value like any other."""
    fast = cached(batch, cache)
    for item, value in ((1, None), (2, "two")):
        cache[item] = value
    assert fast.ubatch(1) is None
    assert fast.submit(1).result(PATIENCE) is None
    assert fast.map([2, 1]) == ["two", None]
    assert asyncio.run(fast.aubatch(1)) is None
    assert model.seen == []
    assert counts(fast) == (5, 0, 0, 0)


def test_functions_and_methods():
    """Whatever has a batcher; an instance's method has its own."""

    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        @dynamically
        def of(self, numbers):
            return [self.factor * number for number in numbers]

    @ubatch_decorator
    def squares(numbers):
        return [number**2 for number in numbers]

    two, three = Scaled(2), Scaled(3)
    store = {}
    assert cached(squares, store).map([2, 3]) == [4, 9]
    assert cached(squares, store).batcher is squares.batcher
    assert store == {2: 4, 3: 9}
    assert cached(two.of, {}).ubatch(5) == 10
    assert cached(three.of, {}).ubatch(5) == 15
    with pytest.raises(TypeError, match="is a method"):
        cached(Scaled.of, {})
    for batcher in (squares.batcher, two.of.batcher, three.of.batcher):
        batcher.stop()


@pytest.mark.parametrize("wrong", [None, 3, len, lambda items: items])
def test_what_is_no_batcher(wrong):
    with pytest.raises(TypeError, match="batcher must be a UBatch") as raised:
        cached(wrong, {})
    assert repr(wrong) in str(raised.value)


def test_a_cached_batcher_is_not_cached_again(batch):
    """It would be the batcher alone that the second cache is put before."""
    with pytest.raises(TypeError, match=r"batcher must be a UBatch.* not <cached"):
        cached(cached(batch, {}), {})


@pytest.mark.parametrize("wrong", [None, 3, "text", (), [], {1, 2}, dict, frozenset()], ids=repr)
def test_what_is_no_cache(batch, wrong):
    with pytest.raises(TypeError, match="cache must be a mutable mapping") as raised:
        cached(batch, wrong)
    assert repr(wrong) in str(raised.value)


def test_what_is_no_key(batch):
    with pytest.raises(TypeError, match="key must be None or callable, not 'name'"):
        cached(batch, {}, "name")


def test_looking_at_it(batch):
    """`repr` and `stats`, whose snapshot is frozen, compares, pickles; no contents are shown."""
    store = {"secret": 1}
    fast = cached(batch, store)
    fast.ubatch("a")
    fast.ubatch("a")
    assert repr(fast) == f"<cached {batch!r} cache=dict hits=1 misses=1 shared=0 errors=0>"
    stats = fast.stats
    assert isinstance(stats, CacheStats)
    assert stats == fast.stats
    assert stats == pickle.loads(pickle.dumps(stats)) == copy.copy(stats)
    assert hash(stats) == hash(fast.stats)
    assert stats.batcher == batch.stats
    assert stats.asdict() == {"hits": 1, "misses": 1, "shared": 0, "errors": 0, "batcher": batch.stats.asdict()}
    assert "hits=1" in repr(stats)
    with pytest.raises(AttributeError):
        stats.hits = 2
    for twin in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            twin(fast)


def test_it_is_loaded_at_first_use(run_python):
    """`import ubatch` costs nothing more."""
    run_python(
        """
        import sys
        import ubatch
        assert "cached" in ubatch.__all__
        assert not {"ubatch._cached", "ubatch._flights", "concurrent.futures"} & set(sys.modules)
        from ubatch import cached
        assert cached is ubatch.cached
        assert not {"asyncio", "ubatch.aio", "gevent", "multiprocessing"} & set(sys.modules)
        assert cached(ubatch.UBatch(handler=lambda items: items), {}).ubatch(1) == 1
        """
    )


# -- keys -------------------------------------------------------------------------------------------------


def powers(numbers, exponents=2):
    return [number**exponent for number, exponent in zip(numbers, exponents, strict=True)]


def test_several_arguments():
    """One positional argument is the key itself; else all of them are, names in order."""

    def handler(items, first=None, second=None):
        return [(item, one, two) for item, one, two in zip(items, first, second, strict=True)]

    store = {}
    with UBatch(handler=handler) as batch:
        fast = cached(batch, store)
        assert fast.ubatch(1, second=2, first=3) == (1, 3, 2)
        assert fast.ubatch(1, first=3, second=2) == (1, 3, 2)
        assert fast.map([1, 2], [3, 4], [2, 5]) == [(1, 3, 2), (2, 4, 5)]
        assert list(store) == [((1,), (("first", 3), ("second", 2))), ((1, 3, 2), ()), ((2, 4, 5), ())]
        assert counts(fast) == (1, 3, 0, 0)


tuples = st.recursive(st.integers(0, 2), lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=6)
calls = st.tuples(st.lists(tuples, max_size=2), st.dictionaries(st.sampled_from("ab"), tuples, max_size=2))


@given(calls, calls)
def test_calls_that_differ_have_different_keys(one, other):
    """Also where an item looks like the key of another call."""
    assert (call_key(*one[0], **one[1]) == call_key(*other[0], **other[1])) == (one == other)


def test_an_item_that_looks_like_the_key_of_a_call():
    assert call_key(((1,), (("a", 2),))) != call_key(1, a=2)
    assert call_key((1, 2)) == (1, 2)
    assert call_key([1]) == [1]


@pytest.mark.parametrize("call", ["ubatch", "submit", "map", "aubatch", "amap"])
@both_kinds
def test_an_unhashable_item(kind, batch, model, call):
    """`TypeError` at the call, before anything else happens, for this caller alone."""
    store = kind()
    fast = cached(batch, store)
    model.gate.close()
    other = fast.submit(1)
    model.gate.wait_for_somebody()
    calls = {
        "map": lambda: fast.map([2, [3]]),
        "amap": lambda: asyncio.run(fast.amap([2, [3]])),
        "aubatch": lambda: asyncio.run(fast.aubatch([3])),
    }
    with pytest.raises(TypeError, match=r"unhashable type: 'list'.* key="):
        calls.get(call, lambda: getattr(fast, call)([3]))()
    assert fast._table.keys() == {1}
    model.gate.open()
    assert other.result(PATIENCE) == Result(1)
    assert model.seen == [1]
    assert counts(fast) == (0, 1, 0, 0)
    assert batch.stats.submitted == 1


@both_kinds
def test_a_key_of_ones_own(kind, batch, model):
    """It may make a key of what has none; if it raises, that call fails, and nothing else."""

    def key(item):
        if item == ["raise"]:
            raise LookupError("no key")
        return tuple(item)

    store = kind()
    fast = cached(batch, store, key)
    assert fast.ubatch([1, 2]) == Result([1, 2])
    assert fast.ubatch([1, 2]) == Result([1, 2])
    for call in (fast.ubatch, fast.submit, lambda item: fast.map([[7], item])):
        with pytest.raises(LookupError, match="no key"):
            call(["raise"])
    assert fast.ubatch([2]) == Result([2])
    assert model.seen == [[1, 2], [2]]
    assert counts(fast) == (1, 2, 0, 0)


@both_kinds
def test_a_call_that_does_not_fit(kind, model):
    """`TypeError` at the call, as the batcher's; of a map before any item is accepted."""

    def handler(items, *, mode=None):
        return model(items)

    with UBatch(handler=handler) as batch:
        fast = cached(batch, kind())
        for call in (lambda: fast.submit(1, wrong=2), fast.ubatch, lambda: fast.map([1, 2], [3, 4])):
            with pytest.raises(TypeError, match="handler"):
                call()
        assert fast._table == {}
        assert fast.ubatch(1, mode="x") == Result(1)
    assert model.seen == [1]


# -- in flight --------------------------------------------------------------------------------------------


@both_kinds
def test_who_asks_for_an_item_in_flight_shares_it(kind, batch, model):
    """A thread, a future, tasks of two event loops, items of a map: one computation, and the very same object."""
    store = kind()
    fast = cached(batch, store)
    model.gate.close()
    first = in_thread(fast.ubatch, 1)
    model.gate.wait_for_somebody()

    async def tasks():
        return await asyncio.gather(fast.aubatch(1), fast.amap([1, 1]), fast.aubatch(1))

    others = [fast.submit(1), in_thread(fast.ubatch, 1), in_thread(fast.map, [1, 1, 1])]
    others += [in_thread(lambda: asyncio.run(tasks())) for _ in range(2)]
    eventually(lambda: fast.stats.shared == 13)
    assert not first.done()
    assert not any(other.done() for other in others)
    model.gate.open()
    result = first.result(PATIENCE)
    answers = [other.result(PATIENCE) for other in others]
    assert answers[0] is answers[1] is result
    assert all(answer is result for answer in answers[2])
    for one, two, three in answers[3:]:
        assert one is two[0] is two[1] is three is result
    assert model.seen == [1]
    assert counts(fast) == (0, 1, 13, 0)
    assert fast.ubatch(1) == result
    assert counts(fast) == (1, 1, 13, 0)


@both_kinds
def test_equal_items_of_a_map_are_computed_once(kind, model):
    """In order; and the items of one map form one batch."""
    with UBatch(100, 0.0, handler=model) as batch:
        fast = cached(batch, kind())
        assert fast.map([3, 1, 3, 2, 1]) == [Result(item) for item in (3, 1, 3, 2, 1)]
        assert model.seen == [3, 1, 2]
        assert batch.stats.batches == 1
        assert counts(fast) == (0, 3, 2, 0)
        assert fast.map([]) == []
        assert asyncio.run(fast.amap([])) == []
        assert asyncio.run(fast.amap(iter([4, 4, 1]))) == [Result(4), Result(4), Result(1)]
        assert model.seen == [3, 1, 2, 4]


@pytest.mark.parametrize("where", ["looking", "queued", "running"])
@pytest.mark.parametrize("who", ["first", "second"])
def test_one_of_two_cancels(batch, model, where, who):
    """The other gets its value, whichever it is and wherever the item is; it is computed once."""
    store = Slow()
    fast = cached(batch, store)
    if where == "queued":
        model.gate.close()
        ahead = batch.submit("ahead")
        model.gate.wait_for_somebody()
    (store.reading if where == "looking" else model.gate).close()
    first = fast.submit(1)
    if where == "queued":
        eventually(lambda: batch.stats.queued == 1)
    else:
        (store.reading if where == "looking" else model.gate).wait_for_somebody()
    second = fast.submit(1)
    leaver, stayer = (first, second) if who == "first" else (second, first)
    assert leaver.cancel()
    assert leaver.cancel()
    store.reading.open()
    model.gate.open()
    assert stayer.result(PATIENCE) == Result(1)
    assert leaver.cancelled()
    with pytest.raises(CancelledError):
        leaver.result(0)
    if where == "queued":
        assert ahead.result(PATIENCE) == Result("ahead")
    assert model.seen.count(1) == 1
    assert store.data == {1: Result(1)}
    assert counts(fast) == (0, 1, 1, 0)


@both_kinds
def test_an_item_is_dropped_when_all_have_left(kind, batch, model):
    """The handler never sees it; who comes later has it computed."""
    fast = cached(batch, kind())
    model.gate.close()
    ahead = batch.submit("ahead")
    model.gate.wait_for_somebody()
    futures = [fast.submit(1) for _ in range(3)]
    eventually(lambda: batch.stats.queued == 1)
    assert all(future.cancel() for future in futures)
    assert fast._table == {}
    model.gate.open()
    assert ahead.result(PATIENCE) == Result("ahead")
    eventually(lambda: batch.stats.cancelled == 1)
    assert model.seen == ["ahead"]
    assert fast.ubatch(1) == Result(1)
    assert model.seen == ["ahead", 1]


def test_an_item_is_dropped_when_all_have_left_before_it_was_looked_for(batch, model):
    store = Slow()
    fast = cached(batch, store)
    store.reading.close()
    future = fast.submit(1)
    store.reading.wait_for_somebody()
    assert future.cancel()
    store.reading.open()
    assert fast.submit(2).result(PATIENCE) == Result(2)
    assert model.seen == [2]
    assert batch.stats.cancelled == 0


def test_a_dropped_item_does_not_count_for_the_batch(model):
    """The batch waits until it is full of items that somebody waits for."""
    batches = []

    def handler(items):
        batches.append(items)
        return items

    with UBatch(2, 60.0, handler=handler) as batch:
        fast = cached(batch, {})
        assert fast.submit(1).cancel()
        first = fast.submit(2)
        eventually(lambda: batch.stats.cancelled == 1)
        second = fast.submit(3)
        assert [first.result(PATIENCE), second.result(PATIENCE)] == [2, 3]
    assert batches == [[2, 3]]


@both_kinds
def test_what_runs_is_kept_when_all_have_left(kind, batch, model):
    """A batch that has the item computes it for who comes meanwhile, or later."""
    store = kind()
    fast = cached(batch, store)
    model.gate.close()
    future = fast.submit(1)
    model.gate.wait_for_somebody()
    assert future.cancel()
    late = fast.submit(1)
    assert late.cancel()
    late = in_thread(fast.ubatch, 1)
    eventually(lambda: fast.stats.shared == 2)
    model.gate.open()
    assert late.result(PATIENCE) == Result(1)
    model.gate.close()
    future = fast.submit(2)
    model.gate.wait_for_somebody()
    assert future.cancel()
    model.gate.open()
    assert fast.ubatch(2) == Result(2)
    assert model.seen == [1, 2]


@both_kinds
def test_a_cancelled_task_leaves_alone(kind, batch, model):
    """Also one that timed out; and its neighbour in another loop, or in a thread, has its value."""
    fast = cached(batch, kind())

    async def main():
        model.gate.close()
        tasks = [asyncio.ensure_future(fast.aubatch(1)) for _ in range(3)]
        mapped = asyncio.ensure_future(fast.amap([1, 2]))
        late = asyncio.wait_for(fast.aubatch(1), 0.01)
        with pytest.raises(asyncio.TimeoutError):
            await late
        thread = in_thread(fast.ubatch, 1)
        await aeventually(lambda: fast.stats.shared == 5)
        tasks[0].cancel()
        mapped.cancel()
        await asyncio.wait([tasks[0], mapped])
        assert tasks[0].cancelled()
        assert mapped.cancelled()
        model.gate.open()
        assert await asyncio.gather(*tasks[1:]) == [Result(1)] * 2
        assert thread.result(PATIENCE) == Result(1)
        assert model.seen == [1]  # 2 was dropped

    asyncio.run(main())


def test_an_interrupted_look_is_taken_over(batch, model):
    """The first caller is interrupted while it reads the cache: whoever has joined is served all the same."""

    class Interrupting(Slow):
        def __getitem__(self, key):
            self.reading()
            raise KeyboardInterrupt

    store = Interrupting()
    fast = cached(batch, store)
    store.reading.close()
    first = in_thread(fast.map, [1, 2])
    store.reading.wait_for_somebody()
    second = fast.submit(1)
    store.reading.open()
    assert isinstance(first.exception(PATIENCE), KeyboardInterrupt)
    assert second.result(PATIENCE) == Result(1)
    assert model.seen == [1]  # nobody waited for 2
    assert fast._table == {}
    assert counts(fast) == (0, 1, 1, 0)


@both_kinds
@pytest.mark.parametrize("others", [0, 2])
def test_an_interrupt_after_the_item_was_handed_over(kind, batch, model, monkeypatch, others):
    """Who has joined meanwhile is served, by one computation; without others the item is dropped."""
    fast = cached(batch, kind())
    futures = []
    put_all = batch._put_all

    def interrupted(items):
        monkeypatch.undo()
        futures.extend(fast.submit(1) for _ in range(others))
        model.gate.close()
        put_all(items)
        raise KeyboardInterrupt

    model.gate.close()
    ahead = batch.submit("ahead")
    model.gate.wait_for_somebody()
    monkeypatch.setattr(batch, "_put_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fast.ubatch(1)
    model.gate.open()
    assert ahead.result(PATIENCE) == Result("ahead")
    assert [future.result(PATIENCE) for future in futures] == [Result(1)] * others
    assert batch.ubatch("last") == Result("last")
    assert model.seen == ["ahead"] + [1] * bool(others) + ["last"]
    assert fast._table == {}


@both_kinds
def test_an_interrupted_wait(kind, batch, model, monkeypatch):
    """The item is dropped, or left to those who wait for it too."""

    class Interrupted(ThreadTicket):
        __slots__ = ()

        def wait(self, timeout=None):
            raise KeyboardInterrupt

    fast = cached(batch, kind())
    model.gate.close()
    ahead = batch.submit("ahead")
    model.gate.wait_for_somebody()
    other = fast.submit(1)
    monkeypatch.setattr("ubatch._cached.ThreadTicket", Interrupted)
    for call in (lambda: fast.ubatch(1), lambda: fast.ubatch(2), lambda: fast.map([3, 1])):
        with pytest.raises(KeyboardInterrupt):
            call()
    monkeypatch.undo()
    assert fast._table.keys() == {1}
    model.gate.open()
    assert ahead.result(PATIENCE) == Result("ahead")
    assert other.result(PATIENCE) == Result(1)
    assert batch.ubatch("last") == Result("last")
    assert model.seen == ["ahead", 1, "last"]


def test_an_interrupt_while_a_hit_is_handed_over(batch, monkeypatch, caplog):
    """It is raised in its caller, not logged as that of a callback."""

    def interrupted(future, outcome):
        monkeypatch.undo()
        raise KeyboardInterrupt

    fast = cached(batch, {1: "one"})
    monkeypatch.setattr(SharedFuture, "_settle", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fast.submit(1)
    assert fast.submit(1).result(0) == "one"
    assert fast._table == {}
    assert caplog.records == []


def test_callbacks_of_others_do_not_run_in_a_callers_thread(batch):
    """A thread that finds the result in the cache tells itself alone; others are told elsewhere."""
    store = Slow()
    store.data[1] = "one"
    fast = cached(batch, store)
    store.reading.close()
    caller = []

    def call():
        caller.append(threading.current_thread())
        return fast.ubatch(1)

    first = in_thread(call)
    store.reading.wait_for_somebody()
    called_back = Future()
    second = fast.submit(1)
    second.add_done_callback(lambda _: called_back.set_result(threading.current_thread()))
    store.reading.open()
    assert called_back.result(PATIENCE) is not caller[0]
    assert first.result(PATIENCE) == second.result(PATIENCE) == "one"
    assert counts(fast) == (2, 0, 0, 0)


def test_interrupts_again_and_again(run_python):
    """The main thread is interrupted hundreds of times at any step; threads that ask for the same do not notice."""
    run_python(
        """
        import os, signal, sys, threading, time
        from ubatch import UBatch, cached

        class Mapping:
            def __init__(self):
                self.data = {}
            def __getitem__(self, key):
                return self.data[key]
            def __setitem__(self, key, value):
                self.data[key] = value

        sys.setswitchinterval(1e-5)
        batch = UBatch(16, handler=lambda items: [2 * item for item in items])
        caches = [cached(batch, {}), cached(batch, Mapping())]
        armed = ending = False
        interrupts = number = 0

        def on_interrupt(*_):
            global armed, interrupts
            if armed:
                armed = False
                interrupts += 1
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, on_interrupt)
        rounds = [0] * 6

        def call(mine):
            fast = caches[mine % 2]
            while not ending:
                item = number  # what the main thread asks for at this moment
                if mine % 3:
                    assert fast.ubatch(item) == 2 * item
                else:
                    assert fast.map([item, item + 1]) == [2 * item, 2 * item + 2]
                rounds[mine] += 1

        def kill():
            while not ending:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.001)

        threads = [threading.Thread(target=call, args=(mine,)) for mine in range(6)]
        threads.append(threading.Thread(target=kill))
        for thread in threads:
            thread.start()
        end = time.monotonic() + 3
        while time.monotonic() < end and interrupts < 1000:
            number += 1
            fast = caches[number % 2]
            try:
                armed = True
                if number % 4 == 0:
                    fast.submit(number)
                elif number % 4 == 1:
                    assert fast.map([number, number + 1]) == [2 * number, 2 * number + 2]
                else:
                    assert fast.ubatch(number) == 2 * number
                armed = False
            except KeyboardInterrupt:
                pass
        armed = False
        ending = True
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), (thread, caches)
        assert interrupts > 50, interrupts
        assert min(rounds) > 5, rounds
        for fast in caches:
            assert fast.ubatch(-1) == -2
            assert not fast._table and not fast._landing, fast
        assert batch.stop()
        """,
    )


@both_kinds
def test_errors_are_shared_and_not_kept(kind, batch, model):
    """Each caller gets an object of its own; the next has it computed again."""
    store = kind()
    fast = cached(batch, store)
    model.gate.close()
    callers = [in_thread(fast.ubatch, "bad"), fast.submit("bad"), in_thread(fast.map, ["bad", "bad"])]
    callers.append(in_thread(lambda: asyncio.run(fast.aubatch("bad"))))
    eventually(lambda: fast.stats.shared == 4)
    model.gate.open()
    errors = [caller.exception(PATIENCE) for caller in callers]
    assert [type(error) for error in errors] == [ValueError] * 4
    assert [error.args for error in errors] == [("bad",)] * 4
    assert len(set(map(id, errors))) == 4
    assert not (store.data if kind is Slow else store)
    with pytest.raises(ValueError, match="bad"):
        fast.ubatch("bad")
    assert model.seen == ["bad", "bad"]
    assert counts(fast) == (0, 2, 4, 0)


@both_kinds
def test_the_first_error_of_a_map(kind, batch):
    """After all items are done, whose results are kept; in the order of the items."""

    def picky(items):
        return [ValueError(item) if item % 2 else item for item in items]

    store = kind()
    with UBatch(100, 0.0, handler=picky) as batch:
        fast = cached(batch, store)
        with pytest.raises(ValueError) as raised:
            fast.map([0, 3, 2, 1])
        assert raised.value.args == (3,)
        assert (store.data if kind is Slow else store) == {0: 0, 2: 2}
        with pytest.raises(ValueError) as raised:
            asyncio.run(fast.amap([2, 1, 3]))
        assert raised.value.args == (1,)
        got = []
        with pytest.raises(ValueError):
            got.extend(fast.stream([0, 2, 1, 4]))
        assert got == [0, 2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration])
def test_what_must_not_be_raised_in_a_caller(error):
    def handler(items):
        raise error

    with UBatch(handler=handler) as batch:
        fast = cached(batch, {})
        with pytest.raises(HandlerFailed):
            fast.ubatch(1)
        assert isinstance(fast.submit(1).exception(PATIENCE), HandlerFailed)


@both_kinds
def test_streams(kind, batch, model):
    """In order, duplicates computed once; closing one leaves what is in flight to others."""
    fast = cached(batch, kind())
    assert list(fast.stream([1, 2, 1, 3, 2], ahead=2)) == [Result(item) for item in (1, 2, 1, 3, 2)]
    assert model.seen == [1, 2, 3]
    model.gate.close()
    results = fast.stream([1, 4, 5, 6], ahead=2)
    assert next(results) == Result(1)
    assert batch.stats.submitted <= 5
    other = fast.submit(4)
    results.close()
    model.gate.open()
    assert other.result(PATIENCE) == Result(4)
    assert 6 not in model.seen
    with pytest.raises(ValueError, match="ahead"):
        fast.stream([], ahead=0)

    async def main():
        results = fast.astream([1, 7, 1, 8], ahead=3)
        assert [result async for result in results] == [Result(item) for item in (1, 7, 1, 8)]

    asyncio.run(main())


@both_kinds
def test_a_stopped_batcher(kind, model):
    """What is stored is answered; the rest is refused. What is in flight when it stops is resolved."""
    with UBatch(1, 0.0, handler=model) as batch:
        fast = cached(batch, kind())
        fast.ubatch(1)
        model.gate.close()
        running, queued = fast.submit(2), fast.submit(3)
        eventually(lambda: batch.stats.running == batch.stats.queued == 1)
        others = [in_thread(fast.ubatch, 3), in_thread(lambda: asyncio.run(fast.aubatch(3)))]
        eventually(lambda: fast.stats.shared == 2)
        batch.stop(drain=False, timeout=0.0)
        for caller in (running, queued, *others):
            assert isinstance(caller.exception(PATIENCE), Stopped)
        model.gate.open()
        assert fast.ubatch(1) == Result(1)
        for call in (fast.ubatch, lambda item: fast.submit(item).result(PATIENCE), lambda item: fast.map([1, item])):
            with pytest.raises(Stopped):
                call(4)
        with pytest.raises(Stopped):
            asyncio.run(fast.aubatch(4))
        assert fast._table == {}
        batch.start()
        assert fast.ubatch(4) == Result(4)


def test_before_the_handler_is_set(model):
    """Items wait for it, as those of the batcher do."""
    batch = UBatch(8)
    fast = cached(batch, {})
    with pytest.warns(RuntimeWarning, match="set_handler"):
        futures = [fast.submit(1), fast.submit(1), fast.submit(2)]
    batch.set_handler(model)
    with batch:
        assert [future.result(PATIENCE) for future in futures] == [Result(1), Result(1), Result(2)]
    assert model.seen == [1, 2]


@both_kinds
def test_a_warning_made_an_error_fails_the_call(kind):
    """And leaves nothing that a later caller would wait for."""
    fast = cached(UBatch(8), kind())
    future = fast.submit(1)  # under the filters of these tests warnings are errors
    assert isinstance(future.exception(PATIENCE), RuntimeWarning)
    assert fast._table == {}


# -- waiting for oneself ----------------------------------------------------------------------------------


@both_kinds
def test_a_call_from_the_batchers_own_worker(kind):
    """`RuntimeError` at once instead of a deadlock; `submit` is allowed."""
    told = []
    calls = {
        "ubatch": lambda: fast.ubatch(2),
        "map": lambda: fast.map([2]),
        "stream": lambda: next(fast.stream([2])),
        "aubatch": lambda: asyncio.run(fast.aubatch(2)),
        "amap": lambda: asyncio.run(fast.amap([2])),
    }

    def handler(items):
        if 1 in items:
            for name, call in calls.items():
                with pytest.raises(RuntimeError, match="only itself could run"):
                    call()
                told.append(name)
            told.append(fast.submit(3))
        return items

    with UBatch(handler=handler) as batch:
        fast = cached(batch, kind())
        assert fast.ubatch(1) == 1
        assert told.pop().result(PATIENCE) == 3
        assert told == [*calls]
        assert fast.ubatch(2) == 2


@both_kinds
def test_a_call_from_a_done_callback(kind, batch):
    """Wherever it runs, it does not stop what it would wait for."""
    fast = cached(batch, kind())
    told = []

    def called_back(future):
        try:
            told.append(fast.ubatch(future.result().item + 1))
        except RuntimeError as error:
            told.append(error)

    for item in (1, 10):
        fast.submit(item).add_done_callback(called_back)
        eventually(lambda: len(told) == 1)
        assert isinstance(told.pop(), (RuntimeError, Result))
    assert fast.ubatch(20) == Result(20)


# -- caches that are slow, and caches that fail -----------------------------------------------------------


def test_a_slow_write_holds_up_nobody_else(batch, model):
    """Not the worker. Who asks meanwhile for the item joins, and gets it when it is stored; it is computed once."""
    store = Slow()
    fast = cached(batch, store)
    store.writing.close()
    first = fast.submit(1)
    store.writing.wait_for_somebody()
    assert batch.ubatch(2) == Result(2)
    blocked = in_thread(fast.ubatch, 1)
    eventually(lambda: fast.stats.shared == 1)
    assert not first.done()
    assert not blocked.done()
    store.writing.open()
    assert first.result(PATIENCE) is blocked.result(PATIENCE)
    assert store.data == {1: Result(1)}
    assert model.seen == [1, 2]
    assert fast.ubatch(1) == Result(1)
    assert counts(fast) == (1, 1, 1, 0)


def test_the_loop_runs_while_the_cache_is_read_and_written(batch, model):
    """In a thread that is neither the loop's nor the worker's."""
    store = Slow()
    fast = cached(batch, store)

    async def main():
        loop = asyncio.get_running_loop()
        for gate in (store.reading, store.writing):
            gate.close()
            task = asyncio.ensure_future(fast.amap([1, 2, 1]))
            assert await loop.run_in_executor(None, gate.entered.wait, PATIENCE)
            for _ in range(10):
                await asyncio.sleep(0)  # the loop runs
            assert not task.done()
            gate.open()
            if gate is store.writing:
                assert await task == [Result(1), Result(2), Result(1)]
            else:
                task.cancel()
                await asyncio.wait([task])
            store.data.clear()

    asyncio.run(main())
    worker = batch._seat.thread
    assert worker
    assert not {threading.get_ident(), worker} & {*store.readers, *store.writers}


def test_a_thread_that_waits_reads_by_itself(batch):
    """There is no other thread unless there is something to write."""
    store = Slow()
    store.data.update({1: "one"})
    fast = cached(batch, store)
    before = threading.active_count()
    assert fast.ubatch(1) == "one"
    assert threading.active_count() == before
    assert store.readers == [threading.get_ident()]


@pytest.mark.parametrize("make", [cache for name, cache in CACHES.items() if name != "mapping"])
def test_a_cache_in_memory_needs_no_thread(make, batch, model):
    """No thread but the batcher's, from asyncio neither."""
    fast = cached(batch, make())
    batch.ubatch(0)
    before = threading.active_count()
    fast.ubatch(1)
    assert asyncio.run(fast.amap([1, 2])) == [Result(1), Result(2)]
    assert fast.submit(3).result(PATIENCE) == Result(3)
    assert threading.active_count() == before


@pytest.mark.parametrize("get", [KeyError, OSError])
@pytest.mark.parametrize("put", [None, OSError, ValueError])
def test_a_cache_that_fails_fails_nobody(get, put, batch, model, caplog):
    """What cannot be read is computed, what cannot be written is answered; each kind of trouble is logged once."""
    fast = cached(batch, Broken(get, put))
    assert [fast.ubatch(1), fast.ubatch(1), fast.submit(1).result(PATIENCE)] == [Result(1)] * 3
    assert fast.map([2, 3]) == [Result(2), Result(3)]
    assert asyncio.run(fast.aubatch(1)) == Result(1)
    assert model.seen == [1, 1, 1, 2, 3, 1]
    failing = (get is not KeyError) + (put is not None)
    assert counts(fast) == (0, 6, 0, 6 * failing)
    assert [record.name for record in caplog.records] == ["ubatch"] * failing
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert ("could not be read" in caplog.text, "could not be written to" in caplog.text) == (
        get is not KeyError,
        put is not None,
    )
    assert "secret" not in caplog.text
    assert (repr(batch.name) in caplog.text) == bool(failing)


@pytest.mark.parametrize("where", ["get", "put"])
def test_a_cache_that_raises_system_exit_in_the_keepers_thread(batch, model, where, caplog):
    """It ends nothing, not even that thread."""
    fast = cached(batch, Broken(SystemExit) if where == "get" else Broken(put=SystemExit))
    for item in (1, 2):
        assert fast.submit(item).result(PATIENCE) == Result(item)
        assert asyncio.run(fast.aubatch(item)) == Result(item)
    assert model.seen == [1, 1, 2, 2]
    eventually(lambda: fast.stats.errors == 4)
    assert [record.getMessage().count("SystemExit") for record in caplog.records] == [1]
    assert fast._table == {}


def test_values_too_large_for_the_cache(batch, model, caplog):
    """As cachetools says it: ValueError. They are answered, not kept."""
    fast = cached(batch, cachetools.LRUCache(2, getsizeof=lambda result: result.item))
    assert fast.map([1, 3, 1]) == [Result(1), Result(3), Result(1)]
    assert fast.map([1, 3]) == [Result(1), Result(3)]
    assert model.seen == [1, 3, 3]
    assert fast.stats.errors == 2
    assert len(caplog.records) == 1
    assert "written to: ValueError" in caplog.text


def test_values_that_cannot_be_pickled(disk, caplog):
    with UBatch(handler=lambda items: [threading.Lock() for _ in items]) as batch:
        fast = cached(batch, disk)
        assert fast.ubatch(1) is not fast.ubatch(1)
        assert counts(fast) == (0, 2, 0, 2)
        assert len(caplog.records) == 1


def test_a_corrupted_value(disk, batch, model, caplog, tmp_path):
    """A file of the cache that is gone or cut off is computed again."""
    fast = cached(batch, disk)
    large = "x" * 100_000  # such are kept in files
    fast.ubatch(large)
    (path,) = (tmp_path / "cache").rglob("*.val")
    path.write_bytes(path.read_bytes()[:100])
    assert fast.ubatch(large) == Result(large)
    assert len(model.seen) == 2
    assert fast.stats.errors == 1


def test_least_recently_used_items_go(batch, model):
    """A hit counts as a use."""
    fast = cached(batch, cachetools.LRUCache(2))
    fast.map([1, 2])
    fast.ubatch(1)
    fast.ubatch(3)
    fast.map([1, 3])
    assert model.seen == [1, 2, 3]
    fast.ubatch(2)
    assert model.seen == [1, 2, 3, 2]


def test_time_to_live(batch, model):
    now = 0.0
    fast = cached(batch, cachetools.TTLCache(10, ttl=5, timer=lambda: now))
    fast.ubatch(1)
    now = 4.9
    fast.ubatch(1)
    assert model.seen == [1]
    now = 5.1
    fast.ubatch(1)
    assert model.seen == [1, 1]


def test_a_program_may_end_after_its_last_call(run_python, tmp_path):
    """Whatever it has got is on the disk."""
    code = f"""
        import asyncio, diskcache, sys
        from ubatch import UBatch, cached
        computed = []
        def handler(items):
            computed.extend(items)
            return [2 * item for item in items]
        fast = cached(UBatch(handler=handler), diskcache.Cache({str(tmp_path)!r}))
        assert fast.map(range(50)) == list(range(0, 100, 2))
        assert asyncio.run(fast.amap(range(50, 60))) == list(range(100, 120, 2))
        assert fast.submit(60).result() == 120
        print(len(computed))
        """
    assert run_python(code) == "61\n"
    assert run_python(code) == "0\n"


def test_at_the_interpreters_exit_nothing_is_printed_and_nothing_hangs(run_python):
    """While the keeper reads, and while it writes."""
    run_python(
        """
        import threading, time
        from ubatch import UBatch, cached
        class Stuck(dict):
            def __getitem__(self, key):
                if key == "read":
                    entered.release()
                    time.sleep(60)
                raise KeyError
            def __setitem__(self, key, value):
                entered.release()
                time.sleep(60)
        entered = threading.Semaphore(0)
        batch = UBatch(handler=lambda items: items)
        for key in ("read", "write"):
            fast = cached(batch, Stuck())
            fast.submit(key)
            threading.Thread(target=fast.ubatch, args=(key,), daemon=True).start()
            entered.acquire()
            fast.submit("queued")
        """
    )


# -- races ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dict", "LRUCache", "mapping", "diskcache"])
def test_a_storm_computes_each_item_once(name, request, hurry, seed):
    """Threads and tasks by all faces, few keys at a time: the handler sees each key once, whoever leaves."""
    rounds, threads = (40, 8) if name == "diskcache" else (150, 12)
    cache = request.getfixturevalue("disk") if name == "diskcache" else CACHES[name]()
    seen = Counter()

    def handler(items):
        seen.update(items)
        return [3 * item for item in items]

    start = threading.Barrier(threads)
    asked = [0] * threads

    def calls(number):
        chance = random.Random(seed + number)
        for step in range(rounds):
            keys = [100 * step + chance.randrange(3) for _ in range(3)]
            match chance.randrange(5):
                case 0:
                    asked[number] += 1
                    yield keys[0], fast.ubatch(keys[0])
                case 1:
                    asked[number] += 3
                    yield from zip(keys, fast.map(keys), strict=True)
                case 2:
                    asked[number] += 1
                    yield keys[0], fast.submit(keys[0]).result(PATIENCE)
                case 3:
                    asked[number] += 3
                    yield from zip(keys, asyncio.run(fast.amap(keys)), strict=True)
                case 4:
                    asked[number] += 1
                    fast.submit(keys[0]).cancel()

    def storm(number):
        start.wait(PATIENCE)
        return [pair for pair in calls(number) if pair[1] != 3 * pair[0]]

    with UBatch(8, handler=handler) as batch:
        fast = cached(batch, cache)
        storms = [in_thread(storm, number) for number in range(threads)]
        assert [future.result(60) for future in storms] == [[]] * threads
        eventually(lambda: not fast._table)
    assert set(seen.values()) == {1}
    eventually(lambda: sum(counts(fast)) == sum(asked))
    stats = fast.stats
    assert stats.hits
    assert stats.shared
    assert stats.misses >= len(seen)
    assert stats.errors == 0
    assert not fast._landing


def test_a_storm_of_leavers(hurry, seed):
    """Callers that cancel at any moment disturb nobody, and leave nothing behind."""
    seen = Counter()

    def handler(items):
        seen.update(items)
        return [3 * item for item in items]

    start = threading.Barrier(8)

    def storm(number):
        chance = random.Random(seed + number)
        start.wait(PATIENCE)
        for step in range(300):
            item = step * 10 + chance.randrange(2)
            future = fast.submit(item)
            if chance.random() < 0.5:
                if not future.cancel():
                    assert future.result(PATIENCE) == 3 * item
            else:
                assert future.result(PATIENCE) == 3 * item

    for cache in ({}, Slow()):
        seen.clear()
        with UBatch(4, handler=handler) as batch:
            fast = cached(batch, cache)
            for future in [in_thread(storm, number) for number in range(8)]:
                future.result(60)
            eventually(lambda fast=fast: not fast._table)
        assert set(seen.values()) == {1}
        assert batch.stats.queued == batch.stats.running == 0


def test_items_and_results_are_let_go_of(batch):
    """Nothing is kept but by the cache, also while keeper and worker idle."""

    class Item:
        def __init__(self, bad=False):
            self.bad = bad

    class Forgetful(Slow):
        def __setitem__(self, key, value):
            pass

    class Outcome:
        pass

    def handler(items):
        outcomes = [ValueError() if item.bad else Outcome() for item in items]
        made.extend(weakref.ref(outcome) for outcome in outcomes if isinstance(outcome, Outcome))
        return outcomes

    made = []
    for cache in (cachetools.LRUCache(0, getsizeof=lambda value: 1), Forgetful()):
        with UBatch(handler=handler) as batch:
            fast = cached(batch, cache)
            items = [Item() for _ in range(5)] + [Item(bad=True)]
            refs = [weakref.ref(item) for item in items]
            future = fast.submit(items[0])
            future.result(PATIENCE)
            fast.ubatch(items[1])
            fast.map(items[1:3] * 2)
            asyncio.run(fast.amap(items[3:5]))
            cancelled = fast.submit(items[4])
            cancelled.cancel()
            failed = fast.submit(items[5])
            assert isinstance(failed.exception(PATIENCE), ValueError)
            with pytest.raises(ValueError):
                fast.ubatch(items[5])
            items.clear()

            def gone(refs=refs):
                gc.collect()
                return not any(ref() for ref in refs)

            eventually(gone)
            eventually(lambda: sum(ref() is not None for ref in made) == 1)  # a future keeps its result
            del future, cancelled, failed
            eventually(lambda: not any(ref() for ref in made))


@both_kinds
def test_a_hit_keeps_no_item(kind, batch):
    """A future of a result that was in the cache already, and the cache itself, know nothing of it."""

    class Item:
        pass

    fast = cached(batch, kind(), lambda item: "key")
    fast.ubatch("anything")
    item = Item()
    ref = weakref.ref(item)
    futures = [fast.submit(item), fast.submit(item)]
    for future in futures:
        future.result(PATIENCE)
    fast.ubatch(item)
    del item
    eventually(lambda: ref() is None)
    assert fast.stats.misses == 1


def test_it_is_let_go_of_itself():
    """The keeper's thread ends with it."""
    before = threading.active_count()
    with UBatch(handler=lambda items: items) as batch:
        fast = cached(batch, Slow())
        ref = weakref.ref(fast)
        assert fast.submit(1).result(PATIENCE) == 1
        assert threading.active_count() == before + 2
        del fast
        eventually(lambda: ref() is None)
        eventually(lambda: threading.active_count() == before + 1)


def test_the_keeper_gives_up(batch, model):
    """As at the interpreter's exit: what it was to read fails, what it was to write is answered; nothing hangs."""
    store = Slow()
    fast = cached(batch, store)
    store.reading.close()
    first = fast.submit(1)
    store.reading.wait_for_somebody()
    second = fast.submit(2)
    fast._keeper.stop(drain=False, timeout=0.0)
    for future in (first, second):
        assert isinstance(future.exception(PATIENCE), Stopped)
    store.reading.open()
    assert isinstance(fast.submit(3).exception(PATIENCE), Stopped)
    assert fast.ubatch(4) == Result(4)
    assert model.seen == [4]
    assert store.data == {}
    assert fast._table == {}


def test_no_thread_is_to_be_had(batch, model, monkeypatch, caplog):
    """For the keeper: a thread reads by itself; who cannot is told; nothing hangs. Afterwards all is well."""
    fast = cached(batch, Slow())
    batch.ubatch(0)
    monkeypatch.setattr(ubatch._native, "start_thread", lambda *_: (_ for _ in ()).throw(RuntimeError("no thread")))
    assert fast.ubatch(1) == Result(1)
    assert isinstance(fast.submit(2).exception(PATIENCE), WorkerDied)
    with pytest.raises(WorkerDied):
        asyncio.run(fast.aubatch(2))
    assert fast._table == {}
    monkeypatch.undo()
    assert fast.submit(2).result(PATIENCE) == Result(2)
    caplog.clear()  # of records whose tracebacks keep the keeper


# -- batchers of an event loop ----------------------------------------------------------------------------


class AioModel:
    """A handler that is a coroutine function, with a gate."""

    def __init__(self):
        self.seen = []
        self.opened = asyncio.Event()
        self.opened.set()

    async def __call__(self, items):
        self.seen += items
        await self.opened.wait()
        return [ValueError(item) if item == "bad" else Result(item) for item in items]


def test_aio_faces(run, cache):
    """The same, as coroutines; whatever the cache."""

    async def main():
        model = AioModel()
        batch = ubatch.aio.UBatch(4, handler=model)
        fast = cached(batch, cache)
        assert fast.batcher is batch
        assert await fast.ubatch(1) == Result(1)
        assert await fast.aubatch(1) == Result(1)
        future = fast.submit(1)
        assert isinstance(future, asyncio.Future)
        assert await future == Result(1)
        assert await fast.map([1, 2, 2]) == [Result(1), Result(2), Result(2)]
        assert await fast.amap([2, 3]) == [Result(2), Result(3)]
        assert await fast.map([]) == []
        assert [result async for result in fast.stream([3, 4, 4])] == [Result(3), Result(4), Result(4)]
        assert [result async for result in fast.astream([1])] == [Result(1)]
        assert model.seen == [1, 2, 3, 4]
        stats = fast.stats
        assert (stats.misses, stats.hits + stats.shared, stats.errors) == (4, 8, 0)
        assert stats.batcher == batch.stats
        assert repr(fast).startswith("<cached <ubatch.aio.UBatch")
        assert not fast._table

    run(main)


def test_aio_functions(run):
    @ubatch.aio.dynamically
    async def squares(numbers):
        return [number**2 for number in numbers]

    async def main():
        fast = cached(squares, {})
        assert await fast.map([1, 2]) == [1, 4]
        assert fast.stats.batcher.items == 2

    run(main)


@both_kinds
def test_aio_sharing_and_leaving(run, kind):
    """One computation for all tasks; who is cancelled leaves alone; the item goes when all have left."""

    async def main():
        model = AioModel()
        fast = cached(ubatch.aio.UBatch(1, 0.0, handler=model), kind())
        model.opened.clear()
        ahead = fast.submit("ahead")
        await aeventually(lambda: model.seen == ["ahead"])
        tasks = [asyncio.ensure_future(fast.ubatch(1)) for _ in range(3)]
        future = fast.submit(1)
        gone = [fast.submit(2), asyncio.ensure_future(fast.ubatch(2)), asyncio.ensure_future(fast.map([2, 2]))]
        await aeventually(lambda: fast.stats.shared == 6)
        await aeventually(lambda: fast.batcher.stats.queued == 2)
        tasks[0].cancel()
        future.cancel()
        for task in gone:
            task.cancel()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(fast.ubatch(1), 0.01)
        await asyncio.wait([tasks[0], *gone])
        model.opened.set()
        first, second = await asyncio.gather(*tasks[1:])
        assert first is second
        assert await ahead == Result("ahead")
        assert model.seen == ["ahead", 1]
        assert await fast.ubatch(2) == Result(2)
        assert not fast._table

    run(main)


@both_kinds
def test_aio_errors(run, kind):
    """An object of its own for each; not kept. Misfits and unhashable items fail at once, alone."""

    async def main():
        model = AioModel()
        fast = cached(ubatch.aio.UBatch(handler=model), kind())
        errors = await asyncio.gather(*(fast.ubatch("bad") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [ValueError] * 3
        assert len(set(map(id, errors))) == 3
        with pytest.raises(ValueError, match="bad"):
            await fast.map(["good", "bad"])
        assert model.seen == ["bad", "good", "bad"]
        with pytest.raises(TypeError, match="unhashable"):
            fast.submit([])
        with pytest.raises(TypeError, match="unhashable"):
            await fast.map([1, []])
        with pytest.raises(TypeError):
            fast.submit(1, wrong=2)
        assert await fast.batcher.stop()
        assert await fast.ubatch("good") == Result("good")
        with pytest.raises(Stopped):
            await fast.ubatch("other")
        assert model.seen == ["bad", "good", "bad"]
        assert not fast._table

    run(main)


def test_aio_uses_a_slow_cache_in_a_thread(run):
    """The loop runs on while it is read and written; a thread of its own is all there is."""

    async def main():
        model, store = AioModel(), Slow()
        fast = cached(ubatch.aio.UBatch(handler=model), store)
        loop = asyncio.get_running_loop()
        for gate in (store.reading, store.writing):
            gate.close()
        task = asyncio.ensure_future(fast.map([1, 2]))
        assert await loop.run_in_executor(None, store.reading.entered.wait, PATIENCE)
        assert model.seen == []
        store.reading.open()
        assert await loop.run_in_executor(None, store.writing.entered.wait, PATIENCE)
        joined = asyncio.ensure_future(fast.ubatch(1))
        await asyncio.sleep(0.01)
        assert not task.done()
        assert not joined.done()
        store.writing.open()
        assert await task == [Result(1), Result(2)]
        assert await joined == Result(1)
        assert model.seen == [1, 2]
        assert len({*store.readers, *store.writers}) == 1
        assert threading.get_ident() not in store.readers

    run(main)


def test_aio_leaving_while_the_cache_is_read(run):
    """Also at the last moment, when it is known that there is nothing, and the loop has not been told yet."""

    async def main():
        model, store = AioModel(), Slow()
        fast = cached(ubatch.aio.UBatch(handler=model), store)
        store.reading.close()
        future = fast.submit(1)
        assert await asyncio.get_running_loop().run_in_executor(None, store.reading.entered.wait, PATIENCE)
        (flight,) = fast._table.values()
        future.cancel()
        store.reading.open()
        eventually(lambda: flight.looked)  # the loop stands still meanwhile
        await asyncio.sleep(0)
        assert fast._table == {}
        assert await fast.ubatch(2) == Result(2)
        assert model.seen == [2]

    run(main)


def test_aio_with_a_cache_in_memory_needs_no_thread(run):
    async def main():
        before = threading.active_count()
        fast = cached(ubatch.aio.UBatch(handler=AioModel()), cachetools.LRUCache(10))
        assert await fast.map([1, 2, 1]) == [Result(1), Result(2), Result(1)]
        assert threading.active_count() == before

    run(main)


@both_kinds
def test_aio_from_its_own_handler(run, kind):
    """`RuntimeError` at once; `submit` is allowed."""

    async def main():
        async def handler(items):
            if 1 in items:
                for call in (lambda: fast.ubatch(2), lambda: fast.map([2]), lambda: anext(fast.stream([2]))):
                    with pytest.raises(RuntimeError, match="own batcher"):
                        await call()
                submitted.append(fast.submit(3))
            return items

        submitted = []
        fast = cached(ubatch.aio.UBatch(handler=handler), kind())
        assert await fast.ubatch(1) == 1
        assert await submitted[0] == 3

    run(main)


@both_kinds
def test_aio_in_several_loops(kind):
    """They have the cache in common. What was in flight in one that has ended keeps nobody waiting in the next."""
    seen = []

    async def handler(items):
        seen.extend(items)
        if "stuck" in items and len(seen) == 1:
            await asyncio.sleep(3600)
        return [Result(item) for item in items]

    fast = cached(ubatch.aio.UBatch(1, 0.0, handler=handler), kind())

    async def abandon():
        future = fast.submit("stuck")
        await aeventually(lambda: seen)
        return future

    loop = asyncio.new_event_loop()
    abandoned = loop.run_until_complete(abandon())
    for task in asyncio.all_tasks(loop):  # without giving them the time to end
        task._log_destroy_pending = False
    loop.close()
    assert len(fast._table) == 1
    assert asyncio.run(fast.ubatch("stuck")) == Result("stuck")
    assert seen == ["stuck", "stuck"]
    assert not abandoned.done()
    assert not fast._table
    assert asyncio.run(fast.map(["stuck", 2])) == [Result("stuck"), Result(2)]
    barrier = threading.Barrier(3)

    async def both():
        barrier.wait(PATIENCE)
        return await fast.map([2, 3, 4, 2])

    futures = [in_thread(lambda: asyncio.run(both())) for _ in range(3)]
    assert [future.result(PATIENCE) for future in futures] == [[Result(item) for item in (2, 3, 4, 2)]] * 3
    assert seen.count(2) == 1
    assert 1 <= seen.count(3) <= 3
    del abandoned


def test_aio_and_a_loop_that_ends_while_the_cache_is_read():
    """The keeper does not stumble over it."""
    store = Slow()
    fast = cached(ubatch.aio.UBatch(handler=AioModel()), store)

    async def main():
        store.reading.close()
        task = asyncio.ensure_future(fast.ubatch(1))
        assert await asyncio.get_running_loop().run_in_executor(None, store.reading.entered.wait, PATIENCE)
        task.cancel()

    async def submit_and_leave():
        store.reading.close()
        future = fast.submit(2)
        assert await asyncio.get_running_loop().run_in_executor(None, store.reading.entered.wait, PATIENCE)
        return future

    asyncio.run(main())
    store.reading.open()
    left = asyncio.run(submit_and_leave())
    store.reading.open()
    eventually(lambda: not fast._table)
    assert asyncio.run(fast.ubatch(3)) == Result(3)
    assert not left.done() or isinstance(left.exception(), RuntimeError)


# -- greenlets --------------------------------------------------------------------------------------------

GREENLETS = """
import gevent, os, threading, time
from gevent import monkey
from ubatch import UBatch, cached

native_sleep = monkey.get_original("time", "sleep")
get_ident = monkey.get_original("_thread", "get_ident")
main = get_ident()
seen, opened = [], [True]

def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.001)

def handler(items):
    assert get_ident() != main
    seen.extend(items)
    while not opened[0]:
        native_sleep(0.001)
    return [ValueError(item) if item == "bad" else 2 * item for item in items]

def check(cache):
    seen.clear()
    batch = UBatch(1, 0.0, handler=handler)
    fast = cached(batch, cache)
    assert fast.ubatch("only greenlet") == 2 * "only greenlet"  # no LoopExit
    assert fast.ubatch("only greenlet") == 2 * "only greenlet"
    opened[0] = False
    asking = [gevent.spawn(fast.ubatch, 1) for _ in range(5)] + [gevent.spawn(fast.map, [1, 1])]
    future = fast.submit(1)
    eventually(lambda: fast.stats.shared == 7)
    asking[0].kill()
    with gevent.Timeout(0.05, False):
        fast.ubatch(1)
        raise AssertionError("too early")
    opened[0] = True
    assert [greenlet.get(timeout=10) for greenlet in asking[1:]] == [2, 2, 2, 2, [2, 2]]
    assert future.result(10) == 2
    assert seen == ["only greenlet", 1]
    opened[0] = False
    ahead = batch.submit("ahead")
    eventually(lambda: "ahead" in seen)
    queued = [gevent.spawn(fast.ubatch, 2) for _ in range(2)]
    eventually(lambda: batch.stats.queued == 1)
    gevent.killall(queued)
    opened[0] = True
    ahead.result(10)
    assert list(fast.stream([1, 3])) == [2, 6]
    assert seen == ["only greenlet", 1, "ahead", 3]
    for _ in range(2):
        try:
            fast.ubatch("bad")
        except ValueError:
            continue
        raise AssertionError("no error")
    assert not fast._table
    assert batch.stop()

check({})
"""


@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
def test_greenlets(run_python, patched):
    """They share, leave and wait cooperatively: the hub neither stops nor reads or writes a slow cache."""
    pytest.importorskip("gevent")
    run_python(
        ("from gevent import monkey; monkey.patch_all()\n" if patched else "")
        + GREENLETS
        + """
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.001)

class Mapping:
    "It takes as long as the hub takes for some rounds."
    def __init__(self):
        self.data = {}
    def wait(self):
        assert get_ident() != main
        deadline, seen = time.monotonic() + 10, len(ticks)
        while len(ticks) < seen + 5:
            assert time.monotonic() < deadline, "the hub is held up"
            native_sleep(0.001)
    def __getitem__(self, key):
        self.wait()
        return self.data[key]
    def __setitem__(self, key, value):
        self.wait()
        self.data[key] = value

ticking = gevent.spawn(tick)
check(Mapping())
ticking.kill()
"""
    )


# -- forks ------------------------------------------------------------------------------------------------

FORKS = """
import asyncio, faulthandler, os, signal, sys, threading, time, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
from ubatch import UBatch, WorkerDied, cached

class Flag:
    "As threading.Event, but without a lock that could be held at a fork."
    def __init__(self, on=False):
        self.on = on
    def wait(self):
        deadline = time.monotonic() + 10
        while not self.on:
            assert time.monotonic() < deadline
            time.sleep(0.001)

class Mapping:
    def __init__(self):
        self.data = {}
        self.writing, self.written = Flag(), Flag(on=True)
    def __getitem__(self, key):
        return self.data[key]
    def __setitem__(self, key, value):
        self.writing.on = True
        self.written.wait()
        self.data[key] = value

entered, opened = Flag(), Flag(on=True)

def handler(items):
    entered.on = True
    opened.wait()
    return [2 * item for item in items]

def fork(child):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(30)
        child()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)

def join(pid):
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"

def works(fast):
    opened.on = True
    assert fast.ubatch(1) == 2
    assert fast.submit(1).result(10) == 2
    assert fast.map([1, 2, 1, 3]) == [2, 4, 2, 6]
    assert asyncio.run(fast.amap([1, 4])) == [2, 8]

def orphaned(*futures):
    for future in futures:
        error = future.exception(10)
        assert isinstance(error, WorkerDied) and "parent" in str(error), error
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
@pytest.mark.parametrize("cache", ["{}", "Mapping()"])
def test_a_fork_while_items_are_in_flight(run_python, cache):
    """The child does not wait for what the parent computes; futures that it inherited fail there, and there alone."""
    run_python(
        FORKS
        + f"""
fast = cached(UBatch(1, 0.0, handler=handler), {cache})
opened.on = False
futures = [fast.submit(1), fast.submit(1), fast.submit(2)]
entered.wait()
def child():
    orphaned(*futures)
    assert not fast._table
    works(fast)
pid = fork(child)
join(pid)
opened.on = True
assert [future.result(10) for future in futures] == [2, 2, 4]
works(fast)
"""
    )


@needs_fork
def test_a_fork_while_the_cache_is_written(run_python):
    """The lock of the cache is held, and a result waits for it; the child has locks of its own."""
    run_python(
        FORKS
        + """
cache = Mapping()
fast = cached(UBatch(1, 0.0, handler=handler), cache)
cache.written.on = False
futures = [fast.submit(1), fast.submit(1)]
cache.writing.wait()
def child():
    cache.written.on = True
    orphaned(*futures)
    works(fast)
pid = fork(child)
join(pid)
cache.written.on = True
assert [future.result(10) for future in futures] == [2, 2]
works(fast)
"""
    )


@needs_fork
def test_a_fork_while_callers_are_told(run_python):
    """In the midst of it, by another thread that holds the lock of the table."""
    run_python(
        FORKS
        + """
import ubatch._flights
fast = cached(UBatch(1, 0.0, handler=handler), {})
telling, told = Flag(), Flag()
deliver = ubatch._flights.deliver
def slowly(tickets, outcomes):
    with fast._lock, fast._cache_lock:
        telling.on = True
        told.wait()
    deliver(tickets, outcomes)
ubatch._flights.deliver = slowly
futures = [fast.submit(1), fast.submit(1)]
telling.wait()
def child():
    ubatch._flights.deliver = deliver
    orphaned(*futures)
    works(fast)
pid = fork(child)
join(pid)
told.on = True
ubatch._flights.deliver = deliver
assert [future.result(10) for future in futures] == [2, 2]
works(fast)
"""
    )


@needs_fork
def test_a_fork_beside_waiting_greenlets(run_python):
    """They exist in the child too, and fail there; in the parent they get their results."""
    pytest.importorskip("gevent")
    run_python(
        """
import gevent
"""
        + FORKS
        + """
fast = cached(UBatch(1, 0.0, handler=handler), Mapping())
opened.on = False

def attempt(item):
    try:
        return fast.ubatch(item)
    except WorkerDied as error:
        return error

waiting = [gevent.spawn(attempt, item) for item in (1, 1, 2)]
while fast.stats.misses + fast.stats.shared < 3:
    gevent.sleep(0.001)
def child():
    for greenlet in waiting:
        assert isinstance(greenlet.get(timeout=10), WorkerDied), greenlet
    opened.on = True
    assert fast.map([1, 2, 1]) == [2, 4, 2]
pid = fork(child)
join(pid)
opened.on = True
assert [greenlet.get(timeout=10) for greenlet in waiting] == [2, 2, 4]
"""
    )
