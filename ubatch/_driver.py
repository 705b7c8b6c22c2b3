"""The thread driver: the queue, the worker thread, starting, stopping, forking.

Purpose: `Driver` is the engine under `UBatch`. Callers `_put` tickets; a worker, a native thread that comes with
the first item and goes when it has idled, cuts batches, calls the handler and delivers the outcomes.

Guarantees:
- Every accepted ticket is delivered once: by the worker; by `stop`, when its time is up; after a worker's
  death; or, in a forked child, by the fork hook.
- One worker at a time. A batch is cut when the worker is free to run it, never before.
- `_put` takes no lock while the worker is awake, and never waits for one that its own thread holds, so that
  it is safe in a signal handler and in a `__del__`. No user code runs while a lock is held.
- An idle worker holds neither the batcher nor any item, result or exception: a forgotten batcher is collected.

How there is one worker. `_seat` says who it is. It is set under `_lock`, from `NOBODY` to a new seat by who
hires, and back by the worker that leaves or by who gives up on it. A worker that finds another seat there has
been dismissed: it touches nothing any more.

How no wake-up is lost without a lock. `seat.wake_at` is the queue length from which on a submitter looks after
the worker (0 on the seat of `NOBODY`). A submitter appends, then reads the seat and its `wake_at`; a worker
writes `wake_at`, or leaves its seat, then reads the queue's length, then sleeps or ends. Whichever comes second
sees the other. The token that wakes is a binary lock; one release too many is a harmless extra look.

How a batcher stays collectable and loses nothing. The idle worker holds a weak reference. Who wakes it puts a
strong one on the seat first, so the batcher lives on until the worker has taken over. The worker clears it
before it says, by `wake_at`, that it sleeps, and again after each wake-up.

Where items have terms (`_lanes`), submitters append to the same queue. `_sorting` guards what is sorted, and how many
may wait: held by the worker while it decides and takes, and by submitters where the queue is bounded; it is taken
after `_lock`, never before. Tickets are claimed, told and delivered without it, as that may take a future's own lock.
Whoever takes items out of a bounded queue lets in those who wait for room; a deadline's caller leaves by itself, or a
timer of its loop or the alarm's thread tells it, and the worker passes over what has expired.

Assumptions: the GIL, or memory ordering as strong, orders these reads and writes; operations on list and deque
are atomic. `_lock` is held for a few steps only; within them, a check of `_seat` and its setting are adjacent,
so that neither a signal handler nor a garbage collection on the same thread comes between.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections import deque
from functools import partial

from . import _alarm, _native, _observing
from ._attempt import Attempt, Raised, description
from ._binding import UNBOUND, Binder
from ._isolation import Isolating
from ._lanes import Lanes, too_late
from ._native import get_ident, monotonic
from ._observing import Observed
from ._policy import Adaptive, Window
from ._recorder import Recorder
from ._schedule import Fifo, claim_all
from ._terms import Rules
from ._waiters import PENDING, BlockingTicket, ThreadTicket, Ticket, blocking, deliver
from .errors import DeadlineExceeded, QueueFull, Stopped, WorkerDied, warn_caller
from .stats import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._ceiling import Ceiling
    from ._terms import Asked
    from .stats import Stats

NEVER = sys.maxsize
"""`wake_at` of a worker that is awake."""

IDLE_EXIT = 10.0
"""Seconds without an item after which a worker thread ends."""

EXIT_WAIT = 2.0
"""Seconds that the interpreter's exit waits for running handlers, all batchers together."""


class Seat:
    """A worker's place at its batcher."""

    __slots__ = ("batch", "bell", "has_hub", "hirer", "mine", "strong", "thread", "token", "unclaimed", "wake_at")

    def __init__(self) -> None:
        self.wake_at = 0  # until a worker sits down
        self.hirer = 0  # identity of the thread that is about to start the worker's
        self.thread = 0  # identity of the worker's thread, once it runs
        self.token = _native.allocate_lock()
        self.token.acquire()
        self.has_hub = False  # whether the handler has used code that gevent patched
        self.bell: Ticket | None = None  # what the worker waits by then, as the token is not enough
        self.strong: Driver | None = None
        self.unclaimed = [True]  # popped by the thread that sits down
        self.batch: list[Any] = []  # tickets taken from the queue and not all delivered yet
        self.mine: list[bool] = []  # while the handler runs: who pops its one element delivers `batch`

    def wake(self, driver: Driver) -> None:
        self.strong = driver  # before the release; see the head of the file
        self.ring()

    def ring(self) -> None:
        try:
            self.token.release()
        except RuntimeError:  # released already: the worker is about to look
            pass
        bell = self.bell
        if bell is not None:
            deliver([bell], [None])

    def pause(self, timeout: float) -> bool:
        """Wait for `ring`, `timeout` seconds at most; say whether it came.

        A worker whose handler has used code that gevent patched waits by its hub: a lock that it has held may
        need the hub to run before others get it.
        """
        if not self.has_hub:
            return self.token.acquire(True, timeout)
        ticket = blocking((), {})
        self.bell = ticket  # before the look at the token; `ring` does it the other way round
        try:
            return self.token.acquire(False) or (ticket.wait(timeout) and self.token.acquire(False))
        finally:
            self.bell = None


NOBODY = Seat()


class Driver(Observed):
    """The engine under `UBatch`; see the head of the file."""

    def __init__(
        self, name: str, max_size: int, policy: Window | Adaptive, rules: Rules, ceiling: Ceiling | None
    ) -> None:
        self._name = name
        self._max_size = max_size
        self._policy = policy
        self._rules = rules
        self._ceiling = ceiling  # of a batcher that splits what fails; used by the worker alone
        self._handler: Callable[..., Any] | None = None
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
        self._lock = _native.reentrant_lock()  # guards the setting of _seat
        self._seat = NOBODY
        self._sorting = _native.reentrant_lock()  # guards what Lanes wants done by one at a time; taken after _lock
        self._schedule: Fifo | Lanes = Fifo()
        if self._rules.special:
            self._specialise()
        self._recorder = Recorder(_observing.observers_of(self))
        self._counters = Counters()  # written by the worker alone
        self._given_up = Counters()  # what others count; guarded by _lock
        self._farewells: deque[Ticket] = deque()  # of those who wait until the worker has nothing left to do
        self._leaving: set[Seat] = set()  # tickets on other seats than _seat, for a fork to find

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
        seat = self._seat
        running = len(seat.batch) if seat.mine else 0
        learned = self._policy.cost
        a, c = (learned.a, learned.c) if learned is not None else (0.0, 0.0)
        present = {"queued": len(self._schedule), "running": running, "a": a, "c": c}
        return self._counters.snapshot(self._given_up, recorded, **present)

    # -- submitting ---------------------------------------------------------------------------------------

    def _put(self, ticket: Ticket) -> None:
        """Accept a ticket.

        Raises:
            TypeError: its arguments do not fit the handler.
            Stopped: the batcher accepts nothing.
            QueueFull: there is no room.
            WorkerDied: no worker thread can be started.
        """
        if not self._simple or ticket.kwargs or len(ticket.args) != 1:
            self._accept([ticket])
            return
        queue = self._schedule.queue
        queue.append(ticket)
        seat = self._seat
        if len(queue) >= seat.wake_at:
            if seat.wake_at:
                seat.wake(self)
            else:
                self._attend([ticket])

    def _put_all(self, tickets: Sequence[Ticket], asked: Asked | None = None) -> None:
        """Accept all tickets at one moment, or none. Raises as `_accept`."""
        now = monotonic()
        for ticket in tickets:
            ticket.arrived = now  # not when it was made: the caller's iterable may have taken its time
        self._accept(tickets, asked)

    def _accept(self, tickets: Sequence[Ticket], asked: Asked | None = None) -> None:
        """Accept all tickets, or none, as is asked. Raises as `_put`, and what `key` and `weight` raise."""
        if self._closed:
            raise Stopped(self._name)
        if not tickets:
            return
        binder = self._binder
        for ticket in tickets:
            ticket.call = UNBOUND if binder is None else binder.bind(ticket.args, ticket.kwargs)
        capture = self._recorder.capture
        if capture is not None:
            for ticket in tickets:
                ticket.context = capture()
        schedule = self._schedule
        if asked is not None or schedule.special:
            for ticket in tickets:
                ticket.terms = self._rules.terms(ticket.args, ticket.kwargs, ticket.arrived, asked)
            schedule = self._specialise()
            hasty = self._offer(schedule, tickets)
        else:
            schedule.queue.extend(tickets)
            hasty = False
        seat = self._seat
        if hasty or len(schedule.queue) >= seat.wake_at:
            if seat.wake_at:
                seat.wake(self)
            else:
                self._attend(tickets)

    def _specialise(self) -> Lanes:
        """See to it that items may have terms, from now on."""
        schedule = self._schedule
        if not isinstance(schedule, Lanes):
            with self._lock:
                schedule = self._schedule
                if not isinstance(schedule, Lanes):
                    self._policy.observe()
                    schedule = self._schedule = Lanes(schedule, self._rules)
                    self._simplify()
        return schedule

    def _simplify(self) -> None:
        """Find out anew whether calls with one argument need but to be appended."""
        with self._lock:
            binder = self._binder
            accepts = not self._closed and self._started and binder is not None and binder.accepts_one
            self._simple = accepts and not self._schedule.special and self._recorder.capture is None

    def _offer(self, lanes: Lanes, tickets: Sequence[Ticket]) -> bool:
        """Queue tickets with terms, or put them in the lobby; whether the worker is to look at them in any case."""
        first = tickets[0].terms
        assert first is not None
        if first.expires <= monotonic():
            raise DeadlineExceeded(self._name, first.deadline)
        limit = self._rules.max_queue
        accepted: int | None = len(tickets)
        if limit is None and not lanes.lobby:
            lanes.queue.extend(tickets)
        else:
            block = self._rules.block and self._may_block()
            with self._sorting:
                accepted = lanes.admission.offer(tickets, block)
                late = tickets[accepted:] if accepted is not None and self._closed else ()
                # a stop() has been there: nobody would let them in
                refused = [ticket for ticket in late if lanes.withdraw(ticket)]
            if len(refused) == len(tickets):
                raise Stopped(self._name)
            deliver(refused, [Stopped(self._name) for _ in refused])
            if accepted is None:
                with self._lock:
                    self._given_up.rejected += len(tickets)
                self._recorder.rejected(self._name, len(tickets))
                raise QueueFull(self._name, limit or 0)
            if accepted < len(tickets):
                self._let_in(lanes)
        for ticket in tickets[:accepted]:
            ticket.admit(True)
        return first.expires < lanes.tight and 0 < self._seat.wake_at < NEVER

    def _may_block(self) -> bool:
        """Whether this thread may wait for room: not one that makes it, or that holds what it takes to make it."""
        return (
            get_ident() not in (self._seat.thread, _alarm.alarm.thread)
            and not self._sorting._is_owned()
            and not self._lock._is_owned()
        )

    def _let_in(self, lanes: Lanes) -> None:
        """There may be room: let in those who wait for it. Tell those that do not wait any more, and why."""
        held = Seat()
        self._leaving.add(held)
        let_in: list[Any] = []
        try:
            with self._sorting:
                let_in += lanes.admission.let_in()
                expired, lanes.expired = lanes.expired, []
                failed, lanes.failed = lanes.failed, []
                held.batch = [*expired, *(ticket for ticket, _ in failed)]
        finally:  # an exception may be injected
            for ticket in let_in:
                ticket.admit(True)
        if let_in:
            seat = self._seat
            if len(lanes.queue) >= seat.wake_at:
                self._call_worker_for(seat)
        if held.batch:
            outcomes: list[Exception] = [DeadlineExceeded(self._name, ticket.terms.deadline) for ticket in expired]
            outcomes += [error.with_traceback(None) for _, error in failed]
            with self._lock:
                self._given_up.expired += len(expired)
                self._given_up.dropped += len(failed)
            deliver(held.batch, outcomes)
            if expired:
                self._recorder.expired(self._name, len(expired))
        self._leaving.discard(held)

    def _call_worker_for(self, seat: Seat) -> None:
        """There is something in the queue that the worker on that seat, or nobody, may not know of."""
        if seat.wake_at:
            seat.wake(self)
        elif self._started:
            try:
                self._call_worker()
            except WorkerDied:
                pass  # everything has been given up

    def _make_room(self, future: Any = None) -> None:
        """An item's caller has left: there may be room for those who wait for it."""
        schedule = self._schedule
        if isinstance(schedule, Lanes) and schedule.lobby and (future is None or future.left):
            self._let_in(schedule)

    def _attend(self, tickets: Sequence[Ticket]) -> None:
        """The slow half of `_put`: nobody sits at the queue that the tickets are in."""
        if self._closed and self._withdraw(tickets):
            raise Stopped(self._name)
        if self._started:
            self._call_worker()
        elif not self._warned:
            self._warned = True
            missing = "set_handler() and start()" if self._handler is None else "start()"
            try:
                warn_caller(f"batcher {self._name!r}: items wait for {missing}")
            except BaseException:  # made an error by the program's filters: then the call has failed
                self._withdraw(tickets)
                raise

    def _withdraw(self, tickets: Sequence[Ticket]) -> bool:
        """Take back what nobody has taken; whether there was any."""
        schedule = self._schedule
        with self._sorting:
            found = [ticket for ticket in tickets if schedule.withdraw(ticket)]
        if isinstance(schedule, Lanes) and schedule.lobby:
            self._let_in(schedule)
        return bool(found)

    def _reconsider(self) -> None:
        """The policy, or what it goes by, has changed: let the worker look again."""
        seat = self._seat
        if seat is not NOBODY:
            seat.wake(self)

    def _leave(self, tickets: Sequence[Ticket]) -> None:
        """Their callers are gone: drop those that no batch has yet, and keep the chain of wake-ups whole."""
        for ticket in tickets:
            ticket.leave()
        schedule = self._schedule
        if schedule.special:
            for ticket in tickets:
                schedule.depart(ticket)
            self._make_room()
        else:
            schedule.stale = True

    def _call_worker(self) -> None:
        """Wake the worker; hire one if there is none."""
        seat = Seat()
        seat.hirer = get_ident()
        try:
            with self._lock:
                if self._seat is NOBODY:
                    self._seat = seat
                elif self._seat.thread:
                    self._seat.wake(self)
                elif self._seat.hirer == seat.hirer:  # a signal handler, or a __del__, come upon the starting of it
                    seat = self._seat
                # else one is on its way, and has yet to look at the queue
            if self._seat is seat:
                _start(self, seat)  # if it is the second thread, it finds the seat claimed
                seat.hirer = 0
        except RuntimeError as error:
            self._bury(seat, error)
            raise WorkerDied(self._name, str(error)) from error
        except BaseException as error:  # interrupted by a signal handler, or out of memory; others count on it
            if self._seat is seat:
                try:
                    _start(self, seat)
                except BaseException:
                    self._bury(seat, error)
            raise

    # -- working ------------------------------------------------------------------------------------------

    def _shift(self, seat: Seat) -> bool:
        """Work until there is nothing to do; `False` if the thread is to end then."""
        while True:
            self._serve(seat)
            if self._seat is seat and not self._closed:
                if self._farewells:  # of a stop() that a start() has overtaken
                    self._farewell()
                return True
            if self._retire(seat):
                return False

    def _serve(self, seat: Seat) -> None:
        """Run batches until nothing is queued, or the seat is another's; then `wake_at` says that it sleeps."""
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
                    return
                seat.wake_at = NEVER
            elif self._closed or (policy.passive and not schedule.stale) or not self._hold(seat):
                self._run(seat)

    def _await_returners(self, seat: Seat) -> None:
        """Nothing is queued: sleep through the first arrivals if the policy expects more."""
        now = monotonic()
        hold = self._policy.expect(now, self._most())
        if hold is not None:
            seat.wake_at = hold.wake_at
            if len(self._schedule.queue) < hold.wake_at and not self._closed:
                seat.pause(min(max(hold.until - now, 0.0), _native.MAX_WAIT))
            seat.wake_at = NEVER

    def _hold(self, seat: Seat) -> bool:
        """Wait if the policy says so; `False` if it says to cut."""
        schedule, policy, most = self._schedule, self._policy, self._most()
        enough = 0
        if schedule.stale:
            self._purge(most)
        if policy.passive:
            return False
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

    def _most(self) -> int:
        """The largest batch to take now, in items."""
        return self._max_size if self._ceiling is None else self._ceiling.limit(self._max_size)

    def _run(self, seat: Seat) -> None:
        """Cut a batch, call the handler, deliver."""
        ceiling, most = self._ceiling, self._most()
        batch: list[Any] = []
        seat.batch = batch
        handler, binder, counters, recorder = self._handler, self._binder, self._counters, self._recorder
        schedule = self._schedule
        if isinstance(schedule, Lanes):
            self._take(schedule, batch, most)
        else:
            cancelled = schedule.take(most, batch)
            if cancelled:
                counters.cancelled += cancelled
        if not batch:
            return
        assert handler is not None and binder is not None, "a worker without a handler"
        policy = self._policy
        counters.items += len(batch)
        reason = "drained" if self._closed else "full" if len(batch) >= most else policy.reason
        counters.cuts[reason] += 1
        seat.mine.append(True)
        if self._seat is not seat:  # after the look of _dismiss at `mine`: one of the two finds the batch
            self._abandon(seat)
            return
        watched = policy.watch()
        begun = recorder.begin(self._name, batch) if recorder.tracers else None
        began = monotonic()
        if watched:
            arrived = [ticket.arrived for ticket in batch]
            if schedule.special:
                arrived.sort()
            policy.cut(began, arrived, len(schedule), most)
        attempt = Attempt() if ceiling is None else Isolating(ceiling)
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
            counters.failed_as(attempt.outcomes)
        if schedule.special:
            counters.failed("DeadlineExceeded", too_late(batch, attempt.outcomes, monotonic()))
        if watched and self._seat is seat:  # measured: done after delivery it costs more, as callers wait for the GIL
            policy.finished(done, len(batch), done - began, len(self._schedule), sound)
        if recorder.attentive or attempt.errors or begun is not None:
            after = recorder.tell(self._name, batch, began, done, most, reason, attempt, raised, begun)
        else:
            after = recorder.note(batch, began, done, most)
        deliver(batch, attempt.outcomes, done - began)
        seat.batch = []
        del batch, attempt, raised, begun
        if after is not None:
            after()
            del after
        if _native.current_hub() is not None:
            seat.has_hub = True
            _native.run_hub()

    def _retire(self, seat: Seat) -> bool:
        """Leave the seat; `False` if the worker is to stay, as an item came at the last moment.

        It also stays where the lock is not to be had: then a signal handler has come upon a thread that holds
        it, and may wait for this very worker.
        """
        if not self._lock.acquire(timeout=0.1):
            return False
        try:
            if self._seat is not seat:
                self._leaving.discard(seat)
                return True
            self._seat = NOBODY
            if self._schedule:
                self._seat = seat
                return False
        finally:
            self._lock.release()
        _native.destroy_hub()  # before stop() returns: perhaps to the interpreter's exit, which does not bear it beside
        self._farewell()
        return True

    def _bury(self, seat: Seat, error: BaseException) -> None:
        """A worker died: fail what it had, and what was queued behind it. The next item gets a new worker."""
        died = partial(_because, error, WorkerDied, self._name, description(error))
        with self._lock:
            dismissed = self._seat is not seat
            if not dismissed:
                self._seat = NOBODY
        self._give_up_batch(seat, died)  # of a dismissed one, too: it may have died delivering
        if dismissed:
            self._leaving.discard(seat)
            return
        self._give_up_queue(died)
        self._farewell()
        import logging  # last, as log handlers are user code

        logging.getLogger("ubatch").error("the worker of batcher %r died", self._name, exc_info=error)

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

    # -- stopping -----------------------------------------------------------------------------------------

    def _close(self, drain: bool) -> None:
        with self._lock:
            self._closed = True
            self._simple = False
        if not drain or self._handler is None:
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
        """Deliver `ticket` when the worker has nothing left to do."""
        self._farewells.append(ticket)
        if self._seat is NOBODY and (self._handler is None or not self._schedule):
            self._farewell()
        else:
            try:
                self._call_worker()
            except WorkerDied:
                pass  # everything has been given up, and farewell been said

    def _farewell(self) -> None:
        while self._farewells:
            try:
                ticket = self._farewells.popleft()
            except IndexError:
                return
            deliver([ticket], [True])

    def _dismiss(self) -> None:
        """Give up on the worker and on all that it has, as its time is up."""
        with self._lock:
            seat, self._seat = self._seat, NOBODY
            self._leaving.add(seat)  # until it retires
        self._give_up_queue(partial(Stopped, self._name))
        self._abandon(seat)
        if seat is not NOBODY:
            seat.wake(self)
        self._farewell()

    def _abandon(self, seat: Seat) -> None:
        """Fail the batch on a dismissed worker's seat, unless its handler has returned and it delivers."""
        try:
            seat.mine.pop()
        except IndexError:
            return
        self._give_up_batch(seat, partial(Stopped, self._name))

    def _cannot_wait(self) -> bool:
        """Whether waiting for the worker would wait for oneself; it drains and ends by itself."""
        # a lock is this thread's own if a signal handler or a __del__ came upon a submit, or a look at a future
        return (
            get_ident() == self._seat.thread
            or self._lock._is_owned()
            or self._sorting._is_owned()
            or any(ticket.locked_here() for ticket in [*self._schedule.next(sys.maxsize), *self._seat.batch])
        )

    def _stop(self, drain: bool, timeout: float | None, ticket: BlockingTicket | None = None) -> bool:
        self._close(drain)
        if self._cannot_wait():
            self._reconsider()
            return False
        ticket = ticket or blocking((), {})
        if isinstance(ticket, ThreadTicket):
            ticket.thread = 0  # no link of a chain: it may give up waiting
        self._say_when_done(ticket)
        if _native.in_hub():  # a signal handler; a hub cannot wait
            return False
        if ticket.wait(timeout):
            return True
        if self._closed:  # not if a start() has overtaken
            self._dismiss()
        return False

    # -- forking ------------------------------------------------------------------------------------------

    def _forked(self) -> None:
        """In the child: start anew; what was inherited has nobody to run it. No inherited lock is touched."""
        inherited: list[Any] = [*self._schedule.next(NEVER), *self._farewells]
        for seat in {self._seat, *self._leaving}:
            inherited += seat.batch
            seat.mine.clear()
        self._fresh()
        for ticket in {id(ticket): ticket for ticket in inherited}.values():
            ticket.orphan(WorkerDied(self._name, "it belongs to the parent of this forked process"))


def _because(cause: BaseException, make: Callable[..., Exception], *args: Any) -> Exception:
    error = make(*args)
    error.__cause__ = cause
    return error


def _start(driver: Driver, seat: Seat) -> None:
    if sys.is_finalizing():
        raise RuntimeError("the interpreter is shutting down")
    # in a box, as the thread's own records hold its arguments for as long as it runs
    box = [driver]
    _native.start_thread(f"ubatch-{driver._name}", partial(_work, box, seat))


def _work(box: list[Driver], seat: Seat) -> None:
    """The worker thread."""
    driver: Driver | None = None
    try:
        driver = box.pop()
        seat.unclaimed.pop()
    except IndexError:  # hired twice, or started twice
        return
    ref = weakref.ref(driver)
    try:
        seat.thread = get_ident()
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


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
