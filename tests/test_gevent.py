"""Greenlets: the hub runs on while one waits, whether the program is monkey-patched or not."""

from __future__ import annotations

import functools
import os

import pytest

pytest.importorskip("gevent")

PATCH = "from gevent import monkey; monkey.patch_all()\n"
BEFORE = {  # what comes before the import of the package
    "patched": PATCH,
    "unpatched": "import gevent, gevent.event, gevent.lock\n",
    "package first, then patched": "import ubatch, concurrent.futures\n" + PATCH,
    "patched after the first call": "import ubatch; assert ubatch.UBatch(handler=lambda x: x).submit(1).result() == 1\n"
    + PATCH,
}

COMMON = """
import faulthandler, gc, os, signal, sys, time
import gevent, gevent.hub
from gevent import monkey
import ubatch, ubatch._driver, ubatch._native, ubatch._turns, ubatch._waiters
from ubatch import Stopped, UBatch, WorkerDied

native_sleep = monkey.get_original("time", "sleep")
get_ident = monkey.get_original("_thread", "get_ident")
start_native_thread = monkey.get_original("_thread", "start_new_thread")
PATCHED = monkey.is_module_patched("threading")
main = get_ident()

class Flag:
    "As threading.Event, for native threads and greenlets; the hub runs on."
    def __init__(self):
        self.on = False
    def set(self):
        self.on = True
    def clear(self):
        self.on = False
    def wait(self, timeout=10):
        sleep = gevent.sleep if get_ident() == main else native_sleep
        deadline = time.monotonic() + timeout
        while not self.on and time.monotonic() < deadline:
            sleep(0.001)
        assert self.on
        return True

def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.001)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def threads():
    return len(os.listdir("/proc/self/task"))

entered, opened = Flag(), Flag()
opened.set()
seen = []

def handler(items):
    assert get_ident() != main, "the handler runs in the hub's thread"
    seen.append(items)
    entered.set()
    opened.wait()
    return [2 * item for item in items]

batch = UBatch(100, handler=handler)
"""


@pytest.fixture
def run_after(run_python):
    """Run a snippet after COMMON and one of BEFORE."""

    def run(before: str, code: str, **options) -> str:
        return run_python(BEFORE[before] + COMMON + code, **options)

    return run


@pytest.fixture(params=["patched", "unpatched"])
def run(request, run_after):
    """Run a snippet with gevent, patched and unpatched."""
    return functools.partial(run_after, request.param)


@pytest.fixture(params=BEFORE)
def run_in_each_order(request, run_after):
    """Run a snippet after each order of imports and patching."""
    return functools.partial(run_after, request.param)


def test_the_hub_ticks_through_a_handler_that_releases_the_gil(run_in_each_order):
    """While a handler computes for 200 ms outside the GIL, greenlets run as if nothing happened."""
    run_in_each_order(
        """
gaps = []

def tick():
    last = time.perf_counter()
    while not ending:
        gevent.sleep(0.002)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now

def slow(items):
    native_sleep(0.2)
    return items

ending = False
ticking = gevent.spawn(tick)
batch = UBatch(8, handler=slow)
for call in (batch.ubatch, lambda n: batch.map([n])[0], lambda n: batch.submit(n).result()):
    gaps.clear()
    assert call(1) == 1
    assert len(gaps) > 20, (len(gaps), max(gaps))  # 100 on a machine with nothing else to do; 1 if the hub stood still
    assert sorted(gaps)[-3] < 0.1, gaps
ending = True
ticking.get()
"""
    )


def test_the_hub_ticks_through_a_product_of_matrices(run):
    """The same with numpy, which computes outside the GIL."""
    pytest.importorskip("numpy")
    run(
        """
import numpy

def product(items):
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        numpy.sort(numbers)
    return items

numbers = numpy.random.default_rng(1).random(1_000_000)
ticks = 0

def tick():
    global ticks
    while not ending:
        ticks += 1
        gevent.sleep(0.001)

ending = False
ticking = gevent.spawn(tick)
batch = UBatch(8, handler=product)
callers = [gevent.spawn(batch.ubatch, n) for n in range(8)]
gevent.joinall(callers, raise_error=True)
assert ticks > 20, ticks
ending = True
ticking.get()
"""
    )


def test_the_only_greenlet_waits(run_in_each_order):
    """With nothing else to do the hub does not think itself deadlocked: no LoopExit, by any way to wait."""
    run_in_each_order(
        """
import asyncio

def slowly(items):
    native_sleep(0.01)
    opened.wait()
    return [2 * item for item in items]

def all_ways(batch):
    assert batch.ubatch(1) == 2
    assert batch.map([1, 2]) == [2, 4]
    assert batch.submit(3).result() == 6
    assert batch.submit(3).result(timeout=10) == 6
    assert batch.submit(3).exception() is None
    opened.clear()
    try:
        batch.submit(3).result(timeout=0.001)
    except TimeoutError:
        pass
    except Exception as error:  # a type of its own before Python 3.11
        assert type(error).__name__ == "TimeoutError", error
    else:
        raise AssertionError
    opened.set()
    assert batch.stop()
    batch.start()
    batch.submit(1)
    assert batch.stop(timeout=10)
    batch.start()
    opened.clear()
    future = batch.submit(1)
    assert batch.stop(timeout=0.001) is False
    assert isinstance(future.exception(), Stopped)
    opened.set()
    batch.start()

batch = UBatch(8, handler=slowly)
gevent.sleep(0)  # there is a hub
all_ways(batch)
gevent.spawn(all_ways, batch).get()
with UBatch(8, 0.01, handler=slowly) as held:
    assert held.ubatch(1) == 2
ubatch._turns.IDLE_EXIT = 0.0
all_ways(UBatch(8, handler=slowly))
"""
    )


def test_before_there_is_a_hub(run_in_each_order):
    """A thread that has never used gevent waits as threads do."""
    run_in_each_order(
        """
assert ubatch._native.current_hub() is None or PATCHED
assert batch.ubatch(1) == 2
assert batch.map([1, 2]) == [2, 4]
assert batch.submit(1).result() == 2
assert batch.stop()
"""
    )


def test_many_greenlets(run_in_each_order):
    """Greenlets share batches, and each gets its own result."""
    run_in_each_order(
        """
def call(n):
    for m in range(20):
        assert batch.ubatch((n, m)) == (n, m) * 2
    assert batch.map(range(5)) == [0, 2, 4, 6, 8]
    assert batch.submit(n).result() == 2 * n
    return n

callers = [gevent.spawn(call, n) for n in range(64)]
gevent.joinall(callers, timeout=30, raise_error=True)
assert [caller.value for caller in callers] == [*range(64)]
stats = batch.stats
assert stats.items == 64 * 26
assert stats.batches < 1000
assert stats.queued == stats.running == stats.errors == 0
assert max(map(len, seen)) > 30
"""
    )


def test_one_wake_up_for_each_batch_and_hub(run):
    """The greenlets of one batch are woken by one call into their hub."""
    run(
        """
class Watcher:
    "Counts what is sent by the real one."
    def __init__(self, real):
        self.real = real
        self.sent = 0
    def __getattr__(self, name):
        return getattr(self.real, name)
    def send(self):
        self.sent += 1
        self.real.send()

opened.clear()
plug = gevent.spawn(batch.ubatch, "plug")
entered.wait()
callers = [gevent.spawn(batch.ubatch, n) for n in range(40)]
mapper = gevent.spawn(batch.map, range(40, 50))
eventually(lambda: batch.stats.queued == 50)
[home] = ubatch._waiters._hub_homes.values()
home.watcher = watcher = Watcher(home.watcher)
opened.set()
gevent.joinall([plug, mapper, *callers], timeout=10, raise_error=True)
assert [caller.value for caller in callers] == [*range(0, 80, 2)]
assert watcher.sent == 2, watcher.sent
assert [len(items) for items in seen] == [1, 50]
assert home.waiting == 0
assert not home.ready
"""
    )


def test_errors(run):
    """Greenlets get the handler's errors, each its own; what would end a greenlet comes as an ordinary error."""
    run(
        """
from ubatch import HandlerFailed

def fail(items):
    if items[0] == "exit":
        raise gevent.GreenletExit
    if items[0] == "timeout":
        raise gevent.Timeout
    if items[0] == "system":
        raise SystemExit
    return [KeyError(item) if item % 2 else item for item in items]

batch = UBatch(100, handler=fail)
callers = [gevent.spawn(batch.ubatch, n) for n in range(20)]
gevent.joinall(callers, timeout=10)
for n, caller in enumerate(callers):
    try:
        assert caller.get() == n
        assert n % 2 == 0
    except KeyError as error:
        assert error.args == (n,)
        assert n % 2
for item in ("exit", "timeout", "system"):
    for call in (batch.ubatch, lambda item: batch.map([item]), lambda item: batch.submit(item).result()):
        try:
            call(item)
        except HandlerFailed:
            pass
        else:
            raise AssertionError(item)
assert batch.ubatch(2) == 2
""",
        stderr=None,
    )


def test_timeouts_and_kills(run):
    """`gevent.Timeout` and `kill` take a waiting greenlet away at once, and its item, if no batch has it yet."""
    run(
        """
opened.clear()
batch = UBatch(4, handler=handler)
running = [gevent.spawn(batch.ubatch, n) for n in range(1)]
entered.wait()

def timed(call):
    with gevent.Timeout(0.01, False):
        call()
        return "not timed out"
    return "timed out"

assert timed(lambda: batch.ubatch(10)) == "timed out"
assert timed(lambda: batch.map([11, 12])) == "timed out"
victims = [gevent.spawn(batch.ubatch, 13), gevent.spawn(batch.map, [14, 15])]
eventually(lambda: batch.stats.queued == 6)
gevent.killall(victims)
future = batch.submit(16)
assert timed(future.result) == "timed out"
assert future.cancel()
others = [gevent.spawn(batch.ubatch, n) for n in range(20, 26)]
eventually(lambda: batch.stats.queued == 13)
kill_running = gevent.spawn(batch.submit(30).result)
opened.set()
gevent.joinall([*running, *others, kill_running], timeout=10, raise_error=True)
assert [other.value for other in others] == [*range(40, 52, 2)]
assert batch.stop()
assert [item for items in seen for item in items] == [0, *range(20, 26), 30], seen
assert batch.stats.cancelled == 7, batch.stats
assert batch.stats.queued == 0

# of a running batch: the others get their results
batch.start()
entered.clear()
opened.clear()
members = [gevent.spawn(batch.ubatch, n) for n in range(4)]
entered.wait()
eventually(lambda: all(member.started for member in members))
members[1].kill()
assert members[1].dead
opened.set()
gevent.joinall(members, timeout=10)
assert [members[n].get() for n in (0, 2, 3)] == [0, 4, 6]
[home] = ubatch._waiters._hub_homes.values()
eventually(lambda: home.waiting == 0)
"""
    )


def test_timeouts_at_every_moment(run):
    """Timeouts that race with results: each call ends in one of the two, and the bookkeeping comes out even."""
    run(
        """
import random
chance = random.Random(1)
outcomes = {"result": 0, "timeout": 0}

def nap(items):
    native_sleep(0.0005)
    return [2 * item for item in items]

batch = UBatch(8, handler=nap)

def call(n):
    for _ in range(60):
        try:
            with gevent.Timeout(chance.random() * 0.004):
                if n % 3 == 0:
                    assert batch.ubatch(n) == 2 * n
                elif n % 3 == 1:
                    assert batch.map([n, 1]) == [2 * n, 2]
                else:
                    assert batch.submit(n).result() == 2 * n
            outcomes["result"] += 1
        except gevent.Timeout:
            outcomes["timeout"] += 1

gevent.joinall([gevent.spawn(call, n) for n in range(30)], timeout=50, raise_error=True)
assert sum(outcomes.values()) == 1800
assert min(outcomes.values()) > 20, outcomes
assert batch.stop()
assert batch.stats.queued == batch.stats.running == 0
[home] = ubatch._waiters._hub_homes.values()
assert home.waiting == 0
"""
    )


def test_futures(run):
    """Greenlets may wait for futures, with timeouts, from several places, and cancel them."""
    run(
        """
opened.clear()
first = batch.submit(1)
entered.wait()
future, cancelled = batch.submit(2), batch.submit(3)
waiters = [gevent.spawn(future.result) for _ in range(5)] + [gevent.spawn(future.exception) for _ in range(5)]
stopped = gevent.spawn(cancelled.exception)
gevent.sleep(0.01)
assert cancelled.cancel()
stopped.join(5)
assert type(stopped.exception).__name__ == "CancelledError", stopped.exception
called = []
future.add_done_callback(called.append)
opened.set()
gevent.joinall(waiters, timeout=10, raise_error=True)
assert [waiter.value for waiter in waiters] == [4] * 5 + [None] * 5
assert first.result(0) == 2
assert called == [future]
assert future.result(0) == 4
def slow_callback(_):
    native_sleep(0.02)
    raise SystemExit
future = batch.submit(5)
future.add_done_callback(slow_callback)
assert future.result() == 10
""",
        stderr=None,
    )


def test_callbacks_of_the_hub_cannot_wait(run):
    """A callback of the hub itself gets a RuntimeError, may submit, and may stop the batcher without waiting."""
    run(
        """
said = []

def callback():
    for call in (lambda: batch.ubatch(1), lambda: batch.map([1]), lambda: batch.submit(1).result()):
        try:
            call()
        except RuntimeError as error:
            said.append("hub" in str(error))
    said.append(batch.submit(2))
    said.append(batch.stop())

opened.clear()
gevent.get_hub().loop.run_callback(callback)
eventually(lambda: len(said) == 5)
assert said[:3] == [True] * 3
assert said[4] is False
assert not batch.alive
opened.set()
assert said[3].result() == 4
assert batch.stop()
"""
    )


def test_a_signal_handler_that_comes_upon_the_hub(run):
    """`stop` in a signal handler, run while the hub waits for events, stops the batcher without waiting."""
    run(
        """
said = []
signal.signal(signal.SIGALRM, lambda *_: said.append((gevent.getcurrent() is gevent.get_hub(), batch.stop())))
assert batch.ubatch(1) == 2
opened.clear()
entered.clear()
futures = [batch.submit(n) for n in range(3)]
entered.wait()
signal.setitimer(signal.ITIMER_REAL, 0.02)
gevent.sleep(0.1)
assert said == [(True, False)], said
opened.set()
assert [future.result() for future in futures] == [0, 2, 4]
assert batch.stop()
"""
    )


def test_a_handler_that_uses_patched_code(run_python):
    """A handler may use sockets, sleep, locks and queues that are patched; the hub and other callers run on."""
    run_python(
        PATCH
        + COMMON
        + """
import queue, socket, threading

def serve(connection):
    with connection:
        while data := connection.recv(100):
            gevent.sleep(0.005)
            connection.sendall(data.upper())

listener = socket.create_server(("127.0.0.1", 0))
def accept():
    while True:
        connection, _ = listener.accept()
        gevent.spawn(serve, connection)
accepting = gevent.spawn(accept)

lock = threading.Lock()
rlock = threading.RLock()
condition = threading.Condition()
box = queue.Queue()
local = threading.local()

def io(items):
    assert get_ident() != main
    with socket.create_connection(listener.getsockname()) as connection:
        results = []
        for item in items:
            connection.sendall(item.encode())
            results.append(connection.recv(100).decode())
    time.sleep(0.002)
    with lock:
        time.sleep(0.001)
    with rlock, condition:
        condition.notify_all()
    box.put(len(items))
    local.x = 1
    return results

ticks = 0
def tick():
    global ticks
    while not ending:
        ticks += 1
        with lock:
            gevent.sleep(0.0005)
        gevent.sleep(0.0005)

ending = False
ticking = gevent.spawn(tick)
batch = UBatch(8, handler=io)

def call(n):
    for m in range(5):
        assert batch.ubatch(f"a{n}.{m}") == f"A{n}.{m}"
    return n

callers = [gevent.spawn(call, n) for n in range(24)]
gevent.joinall(callers, timeout=30, raise_error=True)
assert ticks > 20, ticks
total = 0
while total < 120:
    total += box.get(timeout=5)
assert total == 120
before = descriptors()
assert batch.stop()
ending = True
ticking.get()
eventually(lambda: threads() == 1)
assert descriptors() < before
accepting.kill()
"""
    )


def test_a_handler_that_logs(run_python):
    """Handler and greenlets may log at the same time, through one log handler with its patched lock."""
    run_python(
        PATCH
        + COMMON
        + """
import logging

class Kept(logging.Handler):
    def emit(self, record):
        # no switch in here: a patched lock that greenlets hold across one can lose the wake-up of a native thread
        records.append(record.getMessage())

records = []
log = logging.getLogger("test")
log.setLevel(logging.INFO)
log.addHandler(Kept())
log.propagate = False

def logging_handler(items):
    for item in items:
        log.info("handler %s", item)
    return items

batch = UBatch(4, handler=logging_handler)

def call(n):
    for m in range(4):
        log.info("caller %s", n)
        assert batch.ubatch((n, m)) == (n, m)
        assert batch.submit(n).result() == n

callers = [gevent.spawn(call, n) for n in range(12)]
gevent.joinall(callers, timeout=40, raise_error=True)
assert len(records) == 12 * 4 * 3, len(records)
"""
    )


@pytest.mark.parametrize("uses_patched_code", [False, True])
def test_workers_leave_no_descriptor(run_python, uses_patched_code):
    """Workers that come and go, with hubs of their own or without, leave no descriptor and no thread."""
    run_python(
        PATCH
        + COMMON
        + f"uses_patched_code = {uses_patched_code}"
        + """
def patched(items):
    if uses_patched_code:
        time.sleep(0.0001)
    return items

assert UBatch(handler=patched).ubatch(0) == 0  # what the program opens once
gevent.sleep(0.01)
eventually(lambda: threads() == 1)
before = descriptors()
for n in range(200):
    batch = UBatch(4, handler=patched)
    assert batch.ubatch(n) == n
    if n % 2:
        assert batch.stop()
del batch
eventually(lambda: threads() == 1)
assert descriptors() == before, (before, descriptors())
ubatch._turns.IDLE_EXIT = 0.0005
batch = UBatch(4, handler=patched)
for n in range(100):
    assert batch.ubatch(n) == n
    assert batch.submit(n).result() == n
    gevent.sleep(0.001)
eventually(lambda: threads() == 1)
assert descriptors() == before, (before, descriptors())
""",
        timeout=100,
    )


def test_two_workers_make_hubs_at_once(run_python):
    """Handlers of many new workers that first use patched code at the same moment do not block each other."""
    code = (
        PATCH
        + COMMON
        + """
import threading
waiting = []
def first_use(items):
    waiting.append(1)
    while len(waiting) < 8:
        pass
    time.sleep(0.0001)  # makes the hub
    return items
batchers = [UBatch(handler=first_use) for _ in range(8)]
futures = [batch.submit(n) for n, batch in enumerate(batchers)]
assert [future.result(20) for future in futures] == [*range(8)]
for batch in batchers:
    assert batch.stop(timeout=20)
"""
    )
    for _ in range(4):
        run_python(code)


def test_hubs_in_several_threads(run):
    """Native threads, each with a hub and greenlets of its own, share a batcher and its batches."""
    run(
        """
results = {}
native = []

def thread(name):
    try:
        def call(n):
            for m in range(10):
                assert batch.ubatch((name, n, m)) == (name, n, m) * 2
                assert batch.submit(n).result() == 2 * n
            assert batch.map([n, n]) == [2 * n] * 2
            return n
        callers = [gevent.spawn(call, n) for n in range(10)]
        gevent.joinall(callers, timeout=30, raise_error=True)
        results[name] = [caller.value for caller in callers]
    except BaseException as error:
        results[name] = error
    finally:
        gevent.get_hub().destroy(destroy_loop=True)

gevent.sleep(0)
for name in range(4):
    start_native_thread(thread, (name,))

def plain():
    try:
        for m in range(30):
            assert batch.ubatch(m) == 2 * m
        results["plain"] = "done"
    except BaseException as error:
        results["plain"] = error

start_native_thread(plain, ())
mine = [gevent.spawn(batch.ubatch, n) for n in range(10)]
gevent.joinall(mine, timeout=30, raise_error=True)
eventually(lambda: len(results) == 5)
assert results == {**{name: [*range(10)] for name in range(4)}, "plain": "done"}, results
assert batch.stop()
eventually(lambda: threads() == 1)
"""
    )


def test_a_hub_that_is_destroyed_with_its_greenlets_waiting(run):
    """A thread that ends with calls in flight takes its greenlets with it; the worker and the others go on."""
    run(
        """
gevent.sleep(0)  # gevent's own first imports are not for two threads at once
opened.clear()
done = []

def thread():
    for n in range(5):
        gevent.spawn(batch.ubatch, n)
    gevent.sleep(0.02)
    gevent.get_hub().destroy(destroy_loop=True)
    done.append(True)

start_native_thread(thread, ())
entered.wait()
eventually(lambda: done)
mine = gevent.spawn(batch.ubatch, 10)
gevent.sleep(0.01)
opened.set()
assert mine.get(timeout=10) == 20
assert batch.ubatch(11) == 22
assert batch.stop(timeout=10)
""",
        stderr=None,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_with_greenlets_waiting(run):
    """`os.fork` where patched, else `gevent.os.fork`: greenlets' calls fail in the child, which works at once."""
    run(
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
import gevent.os

fork = os.fork if PATCHED else gevent.os.fork
running = [gevent.spawn(batch.ubatch, n) for n in range(5)]
for round_ in range(3):
    opened.clear()
    entered.clear()
    running = [gevent.spawn(batch.ubatch, 1)]
    entered.wait()
    running += [gevent.spawn(batch.ubatch, 1) for _ in range(5)] + [gevent.spawn(batch.map, [1, 1])]
    future = batch.submit(1)
    running.append(gevent.spawn(future.result))
    eventually(lambda: batch.stats.queued == 8)
    gevent.sleep(0)
    pid = fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(30)
            opened.set()
            assert batch.ubatch(4) == 8
            gevent.joinall(running, timeout=10)
            for one in running:
                assert isinstance(one.exception, WorkerDied), one.exception
            assert batch.map([1, 2]) == [2, 4]
            assert batch.submit(1).result() == 2
            new = [gevent.spawn(batch.ubatch, n) for n in range(10)]
            gevent.joinall(new, timeout=10, raise_error=True)
            assert batch.stop(timeout=10)
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc(file=sys.stdout)
        finally:
            sys.stdout.flush()
            os._exit(status)
    opened.set()
    gevent.joinall(running, timeout=10, raise_error=True)
    assert [one.value for one in running] == [2] * 6 + [[2, 2], 2]
    ended, status = 0, None
    deadline = time.monotonic() + 35
    while ended == 0 and time.monotonic() < deadline:
        ended, status = gevent.os.waitpid(pid, os.WNOHANG)
        gevent.sleep(0.005)
    assert (ended, status) == (pid, 0), status
    assert batch.ubatch(2) == 4
""",
        stderr=None,
    )


def test_stop_in_a_greenlet(run):
    """`stop` in a greenlet lets the others run until all is drained."""
    run(
        """
opened.clear()
callers = [gevent.spawn(batch.ubatch, n) for n in range(20)]
entered.wait()
stopping = [gevent.spawn(batch.stop) for _ in range(3)] + [gevent.spawn(batch.stop, timeout=0.001)]
gevent.sleep(0)
ticks = 0
for _ in range(20):
    gevent.sleep(0.001)
    ticks += 1
assert not batch.alive
assert ticks == 20
assert stopping[3].get(timeout=5) is False
gevent.joinall(stopping, timeout=10, raise_error=True)
opened.set()
gevent.joinall(callers, timeout=10)
for caller in callers:
    assert isinstance(caller.exception, Stopped), caller.exception
batch.start()
assert batch.ubatch(1) == 2
with batch:
    callers = [gevent.spawn(batch.ubatch, n) for n in range(20)]
    gevent.sleep(0)
gevent.joinall(callers, timeout=10, raise_error=True)
""",
        stderr=None,  # greenlets that end with Stopped
    )


@pytest.mark.parametrize("state", ["waiting greenlets", "a handler that never returns", "idle", "just submitted"])
def test_exit(run, state):
    """At the interpreter's exit nothing hangs, and nothing is written."""
    run(
        f"""
state = {state!r}
ubatch._driver.EXIT_WAIT = 0.2
if state == "waiting greenlets":
    opened.clear()
    callers = [gevent.spawn(batch.ubatch, n) for n in range(5)]
    entered.wait()
elif state == "a handler that never returns":
    def never(items):
        native_sleep(1000)
    batch = UBatch(handler=never)
    callers = [gevent.spawn(batch.ubatch, n) for n in range(5)]
    gevent.sleep(0.02)
elif state == "idle":
    assert batch.ubatch(1) == 2
else:
    batch.submit(1)
""",
        timeout=30,
    )


def test_an_exit_without_waiting_for_greenlets(run):
    """`sys.exit` in the main greenlet with calls in flight ends the program."""
    run(
        """
ubatch._driver.EXIT_WAIT = 0.2
opened.clear()
callers = [gevent.spawn(batch.ubatch, n) for n in range(5)]
entered.wait()
sys.exit(0)
""",
        timeout=30,
    )


def test_calls_without_asyncio(run_python):
    """Greenlets and their batcher load neither asyncio nor multiprocessing."""
    run_python(
        "import sys\nbefore = set(sys.modules)\n"
        + PATCH
        + COMMON
        + """
loaded = set(sys.modules)
assert gevent.spawn(batch.ubatch, 1).get() == 2
assert batch.map([1]) == [2]
assert batch.submit(1).result() == 2
assert batch.stop()
assert not {"asyncio", "multiprocessing"} & (set(sys.modules) - loaded), set(sys.modules) - loaded
"""
    )


def test_interrupts(run):
    """Ctrl-C while the main greenlet waits: it leaves, its item is dropped, and the hub can still be used and end."""
    run(
        """
opened.clear()
other = gevent.spawn(batch.ubatch, 1)
entered.wait()
def kill():
    while batch.stats.queued < wanted:
        native_sleep(0.001)
    native_sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
for call in (lambda: batch.ubatch(5), lambda: batch.map([5]), lambda: batch.submit(7).result()):
    wanted = batch.stats.queued + 1
    start_native_thread(kill, ())
    try:
        call()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError
opened.set()
assert other.get(timeout=5) == 2
assert batch.stop(timeout=10)
assert seen == [[1], [7]], seen
[home] = ubatch._waiters._hub_homes.values()
assert home.waiting == 0
""",
        stderr=None,
    )
