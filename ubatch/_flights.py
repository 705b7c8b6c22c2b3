"""Flights: calls with equal keys share one look into a cache, one item of a batcher, and one write.

Purpose: a call first looks for a *flight* with its key, and joins it. If there is none it is one itself: it looks
into the cache, else goes to the batcher as one item, its result is stored, and all who wait for it are told.

Guarantees:
- A flight can be joined from before it looks into the cache until its result is stored there. So with a cache that
  works nothing is computed twice: who comes at any moment joins, or finds the result.
- Each caller gets one answer: the value, which they share, or an exception that is its own. Errors are not stored.
- Who leaves (a cancel, a timeout, an interrupt) leaves alone. The item is dropped when all have left, unless a batch
  has it: then its result is stored, and who comes meanwhile joins.
- A cache that fails fails nobody: then nothing is found, or nothing stored.
- The cache is used by one thread at a time, under a lock of its own, beside which no other is held. A cache that may
  block holds up neither the batcher's worker nor event loops nor hubs.

Who uses the cache. One in memory (a dict, cachetools) is used where one stands, as that takes less time than to hand
it on. Any other may block, on a file or a socket. A thread that waits anyway reads it by itself; for tasks, greenlets
and futures the *keeper* does, a thread of this object's own (a batcher in its turn, so it comes, goes and forks as
one). Only the keeper writes: not the batcher's worker, which a slow disk would keep from its next batch, nor a caller,
who may leave before. Results are handed out once they are stored. So a program may end after its last call and has all
it paid for, and callers cannot outrun a slow disk.

What an interrupt (`KeyboardInterrupt`) may do. It comes at any step of a call in the main thread, others may have
joined by then, and nobody may know whether the batcher has the item. So a flight can be handed over twice, and is
claimed once; telling callers may be done twice; and no caller's thread tells others, as a future's lock, or a callback
of theirs, is no place to be interrupted.

How it survives a fork. The child starts with no flights; callers that were inherited, in flight or about to be told,
fail there. No inherited lock is touched.

Assumptions: keys' `__hash__` and `__eq__` are as for any dict, quick and alone: they run under the lock of the table.
That lock is held for a few steps and may be taken again by its own thread (a signal handler, a `__del__`). Whether a
flight is joined, left, claimed or over is decided under it.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from functools import partial

from . import _native
from ._attempt import own
from ._future import FutureTicket
from ._waiters import PENDING, Ticket, deliver
from .core import UBatch
from .errors import WorkerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import Any

    Arguments = tuple[tuple[Any, ...], dict[str, Any]]
    """Of a call: by position, by name."""
    Work = Callable[[Sequence["Flight"]], None]
    Errand = tuple[Work, Sequence["Flight"]]
    """Something to be done with the cache, and the flights that it is for."""

_living: dict[int, weakref.ref[Flights]] = {}  # all of them, by id; operations on a dict are atomic


class Flight:
    """A call on its way, and all who wait for it. Its fields but `outcome` are guarded by its home's `_lock`."""

    __slots__ = (
        "call",
        "callers",
        "calls",
        "claimed",
        "home",
        "key",
        "left",
        "looked",
        "outcome",
        "sent",
        "slot",
    )

    def __init__(self, home: Flights, key: Hashable, slot: Any, call: Arguments) -> None:
        self.home = home
        self.key = key  # in the cache
        self.slot = slot  # in the table
        self.call = call
        self.callers: dict[Ticket, None] = {}
        self.calls = 0  # that came before it was known whether the cache has it
        self.looked = False  # whether that is known
        self.sent: Any = None  # what the batcher has of it: an `Item`, or a future of an `aio` batcher
        self.claimed = False  # whether a batch has it
        self.left = False  # whether it was dropped
        self.outcome: Any = PENDING

    def depart(self, item: Ticket, /) -> None:
        """As of a queue that futures are in; what is to be done is done where they forget it."""


class Item(Ticket):
    """A flight in a batcher's queue. If there are two of one flight, after an interrupt, one of them is claimed."""

    __slots__ = ("flight", "home")

    def __init__(self, flight: Flight) -> None:
        Ticket.__init__(self, *flight.call)
        self.flight = flight
        self.home = flight.home

    def claim(self) -> bool:
        flight = self.flight
        with flight.home._lock:
            first = not (flight.left or flight.claimed)
            flight.claimed = True
        return first

    @staticmethod
    def wake_all(tickets: Sequence[Item], took: float | None) -> None:
        for item in tickets:
            item.flight.outcome = item.outcome
        tickets[0].home._land([item.flight for item in tickets])

    def orphan(self, error: Exception) -> None:
        """Nothing: `_forked` tells the callers of all flights."""


class SharedFuture(FutureTicket):
    """The ticket of `submit`: cancelling it leaves the flight to the others."""

    def answer(self, outcome: Any) -> None:
        """Settle it before its caller has it, in that caller's thread: an interrupt is raised there, not logged."""
        self._queue = None
        self._settle(outcome)

    def _forget(self) -> None:
        flight = self._queue
        super()._forget()
        if isinstance(flight, Flight):
            flight.home._leave([flight], [self])


class ErrandTicket(Ticket):
    """Work for the keeper. Nobody waits for it, so there is no lock that an interrupt could leave locked."""

    __slots__ = ("flights",)

    home = "errands"

    def __init__(self, work: Work, flights: Sequence[Flight]) -> None:
        Ticket.__init__(self, ((work, flights),), {})
        self.flights = flights

    @staticmethod
    def wake_all(tickets: Sequence[ErrandTicket], took: float | None) -> None:
        for ticket in tickets:
            if ticket.outcome is not None:  # it was not done: the thread died, or the interpreter is about to exit
                ticket.flights[0].home._give_up(ticket.flights, ticket.outcome)

    def orphan(self, error: Exception) -> None:
        """Nothing, as with items."""


class Flights:
    """The flights to one batcher, and its cache. How to reach the batcher is for those to say who inherit this.

    Args:
        batcher: the batcher.
        cache: a mutable mapping.
    """

    def __init__(self, batcher: Any, cache: Any) -> None:
        self.batcher = batcher
        self._cache = cache
        self._in_memory = _is_in_memory(cache)
        self._keeper: UBatch[Errand, None] = UBatch(64, 0.0, handler=_run, name=f"{batcher.name}-cache")
        self._hits = self._misses = self._shared = self._errors = 0  # guarded by _lock, as the next
        self._told: set[str] = set()  # kinds of trouble that have been logged
        self._fresh()
        _living[id(self)] = weakref.ref(self, partial(_forget, id(self)))

    def _fresh(self) -> None:
        """Make all that a forked child must not share with its parent."""
        self._lock = _native.reentrant_lock()  # guards the table, and what its flights say
        self._cache_lock = _native.reentrant_lock()  # guards the cache
        self._table: dict[Any, Flight] = {}  # flights that can be joined, by slot
        self._landing: set[Flight] = set()  # those whose callers are being told

    def _forked(self) -> None:
        """In the child."""
        inherited = [ticket for flight in {*self._table.values(), *self._landing} for ticket in flight.callers]
        self._fresh()
        for ticket in inherited:
            ticket.orphan(WorkerDied(self.batcher.name, "it belongs to the parent of this forked process"))

    # -- from its callers to its callers ------------------------------------------------------------------

    def _enter(self, flights: list[Flight], tickets: Sequence[Ticket], here: bool = False) -> None:
        """Let each ticket wait for a flight: its own, or one with its key that is under way; and start its own.

        Args:
            flights: one for each ticket; each is replaced by the one that its ticket waits for.
            tickets: those of the callers.
            here: whether this thread may wait for the cache.
        """
        mine = list(flights)
        locks = [lock for lock in (self._lock, self._cache_lock) if not lock._is_owned()]
        try:
            for position, ticket in enumerate(tickets):
                with self._lock:
                    flight = flights[position] = self._table.setdefault(mine[position].slot, mine[position])
                    flight.callers[ticket] = None
                    if isinstance(ticket, SharedFuture):
                        ticket._queue = flight
                    if flight.looked:
                        self._shared += 1
                    else:
                        flight.calls += 1
            new = [flight for flight, joined in zip(mine, flights, strict=True) if flight is joined]
            if new and (here or self._in_memory):
                self._look(new, tickets)
            elif new:
                self._have(self._look, new)
        except BaseException:  # an interrupt; others may have joined: their flight goes on as if nothing were found
            for lock in locks:
                while lock._is_owned():  # before Python 3.11 one may come between the end of a block and this
                    lock.release()
            self._leave(flights, tickets)
            lost = [f for f in mine if f in self._landing or (self._table.get(f.slot) is f and not f.claimed)]
            self._go_on(lost, tickets)
            raise

    def _look(self, flights: Sequence[Flight], tickets: Sequence[Ticket] = ()) -> None:
        """Look into the cache, and go on. `tickets`: those of the caller whose thread this is, if it is one's."""
        for flight in flights:
            found = self._get(flight.key)
            if found is not PENDING:
                flight.outcome = found
        self._go_on(flights, tickets)

    def _go_on(self, flights: Sequence[Flight], tickets: Sequence[Ticket] = ()) -> None:
        """Those that have a result are over; the others go to the batcher. `tickets`: as for `_look`.

        A caller's thread tells no other callers: it may be interrupted, and they may have callbacks.
        """
        mine, alone, over, sent = set(tickets), [], [], []
        with self._lock:
            for flight in flights:
                hit = flight.outcome is not PENDING
                if not flight.looked:
                    flight.looked = True
                    if hit:
                        self._hits += flight.calls
                    else:
                        self._misses += 1
                        self._shared += flight.calls - 1
                if not hit:
                    if not flight.left:
                        sent.append(flight)
                elif mine and flight.callers.keys() <= mine and self._table.get(flight.slot) is flight:
                    del self._table[flight.slot]  # so nobody else will join
                    alone.append(flight)
                else:
                    over.append(flight)
        if alone and isinstance(tickets[0], SharedFuture):
            tickets[0].answer(alone[0].outcome)
        elif alone:
            _tell(alone)
        if over and mine:
            self._have(self._settle, over)
        elif over:
            self._settle(over)
        if sent:
            self._send(sent)

    def _land(self, flights: Sequence[Flight]) -> None:
        """The batcher is done with these."""
        if self._in_memory:
            self._store(flights)
        else:
            self._have(self._store, flights)

    def _store(self, flights: Sequence[Flight]) -> None:
        try:
            for flight in flights:
                if not isinstance(flight.outcome, BaseException):
                    self._set(flight.key, flight.outcome)
        finally:
            self._settle(flights)

    def _settle(self, flights: Sequence[Flight]) -> None:
        """Tell all who wait; from here on nobody joins. May come again to a flight: telling twice does no harm."""
        self._landing.update(flights)  # before they leave the table, for a fork to find, or for who was interrupted
        with self._lock:
            for flight in flights:
                if self._table.get(flight.slot) is flight:
                    del self._table[flight.slot]
        _tell(flights)
        for flight in flights:
            flight.callers, flight.sent = {}, None
        self._landing.difference_update(flights)

    def _give_up(self, flights: Sequence[Flight], error: BaseException) -> None:
        """End flights that cannot go on; what has been computed is not lost, but not stored."""
        for flight in flights:
            if flight.outcome is PENDING:
                flight.outcome = error
        self._settle(flights)

    def _leave(self, flights: Sequence[Flight], tickets: Sequence[Ticket]) -> None:
        """These callers are gone, each from its flight; drop what nobody waits for any more."""
        for flight, ticket in zip(flights, tickets, strict=True):
            ticket.leave()
            with self._lock:
                flight.callers.pop(ticket, None)
                drop = not flight.callers and not flight.claimed and self._table.get(flight.slot) is flight
                if drop:
                    flight.left = True
                    del self._table[flight.slot]
            if drop:
                self._drop(flight)

    def _send(self, flights: Sequence[Flight]) -> None:
        """Hand over to the batcher. Raises nothing."""
        raise NotImplementedError

    def _drop(self, flight: Flight) -> None:
        """Take it back from the batcher, if the batcher has it."""
        raise NotImplementedError

    # -- the cache, and who uses it -----------------------------------------------------------------------

    def _have(self, work: Work, flights: Sequence[Flight]) -> None:
        """Have something done in the keeper's thread."""
        try:
            self._keeper._put(ErrandTicket(work, flights))
        except Exception as error:  # no thread can be had, or the interpreter is about to exit
            self._give_up(flights, error)

    def _get(self, key: Hashable) -> Any:
        """`PENDING` if there is nothing."""
        try:
            with self._cache_lock:
                return self._cache[key]
        except KeyError:
            pass
        except Exception as error:
            self._trouble("be read", error)
        return PENDING

    def _set(self, key: Hashable, value: Any) -> None:
        try:
            with self._cache_lock:
                self._cache[key] = value
        except Exception as error:
            self._trouble("be written to", error)

    def _trouble(self, operation: str, error: BaseException) -> None:
        """Count it; log the first of its kind, without its message, which may have a key or a value in it."""
        name = type(error).__name__
        with self._lock:
            self._errors += 1
            known = f"{operation} {name}" in self._told
            self._told.add(f"{operation} {name}")
        if not known:
            import logging

            log = logging.getLogger("ubatch")
            log.warning("the cache of batcher %r could not %s: %s; told once", self.batcher.name, operation, name)


def _tell(flights: Sequence[Flight]) -> None:
    tickets: list[Ticket] = []
    outcomes: list[Any] = []
    for flight in flights:
        outcome, failed = flight.outcome, isinstance(flight.outcome, BaseException)
        with flight.home._lock:
            tickets += flight.callers
        outcomes += [own(outcome) if failed else outcome for _ in range(len(tickets) - len(outcomes))]
    deliver(tickets, outcomes)


def _run(errands: list[Errand]) -> list[None]:
    """The keeper's handler."""
    for work, flights in errands:
        try:
            work(flights)
        except BaseException as error:  # the cache's, such as SystemExit
            flights[0].home._trouble("be used", error)
            flights[0].home._go_on(flights)
    return [None] * len(errands)


def _is_in_memory(cache: Any) -> bool:
    """Whether using it takes next to no time. Of other classes, those that inherit these among them, nobody knows."""
    kind = type(cache)
    return kind in (dict, OrderedDict) or kind.__module__.partition(".")[0] == "cachetools"


def _forget(key: int, _: object) -> None:
    _living.pop(key, None)


def _after_fork_in_child() -> None:
    for flights in [flights for ref in list(_living.values()) if (flights := ref()) is not None]:
        flights._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
