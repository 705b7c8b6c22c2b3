"""Child processes that run functions: the parent's side. Starting them, calling them, replacing them.

Purpose: a `Crew` has places for a number of children (`_children`). `call` runs a function in one that is free, and
waits for what comes of it in this very thread.

Guarantees:
- A call returns what the function returned, raises what it raised, or raises `WorkerDied`, which says how the process
  ended. It is made once more for each retry that is allowed.
- A child that dies is replaced at once; calls go to the others meanwhile, or wait. If one cannot start, the next
  attempt is put off, for longer each time. Calls fail for that only while there is no child at all, and then at once.
- No child outlives its crew, or this process, by more than `_child.GRACE` seconds; nor does a call its time limit.
- A process that is forked off this one has a crew of its own; the parent's is unaffected.

How. A child that is ready is in `_idle`, or owned by the thread that has taken it and gives it back. One that is to be
ready is started by a thread of its own, one for each: so they start side by side, and no caller waits for one while
another is free.

Assumptions: `_lock` is held for a few steps only, and never while a process is started or waited for. It is reentrant,
as a signal handler or a `__del__` may come upon it.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections import deque
from functools import partial

from . import _native
from ._children import Child, Ended, outcome, reap
from ._native import monotonic
from ._parcels import pack
from ._process_stats import ProcessStats
from ._shm import pool
from ._tally import Tally, child_stats
from .errors import WorkerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._parcels import Parcel
    from ._shm import Block
    from ._starts import Setup

FIRST_PAUSE = 0.1
"""Seconds until a child is started again after one that could not start; doubled each time."""

LONGEST_PAUSE = 30.0
"""Seconds that this grows to."""

EXIT_WAIT = 2.0
"""Seconds that the interpreter's exit waits for children, all together; then they are killed."""

_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


class _Waiter:
    """Who waits: for a child, in a list; or, as `close` and `start` do, for all that are at something."""

    __slots__ = ("error", "gate", "left", "mine")

    def __init__(self, mine: list[Child] | None = None) -> None:
        self.gate = _native.allocate_lock()
        self.gate.acquire()
        self.left = False
        self.mine = [] if mine is None else mine
        self.error: BaseException | None = None

    def wake(self) -> None:
        """Let it go on; once."""
        self.gate.release()


class Crew:
    """Child processes that run functions; see the head of the file. May be called from any thread.

    Args:
        name: for processes, and for errors of what is no call.
        size: how many.
        setup: how they are started.
        timeout: seconds that a call may take, else the child is killed; `None` for no limit.
        retries: how often a call is made again whose child died.
    """

    def __init__(self, name: str, size: int, setup: Setup, timeout: float | None, retries: int) -> None:
        self.name = name
        self._size = size
        self._setup = setup
        self._timeout = timeout
        self._retries = retries
        self._closed = False
        self._fresh()
        _crews.add(self)

    def _fresh(self) -> None:
        self._lock = _native.reentrant_lock()  # guards all that follows
        self._places: list[Child | None] = [None] * self._size  # all that there are, ready or not, for looking at
        self._idle: list[Child] = []  # that are ready; the last is taken first
        self._busy: dict[Child, list[Child]] = {}  # children that callers own, and the lists that these have them in
        self._filling: set[int] = set()  # places for which a child is being started
        self._waiting: deque[_Waiter] = deque()  # for a child
        self._leavers: list[_Waiter] = []  # who wait until nothing is filling, or also nothing busy
        self._failures = 0  # starts that failed, one after another
        self._pause = 0.0  # until when none is tried
        self._reason: BaseException | None = None  # why the last failed
        self._room = 0  # bytes that answers take, of late
        self._tally = Tally()

    def __del__(self) -> None:
        for child in self.__dict__.get("_idle", ()):
            child.dismiss()

    def stats(self) -> ProcessStats:
        """A snapshot; see there."""
        told = [child_stats(one.pid, one.alive(), one.calls) if one else child_stats() for one in [*self._places]]
        return self._tally.snapshot(tuple(told), pool.size)

    # -- starting -----------------------------------------------------------------------------------------

    def start(self, timeout: float | None) -> None:
        """Start all children that are not there, side by side, and wait until they are ready.

        Args:
            timeout: seconds; `None` for that of the setup.

        Raises:
            RuntimeError: it is closed, or was meanwhile.
            WorkerDied: one of them died.
            TimeoutError: one was not ready in time.
            Exception: what one of them raised as it started; or it cannot be started.
        """
        timeout = self._setup.timeout if timeout is None else timeout
        waiter = _Waiter()
        with self._lock:
            self._check_open()
            self._failures, self._pause, self._reason = 0, 0.0, None
            if not self._missing() and not self._filling:
                return
            self._leavers.append(waiter)
        for place in self._missing():
            self._fill(place, timeout)
        try:
            in_time = waiter.gate.acquire(True, min(timeout, _native.MAX_WAIT))
            self._check_open()
            error = waiter.error
            if not in_time or isinstance(error, _Late):
                raise TimeoutError(f"{self.name}: child processes were not ready within {timeout:g} s")
            if error is not None:
                raise error
        except BaseException:
            self._end_all()
            raise
        finally:
            waiter.left = True
            waiter.error = error = None

    def _missing(self) -> list[int]:
        with self._lock:
            return [place for place, child in enumerate(self._places) if child is None and place not in self._filling]

    def _fill(self, place: int, timeout: float) -> None:
        """Have a child started for a place that has none."""
        with self._lock:
            if self._closed or place in self._filling or self._places[place] is not None:
                return
            self._filling.add(place)
        try:
            _native.start_thread(f"{self.name}-start", partial(self._start_one, [place], timeout))
        except BaseException as error:  # no thread can be started
            self._filled(place, None, error)
            if not isinstance(error, Exception):
                raise

    def _start_one(self, places: list[int], timeout: float) -> None:
        """A thread: start a child, and wait until it is ready."""
        try:
            place = places.pop()
        except IndexError:  # started twice
            return
        until = monotonic() + timeout
        child = None
        try:
            child = self._places[place] = Child(self.name, self._setup)
            if self._closed:  # before this could be found to be killed
                child.kill()
            child.ready(until)
        except BaseException as error:
            if child is not None:
                child.kill()
                child.end()
            if isinstance(error, Ended):
                kind = _Late if monotonic() >= until else WorkerDied
                error = kind(self.name, f"{error}, before it was ready" if kind is WorkerDied else str(error))
            self._filled(place, None, error)
        else:
            self._filled(place, child, None)

    def _filled(self, place: int, child: Child | None, error: BaseException | None) -> None:
        mine: list[Child] = []
        with self._lock:
            self._filling.discard(place)
            self._places[place] = child
            if error is not None:
                self._put_off(error)
                for waiter in self._leavers:
                    waiter.error = waiter.error or error
            if child is not None:
                self._failures = 0
                mine.append(child)  # for a moment
                self._busy[child] = mine
        if mine:
            self._give_back(mine)
        else:
            self._fail_waiters()
            self._tell_leavers()

    def _put_off(self, error: BaseException) -> None:
        """A child could not start: let some time pass until the next is tried."""
        self._failures += 1
        self._pause = monotonic() + min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 30), LONGEST_PAUSE)
        self._reason = error

    def _has_any(self) -> bool:
        """Whether there is a child, or soon will be."""
        return bool(self._idle or self._busy or self._filling)

    # -- ending -------------------------------------------------------------------------------------------

    def close(self, wait: bool = False) -> None:
        """Take no more calls. Children end once they have done what they are at, but for starting: that is broken off.

        Args:
            wait: whether to wait until they have.
        """
        waiter = _Waiter()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            waiting, self._waiting = self._waiting, deque()
            self._leavers.append(waiter)
            starting = [child for place in self._filling if (child := self._places[place]) is not None]
        for child in starting:
            child.kill()
        for other in waiting:
            other.wake()
        for child in idle:
            self._dismiss(child)
        self._tell_leavers()
        if wait:
            waiter.gate.acquire()
        else:
            waiter.left = True
        settle()

    def kill(self, patience: float = 0.0) -> None:
        """Take no more calls, and end all children that are at one now: it fails.

        Args:
            patience: seconds to wait until nobody is at anything any more: neither at a call nor at a start.
        """
        waiter = _Waiter()
        with self._lock:
            self._leavers.append(waiter)
        self.close()
        for child in [*self._places]:
            if child is not None:  # whoever called it, or starts it, will see to the rest
                child.kill()
        if patience:
            waiter.gate.acquire(True, patience)
        waiter.left = True

    def _end_all(self) -> None:
        """Have no children any more, but for those that are at a call; be open all the same."""
        with self._lock:
            idle, self._idle = self._idle, []
            starting = [child for place in self._filling if (child := self._places[place]) is not None]
        for child in starting:
            child.kill()
        for child in idle:
            child.kill()
            self._dismiss(child)
        waiter = _Waiter()
        with self._lock:
            filling = bool(self._filling)
            if filling:
                self._leavers.append(waiter)
        if filling:
            waiter.gate.acquire(True, 1.0)  # for those that are only now being started
            waiter.left = True
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()
            self._dismiss(child)
        reap(1.0)

    def _dismiss(self, child: Child) -> None:
        with self._lock:
            if child in self._places:
                self._places[self._places.index(child)] = None
        child.dismiss()

    def _tell_leavers(self) -> None:
        with self._lock:
            if self._filling or (self._closed and self._busy):
                return
            leavers, self._leavers = self._leavers, []
        for waiter in leavers:
            waiter.wake()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the child processes of {self.name!r} have been shut down")

    # -- calling ------------------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        fresh: tuple[Block, memoryview] | None,
        copied: int,
    ) -> Any:
        """Run a function in a child.

        Args:
            name: whose call it is, for errors.
            function, args, kwargs: are pickled, but for large buffers.
            fresh: a block and a view of it, which nothing but the arguments refers to; or `None`.
            copied: how many buffers were copied there.

        Raises:
            WorkerDied: the child died, or there is none.
            RuntimeError: the crew is closed.
            Unpackable: something cannot be pickled.
            Exception: what the function raised.
        """
        parcel: Parcel | None = None
        answer, seconds = None, 0.0
        shared = not self._setup.writable  # else a child could write to what others refer to
        if self._retries and not shared:
            fresh = None  # what the first child may write to is not what the second one gets
        mine: list[Child] = []
        try:
            for left in range(self._retries, -1, -1):
                try:
                    self._take(mine, name)
                    began = monotonic()
                    if parcel is None or not shared:
                        parcel = pack((function, args, kwargs), pool, pool.take, shared, fresh)
                    seconds = monotonic() - began
                    answer = mine[0].call(parcel, self._timeout, self._room)
                    break
                except Ended as error:
                    if not left or self._closed:
                        raise WorkerDied(name, str(error)) from None
                finally:
                    self._give_back(mine)
            assert answer is not None and parcel is not None, "neither answered nor failed"
            self._room = answer.room if answer.room > self._room else self._room - self._room // 4
            sent = parcel.size, parcel.copied + copied, parcel.passed
            parcel.clear()
            began = monotonic()
            try:
                return outcome(answer)
            finally:
                self._tally.note(seconds + answer.took + monotonic() - began, answer, *sent)
        finally:
            self._give_back(mine)  # once more, where that was interrupted
            if parcel is not None:
                parcel.clear()  # others refer to it: a traceback refers to frames
            del self, function, args, kwargs, fresh, parcel

    def _take(self, mine: list[Child], name: str) -> None:
        """Take a child for a call, into a list: so that it is not lost, whatever comes between.

        Raises:
            WorkerDied: there is none, and none is about to be.
            RuntimeError: the crew is closed.
        """
        while True:
            with self._lock:
                self._check_open()
                if not self._idle:
                    break
                self._claim(mine)
            if mine[0].alive():
                return
            self._give_back(mine)  # it died while it had nothing to do
        waiter = _Waiter(mine)
        missing = self._missing()
        if missing and monotonic() >= self._pause:
            self._fill(missing[0], self._setup.timeout)
        with self._lock:
            if self._idle:
                self._claim(mine)
                return
            if not self._has_any():
                raise self._none(name)
            self._waiting.append(waiter)
        try:
            waiter.gate.acquire()
        finally:
            with self._lock:
                waiter.left = True  # or it has one
        if not mine:
            self._check_open()
            raise self._none(name)

    def _claim(self, mine: list[Child]) -> None:
        """Take the last that idles. The lock is held; nothing is lost, wherever this is interrupted."""
        child = self._idle[-1]
        mine.append(child)
        self._busy[child] = mine
        self._idle.remove(child)

    def _none(self, name: str) -> WorkerDied:
        """Why there is no child."""
        reason = self._reason
        how = reason.reason if isinstance(reason, WorkerDied) else f"{type(reason).__name__}: {reason}"
        due = max(0.0, self._pause - monotonic())
        error = WorkerDied(name, f"a child process could not start: {how}; the next attempt is due in {due:.1f} s")
        error.__cause__ = reason
        return error

    def _give_back(self, mine: list[Child]) -> None:
        """The child in the list, if there is one, is not the caller's any more. May be called again if interrupted."""
        if not mine:
            return
        child, place = mine[0], None
        if not child.ended and not child.alive():
            child.end()
        with self._lock:
            if self._busy.get(child) is not mine:  # it was given back before
                mine.clear()
                return
            if child.ended or self._closed:
                if child in self._places:
                    place = self._places.index(child)
                    self._places[place] = None
                del self._busy[child]
                self._tally.died += child.ended
            else:
                while self._waiting:
                    waiter = self._waiting.popleft()
                    if not waiter.left:
                        waiter.mine.append(child)
                        self._busy[child] = waiter.mine
                        waiter.wake()
                        break
                else:
                    if child not in self._idle:
                        self._idle.append(child)
                    del self._busy[child]
            mine.clear()
        if not child.ended and self._closed:
            child.dismiss()
        elif place is not None and monotonic() >= self._pause:
            self._fill(place, self._setup.timeout)
        self._fail_waiters()
        self._tell_leavers()

    def _fail_waiters(self) -> None:
        """If there is no child any more, nor will be one, nobody is to wait for it."""
        with self._lock:
            if self._has_any():
                return
            failed, self._waiting = [*self._waiting], deque()
        for waiter in failed:
            waiter.wake()


class _Late(WorkerDied):
    """A child was not ready in time."""


def settle(patience: float = 0.0) -> None:
    """Wait for children that were dismissed, as `reap` does; if there is no crew left, memory is returned, too."""
    reap(patience)
    if all(crew._closed for crew in list(_crews)):
        pool.trim()


def _at_exit() -> None:
    """Those that idle may end by themselves. Batchers have given the others a moment already."""
    until = monotonic() + EXIT_WAIT
    for crew in list(_crews):
        crew.kill(max(0.001, until - monotonic()))  # one that is left half-way to its start would say so
    reap(max(0.001, until - monotonic()))


def _after_fork_in_child() -> None:
    for crew in list(_crews):
        crew._fresh()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
