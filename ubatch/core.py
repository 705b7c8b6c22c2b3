"""`UBatch`: the batcher that users hold, and its four ways to be called.

Everything that happens between threads is in `_driver`; this file checks arguments and waits.
"""

from __future__ import annotations

from . import _native
from ._binding import Binder, is_coroutine_function
from ._ceiling import Ceiling
from ._driver import Driver
from ._native import get_ident
from ._options import checked_isolate, checked_max_size, checked_name, checked_timeout, policy_for
from ._streams import astream, checked_ahead, stream
from ._typing import Generic, TypeVar, overload
from ._waiters import BlockingTicket, HubTicket, LoopTicket, ThreadTicket, outcomes_of
from .errors import HandlerAlreadySet, HandlerNotSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Any

    from ._typing import Handler
    from .stats import Stats

Self = TypeVar("Self", bound="UBatch[Any, Any]")

T = TypeVar("T")
U = TypeVar("U")


class UBatch(Driver, Generic[T, U]):
    """Gathers the items of many callers and gives them to a batch handler in one call.

    Threads, greenlets and coroutines each call with one item of type `T` and get their own result, of type
    `U`; a background thread gathers what is there and calls `handler(list of items)`. The thread comes with
    the first item and goes after a time without any. Every accepted item resolves: with a result, an error,
    or by its caller's leaving.

    All methods may be called from any thread, any greenlet and any event loop, at any time.

    Args:
        max_size: the largest batch, in items; at least 1.
        timeout: the longest time, in seconds, that an item is held for companions while the worker is free,
            counted from the item's arrival. 0 holds nothing. `None`, the default: ubatch learns when waiting pays.
        handler: `handler(list of items)` returns a sequence or an array with one result for each item, in
            order; an exception instance in it is raised in that caller alone. With several arguments per
            call it gets one list for each. With `handler` given here the batcher starts by itself with its
            first item; otherwise items wait for `set_handler` and `start`.
        name: shown in errors, in `repr` and as the name of the thread; by default the handler's name.
        isolate: whether a batch is split whose handler raises, so that one bad item does not fail the others: the
            handler is called again with its halves, with theirs, and so on. Only for handlers to which it does no
            harm to see an item again. One bad item among n costs 2·log2(n) calls more; once 8·log2(n) calls have
            failed, the items not yet known to be good fail. A batch that runs out of memory (of the GPU, too) is
            split likewise, and those after it are kept as small as its parts that went through, for a time.

    Raises:
        TypeError, ValueError: an argument is not as described; the message has its value.
    """

    def __init__(
        self,
        max_size: int = 64,
        timeout: float | None = None,
        *,
        handler: Handler[T, U] | None = None,
        name: str | None = None,
        isolate: bool = False,
    ) -> None:
        from ._future import FutureTicket  # not in submit(), which a signal handler or a __del__ may call at any time

        self._future = FutureTicket
        self._given_name = checked_name(name)
        self._timeout = checked_timeout(timeout)
        ceiling = Ceiling() if checked_isolate(isolate) else None
        super().__init__(name or "ubatch", checked_max_size(max_size), policy_for(self._timeout), ceiling)
        if handler is not None:
            self.set_handler(handler)
            self._started = True

    # -- the handler, starting, stopping ------------------------------------------------------------------

    def set_handler(self, handler: Handler[T, U]) -> None:
        """Set the batch handler, once.

        Args:
            handler: see the class; any callable but a coroutine function.

        Raises:
            HandlerAlreadySet: there is one.
            TypeError: it is not callable, or its calls would be coroutines.
        """
        if self._handler is not None:
            raise HandlerAlreadySet(self._name)
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        if is_coroutine_function(handler):
            raise TypeError(f"handler {handler!r} is a coroutine function, which is for ubatch.aio, not for a thread")
        self._binder = Binder(handler)
        if self._given_name is None:
            self._name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
        self._handler = handler

    def start(self: Self) -> Self:
        """Let the worker run, now and again after `stop`. Does nothing if it may run already.

        Returns:
            The batcher itself.

        Raises:
            HandlerNotSet: there is no handler yet.
        """
        if self._handler is None:
            raise HandlerNotSet(self._name)
        self._started = True
        self._closed = False
        if self._schedule.queue:
            self._call_worker()
        return self

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Refuse new items, run those that are queued, and end the worker.

        May be called again, concurrently, from a `__del__` and from a signal handler. From the handler
        itself or from a done-callback it does not wait.

        Args:
            drain: whether queued items are run; otherwise they fail with `Stopped` at once. Without a
                handler they fail in any case.
            timeout: the longest time to wait, in seconds; `None` for no limit. After it, all that is left
                fails with `Stopped`; if a handler is still running, its callers too, and its result is dropped.

        Returns:
            Whether all was done in time.

        Raises:
            ValueError: `timeout` is negative or not a number.
        """
        return self._stop(drain, checked_timeout(timeout))

    async def astop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """`stop` for coroutines: the event loop runs on meanwhile. Cancelling it cancels the waiting alone."""
        import asyncio

        timeout = checked_timeout(timeout)
        self._close(drain)
        if self._cannot_wait():
            return False
        ticket = LoopTicket((), {}, asyncio.get_running_loop())
        self._say_when_done(ticket)
        done, _ = await asyncio.wait([ticket.future], timeout=timeout)
        if not done and self._closed:  # not if a start() has overtaken
            self._dismiss()
        return bool(done)

    def __enter__(self: Self) -> Self:
        """Start; items that were accepted before run now."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, after what is queued has run."""
        self.stop()

    # -- the four faces -----------------------------------------------------------------------------------

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
            RuntimeError: called by the batcher's own worker, which could never answer. `submit` may be.
            WorkerDied: the worker is gone, or none can be started.
            BadBatchOutputSize, HandlerFailed: see there.
            Exception: what the handler raised, an equal object for each caller.
        """
        thread = get_ident()
        if thread == self._seat.thread:
            raise self._own_worker()
        hub = _native.current_hub()
        ticket: BlockingTicket
        ticket = ThreadTicket(args, kwargs, thread) if hub is None else HubTicket(args, kwargs, hub)
        try:
            self._put(ticket)
            ticket.wait()
        except BaseException:
            self._leave([ticket])
            raise
        return ticket.result()

    @overload
    def submit(self, item: T, /, *args: Any, **kwargs: Any) -> Future[U]: ...
    @overload
    def submit(self, /, **kwargs: Any) -> Future[U]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand over one item and return at once.

        Args:
            args: as for `ubatch`.

        Returns:
            A future of the result. `cancel()` drops the item unless a batch has it already.

        Raises:
            TypeError, Stopped, WorkerDied: as `ubatch`; whatever else goes wrong is in the future.
        """
        ticket = self._future(args, kwargs, self._schedule)
        self._put(ticket)
        return ticket

    @overload
    async def aubatch(self, item: T, /, *args: Any, **kwargs: Any) -> U: ...
    @overload
    async def aubatch(self, /, **kwargs: Any) -> U: ...
    async def aubatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """`ubatch` for coroutines of an asyncio event loop (uvloop too). Cancelling drops the item if it can."""
        import asyncio

        if get_ident() == self._seat.thread:
            raise self._own_worker()
        ticket = LoopTicket(args, kwargs, asyncio.get_running_loop())
        try:
            self._put(ticket)
            return await ticket.future
        except BaseException:  # cancelled, for one; if it has an outcome, leaving does no harm
            self._leave([ticket])
            raise
        finally:
            del ticket  # the traceback refers to this frame: no cycle through it

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
        if get_ident() == self._seat.thread:
            raise self._own_worker()
        hub = _native.current_hub()
        tickets: list[BlockingTicket] = [
            ThreadTicket(args, {}, 0) if hub is None else HubTicket(args, {}, hub)
            for args in zip(items, *more, strict=False)
        ]
        try:
            self._put_all(tickets)
            for ticket in tickets:
                ticket.wait()
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

        if get_ident() == self._seat.thread:
            raise self._own_worker()
        loop = asyncio.get_running_loop()
        tickets = [LoopTicket(args, {}, loop) for args in zip(items, *more, strict=False)]
        try:
            self._put_all(tickets)
            return await outcomes_of([ticket.future for ticket in tickets])
        except BaseException:
            self._leave(tickets)
            raise
        finally:
            del tickets  # the traceback refers to this frame: no cycle through it

    def stream(self, items: Iterable[T], /, *, ahead: int | None = None) -> Iterator[U]:
        """Results in the order of the items, as they come: `for result in batcher.stream(items)`.

        Args:
            items: any iterable, also an endless one: it is read as far as is needed, by whoever asks for results.
            ahead: how many items may be in flight, at least 1; by default two batches.

        Returns:
            An iterator of one result for each item. The first item that fails ends it with its error, and drops
            those behind it that no batch has yet; so does closing the iterator.

        Raises:
            TypeError, ValueError: `ahead` is not as described.
            Exception: as `ubatch`, when the item's turn comes.
        """
        ahead = checked_ahead(ahead, 2 * self._max_size)
        if get_ident() == self._seat.thread:
            raise self._own_worker()
        return stream(self.submit, items, ahead)

    def astream(self, items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None) -> AsyncIterator[U]:
        """`stream` for coroutines: `async for result in batcher.astream(items)`; `items` may be asynchronous."""
        ahead = checked_ahead(ahead, 2 * self._max_size)
        if get_ident() == self._seat.thread:
            raise self._own_worker()
        return astream(self._asubmit, items, ahead)

    def _asubmit(self, item: T) -> asyncio.Future[U]:
        """Hand over an item; a future of the running loop, whose `cancel` drops the item if it can."""
        import asyncio

        ticket = LoopTicket((item,), {}, asyncio.get_running_loop())
        self._put(ticket)
        ticket.future.add_done_callback(lambda future: self._leave([ticket]) if future.cancelled() else None)
        return ticket.future

    # -- looking at it ------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether items are accepted."""
        return not self._closed

    @property
    def name(self) -> str:
        """What errors, `repr` and the thread call this batcher."""
        return self._name

    @property
    def stats(self) -> Stats:
        """A snapshot of what the batcher has done; see `ubatch.Stats`. Blocks nobody."""
        return self._snapshot()

    @property
    def max_size(self) -> int:
        """The largest batch, in items. May be set at any time; takes effect at the next cut."""
        return self._max_size

    @max_size.setter
    def max_size(self, max_size: int) -> None:
        self._max_size = checked_max_size(max_size)
        self._reconsider()

    @property
    def timeout(self) -> float | None:
        """The longest hold, in seconds; `None` if ubatch finds it out. May be set; takes effect at the next cut."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self._timeout = checked_timeout(timeout)
        self._policy = policy_for(self._timeout)
        self._reconsider()

    def __repr__(self) -> str:
        state = "stopped" if self._closed else "running" if self._started else "waiting for start()"
        stats = self.stats
        return (
            f"<UBatch {self._name!r} {state} max_size={self._max_size} timeout={self._timeout} "
            f"queued={stats.queued} running={stats.running}>"
        )

    def _own_worker(self) -> RuntimeError:
        return RuntimeError(
            f"the worker of batcher {self._name!r} cannot wait for a batch that only itself could run; use submit()"
        )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be copied or pickled: it has a thread; make one where it is needed")
