"""Flows: rows of steps, each a batcher, of which one gives its results to the next.

    flow = Flow(Step(decode, processes=2), Step(Classifier, processes=1, stacked=True))

`Step` says what a step is (`_steps`), items find their way in `_stations` and `_trips`; here they are handed over.
"""

from __future__ import annotations

from ._attempt import own
from ._course import Course
from ._faces import Faces, View
from ._flow_stats import FlowStats, StepStats
from ._native import monotonic
from ._options import checked_name, checked_timeout, rules_for
from ._stations import Station
from ._steps import Step
from ._terms import INFINITE, UNSET, Terms
from ._trips import FirstLeg, Trip, Trips
from ._typing import Generic, TypeVar, overload
from .errors import DeadlineExceeded, QueueFull, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any

    from ._course import Load
    from ._terms import Asked
    from ._trips import Leg
    from ._typing import Handler
    from ._waiters import Ticket
    from .core import UBatch

__all__ = ["Flow", "FlowStats", "Step", "StepStats"]

Self = TypeVar("Self", bound="Flow[Any, Any]")
T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")
W = TypeVar("W")


class Flow(Faces[T, U], Generic[T, U]):
    """A row of steps: each item goes through all of them, in a batch with others at each.

    It is called as a batcher is: `ubatch`, `submit`, `aubatch`, `map`, `amap`, `stream`, `astream`, `options`. It
    starts by itself with its first item, or with `start`, which waits until all that it works with is there.

    An item keeps its priority, its deadline and the time it has waited through all steps; a key that `options` gives
    it holds at each. If its caller leaves (a timeout, a cancelled task) or its deadline passes, it goes no further than
    the batch that it is in. A future can be cancelled until its item is in its first batch.

    All methods may be called from any thread, any greenlet and any event loop, at any time.

    Args:
        steps: at least one: a `Step`, or a handler, which is a step with the default options.
        name: shown in errors, metrics and in `repr`; "flow" by default.
        deadline: seconds from its arrival in which an item must have its result; then its caller gets
            `DeadlineExceeded`, wherever it is. `None` for none.

    Raises:
        TypeError, ValueError: an argument is not as described, or two steps were given the same name.
    """

    @overload
    def __init__(
        self, first: Step[T, U] | Handler[T, U], /, *, name: str | None = ..., deadline: float | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self,
        first: Step[T, V] | Handler[T, V],
        second: Step[V, U] | Handler[V, U],
        /,
        *,
        name: str | None = ...,
        deadline: float | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        first: Step[T, V] | Handler[T, V],
        second: Step[V, W] | Handler[V, W],
        third: Step[W, U] | Handler[W, U],
        /,
        *,
        name: str | None = ...,
        deadline: float | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Flow[Any, Any], /, *steps: Any, name: str | None = ..., deadline: float | None = ...
    ) -> None: ...
    def __init__(self, /, *steps: Any, name: str | None = None, deadline: float | None = None) -> None:
        from ._future import FutureTicket

        if not steps:
            raise TypeError("a flow has at least one step: Flow(handler, …)")
        self._future = FutureTicket
        self._name = checked_name(name) or "flow"
        described = [step if isinstance(step, Step) else Step(step) for step in steps]
        self._rules = rules_for(None, None, None, False, None, "reject", deadline, 1.0)
        self._rules.block = any(step.overflow == "block" for step in described)
        self._trips = self._schedule = Trips(self._name)
        self._course = self._threads = self._course_of(described)
        for batcher in self.steps[1:]:
            assert batcher._binder is not None, "a step without a handler"
            if not batcher._binder.accepts_one:
                raise TypeError(f"the handler of step {batcher.name!r} must take one argument: a list of items")

    def _course_of(self, steps: Sequence[Step[Any, Any]]) -> Course:
        station: Station | None = None
        loads: list[Load] = []
        for step, label in zip(reversed(steps), reversed(_labels(steps)), strict=True):
            batcher, more = step.batcher(f"{self._name}.{label}")
            station = Station(self._trips, batcher, step.when, step.alike, station)
            loads += more
        assert station is not None, "a flow without steps"
        return Course(self._trips, station, loads)

    # -- starting, stopping -------------------------------------------------------------------------------

    def start(self: Self, timeout: float | None = None) -> Self:
        """Start all child processes, and make all handlers that are to be made, side by side; wait until all are there.

        Also lets a flow that was stopped accept items again. Does nothing for what is there.

        Args:
            timeout: seconds; by default `start_timeout` of each step with processes, and no limit for others.

        Returns:
            The flow itself.

        Raises:
            TimeoutError: it took longer. This and all that follows leaves the flow stopped.
            Stopped: it was stopped meanwhile.
            Exception: what the making of a handler raised; from a process, `__cause__` has the traceback.
        """
        timeout = checked_timeout(timeout)
        self._course.open()
        self._course.load(timeout)
        return self

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Refuse new items, let those that there are go through all steps, and end workers and processes.

        May be called again, concurrently, from a `__del__` and from a signal handler. From a handler or a done-callback
        it does not wait.

        Args:
            drain: whether items go through; otherwise those that wait, at whatever step, fail with `Stopped` at once,
                and those in batches when these are done, if it was not their last.
            timeout: the longest time to wait, in seconds, for all steps together; `None` for no limit. After it, all
                that is left fails with `Stopped`, and processes are killed.

        Returns:
            Whether all was done in time, and before somebody called `start`.

        Raises:
            ValueError: `timeout` is negative or not a number.
        """
        return self._course.stop(drain, checked_timeout(timeout))

    async def astop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """`stop` for coroutines: the event loop runs on meanwhile. Cancelling it cancels the waiting alone."""
        return await self._course.astop(drain, checked_timeout(timeout))

    def __enter__(self: Self) -> Self:
        """Start, and wait until all that the steps work with is there."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, after all items have gone through."""
        self.stop()

    # -- handing over -------------------------------------------------------------------------------------

    def _put(self, ticket: Ticket) -> None:
        self._accept([ticket])

    def _put_all(self, tickets: Sequence[Ticket], asked: Asked | None = None) -> None:
        now = monotonic()
        for ticket in tickets:
            ticket.arrived = now  # not when it was made: the caller's iterable may have taken its time
        self._accept(tickets, asked)

    def _accept(self, tickets: Sequence[Ticket], asked: Asked | None = None) -> None:
        """Accept all tickets, or none, as is asked.

        Raises:
            TypeError, Stopped, QueueFull, DeadlineExceeded, WorkerDied: as a batcher; also what `when`, `key` and
                `weight` raise. Of one call, those items that pass by the first of the steps that any of them comes to
                are accepted or fail for themselves.
        """
        if self._trips.closed:
            raise Stopped(self._name)
        self._set_terms(tickets, asked)
        capture = self._capture
        trips = [Trip(ticket, None if capture is None else capture()) for ticket in tickets]
        first = self._course.first
        groups: dict[Station, list[Trip]] = {}
        passed: list[Trip] = []
        for trip in trips:
            station = first.taker(trip.ticket.args, trip.ticket.kwargs)
            if station is not first and (trip.ticket.kwargs or len(trip.ticket.args) != 1):
                raise TypeError(f"an item that passes by the first step of flow {self._name!r} must be one argument")
            (passed if station is None else groups.setdefault(station, [])).append(trip)
        legs = {station: self._legs(station, groups[station]) for station in first if station in groups}
        items = [trip.ticket.args[0] for trip in passed]
        self._trips.going.update(zip(tickets, trips, strict=True))  # from here on a stop may end them
        is_first = True
        for station, (coming, special) in legs.items():
            try:
                station.accept(coming, special, self._threads)
            except Exception as error:
                if is_first:
                    self._trips.refuse(tickets, rejected=isinstance(error, QueueFull))
                    raise
                self._trips.land([leg.trip.ticket for leg in coming], [own(error) for _ in coming])
            is_first = False
        self._trips.land([trip.ticket for trip in passed], items)

    def _set_terms(self, tickets: Sequence[Ticket], asked: Asked | None) -> None:
        """Fix what holds at each step."""
        deadline = self._rules.deadline if asked is None else asked.deadline
        if asked is None and deadline == INFINITE:
            return
        now = monotonic()
        for ticket in tickets:
            terms = ticket.terms = Terms()
            if asked is not None:
                terms.priority, terms.key = asked.priority, asked.key
            else:
                terms.key = UNSET
            if deadline < INFINITE:
                terms.deadline, terms.expires = deadline, ticket.arrived + deadline
            if terms.expires <= now:
                raise DeadlineExceeded(self._name, deadline)

    @property
    def _capture(self) -> Callable[[], Any] | None:
        """Gives the context of who hands an item over, if there is a tracer at any step."""
        captures = (batcher._recorder.capture for batcher in self.steps)
        return next((capture for capture in captures if capture is not None), None)

    @staticmethod
    def _legs(station: Station, trips: list[Trip]) -> tuple[list[Leg], bool]:
        special = station.is_special(trips)
        return [station.leg(FirstLeg, trip, trip.ticket.args, trip.ticket.kwargs, special) for trip in trips], special

    def _leave(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            ticket.leave()
            self._trips.depart(ticket)
        self._make_room()

    def _make_room(self, future: Any = None) -> None:
        for batcher in self.steps:
            batcher._make_room(future)

    # -- looking at it ------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether items are accepted."""
        return not self._trips.closed

    @property
    def name(self) -> str:
        """What errors, metrics and `repr` call this flow."""
        return self._name

    @property
    def steps(self) -> tuple[UBatch[Any, Any], ...]:
        """The steps' batchers, in order: to `reconfigure`, to observe, to look at."""
        return self._course.batchers

    @property
    def stats(self) -> FlowStats:
        """A snapshot of what the flow has done; see `FlowStats`. Blocks nobody."""
        steps = tuple(StepStats(name=batcher.name, batches=batcher.stats) for batcher in self.steps)
        return FlowStats(**self._trips.snapshot(), steps=steps)

    @property
    def _max_size(self) -> int:
        return max(batcher.max_size for batcher in self.steps)

    @property
    def _workers(self) -> int:
        return sum(batcher.workers for batcher in self.steps)

    @property
    def _batcher(self: Self) -> Self:
        return self

    @property
    def _asked(self) -> Asked:
        return View(self, 0, self._rules.deadline, UNSET)

    def __repr__(self) -> str:
        state = "stopped" if self._trips.closed else "running"
        steps = ", ".join(f"{batcher.name}: {len(batcher._schedule)} queued" for batcher in self.steps)
        return f"<Flow {self._name!r} {state}, {len(self._trips.going)} under way; {steps}>"

    def _own_worker(self) -> RuntimeError:
        return RuntimeError(
            f"a worker of flow {self._name!r} cannot wait for what perhaps only itself could run; use submit()"
        )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be copied or pickled: it has threads; make one where it is needed")


def _labels(steps: Sequence[Step[Any, Any]]) -> list[str]:
    """Names for the steps, each another one. Raises ValueError: two were given the same."""
    labels: list[str] = []
    given = [step.name for step in steps if step.name is not None]
    for step in steps:
        label = step.label
        if step.name is not None and given.count(label) > 1:
            raise ValueError(f"steps of a flow have different names, not {label!r} twice")
        number = 1
        while label in labels or (step.name is None and label in given):
            number += 1
            label = f"{step.label}-{number}"
        labels.append(label)
    return labels
