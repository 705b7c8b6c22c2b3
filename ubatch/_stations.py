"""The way from step to step: a `Station` for each, where legs come in, wait for the step's batcher, and go on.

Purpose: the outcomes of a batch come to its station, as they would to callers: all in one call. Results go on to the
next step that takes them, all at once; errors, and what comes out of the last step, are told to the callers.

Guarantees:
- Items whose callers have left go no further; those whose deadline has passed, no further than the next queue.
- What `when`, `key` and `weight` of a step raise, is one item's error alone. They run outside locks: those of the
  step that an item comes to first in its caller, the others in the worker of the step before.
- Where the queue of the next step is full, and blocks, the worker waits for room before it goes on: that is how the
  steps before it come to wait, and in the end who submits. Nobody ever waits for a step before his own, nor does a
  flow's worker for any when it submits anew, so the last step never waits, and its work makes room.

Stations refer to those behind them alone, so a flow that is let go of is collected step by step as they run dry.
"""

from __future__ import annotations

from ._attempt import own
from ._lanes import HASTE, head_start
from ._native import get_ident, monotonic
from ._terms import INFINITE, UNSET
from ._trips import Gate, Leg, Trip, raised_by_user
from .errors import DeadlineExceeded, QueueFull, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from typing import Any

    from ._terms import Terms
    from ._trips import Trips
    from ._waiters import Ticket
    from .core import UBatch


class Station:
    """A step of a flow on the way of its items.

    Args:
        trips: the flow's.
        batcher: the step's.
        when: says whether an item takes the step; `None` if each does.
        alike: what items of one batch have in common, whatever their key is; `None` if that is nothing.
        next: the station behind it; `None` for the last.
    """

    def __init__(
        self,
        trips: Trips,
        batcher: UBatch[Any, Any],
        when: Callable[..., Any] | None,
        alike: Callable[..., Hashable] | None,
        next: Station | None,
    ) -> None:
        self.trips = trips
        self.batcher = batcher
        self.next = next
        self._when = when
        self._alike = alike

    def __iter__(self) -> Iterator[Station]:
        """This station and those behind it."""
        station: Station | None = self
        while station is not None:
            yield station
            station = station.next

    def taker(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Station | None:
        """The first from here on that takes an item; `None` if none does. Raises what `when` raises."""
        station: Station | None = self
        while station is not None and station._when is not None and not station._when(*args, **kwargs):
            station = station.next
        return station

    def shut(self) -> None:
        """Refuse items from now on. The flow's `life` is held; no lock of the batcher is taken, as one may be held."""
        self.batcher._simple = False
        self.batcher._closed = True

    def open(self) -> None:
        """Accept them. The flow's `life` is held."""
        self.batcher._closed = False

    # -- coming in ----------------------------------------------------------------------------------------

    def is_special(self, trips: Sequence[Trip]) -> bool:
        """Whether the legs of these, if they come in here, are to have terms."""
        return self.batcher._schedule.special or any(trip.ticket.terms is not None for trip in trips)

    def leg(self, kind: type[Leg], trip: Trip, args: tuple[Any, ...], kwargs: dict[str, Any], special: bool) -> Leg:
        """A trip's leg here. Raises TypeError: its arguments do not fit the handler; what `key` and `weight` raise."""
        leg = kind(trip, args, kwargs, self, monotonic())
        binder = self.batcher._binder
        assert binder is not None, "a step without a handler"
        leg.call = binder.bind(args, kwargs)
        leg.context = None if trip.context is None else trip.context.copy()  # a step may still be in that of the last
        if special:
            leg.terms = self._terms(leg, trip.ticket)
        return leg

    def _terms(self, leg: Leg, ticket: Ticket) -> Terms:
        rules, asked = self.batcher._rules, ticket.terms
        terms = rules.terms(leg.args, leg.kwargs, leg.arrived, asked)
        if asked is not None:
            terms.deadline, terms.expires = asked.deadline, asked.expires  # not anew at each step
            if asked.expires < INFINITE:
                terms.behind = self._behind(asked.deadline)
            if self._alike is not None and asked.key is not UNSET:
                terms.key = asked.key, self._alike(*leg.args, **leg.kwargs)
        if rules.aging < INFINITE:  # it has waited, and so gained in priority, since it came into the flow
            terms.priority -= (leg.arrived - ticket.arrived) / rules.aging
        return terms

    def _behind(self, deadline: float) -> float:
        """Seconds that the steps behind this one are to have, of so many: as long as their batches took so far."""
        costs = [station.batcher._policy.cost for station in self if station is not self]
        return sum(head_start(0.0 if cost is None else HASTE * cost.duration, deadline) for cost in costs)

    def accept(self, legs: Sequence[Leg], special: bool, workers: Any) -> None:
        """Queue legs that their callers hand over, all or none; who waits for room does so by its ticket.

        Args:
            legs: at least one, with terms if they are `special`.
            special: see `is_special`.
            workers: identities of the threads of the whole flow, which never wait for it.

        Raises:
            Stopped, QueueFull, WorkerDied: as a batcher.
        """
        batcher = self.batcher
        if batcher._closed:
            raise Stopped(self.trips.name)
        for leg in legs:
            self.trips.move(leg)
        block = special and batcher._rules.block and get_ident() not in workers and batcher._may_block()
        try:
            accepted = batcher._enter(legs, special, _first_due(legs), block)
        except Stopped:  # just now
            raise Stopped(self.trips.name) from None
        if not accepted:
            raise QueueFull(batcher._name, batcher._rules.max_queue or 0)
        if not special:
            for leg in legs:
                leg.admit(True)

    def _take_in(self, coming: Sequence[tuple[Trip, Any]]) -> None:
        """Queue what comes from the step before, called by its worker; wait for room where this step blocks."""
        batcher = self.batcher
        special = self.is_special([trip for trip, _ in coming])
        legs: list[Leg] = []
        for trip, item in coming:
            try:
                legs.append(self.leg(Leg, trip, (item,), {}, special))
            except BaseException as error:
                self.trips.land([trip.ticket], [raised_by_user(error)])
        if not legs:
            return
        block = special and batcher._rules.block
        gate = Gate(legs) if block else None
        for leg in legs:
            self.trips.move(leg)
        try:
            if batcher._closed:
                raise Stopped(self.trips.name)
            accepted = batcher._enter(legs, special, _first_due(legs), block, whole=False)
        except BaseException as error:
            self._land(legs, error)
            if not isinstance(error, Exception):  # injected into this thread
                raise
            return
        if accepted < len(legs):
            self._land(legs[accepted:], QueueFull(batcher._name, batcher._rules.max_queue or 0))
        if gate is not None:
            gate.wait()

    def _land(self, legs: Sequence[Leg], error: BaseException) -> None:
        self.trips.land([leg.trip.ticket for leg in legs], [own(error) for _ in legs])

    # -- going on -----------------------------------------------------------------------------------------

    def pass_on(self, legs: Sequence[Leg], took: float | None) -> None:
        """This step's outcomes for these legs are there. `took` as in `deliver`."""
        onward: dict[Station, list[tuple[Trip, Any]]] = {}
        tickets: list[Ticket] = []
        outcomes: list[Any] = []
        for leg in legs:
            if leg.gate is not None:
                leg.admit(False)
            if leg.left:  # or further on, where a worker has died passing it on, so that it comes again
                continue
            trip, outcome = leg.trip, leg.outcome
            station = None
            if isinstance(outcome, BaseException):
                outcome = self._told(outcome)
            elif self.next is not None:
                try:
                    station = self.next.taker((outcome,), {})
                except BaseException as error:
                    outcome = raised_by_user(error)
            if station is not None:
                onward.setdefault(station, []).append((trip, outcome))
            else:
                tickets.append(trip.ticket)
                outcomes.append(outcome)
        self.trips.land(tickets, outcomes, took)  # first: to go on may take a wait
        for station, coming in onward.items():
            station._take_in(coming)

    def _told(self, error: BaseException) -> BaseException:
        """An error as callers are told of it: what goes for the whole flow is not the step's."""
        if isinstance(error, Stopped) and error.name == self.batcher._name:
            return Stopped(self.trips.name)
        if isinstance(error, DeadlineExceeded) and error.name == self.batcher._name:
            return DeadlineExceeded(self.trips.name, error.deadline)
        return error


def _first_due(legs: Sequence[Leg]) -> float:
    return min((leg.terms.due for leg in legs if leg.terms is not None), default=INFINITE)
