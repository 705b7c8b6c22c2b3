"""Items on their way through the steps of a flow: who waits for each, and where it is.

Purpose: a `Trip` is the way of one item through a flow; its caller waits by a ticket, as with any batcher. A `Leg` is
the trip's part in one step: the ticket that the step's batcher has. `Trips` are all that are under way.

Guarantees:
- Each trip ends once: it lands, with an outcome for its caller, or its caller leaves. Who takes it out of `going`
  ends it. So whoever gives one up, at whatever moment, need not know where it is: what a step then makes of it is
  passed over.
- A fork finds each trip in `going` or in `_landing`, and tells its caller in the child.
- No item is kept once its trip has ended, not even by a cycle.

How it is noticed that a trip has ended while it is moved on. Who ends it takes it out of `going`, then clears its leg;
who moves it on sets its leg, then looks into `going`. Whichever comes second sees the other.

Assumptions: operations on a dict are atomic; a step's batcher gives each leg its outcome once.
"""

from __future__ import annotations

import os
import weakref
from functools import partial
from itertools import chain

from . import _native
from ._attempt import own
from ._native import monotonic
from ._recorder import Recorder
from ._waiters import PENDING, Ticket, blocking, deliver
from .errors import DeadlineExceeded, WorkerDied
from .stats import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


_living: dict[int, weakref.ref[Trips]] = {}  # those of all flows, by id; operations on a dict are atomic


class Trip:
    """The way of one item through a flow.

    Args:
        ticket: its caller's.
        context: its caller's (`contextvars`), where there is a tracer.
    """

    __slots__ = ("context", "leg", "ticket")

    def __init__(self, ticket: Ticket, context: Any = None) -> None:
        self.ticket = ticket
        self.context = context
        self.leg: Leg | None = None  # the one that is under way; `None` before the first, and at the end


class Leg(Ticket):
    """A trip's part in one step. Its home is the step's `Station`, where the trip goes on from."""

    __slots__ = ("gate", "home", "trip")

    def __init__(self, trip: Trip, args: tuple[Any, ...], kwargs: dict[str, Any], station: Any, arrived: float) -> None:
        # Ticket's fields here as well, as in ThreadTicket
        self.args = args
        self.kwargs = kwargs
        self.call = None
        self.terms = None
        self.outcome = PENDING
        self.arrived = arrived
        self.trip = trip
        self.home = station
        self.gate: Gate | None = None

    @property
    def left(self) -> bool:  # type: ignore[override]
        """Whether the trip has ended."""
        return self.trip.leg is not self

    def claim(self) -> bool:
        return not self.left

    def admit(self, accepted: bool) -> None:
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.open(self)

    def locked_here(self) -> bool:
        return self.trip.ticket.locked_here()

    @staticmethod
    def wake_all(tickets: Sequence[Leg], took: float | None) -> None:
        tickets[0].home.pass_on(tickets, took)

    def orphan(self, error: Exception) -> None:
        """Nothing: `Trips` tells the callers."""


class FirstLeg(Leg):
    """The leg that a caller hands over."""

    __slots__ = ()

    def claim(self) -> bool:
        return not self.left and self.trip.ticket.claim()

    def admit(self, accepted: bool) -> None:
        self.trip.ticket.admit(accepted)


class Gate:
    """What a worker waits by until there is room for legs in the queue of the next step."""

    def __init__(self, legs: Sequence[Leg]) -> None:
        self._outside = set(legs)  # operations on a set of objects without an order are atomic
        self._ticket = blocking((), {})
        for leg in legs:
            leg.gate = self

    def open(self, leg: Leg) -> None:
        """There is room for this one, or it needs none any more."""
        self._outside.discard(leg)
        if not self._outside:
            deliver([self._ticket], [None])

    def wait(self) -> None:
        """Wait until it is open for all."""
        for leg in list(self._outside):
            if leg.left:
                leg.admit(False)
        if self._outside:
            self._ticket.wait()


class Trips:
    """All trips of one flow that are under way, and counts of those that have ended. Safe to use from any thread.

    Args:
        name: the flow's, for errors.
    """

    special = True
    """As of a queue, whose place it takes for those who submit; see `_schedule`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False  # whether items are refused; guarded by `life`, as the next
        self.openings = 0  # how often it was opened
        self._fresh()
        _living[id(self)] = weakref.ref(self, partial(_forget, id(self)))

    def _fresh(self) -> None:
        """Make all that a forked child must not share with its parent."""
        self.life = _native.reentrant_lock()  # guards whether the flow is open, and the steps' batchers with it
        self.going: dict[Ticket, Trip] = {}
        self._landing: dict[int, list[Ticket]] = {}  # those whose callers are being told
        self._counting = _native.reentrant_lock()  # guards _counters
        self._counters = Counters()
        self._recorder = Recorder()

    def move(self, leg: Leg) -> None:
        """This is its trip's leg from now on, unless the trip has ended."""
        leg.trip.leg = leg
        if leg.trip.ticket not in self.going:
            leg.trip.leg = None

    def depart(self, ticket: Ticket) -> None:
        """A caller has left: its item goes no further. May be called at any time."""
        trip = self.going.pop(ticket, None)
        if trip is None:
            return
        leg, trip.leg = trip.leg, None
        late = ticket.terms is not None and ticket.terms.expires <= monotonic()
        with self._counting:
            if late:
                self._counters.expired += 1
            else:
                self._counters.cancelled += 1
        if leg is not None:
            leg.home.batcher._schedule.depart(leg)
            if leg.gate is not None:
                leg.admit(False)

    def refuse(self, tickets: Sequence[Ticket], rejected: bool) -> None:
        """These were not accepted, after all; `rejected`: for want of room."""
        for ticket in tickets:
            trip = self.going.pop(ticket, None)
            if trip is not None:
                trip.leg = None
        if rejected:
            with self._counting:
                self._counters.rejected += len(tickets)

    def land(self, tickets: Sequence[Ticket], outcomes: Sequence[Any], took: float | None = None) -> None:
        """End the trips of these tickets that have not ended, and tell their callers. `took` as in `deliver`."""
        landed: list[Ticket] = []
        told: list[Any] = []
        after = None
        self._landing[id(landed)] = landed  # before any is taken out, for a fork to find it
        try:
            for ticket, outcome in zip(tickets, outcomes, strict=True):
                landed.append(ticket)
                trip = self.going.pop(ticket, None)
                if trip is None:
                    landed.pop()
                    continue
                trip.leg = None
                told.append(outcome)
            if landed:
                after = self._count(landed, told)
                deliver(landed, told, took)
        except BaseException as error:  # injected into this thread: nobody else would tell them
            told += [own(error) for _ in landed[len(told) :]]
            deliver(landed, told)
            raise
        finally:
            del self._landing[id(landed)]
        if after is not None:
            after()

    def _count(self, landed: list[Ticket], told: list[Any]) -> Callable[[], None] | None:
        """Count these; gives what is to be called once their callers are awake, if anything."""
        if any(isinstance(outcome, BaseException) for outcome in told):
            in_time: list[Ticket] = []
            with self._counting:
                for ticket, outcome in zip(landed, told, strict=True):
                    if isinstance(outcome, DeadlineExceeded) and outcome.name == self.name:
                        self._counters.expired += 1
                        continue
                    in_time.append(ticket)
                    if isinstance(outcome, BaseException):
                        self._counters.failed(type(outcome).__name__, 1)
            landed = in_time
        now = monotonic()
        return self._recorder.note(landed, now, 0.0, 0) if landed else None

    def give_up(self, make: Callable[[], Exception]) -> None:
        """End all trips, with errors that `make` makes."""
        tickets = list(self.going)
        self.land(tickets, [make() for _ in tickets])

    def snapshot(self) -> dict[str, Any]:
        """The numbers of `FlowStats`, but for the steps'."""
        with self._counting:
            counts = {name: getattr(self._counters, name) for name in ("cancelled", "expired", "rejected")}
            errors = tuple(sorted(self._counters.error_types.items()))
        return {"running": len(self.going), **counts, "error_types": errors, "time": self._recorder.recorded()["wait"]}

    def _forked(self) -> None:
        """In the child; no inherited lock is touched."""
        inherited = dict.fromkeys(chain(self.going, *self._landing.values()))
        self._fresh()
        for ticket in inherited:
            ticket.orphan(WorkerDied(self.name, "it belongs to the parent of this forked process"))


def raised_by_user(error: BaseException) -> Exception:
    """What a function of the user's raised, for one caller alone: without the frames, and so the items, of ubatch."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals.get("__package__") == __package__:
        traceback = traceback.tb_next
    return own(error.with_traceback(traceback))


def _forget(key: int, _: object) -> None:
    _living.pop(key, None)


def _after_fork_in_child() -> None:
    for trips in [trips for ref in list(_living.values()) if (trips := ref()) is not None]:
        trips._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
