"""`ubatch.inference` for handlers that are coroutine functions, on an event loop.

Batches are stacked and split in the event loop, but for a handler that is a plain function in the thread that it runs
in: so let it be one if batches are large (a hundred images take some milliseconds).
"""

from __future__ import annotations

import sys

from ubatch._binding import is_coroutine_function
from ubatch._collate import joined, rows_of
from ubatch._loop import Home
from ubatch._terms import UNSET
from ubatch._typing import Generic, TypeVar, overload
from ubatch.decorators import Bound, Decorated, Viewing, decorate, for_many
from ubatch.inference import Collating, Stacked, batcher_options, divided, given, name_of, restored, without

from .core import UBatch
from .decorators import _Faces

U = TypeVar("U")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from typing import Any, Protocol, TypeAlias

    from ubatch._collate import Example
    from ubatch._loop_intake import Ticket
    from ubatch._terms import Asked
    from ubatch._typing import AnyHandler, Unpack
    from ubatch.inference import Features, InferenceOptions

    Stackable: TypeAlias = AnyHandler[Features, U]
    """To the batcher, the handler is one of a list of examples."""

    class LoopInferenceOptions(InferenceOptions, total=False):
        """The options of `dynamically` that are taken by name."""

        workers: int

    class Decorator(Protocol):
        """`dynamically` with options."""

        @overload
        def __call__(self, function: Callable[..., Awaitable[U]], /) -> InferenceFunction[U]: ...
        @overload
        def __call__(self, function: Callable[..., U], /) -> InferenceFunction[U]: ...


__all__ = ["dynamically"]


class _AwaitedStacked(Stacked):
    """`Stacked` around a coroutine function."""

    async def __call__(self, examples: list[Example], /) -> list[Any]:  # type: ignore[override]
        """One result for each example."""
        collator = self._collating.collator
        misfits = collator.misfits(examples)
        fitting = without(misfits, examples)
        return restored(misfits, collator.split(await self._collating.call(fitting), fitting))


class _Home(Home):
    """Where the items of one loop are."""

    def _accept(self, tickets: list[Ticket], asked: Asked | None, waits: bool) -> None:
        # every call comes through here, as every item has a key
        (handler,) = self.job.handlers
        assert isinstance(handler, Stacked)
        super()._accept(tickets, handler.admit(tickets, asked), waits)


class Batcher(UBatch["Features", U]):
    """A batcher of an event loop whose items are examples.

    Args:
        handler, key, spread_kwargs: see `ubatch.inference.Collating`.
        options: as of `UBatch` and `Collator`.
    """

    _home_type = _Home

    def __init__(
        self,
        max_size: int = 64,
        timeout: float | None = None,
        *,
        handler: Callable[..., Any] | None = None,
        key: Callable[..., Hashable] | None = None,
        spread_kwargs: bool = False,
        **options: Any,
    ) -> None:
        arrays, options = divided(options)
        self._collating = Collating(handler, key, spread_kwargs, arrays)
        if handler is not None:
            stacked = _AwaitedStacked if is_coroutine_function(handler) else Stacked
            options["handler"] = stacked(self._collating, name_of(handler))
        super().__init__(max_size, timeout, **batcher_options(self._collating, options))

    def _placed(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        self._collating.place(super()._placed)
        return handler


class _Call(_Faces["Stackable[U]"], Generic[U]):
    """Calls that are batched, row by row."""

    __slots__ = ()

    if TYPE_CHECKING:
        _threshold: int | None

    async def __call__(self, /, *features: Features, **named: Any) -> U:
        """The results of one or several rows; see `ubatch.inference`."""
        rows = rows_of(given(features, named))
        alone = len(rows) == 1
        results: U = joined([await self.batcher.ubatch(rows[0])] if alone else await for_many(self, rows).map(rows))
        return results

    acall = __call__

    def options(  # type: ignore[override]
        self, *, priority: float | None = None, deadline: float | None = None, key: Hashable = UNSET
    ) -> InferenceView[U]:
        """The call and the faces, with options for the calls that are made so; see `ubatch.UBatch.options`."""
        return InferenceView(self.batcher.options(priority=priority, deadline=deadline, key=key), self._threshold)


class InferenceView(Viewing, _Call[U]):
    """Calls that are batched, with options."""

    __slots__ = ()


class InferenceMethod(Bound, _Call[U]):
    """What `dynamically` makes of a method, bound."""

    __slots__ = ()


class InferenceFunction(Decorated, _Call[U]):
    """What `dynamically` makes: the call is batched; and the faces, for single examples."""

    batcher_type = Batcher
    bound_type = InferenceMethod
    decorator = "inference.dynamically"

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None, /) -> InferenceFunction[U]: ...


@overload
def dynamically(function: Callable[..., Awaitable[U]], /) -> InferenceFunction[U]: ...
@overload
def dynamically(function: Callable[..., U], /) -> InferenceFunction[U]: ...
@overload
def dynamically(
    max_size: int = 64, timeout: float | None = None, **options: Unpack[LoopInferenceOptions]
) -> Decorator: ...
def dynamically(
    max_size: Any = 64, timeout: float | None = None, *, small_batch_threshold: int | None = None, **options: Any
) -> Any:
    """Batch the calls of a function that takes a dictionary of arrays with a batch axis, and returns such arrays.

    As `ubatch.inference.dynamically`, for coroutine functions (or plain ones, in a thread) and on event loops:
    `await f(features)` with rows, `await f.ubatch(example)` without. Arguments and errors: as there, and `workers`.
    """
    options = {"timeout": timeout, **options}
    return decorate(InferenceFunction, max_size, options, sys._getframe(1), small_batch_threshold)
