"""Handlers in executors: thread pools, process pools, clusters; what breaks and what goes on."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import far
import pytest
from gates import PATIENCE, Gate, echo, eventually, in_thread, results

from ubatch import Stopped, UBatch, WorkerDied, aio, dynamically
from ubatch._executor import Renewable, _twin
from ubatch.processes import ProcessExecutor

pytestmark = pytest.mark.usefixtures("_processes_may_be_spawned")

SPAWN = multiprocessing.get_context("spawn")


def processes(workers: int = 1) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=SPAWN)


@pytest.fixture(params=["given", "made"])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor | Callable[[], Executor]]:
    """A process pool, or a function that makes one."""
    if request.param == "made":
        yield processes
    else:
        with processes() as executor:
            yield executor


# -- what they do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_a_thread_pool(workers):
    """As many batches are in it at once as there are workers."""
    gate = Gate()
    with ThreadPoolExecutor(4) as executor, UBatch(1, 0, handler=gate, workers=workers, executor=executor) as batch:
        futures = [batch.submit(n) for n in range(6)]
        for _ in range(workers):
            gate.wait_for_batch()
        assert not gate.entered.acquire(timeout=0.02)
        gate.opened.set()
        assert results(futures) == list(range(6))
    assert executor._threads.issuperset(thread for thread in threading.enumerate() if thread.ident in gate.threads)


def test_a_process_pool(pool):
    """Handler, items and results travel; the process is another."""
    with UBatch(4, 0, handler=far.whereabouts, executor=pool, workers=2) as batch:
        assert set(batch.map(range(20))).isdisjoint({os.getpid()})
    with UBatch(4, 0, handler=far.double, executor=pool) as batch:
        assert batch.map(range(20)) == [2 * n for n in range(20)]
        assert batch.stats.items == 20


def test_a_process_pool_from_an_event_loop(pool):
    """A plain function of `ubatch.aio` runs there too."""

    async def main() -> list[int]:
        async with aio.UBatch(4, 0, handler=far.double, executor=pool, workers=2) as batch:
            return list(await asyncio.gather(*map(batch.ubatch, range(20))))

    assert asyncio.run(main()) == [2 * n for n in range(20)]


def test_arguments_by_name(pool):
    """The handler's signature binds them here, before anything travels."""
    with UBatch(4, 0, handler=far.scaled, executor=pool) as batch:
        futures = [batch.submit(1), batch.submit(2, factor=3), batch.submit(3)]
        assert results(futures) in ([10, 6, 30],)
        with pytest.raises(TypeError, match="scaled"):
            batch.submit(1, unknown=2)
        assert batch.name == "scaled"


class Cluster(Executor):
    """An executor of another kind: runs calls at once."""

    def __init__(self) -> None:
        self.down = False

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.down = True


@pytest.mark.parametrize("kind", ["given", "made"])
def test_any_other_executor(kind):
    """One that is given stays as it is when the batcher stops; one that was made is shut down."""
    made: list[Cluster] = []

    def make() -> Cluster:
        made.append(Cluster())
        return made[-1]

    batch: UBatch[Any, Any] = UBatch(4, 0, handler=far.double, executor=make() if kind == "given" else make)
    assert len(made) == (kind == "given")
    for _ in range(2):
        batch.start()
        assert batch.map(range(9)) == [2 * n for n in range(9)]
        assert batch.stop()
    assert [cluster.down for cluster in made] == ([False] if kind == "given" else [True, True])


def test_a_class_makes_executors():
    with UBatch(4, 0, handler=far.double, executor=Cluster) as batch:
        assert batch.ubatch(2) == 4


def test_a_local_dask_cluster(run_python):
    """`client.get_executor()` is an executor like others."""
    pytest.importorskip("distributed")
    run_python(
        """
        import os
        from distributed import Client, LocalCluster
        from ubatch import UBatch

        def whereabouts(items):
            return [(item, os.getpid()) for item in items]

        if __name__ == "__main__":
            options = dict(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None)
            with LocalCluster(**options) as cluster, Client(cluster) as client:
                with UBatch(4, 0, handler=whereabouts, executor=client.get_executor(), workers=2) as batch:
                    found = batch.map(range(20))
            assert [item for item, _ in found] == list(range(20))
            assert os.getpid() not in {pid for _, pid in found}
        """,
        stderr=None,  # of dask's own: it tells of its end
    )


# -- what goes wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["killed", "exit"])
def test_a_process_that_ends_fails_its_batch_alone(pool, end):
    """`WorkerDied`, with the executor's own error as its cause; the next batch works, whenever it ends."""
    with UBatch(4, 0, handler=far.fate, executor=pool) as batch:
        for _ in range(2):
            assert batch.map(["a", "b"]) == ["a", "b"]
            with pytest.raises(WorkerDied, match="'fate'") as caught:
                batch.ubatch(end)
            assert isinstance(caught.value.__cause__, BrokenProcessPool)
            assert batch.ubatch("next") == "next"
        assert batch.stats.errors == 2
    assert multiprocessing.active_children() == [] or isinstance(pool, Executor)


def test_a_process_that_ends_between_batches(pool):
    """Nobody notices: a call that the executor did not take goes to the next one."""
    with UBatch(4, 0, handler=far.whereabouts, executor=pool) as batch:
        before = batch.ubatch(1)
        os.kill(before, signal.SIGKILL)
        executor: Any = batch._place._executor  # type: ignore[union-attr]
        eventually(lambda: executor._broken)
        assert batch.ubatch(1) not in (before, os.getpid())


def test_several_batches_in_a_pool_that_breaks():
    """They fail together, as the pool does; one new pool serves all that come after."""
    made: list[Any] = []

    def make() -> ProcessPoolExecutor:
        made.append(processes(2))
        return made[-1]

    with UBatch(1, 0, handler=far.fate, executor=make, workers=2) as batch:
        batch.map(["a", "b", "c"])
        futures = [batch.submit("slow"), batch.submit("killed")]
        assert all(isinstance(future.exception(PATIENCE), (WorkerDied, type(None))) for future in futures)
        assert isinstance(futures[1].exception(), WorkerDied)
        assert batch.map(["a", "b", "c"]) == ["a", "b", "c"]
    assert len(made) == 2
    assert made[-1]._shutdown_thread or made[-1]._executor_manager_thread is None


def test_errors_travel(pool):
    """What the handler raises there is raised here; what it puts in its output is one caller's."""
    with UBatch(4, 0, handler=far.fate, executor=pool) as batch:
        with pytest.raises(ValueError):
            batch.ubatch("raise")
        futures = [batch.submit(item) for item in ("a", "error", "b")]
        assert [future.exception(PATIENCE) is None for future in futures] == [True, False, True]
        assert isinstance(futures[1].exception(), ValueError)


def test_what_cannot_travel(pool):
    """The callers of that batch are told; the next one works."""
    with UBatch(4, 0, handler=far.double, executor=pool) as batch:
        with pytest.raises(Exception, match=r"(?i)pickle|local object"):
            batch.ubatch(lambda: None)
        assert batch.ubatch(3) == 6
    with (
        UBatch(4, 0, handler=lambda items: items, executor=pool) as batch,
        pytest.raises(Exception, match=r"(?i)pickle|local object"),
    ):
        batch.ubatch(1)


def test_one_bad_item_among_many_that_kills(pool):
    """With `isolate` only its caller fails."""
    with UBatch(8, 0, handler=far.fate, executor=pool, isolate=True) as batch:
        futures = [batch.submit(item) for item in ("a", "b", "killed", "c")]
        assert [type(future.exception(30)) for future in futures] == [type(None), type(None), WorkerDied, type(None)]


class Sentry(logging.Handler):
    """Stands for a log handler that sends what it gets to a service."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken
        self.told: list[tuple[str, str, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.name, record.getMessage(), record.process or 0))
        if self.broken:
            raise OSError("the service is down")


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    """It is set up for everything from INFO on."""
    handler, root = Sentry(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_handler_logs_in_a_process_reaches_the_loggers_here(sentry, caplog, method):
    """Once, with the process it came from; also what it logs before it raises. Levels are those of here."""
    context = multiprocessing.get_context(method)
    with (
        ProcessPoolExecutor(1, mp_context=context) as executor,
        UBatch(4, 0, handler=far.chatty, executor=executor) as batch,
    ):
        assert batch.map(["a", "b"]) == ["a", "b"]
        assert [record[:2] for record in sentry.told] == [("far.model", "doing a"), ("far.model", "doing b")]
        assert os.getpid() not in {process for _, _, process in sentry.told}
        sentry.told.clear()
        with pytest.raises(KeyError, match="raise") as caught:
            batch.ubatch("raise")
        assert "in chatty" in str(caught.value.__cause__)  # where it was raised
        name, message, _ = sentry.told[0]
        assert name == "far.model"
        assert message == "cannot do raise"
        eventually(lambda: sentry.told[-1][0] == "ubatch")  # the batcher's own warning of the failure
        sentry.broken = True
        assert batch.ubatch("c") == "c"
    caplog.clear()  # a traceback leads to the pool, and its pipes


@pytest.mark.parametrize("given", [3, "threads", object()])
def test_what_is_no_executor(given):
    with pytest.raises(TypeError, match=r"must be a concurrent\.futures\.Executor"):
        UBatch(handler=echo, executor=given)


@pytest.mark.parametrize("patched", [True, False])
def test_thread_pools_of_gevent(run_python, patched):
    """They serve one hub, or their threads are greenlets of whoever came first: that is told at once."""
    pytest.importorskip("gevent")
    run_python(
        f"""
        if {patched}:
            from gevent import monkey; monkey.patch_all()
        from concurrent.futures import ThreadPoolExecutor
        import gevent
        from gevent.threadpool import ThreadPoolExecutor as GeventPool
        from ubatch import UBatch
        with ThreadPoolExecutor(1) as own, GeventPool(1) as pool:
            for executor in [pool, own] if {patched} else [pool]:
                try:
                    UBatch(handler=list, executor=executor)
                except TypeError as error:
                    assert "see workers" in str(error), error
                else:
                    raise AssertionError(executor)
            if not {patched}:
                with UBatch(handler=list, executor=own) as batch:
                    assert gevent.spawn(batch.ubatch, 3).get() == 3
        """
    )


def test_what_makes_no_executor():
    """Each batch fails; nobody hangs."""
    with UBatch(handler=echo, executor=dict) as batch, pytest.raises(TypeError, match="must make an executor"):
        batch.ubatch(1)


def test_an_executor_that_cannot_be_made():
    """Its error reaches the callers; once it can be made, it works."""
    made: list[Cluster] = []

    def make() -> Cluster:
        if not made:
            made.append(Cluster())
            raise OSError("no cluster")
        return made[0]

    with UBatch(4, 0, handler=echo, executor=make) as batch:
        with pytest.raises(OSError, match="no cluster"):
            batch.ubatch(1)
        assert batch.ubatch(1) == 1


def test_an_executor_that_was_shut_down_by_its_owner():
    """It is not replaced: the callers are told."""
    executor = ThreadPoolExecutor(1)
    with UBatch(4, 0, handler=echo, executor=executor) as batch:
        assert batch.ubatch(1) == 1
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            batch.ubatch(1)


def test_an_executor_that_breaks_and_is_of_no_known_kind():
    """Each batch fails with `WorkerDied` as long as it is broken; its owner may mend it."""

    class Breaking(Cluster):
        broken = True

        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self.broken:
                raise BrokenProcessPool("broken")
            return super().submit(function, *args, **kwargs)

    executor = Breaking()
    with UBatch(4, 0, handler=echo, executor=executor) as batch:
        for _ in range(2):
            with pytest.raises(WorkerDied, match="broken"):
                batch.ubatch(1)
        executor.broken = False
        assert batch.ubatch(1) == 1


def test_a_coroutine_function_needs_no_executor():
    async def coroutine(items: list[Any]) -> list[Any]:
        return items

    with pytest.raises(TypeError, match="not in executor"):
        aio.UBatch(handler=coroutine, executor=Cluster)


@pytest.mark.parametrize(
    "executor",
    [
        lambda: ThreadPoolExecutor(3, "names", print, ("x",)),
        lambda: ProcessPoolExecutor(3, SPAWN, print, ("x",)),
        *([lambda: ProcessPoolExecutor(2, SPAWN, max_tasks_per_child=5)] if sys.version_info >= (3, 11) else []),
    ],
)
def test_the_twin_of_an_executor(executor):
    """It has all the settings that the standard library's classes take, in whichever version of Python."""
    one = executor()
    with one, _twin(one) as other:
        assert type(other) is type(one)
        for name in (
            "max_workers",
            "thread_name_prefix",
            "initializer",
            "initargs",
            "mp_context",
            "max_tasks_per_child",
        ):
            assert hasattr(one, f"_{name}") == hasattr(other, f"_{name}")
            assert getattr(one, f"_{name}", None) == getattr(other, f"_{name}", None), name
    assert _twin(Cluster()) is None


# -- its own batcher, decorators ------------------------------------------------------------------------------


def test_a_handler_in_a_thread_pool_does_not_call_its_own_batcher():
    """It could never be answered; from an event loop neither."""

    def own(items: list[Any]) -> list[Any]:
        with pytest.raises(RuntimeError, match="could run"):
            batch.ubatch(1)
        return items

    with ThreadPoolExecutor(2) as executor, UBatch(4, 0, handler=own, executor=executor) as batch:
        assert batch.ubatch(3) == 3
        assert executor.submit(batch.submit, 4).result(PATIENCE).result(PATIENCE) == 4


@pytest.mark.parametrize("call", ["function", "dynamic function", "method", "dynamic method"])
def test_decorated_functions_and_methods(call):
    """They travel by their names, and run plain there, each item once."""
    owner: Any = far.Model(1000) if "method" in call else far
    decorated = getattr(owner, {"function": "decorated", "method": "plain"}.get(call, "dynamic"))
    function = getattr(decorated, "__func__", decorated)
    function._options["executor"] = processes
    before = 1000 if "method" in call else 0
    try:
        there = decorated.ubatch(1) - 1 - before
        assert there != os.getpid()
        assert decorated.map([1, 2]) == [there + before + 1, there + before + 2]
        if "dynamic" in call:
            assert decorated([1, 2]) == [there + before + 1, there + before + 2]
        else:
            assert decorated([1]) == [os.getpid() + before + 1]
    finally:
        decorated.batcher.stop()
        if owner is far:
            del decorated.__dict__[decorated._key]


def test_an_option_of_the_decorators():
    gate = Gate(is_open=True)

    @dynamically(executor=lambda: ThreadPoolExecutor(1, "elsewhere"), workers=2)
    def call(items: list[Any]) -> list[Any]:
        gate(items)
        return [threading.current_thread().name for _ in items]

    assert call(1).startswith("elsewhere")
    assert call.batcher.workers == 2
    call.batcher.stop()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("elsewhere")])


# -- stopping, forgetting, forking ----------------------------------------------------------------------------


def test_stop_takes_what_was_made_with_it():
    """When `stop` returns no process is left, also if the worker had gone before; running batches finish first."""
    batch: UBatch[Any, Any] = UBatch(1, 0, handler=far.fate, executor=processes, workers=2)
    futures = [batch.submit("slow") for _ in range(6)]
    assert batch.stop()
    assert results(futures) == ["slow"] * 6
    assert multiprocessing.active_children() == []


def test_stop_from_the_handler_lets_the_queue_finish():
    """What was made is shut down by the last worker, not by who asks for the end."""
    inside = threading.Event()

    def handler(items: list[Any]) -> list[Any]:
        if items == ["stop"]:
            assert inside.wait(PATIENCE)
            return [batch.stop()]
        return items

    batch: UBatch[Any, Any] = UBatch(1, 0, handler=handler, executor=lambda: ThreadPoolExecutor(2, "made"))
    futures = [batch.submit("stop"), batch.submit(1), batch.submit(2)]
    inside.set()
    assert results(futures) == [False, 1, 2]
    assert batch.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("made")]


def test_a_forgotten_batcher_lets_its_processes_go():
    batch: UBatch[Any, Any] = UBatch(1, 0, handler=far.double, executor=processes)
    assert batch.ubatch(1) == 2
    del batch
    gc.collect()
    eventually(lambda: gc.collect() is not None and multiprocessing.active_children() == [])


def test_giving_up_on_a_batch_in_an_executor():
    """Its callers get `Stopped` when `stop` runs out of time; after `start` others are served."""
    gate = Gate()
    other = Gate(is_open=True)
    batch: UBatch[Any, Any] = UBatch(
        1, 0, handler=lambda items: (gate if items == [1] else other)(items), executor=lambda: ThreadPoolExecutor(1)
    )
    future = batch.submit(1)
    gate.wait_for_batch()
    assert batch.stop(timeout=0.01) is False
    assert isinstance(future.exception(PATIENCE), Stopped)
    assert batch.start().ubatch(2) == 2  # in another executor: the only thread of the first is still at it
    assert batch.stop()
    gate.opened.set()


class Stuck(ThreadPoolExecutor):
    """Its `shutdown` waits until it is let go on."""

    opened: threading.Event

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        assert not wait or self.opened.wait(2 * PATIENCE)
        super().shutdown(wait, cancel_futures=cancel_futures)


@pytest.mark.parametrize("kind", ["threads", "tasks"])
@pytest.mark.parametrize("where", ["making", "shutting down"])
def test_giving_up_on_an_executor(kind, where):
    """One that does not get made, or shut down, holds up neither a `stop` with a timeout nor what comes after it."""
    opened = threading.Event()
    made: list[Stuck] = []

    def make() -> Executor:
        executor = Stuck(1, "stuck")
        executor.opened = opened
        made.append(executor)
        if where == "making" and len(made) == 1:
            assert opened.wait(2 * PATIENCE)
        return executor

    def threads() -> None:
        batch: UBatch[Any, Any] = UBatch(1, 0, handler=echo, executor=make, workers=2)
        future = batch.submit(1)
        eventually(lambda: made)
        if where == "shutting down":
            assert future.result(PATIENCE) == 1
        assert not in_thread(batch.stop, True, 0.05).result(PATIENCE)
        in_thread(batch.stop, True, 0.05).result(PATIENCE)
        assert batch.start().submit(2).result(PATIENCE) == 2
        assert future.done()
        opened.set()
        assert in_thread(batch.stop).result(PATIENCE) is True

    async def tasks() -> None:
        batch: aio.UBatch[Any, Any] = aio.UBatch(1, 0, handler=echo, executor=make, workers=2)
        future = batch.submit(1)
        await asyncio.sleep(0.02)
        if where == "shutting down":
            assert await future == 1
        await batch.stop(timeout=0.02)
        await batch.stop(timeout=0.02)
        assert await batch.start().ubatch(2) == 2
        assert future.done() and (future.exception() is None) == (where == "shutting down")
        opened.set()
        assert await batch.stop() is True

    try:
        if kind == "threads":
            threads()
        else:
            in_thread(asyncio.run, tasks()).result(PATIENCE)
    finally:
        opened.set()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("stuck")])


def test_what_processes_did_is_not_seen_to_go_down():
    """Wherever a look comes upon the dropping of an executor that was made, its numbers are the same."""
    with UBatch(4, 0, handler=echo, executor=lambda: ProcessExecutor(1)) as batch:
        batch.map(range(8))
        place, seen = batch._place, set()
        calls = place.stats.calls

        def trace(frame: Any, event: str, arg: object) -> Any:
            if frame.f_code is Renewable._drop.__code__:
                frame.f_trace_opcodes = True
                seen.add(place.stats.calls)
                return trace
            return None

        sys.settrace(trace)
        try:
            place.close(True)
        finally:
            sys.settrace(None)
        assert seen == {calls} == {place.stats.calls}
        batch.map(range(8))
        assert place.stats.calls == 2 * calls


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_numbers_of_an_executor_that_was_used_before_in_a_forked_child(run_python):
    """It counts anew there, and so does its batcher."""
    printed = run_python(
        """
        import os, sys, warnings
        from ubatch import UBatch
        from ubatch.processes import ProcessExecutor
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads

        def echo(items):
            return items

        if __name__ == "__main__":
            with ProcessExecutor(1) as executor:
                UBatch(4, 0, handler=echo, executor=executor).map(range(8))
                with UBatch(4, 0, handler=echo, executor=executor) as batch:
                    print(batch.stats.processes.calls, batch.map(range(4)), batch.stats.processes.calls, flush=True)
                    pid = os.fork()
                    if not pid:
                        print(batch.map(range(8)), batch.stats.processes.calls, flush=True)
                        executor.kill_workers()
                        os._exit(0)
                    assert os.waitpid(pid, 0)[1] == 0
        """
    )
    assert printed.splitlines() == ["0 [0, 1, 2, 3] 1", "[0, 1, 2, 3, 4, 5, 6, 7] 2"]


FORKS = """
    import logging, os, sys, time, warnings
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from ubatch import UBatch
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads

    def double(items):
        return [2 * item for item in items]

    class Other(ThreadPoolExecutor):
        pass

    given = {given}
    batch = UBatch(4, 0, handler=double, executor=given, workers=2)
    assert batch.map(range(20)) == [2 * n for n in range(20)]
    pid = os.fork()
    if not pid:
        try:
            if type(given) is Other:
                logging.disable()  # the worker tells of the error, if the child lives for long enough
                try:
                    batch.ubatch(1)
                except RuntimeError as error:
                    assert "forked child" in str(error), error
                    os._exit(0)
                os._exit(2)
            assert batch.map(range(20)) == [2 * n for n in range(20)]
            assert batch.stop()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert batch.map(range(20)) == [2 * n for n in range(20)]
    assert batch.stop()
    if not isinstance(given, type(double)):
        given.shutdown()
"""


@pytest.mark.parametrize(
    "given",
    ["ThreadPoolExecutor(2)", "ProcessPoolExecutor(2)", "lambda: ProcessPoolExecutor(2)", "Other(2)"],
)
def test_a_fork(run_python, given):
    """The child has an executor of its own at once, or is told what to do; the parent is unaffected."""
    run_python(FORKS.format(given=given), stderr=None if "Other" in given else "")  # what fails is warned of


def test_exit_with_an_executor(run_python):
    """Nothing is written at the interpreter's exit, and it does not wait for what is queued."""
    run_python(
        """
        import time
        from concurrent.futures import ProcessPoolExecutor
        from ubatch import UBatch

        def slow(items):
            time.sleep(0.05)
            return items

        if __name__ == "__main__":
            batch = UBatch(1, 0, handler=slow, executor=lambda: ProcessPoolExecutor(1), workers=2)
            print(batch.ubatch(1))
            futures = [batch.submit(n) for n in range(100)]
        """,
        options=["-W", "ignore::DeprecationWarning"],
    )


# -- all at once ----------------------------------------------------------------------------------------------


def test_processes_are_killed_again_and_again(seed):
    """Every item resolves, with its result or `WorkerDied`; nothing is left."""
    import random

    rng = random.Random(seed)
    with UBatch(4, 0, handler=far.whereabouts, executor=processes, workers=2) as batch:
        batch.ubatch(0)
        ended = threading.Event()

        def kill() -> None:
            for _ in range(4):
                time.sleep(rng.random() * 0.1)
                executor: Any = batch._place._executor  # type: ignore[union-attr]
                for pid in list(getattr(executor, "_processes", None) or ()):
                    os.kill(pid, signal.SIGKILL)
            ended.set()

        def work() -> int:
            served = 0
            while not ended.is_set() or not served:
                try:
                    assert batch.ubatch(1) != os.getpid()
                    served += 1
                except WorkerDied:
                    pass
            return served

        killing = in_thread(kill)
        callers = [in_thread(work) for _ in range(4)]
        killing.result(30)
        assert all(caller.result(30) for caller in callers)
        assert batch.ubatch(1)
    assert multiprocessing.active_children() == []
