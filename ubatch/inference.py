"""Batches of arrays: `dynamically` for handlers that take and return arrays with a batch axis, as models do.

Callers have one example each, of different lengths; the handler gets one dictionary of stacked and padded arrays. What
is done with the arrays is in `_collate`. Here it is put around a batcher: `Collating` is what both kinds of batchers
have in common, that of threads below and that of `ubatch.aio.inference`.

Guarantees, besides those of the batcher: what a caller gets does not depend on whose examples travel with its own,
unless the handler lets it. Only examples of one form (see `_collate`) share a batch, so nobody's dtype or missing
feature disturbs others; who comes with a shape that cannot be stacked fails alone, or with `unequal="apart"` not at
all. The handler may be called with any part of a batch again (`isolate=True`).
"""

from __future__ import annotations

import sys
from operator import attrgetter

from ._collate import Collator, joined, rows_of
from ._terms import UNSET, Chosen
from ._typing import Generic, TypeVar, overload
from .core import UBatch
from .decorators import Bound, Decorated, Viewing, _Faces, decorate, for_many

U = TypeVar("U")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from typing import Any, Protocol, TypeAlias

    from ._collate import Example
    from ._terms import Asked
    from ._typing import Handler, Options, Unpack

    Features: TypeAlias = Mapping[str, Any]
    """By name, arrays, tensors, lists or numbers."""

    Stackable: TypeAlias = Handler[Features, U]
    """To the batcher, the handler is one of a list of examples."""

    class InferenceOptions(Options, total=False):
        """The options of `dynamically` that are taken by name."""

        pad_tokens: Mapping[str, complex] | None
        padding_side: str
        pad_to: int
        pad_axis: int | Sequence[int] | Mapping[str, int | Sequence[int]]
        unequal: str
        lengths: str | None
        unpad: str | Mapping[str | int, str] | None
        reuse: bool
        device: Any
        spread_kwargs: bool
        small_batch_threshold: int | None

    class Decorator(Protocol):
        """`dynamically` with options."""

        def __call__(self, function: Callable[..., U], /) -> InferenceFunction[U]: ...


__all__ = ["dynamically"]


class Collating:
    """What stands between callers and the batcher, and between the batcher and the handler.

    Args:
        handler: of stacked features; `None` where only the options are to be checked.
        key: as of `UBatch`, but called with the example, a dictionary of arrays.
        spread_kwargs: whether the handler takes features as keyword arguments.
        options: as of `Collator`.
    """

    def __init__(
        self,
        handler: Callable[..., Any] | None,
        key: Callable[..., Hashable] | None,
        spread_kwargs: bool,
        options: dict[str, Any],
    ) -> None:
        if not isinstance(spread_kwargs, bool):
            raise TypeError(f"spread_kwargs must be True or False, not {spread_kwargs!r}")
        self.collator = Collator(**options)
        self._handler = handler
        self._key = key
        self._spread = spread_kwargs

    def admit(self, tickets: Sequence[Any], asked: Asked | None) -> Asked | None:
        """Make examples of calls' arguments, and give them keys, so that only such as fit together share a batch.

        Args:
            tickets: the calls.
            asked: what is special about them.

        Returns:
            What else is special about them.

        Raises:
            TypeError, ValueError: a call is not an example, or its key cannot be hashed.
            Exception: what `key` raises.
        """
        chosen = UNSET if asked is None else asked.key
        for ticket in tickets:
            example = self.collator.example(given(ticket.args, ticket.kwargs))
            if chosen is not UNSET:
                example.key = chosen, example.form
            elif self._key is not None:
                example.key = self._key(example), example.form
            ticket.args, ticket.kwargs = (example,), {}
        if asked is None or chosen is UNSET:
            return asked
        return Chosen(None, asked.priority, asked.deadline, UNSET)

    def place(self, placed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have the handler called in an executor: with arrays that were stacked here."""
        assert self._handler is not None, "options without a handler"
        self._handler = placed(self._handler)

    def call(self, examples: Sequence[Example]) -> Any:
        """What the handler makes of them, stacked."""
        assert self._handler is not None, "options without a handler"
        features = self.collator.stack(examples)
        return self._handler(**features) if self._spread else self._handler(features)


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The features that a call was made with: one dictionary, or keyword arguments. Raises TypeError: neither."""
    if len(args) == 1 and not kwargs:
        return args[0]
    if args or not kwargs:
        raise TypeError(
            f"takes a dictionary of features, or features by name, not {len(args)} arguments and {[*kwargs]}"
        )
    return kwargs


class Stacked:
    """The handler that the batcher has: of a list of examples. It is called by one batch at a time, or by several."""

    def __init__(self, collating: Collating, name: str) -> None:
        self._collating = collating
        self.admit = collating.admit
        self.__qualname__ = name

    def __call__(self, examples: list[Example], /) -> list[Any]:
        """One result for each example, or an error for one that cannot be stacked with the first."""
        collator = self._collating.collator
        misfits = collator.misfits(examples)
        fitting = without(misfits, examples)
        return restored(misfits, collator.split(self._collating.call(fitting), fitting))


def without(misfits: Mapping[int, Exception], examples: list[Example]) -> list[Example]:
    """Those that can be stacked."""
    if not misfits:
        return examples
    return [example for position, example in enumerate(examples) if position not in misfits]


def restored(misfits: Mapping[int, Exception], results: list[Any]) -> list[Any]:
    """The results, and the errors in their places."""
    for position in sorted(misfits):
        results.insert(position, misfits[position])
    return results


def name_of(handler: Callable[..., Any]) -> str:
    """What errors call it."""
    return getattr(handler, "__qualname__", None) or type(handler).__qualname__


def batcher_options(collating: Collating, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the batcher itself: a token budget needs no `weight`."""
    if options.get("max_weight") is not None and options.get("weight") is None and collating.collator.pads:
        options["weight"] = collating.collator.weight
    return {**options, "key": attrgetter("key")}


def divided(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those for arrays, and those for the batcher."""
    names = ("pad_tokens", "padding_side", "pad_to", "pad_axis", "unequal", "lengths", "unpad", "reuse", "device")
    return {name: options.pop(name) for name in names if name in options}, options


class Batcher(UBatch["Features", U]):
    """A batcher of threads whose items are examples.

    Args:
        handler, key, spread_kwargs: see `Collating`.
        options: as of `UBatch` and `Collator`.
    """

    def __init__(
        self,
        max_size: int = 64,
        timeout: float | None = None,
        *,
        handler: Callable[..., U] | None = None,
        key: Callable[..., Hashable] | None = None,
        spread_kwargs: bool = False,
        **options: Any,
    ) -> None:
        arrays, options = divided(options)
        self._collating = Collating(handler, key, spread_kwargs, arrays)
        if handler is not None:
            options["handler"] = Stacked(self._collating, name_of(handler))
        super().__init__(max_size, timeout, **batcher_options(self._collating, options))

    def _placed(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        self._collating.place(super()._placed)
        return handler

    def _accept(self, tickets: Sequence[Any], asked: Asked | None = None) -> None:
        # every call comes through here, as every item has a key
        super()._accept(tickets, self._collating.admit(tickets, asked))


class _Call(_Faces["Stackable[U]"], Generic[U]):
    """Calls that are batched, row by row."""

    __slots__ = ()

    if TYPE_CHECKING:
        _threshold: int | None

    def __call__(self, /, *features: Features, **named: Any) -> U:
        """The results of one or several rows, which may travel in one batch with others' rows.

        Args:
            features: one dictionary, by name, of arrays of shape (rows, *shape of an example), or lists of `rows`
                examples' features; at least one row. Or the same as keyword arguments.

        Returns:
            As the handler: arrays of shape (rows, …).

        Raises:
            TypeError, ValueError: the features are not like that, or the rows' results cannot be stacked again.
            Exception: as `UBatch.map`.
        """
        rows = rows_of(given(features, named))
        alone = len(rows) == 1
        results: U = joined([self.batcher.ubatch(rows[0])] if alone else for_many(self, rows).map(rows))
        return results

    async def acall(self, /, *features: Features, **named: Any) -> U:
        """The call for coroutines."""
        rows = rows_of(given(features, named))
        alone = len(rows) == 1
        results: U = joined([await self.batcher.aubatch(rows[0])] if alone else await for_many(self, rows).amap(rows))
        return results

    def options(  # type: ignore[override]
        self, *, priority: float | None = None, deadline: float | None = None, key: Hashable = UNSET
    ) -> InferenceView[U]:
        """The call and the faces, with options for the calls that are made so; see `UBatch.options`."""
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
def dynamically(function: Callable[..., U], /) -> InferenceFunction[U]: ...
@overload
def dynamically(max_size: int = 64, timeout: float | None = None, **options: Unpack[InferenceOptions]) -> Decorator: ...
def dynamically(
    max_size: Any = 64, timeout: float | None = None, *, small_batch_threshold: int | None = None, **options: Any
) -> Any:
    """Batch the calls of a function that takes a dictionary of arrays with a batch axis, and returns such arrays.

    Used bare, `@inference.dynamically`, or with options, on functions and methods as `ubatch.dynamically`. The handler
    gets `{feature: array of shape (n, *padded shape)}`, of numpy or of torch as the examples are, dtypes preserved,
    and returns an array of shape (n, …), or a dictionary, list or tuple of such. It may keep or change what it gets.

    `f.ubatch(example)` takes one example, `{feature: array}` without the batch axis, or features as keyword arguments,
    and returns one result; so do `submit`, `aubatch`, `map`, `amap`, `stream`, `options`. Lists of numbers become
    int64 or float64 arrays. `f(features)`, `await f.acall(features)` take one or several rows, with the batch axis,
    each of which counts as one item, and return arrays with it. Arrays are read when their batch runs.

    Only examples with the same features, libraries, dtypes, devices and numbers of axes share a batch. What differs
    gets a batch of its own, rather than an error or a cast: it is no mistake in itself. The handler then sees such an
    example as if it had come alone, and its error, if it raises one, is for those like it. Shapes that differ where
    nothing is padded are an error, see `unequal`: else a pad token that was forgotten would leave every item alone.

    Results are views of what the handler returns. One that is kept keeps its whole batch in memory: copy it.

    Args:
        max_size: the largest batch, in rows.
        timeout: the longest hold, in seconds; see `UBatch`.
        small_batch_threshold: a call of more rows than this is one level of priority less urgent than others.
        pad_tokens: by feature, what it is padded with where examples differ in size: `{"input_ids": 0}`. Many models
            need to be told what is padding: pass a mask as a feature, padded with 0, or see `lengths`.
        padding_side: where padding goes, "right" of the data or "left" of them.
        pad_to: padded sizes are a multiple of this.
        pad_axis: the axis of an example, or the axes, along which it is padded: 0 by default, the first; or these by
            feature, `{"image": (0, 1)}`. Negative ones count from the last.
        unequal: what becomes of an example whose shape, but for what is padded, is not that of the first in its batch:
            "error", its caller alone gets a `ValueError` that says what to do; "apart", shapes share no batch, as is
            right for models that take images of several sizes.
        lengths: the handler gets the true sizes, too, as a feature of this name: `{feature: int64 array of shape (n,)}`
            by padded feature, or of shape (n, k) where it is padded along k axes.
        unpad: the padded feature of which the outputs have the padding, along the same axes of an example: each result
            is cut back to its own size. Or these by output: `{"hidden": "input_ids"}`, or by position, `{0: …}`.
        reuse: use the memory of a batch again when nothing refers to it any more, neither a result that is a view of
            it nor the handler. So up to some four times the memory of the largest batches at work is kept. `False`:
            fresh memory for each batch, which takes several times as long to fill, and is returned to the system.
        device: where the handler is to find its batch, as tensors: a batch is filled in pinned memory, and copied in
            one piece. By default they are where the examples are.
        spread_kwargs: call the handler with the features as keyword arguments, `handler(input_ids=…)`.
        options: as of `UBatch`. `key` and `weight` are called with the example, a dictionary of arrays. With
            `pad_tokens`, `weight` is by default an example's padded size, in tokens: `max_weight=8192, padded=True`
            bounds what a batch has of them, padding included, and puts examples of like size together.

    Raises:
        TypeError, ValueError: an option is not as described, or the function is not a plain one (a coroutine function
            is for `ubatch.aio.inference`). A call: its features are not as described, or a pad token cannot be
            represented by a dtype; nobody else is concerned.
        BadBatchOutputSize: from a call; the handler did not return arrays of n rows.
    """
    options = {"timeout": timeout, **options}
    return decorate(InferenceFunction, max_size, options, sys._getframe(1), small_batch_threshold)
