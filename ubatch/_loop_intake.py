"""How items come in on an event loop: the submitters' half of the event-loop driver.

Purpose: `Intake` accepts tickets into the queue, all of a call or none, and sees to it that a shift looks at them.

Guarantees: a call that raises leaves nothing in the queue. Whoever takes items out of a bounded queue lets in those
who wait for room. A deadline's caller is told by a timer, and the shift passes over what has expired.

Assumptions: as in `_loop`, which has the other half, and says how no item is forgotten.
"""

from __future__ import annotations

from functools import partial

from ._binding import UNBOUND
from ._lanes import Lanes
from ._native import monotonic
from ._terms import INFINITE
from .errors import DeadlineExceeded, QueueFull, Stopped, warn_caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ._binding import Binder, Call
    from ._executor import Renewable
    from ._policy import Adaptive, Window
    from ._recorder import Recorder
    from ._schedule import Fifo
    from ._terms import Asked, Rules, Terms
    from .stats import Counters


class Job:
    """What a batcher's homes have in common: the handler, the options, whether items are accepted."""

    __slots__ = (
        "binder",
        "closed",
        "handlers",
        "is_coroutine",
        "isolate",
        "max_size",
        "name",
        "place",
        "recorder",
        "rules",
        "simple",
        "special",
        "started",
        "timeout",
        "workers",
    )

    recorder: Recorder
    """Set by the batcher; a forked child has another."""

    def __init__(
        self,
        name: str,
        max_size: int,
        timeout: float | None,
        workers: int,
        rules: Rules,
        isolate: bool,
        place: Renewable | None,
    ) -> None:
        self.name = name
        self.rules = rules
        self.max_size = max_size
        self.timeout = timeout
        self.workers = workers
        self.isolate = isolate
        self.place = place  # where plain functions run, if not in threads of the homes' own
        self.handlers: tuple[Callable[..., Any], ...] = ()  # one for each worker, or one for all
        self.binder: Binder | None = None
        self.is_coroutine = False
        self.started = False
        self.closed = False
        self.special = rules.special  # whether items have terms
        self.simple = False
        """Whether a call with one argument needs but to be queued."""

    def simplify(self) -> None:
        """Find out `simple` anew."""
        accepts = self.started and self.binder is not None and self.binder.accepts_one
        self.simple = accepts and not self.special and self.recorder.capture is None
        if self.closed:  # looked at last: who closes says so first
            self.simple = False


class Ticket:
    """One call on its way: its arguments, and the future of its outcome."""

    __slots__ = ("args", "arrived", "call", "context", "future", "kwargs", "terms")

    context: Any
    """That of its caller (`contextvars`); set only where there is a tracer. See `_observing`."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], future: asyncio.Future[Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.future = future
        self.call: Call | None = None
        self.terms: Terms | None = None
        self.arrived = monotonic()

    @property
    def left(self) -> bool:
        """Whether its caller is gone."""
        return self.future.done()

    def claim(self) -> bool:
        """Take the item for the handler; `False` if its caller has left."""
        return not self.future.done()


class Intake:
    """The submitters' half of `Home`; see the head of the file."""

    if TYPE_CHECKING:  # the home's
        job: Job
        loop: asyncio.AbstractEventLoop
        counters: Counters
        schedule: Fifo | Lanes
        policy: Window | Adaptive
        wake_at: int
        _timer: asyncio.TimerHandle | None
        _warned: bool

        def attend(self) -> None: ...
        def reconsider(self) -> None: ...

    def put(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], asked: Asked | None = None, waits: bool = True
    ) -> asyncio.Future[Any]:
        """Accept an item.

        Args:
            args, kwargs: of the call.
            asked: what is special about it.
            waits: whether it may wait for room.

        Raises:
            TypeError: the arguments do not fit the handler.
            Stopped: the batcher accepts nothing.
            QueueFull: there is no room.
            DeadlineExceeded: it had no time at all.
            Exception: what `key` and `weight` raise.
        """
        job = self.job
        ticket = Ticket(args, kwargs, self.loop.create_future())
        if asked is not None or not job.simple or kwargs or len(args) != 1:
            self._accept([ticket], asked, waits)
            return ticket.future
        queue = self.schedule.queue
        queue.append(ticket)
        if len(queue) >= self.wake_at:
            self._attend_to([ticket])
        return ticket.future

    def put_all(self, calls: Iterable[tuple[Any, ...]], asked: Asked | None = None) -> list[asyncio.Future[Any]]:
        """Accept items of one positional argument or more each, all of them or none. Raises as `put`."""
        tickets = [Ticket(args, {}, self.loop.create_future()) for args in calls]
        now = monotonic()
        for ticket in tickets:
            ticket.arrived = now
        self._accept(tickets, asked, waits=True)
        return [ticket.future for ticket in tickets]

    def _accept(self, tickets: list[Ticket], asked: Asked | None, waits: bool) -> None:
        """Accept all tickets, or none, as is asked. Raises as `put`."""
        job = self.job
        if job.closed:
            raise Stopped(job.name)
        if not tickets:
            return
        for ticket in tickets:
            ticket.call = UNBOUND if job.binder is None else job.binder.bind(ticket.args, ticket.kwargs)
        capture = job.recorder.capture
        if capture is not None:
            for ticket in tickets:
                ticket.context = capture()
        if asked is not None or job.special:
            self._accept_with_terms(tickets, asked, waits)
            return
        queue = self.schedule.queue
        queue.extend(tickets)
        if len(queue) >= self.wake_at:
            self._attend_to(tickets)

    def _accept_with_terms(self, tickets: list[Ticket], asked: Asked | None, waits: bool) -> None:
        rules, counters = self.job.rules, self.counters
        for ticket in tickets:
            ticket.terms = rules.terms(ticket.args, ticket.kwargs, ticket.arrived, asked)
        lanes, now = self.specialise(), monotonic()
        deadline, expires = tickets[0].terms.deadline, tickets[0].terms.expires  # type: ignore[union-attr]
        if expires <= now:
            raise DeadlineExceeded(self.job.name, deadline)
        if rules.max_queue is None and not lanes.lobby:
            lanes.queue.extend(tickets)
        else:
            accepted = lanes.admission.offer(tickets, rules.block and waits)
            if accepted is None:
                counters.rejected += len(tickets)
                self.job.recorder.rejected(self.job.name, len(tickets))
                raise QueueFull(self.job.name, rules.max_queue or 0)
            for ticket in tickets:
                ticket.future.add_done_callback(partial(self._left, ticket))
        if len(lanes.queue) >= self.wake_at or (self._timer is not None and expires < lanes.tight):
            self._attend_to(tickets)
        if expires < INFINITE:
            self._set_timer(tickets, expires - now)

    def specialise(self) -> Lanes:
        """See to it that items may have terms, from now on."""
        if not isinstance(self.schedule, Lanes):
            self.job.special = True
            self.job.simplify()
            self.policy.observe()
            self.schedule = Lanes(self.schedule, self.job.rules)
        return self.schedule

    def _set_timer(self, tickets: list[Ticket], seconds: float) -> None:
        """Let tickets expire, unless all are done before."""
        timer = self.loop.call_later(seconds, self._expire, tickets)
        pending = len(tickets)

        def done(_: object) -> None:
            nonlocal pending
            pending -= 1
            if not pending:
                timer.cancel()

        for ticket in tickets:
            ticket.future.add_done_callback(done)

    def _expire(self, tickets: list[Ticket]) -> None:
        deliver(tickets, [DeadlineExceeded(self.job.name, ticket.terms.deadline) for ticket in tickets if ticket.terms])

    def _left(self, ticket: Ticket, _: object) -> None:
        """An item is done; if nobody has taken it there may be room for those who wait for it."""
        schedule = self.schedule
        if isinstance(schedule, Lanes) and ticket.terms is not None and (ticket.terms.inside or schedule.lobby):
            schedule.depart(ticket)
            self._settle(schedule)

    def _settle(self, lanes: Lanes) -> None:
        """After items have gone: let in those who wait for room; count, and tell, those that do not count any more."""
        if lanes.admission.let_in() and len(lanes.queue) >= self.wake_at and self.job.started:
            self.attend()
        self.counters.cancelled += lanes.gone
        lanes.gone = 0
        if lanes.expired:
            expired, lanes.expired = lanes.expired, []
            self.counters.expired += len(expired)
            self._expire(expired)
            self.job.recorder.expired(self.job.name, len(expired))
        if lanes.failed:
            failed, lanes.failed = lanes.failed, []
            self.counters.dropped += len(failed)
            deliver([ticket for ticket, _ in failed], [error.with_traceback(None) for _, error in failed])

    def make_room(self, begins: bool) -> None:
        """The largest number of items that may wait is another now; there was none before if it `begins`."""
        if self.job.rules.max_queue is not None or self.schedule.special:
            lanes = self.specialise()
            if begins:
                lanes.admission.begin(lanes.queued())
            self._settle(lanes)
            self.reconsider()

    def _attend_to(self, tickets: Sequence[Ticket]) -> None:
        """Nobody has looked at the queue since these were put there. If that fails, their calls have failed."""
        job = self.job
        try:
            if job.started:
                self.attend()
            elif not self._warned:
                self._warned = True
                missing = "set_handler() and start()" if not job.handlers else "start()"
                warn_caller(f"batcher {job.name!r}: items wait for {missing}")
        except BaseException:  # no memory, no stack; or the program's filters make an error of a warning
            for ticket in tickets:
                self.schedule.withdraw(ticket)
            raise


def deliver(tickets: Sequence[Ticket], outcomes: Sequence[Any]) -> None:
    """Set the outcomes of those whose callers have not left."""
    for ticket, outcome in zip(tickets, outcomes, strict=True):
        future = ticket.future
        if not future.done():
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
