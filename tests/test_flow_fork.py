"""Flows in forked processes, and under gevent: each in an interpreter of its own."""

from __future__ import annotations

import pytest

FORK = """
import os, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads, which is the point
from ubatch import Flow, Step, WorkerDied

opened, entered = threading.Event(), threading.Semaphore(0)
entered_here = False

def double(items):
    return [2 * item for item in items]

def slow(items):
    if os.getpid() == parent and items != [99]:
        entered.release()
        opened.wait(10)
    return items

def forked(check):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0

parent = os.getpid()
"""


def test_a_fork_while_items_are_under_way(run_python):
    """The child has a flow of its own at once; what it inherited fails there; the parent is unaffected."""
    run_python(
        FORK
        + """
flow = Flow(Step(double, timeout=0), Step(slow, timeout=0, max_size=1), double, name="images")
futures = [flow.submit(item) for item in range(3)]
entered.acquire()

def check():
    for future in futures:
        error = future.exception(0)
        assert isinstance(error, WorkerDied) and error.name == "images", error
    assert flow.stats.running == 0
    assert flow.map([1, 2]) == [4, 8]
    assert flow.submit(3).result(10) == 12
    assert flow.stop()

forked(check)
opened.set()
assert [future.result(10) for future in futures] == [0, 4, 8]
assert flow.ubatch(99) == 396
assert flow.stop()
"""
    )


def test_a_fork_by_a_handler(run_python):
    """In the child, the rest of that batch goes nowhere, and the flow works."""
    run_python(
        FORK
        + """
def forks(items):
    if items == [1]:
        forked(check)
    return items

def check():
    assert flow.ubatch(2) == 4

flow = Flow(forks, double)
assert flow.ubatch(1) == 2
assert flow.stop()
"""
    )


def test_a_fork_by_a_predicate_between_two_steps(run_python):
    """The item that is on its way there fails in the child alone."""
    run_python(
        FORK
        + """
def when(item):
    if item == 2 and os.getpid() == parent:
        forked(check)
    return True

def check():
    assert isinstance(future.exception(0), WorkerDied)
    assert flow.ubatch(2) == 8

flow = Flow(Step(double, timeout=0.2), Step(double, when=when))
future = flow.submit(1)
assert future.result(10) == 4
assert flow.stop()
"""
    )


def test_a_fork_by_a_done_callback(run_python):
    """Whose caller has been told is known in the child; the others of that batch fail there."""
    run_python(
        FORK
        + """
def check():
    assert futures[0].result(0) == 0
    assert isinstance(futures[1].exception(0), WorkerDied)
    assert flow.map([2, 3]) == [8, 12]

flow = Flow(double, Step(slow, max_size=2, timeout=10), double)
futures = [flow.submit(item) for item in range(2)]
entered.acquire()
futures[0].add_done_callback(lambda _: forked(check))
opened.set()
assert futures[1].result(10) == 4
assert flow.stop()
"""
    )


def test_a_fork_while_a_handler_is_made(run_python):
    """The child makes its own."""
    run_python(
        FORK
        + """
def load():
    slow([1])
    return double

flow = Flow(load, double)
starting = threading.Thread(target=flow.start)
starting.start()
entered.acquire()

def check():
    assert flow.ubatch(1) == 4

forked(check)
opened.set()
starting.join()
assert flow.ubatch(1) == 4
assert flow.stop()
"""
    )


def test_a_fork_while_a_worker_waits_for_room(run_python):
    """No lock of the parent's is waited for in the child."""
    run_python(
        FORK
        + """
block = dict(timeout=0, max_size=1, max_queue=1, overflow="block")
flow = Flow(Step(double, **block), Step(slow, **block))
futures = [flow.submit(item) for item in range(4)]
entered.acquire()
while not flow.steps[1]._schedule.lobby:
    time.sleep(0.001)

def check():
    assert all(isinstance(future.exception(0), WorkerDied) for future in futures)
    assert flow.map(range(10)) == [2 * item for item in range(10)]

forked(check)
opened.set()
assert [future.result(10) for future in futures] == [0, 2, 4, 6]
assert flow.stop()
"""
    )


def test_the_interpreters_exit(run_python):
    """Nothing is printed, whatever is under way; not even where a worker is to start while a last thread ends."""
    run_python(
        FORK
        + """
flow = Flow(Step(double, timeout=0), Step(slow, timeout=0), double)
futures = [flow.submit(item) for item in range(3)]
entered.acquire()
threading.Timer(0.2, opened.set).start()
"""
    )


GREENLETS = """
if PATCHED:
    from gevent import monkey; monkey.patch_all()
import gevent, logging, time
from gevent import monkey
from ubatch import DeadlineExceeded, Flow, Step, Stopped
logging.disable()  # of missed deadlines
native_sleep = monkey.get_original("time", "sleep")

def slow(items):
    native_sleep(0.01)
    return [2 * item for item in items]

class Slow:
    def __init__(self):
        native_sleep(0.05)
    def __call__(self, items):
        return slow(items)
"""


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_greenlets(patched, run_python):
    """They wait cooperatively, for items and for the start; a killed one's item goes no further."""
    run_python(
        f"PATCHED = {patched}"
        + GREENLETS
        + """
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.002)
ticker = gevent.spawn(tick)
flow = Flow(slow, Slow, Step(slow, max_queue=4, overflow="block", max_size=2)).start()
assert len(ticks) > 5
greenlets = [gevent.spawn(flow.ubatch, item) for item in range(20)]
killed = gevent.spawn(flow.ubatch, 99)
gevent.sleep(0.005)
killed.kill()
gevent.joinall(greenlets, raise_error=True)
assert [greenlet.value for greenlet in greenlets] == [8 * item for item in range(20)]
assert len(ticks) > 10
assert flow.submit(1).result(10) == 8
assert flow.map([1, 2]) == [8, 16]
try:
    flow.options(deadline=0.012).ubatch(1)
except DeadlineExceeded:
    pass
else:
    raise AssertionError
gevent.sleep(0.1)
before = len(ticks)
late = gevent.spawn(flow.ubatch, 5)
gevent.sleep(0.005)
assert flow.stop()
assert late.get() == 40
assert len(ticks) > before + 3
ticker.kill()
assert flow.stats.running == 0
""",
    )
