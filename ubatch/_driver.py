"""The thread driver: what becomes of an item; starting, stopping, forking.

Purpose: `Driver` is the engine under `UBatch`. Callers put tickets in (`_intake`); the worker whose turn it is
(`_turns`) cuts batches, calls the handler and delivers the outcomes.

Guarantees:
- Every accepted ticket is delivered once: by a worker; by `stop`, when its time is up; after a worker's
  death; or, in a forked child, by the fork hook.
- A batch is cut when a worker is free to run it, never before.
- No user code runs while a lock is held.

Assumptions: as in `_turns`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections import deque
from functools import partial

from . import _native, _observing
from ._attempt import Attempt, Raised, description
from ._binding import Binder
from ._ceiling import Ceiling
from ._isolation import Isolating
from ._lanes import Lanes, too_late
from ._log import ERROR, say
from ._native import get_ident, monotonic
from ._observing import Observed
from ._policy import Adaptive, Window
from ._recorder import Recorder
from ._schedule import Fifo, claim_all
from ._seats import NEVER, NOBODY, Seat
from ._terms import Rules
from ._turns import Turns
from ._waiters import PENDING, BlockingTicket, ThreadTicket, Ticket, blocking, deliver
from .errors import Stopped, WorkerDied
from .stats import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._executor import Renewable
    from .stats import Stats

EXIT_WAIT = 2.0
"""Seconds that the interpreter's exit waits for running handlers, all batchers together."""


class Driver(Turns, Observed):
    """The engine under `UBatch`; see the head of the file."""

    def __init__(
        self, name: str, max_size: int, policy: Window | Adaptive, rules: Rules, isolate: bool, workers: int
    ) -> None:
        self._name = name
        self._max_size = max_size
        self._policy = policy
        self._rules = rules
        self._isolate = isolate
        self._workers = workers
        self._ceilings = [Ceiling()]  # one for each post, where batches that fail are split; used by its worker alone
        self._handlers: tuple[Callable[..., Any], ...] = ()  # one for each post, or one for all
        self._place: Renewable | None = None  # where they run, if not in the workers' threads
        self._threads: set[int] = set()  # identities of the threads that run handlers
        self._binder: Binder | None = None
        self._started = False  # whether a worker may come
        self._closed = False  # whether items are refused
        self._warned = False
        self._simple = False  # whether a call with one argument needs but to be appended
        self._fresh()
        _observing.register(self)
        self._heed()

    def _fresh(self) -> None:
        """Make all that a forked child must not share with its parent."""
        self._lock = _native.reentrant_lock()  # guards the coming and going of workers
        self._seat: Seat = NOBODY  # of who leads
        self._crew: set[Seat] = set()  # of all workers; changed under _lock
        self._idle: list[Seat] = []  # of those that wait to be called, but for the leader
        self._threads.clear()
        self._sorting = _native.reentrant_lock()  # guards what Lanes wants done by one at a time; taken after _lock
        self._schedule: Fifo | Lanes = Fifo()
        if self._rules.special:
            self._specialise()
        self._recorder = Recorder(_observing.observers_of(self))
        self._counters = Counters()  # written by the leader alone, but for errors
        self._counting = _native.reentrant_lock()  # guards the counting of errors, by any worker
        self._given_up = Counters()  # what others count; guarded by _lock
        self._untold: deque[Callable[[], None]] = deque()  # what the policy is to be told by the next that leads
        self._farewells: deque[Ticket] = deque()  # of those who wait until the workers have nothing left to do
        self._leaving: set[Seat] = set()  # tickets on other seats than the crew's, for a fork to find

    def __del__(self) -> None:
        schedule = getattr(self, "_schedule", None)
        if schedule is not None and schedule:  # there never was a worker, and never will be
            self._give_up_queue(partial(Stopped, self._name))
        if _observing.mourners:
            _observing.mourn(self)

    def _heed(self) -> None:
        self._recorder.heed(_observing.observers_of(self))
        self._simplify()

    def _snapshot(self) -> Stats:
        recorded = self._recorder.recorded()  # before what is counted as batches begin
        running = sum(len(seat.batch) for seat in [*self._crew] if seat.mine)
        learned = self._policy.cost
        a, c = (learned.a, learned.c) if learned is not None else (0.0, 0.0)
        present = {"queued": len(self._schedule), "running": running, "a": a, "c": c}
        processes = None if self._place is None else self._place.stats
        return self._counters.snapshot(self._given_up, recorded, **present, processes=processes)

    # -- working ------------------------------------------------------------------------------------------

    def _serve(self, seat: Seat) -> bool:
        """Lead until nothing is queued: then `wake_at` says that it sleeps. `False` if it does not lead any more."""
        queue = self._schedule.queue
        seat.wake_at = NEVER
        while self._seat is seat:
            policy, schedule = self._policy, self._schedule
            if not queue and not schedule.sorted:
                if not policy.passive and not self._closed:
                    self._await_returners(seat)
                    if queue:
                        continue
                seat.strong = None
                seat.wake_at = 1
                if not queue:
                    return True
                seat.wake_at = NEVER
            elif self._closed or (policy.passive and not schedule.stale) or not self._hold(seat):
                self._run(seat)
        return False

    def _await_returners(self, seat: Seat) -> None:
        """Nothing is queued: sleep through the first arrivals if the policy expects more."""
        self._tell_policy()
        now = monotonic()
        hold = self._policy.expect(now, self._most(seat))
        if hold is not None:
            seat.wake_at = hold.wake_at
            if len(self._schedule.queue) < hold.wake_at and not self._closed:
                seat.pause(min(max(hold.until - now, 0.0), _native.MAX_WAIT))
            seat.wake_at = NEVER

    def _hold(self, seat: Seat) -> bool:
        """Wait if the policy says so; `False` if it says to cut."""
        schedule, policy, most = self._schedule, self._policy, self._most(seat)
        enough = 0
        if schedule.stale:
            self._purge(most)
        if policy.passive:
            return False
        self._tell_policy()
        now, queued = monotonic(), len(schedule)
        try:
            if isinstance(schedule, Fifo):
                hold = schedule.hold(policy, now, most)
            else:
                with self._sorting:
                    hold = schedule.hold(policy, now, most)
                enough = 1  # there may be a deadline among those that came meanwhile
        except IndexError:
            return True
        if hold is None:
            return False
        seat.wake_at = hold.wake_at
        woken = True
        if len(schedule.queue) < (enough or hold.wake_at) and not self._closed:
            woken = seat.pause(min(max(hold.until - now, 0.0), _native.MAX_WAIT))
        seat.wake_at = NEVER
        # else time is up, whatever the clock says now; a burst that goes on, or a dismissal, is another matter
        return woken or schedule.stale or len(schedule) > queued or self._seat is not seat

    def _purge(self, most: int) -> None:
        """Throw away queued items that do not count any more."""
        schedule = self._schedule
        if isinstance(schedule, Fifo):
            self._counters.cancelled += schedule.purge(most)
            return
        with self._sorting:
            schedule.purge(most, monotonic())
        self._count_gone(schedule)
        self._let_in(schedule)

    def _take(self, schedule: Lanes, batch: list[Any], most: int) -> None:
        """Take a batch of tickets with terms."""
        with self._sorting:
            schedule.take(most, batch, monotonic(), self._policy.cost)
        self._counters.cancelled += claim_all(batch)
        self._count_gone(schedule)
        if schedule.lobby or schedule.expired or schedule.failed:
            self._let_in(schedule)

    def _count_gone(self, schedule: Lanes) -> None:
        self._counters.cancelled += schedule.gone  # by the worker's own looks alone
        schedule.gone = 0

    def _most(self, seat: Seat) -> int:
        """The largest batch that a worker is to take now, in items."""
        return self._ceiling(seat).limit(self._max_size) if self._isolate else self._max_size

    def _ceiling(self, seat: Seat) -> Ceiling:
        while len(self._ceilings) <= seat.post:
            self._ceilings.append(Ceiling())
        return self._ceilings[seat.post]

    def _run(self, seat: Seat) -> None:
        """Cut a batch, call the handler, deliver."""
        most = self._most(seat) if self._isolate else self._max_size
        batch: list[Any] = []
        seat.batch = batch
        handlers, binder, counters, recorder = self._handlers, self._binder, self._counters, self._recorder
        schedule = self._schedule
        if isinstance(schedule, Lanes):
            self._take(schedule, batch, most)
        else:
            cancelled = schedule.take(most, batch)
            if cancelled:
                counters.cancelled += cancelled
        if not batch:
            return
        assert handlers and binder is not None, "a worker without a handler"
        handler, policy = handlers[0], self._policy
        count = len(batch)
        counters.items += count
        reason = "drained" if self._closed else "full" if count >= most else policy.reason
        counters.cuts[reason] += 1
        watched = policy.watch()
        began = monotonic()
        if watched:
            self._tell_policy()
            arrived = [ticket.arrived for ticket in batch]
            if schedule.special:
                arrived.sort()
            policy.cut(began, arrived, len(schedule), most)
        seat.mine.append(True)  # from here on others may lead; see `_staff`
        if seat.dismissed:  # after the look of _dismiss at `mine`: one of the two finds the batch
            self._abandon(seat)
            return
        begun = recorder.begin(self._name, batch) if recorder.tracers else None
        if self._workers > 1:
            handler = handlers[seat.post % len(handlers)]
            self._hand_on(seat)
            began = monotonic()
        attempt = Isolating(self._ceiling(seat)) if self._isolate else Attempt()
        args = kwargs = raised = None
        for args, kwargs in attempt.calls(batch, binder):
            try:
                attempt.output = handler(*args, **kwargs)
            except BaseException as error:
                error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)  # without this frame
                attempt.output = Raised(error)
                raised = error
            if not seat.mine:  # stop() gave up on this batch while the handler ran
                break
        done = monotonic()  # before anything is delivered: from here on callers return
        took = done - began
        if begun is not None:
            begun.leave()
        sound = raised is None and args is not None  # else no call fitted the handler
        args = kwargs = attempt.output = None
        try:
            seat.mine.pop()
        except IndexError:  # it has, if only just now
            if begun is not None:
                begun.end(None)
            del batch, attempt, raised
            return
        if attempt.errors:
            with self._counting:
                counters.failed_as(attempt.outcomes)
        late = too_late(batch, attempt.outcomes, monotonic()) if schedule.special else ()
        if late:
            with self._counting:
                counters.failed("DeadlineExceeded", len(late))
        if self._seat is not seat:
            self._lead(seat)  # before its callers come back with more
        if watched and not seat.dismissed:  # measured: told after delivery it costs more, as callers wait for the GIL
            told = done, count, took, len(self._schedule), sound
            if self._seat is seat:
                self._tell_policy()
                policy.finished(*told)
            else:
                self._untold.append(partial(policy.finished, *told))
        if recorder.attentive or attempt.errors or late or begun is not None:
            after = recorder.tell(self._name, batch, began, took, most, reason, attempt, raised, late, begun)
        else:
            after = recorder.note(batch, began, took, most)
        deliver(batch, attempt.outcomes, took)
        seat.batch = []
        del batch, attempt, raised, late, begun
        if after is not None:
            after()
            recorder.catch_up()
            del after
        if _native.current_hub() is not None:
            seat.has_hub = True
            _native.run_hub()

    def _tell_policy(self) -> None:
        """Called by the leader: it alone talks to the policy."""
        while self._untold:
            self._untold.popleft()()

    # -- giving up ----------------------------------------------------------------------------------------

    def _part(self) -> None:
        """A worker has left: see to what it may have left behind."""
        if not self._crew:
            if self._closed and self._place is not None:
                self._place.close(wait=True)
            self._farewell()
        elif self._closed:
            self._rouse()
        if self._seat is NOBODY and self._schedule:
            self._call_leader()

    def _bury(self, seat: Seat, error: BaseException) -> None:
        """A worker died: fail what it had and, if it led, what was queued. The next item gets a new worker."""
        died = partial(_because, error, WorkerDied, self._name, description(error))
        with self._lock:
            led = self._resign(seat)
            self._quit(seat)
        self._give_up_batch(seat, died)  # of a dismissed one, too: it may have died delivering
        if seat.dismissed:
            self._leaving.discard(seat)
            return
        if led:
            self._give_up_queue(died)
        self._part()
        if not threading.main_thread().is_alive():  # the interpreter exits, so perhaps no thread can be had any more
            return
        say(ERROR, "the worker of batcher %r died", self._name, error=error)  # last, as log handlers are user code

    def _give_up_batch(self, seat: Seat, error: Callable[[], Exception]) -> None:
        held = Seat()
        self._leaving.add(held)
        try:
            with self._lock:
                held.batch, seat.batch = seat.batch, []  # one of us delivers it
                pending = sum(ticket.outcome is PENDING for ticket in held.batch)
                self._given_up.failed(type(error()).__name__, pending)
        finally:  # a signal handler may raise
            self._give_up(held, error)

    def _give_up_queue(self, error: Callable[[], Exception]) -> None:
        held, away = Seat(), Seat()
        self._leaving.update((held, away))
        try:
            with self._sorting:
                schedule = self._schedule
                schedule.empty(held.batch)
                if isinstance(schedule, Lanes):
                    schedule.admission.clear(away.batch)
            cancelled = claim_all(held.batch)
            with self._lock:
                self._given_up.cancelled += cancelled
                self._given_up.dropped += len(held.batch)
        finally:
            self._give_up(held, error)
            self._send_away(away, error)

    def _give_up(self, held: Seat, error: Callable[[], Exception]) -> None:
        batch = held.batch
        deliver(batch, [error() if ticket.outcome is PENDING else ticket.outcome for ticket in batch])
        self._leaving.discard(held)

    # -- starting, stopping --------------------------------------------------------------------------------

    def _resume(self) -> None:
        """See to what there is, now that it is not closed any more."""
        self._farewell()  # to each stop() that this has overtaken
        if self._schedule:
            self._call_worker()

    def _close(self, drain: bool) -> None:
        with self._lock:
            self._closed = True
            self._simple = False
        self._clear(drain)

    def _clear(self, drain: bool) -> None:
        """Give up those that will not be run, now that it is closed."""
        if not drain or not self._handlers:
            self._give_up_queue(partial(Stopped, self._name))
        elif isinstance(self._schedule, Lanes):  # who waits for room has not been accepted yet
            away = Seat()
            self._leaving.add(away)
            with self._sorting:
                self._schedule.admission.clear(away.batch)
            self._send_away(away, partial(Stopped, self._name))

    def _send_away(self, held: Seat, error: Callable[[], Exception]) -> None:
        """Tell those who wait for room that there will be none."""
        for ticket in held.batch:
            ticket.admit(False)
        deliver(held.batch, [error() for _ in held.batch])
        self._leaving.discard(held)

    def _say_when_done(self, ticket: Ticket) -> None:
        """Deliver `ticket` when the workers have nothing left to do."""
        self._farewells.append(ticket)
        if not self._closed:  # overtaken by a start()
            self._farewell()
            return
        idle = self._seat is NOBODY and not self._crew
        if idle and (not self._handlers or not self._schedule):
            if self._place is not None:
                try:  # that may take its time, which is not this thread's
                    _native.start_thread(f"ubatch-{self._name}", self._part)
                    return
                except RuntimeError:  # a limit of the system; or the interpreter exits
                    pass
            self._part()
            return
        self._rouse()
        if self._schedule or self._seat.hirer:  # this very thread may be the one that is about to start a worker
            try:
                self._call_worker()
            except WorkerDied:
                pass  # everything has been given up, and farewell been said

    def _farewell(self, given_up: bool = False) -> None:
        """Tell those who wait for the workers to be done that they are; or that it came otherwise.

        Each is taken in one step with a look at how things are: it may have come just now.
        """
        while self._farewells:
            queued = self._started and bool(self._schedule)
            try:
                if given_up or not self._closed:
                    ticket, done = self._farewells.popleft(), False
                elif not queued and not self._crew:
                    ticket, done = self._farewells.popleft(), True
                else:
                    return
            except IndexError:
                return
            deliver([ticket], [done])

    def _dismiss(self) -> None:
        """Give up on the workers and on all that they have, as their time is up."""
        with self._lock:
            crew = [*self._crew]
            self._leaving.update(seat for seat in crew if seat.thread)  # until they retire
            for seat in crew:
                seat.dismissed = True
            self._crew.clear()
            self._idle.clear()
            self._threads.clear()
            self._seat = NOBODY
        self._give_up_queue(partial(Stopped, self._name))
        for seat in crew:
            self._abandon(seat)
            seat.wake(self)
        if self._place is not None:
            self._place.abandon()
        self._farewell(given_up=True)

    def _abandon(self, seat: Seat) -> None:
        """Fail the batch on a dismissed worker's seat, unless its handler has returned and it delivers."""
        try:
            seat.mine.pop()
        except IndexError:
            return
        self._give_up_batch(seat, partial(Stopped, self._name))

    def _cannot_wait(self) -> bool:
        """Whether waiting for the workers would wait for oneself; they drain and end by themselves."""
        # a lock is this thread's own if a signal handler or a __del__ came upon a submit, or a look at a future
        running = [ticket for seat in [*self._crew] for ticket in [*seat.batch]]
        tickets: list[Any] = [*self._schedule.next(sys.maxsize), *running]
        return (
            get_ident() in self._threads
            or self._lock._is_owned()
            or self._sorting._is_owned()
            or any(ticket.locked_here() for ticket in tickets)
        )

    def _stop(self, drain: bool, timeout: float | None, ticket: BlockingTicket | None = None) -> bool:
        self._close(drain)
        if self._cannot_wait():
            self._rouse()
            return False
        ticket = ticket or blocking((), {})
        if isinstance(ticket, ThreadTicket):
            ticket.thread = 0  # no link of a chain: it may give up waiting
        self._say_when_done(ticket)
        if _native.in_hub():  # a signal handler; a hub cannot wait
            return False
        if ticket.wait(timeout):
            return bool(ticket.outcome)
        if self._closed:  # not if a start() has overtaken
            self._dismiss()
        return False

    # -- forking ------------------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In the child: start anew; what was inherited has nobody to run it. No inherited lock is touched."""
        inherited: list[Any] = [*self._schedule.next(NEVER), *self._farewells]
        for seat in {*self._crew, *self._leaving}:
            inherited += seat.batch
            seat.mine.clear()
            seat.dismissed = True  # should this very thread be its worker's
        self._fresh()
        for ticket in {id(ticket): ticket for ticket in inherited}.values():
            ticket.orphan(WorkerDied(self._name, "it belongs to the parent of this forked process"))


def _because(cause: BaseException, make: Callable[..., Exception], *args: Any) -> Exception:
    error = make(*args)
    error.__cause__ = cause
    return error


def _drivers() -> list[Driver]:
    found = [ref() for ref in list(_observing.living.values())]
    return [driver for driver in found if isinstance(driver, Driver)]


def _after_fork_in_child() -> None:
    for driver in _drivers():
        driver._forked()


def _at_exit() -> None:
    """No drain: what is queued fails; running handlers get a moment; workers end while there is an interpreter."""
    until = monotonic() + EXIT_WAIT
    drivers = _drivers()
    for driver in drivers:
        driver._close(drain=False)
    for driver in drivers:
        # the thread itself waits, also where it has a hub, whose greenlets are not to go on now
        driver._stop(drain=False, timeout=max(0.0, until - monotonic()), ticket=ThreadTicket((), {}, 0))


def leave_before_executors() -> None:
    """At exit, let batchers be done before executors are: those of `concurrent.futures` do not wait for `atexit`."""
    global _leaves_early
    from concurrent.futures import process, thread  # noqa: F401 # what they do at exit is registered when they are loaded

    register = getattr(threading, "_register_atexit", None)  # what they use, from Python 3.9 on; the last comes first
    if register is not None and not _leaves_early:
        _leaves_early = True
        register(_at_exit)


_leaves_early = False
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
