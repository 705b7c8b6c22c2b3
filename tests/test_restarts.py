"""Child processes that die and do not start again at once, and what calls and places see of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aliens
import numpy
import pytest
from gates import PATIENCE, eventually, in_thread

from ubatch import WorkerDied, _backoff, _crew, _native
from ubatch._backoff import TRIES
from ubatch.processes import ProcessExecutor

pytestmark = pytest.mark.usefixtures("_processes_may_be_spawned")

NEVER = 1000.0  # seconds; a pause that no test lives to see the end of
EVER = range(0)  # starts that are bad


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ProcessExecutor]]:
    """Makes an executor some of whose starts fail; it is shut down in the end."""
    made: list[ProcessExecutor] = []

    def make(max_workers: int = 1, bad: range = EVER, **options: Any) -> ProcessExecutor:
        made.append(
            ProcessExecutor(max_workers, initializer=aliens.load_by_number, initargs=(str(tmp_path), bad), **options)
        )
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown()


@pytest.fixture
def starts(tmp_path: Path) -> Callable[[], int]:
    """How many there were."""
    return lambda: len(os.listdir(tmp_path))


def pids(executor: ProcessExecutor) -> list[int]:
    return [child.pid for child in executor.stats.children if child.alive]


def kill_idle(executor: ProcessExecutor) -> list[int]:
    """All children die while they have nothing to do."""
    killed = pids(executor)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not pids(executor))
    return killed


def outcome(future: Any) -> str:
    error = future.exception(60)
    if error is None:
        return "right"
    assert isinstance(error, WorkerDied)
    return "could not start" if "could not start" in str(error) else "killed"


# -- calls ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("failing", range(1, TRIES))
def test_a_restart_that_fails_fails_nobody(make, starts, retries, failing):
    """Those who wait do so until the next attempt; the killed call alone has its error."""
    executor = make(1, range(1, 1 + failing), retries=retries)
    futures = [executor.submit(aliens.die if n == 5 else aliens.add, "killed" if n == 5 else n) for n in range(40)]
    assert [outcome(future) for future in futures] == ["right"] * 5 + ["killed"] + ["right"] * 34
    assert starts() == 2 + failing + retries
    assert executor.stats.died == 1 + retries


def test_a_retry_waits_for_a_restart_that_fails_at_first(make, tmp_path):
    executor = make(1, range(1, 2), retries=1)
    assert executor.call(aliens.die_once, str(tmp_path / "died")) == "survived"


def test_calls_fail_fast_once_there_is_no_hope(make, starts):
    """Not before; then at once, with the reason, and with one attempt whenever one is due."""
    executor = make(1, range(1, 1000))
    futures = [executor.submit(aliens.die if n == 2 else aliens.add, "killed" if n == 2 else n) for n in range(20)]
    assert [outcome(future) for future in futures] == ["right"] * 2 + ["killed"] + ["could not start"] * 17
    assert "exited with code 9, before it was ready; the next attempt is due in" in str(futures[-1].exception())
    backoff = executor._crew._backoff
    for made in range(1, 4):
        with executor._crew._lock:
            backoff.until = time.monotonic() + NEVER
        before = starts()
        for _ in range(3):
            with pytest.raises(WorkerDied, match="could not start"):
                executor.call(aliens.pid)
        assert starts() == before, "none is due"
        backoff.until = time.monotonic()
        with pytest.raises(WorkerDied, match="could not start"):
            executor.call(aliens.pid)
        assert starts() == before + 1, made


def test_a_death_beside_hopeless_starts(make, starts):
    """The place of one that was there until now is filled at once, and those who wait for it have hope again."""
    executor = make(2, range(1, 1 + TRIES + 2))
    assert executor.call(aliens.add, 1) == 1
    crew = executor._crew
    futures = [executor.submit(aliens.sleep, 0.2) for _ in range(2)]  # the second wants another child
    eventually(lambda: starts() == 1 + TRIES and not crew._filling)
    with crew._lock:
        assert not crew._backoff.hopeful
        crew._backoff.until = time.monotonic() + NEVER
    assert len({future.result(PATIENCE) for future in futures}) == 1
    with pytest.raises(WorkerDied, match="SIGKILL"):
        executor.call(aliens.die, "killed")
    assert in_thread(executor.call, aliens.add, 2).result(PATIENCE) == 2


def test_a_start_that_was_tried_in_vain_is_no_reason_for_calls_to_fail(make, starts):
    """`start` tells of the first failure, tries nothing twice, and leaves none; calls that wait do so further."""
    executor = make(1, range(1, 2)).start()
    kill_idle(executor)
    with pytest.raises(WorkerDied, match="code 9, before it was ready"):
        executor.start()
    assert starts() == 2
    assert not pids(executor)
    assert executor.call(aliens.add, 1) == 1
    assert starts() == 3


def test_no_thread_can_be_started(make, monkeypatch):
    """That is a start that failed, and soon hopeless; nobody waits for ever."""
    executor = make(1).start()
    kill_idle(executor)
    tried: list[str] = []

    def start_thread(name: str, target: Any) -> None:
        tried.append(name)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_native, "start_thread", start_thread)
    with pytest.raises(WorkerDied, match="could not start: RuntimeError: can't start new thread"):
        executor.call(aliens.pid)
    assert len(tried) == TRIES
    monkeypatch.undo()
    executor._crew._backoff.forget()
    assert executor.call(aliens.add, 1) == 1


@pytest.mark.parametrize("launched", [False, True])
def test_an_interrupt_as_a_start_is_ordered(make, monkeypatch, starts, launched):
    """Whether or not a thread has begun by then: that is no failure, others get a child, and one alone is started."""
    executor = make(1).start()
    kill_idle(executor)
    start_thread = _native.start_thread

    def interrupted(name: str, target: Any) -> None:
        monkeypatch.undo()
        if launched:
            start_thread(name, target)
            eventually(lambda: not target.args[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(_native, "start_thread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.call(aliens.pid)
    assert executor._crew._backoff.failures == 0
    assert in_thread(executor.call, aliens.add, 1).result(PATIENCE) == 1
    assert starts() == 2


def test_an_interrupt_as_a_dead_child_is_given_back(make, monkeypatch):
    """Before its place was seen to: those who wait have one started."""
    executor = make(1).start()
    waiting: list[Any] = []

    def interrupted(place: int, timeout: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    def call_and_die() -> None:
        eventually(lambda: executor._crew._busy)
        waiting.append(in_thread(executor.call, aliens.add, 1))
        eventually(lambda: executor._crew._waiting)
        monkeypatch.setattr(executor._crew, "_fill", interrupted)
        os.kill(pids(executor)[0], signal.SIGKILL)

    killer = in_thread(call_and_die)
    with pytest.raises(KeyboardInterrupt):
        executor.call(aliens.sleep, 60)
    killer.result(PATIENCE)
    assert waiting[0].result(PATIENCE) == 1


# -- places ---------------------------------------------------------------------------------------------------


def test_a_place_is_filled_without_a_call(make):
    """Whose next start has failed, while others have nothing to do."""
    executor = make(2, range(2, 4)).start()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        executor.call(aliens.die, "killed")
    eventually(lambda: len(pids(executor)) == 2)


def test_an_idle_crew_stops_trying(make, starts):
    """Nothing of it runs then but the child that is there."""
    executor = make(2, range(2, 1000)).start()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        executor.call(aliens.die, "killed")
    eventually(lambda: not executor._crew._filling)
    assert starts() == 2 + TRIES
    assert executor.call(aliens.add, 1) == 1
    assert starts() == 2 + TRIES, "the other has nothing to do"
    executor._crew._backoff.until = time.monotonic()
    futures = [executor.submit(aliens.sleep, 0.2) for _ in range(2)]
    assert len({future.result(PATIENCE) for future in futures}) == 1
    eventually(lambda: not executor._crew._filling)
    assert starts() == 3 + TRIES, "a call wanted it"


def test_children_that_fail_side_by_side_do_so_once(make, monkeypatch):
    """All are tried again, as often as one alone."""
    monkeypatch.setattr(_backoff, "FIRST_PAUSE", 1.0)
    executor = make(3, range(3, 6)).start()
    kill_idle(executor)
    assert executor.call(aliens.add, 1) == 1
    eventually(lambda: len(pids(executor)) == 3)
    assert executor.stats.died == 3


def test_start_replaces_what_died_idle(make):
    """They are all there then."""
    executor = make(2).start()
    before = kill_idle(executor)
    executor.start()
    assert len(set(pids(executor)) - set(before)) == 2
    assert executor.stats.died == 2


def test_a_call_that_comes_upon_one_that_died_idle_has_all_of_them_replaced(make):
    """Also those that it has no need to look at."""
    executor = make(3).start()
    first, other, last = (child.pid for child in executor._crew._idle)
    for pid in (first, last):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: pids(executor) == [other])
    assert executor.call(aliens.pid) == other
    eventually(lambda: len(pids(executor)) == 3)
    assert executor.stats.died == 2


# -- pauses ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pausing(make, monkeypatch) -> tuple[ProcessExecutor, Any]:
    """An executor whose child died and did not start again, so a thread sits out a pause; and a call that waits."""
    monkeypatch.setattr(_backoff, "FIRST_PAUSE", NEVER)
    monkeypatch.setattr(_backoff, "LONGEST_PAUSE", NEVER)
    executor = make(1, range(1, 2)).start()
    kill_idle(executor)
    waiting = in_thread(executor.call, aliens.add, 1)
    eventually(lambda: executor._crew._resting)
    return executor, waiting


def test_start_ends_a_pause(pausing):
    executor, waiting = pausing
    in_thread(executor.start).result(PATIENCE)
    assert waiting.result(PATIENCE) == 1


@pytest.mark.parametrize("end", [ProcessExecutor.shutdown, ProcessExecutor.kill_workers])
def test_an_end_ends_a_pause(pausing, monkeypatch, end):
    """And no process is made any more."""
    executor, waiting = pausing
    made: list[Any] = []
    monkeypatch.setattr(_crew, "Child", lambda *args: made.append(args))
    in_thread(end, executor).result(PATIENCE)
    with pytest.raises(RuntimeError, match="shut down"):
        waiting.result(PATIENCE)
    eventually(lambda: not executor._crew._filling)
    assert not made


def test_start_does_not_wait_for_what_calls_wait_for(make, tmp_path, monkeypatch):
    """It tries at once, however lately something has failed."""
    monkeypatch.setattr(_backoff, "FIRST_PAUSE", NEVER)
    monkeypatch.setattr(_backoff, "LONGEST_PAUSE", NEVER)
    executor = make(2, range(1))
    with pytest.raises(WorkerDied, match=r"the next attempt is due in [19]\d\d"):
        executor.call(aliens.pid)
    executor.start(timeout=20)
    assert len(pids(executor)) == 2


# -- beside each other ----------------------------------------------------------------------------------------


def test_a_crew_that_is_closed_as_a_child_is_made(make, monkeypatch):
    """Which nobody can have found yet: it is killed, whatever it is at."""
    executor = ProcessExecutor(1, initializer=aliens.load_badly, initargs=("hang",))
    made: list[_crew.Child] = []

    def make_and_close(name: str, setup: Any) -> _crew.Child:
        monkeypatch.undo()
        made.append(_crew.Child(name, setup))
        executor._crew.close()
        return made[0]

    monkeypatch.setattr(_crew, "Child", make_and_close)
    with pytest.raises(RuntimeError, match="shut down"):
        in_thread(executor.start).result(PATIENCE)
    eventually(lambda: made[0].ended)
    executor.shutdown()


def test_a_block_that_could_not_be_mapped_is_sent_again(make):
    """When there is memory for it."""
    giver, taker = make(1), make(1)
    array = giver.call(numpy.ones, 8_000_000)  # in a block that the other one has not
    taker.call(aliens.may_map, 16 << 20)
    for _ in range(2):
        with pytest.raises(OSError, match="memory"):
            taker.call(aliens.sums, [array])
    taker.call(aliens.may_map, -1)
    assert taker.call(aliens.sums, [array]) == [8e6]
    assert taker.stats.died == 0


def test_a_fork_in_a_pause(run_python):
    """The forked process has a crew without troubles; the parent's goes on."""
    run_python(
        """
        import os, signal, sys, tempfile, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.path.insert(0, TESTS)
        import aliens
        from ubatch import _backoff
        from ubatch.processes import ProcessExecutor
        if __name__ == "__main__":
            _backoff.FIRST_PAUSE = 1.0
            executor = ProcessExecutor(
                1, start_method="fork", initializer=aliens.load_by_number, initargs=(tempfile.mkdtemp(), range(1, 2))
            )
            os.kill(executor.call(aliens.pid), signal.SIGKILL)
            while executor.stats.children[0].alive: time.sleep(0.001)
            got = []
            thread = threading.Thread(target=lambda: got.append(executor.call(aliens.add, 1)))
            thread.start()
            while not executor._crew._resting: time.sleep(0.001)
            fork = os.fork()
            if not fork:
                os._exit(executor.call(aliens.add, 7))
            assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 7
            thread.join()
            assert got == [1], got
            executor.shutdown()
        """.replace("TESTS", repr(str(Path(aliens.__file__).parent)))
    )


@pytest.mark.stress
def test_kills_failing_starts_and_ends_at_random(monkeypatch, tmp_path, seed):
    """No call hangs, none gets another's result, and nothing is left, whichever way the crew ends."""
    monkeypatch.setattr(_backoff, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(_backoff, "LONGEST_PAUSE", 0.2)
    dice = random.Random(seed)
    for _ in range(8):
        weather = tmp_path / "weather"
        weather.write_text("0")
        executor = ProcessExecutor(
            dice.randrange(1, 4),
            initializer=aliens.load_in_weather,
            initargs=(str(weather), seed),
            retries=dice.randrange(2),
        )
        if dice.random() < 0.7:
            executor.start()
        outcomes: Counter[str] = Counter()
        callers = [in_thread(call_until_the_end, executor, seed + number, outcomes) for number in range(4)]
        for _ in range(dice.randrange(5, 25)):
            time.sleep(dice.random() * 0.1)
            event = dice.choice(("kill", "kill", "kill all", "weather", "weather", "start"))
            if event.startswith("kill"):
                alive = pids(executor)
                for pid in alive if event == "kill all" else alive[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            elif event == "weather":
                weather.write_text(str(dice.choice((0, 0.3, 0.7, 1))))
            else:
                with contextlib.suppress(ValueError, RuntimeError, TimeoutError, WorkerDied):  # as it says
                    in_thread(executor.start, dice.choice((0.05, PATIENCE))).result(2 * PATIENCE)
        if dice.random() < 0.5:  # it recovers from whatever that was
            weather.write_text("0")
            right = outcomes["right"]
            eventually(lambda outcomes=outcomes, right=right: outcomes["right"] > right + 8)
        in_thread(dice.choice((executor.shutdown, executor.kill_workers))).result(2 * PATIENCE)
        for caller in callers:
            caller.result(PATIENCE)
        executor.shutdown()
        crew = executor._crew
        eventually(lambda crew=crew: not (crew._filling or crew._busy or crew._resting))
        assert not crew._idle and not crew._waiting and not any(crew._places)
        assert set(outcomes) <= {"right", "died"}, outcomes
    _crew.settle(PATIENCE)


def call_until_the_end(executor: ProcessExecutor, seed: int, outcomes: Counter[str]) -> None:
    dice = random.Random(seed)
    while True:
        number = dice.randrange(1000)
        try:
            outcomes["right" if executor.call(aliens.add, number, 1) == number + 1 else "wrong"] += 1
        except WorkerDied:
            outcomes["died"] += 1
            time.sleep(0.01)
        except RuntimeError as error:
            if "shut down" not in str(error):
                raise
            return


@pytest.mark.stress
def test_interrupts_beside_others(run_python, seed):
    """An exception may come anywhere: no child is lost, and nobody waits for ever."""
    run_python(
        """
        import contextlib, os, random, signal, sys, threading, time
        sys.path.insert(0, TESTS)
        import aliens
        from ubatch import WorkerDied
        from ubatch.processes import ProcessExecutor

        class Interrupt(Exception): pass
        def interrupt(*_): raise Interrupt
        def call(number):
            global served
            try:
                assert executor.call(aliens.add, number) == number
                served += 1
            except WorkerDied:
                pass
        def work(number):
            while not done.is_set(): call(number)
        def kill():
            dice = random.Random(SEED + 1)
            while not done.wait(dice.random()):
                pid = dice.choice(executor.stats.children).pid
                with contextlib.suppress(ProcessLookupError):
                    if pid: os.kill(pid, signal.SIGKILL)

        if __name__ == "__main__":
            dice = random.Random(SEED)
            executor = ProcessExecutor(2).start()
            done, hits, served, until = threading.Event(), 0, 0, time.monotonic() + 20
            threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(3)]
            threads.append(threading.Thread(target=kill, daemon=True))
            signal.signal(signal.SIGALRM, interrupt)
            for thread in threads: thread.start()
            while time.monotonic() < until:
                try:
                    signal.setitimer(signal.ITIMER_REAL, dice.choice((0.3, 1, 3, 10)) * 1e-3 * dice.random() + 1e-5)
                    for _ in range(50): call(9)
                except Interrupt:
                    hits += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            done.set()
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
            assert hits > 100 and served > 100, (hits, served)
            executor.shutdown()
        """.replace("TESTS", repr(str(Path(aliens.__file__).parent))).replace("SEED", str(seed))
    )
