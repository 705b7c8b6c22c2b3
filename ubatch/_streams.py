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
    try:
        for item in items:
            flight.append(submit(item))
            while flight and (len(flight) >= ahead or flight[0].done()):
                yield flight.popleft().result()
        while flight:
            yield flight.popleft().result()
    finally:  # an error, or the consumer has had enough
        for future in flight:
            future.cancel()


async def astream(
    submit: Callable[[T], asyncio.Future[U]], items: Iterable[T] | AsyncIterable[T], ahead: int
) -> AsyncIterator[U]:
    """`stream` for coroutines; `items` may be asynchronous, and is then read while results are waited for."""
    flight: deque[asyncio.Future[U]] = deque()
    source = _Source(items)
    try:
        while True:
            if not source.ended and len(flight) < ahead and not (flight and flight[0].done()):
                if await source.ready(flight[0] if flight else None):
                    flight.append(submit(source.take()))
            elif flight:
                yield await flight.popleft()
            else:
                return
    finally:
        for future in flight:
            future.cancel()
        await source.close()


class _Source:
    """An iterable or asynchronous iterable, one item of which may be there already."""

    def __init__(self, items: Any) -> None:
        self.ended = False
        self._asynchronous = hasattr(items, "__aiter__")
        self._iterator = aiter(items) if self._asynchronous else iter(items)
        self._item: Any = None
        self._next: asyncio.Future[Any] | None = None  # of an asynchronous one: the item that it is asked for

    async def ready(self, other: asyncio.Future[Any] | None) -> bool:
        """Wait for an item, or until `other` is done; whether there is one to `take`."""
        try:
            if not self._asynchronous:
                self._item = next(self._iterator)
                return True
            import asyncio

            if self._next is None:
                self._next = asyncio.ensure_future(anext(self._iterator))
            waited = [self._next] if other is None else [self._next, other]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not self._next.done():
                return False
            task, self._next = self._next, None
            self._item = task.result()
            return True
        except (StopIteration, StopAsyncIteration):
            self.ended = True
            return False

    def take(self) -> Any:
        item, self._item = self._item, None
        return item

    async def close(self) -> None:
        """Give up on the item that was asked for: nobody reads on."""
        task, self._next = self._next, None
        if task is not None:
            import asyncio

            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # seen
