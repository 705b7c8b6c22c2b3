"""The ways to call a batcher of `ubatch.aio`: await one, many, or take a future.

`Faces` are those of an `aio.UBatch`, and of `View`, a batcher together with what is special about some calls.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop

from ._loop import serving
from ._options import checked_choice
from ._streams import astream, checked_ahead
from ._terms import UNSET, Chosen
from ._typing import Generic, TypeVar, overload
from ._waiters import outcomes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Hashable, Iterable
    from typing import Any

    from ._loop import Home
    from ._loop_intake import Job

T = TypeVar("T")
U = TypeVar("U")


class Faces(Generic[T, U]):
    """The faces of a batcher, for code that runs in an event loop."""

    __slots__ = ()

    if TYPE_CHECKING:
        _job: Job
        _latest: Home | None

        _batcher: Any
        _asked: Any  # `Asked`, or `None`

        def _home(self) -> Home: ...
        def _is_own_worker(self, home: Home) -> bool: ...
        def _own_worker(self) -> RuntimeError: ...

    @overload
    async def ubatch(self, item: T, /, *args: Any, **kwargs: Any) -> U: ...
    @overload
    async def ubatch(self, /, **kwargs: Any) -> U: ...
    async def ubatch(self, /, *args: Any, **kwargs: Any) -> Any:
        """Hand over one item and wait for its result. Cancelling drops the item if no batch has it yet.

        Args:
            item, *args, **kwargs: what this call contributes to the handler's lists.

        Returns:
            The item's result.

        Raises:
            Exception: what the handler raised, or put in the item's place.
            BadBatchOutputSize: the handler did not return one result for each item.
            HandlerFailed: the handler raised what must not be raised here as it is (`SystemExit`, `CancelledError`).
            Stopped: the batcher was stopped.
            QueueFull: there is no room for it, and `overflow` is "reject".
            DeadlineExceeded: it has no result, and its deadline has passed.
            TypeError: the arguments do not fit the handler.
            RuntimeError: called by the batcher's own handler, which would wait for itself.
        """
        home = self._latest
        if home is None or home.loop is not get_running_loop():
            home = self._home()
        if serving.get() is not None and self._is_own_worker(home):
            raise self._own_worker()
        future = home.put(args, kwargs, self._asked)
        try:
            return await future
        except (asyncio.CancelledError, GeneratorExit):
            future.cancel()
            raise
        finally:
            del future  # the traceback refers to this frame: no cycle through it

    aubatch = ubatch

    @overload
    def submit(self, item: T, /, *args: Any, **kwargs: Any) -> asyncio.Future[U]: ...
    @overload
    def submit(self, /, **kwargs: Any) -> asyncio.Future[U]: ...
    def submit(self, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Hand over one item; not a coroutine. Also for the batcher's own handler.

        Returns:
            A future of the running loop. Its `cancel` drops the item if no batch has it yet.

        Raises:
            Stopped: the batcher was stopped.
            QueueFull: there is no room for it, whatever `overflow` says: this cannot wait.
            DeadlineExceeded: its deadline was over before; later, it is in the future.
            TypeError: the arguments do not fit the handler.
        """
        return self._home().put(args, kwargs, self._asked, waits=False)

    async def map(self, items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """Hand over many items and wait for all of them. Cancelling drops those that no batch has yet.

        Args:
            items: one for each call.
            more: further arguments, zipped with the items, for handlers with several.

        Returns:
            The results, in order.

        Raises:
            Exception: the first of the items' errors, in order, after all items are done. Arguments that do not
                fit raise before any item is accepted. Otherwise as `ubatch`.
        """
        home = self._home()
        if self._is_own_worker(home):
            raise self._own_worker()
        futures = home.put_all(zip(items, *more, strict=False), self._asked)
        try:
            return await outcomes_of(futures)
        except BaseException:
            while futures:
                futures.pop().cancel()
            raise
        finally:
            del futures  # the traceback refers to this frame: no cycle through it

    amap = map

    def stream(self, items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None) -> AsyncIterator[U]:
        """Results in the order of the items, as they come: `async for result in batcher.stream(items)`.

        Args:
            items: any iterable, also an endless or an asynchronous one: it is read as far as is needed.
            ahead: how many items may be in flight, at least 1; by default a batch for each worker and one more.

        Yields:
            One result for each item. The first item that fails ends the stream with its error, and drops those
            behind it that no batch has yet; so does leaving the loop, once the stream is closed.

        Raises:
            As `ubatch`, when the item's turn comes.
        """
        ahead = checked_ahead(ahead, self._job.max_size * (self._job.workers + 1))
        return astream(self._submit_and_wait, items, ahead)

    astream = stream

    def _submit_and_wait(self, item: T) -> asyncio.Future[U]:
        """`submit` for who is about to wait."""
        home = self._home()
        if self._is_own_worker(home):
            raise self._own_worker()
        return home.put((item,), {}, self._asked)

    # -- what is special about some calls -----------------------------------------------------------------

    def options(
        self, *, priority: float | None = None, deadline: float | None = None, key: Hashable = UNSET
    ) -> View[T, U]:
        """The batcher with options for the calls that are made through what is returned; see `ubatch.UBatch.options`.

        Raises:
            TypeError, ValueError: an argument is not as described there; the message has its value.
        """
        base = self._asked or View(self._batcher, 0, self._job.rules.deadline, UNSET)
        return View(self._batcher, *checked_choice(base, priority, deadline, key))


class View(Chosen, Faces[T, U]):
    """A batcher, and what is special about the calls that are made through it; see `Faces.options`."""

    __slots__ = ()
