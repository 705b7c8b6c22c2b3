"""Child processes from the outside: how a program with some ends, is killed, interrupted, forked; gevent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aliens
import gates
import pytest

from ubatch._child import GRACE

TESTS = str(Path(aliens.__file__).parent)

HEAD = f"""
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks beside threads
sys.path.insert(0, {TESTS!r})
import aliens, numpy
from ubatch import UBatch, WorkerDied
from ubatch.processes import ProcessExecutor
"""

Program = subprocess.Popen[str]


@pytest.fixture(autouse=True)
def _nothing_in_shm() -> Iterator[None]:
    """Shared memory leaves no file behind, whatever happens: none that stays and that no living process has.

    What comes and goes is others': a semaphore of `multiprocessing` has a file while it is made.
    """
    before = set(os.listdir("/dev/shm"))
    yield
    left = set(os.listdir("/dev/shm")) - before
    if left:
        left -= in_use()
        gates.eventually(lambda: not left & set(os.listdir("/dev/shm")))


def in_use() -> set[str]:
    """Shared memory by name that some process has mapped: one that runs beside the tests."""
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            names |= {line.rpartition("/dev/shm/")[2] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return names


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts a program, in a session of its own."""
    programs: list[Program] = []

    def run(main: str, head: str = "") -> Program:
        script = tmp_path / "program.py"
        body = textwrap.indent(textwrap.dedent(main), "    ")
        script.write_text(f'{head}{HEAD}\nif __name__ == "__main__":\n{body}\n')
        program = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(program)
        return program

    yield run
    for program in programs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()


def pids_from(program: Program) -> list[int]:
    """Of its children, which it writes when they are ready."""
    assert program.stdout is not None
    line = program.stdout.readline()
    assert line, program.communicate()[1]
    return [int(pid) for pid in line.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_end(pids: list[int], patience: float = 30.0) -> bool:
    until = time.monotonic() + patience
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    for pid in pids:  # orphans are this process's children
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return not any(map(is_alive, pids))


BUSY = """
executor = ProcessExecutor(2, start_method="{method}").start()
held = executor.call(aliens.add, numpy.ones(100_000), 1)
print(*(child.pid for child in executor.stats.children), flush=True)
future = executor.submit(aliens.sleep, {seconds})
while not any(child.calls > 1 for child in executor.stats.children): time.sleep(0.01)
print("busy", flush=True)
"""


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise ValueError('the end')", "os._exit(3)"])
@pytest.mark.parametrize("seconds", [0, 60])
def test_the_end(run, end, seconds):
    """However a program ends, and whatever runs, its children end, at once or soon; and it says nothing of them."""
    program = run(BUSY.format(method="spawn", seconds=seconds) + end)
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert program.returncode == {"pass": 0, "raise ValueError('the end')": 1}.get(end, 3)
    assert stderr.count("\n") == (6 if "raise" in end else 0) or (stderr.endswith("the end\n") and "raise" in end)
    assert "Process" not in stderr
    assert all_end(pids)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork", "spawn under gevent"])
@pytest.mark.parametrize("seconds", [0, 60])
def test_a_killed_parent(run, method, seconds):
    """Its children end, also one that computes, after a time of grace."""
    method, patched, _ = method.partition(" under gevent")
    head = "from gevent import monkey; monkey.patch_all()\n" if patched else ""
    program = run(BUSY.format(method=method, seconds=seconds) + "time.sleep(60)", head)
    pids = pids_from(program)
    assert program.stdout is not None
    assert program.stdout.readline() == "busy\n"
    program.kill()
    assert all_end(pids, GRACE + 30)


def test_a_parent_that_is_killed_while_children_start(run):
    program = run(
        """
        from ubatch._crew import Crew
        executor = ProcessExecutor(2, initializer=aliens.load_badly, initargs=("hang",))
        threading.Thread(target=executor.start, daemon=True).start()
        while not all(child.pid for child in executor.stats.children): time.sleep(0.01)
        print(*(child.pid for child in executor.stats.children), flush=True)
        time.sleep(60)
        """
    )
    pids = pids_from(program)
    program.kill()
    assert all_end(pids, GRACE + 30)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_an_interrupt(run, method):
    """Ctrl-C is for the parent; no child says a word, and none is left."""
    program = run(
        BUSY.format(method=method, seconds=60).replace('print("busy", flush=True)', "")
        + textwrap.dedent(
            """
            try:
                print("busy", flush=True)
                future.result()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                executor.kill_workers()
            """
        )
    )
    pids = pids_from(program)
    assert program.stdout is not None
    assert program.stdout.readline() == "busy\n"
    os.killpg(program.pid, signal.SIGINT)
    stdout, stderr = program.communicate(timeout=60)
    assert (stdout, stderr, program.returncode) == ("interrupted\n", "", 0)
    assert all_end(pids)


def test_an_interrupt_while_children_start(run):
    program = run(
        """
        executor = ProcessExecutor(2, initializer=aliens.load_badly, initargs=("hang",))
        def tell():
            while not all(child.pid for child in executor.stats.children): time.sleep(0.01)
            print(*(child.pid for child in executor.stats.children), flush=True)
        threading.Thread(target=tell).start()
        try:
            executor.start()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    pids = pids_from(program)
    os.killpg(program.pid, signal.SIGINT)
    stdout, stderr = program.communicate(timeout=60)
    assert (stdout, stderr, program.returncode) == ("interrupted\n", "", 0)
    assert all_end(pids)


def test_a_main_module_without_a_guard(tmp_path):
    """The error is the one that Python's users know; and it does not hang."""
    script = tmp_path / "program.py"
    script.write_text(f"{HEAD}\nProcessExecutor(1, start_timeout=30).start()\n")
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "bootstrapping phase" in ended.stderr
    assert "WorkerDied" in ended.stderr
    assert ended.returncode == 1


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_forks_have_children_of_their_own(run, method):
    """As under gunicorn with --preload: used before the fork, in it, and after it by the parent."""
    program = run(
        f"""
        executor = ProcessExecutor(1, start_method={method!r})
        held = executor.call(aliens.add, numpy.ones(100_000), 1)
        mine = executor.call(aliens.pid)
        print(mine, flush=True)
        read, write = os.pipe()
        forks = []
        for _ in range(3):
            fork = os.fork()
            if not fork:
                assert (held == 2).all()
                theirs = executor.call(aliens.pid)
                got = executor.call(aliens.add, numpy.full(100_000, 5.0), 1)
                assert theirs != mine and (got == 6).all() and (held == 2).all()
                os.write(write, b"%d " % theirs)
                sys.exit(7)
            forks.append(fork)
        for _ in range(20):
            got = executor.call(aliens.add, numpy.zeros(100_000), 3)
            assert (got == 3).all()
        del held, got
        for _ in range(20):
            assert (executor.call(aliens.add, numpy.zeros(100_000), 3) == 3).all()
        for fork in forks:
            assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 7
        assert executor.call(aliens.pid) == mine
        print(os.read(read, 1000).decode(), flush=True)
        """
    )
    pids = pids_from(program)
    stdout, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    theirs = [int(pid) for pid in stdout.split()]
    assert len(set(theirs)) == 3
    assert all_end(pids + theirs)


def test_a_fork_while_calls_run(run):
    """They are the parent's."""
    program = run(
        """
        executor = ProcessExecutor(2).start()
        print(*(child.pid for child in executor.stats.children), flush=True)
        right, stop = [], threading.Event()
        def work(n):
            while not stop.is_set():
                array = numpy.full(50_000, n)
                right.append((executor.call(aliens.add, array, 1) == n + 1).all())
        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads: thread.start()
        for _ in range(5):
            time.sleep(0.02)
            fork = os.fork()
            if not fork:
                got = executor.call(aliens.add, numpy.full(50_000, 7), 1)
                os._exit(0 if (got == 8).all() else 1)
            assert os.waitpid(fork, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
        assert all(right) and len(right) > 5
        """
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_forks_of_forks(run, method):
    """Beside calls of other threads; they close nothing that is not theirs, and children start in them."""
    program = run(
        f"""
        import logging
        executor = ProcessExecutor(2, start_method={method!r})
        print(executor.call(aliens.pid), flush=True)
        stop = threading.Event()
        def work():
            while not stop.is_set():
                executor.call(aliens.add, numpy.ones(3000), 1)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads: thread.start()
        for _ in range(4):
            fork = os.fork()
            if not fork:
                mine = [open(os.devnull) for _ in range(20)]
                second = os.fork()
                if not second:
                    for file in mine: os.fstat(file.fileno())
                    os._exit(executor.call(aliens.add, 4))
                code = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
                os._exit(executor.call(aliens.add, 3) + code)
            assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 7
        stop.set()
        for thread in threads: thread.join()
        """
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)


def test_a_fork_while_a_child_is_started(run):
    """By another thread, which is within `multiprocessing`'s locks at that moment: they are open in the fork."""
    program = run(
        """
        from multiprocessing import resource_tracker as tracking
        whole, within = tracking.ensure_running, threading.Event()
        def slowly():
            with tracking._resource_tracker._lock:
                within.set()
                time.sleep(0.3)
            whole()
        tracking.ensure_running = slowly
        executor = ProcessExecutor(1)
        starting = threading.Thread(target=executor.start)
        starting.start()
        within.wait()
        fork = os.fork()
        if not fork:
            signal.alarm(20)
            tracking.ensure_running = whole
            os._exit(executor.call(aliens.add, 4))
        assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 4
        starting.join()
        executor.shutdown()
        """
    )
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)


def test_a_handler_may_have_children_of_its_own(run):
    program = run(
        """
        import multiprocessing
        executor = ProcessExecutor(1)
        with executor:
            print(executor.call(aliens.pid), flush=True)
            assert executor.call(aliens.nested) == 5
        """
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)


def test_a_limit_holds_while_signals_come(run):
    """As of profilers; and for what is sent, too."""
    program = run(
        """
        executor = ProcessExecutor(1, call_timeout=0.5).start()
        print(*(child.pid for child in executor.stats.children), flush=True)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        for how in ("sleeps", "stopped"):
            if how == "stopped": os.kill(executor.call(aliens.pid), signal.SIGSTOP)
            try:
                if how == "sleeps": executor.call(aliens.sleep, 60)
                executor.call(aliens.sums, [numpy.ones(1100) for _ in range(20_000)])
            except WorkerDied as error:
                assert "hung" in str(error) or "did not take" in str(error), error
            else:
                assert False, how
        signal.setitimer(signal.ITIMER_REAL, 0)
        """
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)


def test_interrupted_calls_lose_no_child(run):
    """As in a notebook, and by decorators that limit time: an exception may come anywhere."""
    program = run(
        """
        executor = ProcessExecutor(1).start()
        print(*(child.pid for child in executor.stats.children), flush=True)
        class Interrupt(Exception): pass
        def interrupt(*_): raise Interrupt
        signal.signal(signal.SIGALRM, interrupt)
        hits = 0
        until = time.monotonic() + 6
        while hits < 60 and time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.0001 * (hits % 40))
                for _ in range(30): executor.call(aliens.add, 1)
            except Interrupt:
                hits += 1
            except WorkerDied:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert hits > 10, hits
        assert executor.submit(aliens.add, 5).result(20) == 5
        executor.shutdown()
        """
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)


def test_a_fork_beside_a_start_hides_no_death(run):
    """A process that another thread forks meanwhile has no end of the child's."""
    program = run(
        """
        executor = ProcessExecutor(1)
        forks = []
        stop = threading.Event()
        def work():
            while not stop.is_set() and len(forks) < 200:
                fork = os.fork()
                if not fork:
                    time.sleep(30)
                    os._exit(0)
                forks.append(fork)
                time.sleep(0.002)
        thread = threading.Thread(target=work)
        thread.start()
        executor.start()
        stop.set()
        thread.join()
        print(*(child.pid for child in executor.stats.children), flush=True)
        began = time.monotonic()
        try:
            executor.call(aliens.die, "killed")
        except WorkerDied:
            pass
        assert time.monotonic() - began < 20
        for fork in forks: os.kill(fork, signal.SIGKILL)
        for fork in forks: os.waitpid(fork, 0)
        """
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)


@pytest.mark.parametrize("patch", [True, False])
def test_gevent(run, patch):
    """Greenlets run on while children start, and while others wait for calls."""
    program = run(
        """
        PATCHING
        import gevent
        executor = ProcessExecutor(2)
        beats = []
        def beat():
            while True:
                gevent.sleep(0.01)
                beats.append(1)
        beater = gevent.spawn(beat)
        gevent.sleep(0)
        executor.start()
        print(*(child.pid for child in executor.stats.children), flush=True)
        assert len(beats) > 2, beats
        with UBatch(8, 0, handler=aliens.sums, workers=2, executor=executor) as batch:
            jobs = [gevent.spawn(batch.ubatch, numpy.full(10_000, n)) for n in range(30)]
            gevent.joinall(jobs, raise_error=True)
            assert [job.value for job in jobs] == [10_000.0 * n for n in range(30)]
        before = len(beats)
        futures = [executor.submit(aliens.sleep, 0.1) for _ in range(4)]
        while not all(future.done() for future in futures):
            if PATCHED: futures[0].result()
            gevent.sleep(0.01)
        assert len(beats) > before + 5
        executor.shutdown()
        beater.kill()
        """.replace("PATCHING", "from gevent import monkey; monkey.patch_all()" if patch else "").replace(
            "PATCHED", str(patch)
        )
    )
    pids = pids_from(program)
    _, stderr = program.communicate(timeout=60)
    assert (stderr, program.returncode) == ("", 0)
    assert all_end(pids)
