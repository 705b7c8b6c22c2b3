"""The row of a flow's steps as a whole: opening it, making ready what it works with, closing it.

Purpose: `Course` is what a `Flow` starts and stops. How items find their way along it is in `_stations` and `_trips`.

Guarantees:
- A stop follows the last items: a step is closed once the workers of the step before it are done. When its time is up,
  all that is left fails, wherever it is.
- What the steps work with, child processes and handlers that are to be made, is made ready side by side. If some of it
  fails, none is left.

How stop and start come by each other. Both decide under the trips' `life`, where the course is opened and closed, and
its batchers with it. A stop that goes on to the next step does so only if the course has not been opened since.

Assumptions: as in `_turns`. No other lock is taken under `life`, as its thread may hold one: a signal handler that has
come upon it there.
"""

from __future__ import annotations

from collections import deque
from functools import partial

from . import _native
from ._waiters import LoopTicket, ThreadTicket, Ticket, blocking, deliver
from .errors import Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._stations import Station
    from ._trips import Trips
    from .core import UBatch

    Load = Callable[[float | None], object]
    """Makes something ready, in so many seconds, or as many as it has for itself."""


class Course:
    """The steps of a flow, as a whole. Safe to use from any thread.

    Args:
        trips: the flow's.
        first: the station of its first step.
        loads: what makes ready what the steps work with.
    """

    def __init__(self, trips: Trips, first: Station, loads: Sequence[Load]) -> None:
        self.trips = trips
        self.first = first
        self.batchers: tuple[UBatch[Any, Any], ...] = tuple(station.batcher for station in first)
        self._loads = loads

    def __contains__(self, thread: object) -> bool:
        """Whether a thread, by its identity, runs handlers of it."""
        return any(thread in batcher._threads for batcher in self.batchers)

    # -- opening ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Accept items from now on."""
        with self.trips.life:
            self.trips.closed = False
            self.trips.openings += 1
            for station in self.first:
                station.open()
        for batcher in self.batchers:
            batcher._simplify()
            batcher._resume()

    def load(self, timeout: float | None) -> None:
        """Make ready what the steps work with.

        Raises:
            TimeoutError: it took longer. Then, as with all that follows, the course is closed.
            Stopped: it was closed meanwhile.
            Exception: what the first that failed raised.
        """
        try:
            self._load(timeout)
        except BaseException as error:
            stopped = self.trips.closed
            self.give_up(self.close(drain=False))
            if stopped and isinstance(error, Exception):
                raise Stopped(self.trips.name) from error
            raise
        if self._loads and self.trips.closed:  # by a stop that came between: it may have found nothing to end yet
            for batcher in self.batchers:
                if batcher._place is not None:
                    batcher._place.close(wait=True)
            raise Stopped(self.trips.name)

    def _load(self, timeout: float | None) -> None:
        if not self._loads:
            return
        ticket = blocking((), {})
        errors: deque[BaseException] = deque()
        loading = set(self._loads)

        def run(load: Load) -> None:
            try:
                load(timeout)
            except BaseException as error:
                errors.append(error)
            loading.discard(load)
            if errors or not loading:
                deliver([ticket], [None])
            _native.destroy_hub()

        for load in self._loads:
            _native.start_thread(f"ubatch-{self.trips.name}-start", partial(run, load))
        ticket.wait(timeout)
        try:
            if errors:
                raise errors[0]
            if loading:
                raise TimeoutError(f"flow {self.trips.name!r} was not ready within {timeout:g} s")
        finally:
            errors.clear()  # the traceback refers to this frame: no cycle through it

    # -- closing ------------------------------------------------------------------------------------------

    def stop(self, drain: bool, timeout: float | None) -> bool:
        """See `Flow.stop`."""
        openings = self.close(drain)
        ticket = blocking((), {})
        if isinstance(ticket, ThreadTicket):
            ticket.thread = 0  # no link of a chain: it may give up waiting
        waits = not self._cannot_wait() and not _native.in_hub()
        self._follow(ticket, openings)
        if not waits:
            return False
        if ticket.wait(timeout):
            return bool(ticket.outcome)
        self.give_up(openings)
        return False

    async def astop(self, drain: bool, timeout: float | None) -> bool:
        """See `Flow.astop`."""
        import asyncio

        openings = self.close(drain)
        ticket = LoopTicket((), {}, asyncio.get_running_loop())
        waits = not self._cannot_wait()
        self._follow(ticket, openings)
        if not waits:
            return False
        done, _ = await asyncio.wait([ticket.future], timeout=timeout)
        if done:
            return bool(ticket.future.result())
        self.give_up(openings)
        return False

    def close(self, drain: bool) -> int:
        """Refuse items from now on; says how often it has been opened.

        Args:
            drain: whether those that are under way go on; otherwise they fail as soon as they wait.
        """
        stations = [self.first] if drain else [*self.first]
        with self.trips.life:
            self.trips.closed = True
            openings = self.trips.openings
            for station in stations:
                station.shut()
        for station in stations:
            station.batcher._clear(drain)
        return openings

    def _follow(self, ticket: Ticket, openings: int) -> None:
        """Deliver `ticket` once the last item is through."""
        self.first.batcher._say_when_done(Farewell(ticket, self.first, openings))

    def _cannot_wait(self) -> bool:
        """Whether waiting for the workers would wait for oneself; they drain and end by themselves."""
        return self.trips.life._is_owned() or any(batcher._cannot_wait() for batcher in self.batchers)

    def give_up(self, openings: int) -> None:
        """Give up on the workers and on all that is under way, unless it has been opened meanwhile."""
        with self.trips.life:
            if self.trips.openings != openings:
                return
            for station in self.first:
                station.shut()
        for batcher in self.batchers:
            batcher._dismiss()
        self.trips.give_up(partial(Stopped, self.trips.name))  # what is between two steps


class Farewell(Ticket):
    """Follows the last items, and closes step after step.

    Args:
        ticket: whom to tell that all are through, or that it came otherwise.
        station: where it waits for the workers to be done.
        openings: how often the course had been opened when it was closed.
    """

    __slots__ = ("openings", "station", "ticket")

    home = "farewells"

    def __init__(self, ticket: Ticket, station: Station, openings: int) -> None:
        super().__init__((), {})
        self.ticket = ticket
        self.station = station
        self.openings = openings

    @staticmethod
    def wake_all(tickets: Sequence[Farewell], took: float | None) -> None:
        for farewell in tickets:
            farewell._go_on()

    def _go_on(self) -> None:
        station, trips = self.station.next, self.station.trips
        done = self.outcome is True
        if done and station is not None:
            with trips.life:
                done = trips.openings == self.openings
                if done:
                    station.shut()
        if done and station is not None:
            station.batcher._clear(drain=True)
            station.batcher._say_when_done(Farewell(self.ticket, station, self.openings))
        else:
            deliver([self.ticket], [done])

    def orphan(self, error: Exception) -> None:
        self.ticket.orphan(error)
