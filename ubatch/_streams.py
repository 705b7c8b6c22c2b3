"""Results in the order of their items, as they come, with a bounded number in flight.

For more items than fit into memory: the source is read only as far as there is room.
"""

from __future__ import annotations

import operator
from collections import deque

from ._typing import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
    from concurrent.futures import Future
    from typing import Any

T = TypeVar("T")
U = TypeVar("U")


def checked_ahead(ahead: int | None, default: int) -> int:
    """Raises TypeError, ValueError: it is neither `None` nor an integer of at least 1."""
    if ahead is None:
        return default
    if isinstance(ahead, bool) or not hasattr(ahead, "__index__"):
        raise TypeError(f"ahead must be None or an integer, not {ahead!r}")
    if operator.index(ahead) < 1:
        raise ValueError(f"ahead must be at least 1 item, not {ahead!r}")
    return operator.index(ahead)


def stream(submit: Callable[[T], Future[U]], items: Iterable[T], ahead: int) -> Iterator[U]:
    """Hand over items, `ahead` at most at once, and yield their results.

    Args:
        submit: hands over one item.
        items: read in the thread that asks for results.
        ahead: the largest number of items in flight.
    """
    flight: deque[Future[U]] = deque()
    source = iter(items)
    failure: Exception | None = None
    try:
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception as error:  # in its turn: what came before it is in flight
                failure = error
                break
            try:
                flight.append(submit(item))
            except Exception as error:
                failure = error
                break
            while flight and (len(flight) >= ahead or flight[0].done()):
                yield flight.popleft().result()
        while flight:
            yield flight.popleft().result()
        if failure is not None:
            raise failure
    finally:  # an error, or the consumer has had enough
        failure = None
        for future in flight:
            future.cancel()


async def astream(
    submit: Callable[[T], asyncio.Future[U]], items: Iterable[T] | AsyncIterable[T], ahead: int
) -> AsyncIterator[U]:
    """`stream` for coroutines; `items` may be asynchronous, and is then read while results are waited for."""
    flight: deque[asyncio.Future[U]] = deque()
    source = _source(items)
    failure: Exception | None = None
    try:
        while True:
            if not source.ended and len(flight) < ahead and not (flight and flight[0].done()):
                try:
                    if await source.ready(flight[0] if flight else None):
                        flight.append(submit(source.take()))
                except Exception as error:  # in its turn: what came before it is in flight
                    source.ended, failure = True, error
            elif flight:
                yield await flight.popleft()
            elif failure is not None:
                raise failure
            else:
                return
    finally:
        failure = None
        for future in flight:
            future.cancel()
        await source.close()


def _source(items: Any) -> _Source | _AsyncSource:
    return _AsyncSource(items) if hasattr(items, "__aiter__") else _Source(items)


class _Source:
    """An iterable, read one item at a time."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.ended = False
        self._iterator = iter(items)
        self._item: Any = None

    async def ready(self, other: asyncio.Future[Any] | None) -> bool:
        """Wait for an item, or until `other` is done; whether there is one to `take`."""
        try:
            self._item = next(self._iterator)
        except StopIteration:
            self.ended = True
        return not self.ended

    def take(self) -> Any:
        item, self._item = self._item, None
        return item

    async def close(self) -> None:
        """Nobody reads on."""


class _AsyncSource:
    """An asynchronous iterable, read one item at a time, by one task of its own.

    One for all of them, as it is the task that timeouts, task groups and context variables of the source belong to.
    """

    def __init__(self, items: AsyncIterable[Any]) -> None:
        self.ended = False
        self._items = items
        self._item: asyncio.Future[Any] | None = None  # the one that is waited for
        self._task: asyncio.Task[None] | None = None
        self._asked: asyncio.Event | None = None

    async def ready(self, other: asyncio.Future[Any] | None) -> bool:
        """As of `_Source`."""
        import asyncio

        if self._task is None or self._asked is None:
            self._asked = asyncio.Event()
            self._task = asyncio.ensure_future(self._read(self._asked))
            self._task.add_done_callback(_seen)
        if self._item is None:
            self._item = asyncio.get_running_loop().create_future()
            self._asked.set()
        waited = [self._item, self._task] if other is None else [self._item, self._task, other]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._item.done():
            return True
        if self._task.done():
            self.ended = True
            try:
                self._task.result()
            finally:
                del waited, other  # the traceback refers to this frame: no cycle through it
                self._task = None
        return False

    def take(self) -> Any:
        assert self._item is not None
        item, self._item = self._item.result(), None
        return item

    async def close(self) -> None:
        """Nobody reads on."""
        task, self._task = self._task, None
        if task is not None:
            import asyncio

            task.cancel()
            await asyncio.wait([task])

    async def _read(self, asked: asyncio.Event) -> None:
        await asked.wait()
        async for item in self._items:
            assert self._item is not None
            asked.clear()
            self._item.set_result(item)
            del item
            await asked.wait()


def _seen(task: asyncio.Task[None]) -> None:
    """Nothing is logged if nobody asks for its exception."""
    if not task.cancelled():
        task.exception()
