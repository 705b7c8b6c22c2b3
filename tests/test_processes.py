"""`ProcessExecutor`: functions in child processes, arrays in shared memory; how children start, and die."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, wait
from functools import partial
from pathlib import Path
from typing import Any

import aliens
import far
import numpy
import pytest
from gates import PATIENCE, eventually

from ubatch import BadBatchOutputSize, HandlerFailed, UBatch, WorkerDied, _backoff, _children, _crew
from ubatch._executor import Executed, Renewable
from ubatch._parcels import Unreadable
from ubatch._piecewise import Piecewise
from ubatch._records import logged
from ubatch._resident import Resident
from ubatch.processes import ProcessExecutor, RemoteTraceback

pytestmark = pytest.mark.usefixtures("_processes_may_be_spawned")

METHODS = ("spawn", "forkserver", "fork")


@pytest.fixture
def make() -> Iterator[Callable[..., ProcessExecutor]]:
    """Makes executors that are shut down in the end."""
    made: list[ProcessExecutor] = []

    def make(max_workers: int = 1, **options: Any) -> ProcessExecutor:
        made.append(ProcessExecutor(max_workers, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown()


@pytest.fixture(scope="session")
def _forkserver() -> None:
    """The process that multiprocessing starts once, and keeps."""
    from multiprocessing import forkserver

    forkserver.ensure_running()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# -- an executor ----------------------------------------------------------------------------------------------


def test_it_is_an_executor(make):
    executor = make(2)
    assert isinstance(executor, Executor)
    future = executor.submit(aliens.add, 1, b=2)
    assert future.result(PATIENCE) == 3
    assert executor.call(aliens.add, "a", "b") == "ab"
    assert list(executor.map(aliens.add, range(20), range(20))) == [2 * n for n in range(20)]
    with pytest.raises(ValueError, match="no") as caught:
        executor.submit(aliens.fail).result(PATIENCE)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail" in str(caught.value.__cause__)
    assert "_child.py" not in str(caught.value.__cause__)
    assert executor.call(aliens.pid) != os.getpid()


def test_as_many_calls_run_at_once_as_there_are_processes(make):
    executor = make(2).start()
    assert len({child.pid for child in executor.stats.children}) == 2
    futures = [executor.submit(aliens.sleep, 0.2) for _ in range(4)]
    assert len({future.result(PATIENCE) for future in futures}) == 2


def test_threads_that_are_too_many_wait_for_their_turn(make):
    executor = make(1)
    got: list[int] = []
    threads = [threading.Thread(target=lambda n=n: got.append(executor.call(aliens.add, n))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(got) == list(range(12))


def test_shutting_down(make):
    executor = make(1)
    first = executor.submit(aliens.sleep, 0.1)
    second = executor.submit(aliens.add, 1)
    executor.shutdown()
    assert first.done()
    assert second.result(0) == 1
    for use in (executor.submit, executor.call):
        with pytest.raises(RuntimeError):
            use(aliens.add, 1)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.start()
    assert not any(child.alive or child.pid for child in executor.stats.children)
    executor.shutdown()


def test_shutting_down_without_waiting(make):
    """What was submitted is done; then the process ends."""
    executor = make(1)
    futures = [executor.submit(aliens.sleep, 0.05) for _ in range(3)]
    executor.shutdown(wait=False)
    pids = {future.result(PATIENCE) for future in futures}
    eventually(lambda: all(map(is_gone, pids)) or _crew.settle())


def test_shutting_down_in_a_callback(make):
    """It cannot wait there; what was submitted is done all the same."""
    executor = make(1)
    futures = [executor.submit(aliens.sleep, 0.02) for _ in range(5)]
    futures[0].add_done_callback(lambda _: executor.shutdown())
    assert len({future.result(PATIENCE) for future in futures}) == 1
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(aliens.pid)


def test_cancelling(make):
    executor = make(1)
    running = executor.submit(aliens.sleep, 0.2)
    eventually(running.running)
    waiting = [executor.submit(aliens.sleep, 0.2) for _ in range(3)]
    executor.shutdown(cancel_futures=True)
    assert running.result(PATIENCE)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(PATIENCE)


def test_with(make):
    with make(1) as executor:
        pid = executor.call(aliens.pid)
    assert is_gone(pid)


def test_killing_workers(make):
    """Python 3.14's `ProcessPoolExecutor` has it too."""
    executor = make(1)
    future = executor.submit(aliens.sleep, 60)
    eventually(lambda: executor.stats.children[0].calls)
    pid = executor.stats.children[0].pid
    executor.kill_workers()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        future.result(PATIENCE)
    eventually(lambda: is_gone(pid))


def test_a_forgotten_one_ends_its_processes():
    executor = ProcessExecutor(1)
    pid = executor.call(aliens.pid)
    del executor
    eventually(lambda: is_gone(pid) or _crew.settle())


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_workers": 0}, ValueError, "workers.*0"),
        ({"max_workers": 1.5}, TypeError, "workers.*1.5"),
        ({"start_method": "telepathy"}, ValueError, "spawn.*telepathy"),
        ({"initializer": 3}, TypeError, "initializer.*3"),
        ({"start_timeout": 0}, ValueError, "start_timeout.*0"),
        ({"start_timeout": None}, TypeError, "start_timeout.*None"),
        ({"call_timeout": -1}, ValueError, "call_timeout.*-1"),
        ({"call_timeout": "1"}, TypeError, "call_timeout.*'1'"),
        ({"call_timeout": float("inf")}, ValueError, "call_timeout.*inf"),
        ({"retries": -1}, ValueError, "retries.*-1"),
        ({"retries": 0.5}, TypeError, "retries.*0.5"),
        ({"writable": 1}, TypeError, "writable.*1"),
        ({"stacked": None}, TypeError, "stacked.*None"),
    ],
)
def test_wrong_options_are_named(options, error, said):
    with pytest.raises(error, match=said):
        ProcessExecutor(**options)


def test_repr(make):
    assert repr(make(3, name="decode")) == "<ProcessExecutor 'decode' max_workers=3>"


# -- arrays ---------------------------------------------------------------------------------------------------


def test_arrays_travel_through_shared_memory(make):
    executor = make(1)
    given = numpy.random.default_rng(1).random((300, 300))
    got = executor.call(aliens.same, given)
    numpy.testing.assert_array_equal(got, given)
    stats = executor.stats
    assert (stats.copied, stats.passed) == (1, 1), "in by a copy; out, as it is where it was, without one"
    assert stats.sent > given.nbytes
    again = executor.call(aliens.same, got)
    stats = executor.stats
    assert (stats.copied, stats.passed) == (1, 3), "it lies there already"
    assert numpy.shares_memory(again, got)


def test_an_array_that_a_child_makes(make):
    """Out by one copy; also if it is larger than what was expected."""
    executor = make(1)
    for size in (50_000, 100_000, 1000, 10, 1_000_000):
        got = executor.call(aliens.add, numpy.arange(size), 1)
        numpy.testing.assert_array_equal(got, numpy.arange(size) + 1)
        got[0] = 5  # it is ours


def test_between_executors(make):
    """One's result goes to the other's child without being copied."""
    one, other = make(1), make(1)
    got = one.call(aliens.add, numpy.ones(50_000), 1)
    assert other.call(aliens.sums, [got]) == [100_000.0]
    assert (other.stats.copied, other.stats.passed) == (0, 1)


def test_arrays_are_read_only_there(make):
    executor = make(1)
    array = numpy.zeros(50_000)
    assert executor.call(aliens.is_writable, array) is False
    with pytest.raises(ValueError, match="read-only"):
        executor.call(aliens.write, array)
    assert executor.call(aliens.is_writable, memoryview(bytearray(100_000))) is False


def test_unless_asked_for(make):
    """Then each call has a copy of its own."""
    executor = make(1, writable=True)
    array = numpy.zeros(50_000)
    assert executor.call(aliens.write, array) == 50_000
    assert array.sum() == 0
    mine = executor.call(aliens.same, array)
    assert executor.call(aliens.write, mine) == 50_000
    assert mine.sum() == 0
    assert executor.stats.passed == 0, "nor does what it returned stay where it can still be written to"
    mine.flags.writeable = False
    assert executor.call(aliens.write, mine) == 50_000


def test_what_a_child_keeps_is_not_overwritten(make):
    executor = make(1)
    for n in range(6):
        executor.call(aliens.keep, numpy.full(50_000, float(n)))
    for n in range(20):
        executor.call(aliens.sums, [numpy.full(50_000, 1000.0 + n)])
    assert executor.call(aliens.let_go) == [50_000.0 * n for n in range(6)]


def test_results_that_are_kept_are_not_overwritten(make):
    """However many; from some number on they are copied out, as blocks take descriptors."""
    executor = make(1)
    kept = [executor.call(aliens.add, numpy.full(20_000, n), 1) for n in range(300)]
    assert all((array == n + 1).all() for n, array in enumerate(kept))
    assert len(os.listdir("/proc/self/fd")) < 500


def test_stacked(make):
    """An array step: what is stacked is copied once, into shared memory."""
    executor = make(1, stacked=True)
    rows = [numpy.full((100, 100), n, dtype="f4") for n in range(8)]
    got = executor.call(aliens.sums_of_rows, rows)
    assert got.tolist() == [10_000.0 * n for n in range(8)]
    assert (executor.stats.copied, executor.stats.passed) == (8, 0)
    assert executor.call(aliens.sums_of_rows, [numpy.ones(3)] * 2).tolist() == [3, 3]


def test_an_array_that_steps_pass_on_is_never_copied_again(make):
    steps = [make(1, stacked=True) for _ in range(3)]
    rows: Any = [numpy.full((100, 100), n, dtype="f4") for n in range(8)]
    for step in steps:
        rows = list(step.call(aliens.same, rows))
    assert [step.stats.copied for step in steps] == [8, 0, 0]
    assert [step.stats.passed for step in steps] == [1, 2, 2]
    assert [row[3, 3] for row in rows] == list(range(8))


def test_stacked_and_writable(make):
    executor = make(1, stacked=True, writable=True)
    rows = [numpy.zeros((100, 100)) for _ in range(3)]
    assert executor.call(aliens.write, rows) == 30_000
    assert not any(row.any() for row in rows)


@pytest.mark.parametrize("size", [10, 1000, 20_000, 100_000, 5_000_000])
def test_bytes(make, size):
    executor = make(1)
    raw = os.urandom(size)
    for kind in (bytes, bytearray):
        got = executor.call(aliens.same, [kind(raw)])[0]
        assert type(got) is kind
        assert got == raw
    assert executor.call(len, memoryview(raw)) == size


def test_tensors(run_python):
    """In a process of its own, as torch keeps threads."""
    pytest.importorskip("torch")
    run_python(
        f"""
        import sys
        sys.path.insert(0, {str(Path(aliens.__file__).parent)!r})
        import aliens, torch
        from ubatch.processes import ProcessExecutor

        if __name__ == "__main__":
            with ProcessExecutor(1) as executor:
                numbers = torch.arange(60_000)
                for given in numbers.float(), numbers.bfloat16().reshape(2, 3, -1), torch.ones(3), numbers[::2]:
                    got = executor.call(aliens.same, [given, given])
                    assert torch.equal(got[0], given) and got[0].dtype == given.dtype
                assert executor.stats.copied == 2, executor.stats
        """
    )


# -- starting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_start_methods(make, run_python, method):
    """In a process of its own, as `forkserver` leaves one running, and `fork` is for those without threads."""
    run_python(
        f"""
        import os, sys
        sys.path.insert(0, {str(Path(aliens.__file__).parent)!r})
        import aliens, numpy
        from ubatch._resident import Resident
        from ubatch.processes import ProcessExecutor

        if __name__ == "__main__":
            model = Resident(aliens.make_model)
            with ProcessExecutor(2, start_method={method!r}, initializer=model.initializer()).start() as executor:
                assert executor.call(model, [1])[0][0] == 101
                array = numpy.arange(50_000.0)
                assert (executor.call(aliens.same, array) == array).all()
                assert executor.call(aliens.pid) != os.getpid()
                try:
                    executor.call(aliens.die, "killed")
                except RuntimeError as error:
                    assert {"" if method == "forkserver" else "SIGKILL"!r} in str(error), error
                assert executor.call(model, [2])[0][0] == 102
        """
    )


def test_forked_ones_need_not_be_sent(run_python):
    run_python(
        """
        from ubatch.processes import ProcessExecutor
        seen = []
        with ProcessExecutor(1, start_method="fork", initializer=lambda: seen.append(1)).start() as executor:
            assert executor.call(eval, "__import__('__main__').seen") == [1]
        """
    )


def test_a_handler_that_lives_in_the_children(make):
    """It is made once in each, and not here."""
    model = Resident(aliens.Model)
    executor = make(2, initializer=model.initializer()).start()
    with pytest.raises(RuntimeError, match="Model lives in other processes"):
        model([1])
    results = [executor.call(model, [n])[0] for n in range(10)]
    assert [value for value, _ in results] == list(range(10))
    assert {pid for _, pid in results} <= {child.pid for child in executor.stats.children}


@pytest.mark.parametrize(
    ("handler", "makes"),
    [
        (aliens.Model, True),
        (aliens.make_model, True),
        (partial(aliens.Lens, "path"), True),
        (partial(partial(aliens.Lens, "path"), device="gpu"), True),
        (partial(max, 3), False),
        (lambda *, path="x": aliens.Model(), True),
        (aliens.sums, False),
        (aliens.Model(3), False),
        (len, False),
        (lambda *items: items, False),
        (lambda items=(): items, False),
    ],
)
def test_what_makes_a_handler(handler, makes):
    assert (Resident(handler).here() is not handler) is makes


def test_what_makes_none_is_named():
    with pytest.raises(TypeError, match=r"make_nothing must make a handler.*None"):
        Resident(aliens.make_nothing).here()
    with pytest.raises(TypeError, match=r"callable.*3"):
        Resident(3)  # type: ignore[arg-type]


def test_what_is_raised_as_a_child_starts_is_raised_by_start(make):
    executor = make(2, initializer=aliens.load_badly)
    with pytest.raises(FileNotFoundError, match=r"model\.bin") as caught:
        executor.start()
    assert "in load_badly" in str(caught.value.__cause__)
    assert not any(child.alive or child.pid for child in executor.stats.children)


def test_one_that_exits_as_it_starts(make):
    with pytest.raises(WorkerDied, match="exited with code 7, before it was ready"):
        make(2, initializer=aliens.load_badly, initargs=("exit",)).start()


def test_one_that_hangs_as_it_starts(make):
    executor = make(2, initializer=aliens.load_badly, initargs=("hang",))
    with pytest.raises(TimeoutError, match=r"not ready within 0.5 s"):
        executor.start(timeout=0.5)
    assert not any(child.alive or child.pid for child in executor.stats.children)


def test_what_cannot_be_sent_is_named(make):
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"lambda"):
        make(1, initializer=lambda: None).start()


def test_large_settings_arrive(make):
    executor = make(1, initializer=aliens.keep, initargs=(numpy.ones(3_000_000),))
    assert executor.call(aliens.let_go) == [3_000_000.0]


def test_children_start_side_by_side(make):
    """Each has to wait for the other."""
    executor = make(2, initializer=aliens.sleep, initargs=(0.5,))
    began = time.monotonic()
    executor.start()
    assert time.monotonic() - began < 60
    assert len(executor.stats.children) == 2


def test_starting_twice_does_nothing(make):
    executor = make(1).start()
    pid = executor.call(aliens.pid)
    assert executor.start() is executor
    assert executor.call(aliens.pid) == pid


def test_a_child_that_cannot_start_is_put_off(make, tmp_path, monkeypatch):
    """Calls fail at once, with the reason, until the next attempt is due; which then may succeed."""
    monkeypatch.setattr(_backoff, "FIRST_PAUSE", 0.3)
    executor = make(1, initializer=aliens.load_after, initargs=(str(tmp_path / "model"),))
    with pytest.raises(WorkerDied, match="could not start: FileNotFoundError") as caught:
        executor.call(aliens.pid)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(WorkerDied, match=r"FileNotFoundError.*the next attempt is due in 0"):
        executor.call(aliens.pid)
    (tmp_path / "model").touch()
    eventually(lambda: time.monotonic() > executor._crew._backoff.until)
    assert executor.call(aliens.pid)
    assert executor._crew._backoff.failures == 0


# -- dying ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", "killed by SIGKILL"),
        ("segfault", "killed by SIGSEGV"),
        ("os._exit", "exited with code 3"),
        ("sys.exit", "exited with code 4"),
    ],
)
def test_a_call_says_how_its_process_ended(make, how, said):
    """It alone fails; the process is replaced."""
    executor = make(1)
    before = executor.call(aliens.pid)
    with pytest.raises(WorkerDied, match=said):
        executor.call(aliens.die, how)
    assert executor.call(aliens.pid) != before
    assert executor.stats.died == 1


@pytest.mark.parametrize("reason", ["killed", "cannot start"])
def test_an_error_names_the_batcher_whose_call_it_was(make, tmp_path, reason):
    """Several may share an executor. Only what is called directly has the executor's own name."""
    options = {"initializer": aliens.load_after, "initargs": (str(tmp_path / "model"),)} if reason != "killed" else {}
    executor = make(1, name="mine", **options)
    with (
        UBatch(handler=far.fate, executor=executor, name="one") as one,
        UBatch(handler=far.fate, executor=executor, name="other") as other,
    ):
        for call, name in {one.ubatch: "one", other.ubatch: "other"}.items():
            with pytest.raises(WorkerDied, match=f"^the worker of '{name}' died: ") as caught:
                call("killed")
            assert caught.value.name == name
    for direct in (executor.call, lambda *args: executor.submit(*args).result(PATIENCE)):
        with pytest.raises(WorkerDied, match=r"^the worker of 'mine' died: "):
            direct(far.fate, ["killed"])


def test_one_that_hangs_is_killed(make):
    executor = make(1, call_timeout=0.3)
    pid = executor.call(aliens.pid)
    with pytest.raises(WorkerDied, match=r"hung: there was no answer within 0.3 s"):
        executor.call(aliens.sleep, 60)
    assert is_gone(pid)
    assert executor.call(aliens.pid) != pid


def test_one_that_is_stopped_is_killed_too(make):
    executor = make(1, call_timeout=0.3)
    os.kill(executor.call(aliens.pid), signal.SIGSTOP)
    with pytest.raises(WorkerDied, match="hung"):
        executor.call(aliens.pid)


def test_one_that_died_while_it_idled_fails_nobody(make):
    executor = make(1)
    pid = executor.call(aliens.pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not executor.stats.children[0].alive)
    assert executor.call(aliens.pid) != pid
    assert executor.stats.died == 1


def test_one_that_died_after_its_answer_fails_nobody_and_is_counted(make, monkeypatch):
    answered = _children.Child.call

    def call_and_kill(self, *args):
        answer = answered(self, *args)
        monkeypatch.undo()
        os.kill(self.pid, signal.SIGKILL)
        eventually(lambda: not self.alive())
        return answer

    executor = make(1).start()
    monkeypatch.setattr(_children.Child, "call", call_and_kill)
    pid = executor.call(aliens.pid)
    assert executor.stats.died == 1
    assert executor.call(aliens.pid) != pid
    assert executor.stats.died == 1


def test_retries(make, tmp_path):
    executor = make(1, retries=1)
    assert executor.call(aliens.die_once, str(tmp_path / "died")) == "survived"
    with pytest.raises(WorkerDied, match="code 3"):
        executor.call(aliens.die, "os._exit")
    assert executor.stats.died == 3


def test_a_retry_gets_what_the_first_one_got(make, tmp_path):
    """Also where that one has written to it."""
    for stacked in (False, True):
        executor = make(1, retries=1, writable=True, stacked=stacked)
        given = [numpy.zeros((50, 50)), numpy.zeros((50, 50))]
        assert executor.call(aliens.write_and_die_once, given, str(tmp_path / f"died {stacked}")) == [0.0, 0.0]


def test_out_of_memory(make):
    """Of Python's own: an error like others."""
    with pytest.raises(MemoryError):
        make(1).call(aliens.fail, "memory")


def test_an_exception_that_cannot_travel(make):
    executor = make(1)
    pid = executor.call(aliens.pid)
    with pytest.raises(RuntimeError, match="Odd: a: b"):
        executor.call(aliens.fail, "odd")
    assert executor.call(aliens.pid) == pid


def test_what_cannot_travel(make):
    """Neither there nor back: that call fails."""
    executor = make(1)
    pid = executor.call(aliens.pid)
    with pytest.raises(Exception, match=r"pickle|local object"):
        executor.call(aliens.same, lambda: None)
    with pytest.raises(Exception, match=r"pickle|local object"):
        executor.call(aliens.no_result)
    assert executor.call(aliens.pid) == pid


def test_somebody_else_waits_for_our_children(make):
    """As a server does that reaps whatever it finds."""
    executor = make(1)
    pid = executor.call(aliens.pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not executor.stats.children[0].alive
    assert executor.call(aliens.pid) != pid


def test_one_that_cannot_start_takes_no_calls(make, tmp_path):
    """Those that can serve all of them."""
    executor = make(3, initializer=aliens.load_first, initargs=(str(tmp_path / "first"),))
    assert executor.call(aliens.pid)
    for _ in range(20):
        futures = [executor.submit(aliens.sleep, 0.002) for _ in range(6)]
        assert len({future.result(PATIENCE) for future in futures}) == 1
    assert executor._crew._backoff.failures >= 1


def test_a_retry_goes_to_another_child(make):
    """It does not wait for the successor of the one that died."""
    executor = make(2, retries=1, initializer=aliens.sleep, initargs=(0.5,)).start()
    pids = {child.pid for child in executor.stats.children}
    with pytest.raises(WorkerDied):
        executor.call(aliens.die, "killed")
    assert executor.stats.died == 2
    assert all(map(is_gone, pids))


def test_an_error_in_the_middle_of_a_call_ends_its_child(make, monkeypatch):
    """There may be no descriptor left for the room that it asks for."""
    executor = make(1)
    pid = executor.call(aliens.pid)
    calls = iter([OSError(24, "too many open files")])
    take = _children.pool.take

    def fail(size: int) -> Any:
        for error in calls:
            raise error
        return take(size)

    monkeypatch.setattr(_children.pool, "take", fail)
    with pytest.raises(OSError, match="too many open files"):
        executor.call(numpy.ones, 100_000)
    assert is_gone(pid)
    assert executor.call(aliens.pid) != pid


@pytest.mark.parametrize("forks", [1, 3])
def test_a_function_that_forks(make, forks):
    """What it leaves behind answers nothing, and does not hide that the child died."""
    executor = make(1)
    executor.call(aliens.fork, forks, 0.0)
    assert [executor.call(aliens.add, n) for n in range(3)] == [0, 1, 2]
    pid = executor.call(aliens.fork, forks, 3.0)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not executor.stats.children[0].alive)
    began = time.monotonic()
    assert executor.call(aliens.pid) != pid
    executor.call(aliens.fork, forks, 3.0)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        executor.call(aliens.die, "killed")
    assert time.monotonic() - began < 60


def test_killed_workers_are_not_replaced(make):
    executor = make(1, retries=3)
    future = executor.submit(aliens.sleep, 60)
    eventually(lambda: executor.stats.children[0].calls)
    executor.kill_workers()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        future.result(PATIENCE)
    assert not any(child.pid for child in executor.stats.children)


def test_a_child_may_keep_more_than_there_are_descriptors(make):
    """From some number on it gets copies of its own."""
    executor = make(1)
    for n in range(700):
        executor.call(aliens.keep, numpy.full(2_000, float(n)))
    assert executor.call(aliens.let_go) == [2_000.0 * n for n in range(700)]


def test_a_crowd(make):
    """What waits for a child takes neither memory nor descriptors yet."""
    executor = make(1)
    got: list[float] = []
    rows = [numpy.full(3_000, n) for n in range(400)]
    threads = [threading.Thread(target=lambda row=row: got.extend(executor.call(aliens.sums, [row]))) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == [3_000.0 * n for n in range(400)]


def test_shutting_down_waits_for_calls(make):
    executor = make(1).start()
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(executor.call(aliens.sleep, 0.3)))
    thread.start()
    eventually(lambda: executor.stats.children[0].calls)
    executor.shutdown()
    thread.join(PATIENCE)
    assert is_gone(got[0])


def test_kept_errors_keep_no_memory(make):
    executor = make(1)
    kept: list[BaseException] = []
    for _ in range(5):
        with pytest.raises(WorkerDied) as caught:
            executor.call(aliens.die_with, numpy.ones(50_000))
        kept.append(caught.value)
    assert executor.call(aliens.pid)
    assert executor.stats.blocks < 3 * 524_288


@pytest.mark.stress
@pytest.mark.parametrize("retries", [0, 1])
def test_children_are_killed_at_random(make, seed, retries):
    """Every call has its result or `WorkerDied`, and no other's result."""
    dice = random.Random(seed)
    executor = make(2, retries=retries).start()
    done = threading.Event()
    wrong: list[str] = []
    outcomes = {"right": 0, "died": 0}

    def call(number: int) -> None:
        mine = random.Random(seed + number)
        while not done.is_set():
            value = mine.randrange(1000)
            array = numpy.full(mine.choice((8, 3000, 30_000)), value)
            try:
                got = executor.call(aliens.add, array, 1)
            except WorkerDied as error:
                outcomes["died"] += "could not start" not in str(error)
                time.sleep(0.01)
            else:
                outcomes["right"] += 1
                if not (got == value + 1).all() or len(got) != len(array):
                    wrong.append(f"{got[:4]} instead of {value + 1}")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        served = outcomes["right"] + dice.randrange(2, 20)
        eventually(lambda served=served: outcomes["right"] >= served)
        children = [child.pid for child in executor.stats.children if child.alive]
        if children:
            os.kill(dice.choice(children), dice.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV)))
    done.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert wrong == []
    assert outcomes["died"] <= 20 * (1 + retries), "no more than were killed"
    assert executor.stats.died >= 3


# -- under a batcher ------------------------------------------------------------------------------------------


def test_a_batcher_on_it(make):
    executor = make(2)
    with UBatch(4, 0, handler=aliens.sums, workers=2, executor=executor) as batch:
        assert batch.map([numpy.full(10_000, n) for n in range(40)]) == [10_000.0 * n for n in range(40)]
    assert executor.stats.calls == batch.stats.batches


def test_its_children_die(make):
    with UBatch(4, 0, handler=far.fate, executor=make(1)) as batch:
        assert batch.ubatch("a") == "a"
        with pytest.raises(WorkerDied, match="killed by SIGKILL"):
            batch.ubatch("killed")
        assert batch.map(["b", "c"]) == ["b", "c"]
        with pytest.raises(ValueError, match="error"):
            batch.ubatch("error")


def test_a_batcher_that_makes_one_ends_it():
    made: list[ProcessExecutor] = []

    def factory() -> ProcessExecutor:
        made.append(ProcessExecutor(1))
        return made[-1]

    with UBatch(4, 0, handler=far.whereabouts, executor=factory) as batch:
        pid = batch.ubatch(0)
    assert is_gone(pid)
    with batch:
        assert batch.ubatch(0) != pid
    assert len(made) == 2


def test_a_hung_call_is_ended_with_its_batcher():
    batch: UBatch[float, int] = UBatch(1, 0, handler=far_sleep, executor=lambda: ProcessExecutor(1))
    future = batch.submit(60.0)
    eventually(lambda: batch._place._executor and batch._place._executor.stats.children[0].pid)  # type: ignore[union-attr]
    pid = batch._place._executor.stats.children[0].pid  # type: ignore[union-attr]
    assert batch.stop(timeout=0.2) is False
    with pytest.raises(RuntimeError):
        future.result(PATIENCE)
    eventually(lambda: is_gone(pid) or _crew.settle())


def far_sleep(items: list[float]) -> list[int]:
    return [aliens.sleep(item) for item in items]


def test_what_handlers_log_reaches_the_loggers_here(make, caplog):
    caplog.set_level(logging.INFO)
    with UBatch(4, 0, handler=far.chatty, executor=make(1)) as batch:
        assert batch.ubatch("x") == "x"
        with pytest.raises(KeyError):
            batch.ubatch("raise")
    theirs = [record for record in caplog.records if record.name == "far.model"]
    assert [record.getMessage() for record in theirs] == ["doing x", "cannot do raise"]
    assert all(record.process != os.getpid() for record in theirs)


FACES: dict[str, Callable[..., Any]] = {
    "call": lambda executor, fn, *args: executor.call(fn, *args),
    "submit": lambda executor, fn, *args: executor.submit(fn, *args).result(PATIENCE),
}


@pytest.mark.parametrize("face", FACES)
def test_what_functions_log_reaches_the_loggers_here(make, caplog, capfd, face):
    """However they are called, also if they raise; and nowhere else."""
    caplog.set_level(logging.INFO)
    executor = make(1, initializer=far.chatty, initargs=(["first"],))
    assert FACES[face](executor, far.chatty, ["x"]) == ["x"]
    with pytest.raises(KeyError) as caught:
        FACES[face](executor, far.chatty, ["raise"])
    assert "in chatty" in str(caught.value.__cause__)
    theirs = [record.getMessage() for record in caplog.records if record.name == "far.model"]
    assert theirs == ["doing first", "doing x", "cannot do raise"]
    assert all(record.process != os.getpid() for record in caplog.records)
    assert capfd.readouterr().err == ""


def test_what_functions_return_is_left_as_it_is(make):
    """Exceptions in a sequence are the results of a batch's items only where it comes from a batcher's handler."""
    executor = make(1)
    assert type(executor.call(far.fate, ["error"])) is list
    assert type(executor.call(tuple, [ValueError()])) is tuple
    with pytest.raises(TypeError, match="pickle"):
        executor.call(aliens.names, [1, "lock"])


def test_what_is_done_at_the_start_may_return_anything(make):
    executor = make(1, initializer=threading.Lock)
    assert executor.call(aliens.add, 1) == 1


@pytest.fixture
def odd(make) -> Iterator[Callable[[str], list[logging.LogRecord]]]:
    """What `far.told` logs in a child, as it comes to the loggers here."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("far.odd")
    logger.addHandler(handler)
    executor = make(1)

    def odd(what: str) -> list[logging.LogRecord]:
        records.clear()
        assert executor.call(far.told, what) == what
        return records

    yield odd
    logger.removeHandler(handler)


def test_a_logged_exception_arrives_as_one(odd):
    """The message is the same each time, so that records can be told apart by it; formatters add the traceback."""
    (record,) = odd("exception")
    assert record.getMessage() == "cannot do exception"
    kind, error, traceback = record.exc_info
    assert (kind, error.args, traceback) == (KeyError, ("exception",), None)
    assert record.exc_text.startswith("Traceback")
    assert "in told" in record.exc_text
    text = logging.Formatter().format(record)
    assert text == f"cannot do exception\n{record.exc_text}"


def test_a_logged_exception_that_cannot_be_sent_arrives_as_text(odd):
    (record,) = odd("unpicklable exception")
    assert record.getMessage() == "cannot do unpicklable exception"
    assert record.exc_info is None
    assert record.exc_text.endswith("far.Unpicklable: unpicklable exception")


def test_a_logged_exception_that_cannot_be_read_here_is_left_out(odd):
    """Of its record all else arrives, and so does the call's result."""
    (record,) = odd("local exception")
    assert record.getMessage() == "cannot do local exception"
    assert (record.exc_info, record.user, hasattr(record, "error")) == (None, [7], False)
    assert record.exc_text.endswith("far.Local")


def test_what_is_logged_without_an_exception(odd):
    (record,) = odd("no exception")
    assert logging.Formatter().format(record) == "there is none\nNoneType: None"
    (record,) = odd("stack")
    assert (record.getMessage(), record.exc_info, record.exc_text) == ("here", None, None)
    assert record.stack_info.startswith("Stack (most recent call last)")
    assert logging.Formatter().format(record) == f"here\n{record.stack_info}"


def test_arguments_and_fields_that_cannot_be_sent_lose_no_record(odd):
    (record,) = odd("arguments")
    assert record.getMessage() == "by a name, 100 %"
    (record,) = odd("extra")
    assert record.user == [7]
    assert "lock" in record.lock
    assert "Unreadable" in record.unreadable


def test_levels_of_the_programs_own(odd):
    logging.getLogger("far.odd").setLevel(1)
    try:
        records = odd("level")
    finally:
        logging.getLogger("far.odd").setLevel(logging.NOTSET)
    assert [record.levelno for record in records] == [signal.SIGUSR2 + 90, signal.SIGTERM]


def test_a_record_that_cannot_be_made_is_lost_alone(odd, capfd):
    """As it would be without a child; the child tells of it."""
    assert [record.getMessage() for record in odd("misfit")] == ["fits"]
    assert "Logging error" in capfd.readouterr().err


@pytest.mark.parametrize("face", [*FACES, "batcher"])
def test_levels_are_those_of_the_loggers_here(make, caplog, face):
    """Also of those below the root, and as they are now; after a call the child has its own again."""
    caplog.set_level(logging.WARNING)

    def set_level(level: int, name: str) -> None:
        caplog.set_level(level, name)
        caplog.handler.setLevel(logging.NOTSET)

    executor = make(1)
    names = ["far", "far.loud", "far.quiet", "far.own"]
    executor.call(far.set_levels, **{"far.own": 33})
    with UBatch(8, 0, handler=far.whispers, executor=executor) as batch:

        def heard() -> list[tuple[str, str]]:
            caplog.clear()
            batch.map(names) if face == "batcher" else FACES[face](executor, far.whispers, names)
            return [(record.name, record.levelname) for record in caplog.records]

        assert heard() == [(name, "WARNING") for name in names[:3]]
        set_level(logging.DEBUG, "far.loud")
        set_level(logging.ERROR, "far.quiet")
        set_level(logging.INFO, "far")
        assert heard() == [
            *[("far", level) for level in ("INFO", "WARNING")],
            *[("far.loud", level) for level in ("DEBUG", "INFO", "WARNING")],
        ]
        set_level(logging.NOTSET, "far.quiet")
        assert heard()[-2:] == [("far.quiet", level) for level in ("INFO", "WARNING")]
        for name in ("far", "far.loud"):
            set_level(logging.NOTSET, name)
        assert executor.call(far.levels, *names) == [0, 0, 0, 33]
        assert heard() == [(name, "WARNING") for name in names[:3]]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("propagates", [True, False])
def test_a_forked_child_does_not_handle_what_it_logs_itself(make, capfd, propagates):
    """It has inherited the handlers, which it has again after a call."""
    logger, handler = logging.getLogger("far.odd"), logging.StreamHandler()
    logger.addHandler(handler)
    logger.propagate = propagates
    try:
        executor = make(1, start_method="fork")
        assert executor.call(far.told, "arguments") == "arguments"
        assert capfd.readouterr().err.count("by a name") == 1
        _, records = logged(far.told)("arguments")
        assert len(records) == 1
        assert (logger.handlers, logger.propagate) == ([handler], propagates)
        assert capfd.readouterr().err == ""
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def test_levels_that_a_function_sets_stay(make):
    executor = make(1)
    executor.call(far.set_levels, **{"far.own": logging.DEBUG})
    assert executor.call(far.levels, "far.own") == [logging.DEBUG]


def test_from_an_event_loop(make):
    async def main() -> list[int]:
        with UBatch(8, 0, handler=far.double, executor=make(1)) as batch:
            return list(await asyncio.gather(*(batch.aubatch(n) for n in range(50))))

    assert asyncio.run(main()) == [2 * n for n in range(50)]


def test_one_that_cannot_be_sent_disturbs_nobody(make):
    """Neither on its way in, nor on its way out; nor does an error that cannot be unpickled."""
    items: list[Any] = [1, threading.Lock(), 3, lambda: None, 5]
    with UBatch(8, 10.0, handler=aliens.names, executor=make(1)) as batch:
        futures = [batch.submit(item) for item in [*items, "lock", "odd", 8]]
        errors = [future.exception(PATIENCE) for future in futures]
        assert [future.result() for future in futures if future.exception() is None] == ["int", "int", "int", "int"]
        assert [number for number, error in enumerate(errors) if error is not None] == [1, 3, 5, 6]
        assert "pickle" in str(errors[1])
        assert "lambda" in str(errors[3])
        assert "the result, a lock, cannot be sent" in str(errors[5])
        assert "Odd: a: b" in str(errors[6])
        assert batch.stats.batches == 1


@pytest.mark.parametrize("odd", [lambda: None, "lock"], ids=["item", "result"])
def test_a_memoryview_beside_one_that_cannot_be_sent(make, odd):
    """It is sent as ever: what can be sent is told by the way it is sent."""
    views = [memoryview(b"small"), memoryview(b"large" * 10_000)]
    with UBatch(3, 10.0, handler=aliens.with_locks, executor=make(1)) as batch:
        futures = [batch.submit(item) for item in [*views, odd]]
        assert futures[2].exception(PATIENCE) is not None
        assert [future.result(PATIENCE) for future in futures[:2]] == views


@pytest.mark.parametrize("form", ["list", "tuple", "UserList", "ndarray"])
def test_a_result_that_cannot_be_sent_is_one_callers_error(make, form):
    """In whatever the results come; the reason is its cause."""
    with UBatch(4, 10.0, handler=aliens.as_form, executor=make(1)) as batch:
        futures = [batch.submit(item) for item in [form, "lock", 3, numpy.ones(30_000)]]
        error = futures[1].exception(PATIENCE)
        assert isinstance(error, TypeError)
        assert "the result, a lock, cannot be sent: cannot pickle" in str(error)
        assert isinstance(error.__cause__, TypeError)
        assert futures[0].result() == form
        assert futures[2].result() == 3
        assert futures[3].result().sum() == 30_000


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("form", ["generator", "dict_values", "map", "dict", "0-d ndarray"])
def test_what_is_no_batch_of_results_and_cannot_be_sent(make, form, isolate):
    """It is the same error as of a handler in a thread; nothing is tried again; the reason is told."""
    executor = make(1)
    with UBatch(4, 10.0, handler=aliens.as_form, executor=executor, isolate=isolate) as batch:
        futures = [batch.submit(item) for item in [form, 1, 2, "lock"]]
        errors = [future.exception(PATIENCE) for future in futures]
        assert [type(error) for error in errors] == [BadBatchOutputSize] * 4
        assert f"returned a {form} for a batch of 4 items" in str(errors[0])
        assert isinstance(errors[0].__cause__, RemoteTraceback)
        assert "cannot pickle" in str(errors[0].__cause__)
        assert executor.stats.calls == 1


def test_one_thing_of_all_items_that_cannot_be_sent_says_why(make):
    """It is not for the executor to say how many results it was to have."""
    executed = Executed(aliens.as_form, Renewable(make(1)), "batch", set())
    with pytest.raises(TypeError, match=r"a dict, cannot be sent: cannot pickle .*lock"):
        executed(("dict", "lock"))


def test_all_that_cannot_be_sent(make):
    with UBatch(2, 10.0, handler=aliens.names, executor=make(1)) as batch:
        for error in [batch.submit(threading.Lock()) for _ in range(2)]:
            with pytest.raises(TypeError, match="pickle"):
                error.result(PATIENCE)


# -- what cannot be read where it comes to --------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
def test_an_item_that_cannot_be_read_there_is_one_callers_error(make, isolate):
    """Those beside it are served, by the one call of the handler that there is."""
    executor = make(1)
    items = [numpy.ones(30_000), aliens.Rooted(), memoryview(b"view"), "text", aliens.Rooted()]
    with UBatch(5, 10.0, handler=aliens.noted, executor=executor, isolate=isolate) as batch:
        futures = [batch.submit(item) for item in items]
        for bad in (futures[1], futures[4]):
            error = bad.exception(PATIENCE)
            assert type(error) is TypeError
            assert str(error) == ("the item, a Rooted, cannot be read in the child process: LookupError: not at home")
            assert isinstance(error.__cause__, RemoteTraceback)
            assert "in _rooted" in str(error.__cause__) and "_piecewise" not in str(error.__cause__)
        array, *others = [future.result(PATIENCE) for future in (futures[0], futures[2], futures[3])]
        assert (array.sum(), others) == (30_000, [b"view", "text"])
        assert executor.stats.calls == 3
    assert executor.call(eval, "__import__('aliens').kept") == [3]


def test_whatever_parameter_it_comes_with(make):
    """Each item has something for each of them."""
    with UBatch(3, 10.0, handler=aliens.noted, executor=make(1)) as batch:
        futures = [batch.submit(number, "more", rooted=aliens.Rooted() if number == 1 else None) for number in range(3)]
        with pytest.raises(TypeError, match="the item, a int, a str, a Rooted, cannot be read"):
            futures[1].result(PATIENCE)
        assert [futures[number].result(PATIENCE) for number in (0, 2)] == [0, 2]


def test_a_stacked_item_that_cannot_be_read_there(make):
    """An array of objects is as good as any."""
    good, bad = numpy.array([1, 2], object), numpy.array([1, aliens.Rooted()], object)
    with UBatch(3, 10.0, handler=aliens.sums_of_rows, executor=make(1, stacked=True)) as batch:
        futures = [batch.submit(array) for array in (good, bad, good)]
        with pytest.raises(TypeError, match="the item, a ndarray, cannot be read"):
            futures[1].result(PATIENCE)
        assert [futures[number].result(PATIENCE) for number in (0, 2)] == [3, 3]


def test_all_that_cannot_be_read_there(make):
    executor = make(1)
    with UBatch(2, 10.0, handler=aliens.noted, executor=executor) as batch:
        for future in [batch.submit(aliens.Rooted()) for _ in range(2)]:
            with pytest.raises(TypeError, match="the item, a Rooted"):
                future.result(PATIENCE)
    assert executor.stats.calls == 2


def test_classes_of_a_main_module_that_children_do_not_have(run_python):
    """As with `python -c`, or in a notebook: be it an item's, the handler itself, or what children start with."""
    said = "cannot be read in the child process: AttributeError: Can't get attribute"
    assert run_python(
        """
        import subprocess, sys
        code = '''
        import logging
        from ubatch import UBatch
        from ubatch.processes import ProcessExecutor
        logging.getLogger("ubatch").setLevel(logging.CRITICAL)
        class Item: pass
        def handler(items): return items
        def told(call):
            try: return call()
            except TypeError as error: return str(error).partition(" on ")[0], type(error.__cause__).__name__
        with ProcessExecutor(1) as executor:
            with UBatch(3, 10.0, handler=list, executor=executor) as batch:
                for future in [batch.submit(item) for item in (1, Item(), 3)]:
                    print(told(future.result))
            print(told(lambda: UBatch(handler=handler, executor=executor).ubatch(1)))
            print(told(lambda: executor.call(handler, 1)))
            print(told(executor.submit(handler, 1).result))
        print(told(ProcessExecutor(1, initializer=handler, initargs=([],)).start))
        '''
        subprocess.run([sys.executable, "-c", code], check=True)
        """
    ).splitlines() == [
        "1",
        str((f"the item, a Item, {said} 'Item'", "RemoteTraceback")),
        "3",
        *[str((f"what was sent {said} 'handler'", "RemoteTraceback"))] * 4,
    ]


@pytest.mark.parametrize("isolate", [False, True])
def test_a_result_that_cannot_be_read_here_is_one_callers_error(make, isolate, caplog):
    """The handler is not called again for that; what it logged is logged once."""
    executor = make(1)
    items = ["text", "rooted", numpy.ones(30_000), "lock", "rooted error", memoryview(b"view")]
    with UBatch(6, 10.0, handler=aliens.noted, executor=executor, isolate=isolate) as batch:
        futures = [batch.submit(item) for item in items]
        error = futures[1].exception(PATIENCE)
        assert type(error) is TypeError
        assert str(error) == "the result, a Rooted, cannot be read: LookupError: not at home"
        assert isinstance(error.__cause__, LookupError)
        assert "the result, a lock, cannot be sent" in str(futures[3].exception())
        assert "RootedError: far away" in str(futures[4].exception())
        assert futures[0].result() == "text"
        assert futures[2].result().sum() == 30_000
        assert futures[5].result() == b"view"
        assert executor.stats.calls == 2
    assert executor.call(eval, "__import__('aliens').kept") == [6]
    assert caplog.messages.count("6 items") == 1


@pytest.mark.parametrize("isolate", [False, True])
def test_what_is_no_batch_of_results_and_cannot_be_read_here(make, isolate):
    executor = make(1)
    with UBatch(3, 10.0, handler=aliens.rooted_batch, executor=executor, isolate=isolate) as batch:
        for future in [batch.submit(number) for number in range(3)]:
            with pytest.raises(BadBatchOutputSize, match="returned a Rooted for a batch of 3 items"):
                future.result(PATIENCE)
    assert executor.stats.calls == 2


def test_an_exception_that_cannot_be_read_here(make, caplog):
    """What is known of it is told, with its traceback; and what was logged before."""
    executor = make(1)
    with UBatch(2, 10.0, handler=aliens.noted, executor=executor) as batch:
        for future in [batch.submit("raise") for _ in range(2)]:
            with pytest.raises(HandlerFailed, match="RootedError: far away") as caught:
                future.result(PATIENCE)
            assert "in fail" in str(caught.value.__cause__)
    assert executor.call(eval, "__import__('aliens').kept") == [2]
    assert caplog.messages.count("2 items") == 1


def test_what_no_child_can_read_either(make):
    """As far as can be told: all fail with the error that there was."""
    error = Unreadable("said", (memoryview(b""), []))

    def call(*_: Any) -> Any:
        raise LookupError

    with pytest.raises(Unreadable, match="said") as caught:
        Piecewise(call).results(error)
    assert caught.value is error
    assert error.pickled is None


@pytest.mark.parametrize("face", ["call", "submit"])
@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        (aliens.same, aliens.Rooted(), "what was sent cannot be read in the child process: LookupError: not at home"),
        (aliens.rooted_batch, None, "the answer of a child process cannot be read: LookupError: not at home"),
        (aliens.fail, "rooted", "the answer of a child process cannot be read: LookupError: not at home"),
    ],
)
def test_a_single_call_says_what_cannot_be_read_and_where(make, face, function, given, said):
    executor = make(1)
    pid = executor.call(aliens.pid)
    with pytest.raises(TypeError, match=re.escape(said)) as caught:
        executor.call(function, given) if face == "call" else executor.submit(function, given).result(PATIENCE)
    assert type(caught.value.__cause__) is (RemoteTraceback if function is aliens.same else LookupError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == said
    assert executor.call(aliens.pid) == pid


def test_what_interrupts_the_reading_is_no_fault_of_what_is_read(make):
    """It is raised as it is, as a caller's alarm: the answer can be read."""
    executor = make(1)
    aliens.Timed.alarms.append(TimeoutError("it is late"))
    with pytest.raises(TimeoutError, match="it is late"):
        executor.call(aliens.same, aliens.Timed())
    assert isinstance(executor.call(aliens.same, aliens.Timed()), aliens.Timed)


@pytest.mark.parametrize("face", ["call", "submit", "batch"])
def test_errors_of_reading_keep_no_memory(make, face):
    """Of what came, once it is known that it cannot be read; as no cycle of objects is left."""
    executor = make(1)
    kept: list[BaseException | None] = []
    gc.disable()
    try:
        with UBatch(2, 10.0, handler=aliens.beside_rooted, executor=executor) as batch:
            for _ in range(5):
                if face == "call":
                    with pytest.raises(TypeError) as caught:
                        executor.call(aliens.beside_rooted, [])
                    kept.append(caught.value)
                    del caught
                elif face == "submit":
                    kept.append(executor.submit(aliens.beside_rooted, []).exception(PATIENCE))
                else:
                    one, other = batch.submit(0), batch.submit(1)
                    kept.append(one.exception(PATIENCE))
                    assert other.result(PATIENCE).sum() == 50_000
                    del one, other
        assert None not in kept
        assert executor.stats.blocks < 3 * 524_288
    finally:
        gc.enable()


# -- statistics -----------------------------------------------------------------------------------------------


def test_statistics(make):
    executor = make(1)
    assert executor.stats.calls == 0
    array = numpy.ones(50_000)
    for _ in range(5):
        executor.call(aliens.sums, [array])
    executor.call(aliens.sleep, 0.1)
    stats = executor.stats
    assert stats.calls == 6
    assert stats.handling.count == stats.transfer.count == 6
    assert stats.handling.quantile(1) > 0.09
    assert stats.handling.sum > 0.1 > 0
    assert 5 * array.nbytes < stats.sent < 5 * array.nbytes + 10_000
    assert 0 < stats.received < 5_000
    assert stats.blocks >= array.nbytes
    (child,) = stats.children
    assert (child.alive, child.calls) == (True, 6)
    assert child.memory > 1_000_000
    assert stats.asdict()["children"][0]["pid"] == child.pid
    assert "calls=6" in repr(stats)
    with pytest.raises(AttributeError):
        stats.calls = 3


def test_waiting_for_a_child_is_no_transfer(make):
    executor = make(1)
    wait([executor.submit(aliens.sleep, 0.1) for _ in range(4)], PATIENCE)
    thread = threading.Thread(target=executor.call, args=(aliens.sleep, 0.3))
    thread.start()
    executor.call(aliens.pid)
    thread.join()
    assert executor.stats.transfer.quantile(1) < 0.25
