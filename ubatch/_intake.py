"""How items come in: the submitters' half of the thread driver.

Purpose: `Intake` accepts tickets into the queue, all of a call or none, and sees to it that a worker looks at them.

Guarantees: `_put` takes no lock while a worker looks after the queue, and never waits for one that its own thread
holds, so that it is safe in a signal handler and in a `__del__`. No user code runs while a lock is held.

Where items have terms (`_lanes`), submitters append to the same queue. `_sorting` guards what is sorted, and how many
may wait: held by the worker while it decides and takes, and by submitters where the queue is bounded; it is taken
after `_lock`, never before. Tickets are claimed, told and delivered without it, as that may take a future's own lock.
Whoever takes items out of a bounded queue lets in those who wait for room; a deadline's caller leaves by itself, or a
timer of its loop or the alarm's thread tells it, and the worker passes over what has expired.

Assumptions: as in `_turns`, which also says how no wake-up is lost.
"""

from __future__ import annotations

from . import _alarm
from ._binding import UNBOUND
from ._lanes import Lanes
from ._native import get_ident, monotonic
from ._seats import NEVER, Seat
from ._terms import INFINITE
from ._waiters import deliver
from .errors import DeadlineExceeded, QueueFull, Stopped, WorkerDied, warn_caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._binding import Binder
    from ._policy import Adaptive, Window
    from ._recorder import Recorder
    from ._schedule import Fifo
    from ._terms import Asked, Rules
    from ._waiters import Ticket
    from .stats import Counters


class Intake:
    """The submitters' half of `Driver`; see the head of the file."""

    if TYPE_CHECKING:  # the driver's
        _name: str
        _rules: Rules
        _policy: Window | Adaptive
        _handlers: tuple[Callable[..., Any], ...]
        _binder: Binder | None
        _started: bool
        _closed: bool
        _warned: bool
        _simple: bool
        _lock: Any
        _sorting: Any
        _seat: Seat
        _threads: set[int]
        _schedule: Fifo | Lanes
        _given_up: Counters
        _recorder: Recorder
        _leaving: set[Seat]

        def _call_worker(self) -> None: ...

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
        special = asked is not None or self._schedule.special
        expires = INFINITE
        if special:
            for ticket in tickets:
                ticket.terms = self._rules.terms(ticket.args, ticket.kwargs, ticket.arrived, asked)
            first = tickets[0].terms
            assert first is not None
            expires = first.expires
            if expires <= monotonic():
                raise DeadlineExceeded(self._name, first.deadline)
        if not self._enter(tickets, special, expires, special and self._rules.block and self._may_block()):
            raise QueueFull(self._name, self._rules.max_queue or 0)

    def _enter(self, tickets: Sequence[Ticket], special: bool, due: float, block: bool, whole: bool = True) -> int:
        """Queue tickets that are ready for it, and see to it that a worker looks at them.

        Args:
            tickets: at least one.
            special: whether they have terms.
            due: the first moment at which one of them is.
            block: whether those for which there is no room wait for it in the lobby.
            whole: whether else all or none are let in.

        Returns:
            How many of the first there are that were not refused.

        Raises:
            Stopped, WorkerDied: as `_put`.
        """
        hasty, accepted = False, len(tickets)
        if special:
            lanes = self._specialise()
            accepted = self._offer(lanes, tickets, block, whole)
            hasty = due < lanes.tight and 0 < self._seat.wake_at < NEVER
        else:
            self._schedule.queue.extend(tickets)
        seat = self._seat
        if accepted and (hasty or len(self._schedule.queue) >= seat.wake_at):
            if seat.wake_at:
                seat.wake(self)
            else:
                self._attend(tickets[:accepted])
        if block:
            self._make_room()  # there may be some meanwhile
        if accepted < len(tickets):
            self._recorder.rejected(self._name, len(tickets) - accepted)  # last, as log handlers are user code
        return accepted

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

    def _offer(self, lanes: Lanes, tickets: Sequence[Ticket], block: bool, whole: bool) -> int:
        """Queue tickets with terms, or put them in the lobby. See `_enter`."""
        limit = self._rules.max_queue
        count = accepted = len(tickets)
        if limit is None and not lanes.lobby:
            lanes.queue.extend(tickets)
        else:
            with self._sorting:
                accepted = lanes.admission.offer(tickets, block, whole) or 0
                late = tickets[accepted:] if block and self._closed else ()
                # a stop() has been there: nobody would let them in
                refused = [ticket for ticket in late if lanes.withdraw(ticket)]
            if len(refused) == count:
                raise Stopped(self._name)
            deliver(refused, [Stopped(self._name) for _ in refused])
            if not block and accepted < count:
                with self._lock:
                    self._given_up.rejected += count - accepted
        for ticket in tickets[:accepted]:
            ticket.admit(True)
        return count if block else accepted

    def _may_block(self) -> bool:
        """Whether this thread may wait for room: not one that makes it, or that holds what it takes to make it."""
        return (
            get_ident() not in self._threads
            and get_ident() != _alarm.alarm.thread
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
        self._leaving.discard(held)
        if expired:
            self._recorder.expired(self._name, len(expired))  # last, as log handlers are user code

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
            missing = "set_handler() and start()" if not self._handlers else "start()"
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
