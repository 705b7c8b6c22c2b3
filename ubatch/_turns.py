"""Workers, and which of them looks after the queue: the middle of the thread driver.

Purpose: `Turns` hires a native thread with the first item, up to as many as there may be, has them take turns at the
queue, and lets them go when they have idled. What one does whose turn it is, is `_serve` (`_driver`).

Guarantees:
- At most as many workers as there are to be; one of them leads, or a sign says that none does.
- An idle worker holds neither the batcher nor any item, result or exception: a forgotten batcher is collected.
- No user code runs while a lock is held.

How one worker at a time looks after the queue. `_seat` says who leads: it alone looks, holds, cuts, and talks to the
policy. An only worker leads for as long as it is there. Of several, the leader hands the lead on before it calls
the handler: to one that idles, asleep if nothing is queued, so that nobody is woken for nothing and a batch's worth of
items is not split among several; else it leaves a sign, `NOBODY` if another worker may come, `BUSY` if not. A worker
that is done leads again where there is a sign, else it idles until it is called.

Who sets `_seat`, each time in one step with a look at what it was, so that no lead is lost or taken twice:
- from a sign to itself: a worker that is free, unless it is dismissed;
- from `NOBODY`: who calls a worker that idles, hires one, or finds that there are enough: under `_lock`;
- from `BUSY` to `NOBODY`: who finds that more may come;
- from a worker: itself, as it hands on or resigns; or who lets more come beside an only worker that is at work;
- from anything to `NOBODY`: who gives up on all workers, under `_lock`. Then they are `dismissed`: they touch nothing
  any more.
A worker that idles says so in `_idle`, then looks for a sign; who leaves a sign looks into `_idle` in the same step. A
worker that retires leaves `_idle`, then looks whether it leads. Who leads may still be there for a moment.

A thread may come upon itself (a signal handler, a `__del__`) while it holds `_lock`, and wait for a batch there. So a
worker that has a batch does not wait for `_lock`, but for a moment to call another one, until it has delivered.

How no wake-up is lost without a lock. `seat.wake_at` is the queue length from which on a submitter looks after
the worker (0 of `NOBODY`: somebody is to be called). A submitter appends, then reads the seat and its `wake_at`; a
worker writes `wake_at`, or hands on its seat, then reads the queue's length, then sleeps, works or ends. Whichever
comes second sees the other. The token that wakes is a binary lock; one release too many is a harmless extra look.

How a batcher stays collectable and loses nothing. The idle worker holds a weak reference. Who wakes it puts a
strong one on the seat first, so the batcher lives on until the worker has taken over. The worker clears it
before it says, by `wake_at`, that it sleeps, and again after each wake-up.

Assumptions: the GIL orders these reads and writes; operations on list, set and deque are atomic; and nobody comes
between two steps without a call, an allocation or a jump backwards, which is what one step means above: neither
another thread, nor a signal handler or a garbage collection on the same one. Locks are held for a few steps only.
A trace or profile function written in Python, such as a debugger's, is a call between any two steps: under one
these guarantees do not hold where there are several workers.
"""

from __future__ import annotations

import sys
import weakref
from functools import partial

from . import _native
from ._intake import Intake
from ._native import get_ident
from ._seats import BUSY, NOBODY, Seat
from .errors import WorkerDied

TYPE_CHECKING = False

IDLE_EXIT = 10.0
"""Seconds without an item after which a worker thread ends."""

LOCK_WAIT = 0.1
"""Seconds that a worker waits for a lock: a thread that holds it may itself wait for this worker."""

ALL_BUSY = (BUSY,)


class Turns(Intake):
    """The workers' coming, leading, idling and going; see the head of the file."""

    if TYPE_CHECKING:  # the driver's
        _workers: int
        _crew: set[Seat]
        _idle: list[Seat]

        def _serve(self, seat: Seat) -> bool: ...
        def _part(self) -> None: ...
        def _bury(self, seat: Seat, error: BaseException) -> None: ...

    # -- coming -------------------------------------------------------------------------------------------

    def _call_worker(self) -> None:
        """Wake who leads; where nobody does, call one that idles, or hire one. Raises WorkerDied: none can be had."""
        seat = Seat()
        seat.hirer = get_ident()
        try:
            with self._lock:
                if self._seat is NOBODY:
                    seat.post = self._vacancy()
                    others = (seat,) if len(self._crew) < self._workers else ALL_BUSY
                    if self._seat is NOBODY:
                        self._seat = (self._idle or others)[-1]
                if self._seat.thread:
                    self._rise(self._seat)
                    self._seat.wake(self)
                elif self._seat.hirer == seat.hirer:  # or a signal handler, or a __del__, comes upon the starting of it
                    seat = self._seat
                    self._crew.add(seat)
                # else one is on its way, and has yet to look at the queue; or all are busy
            if self._seat is seat:
                _start(self, seat)  # if it is the second thread, it finds the seat claimed
                seat.hirer = 0
        except RuntimeError as error:
            if not seat.claim():  # a signal handler's error: there is a thread
                raise
            if not self._make_do(seat):
                self._bury(seat, error)
                raise WorkerDied(self._name, str(error)) from error
        except BaseException as error:  # interrupted by a signal handler, or out of memory; others count on it
            if self._seat is seat:
                try:
                    self._crew.add(seat)
                    _start(self, seat)
                except BaseException:
                    self._bury(seat, error)
            raise

    def _vacancy(self) -> int:
        """The first post that has no worker."""
        taken = {seat.post for seat in [*self._crew]}
        return next(post for post in range(len(taken) + 1) if post not in taken)

    def _make_do(self, seat: Seat) -> bool:
        """No thread can be started for a seat: leave the queue to those that work; `False` if there are none."""
        with self._lock:
            self._crew.discard(seat)
            if not self._crew:
                return False
            if self._seat is seat:
                self._seat = (self._idle or ALL_BUSY)[-1]
            self._rise(self._seat)
            self._seat.wake(self)
        return True

    def _sit_down(self, seat: Seat) -> None:
        if not seat.dismissed:
            self._threads.add(seat.thread)

    def _staff(self, workers: int) -> None:
        """So many workers there may be from now on, at most; those that are too many leave when they are done."""
        with self._lock:
            self._workers = workers
            seat = self._seat
            self._rise(seat)
            if seat.mine and self._seat is seat:  # an only worker leads while it works
                self._seat = NOBODY
            self._invite()
        if self._schedule:
            self._call_leader()
        self._rouse()

    # -- taking turns -------------------------------------------------------------------------------------

    def _shift(self, seat: Seat) -> bool:
        """Work until there is nothing to do; `False` if the thread is to end then."""
        while True:
            if not self._serve(seat):
                if self._rest(seat):
                    return True
                if self._seat is seat:
                    continue
            elif not self._closed and seat.post < self._workers:
                return True
            if self._retire(seat):
                return False

    def _lead(self, seat: Seat) -> None:
        """A worker is free: it leads if nobody does."""
        if seat.post >= self._workers:
            return
        sign = self._seat
        if (sign is NOBODY or sign is BUSY) and self._seat is sign and not seat.dismissed:
            self._seat = seat

    def _hand_on(self, seat: Seat) -> None:
        """The leader goes to work: another worker leads, or will when there is one."""
        self._rise(seat)
        if self._seat is seat:
            self._seat = (self._idle or ALL_BUSY)[-1]
        self._rise(self._seat)
        self._invite()
        if not self._schedule:
            return
        if self._seat is not NOBODY:
            self._seat.wake(self)
        elif self._lock.acquire(timeout=LOCK_WAIT):
            try:
                self._call_leader()
            finally:
                self._lock.release()

    def _rest(self, seat: Seat) -> bool:
        """A worker that does not lead idles until it is called; `False` if it leads after all, or is to end."""
        seat.strong = None
        seat.wake_at = 1  # before it may be called
        if seat.post >= self._workers or (self._closed and not self._schedule):
            return False
        if seat not in self._idle and not seat.dismissed:
            self._idle.append(seat)
        # after it has said that it idles: who leaves a sign looks the other way round
        self._lead(seat)
        self._rise(seat)
        return self._seat is not seat and not seat.dismissed

    def _invite(self) -> None:
        """Where all are busy, but more may come, the next item calls one."""
        if len(self._crew) < self._workers and self._seat is BUSY:
            self._seat = NOBODY

    def _rise(self, seat: Seat) -> None:
        """Who leads does not wait to be called."""
        if self._seat is seat and seat in self._idle:
            self._idle.remove(seat)

    def _call_leader(self) -> None:
        """There is something in the queue that nobody may know of."""
        self._call_worker_for(self._seat)

    def _reconsider(self) -> None:
        """The policy, or what it goes by, has changed: let the leader look again."""
        self._seat.wake(self)

    def _rouse(self) -> None:
        """Let all workers look whether they are needed any more."""
        for seat in [*self._crew]:
            seat.wake(self)

    # -- going --------------------------------------------------------------------------------------------

    def _retire(self, seat: Seat) -> bool:
        """Leave; `False` if the worker is to stay, as an item came at the last moment.

        It also stays where the lock is not to be had: then a signal handler has come upon a thread that holds
        it, and may wait for this very worker.
        """
        if not self._lock.acquire(timeout=LOCK_WAIT):
            return False
        try:
            if seat.dismissed:
                self._leaving.discard(seat)
                return True
            if self._resign(seat) and self._schedule and self._seat is NOBODY:
                self._seat = seat
                return False
            self._quit(seat)
        finally:
            self._lock.release()
        _native.destroy_hub()  # before stop() returns: perhaps to the interpreter's exit, which does not bear it beside
        self._part()
        return True

    def _resign(self, seat: Seat) -> bool:
        """A worker is not to lead any more; whether it did."""
        if seat in self._idle:
            self._idle.remove(seat)  # before the look at who leads: from here on nobody calls it
        if self._seat is not seat:
            return False
        self._seat = NOBODY
        return True

    def _quit(self, seat: Seat) -> None:
        """A worker is one no longer; it has resigned. `_lock` is held."""
        self._crew.discard(seat)
        self._threads.discard(seat.thread)
        self._invite()


def _start(driver: Turns, seat: Seat) -> None:
    if sys.is_finalizing():
        raise RuntimeError("the interpreter is shutting down")
    # in a box, as the thread's own records hold its arguments for as long as it runs
    box = [driver]
    _native.start_thread(f"ubatch-{driver._name}", partial(_work, box, seat))


def _work(box: list[Turns], seat: Seat) -> None:
    """The worker thread."""
    driver: Turns | None = None
    try:
        driver = box.pop()
    except IndexError:  # started twice
        return
    if not seat.claim():  # hired twice
        return
    ref = weakref.ref(driver)
    try:
        seat.thread = get_ident()
        driver._sit_down(seat)
        ref = weakref.ref(driver, lambda _: seat.ring())
        while driver is not None and driver._shift(seat):
            driver = None
            woken = seat.pause(IDLE_EXIT)
            driver = seat.strong or ref()
            seat.strong = None
            if driver is not None and not woken and driver._retire(seat):
                break
    except BaseException as error:
        driver = driver or seat.strong or ref()
        if driver is not None:
            driver._bury(seat, error)
    finally:
        driver = None
        _native.destroy_hub()
