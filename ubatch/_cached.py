"""`cached`: the faces of a batcher, behind a cache. What happens between their callers is in `_flights`.

The blocking face of a thread's batcher reads a slow cache in the calling thread; all others leave that to the
keeper, so that nothing but a thread that waits anyway ever waits for a disk. `aio` batchers work on one event loop
each, so there items in flight are shared within a loop, and the cache is common to all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from . import _native
from ._flights import Flight, Flights, Item, SharedFuture
from ._native import get_ident
from ._streams import astream, checked_ahead, stream
from ._typing import Generic, TypeVar, overload
from ._waiters import BlockingTicket, HubTicket, LoopTicket, ThreadTicket, outcomes_of
from .core import UBatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Hashable, Iterable, Iterator
    from concurrent.futures import Future
    from typing import Any, Protocol

    from . import aio
    from ._binding import Binder
    from ._flights import Arguments
    from ._typing import Face
    from .stats import Stats

T = TypeVar("T")
U = TypeVar("U")


@overload
def cached(
    batcher: UBatch[T, U] | Batched[T, U], cache: Cache, key: Callable[..., Hashable] | None = None
) -> Cached[T, U]: ...
@overload
def cached(
    batcher: aio.UBatch[T, U] | AioBatched[T, U], cache: Cache, key: Callable[..., Hashable] | None = None
) -> AioCached[T, U]: ...
def cached(batcher: Any, cache: Any, key: Callable[..., Hashable] | None = None) -> Any:
    """Put a batcher behind a cache: `fast = cached(batch, cache={})`, then `fast.ubatch(x)` and all other faces.

    A result is looked for in the cache first. Calls for an item that is being computed wait for that result; one of
    them may leave without the others' noticing. Errors are not kept. Callers share results: the same object, as with
    `functools.cache`. Items that are equal, such as 1, 1.0 and True, have one result.

    Args:
        batcher: a `UBatch`, a decorated function or a method of an object, or one of `ubatch.aio`, whose faces the
            result then has: coroutines, and `submit` with an `asyncio.Future`.
        cache: any mutable mapping, such as `diskcache.Cache(folder)`, `cachetools.LRUCache(1000)` or a dict. This
            object uses it from one thread at a time. Where it fails, with whatever exception, a result is computed,
            or not kept; that is logged once for each kind of failure. Event loops and greenlets never wait for it,
            as it is used in a thread, unless it is in memory: a plain dict or `OrderedDict`, a class of cachetools.
        key: `key(*args, **kwargs)` gives a hashable key for a call, to be used in the cache. By default that is the
            item, for a call with one positional argument, else the tuple `(args, sorted keyword arguments)`.

    Returns:
        An object with the batcher's faces, `batcher`, and `stats`: see `Cached` or `AioCached`.

    Raises:
        TypeError: an argument is not as described; the message has its value.
    """
    given = batcher
    loaded = sys.modules.get(f"{__package__}.aio")
    kinds: tuple[Any, ...] = (UBatch,) if loaded is None else (UBatch, loaded.UBatch)
    if not isinstance(batcher, (*kinds, Flights)):  # the latter has a batcher, but that has no cache
        batcher = getattr(batcher, "batcher", None)
    if not isinstance(batcher, kinds):
        raise TypeError(f"batcher must be a UBatch or a decorated function, not {given!r}")
    is_mapping = hasattr(type(cache), "__getitem__") and hasattr(type(cache), "__setitem__")
    if not is_mapping or isinstance(cache, Sequence):
        raise TypeError(f"cache must be a mutable mapping, not {cache!r}")
    if key is not None and not callable(key):
        raise TypeError(f"key must be None or callable, not {key!r}")
    return (Cached if isinstance(batcher, UBatch) else AioCached)(batcher, cache, key)


def call_key(*args: Any, **kwargs: Any) -> Any:
    """The key of a call where none is given: the item, or all arguments. Calls that differ have different keys."""
    if len(args) == 1 and not kwargs:
        item = args[0]
        looks_like_others = (
            isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], tuple) and isinstance(item[1], tuple)
        )
        if not looks_like_others:
            return item
    return args, tuple(sorted(kwargs.items()))


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What an object of `cached` has done since it was made, at one moment; it cannot be changed.

    `hits + misses + shared` is the number of calls, but for those of which it is not known yet what they are.
    """

    hits: int
    """Calls answered from the cache."""
    misses: int
    """Calls that the cache had nothing for, and whose items went to the batcher."""
    shared: int
    """Calls that joined such an item in flight."""
    errors: int
    """Operations of the cache that failed."""
    batcher: Stats
    """What the batcher has done, for others too; see `ubatch.Stats`."""

    def asdict(self) -> dict[str, Any]:
        """The numbers by name, those of the batcher in a dictionary of their own."""
        counts = {name: getattr(self, name) for name in ("hits", "misses", "shared", "errors")}
        return {**counts, "batcher": self.batcher.asdict()}


class _Cached(Flights, Generic[T, U]):
    """What both kinds have in common: what a call is, and the faces for coroutines."""

    batcher: Any

    def __init__(self, batcher: Any, cache: Any, key: Callable[..., Hashable] | None) -> None:
        super().__init__(batcher, cache)
        self._key = call_key if key is None else key

    @property
    def stats(self) -> CacheStats:
        """A snapshot: `hits`, `misses`, `shared`, `errors`, and the batcher's own as `batcher`. Blocks nobody."""
        return CacheStats(self._hits, self._misses, self._shared, self._errors, self.batcher.stats)

    def __repr__(self) -> str:
        return (
            f"<cached {self.batcher!r} cache={type(self._cache).__name__} hits={self._hits} misses={self._misses} "
            f"shared={self._shared} errors={self._errors}>"
        )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be copied or pickled, as the batcher cannot; make one where it is needed")

    # -- calls --------------------------------------------------------------------------------------------

    def _flights(self, calls: Sequence[Arguments]) -> list[Flight]:
        """A flight for each call. If that raises, nothing has happened."""
        binder = self._binder()
        flights = []
        for args, kwargs in calls:
            if binder is not None:
                binder.bind(args, kwargs)  # a misfit fails here, alone, and not when others have joined it
            key = self._key(*args, **kwargs)
            try:
                hash(key)
            except TypeError as error:
                raise TypeError(f"{error}: cached needs a hashable item, or a key= that makes a key of it") from error
            flights.append(Flight(self, key, self._slot(key), (args, kwargs)))
        return flights

    def _binder(self) -> Binder | None:
        """The batcher's, if it has a handler."""
        raise NotImplementedError

    def _slot(self, key: Any) -> Any:
        """What flights have in common that are one."""
        return key

    def _may_wait(self) -> None:
        """Raises RuntimeError: who waits here waits for itself."""
        raise NotImplementedError

    # -- the faces for coroutines -------------------------------------------------------------------------

    @overload
    async def aubatch(self, item: T, /, *args: Any, **kwargs: Any) -> U: ...
    @overload
    async def aubatch(self, /, **kwargs: Any) -> U: ...
    async def aubatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """The item's result, for coroutines; see `Cached.ubatch`. Cancelling leaves the item to others."""
        return (await self._aask([(args, kwargs)]))[0]

    async def amap(self, items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """The results of many items, in order; see `Cached.map`. Cancelling leaves the items to others."""
        return await self._aask([(args, {}) for args in zip(items, *more, strict=False)])

    async def _aask(self, calls: Sequence[Arguments]) -> list[Any]:
        import asyncio

        self._may_wait()
        loop = asyncio.get_running_loop()
        flights = self._flights(calls)
        tickets = [LoopTicket((), {}, loop) for _ in flights]
        try:
            self._enter(flights, tickets)
            if len(tickets) == 1:
                return [await tickets[0].future]
            return await outcomes_of([ticket.future for ticket in tickets])
        except BaseException:
            self._leave(flights, tickets)
            raise
        finally:
            del flights, tickets  # the traceback refers to this frame: no cycle through it

    def astream(self, items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None) -> AsyncIterator[U]:
        """Results in order, as they come, for coroutines; see `UBatch.astream`."""
        return astream(self._submit_and_wait, items, checked_ahead(ahead, self._two_batches()))

    def _two_batches(self) -> int:
        """Or, with several workers, one for each and one more, in items."""
        size: int = self.batcher.max_size
        workers: int = self.batcher.workers
        return size * (workers + 1)

    def _submit_and_wait(self, item: T) -> asyncio.Future[U]:
        self._may_wait()
        return self._asubmit(item)

    def _asubmit(self, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Hand over one item; a future of the running loop. Its `cancel()` leaves the item to others."""
        import asyncio

        ticket = LoopTicket((), {}, asyncio.get_running_loop())
        flights = self._flights([(args, kwargs)])
        self._enter(flights, [ticket])
        ticket.future.add_done_callback(lambda future: self._leave(flights, [ticket]) if future.cancelled() else None)
        return ticket.future


class Cached(_Cached[T, U]):
    """A `UBatch` behind a cache; see `cached`. For any thread, greenlet and event loop, at any time."""

    batcher: UBatch[T, U]
    """The batcher, without the cache."""

    @overload
    def ubatch(self, item: T, /, *args: Any, **kwargs: Any) -> U: ...
    @overload
    def ubatch(self, /, **kwargs: Any) -> U: ...
    def ubatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """The item's result: from the cache, from a call that computes it already, or from the batcher.

        Raises:
            TypeError: the item, or its key, cannot be hashed; or as `UBatch.ubatch`.
            Exception: what `key` raised; or as `UBatch.ubatch`.
        """
        return self._ask([(args, kwargs)])[0]

    @overload
    def submit(self, item: T, /, *args: Any, **kwargs: Any) -> Future[U]: ...
    @overload
    def submit(self, /, **kwargs: Any) -> Future[U]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand over one item and return at once, with a future. Its `cancel()` leaves the item to others.

        Raises:
            TypeError: the item, or its key, cannot be hashed; or the call does not fit the handler.
            Exception: what `key` raised. Whatever else goes wrong is in the future.
        """
        flights = self._flights([(args, kwargs)])
        ticket = SharedFuture((), {}, flights[0])
        self._enter(flights, [ticket])
        return ticket

    def map(self, items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """The results of many items, in order; equal ones are computed once. Raises as `UBatch.map`, or as `ubatch`."""
        return self._ask([(args, {}) for args in zip(items, *more, strict=False)])

    def stream(self, items: Iterable[T], /, *, ahead: int | None = None) -> Iterator[U]:
        """Results in order, as they come; see `UBatch.stream`."""
        ahead = checked_ahead(ahead, self._two_batches())
        self._may_wait()
        return stream(self.submit, items, ahead)

    def _ask(self, calls: Sequence[Arguments]) -> list[Any]:
        self._may_wait()
        hub = _native.current_hub()
        thread = get_ident() if len(calls) == 1 else 0
        flights = self._flights(calls)
        tickets: list[BlockingTicket] = [
            ThreadTicket((), {}, thread) if hub is None else HubTicket((), {}, hub) for _ in flights
        ]
        try:
            self._enter(flights, tickets, here=hub is None)
            for ticket in tickets:
                ticket.wait()
        except BaseException:
            self._leave(flights, tickets)
            raise
        finally:
            del flights  # the traceback refers to this frame: no cycle through it
        for ticket in tickets:
            if isinstance(ticket.outcome, BaseException):
                ticket.result()
        return [ticket.outcome for ticket in tickets]

    def _binder(self) -> Binder | None:
        return self.batcher._binder

    def _may_wait(self) -> None:
        for batcher in (self.batcher, self._keeper):  # futures call back in the keeper's thread, too
            if get_ident() in batcher._threads:
                raise batcher._own_worker()

    def _send(self, flights: Sequence[Flight]) -> None:
        items = [Item(flight) for flight in flights]
        for item in items:
            item.flight.sent = item
        try:
            self.batcher._put_all(items)
        except Exception as error:
            self._give_up(flights, error)

    def _drop(self, flight: Flight) -> None:
        item, flight.sent = flight.sent, None
        if item is not None:
            self.batcher._leave([item])


class AioCached(_Cached[T, U]):
    """A batcher of `ubatch.aio` behind a cache; see `cached`. For coroutines of any event loop."""

    batcher: aio.UBatch[T, U]
    """The batcher, without the cache."""

    if TYPE_CHECKING:

        @property
        def ubatch(self) -> Face[T, Coroutine[Any, Any, U]]: ...
        @property
        def submit(self) -> Face[T, asyncio.Future[U]]: ...
        async def map(self, items: Iterable[T], /, *more: Iterable[Any]) -> list[U]: ...
        def stream(self, items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None) -> AsyncIterator[U]: ...
    else:
        ubatch, submit, map, stream = _Cached.aubatch, _Cached._asubmit, _Cached.amap, _Cached.astream

    def __init__(self, batcher: Any, cache: Any, key: Callable[..., Hashable] | None) -> None:
        super().__init__(batcher, cache, key)
        self._loops: set[asyncio.AbstractEventLoop] = set()

    def _binder(self) -> Binder | None:
        return self.batcher._job.binder

    def _slot(self, key: Any) -> Any:
        import asyncio

        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            with self._lock:
                self._loops = {loop, *(other for other in self._loops if not other.is_closed())}
                for slot in [slot for slot in self._table if slot[0].is_closed()]:  # nobody waits there any more
                    del self._table[slot]
        return loop, key

    def _may_wait(self) -> None:
        if self.batcher._is_own_worker(self.batcher._home()):
            raise self.batcher._own_worker()

    def _send(self, flights: Sequence[Flight]) -> None:
        if self._in_memory:
            self._hand_over(flights)
            return
        try:
            flights[0].slot[0].call_soon_threadsafe(self._hand_over, flights)
        except RuntimeError as error:  # the loop is closed
            self._give_up(flights, error)

    def _hand_over(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            if flight.left or flight.sent is not None:
                continue
            try:
                args, kwargs = flight.call
                flight.sent = self.batcher.submit(*args, **kwargs)
            except Exception as error:
                self._give_up([flight], error)
            else:
                flight.sent.add_done_callback(partial(self._landed, flight))

    def _landed(self, flight: Flight, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():  # else everybody has left
            error = future.exception()
            flight.outcome = future.result() if error is None else error
            self._land([flight])

    def _drop(self, flight: Flight) -> None:
        if flight.sent is not None:
            flight.sent.cancel()


if TYPE_CHECKING:

    class Cache(Protocol):
        """What `cached` needs of a mutable mapping."""

        def __getitem__(self, key: Any, /) -> Any: ...
        def __setitem__(self, key: Any, value: Any, /) -> Any: ...

    class Batched(Protocol[T, U]):
        """What has a batcher: a decorated function, a method of an object."""

        @property
        def batcher(self) -> UBatch[T, U]: ...

    class AioBatched(Protocol[T, U]):
        """As `Batched`, of `ubatch.aio`."""

        @property
        def batcher(self) -> aio.UBatch[T, U]: ...
