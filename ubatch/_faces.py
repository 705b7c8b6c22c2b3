"""The ways to call a batcher: wait, take a future, await, many at once.

`Faces` are those of a `UBatch`, and of `View`, a batcher together with what is special about some calls.
"""

from __future__ import annotations

from functools import partial

from . import _alarm, _native
from ._native import get_ident, monotonic
from ._options import checked_choice
from ._streams import astream, checked_ahead, stream
from ._terms import INFINITE, UNSET, Chosen
from ._typing import Generic, TypeVar, overload
from ._waiters import PENDING, BlockingTicket, HubTicket, LoopTicket, ThreadTicket, blocking, outcomes_of
from .errors import DeadlineExceeded, Stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from typing import Any

    from ._future import FutureTicket
    from ._terms import Asked, Rules
    from ._waiters import Ticket

T = TypeVar("T")
U = TypeVar("U")


class Faces(Generic[T, U]):
    """The faces of a batcher. Safe to be called from any thread, any greenlet and any event loop, at any time."""

    __slots__ = ()

    if TYPE_CHECKING:
        _name: str
        _rules: Rules
        _future: type[FutureTicket]

        _batcher: Any
        # as of `Driver`; a flow has something that stands for them
        _max_size: Any
        _workers: Any
        _threads: Any
        _schedule: Any

        @property
        def _asked(self) -> Asked: ...
        def _own_worker(self) -> RuntimeError: ...
        def _make_room(self, future: Any = None) -> None: ...
        def _put(self, ticket: Ticket) -> None: ...
        def _put_all(self, tickets: Sequence[Ticket]) -> None: ...
        def _leave(self, tickets: Sequence[Ticket]) -> None: ...

    @overload
    def ubatch(self, item: T, /, *args: Any, **kwargs: Any) -> U: ...
    @overload
    def ubatch(self, /, **kwargs: Any) -> U: ...
    def ubatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """Hand over one item and wait for its result.

        A greenlet lets others run meanwhile. If the wait is interrupted (`KeyboardInterrupt`,
        `gevent.Timeout`, a killed greenlet), the item is dropped unless a batch has it already.

        Args:
            args: usually one, the item; several, or keywords, are bound by the handler's signature.

        Returns:
            This item's result.

        Raises:
            TypeError: the call does not fit the handler.
            Stopped: the batcher is stopped, or gave the item up.
            QueueFull: there is no room for it, and `overflow` is "reject".
            DeadlineExceeded: it has no result, and its deadline has passed.
            RuntimeError: called by the batcher's own worker, which could never answer. `submit` may be.
            WorkerDied: the worker is gone, or none can be started.
            BadBatchOutputSize, HandlerFailed: see there.
            Exception: what the handler raised, an equal object for each caller.
        """
        thread = get_ident()
        if thread in self._threads:
            raise self._own_worker()
        hub = _native.current_hub()
        ticket: BlockingTicket
        ticket = ThreadTicket(args, kwargs, thread) if hub is None else HubTicket(args, kwargs, hub)
        try:
            self._put(ticket)
            if ticket.terms is None:
                ticket.wait()
            elif not self._wait(ticket):
                raise DeadlineExceeded(self._name, ticket.terms.deadline)
        except BaseException:
            self._leave([ticket])
            raise
        return ticket.result()

    def _wait(self, ticket: BlockingTicket) -> bool:
        """Wait for the outcome until the item's deadline; whether it is there."""
        expires = ticket.terms.expires if ticket.terms is not None else INFINITE
        if expires == INFINITE:
            ticket.wait()
            return True
        return ticket.wait(max(0.0, expires - monotonic())) or ticket.outcome is not PENDING

    @overload
    def submit(self, item: T, /, *args: Any, **kwargs: Any) -> Future[U]: ...
    @overload
    def submit(self, /, **kwargs: Any) -> Future[U]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand over one item and return at once, or, with `overflow="block"`, as soon as there is room for it.

        Args:
            args: as for `ubatch`.

        Returns:
            A future of the result. `cancel()` drops the item unless a batch has it already.

        Raises:
            TypeError, Stopped, WorkerDied, QueueFull: as `ubatch`; whatever else goes wrong is in the future. The
                batcher's own worker cannot wait for room: it gets `QueueFull` in any case.
            DeadlineExceeded: there was no room until then.
        """
        ticket = self._future(args, kwargs, self._schedule)
        if self._rules.block and self._schedule.special:
            self._put_in_time(ticket)
        else:
            self._put(ticket)
        terms = ticket.terms
        if terms is not None and terms.expires < INFINITE:
            self._set_alarm(ticket)
        return ticket

    def _put_in_time(self, ticket: FutureTicket) -> None:
        """Put it, and wait until there is room for it."""
        gate = ticket.gate = blocking((), {})
        try:
            self._put(ticket)
            if ticket.gate is not None:
                gate.terms = ticket.terms
                if not self._wait(gate):
                    raise DeadlineExceeded(self._name, ticket.terms.deadline if ticket.terms else INFINITE)
                if not gate.outcome:
                    raise Stopped(self._name)
        except BaseException:
            ticket.cancel()
            self._leave([ticket])
            raise
        ticket.gate = None
        ticket.add_done_callback(self._make_room)  # if it is cancelled

    def _set_alarm(self, ticket: FutureTicket) -> None:
        assert ticket.terms is not None
        ticket.late = partial(DeadlineExceeded, self._name, ticket.terms.deadline)
        try:
            _alarm.alarm.set(ticket.terms.expires, ticket)
        except BaseException:  # no thread can be started
            ticket.cancel()
            raise

    @overload
    async def aubatch(self, item: T, /, *args: Any, **kwargs: Any) -> U: ...
    @overload
    async def aubatch(self, /, **kwargs: Any) -> U: ...
    async def aubatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """`ubatch` for coroutines of an asyncio event loop (uvloop too). Cancelling drops the item if it can."""
        import asyncio

        if get_ident() in self._threads:
            raise self._own_worker()
        ticket = LoopTicket(args, kwargs, asyncio.get_running_loop())
        timer = None
        try:
            self._put(ticket)
            if ticket.terms is not None:
                timer = self._set_timer([ticket])
            return await ticket.future
        except BaseException:  # cancelled, for one; if it has an outcome, leaving does no harm
            self._leave([ticket])
            raise
        finally:
            if timer is not None:
                timer.cancel()
            del ticket, timer  # the traceback refers to this frame: no cycle through it

    def _set_timer(self, tickets: Sequence[LoopTicket]) -> asyncio.TimerHandle | None:
        """Let tickets of the running loop that were put together expire."""
        terms = tickets[0].terms if tickets else None
        if terms is None or terms.expires == INFINITE:
            return None
        loop: asyncio.AbstractEventLoop = tickets[0].home
        return loop.call_later(max(0.0, terms.expires - monotonic()), self._expire, tickets)

    def _expire(self, tickets: Sequence[LoopTicket]) -> None:
        late = [ticket for ticket in tickets if not ticket.future.done()]
        for ticket in late:
            assert ticket.terms is not None
            ticket.future.set_exception(DeadlineExceeded(self._name, ticket.terms.deadline))
        if late:
            self._leave(late)

    def map(self, items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """Hand over many items and wait for all of them.

        Args:
            items: one for each call.
            more: further arguments, zipped with the items, for handlers with several.

        Returns:
            The results, in order.

        Raises:
            Exception: the first of the items' errors, in order, after all items are done. Arguments that do
                not fit raise before any item is accepted. Otherwise as `ubatch`.
        """
        if get_ident() in self._threads:
            raise self._own_worker()
        hub = _native.current_hub()
        tickets: list[BlockingTicket] = [
            ThreadTicket(args, {}, 0) if hub is None else HubTicket(args, {}, hub)
            for args in zip(items, *more, strict=False)
        ]
        try:
            self._put_all(tickets)
            late = [ticket for ticket in tickets if not self._wait(ticket)]
            for ticket in late:
                assert ticket.terms is not None
                ticket.outcome = DeadlineExceeded(self._name, ticket.terms.deadline)
            if late:
                self._leave(late)
        except BaseException:
            self._leave(tickets)
            raise
        for ticket in tickets:
            if isinstance(ticket.outcome, BaseException):
                ticket.result()
        return [ticket.outcome for ticket in tickets]

    async def amap(self, items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """`map` for coroutines. Cancelling drops the items that no batch has yet."""
        import asyncio

        if get_ident() in self._threads:
            raise self._own_worker()
        loop = asyncio.get_running_loop()
        tickets = [LoopTicket(args, {}, loop) for args in zip(items, *more, strict=False)]
        timer = None
        try:
            self._put_all(tickets)
            timer = self._set_timer(tickets)
            return await outcomes_of([ticket.future for ticket in tickets])
        except BaseException:
            self._leave(tickets)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            del tickets, timer  # the traceback refers to this frame: no cycle through it

    def stream(self, items: Iterable[T], /, *, ahead: int | None = None) -> Iterator[U]:
        """Results in the order of the items, as they come: `for result in batcher.stream(items)`.

        Args:
            items: any iterable, also an endless one: it is read as far as is needed, by whoever asks for results.
            ahead: how many items may be in flight, at least 1; by default a batch for each worker and one more.

        Returns:
            An iterator of one result for each item. The first item that fails ends it with its error, and drops
            those behind it that no batch has yet; so does closing the iterator.

        Raises:
            TypeError, ValueError: `ahead` is not as described.
            Exception: as `ubatch`, when the item's turn comes.
        """
        ahead = checked_ahead(ahead, self._max_size * (self._workers + 1))
        if get_ident() in self._threads:
            raise self._own_worker()
        return stream(self.submit, items, ahead)

    def astream(self, items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None) -> AsyncIterator[U]:
        """`stream` for coroutines: `async for result in batcher.astream(items)`; `items` may be asynchronous."""
        ahead = checked_ahead(ahead, self._max_size * (self._workers + 1))
        if get_ident() in self._threads:
            raise self._own_worker()
        return astream(self._asubmit, items, ahead)

    def _asubmit(self, item: T) -> asyncio.Future[U]:
        """Hand over an item; a future of the running loop, whose `cancel` drops the item if it can."""
        import asyncio

        ticket = LoopTicket((item,), {}, asyncio.get_running_loop())
        self._put(ticket)
        timer = self._set_timer([ticket])
        ticket.future.add_done_callback(partial(self._resolved, ticket, timer))
        return ticket.future

    def _resolved(self, ticket: LoopTicket, timer: asyncio.TimerHandle | None, future: asyncio.Future[U]) -> None:
        if timer is not None:
            timer.cancel()
        if future.cancelled():
            self._leave([ticket])

    # -- what is special about some calls -----------------------------------------------------------------

    def options(
        self, *, priority: float | None = None, deadline: float | None = None, key: Hashable = UNSET
    ) -> View[T, U]:
        """The batcher with options for the calls that are made through what is returned; cheap.

        `batcher.options(priority=-1, deadline=0.2).ubatch(item)`. What is not given stays as it is.

        Args:
            priority: lower runs first; 0 by default. An item gives way only to such as come in the next `aging`
                seconds for each level between them.
            deadline: seconds from its arrival in which an item must have its result; then its caller gets
                `DeadlineExceeded`, also while its batch runs; infinite for none.
            key: items with different keys share no batch; instead of what the batcher's `key` says.

        Returns:
            A view of the batcher with the same faces. It may be kept, and used from any thread.

        Raises:
            TypeError, ValueError: an argument is not as described; the message has its value.
        """
        base = self._asked
        return View(self._batcher, *checked_choice(base, priority, deadline, key))


class View(Chosen, Faces[T, U]):
    """A batcher, and what is special about the calls that are made through it; see `Faces.options`."""

    __slots__ = ()

    def _put(self, ticket: Ticket) -> None:
        self._batcher._accept([ticket], self)

    def _put_all(self, tickets: Sequence[Ticket]) -> None:
        self._batcher._put_all(tickets, self)
