"""Which items leave together: the queue against a naive model, and against threads that get in its way."""

from __future__ import annotations

import random
import threading
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ubatch._schedule import Fifo


class Item:
    """An item that knows its number, and that nobody may take twice."""

    def __init__(self, number=0, left=False):
        self.number = number
        self.arrived = float(number)
        self.left = left
        self.claims = 0

    def claim(self):
        self.claims += 1
        return not self.left

    def __repr__(self):
        return f"<{self.number}{' left' * self.left}>"


class Model(RuleBasedStateMachine):
    """A list of items, from which things are taken one at a time."""

    def __init__(self):
        super().__init__()
        self.fifo = Fifo()
        self.queue = []  # the model
        self.all = []

    @rule()
    def append(self):
        self.all.append(Item(len(self.all)))
        self.queue.append(self.all[-1])
        self.fifo.append(self.all[-1])

    @rule(count=st.integers(0, 10))
    def extend(self, count):
        for _ in range(count):
            self.append()

    @rule(data=st.data())
    def leave(self, data):
        if self.all:
            data.draw(st.sampled_from(self.all)).left = True
            self.fifo.stale = True

    @rule(most=st.integers(0, 12))
    def take(self, most):
        expected, gone = [], 0
        while self.queue and len(expected) < most:
            item = self.queue.pop(0)
            if item.left:
                gone += 1
            else:
                expected.append(item)
        taken = []
        assert self.fifo.take(most, taken) == gone
        assert taken == expected

    @rule(most=st.integers(0, 12))
    def purge(self, most):
        gone = index = 0
        while index < min(most, len(self.queue)):
            if self.queue[index].left:
                del self.queue[index]
                gone += 1
            else:
                index += 1
        assert self.fifo.purge(most) == gone
        assert self.fifo.stale == (len(self.queue) > most)

    @rule()
    def empty(self):
        items = []
        self.fifo.empty(items)
        assert items == self.queue
        self.queue.clear()

    @rule(most=st.integers(1, 12))
    def hold(self, most):
        class Policy:
            def decide(self, now, queued, oldest, max_size, newest):
                return now, queued, oldest, max_size, newest

        if self.queue:
            said = self.fifo.hold(Policy(), 7.0, most)
            assert said == (7.0, len(self.queue), self.queue[0].arrived, most, self.queue[-1].arrived)

    @rule(data=st.data())
    def withdraw(self, data):
        if self.all:
            item = data.draw(st.sampled_from(self.all))
            assert self.fifo.withdraw(item) == (item in self.queue)
            if item in self.queue:
                self.queue.remove(item)

    @invariant()
    def it_holds_what_the_model_holds(self):
        self.fifo._check()
        assert list(self.fifo.queue) == self.queue
        assert len(self.fifo) == len(self.queue)
        assert all(item.claims == 0 for item in self.queue)
        assert all(item.claims <= 1 for item in self.all)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Lying(deque):
    """A queue that somebody else empties between a look at its length and the use of it."""

    def __len__(self):
        length = super().__len__()
        return length + 3 if length else 0


def test_take_keeps_what_it_got_when_somebody_else_took_the_rest():
    """Its own view of the length may be old; nothing is lost and nothing is made up."""
    fifo = Fifo()
    fifo.queue = Lying([Item(0), Item(1, left=True), Item(2)])
    taken = []
    assert fifo.take(5, taken) == 1
    assert [item.number for item in taken] == [0, 2]


def test_take_fills_the_batch_although_some_have_left():
    """Those who left make room for those behind them, and only they."""
    fifo = Fifo()
    items = [Item(number, left=number % 3 != 0) for number in range(30)]
    fifo.queue.extend(items)
    taken = []
    assert fifo.take(4, taken) == 6
    assert taken == items[0:10:3]
    assert list(fifo.queue) == items[10:]


class Incomparable(Item):
    __hash__ = None

    def __eq__(self, other):
        raise AssertionError("compared")


def test_take_does_not_search():
    """Its cost is that of the items moved, however many of them have left: it never looks for one among others."""
    fifo = Fifo()
    fifo.queue.extend(Incomparable(number, left=number % 2 == 0) for number in range(100))
    taken = []
    assert fifo.take(100, taken) == 50


def test_purge_looks_at_the_next_batch_alone():
    """What lies behind it is looked at when it comes up, and until then counts as stale."""
    fifo = Fifo()
    items = [Item(number, left=number in (1, 4)) for number in range(6)]
    fifo.queue.extend(items)
    fifo.stale = True
    assert fifo.purge(2) == 1
    assert list(fifo.queue) == [items[0], *items[2:]]
    assert fifo.stale


def test_who_leaves_during_a_purge_is_not_forgotten():
    """Somebody who leaves behind the back of a purge makes the queue stale again."""
    fifo = Fifo()

    class Treacherous(Item):
        @property
        def left(self):
            if self.number == 1 and not first.left:
                first.left = True  # the first has been looked at already
                fifo.stale = True
            return False

        @left.setter
        def left(self, value):
            pass

    first = Item(0)
    fifo.queue.extend([first, Treacherous(1)])
    fifo.purge(5)
    fifo._check()
    assert fifo.stale
    assert fifo.purge(5) == 1


def test_appends_do_not_disturb_a_purge(hurry):
    """Anybody may append at any time, also while a purge looks through the queue."""
    fifo = Fifo()
    fifo.queue.extend(Item() for _ in range(50))
    done = threading.Event()

    def append():
        while not done.is_set():
            for _ in range(100):
                fifo.append(Item())
            fifo.take(len(fifo) - 50, [])

    thread = threading.Thread(target=append)
    thread.start()
    try:
        for _ in range(10_000):
            fifo.purge(20)
    finally:
        done.set()
        thread.join()


def test_each_item_is_taken_once_and_in_order(hurry, seed):
    """By two threads that take, from others that append, leave and withdraw; nothing is lost on the way."""
    fifo, each, appenders = Fifo(), 2_000, 3
    gone, withdrawn, taken = [], [], ([], [])
    finished = threading.Barrier(appenders + 1)

    def append(which):
        pick = random.Random(seed + which)
        for number in range(each):
            item = Item(number * appenders + which)
            fifo.append(item)
            fate = pick.random()
            if fate < 0.1:
                item.left = True
                fifo.stale = True
            elif fate < 0.2 and fifo.withdraw(item):
                withdrawn.append(item)
        finished.wait()

    def take(which):
        pick = random.Random(seed - 1 - which)
        while not (over.is_set() and not fifo.queue):
            batch = []
            gone.append(fifo.take(pick.randrange(1, 50), batch))
            taken[which].append(batch)

    over = threading.Event()
    threads = [threading.Thread(target=append, args=(which,)) for which in range(appenders)]
    threads += [threading.Thread(target=take, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    finished.wait()
    over.set()
    for thread in threads:
        thread.join()
    items = [item for batches in taken for batch in batches for item in batch]
    assert len(items) + sum(gone) + len(withdrawn) == each * appenders
    assert len({item.number for item in (*items, *withdrawn)}) == len(items) + len(withdrawn)
    assert all(item.claims == 1 for item in items)
    for batch in (batch for batches in taken for batch in batches):
        for which in range(appenders):
            numbers = [item.number for item in batch if item.number % appenders == which]
            assert numbers == sorted(numbers)
