"""What the package takes for granted about Python itself, so that a Python of which it is not true is found out.

Threads that must not see, or do, something in between run here with the shortest switch interval there is.
"""

from __future__ import annotations

import _thread
import functools
import gc
import sys
import threading
import time
import weakref
from collections import deque
from itertools import islice, repeat, starmap

import pytest

DURATION = 0.15  # seconds


def together(*functions):
    """Run each function again and again in a thread of its own; what one raises, raises here."""
    errors, meet = [], threading.Barrier(len(functions))

    def run(function):
        meet.wait()
        until = time.monotonic() + DURATION
        try:
            while time.monotonic() < until and not errors:
                for _ in range(50):
                    function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


# Lists and deques.


def test_extend_fed_by_popleft_is_one_step(hurry):
    """Other threads see none or all of the elements moved, wherever they look."""
    source, here = deque(range(50)), [[]]
    looks = []

    def move():
        here[0] = into = []
        into.extend(starmap(source.popleft, repeat((), 50)))
        source.extend(into)

    def look():
        looks.append(len(here[0]))

    together(move, look, look)
    assert set(looks) == {0, 50}


def test_extend_keeps_what_it_got_when_its_source_raises():
    """An `IndexError` of `popleft` ends it, and loses nothing."""
    source, into = deque([1, 2, 3]), [0]
    with pytest.raises(IndexError):
        into.extend(starmap(source.popleft, repeat((), 5)))
    assert into == [0, 1, 2, 3]
    assert not source


def test_append_and_popleft_lose_nothing_and_make_nothing_up(hurry):
    """Each element that any thread appends is popped once, by one thread, in the order of each appender."""
    queue, popped = deque(), ([], [])
    counts = [0, 0]

    def append(which):
        queue.append((which, counts[which]))
        counts[which] += 1

    def pop(which):
        try:
            popped[which].append(queue.popleft())
        except IndexError:
            pass

    together(*(functools.partial(step, which) for step in (append, pop) for which in (0, 1)))
    everything = sorted([*popped[0], *popped[1], *queue])
    assert everything == [(which, number) for which in (0, 1) for number in range(counts[which])]
    for got in popped:
        for which in (0, 1):
            numbers = [number for appender, number in got if appender == which]
            assert numbers == sorted(numbers)


def test_each_element_of_a_list_is_popped_once(hurry):
    """By one of the threads that try; the others get another, or an `IndexError` if there is none."""
    elements = list(range(50_000))
    popped = [], [], []

    def pop(which):
        try:
            popped[which].append(elements.pop())
        except IndexError:
            pass

    together(*(functools.partial(pop, which) for which in range(3)))
    assert sorted([*popped[0], *popped[1], *popped[2], *elements]) == list(range(50_000))


def test_extending_a_deque_is_one_step(hurry):
    """What one thread adds at once stays together."""
    queue, each = deque(), 20
    looks = []

    def extend(value):
        queue.extend([value] * each)

    def look():
        looks.append(len(queue) % each)

    together(functools.partial(extend, "a"), functools.partial(extend, "b"), look)
    assert set(looks) == {0}
    values = list(queue)
    assert all(len(set(values[start : start + each])) == 1 for start in range(0, len(values), each))


def test_remove_takes_out_one_object(hurry):
    """By identity, for objects that do not define `==`, while others append and remove."""
    queue, removed = deque(), [0, 0]

    def come_and_go(which):
        mine = object()
        queue.append(mine)
        queue.remove(mine)
        removed[which] += 1

    def wander():
        queue.append(anchor)
        queue.remove(anchor)

    anchor = object()
    together(functools.partial(come_and_go, 0), functools.partial(come_and_go, 1), wander)
    assert not queue
    assert min(removed) > 0


def test_looking_at_the_first_element_is_safe(hurry):
    """It is there, or there is an `IndexError`, and nothing else."""
    queue, seen = deque(), set()

    def turn():
        queue.append("there")
        queue.popleft()

    def look():
        try:
            seen.add(queue[0])
        except IndexError:
            seen.add("none")

    together(turn, look)
    assert seen <= {"there", "none"}


def test_an_append_ends_an_iteration_with_a_runtime_error():
    """The only thing that an iteration in C over a changing deque can suffer, so trying again is enough."""
    queue = deque([1, 2, 3])
    iterator = islice(queue, 2)
    queue.append(4)
    with pytest.raises(RuntimeError, match="mutated"):
        list(iterator)


def test_setting_of_dictionary_entries_is_one_step(hurry):
    """Threads that add, remove and list entries do not disturb each other."""
    entries = {}

    def turn(key):
        entries[key] = key
        assert entries.get(key) == key
        entries.pop(key, None)

    def look():
        seen = list(entries.values())
        assert set(seen) <= {1, 2}

    together(functools.partial(turn, 1), functools.partial(turn, 2), look)
    assert entries == {}


# Locks and threads.


def test_releasing_a_free_lock_is_an_error():
    """So that a second wake-up is noticed, and can be ignored."""
    lock = _thread.allocate_lock()
    with pytest.raises(RuntimeError):
        lock.release()
    lock.acquire()
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()


def test_a_lock_is_a_token_that_any_thread_may_hand_over():
    """Who releases it need not be who acquired it; a token handed over before anybody waits is not lost."""
    lock = _thread.allocate_lock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert lock.acquire(True, 0)
    assert not lock.acquire(True, 0)


def test_waiting_for_a_lock_knows_no_and_endless_timeouts():
    """-1 waits for ever, 0 not at all, and the longest wait is accepted."""
    lock = _thread.allocate_lock()
    assert lock.acquire(True, -1)
    assert not lock.acquire(True, 0.0)
    lock.release()
    assert lock.acquire(True, _thread.TIMEOUT_MAX)
    with pytest.raises((OverflowError, ValueError)):
        lock.acquire(True, _thread.TIMEOUT_MAX * 10)


def test_a_reentrant_lock_is_its_threads_own():
    """Its owner may take it again, and nobody else."""
    lock, others = _thread.RLock(), []
    with lock, lock:
        thread = threading.Thread(target=lambda: others.append(lock.acquire(False)))
        thread.start()
        thread.join()
    assert others == [False]


def test_a_lock_passed_around_orders_what_threads_see(hurry):
    """What was written before a release is seen after the acquire: outcomes need no lock of their own."""
    ping, pong, box = _thread.allocate_lock(), _thread.allocate_lock(), [0]
    ping.acquire()
    pong.acquire()
    rounds = 2_000

    def other():
        for number in range(rounds):
            ping.acquire()
            assert box[0] == number
            box[0] = -number
            pong.release()

    thread = threading.Thread(target=other)
    thread.start()
    for number in range(rounds):
        box[0] = number
        ping.release()
        pong.acquire()
        assert box[0] == -number
    thread.join()


def test_a_thread_is_known_by_its_identity():
    """`_thread` and `threading` agree on who runs."""
    found = []
    thread = threading.Thread(target=lambda: found.append((_thread.get_ident(), threading.get_ident())))
    thread.start()
    thread.join()
    assert found == [(thread.ident, thread.ident)]
    assert thread.ident != 0


# Collection of garbage.


class Owner:
    pass


def test_who_asked_is_told_of_a_collection():
    """The callback of a weak reference comes when its object goes, in a cycle or not."""
    gone = []
    owner = Owner()
    reference = weakref.ref(owner, gone.append)
    del owner
    assert gone == [reference]
    owner = Owner()
    owner.cycle = owner
    reference = weakref.ref(owner, gone.append)
    del owner
    gc.collect()
    assert gone[1:] == [reference]


def test_an_identity_is_given_up_before_it_is_used_again():
    """A table by `id` that weak references keep tidy never has the entry of a dead object for a living one."""
    table = {}

    def forget(key, _):
        del table[key]

    for _ in range(1000):
        owner = Owner()
        assert id(owner) not in table
        table[id(owner)] = weakref.ref(owner, functools.partial(forget, id(owner)))
        owner.cycle = owner if len(table) % 2 else None
    del owner
    gc.collect()
    assert table == {}


def test_what_nobody_refers_to_goes_at_once():
    """Without the collector: references are counted."""
    owner = Owner()
    reference = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert reference() is None
    finally:
        gc.enable()


# The making of classes.


def test_a_class_body_can_be_written_to_from_outside():
    """Its frame's locals are the namespace that the class is made from."""

    def put():
        namespace = sys._getframe(1).f_locals
        assert {"__module__", "__qualname__"} <= set(namespace)
        namespace["added"] = 5

    class Body:
        put()

    assert Body.added == 5


def test_names_may_go_while_a_class_is_made():
    """`__set_name__` is called for every name of the body, also if an earlier call deleted some."""
    told = []

    class Descriptor:
        def __set_name__(self, owner, name):
            told.append(name)
            type.__delattr__(owner, name)

    class Body:
        first, second, third = Descriptor(), Descriptor(), Descriptor()

    assert told == ["first", "second", "third"]
    assert not hasattr(Body, "first")


def test_an_error_in_set_name_stops_the_class():
    """As itself, or as the cause of a `RuntimeError` in front of it."""

    class Descriptor:
        def __set_name__(self, owner, name):
            raise TypeError("not here")

    with pytest.raises((TypeError, RuntimeError)) as caught:

        class Body:
            attribute = Descriptor()

    error = caught.value
    assert "not here" in str(error if isinstance(error, TypeError) else error.__cause__)
