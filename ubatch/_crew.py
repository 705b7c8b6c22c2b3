"""Child processes that run functions: the parent's side. Starting them, calling them, replacing them.

Purpose: a `Crew` has places for a number of children (`_children`). `call` runs a function in one that is free, and
waits for what comes of it in this very thread.

Guarantees:
- A call returns what the function returned, raises what it raised, or raises `WorkerDied`, which says how the process
  ended. It is made once more for each retry that is allowed.
- A child that dies is replaced at once; or, if it had nothing to do then, with the next call that comes upon it, or
  with `start`. Calls go to the others meanwhile, or wait.
- If one cannot start, the next attempt is put off, for longer each time. Once one has been ready, attempts go on by
  themselves until some have failed one after another, and calls wait for them (`_backoff` says how long there is
  hope). Then, and if none was ever ready, the next attempt comes with a call, and calls fail, at once and with the
  reason, while there is no child at all. An idle crew starts nothing for ever.
- Who calls may be interrupted anywhere: no child is lost by that, and nobody else waits for ever.
- No child outlives its crew, or this process, by more than `_child.GRACE` seconds; nor does a call its time limit.
- A process that is forked off this one has a crew of its own; the parent's is unaffected.

How. A child that is ready is in `_idle`, or owned by the thread that has taken it and gives it back. One that is to be
ready is started by a thread of its own, one for each: so they start side by side, and no caller waits for one while
another is free. That thread also sits out the pause before an attempt; `start` and whatever ends the crew cut it short.

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
from ._backoff import Backoff
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
        """Let it go on. The crew's lock is held; may be called again, if interrupted."""
        if self.gate.locked():
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
        self._filling: set[int] = set()  # places for which a child is being started, or is once a pause is over
        self._resting: set[_Waiter] = set()  # threads of such places that sit out a pause
        self._waiting: deque[_Waiter] = deque()  # for a child
        self._leavers: list[_Waiter] = []  # who wait until nothing is filling, or also nothing busy
        self._backoff = Backoff()  # of starts
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
        """Start all children that are not there, side by side, and wait until they are ready. Nothing is tried twice.

        Args:
            timeout: seconds; `None` for that of the setup.

        Raises:
            RuntimeError: it is closed, or was meanwhile.
            WorkerDied: one of them died.
            TimeoutError: one was not ready in time.
            Exception: what one of them raised as it started; or it cannot be started.
        """
        timeout = self._setup.timeout if timeout is None else timeout
        mine: list[Child] = []
        try:
            self._give_up_dead(mine, timeout)
        finally:
            self._give_back(mine, timeout)
        waiter = _Waiter()
        with self._lock:
            self._check_open()
            self._backoff.forget()
            self._end_pauses()
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
        order: list[int] = []  # the place; who takes it out, that thread or this one, sees to it
        began = monotonic()
        try:
            with self._lock:
                if self._closed or place in self._filling or self._places[place] is not None:
                    return
                order.append(place)
                self._filling.add(place)
            _native.start_thread(f"{self.name}-start", partial(self._start_one, order, timeout))
        except BaseException as error:  # no thread can be started; or this one was interrupted
            with self._lock:
                is_mine = bool(order)
                order.clear()
            if is_mine:
                if isinstance(error, Exception):
                    self._failed(began, error)
                self._filled(place, None)
            if not isinstance(error, Exception):
                raise

    def _start_one(self, order: list[int], timeout: float) -> None:
        """A thread: start a child for a place, and wait until it is ready; again, as long as there is hope."""
        with self._lock:
            if not order:  # started twice, or given up
                return
            place = order.pop()
        child, again = None, True
        while child is None and again:
            self._rest()
            began = monotonic()
            try:
                child = self._started(place, began + timeout)
            except Ended as ended:  # another error, which is never raised here: a traceback would refer to the crew
                is_late = monotonic() >= began + timeout
                error = (
                    _Late(self.name, str(ended)) if is_late else WorkerDied(self.name, f"{ended}, before it was ready")
                )
                again = self._failed(began, error)
            except BaseException as error:
                again = self._failed(began, error)
        self._filled(place, child)

    def _rest(self) -> None:
        """Sit out the pause after a start that failed, unless it is ended."""
        waiter = _Waiter()
        with self._lock:
            pause = self._backoff.until - monotonic()
            if pause <= 0.0 or self._closed:
                return
            self._resting.add(waiter)
        waiter.gate.acquire(True, pause)
        with self._lock:
            self._resting.discard(waiter)

    def _end_pauses(self) -> None:
        with self._lock:
            for waiter in self._resting:
                waiter.wake()

    def _started(self, place: int, until: float) -> Child:
        """A child that is ready, by some moment. Raises Exception: why there is none."""
        child = None
        try:
            self._check_open()
            child = self._places[place] = Child(self.name, self._setup)
            if self._closed:  # before this could be found to be killed
                child.kill()
            child.ready(until)
            return child
        except BaseException:
            if child is not None:
                child.kill()
                child.end()
            self._places[place] = None
            raise

    def _failed(self, began: float, error: BaseException) -> bool:
        """A child could not start. Returns whether to try again: not if who waits for starts is to be told."""
        with self._lock:
            self._backoff.failed(began, monotonic(), error)
            for waiter in self._leavers:
                waiter.error = waiter.error or error
            return self._backoff.hopeful and not self._closed and not self._leavers

    def _filled(self, place: int, child: Child | None) -> None:
        """A place has a child that is ready; or it has none, and none is being started."""
        mine: list[Child] = []
        with self._lock:
            self._filling.discard(place)
            if child is not None:
                self._backoff.succeeded()
                mine.append(child)  # for a moment
                self._busy[child] = mine
        self._give_back(mine)
        self._fail_waiters()
        self._tell_leavers()

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
            self._leavers.append(waiter)
            self._end_pauses()
            for other in self._waiting:
                other.wake()
            self._waiting.clear()
            starting = [child for place in self._filling if (child := self._places[place]) is not None]
        for child in starting:
            child.kill()
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
            for waiter in self._leavers:
                waiter.wake()
            self._leavers.clear()

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
            WorkerDied: there is none, and no hope that one can be started.
            RuntimeError: the crew is closed.
        """
        while not self._take_idle(mine):
            with self._lock:
                missing = self._missing()
                is_worth_it = self._backoff.hopeful or monotonic() >= self._backoff.until
            if missing and is_worth_it:
                self._fill(missing[0], self._setup.timeout)
            waiter = _Waiter(mine)
            try:
                with self._lock:
                    if self._idle:
                        continue
                    is_any = self._has_any()
                    if is_any:
                        self._waiting.append(waiter)
                if is_any:
                    waiter.gate.acquire()
            finally:
                with self._lock:
                    waiter.left = True  # or it has one
            if mine:
                return
            with self._lock:
                self._check_open()
                if not (self._backoff.hopeful and (is_any or self._missing())):
                    raise self._none(name)

    def _take_idle(self, mine: list[Child]) -> bool:
        """Take a child that has nothing to do, if there is one. Raises RuntimeError: the crew is closed."""
        while True:
            with self._lock:
                self._check_open()
                if not self._idle:
                    return False
                self._claim(mine, self._idle[-1])
            if mine[0].alive():
                return True
            self._give_back(mine)
            self._give_up_dead(mine)  # what killed it may have killed others

    def _give_up_dead(self, mine: list[Child], timeout: float | None = None) -> None:
        """Have children replaced that died while they had nothing to do.

        Args:
            mine: an empty list, of which the caller gives back what is left there if this is interrupted.
            timeout: as of `_give_back`.
        """
        for child in [*self._idle]:
            if not child.alive():
                with self._lock:
                    if child in self._idle:
                        self._claim(mine, child)
                self._give_back(mine, timeout)

    def _claim(self, mine: list[Child], child: Child) -> None:
        """Take one that idles. The lock is held; nothing is lost, wherever this is interrupted."""
        mine.append(child)
        self._busy[child] = mine
        self._idle.remove(child)

    def _none(self, name: str) -> WorkerDied:
        """Why there is no child."""
        reason = self._backoff.reason
        how = reason.reason if isinstance(reason, WorkerDied) else f"{type(reason).__name__}: {reason}"
        due = max(0.0, self._backoff.until - monotonic())
        error = WorkerDied(name, f"a child process could not start: {how}; the next attempt is due in {due:.1f} s")
        error.__cause__ = reason
        return error

    def _give_back(self, mine: list[Child], timeout: float | None = None) -> None:
        """The child in the list, if there is one, is not the caller's any more. May be called again if interrupted.

        Args:
            mine: the list.
            timeout: seconds in which another one must be ready if it has ended; `None` for those of the setup.
        """
        if not mine:
            return
        child, place = mine[0], None
        if not child.ended and not child.alive():
            child.end()
        with self._lock:
            self._hand_over()
            is_mine = self._busy.get(child) is mine  # else it was given back before
            if is_mine and (child.ended or self._closed):
                if child in self._places:
                    place = self._places.index(child)
                    self._places[place] = None
                del self._busy[child]
                if child.ended:
                    self._tally.died += 1
                    self._backoff.forget()  # that it was there says that they can start
            elif is_mine and self._waiting:
                self._waiting[0].mine.append(child)
                self._hand_over()
            elif is_mine:
                if child not in self._idle:
                    self._idle.append(child)
                del self._busy[child]
        if is_mine and not child.ended and self._closed:
            child.dismiss()
        elif place is not None:
            self._fill(place, self._setup.timeout if timeout is None else timeout)
        self._fail_waiters()
        self._tell_leavers()
        mine.clear()

    def _hand_over(self) -> None:
        """Let those go on who are first in line and have a child by now. The lock is held.

        Wherever this is interrupted, whoever comes next completes it.
        """
        while self._waiting and (self._waiting[0].left or self._waiting[0].mine):
            waiter = self._waiting[0]
            if not waiter.left:
                self._busy[waiter.mine[0]] = waiter.mine
                waiter.wake()
            self._waiting.popleft()

    def _fail_waiters(self) -> None:
        """If there is no child any more, nor will be one, nobody is to wait for it."""
        with self._lock:
            if self._has_any():
                return
            for waiter in self._waiting:
                waiter.wake()
            self._waiting.clear()


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
