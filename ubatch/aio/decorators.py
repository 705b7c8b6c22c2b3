"""The decorators, for coroutine functions: see `ubatch.decorators`."""

from __future__ import annotations

import sys

from ubatch._terms import UNSET
from ubatch._typing import Generic, ParamSpec, TypeVar, overload
from ubatch.decorators import Bound, Decorated, Viewing, decorate, for_many

from .core import UBatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Hashable, Iterable
    from typing import Any, Concatenate, Protocol

    from ubatch._loop_faces import View
    from ubatch._typing import AnyHandler, AnyMethod, Face, Options, Unpack
    from ubatch.stats import Stats

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
F = TypeVar("F", bound="Callable[..., Any]")
F_co = TypeVar("F_co", covariant=True)


class _Faces(Generic[F_co]):
    """The faces of a batcher on something that has one; `F_co` is the type of the plain function."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def __name__(self) -> str: ...
        @property
        def __qualname__(self) -> str: ...
        @property
        def batcher(self: _Faces[AnyHandler[T, U]]) -> UBatch[T, U]: ...

    @property
    def stats(self: _Faces[Any]) -> Stats:
        """See `UBatch.stats`."""
        return self.batcher.stats

    @property
    def ubatch(self: _Faces[AnyHandler[T, U]]) -> Face[T, Coroutine[Any, Any, U]]:
        """Hand over one item and wait for its result; see `UBatch.ubatch`."""
        return self.batcher.ubatch

    aubatch = ubatch

    @property
    def submit(self: _Faces[AnyHandler[T, U]]) -> Face[T, asyncio.Future[U]]:
        """Hand over one item and get a future; see `UBatch.submit`."""
        return self.batcher.submit

    async def map(self: _Faces[AnyHandler[T, U]], items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """Hand over many items and wait for all; see `UBatch.map`."""
        return await self.batcher.map(items, *more)

    amap = map

    def stream(
        self: _Faces[AnyHandler[T, U]], items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None
    ) -> AsyncIterator[U]:
        """Results in order, as they come; see `UBatch.stream`."""
        return self.batcher.stream(items, ahead=ahead)

    astream = stream

    def options(
        self: _Faces[AnyHandler[T, U]],
        *,
        priority: float | None = None,
        deadline: float | None = None,
        key: Hashable = UNSET,
    ) -> View[T, U]:
        """The faces, with options for the calls that are made through them; see `ubatch.UBatch.options`."""
        return self.batcher.options(priority=priority, deadline=deadline, key=key)


class BatchedMethod(Bound, _Faces[F_co]):
    """What `ubatch_decorator` makes of a method, bound."""

    __slots__ = ()

    if TYPE_CHECKING:
        __call__: F_co
        """The plain method."""
    else:

        def __call__(self, /, *args, **kwargs):
            """Call the plain method."""
            return self.__func__.__wrapped__(self.__self__, *args, **kwargs)


class BatchedFunction(Decorated, _Faces[F_co]):
    """What `ubatch_decorator` makes: the plain function, and the faces."""

    batcher_type = UBatch
    bound_type = BatchedMethod

    if TYPE_CHECKING:
        __call__: F_co
        """The plain function."""

        @overload  # a staticmethod: its first parameter takes the list already
        def __get__(
            self: BatchedFunction[AnyHandler[Any, Any]], instance: object, owner: type | None = None, /
        ) -> BatchedFunction[F_co]: ...
        @overload  # a classmethod
        def __get__(
            self: BatchedFunction[Callable[Concatenate[type[S], P], R]], instance: S | None, owner: type[S], /
        ) -> BatchedMethod[Callable[P, R]]: ...
        @overload  # a method
        def __get__(
            self: BatchedFunction[Callable[Concatenate[S, P], R]], instance: S, owner: type[S], /
        ) -> BatchedMethod[Callable[P, R]]: ...
        @overload  # a method looked up in its class
        def __get__(self, instance: None, owner: type, /) -> BatchedFunction[F_co]: ...
        def __get__(self, instance: Any, owner: type | None = None, /) -> Any: ...
    else:

        def __call__(self, /, *args, **kwargs):
            """Call the plain function."""
            return self.__wrapped__(*args, **kwargs)


class _DynamicCall(_Faces["AnyHandler[T, U]"], Generic[T, U]):
    """Calls that are batched."""

    __slots__ = ()

    if TYPE_CHECKING:
        _threshold: int | None

    @overload
    async def __call__(self, item: list[T], /) -> list[U]: ...
    @overload
    async def __call__(self, item: T, /) -> U: ...
    async def __call__(self, item: Any, /) -> Any:
        """The result of one item; of a list, the list of its items' results, in order."""
        return await (for_many(self, item).map(item) if isinstance(item, list) else self.batcher.ubatch(item))

    acall = __call__

    def options(  # type: ignore[override]
        self, *, priority: float | None = None, deadline: float | None = None, key: Hashable = UNSET
    ) -> DynamicView[T, U]:
        """The call and the faces, with options for the calls that are made so; see `ubatch.UBatch.options`."""
        return DynamicView(self.batcher.options(priority=priority, deadline=deadline, key=key), self._threshold)


class DynamicView(Viewing, _DynamicCall[T, U]):
    """Calls that are batched, with options."""

    __slots__ = ()


class DynamicMethod(Bound, _DynamicCall[T, U]):
    """What `dynamically` makes of a method, bound."""

    __slots__ = ()


class DynamicFunction(Decorated, _DynamicCall[T, U]):
    """What `dynamically` makes: the call is batched; and the faces."""

    batcher_type = UBatch
    bound_type = DynamicMethod
    decorator = "dynamically"

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None, /) -> DynamicFunction[T, U]: ...


if TYPE_CHECKING:

    class DynamicDecorator(Protocol):
        """`dynamically` with options."""

        @overload
        def __call__(self, function: AnyHandler[T, U], /) -> DynamicFunction[T, U]: ...
        @overload
        def __call__(self, function: AnyMethod[T, U], /) -> DynamicFunction[T, U]: ...


@overload
def ubatch_decorator(function: F, /) -> BatchedFunction[F]: ...
@overload
def ubatch_decorator(
    max_size: int = 64, timeout: float | None = None, **options: Unpack[Options]
) -> Callable[[F], BatchedFunction[F]]: ...
def ubatch_decorator(max_size: Any = 64, timeout: float | None = None, **options: Any) -> Any:
    """Give a batch function the faces of a batcher: `await f.ubatch(x)`, `f.submit(x)`, `await f.map(xs)`.

    As `ubatch.ubatch_decorator`, for coroutine functions and on event loops: `await f(xs)` stays the plain,
    unbatched function. Plain functions may be decorated too; their batches run in a thread.

    Args:
        max_size: the largest batch, in items.
        timeout: the longest hold, in seconds; see `UBatch`.
        options: as of `UBatch`, all but the handler. `name` is by default the function's.

    Raises:
        TypeError, ValueError: an option is not as described, or the function is not callable.
    """
    return decorate(BatchedFunction, max_size, {"timeout": timeout, **options}, sys._getframe(1))


@overload
def dynamically(function: AnyHandler[T, U], /) -> DynamicFunction[T, U]: ...
@overload
def dynamically(function: AnyMethod[T, U], /) -> DynamicFunction[T, U]: ...
@overload
def dynamically(
    max_size: int = 64,
    timeout: float | None = None,
    *,
    small_batch_threshold: int | None = None,
    **options: Unpack[Options],
) -> DynamicDecorator: ...
def dynamically(
    max_size: Any = 64, timeout: float | None = None, *, small_batch_threshold: int | None = None, **options: Any
) -> Any:
    """Batch the calls of a batch function themselves: `await f(x)` gives one result, `await f([x, y])` a list.

    As `ubatch.dynamically`, for coroutine functions (or plain ones, in a thread) and on event loops. Arguments and
    errors: as with `ubatch_decorator`.
    """
    options = {"timeout": timeout, **options}
    return decorate(DynamicFunction, max_size, options, sys._getframe(1), small_batch_threshold)
