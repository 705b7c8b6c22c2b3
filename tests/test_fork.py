"""After a fork: the child's batchers work at once, what it inherited fails there, the parent notices nothing."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# What the snippets share. Each child ends by os._exit, so that only the parent's checks count for its status.
COMMON = """
import faulthandler, logging, os, signal, sys, threading, time, traceback, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
from ubatch import Stopped, UBatch, WorkerDied
import ubatch._driver, ubatch._future, ubatch._turns, ubatch._waiters

class Flag:
    "As threading.Event, but without a lock that could be held at a fork."
    def __init__(self):
        self.clear()
    def set(self):
        self.on = True
    def clear(self):
        self.on = False
    def wait(self, timeout):
        deadline = time.monotonic() + timeout
        while not self.on and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.on

entered, opened = Flag(), Flag()
opened.set()

def handler(items):
    ran_in[0] = os.getpid()
    entered.set()
    assert opened.wait(10)
    return [2 * item for item in items]

ran_in = [0]
batch = UBatch(8, handler=handler)

def fork(child):
    "Run child() in a fork; give its process to wait for."
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

def join(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0, "a child failed"

def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread

def eventually(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)

def works(batch=batch):
    "All faces, by a worker of this very process."
    import asyncio
    opened.set()
    ran_in[0] = 0
    assert batch.ubatch(1) == 2
    assert batch.submit(2).result(10) == 4
    assert batch.map(range(20)) == [*range(0, 40, 2)]
    async def main():
        return await batch.aubatch(3), await batch.amap([4, 5])
    assert asyncio.run(main()) == (6, [8, 10])
    assert ran_in == [os.getpid()]
    assert batch.stats.queued == batch.stats.running == 0

def orphaned(*futures):
    "Futures that were inherited fail in this child."
    for future in futures:
        assert isinstance(future.exception(10), WorkerDied), future
        assert "parent" in str(future.exception())
        assert not future.cancel()
        future.add_done_callback(lambda _: None)

def unaffected(*futures):
    for future in futures:
        assert future.result(10) == 2, future
    works()
"""


def test_fork_before_the_first_item(run_python):
    """A batcher that has never had a worker, in the child and in the parent."""
    run_python(
        COMMON
        + """
pids = [fork(works) for _ in range(3)]
works()
join(*pids)
"""
    )


def test_fork_while_idle(run_python):
    """The worker sleeps, or has gone."""
    run_python(
        COMMON
        + """
for idle_exit in (10.0, 0.0):
    ubatch._turns.IDLE_EXIT = idle_exit
    works()
    eventually(lambda: batch._seat.wake_at == (1 if idle_exit else 0))
    pid = fork(works)
    works()
    join(pid)
"""
    )


def test_fork_while_a_batch_runs(run_python):
    """Running and queued futures fail in the child and nowhere else; the callbacks of the parent do not run there."""
    run_python(
        COMMON
        + """
opened.clear()
called = []
running = [batch.submit(1)]
assert entered.wait(10)
queued = [batch.submit(1) for _ in range(20)]
for future in running + queued:
    future.add_done_callback(lambda _: called.append(os.getpid()))
cancelled = batch.submit(3)
assert cancelled.cancel()

def child():
    assert batch.stats.queued == batch.stats.running == 0, batch.stats
    assert batch.stats.items == 0, batch.stats
    orphaned(*running, *queued)
    assert cancelled.cancelled()
    assert called == []
    works()
    assert batch.stop()
    batch.start()
    works()

pids = [fork(child) for _ in range(3)]
join(*pids)
opened.set()
unaffected(*running, *queued)
assert called == [os.getpid()] * 21
assert batch.stats.items == 21 + 25
"""
    )


def test_fork_while_a_window_is_held(run_python):
    """Items that are held for companions fail in the child."""
    run_python(
        COMMON
        + """
held = UBatch(4, 1000, handler=handler)
futures = [held.submit(1) for _ in range(3)]
eventually(lambda: held._seat.wake_at == 4)

def child():
    orphaned(*futures)
    assert held.map([1, 2, 3, 4]) == [2, 4, 6, 8]
    held.timeout = None
    works(held)

join(fork(child))
assert held.submit(1).result(10) == 2
assert [future.result(10) for future in futures] == [2, 2, 2]
"""
    )


def test_fork_of_what_was_learned(run_python):
    """The child's policy goes on from what the parent's has learned, also if a batch ran, or was held, at the fork."""
    run_python(
        COMMON
        + """
def slow(items):
    time.sleep(0.005)
    return [2 * item for item in items]

gathering = UBatch(8, handler=slow)

def callers(seconds=10.0):
    "Four threads that return at once, until batches have been gathered."
    gathered = gathering.stats.gathered
    until = time.monotonic() + seconds
    def calls():
        while gathering.stats.gathered < gathered + 5 and time.monotonic() < until:
            assert gathering.ubatch(1) == 2
            done.append(1)
    done = []
    threads = [in_thread(calls) for _ in range(4)]
    return threads, done

def gathers():
    before = gathering.stats.gathered
    threads, done = callers()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert gathering.stats.gathered >= before + 5
    assert len(done) == gathering.stats.items
    gathering._policy._check()

gathers()

def child():
    assert gathering.stats.batches == 0
    assert gathering.stats.a > 0.001
    gathers()

threads, _ = callers()
pids = [fork(child) for _ in range(4) if not time.sleep(0.0023)]
for thread in threads:
    thread.join(10)
join(*pids)
assert gathering.map([1, 2]) == [2, 4]
"""
    )


def test_fork_of_a_batcher_that_waits_for_its_start(run_python):
    """Items that wait for `start` fail in the child, which may go on to start the batcher."""
    run_python(
        COMMON
        + """
warnings.simplefilter("ignore")
waiting = UBatch()
future = waiting.submit(1)

def child():
    orphaned(future)
    waiting.set_handler(handler)
    waiting.start()
    works(waiting)

join(fork(child))
waiting.set_handler(handler)
waiting.start()
assert future.result(10) == 2
"""
    )


def test_fork_of_a_stopped_batcher(run_python):
    """It is stopped in the child too, until it is started there; also if the parent's `stop` is still waiting."""
    run_python(
        COMMON
        + """
works()
batch.stop()

def child():
    for face in (batch.submit, batch.ubatch):
        try:
            face(1)
        except Stopped:
            pass
        else:
            raise AssertionError
    assert batch.stop()
    batch.start()
    works()

join(fork(child))
batch.start()
opened.clear()
entered.clear()
future = batch.submit(1)
assert entered.wait(10)
stopping = in_thread(batch.stop)
eventually(lambda: not batch.alive and batch._farewells)
join(fork(child))
opened.set()
stopping.join(10)
assert not stopping.is_alive()
assert future.result(10) == 2
"""
    )


def test_fork_while_another_thread_holds_the_lock(run_python):
    """The child does not wait for a lock whose holder does not exist there."""
    run_python(
        COMMON
        + """
works()
held, release = Flag(), Flag()

def hold():
    with batch._lock:
        held.set()
        release.wait(10)

holder = in_thread(hold)
assert held.wait(10)

def child():
    works()
    batch.stop()
    batch.start()
    works()

join(fork(child))
release.set()
holder.join()
works()
"""
    )


@pytest.mark.parametrize("where", ["before its state is set", "after its state is set", "in a callback"])
@pytest.mark.parametrize("outcome", ["result", "error"])
def test_fork_while_the_worker_settles_a_future(run_python, where, outcome):
    """The worker is inside `Future.set_result`, and holds the future's own lock; others of the batch wait."""
    run_python(
        COMMON
        + f"""
where, outcome = {where!r}, {outcome!r}
logging.getLogger("ubatch").setLevel(logging.ERROR)  # standard error is to stay empty
inside, go_on = Flag(), Flag()

class Condition:
    "As the future's own, but its holder stops within."
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        return getattr(self.real, name)
    def pause(self, when):
        if where == when and threading.current_thread().name.startswith("ubatch-") and future._state == "RUNNING" * (
            when.startswith("before")
        ) + "FINISHED" * when.startswith("after"):
            inside.set()
            assert go_on.wait(10)
    def __enter__(self):
        entered = self.real.__enter__()
        if future.outcome is None:
            self.pause("before its state is set")
        return entered
    def notify_all(self):
        self.pause("after its state is set")
        self.real.notify_all()
    def __exit__(self, *args):
        self.real.__exit__(*args)

def fail(items):
    entered.set()
    assert opened.wait(10)
    if outcome == "error" and 1 in items:
        raise ZeroDivisionError
    return [2 * item for item in items]

batch = UBatch(8, handler=fail)
opened.clear()
plug = batch.submit(7)
assert entered.wait(10)
first, future, last = (batch.submit(1) for _ in range(3))
future._condition = Condition(future._condition)
def callback(_):
    if where == "in a callback":
        inside.set()
        assert go_on.wait(10)
future.add_done_callback(callback)
caller = in_thread(lambda: batch.ubatch(2) if outcome == "result" else None)
opened.set()
assert inside.wait(10)

def child():
    opened.set()
    orphaned(last)
    for done in (plug, first):
        assert done.done()
    assert future.done()
    assert isinstance(future.exception(10), (WorkerDied, ZeroDivisionError, type(None)))
    assert future.exception(0) or future.result(0) == 2
    future.add_done_callback(lambda _: None)
    assert batch.ubatch(4) == 8
    assert batch.map([5, 6]) == [10, 12]
    assert batch.stop(timeout=10)

pids = [fork(child) for _ in range(2)]
join(*pids)
go_on.set()
for one in (first, future, last):
    error = one.exception(10)
    assert isinstance(error, ZeroDivisionError) if outcome == "error" else one.result() == 2
assert batch.ubatch(4) == 8
"""
    )


def test_fork_while_stop_gives_items_up(run_python):
    """Futures that `stop` has taken from the queue and not yet told fail in the child too."""
    run_python(
        COMMON
        + """
for give_up in ("queue", "batch", "dismissed"):
    batch = UBatch(8, handler=handler)
    opened.clear()
    entered.clear()
    running = batch.submit(1)
    assert entered.wait(10)
    queued = [batch.submit(1) for _ in range(3)]
    inside, go_on = Flag(), Flag()
    deliver = ubatch._driver.deliver

    def slow(tickets, *rest):
        if len(tickets) == {"queue": 3, "batch": 1, "dismissed": 1}[give_up] and hasattr(tickets[0], "done"):
            inside.set()
            assert go_on.wait(10)
        deliver(tickets, *rest)

    ubatch._driver.deliver = slow
    if give_up == "queue":
        stopping = in_thread(batch.stop, False)
    elif give_up == "batch":
        stopping = in_thread(batch.stop, True, 0)
    else:  # the handler has returned, and the worker is about to deliver when stop() gives up on it
        opened.set()
        assert inside.wait(10)
        batch.stop(timeout=0)
        stopping = in_thread(batch.stop)
    assert inside.wait(10)

    def child():
        opened.set()
        for future in [running, *queued]:
            assert isinstance(future.exception(10), (WorkerDied, Stopped)), (give_up, future)
        batch.start()
        assert batch.ubatch(4) == 8

    join(fork(child))
    ubatch._driver.deliver = deliver
    opened.set()
    go_on.set()
    stopping.join(10)
    assert not stopping.is_alive()
    for future in [running, *queued]:
        assert isinstance(future.exception(10), (Stopped, type(None))), give_up
"""
    )


def test_fork_in_the_handler(run_python):
    """The worker itself may fork, in the handler or in a done-callback; the child may use the batcher."""
    run_python(
        COMMON
        + """
def forking(items):
    if "fork" in items:
        pids.append(fork(child))
    return [2 * item for item in items]

def child():
    assert threading.get_ident() != batch._seat.thread
    orphaned(*futures)
    assert batch.map([1, 2]) == [2, 4]
    assert batch.stop(timeout=10)

pids, futures = [], []
batch = UBatch(1, handler=forking)
batch._started = False
warnings.simplefilter("ignore")
futures += [batch.submit("fork"), batch.submit("x")]
batch.start()
assert [future.result(10) for future in futures] == ["forkfork", "xx"]
def callback(_):
    assert [future.done() for future in futures] == [True, False]
    pids.append(fork(child_of_callback))
def child_of_callback():
    orphaned(futures[1])
    assert batch.map([1, 2]) == [2, 4]
batch.stop()
batch._started = False
batch._closed = False
futures[:] = [batch.submit("y"), batch.submit("z")]
futures[0].add_done_callback(callback)
batch.start()
assert [future.result(10) for future in futures] == ["yy", "zz"]
assert len(pids) == 2
join(*pids)
"""
    )


def test_fork_from_a_thread_that_is_not_main(run_python):
    """The thread that forks is the main thread of the child, and may be interrupted there."""
    run_python(
        COMMON
        + """
opened.clear()
future = batch.submit(1)
assert entered.wait(10)

def child():
    orphaned(future)
    works()
    opened.clear()
    entered.clear()
    def kill():
        assert entered.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
    in_thread(kill)
    try:
        batch.ubatch(1)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("not interrupted")
    works()

def forking():
    join(fork(child))
    done.append(True)

done = []
in_thread(forking).join(60)
assert done
opened.set()
unaffected(future)
"""
    )


def test_forks_of_forks(run_python):
    """A child may fork again, with work in flight on each level."""
    run_python(
        COMMON
        + """
def level(depth):
    opened.clear()
    entered.clear()
    future = batch.submit(1)
    assert entered.wait(10)
    def child():
        orphaned(future)
        works()
        if depth:
            level(depth - 1)
    pid = fork(child)
    join(pid)
    opened.set()
    unaffected(future)

level(3)
"""
    )


def test_children_of_multiprocessing(run_python):
    """`multiprocessing` with its fork context: children call the inherited batcher; so do those of an executor."""
    run_python(
        COMMON
        + """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

context = multiprocessing.get_context("fork")

def job(n):
    assert batch.map([n, n]) == [2 * n, 2 * n]
    return batch.ubatch(n)

works()
opened.clear()
entered.clear()
future = batch.submit(1)
assert entered.wait(10)
def child():
    orphaned(future)
    works()
    job(3)
children = [context.Process(target=child) for _ in range(4)]
for process in children:
    process.start()
for process in children:
    process.join(30)
    assert process.exitcode == 0, process
opened.set()
unaffected(future)
with ProcessPoolExecutor(2, mp_context=context) as pool:
    assert [*pool.map(job, range(10))] == [*range(0, 20, 2)]
works()
""",
        stderr=None,
    )


def test_a_child_that_exits_as_a_program_does(run_python):
    """A forked child that ends by `sys.exit` neither hangs nor writes, whatever it inherited."""
    out = run_python(
        COMMON
        + """
opened.clear()
futures = [batch.submit(1) for _ in range(3)]
assert entered.wait(10)
pid = os.fork()
if pid == 0:
    opened.set()
    assert batch.ubatch(2) == 4
    batch.submit(1)
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
opened.set()
unaffected(*futures)
print("parent")
"""
    )
    assert out == "parent\n"


def test_waiting_callers_of_the_forking_thread(run_python):
    """A signal handler may fork while its thread waits in `ubatch`, `map` or `result`: in the child that call fails."""
    run_python(
        COMMON
        + """
def on_signal(*_):
    global pid
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)

signal.signal(signal.SIGUSR1, on_signal)

for call in (lambda: batch.ubatch(1), lambda: batch.map([1, 1])[0], lambda: batch.submit(1).result()):
    opened.clear()
    entered.clear()
    pid = None
    def kill():
        assert entered.wait(10)
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)
        eventually(lambda: pid)
        opened.set()
    killer = in_thread(kill)
    try:
        assert call() == 2
    except WorkerDied:
        assert pid == 0
    if pid == 0:
        status = 1
        try:
            works()
            status = 0
        finally:
            os._exit(status)
    signal.alarm(0)
    killer.join()
    join(pid)
"""
    )


def test_a_batch_that_is_being_delivered_to_the_forking_thread(run_python):
    """The fork comes between the setting of an outcome and the waking of its caller, who forks."""
    run_python(
        COMMON
        + """
inside, go_on = Flag(), Flag()
wake = ubatch._waiters.ThreadTicket.wake

def slow(ticket):
    if armed and threading.get_ident() == batch._seat.thread:  # not the child's fork hook
        inside.set()
        assert go_on.wait(10)
    wake(ticket)

ubatch._waiters.ThreadTicket.wake = slow
armed = True

def on_signal(*_):
    global pid, armed
    pid = os.fork()
    armed = False

signal.signal(signal.SIGUSR1, on_signal)

def kill():
    assert inside.wait(10)
    os.kill(os.getpid(), signal.SIGUSR1)
    eventually(lambda: not armed)
    go_on.set()

in_thread(kill)
signal.alarm(30)
assert batch.ubatch(1) == 2
if pid == 0:
    assert batch.ubatch(2) == 4
    os._exit(0)
join(pid)
"""
    )


def test_tasks_of_a_loop_at_the_fork(run_python):
    """Tasks of an event loop that wait at the fork are left alone in the parent, and write nothing in the child."""
    run_python(
        COMMON
        + """
import asyncio, gc

opened.clear()

async def main():
    tasks = [asyncio.ensure_future(batch.aubatch(1)) for _ in range(20)]
    tasks.append(asyncio.ensure_future(batch.amap([1, 1])))
    await asyncio.sleep(0)
    await asyncio.to_thread(entered.wait, 10)
    ready.set()
    return await asyncio.gather(*tasks)

def child():
    assert batch.stats.queued == 0
    works()
    gc.collect()

for debug in (False, True):
    ready = Flag()
    results = []
    loop = in_thread(lambda: results.append(asyncio.run(main(), debug=debug)))
    assert ready.wait(10)
    join(fork(child))
    opened.set()
    loop.join(10)
    assert results == [[2] * 20 + [[2, 2]]], results
    opened.clear()
    entered.clear()

def works_without_a_loop():  # asyncio itself has lost its running loop in a child
    opened.set()
    assert batch.map([1, 2]) == [2, 4]

# the loop's own thread forks
async def forking():
    task = asyncio.ensure_future(batch.aubatch(1))
    await asyncio.to_thread(entered.wait, 10)
    async def inherited():
        try:
            await task
        except WorkerDied:
            return
        raise AssertionError
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            await inherited()
            works_without_a_loop()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    join(pid)
    opened.set()
    assert await task == 2

asyncio.run(forking())
"""
    )


def test_batchers_of_event_loops(run_python):
    """They count anew in the child, and work there in a loop of its own; what was inherited fails, and nobody hangs."""
    run_python(
        COMMON
        + """
import asyncio
from ubatch import aio, _observing

class Opening:
    "What the loop's handler waits for; made in the loop."

async def asynchronous(items):
    entered.set()
    await opening.event.wait()
    return [2 * item for item in items]

opening = Opening()
batches = [
    aio.UBatch(2, 0, handler=asynchronous),
    aio.UBatch(2, 0, handler=asynchronous, deadline=60.0),
    aio.UBatch(2, 0, handler=handler),
]
waiting = aio.UBatch(2, 0)  # for a handler and a start
warnings.simplefilter("ignore", RuntimeWarning)  # of that

def works(number):
    async def main():
        opening.event = asyncio.Event()
        opening.event.set()
        opened.set()
        for batch in batches:
            assert await batch.map(range(number)) == [2 * item for item in range(number)]
            assert (batch.stats.items, batch.stats.wait.count, batch.stats.queued) == (number, number, 0), batch.stats
            assert await batch.stop()
    asyncio.run(main())

def inherited(futures):
    errors = 0
    for future in futures:
        assert future.done()
        try:
            future.result()
        except WorkerDied as error:
            errors += "parent" in str(error)
    assert errors == len(futures), errors

async def main(forks):
    asyncio.get_running_loop().slow_callback_duration = 60.0  # a fork is one
    opening.event = asyncio.Event()
    opened.clear()
    futures = []
    for batch in batches:
        entered.clear()
        futures += [batch.submit(number) for number in range(5)]
        while not entered.on:
            await asyncio.sleep(0.001)
        assert (batch.stats.queued, batch.stats.running) == (3, 2)
    futures.append(waiting.submit(1))
    stops = [asyncio.ensure_future(batch.stop()) for batch in batches[:1]]
    await asyncio.sleep(0)
    pids = await forks(futures)
    opening.event.set()
    opened.set()
    assert await asyncio.gather(*futures[:-1]) == 3 * [0, 2, 4, 6, 8]
    await asyncio.gather(*stops)
    batches[0].start()
    futures[-1].cancel()
    join(*pids)

def child(futures):
    for batch in (*batches, waiting):
        stats = batch.stats
        assert (stats.queued, stats.running, stats.items, stats.wait.count) == (0, 0, 0, 0), stats
    inherited(futures)
    batches[0].start()
    in_thread(works, 3).join()

async def by_the_loop(futures):
    return [fork(lambda: child(futures))]

async def by_another_thread(futures):
    pids = []
    thread = in_thread(lambda: pids.append(fork(lambda: child(futures))))
    while thread.is_alive():
        await asyncio.sleep(0.001)
    return pids

for debug in (False, True):
    for forks in (by_the_loop, by_another_thread):
        asyncio.run(main(forks), debug=debug)
join(fork(lambda: works(2)))  # after its loop was closed
assert batches[1].stats.items == 20
"""
    )


def test_fork_while_many_threads_submit(run_python, seed):
    """50 forks under load, provoked at all moments by a tiny switch interval: children work, nobody notices."""
    run_python(
        COMMON
        + f"""
import random
random.seed({seed})
"""
        + """
sys.setswitchinterval(1e-6)
ubatch._turns.IDLE_EXIT = 0.0005
ending = False
counts = [0] * 6
batch = UBatch(8, handler=lambda items: [2 * item for item in items])

def call(mine):
    while not ending:
        assert batch.ubatch(mine) == 2 * mine
        futures = [batch.submit(n) for n in range(5)]
        futures[0].cancel()
        assert [future.result(30) for future in futures[1:]] == [2, 4, 6, 8]
        assert batch.map([mine] * 3) == [2 * mine] * 3
        counts[mine] += 1

threads = [in_thread(call, mine) for mine in range(6)]
for n in range(50):
    futures = [batch.submit(1) for _ in range(random.randrange(6))]
    def child():
        for future in futures:
            assert isinstance(future.exception(10), WorkerDied) or future.result() == 2
        sys.setswitchinterval(0.005)
        assert batch.ubatch(1) == 2
        assert batch.map(range(10)) == [*range(0, 20, 2)]
    pid = fork(child)
    join(pid)
    for future in futures:
        assert future.result(10) == 2
    time.sleep(random.random() * 0.005)
ending = True
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
assert min(counts) > 0, counts
assert batch.stop(timeout=10)
assert batch.stats.queued == batch.stats.running == 0
""",
        timeout=100,
    )
