"""`ubatch_decorator`: a batch function that can also be called with single items. `dynamically`: the call itself is.

With `ubatch_decorator` the decorated name stays the plain function; beside it stand the faces of a batcher. With
`dynamically` it is called with one item, or with a list of them. On a method there is one batcher for each
instance, on a classmethod one for each class; it is made at first use, once however many threads come first, and
goes with its owner.

Where it is kept: in the `__dict__` of the instance or class, under a key of the descriptor's own, so an overriding
method has another. `copy` and `pickle` take the entry along, but it says whose it is: a copy finds that the entry
is not its own and makes a fresh batcher, and the entry pickles to nothing.

How it is made: `Decorated` and `Bound` are what every decorated function and every method bound to its owner have
in common, whatever kind of batcher is behind it; the faces are theirs by inheritance. `aio` makes its own of them.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import types

from . import _native
from ._binding import is_coroutine_function
from ._options import checked_threshold
from ._terms import UNSET
from ._typing import Generic, ParamSpec, TypeVar, overload
from .core import UBatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Hashable, Iterable, Iterator
    from concurrent.futures import Future
    from typing import Any, Concatenate

    from ._faces import View
    from ._typing import Face, Handler, Method, Options, Unpack
    from .stats import Stats

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
F = TypeVar("F", bound="Callable[..., Any]")
F_co = TypeVar("F_co", covariant=True)

_numbers = itertools.count(1)
_making = _native.reentrant_lock()  # guards the making of batchers


@overload
def ubatch_decorator(function: F, /) -> BatchedFunction[F]: ...  # checkers look through classmethod, staticmethod
@overload
def ubatch_decorator(
    max_size: int = 64, timeout: float | None = None, **options: Unpack[Options]
) -> Callable[[F], BatchedFunction[F]]: ...
def ubatch_decorator(max_size: Any = 64, timeout: float | None = None, **options: Any) -> Any:
    """Give a batch function the faces of a batcher: `f.ubatch(x)`, `f.submit(x)`, `await f.aubatch(x)`, `f.map(xs)`.

    Used bare, `@ubatch_decorator`, or with options, `@ubatch_decorator(max_size=5, timeout=0.01)`. `f(...)` itself
    stays the plain, unbatched function. On a method there is one batcher for each instance, which needs a
    `__dict__`. It goes outside `@classmethod` (one batcher for each class) and on either side of `@staticmethod`.
    `f.batcher` is the `UBatch`, `f.stats` its counts. Safe to use from any thread; a decorated function pickles
    by its qualified name.

    Args:
        max_size: the largest batch, in items.
        timeout: the longest hold, in seconds; see `UBatch`.
        options: as of `UBatch`, all but the handler. `name` is by default the function's.

    Raises:
        TypeError, ValueError: an option is not as described, or the function is not a plain one (a coroutine
            function is for `ubatch.aio`). Also, when the class is made, for `@classmethod` outside the decorator
            (Python before 3.12 wraps it in a `RuntimeError`).
    """
    return decorate(BatchedFunction, max_size, {"timeout": timeout, **options}, sys._getframe(1))


@overload
def dynamically(function: Handler[T, U], /) -> DynamicFunction[T, U]: ...
@overload
def dynamically(function: Method[T, U], /) -> DynamicFunction[T, U]: ...
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
    """Batch the calls of a batch function themselves: `f(x)` gives one result, `f([x, y])` a list of them.

    Used bare, `@dynamically`, or with options, `@dynamically(max_size=5, timeout=0.01)`. A call takes exactly one
    positional argument; a `list` means many items (one that is itself a list goes through `f.ubatch`), which are
    spread over as many batches as it takes; their results come back in order. `await f.acall(...)` is the same for
    coroutines. The faces of `ubatch_decorator` are there too; the plain function is `f.__wrapped__`. Arguments,
    errors, methods, pickling: as with `ubatch_decorator`; and

    Args:
        small_batch_threshold: a call with more items than this is one level of priority less urgent than others, so
            that single calls need not wait for all of it; `None` for no difference.
    """
    options = {"timeout": timeout, **options}
    return decorate(DynamicFunction, max_size, options, sys._getframe(1), small_batch_threshold)


if TYPE_CHECKING:
    from typing import Protocol

    class DynamicDecorator(Protocol):
        """`dynamically` with options."""

        @overload
        def __call__(self, function: Handler[T, U], /) -> DynamicFunction[T, U]: ...
        @overload
        def __call__(self, function: Method[T, U], /) -> DynamicFunction[T, U]: ...


def decorate(
    family: type[Decorated],
    first: Any,
    options: dict[str, Any],
    frame: types.FrameType,
    threshold: int | None = None,
) -> Any:
    """What a decorator returns that was called with `first`.

    Args:
        family: what it makes of a function.
        first: the decorator's first argument: the function to decorate, or `max_size`.
        options: the batcher's other options.
        frame: where the decorator was called.
        threshold: see `dynamically`.

    Raises:
        TypeError, ValueError: an option is not as it must be, or the function is not one that can be decorated.
    """
    if "handler" in options:
        raise TypeError(f"{family.decorator} takes no handler: the function is the handler, not {options['handler']!r}")
    bare = callable(first) or isinstance(first, (classmethod, staticmethod))
    if not bare:
        options["max_size"] = first
    family.batcher_type(**options)  # a wrong option is told here, where it stands
    threshold = checked_threshold(threshold)
    if bare:
        return _decorate(family, first, options, frame, threshold)

    def decorator(function: Any) -> Any:
        return _decorate(family, function, options, sys._getframe(1), threshold)

    return decorator


def _decorate(
    family: type[Decorated], given: Any, options: dict[str, Any], frame: types.FrameType, threshold: int | None
) -> Decorated:
    function = given.__func__ if isinstance(given, (classmethod, staticmethod)) else given
    if not callable(function):
        raise TypeError(f"{family.decorator} decorates functions, not {function!r}")
    if is_coroutine_function(function) and issubclass(family.batcher_type, UBatch):
        raise TypeError(f"{function!r} is a coroutine function, which is for ubatch.aio, not for a thread")
    decorated = family(function, options, type(given))
    decorated._threshold = threshold
    if "__module__" in frame.f_locals and "__qualname__" in frame.f_locals:  # a class body
        _OrderCheck.put(decorated, frame.f_locals)
    return decorated


class Decorated:
    """A decorated function: what it has in common whatever is made of its calls; and a descriptor for methods."""

    batcher_type: Any = UBatch
    bound_type: type[Bound]
    decorator = "ubatch_decorator"
    __wrapped__: Callable[..., Any]
    _threshold: int | None

    def __init__(self: Any, function: Callable[..., Any], options: dict[str, Any], kind: type) -> None:
        functools.update_wrapper(self, function)
        if not hasattr(self, "__qualname__"):  # functools.partial and other callable objects
            self.__name__ = self.__qualname__ = type(function).__qualname__
        self._options = options
        self._key = f"__ubatch_{next(_numbers)}_{self.__name__}"
        self._kind = kind  # `classmethod`, `staticmethod`, or another type
        self._is_method = False

    def __set_name__(self, owner: type, name: str) -> None:
        # a function made elsewhere that a class body gives a second name stays a function
        self._is_method |= getattr(self, "__qualname__", None) == f"{owner.__qualname__}.{name}"

    if not TYPE_CHECKING:  # to checkers each kind has its own

        def __get__(self, instance, owner=None, /):
            if self._kind is staticmethod:
                return self
            if self._kind is classmethod:
                return self.bound_type(self, type(instance) if owner is None else owner)
            return self if instance is None else self.bound_type(self, instance)

        @property
        def batcher(self):
            """The function's batcher; made at first use.

            Raises:
                TypeError: it is a method; only an instance, or a class, has a batcher.
            """
            if self._kind is classmethod:
                raise TypeError(f"{self.__qualname__} is a classmethod: its batchers belong to classes")
            if self._is_method and self._kind is not staticmethod:
                raise TypeError(f"{self.__qualname__} is a method: its batchers belong to instances, or to classes")
            return self._batcher_of(self, self)

    def _batcher_of(self, owner: Any, called: Any) -> Any:
        entries = getattr(owner, "__dict__", None)
        if entries is None:
            raise TypeError(
                f"{type(owner).__qualname__} has __slots__ without '__dict__', so there is no room for the batcher "
                f"of {self.__qualname__}; add '__dict__' to its __slots__"
            )
        entry = entries.get(self._key)
        if type(entry) is _Entry and entry.owner is owner:
            return entry.batcher
        with _making:
            entry = entries.get(self._key)
            if type(entry) is not _Entry or entry.owner is not owner:
                far = self._options.get("executor") is not None
                handler = _Plain(called) if far else called.__wrapped__
                entry = _Entry(owner, self.batcher_type(handler=handler, **self._options))
                if isinstance(owner, type):
                    type.__setattr__(owner, self._key, entry)
                else:
                    entries[self._key] = entry
            return entry.batcher

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<{self.decorator} of {self.__wrapped__!r}>"


class Bound:
    """A decorated method bound to its instance, or a decorated classmethod bound to its class."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: Decorated, owner: Any) -> None:
        self.__func__ = function
        self.__self__ = owner

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return types.MethodType(self.__func__.__wrapped__, self.__self__)

    if not TYPE_CHECKING:  # to checkers the batcher has a type, and a misspelt face is a mistake

        @property
        def batcher(self):
            """The batcher of this instance or class; made at first use.

            Raises:
                TypeError: the instance has `__slots__` without room for it.
            """
            return self.__func__._batcher_of(self.__self__, self)

        def __getattr__(self, name):
            return getattr(self.__func__, name)  # __name__ and the like

    def __init_subclass__(cls) -> None:
        cls.__doc__ = property(_doc)  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.__self__ is other.__self__ and self.__func__ is other.__func__

    def __hash__(self) -> int:
        return hash((id(self.__self__), id(self.__func__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.__self__, self.__func__.__name__)

    def __repr__(self) -> str:
        return f"<{self.__func__.decorator} of {self.__wrapped__!r}>"


def _doc(bound: Bound) -> str | None:
    return bound.__func__.__doc__


class Viewing:
    """Calls through a view of a batcher, which has options for them; see `View`."""

    __slots__ = ("_threshold", "_view")

    def __init__(self, view: Any, threshold: int | None) -> None:
        self._view = view
        self._threshold = threshold

    if not TYPE_CHECKING:  # as of `Bound`

        @property
        def batcher(self):
            """The batcher, with the options."""
            return self._view


class _Faces(Generic[F_co]):
    """The faces of a batcher on something that has one; `F_co` is the type of the plain function."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def __name__(self) -> str: ...
        @property
        def __qualname__(self) -> str: ...
        @property
        def batcher(self: _Faces[Handler[T, U]]) -> UBatch[T, U]: ...

    @property
    def stats(self: _Faces[Any]) -> Stats:
        """See `UBatch.stats`."""
        return self.batcher.stats

    @property
    def ubatch(self: _Faces[Handler[T, U]]) -> Face[T, U]:
        """Hand over one item and wait for its result; see `UBatch.ubatch`."""
        return self.batcher.ubatch

    @property
    def submit(self: _Faces[Handler[T, U]]) -> Face[T, Future[U]]:
        """Hand over one item and get a future; see `UBatch.submit`."""
        return self.batcher.submit

    @property
    def aubatch(self: _Faces[Handler[T, U]]) -> Face[T, Coroutine[Any, Any, U]]:
        """`ubatch` for coroutines; see `UBatch.aubatch`."""
        return self.batcher.aubatch

    def map(self: _Faces[Handler[T, U]], items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """Hand over many items and wait for all; see `UBatch.map`."""
        return self.batcher.map(items, *more)

    async def amap(self: _Faces[Handler[T, U]], items: Iterable[T], /, *more: Iterable[Any]) -> list[U]:
        """`map` for coroutines; see `UBatch.amap`."""
        return await self.batcher.amap(items, *more)

    def stream(self: _Faces[Handler[T, U]], items: Iterable[T], /, *, ahead: int | None = None) -> Iterator[U]:
        """Results in order, as they come; see `UBatch.stream`."""
        return self.batcher.stream(items, ahead=ahead)

    def astream(
        self: _Faces[Handler[T, U]], items: Iterable[T] | AsyncIterable[T], /, *, ahead: int | None = None
    ) -> AsyncIterator[U]:
        """`stream` for coroutines; see `UBatch.astream`."""
        return self.batcher.astream(items, ahead=ahead)

    def options(
        self: _Faces[Handler[T, U]],
        *,
        priority: float | None = None,
        deadline: float | None = None,
        key: Hashable = UNSET,
    ) -> View[T, U]:
        """The faces, with options for the calls that are made through them; see `UBatch.options`."""
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

    bound_type = BatchedMethod

    if TYPE_CHECKING:
        __call__: F_co
        """The plain function."""

        @overload  # a staticmethod: its first parameter takes the list already
        def __get__(
            self: BatchedFunction[Handler[Any, Any]], instance: object, owner: type | None = None, /
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


class _DynamicCall(_Faces["Handler[T, U]"], Generic[T, U]):
    """Calls that are batched."""

    __slots__ = ()

    if TYPE_CHECKING:
        _threshold: int | None

    @overload
    def __call__(self, item: list[T], /) -> list[U]: ...
    @overload
    def __call__(self, item: T, /) -> U: ...
    def __call__(self, item: Any, /) -> Any:
        """The result of one item; of a list, the list of its items' results, in order."""
        return for_many(self, item).map(item) if isinstance(item, list) else self.batcher.ubatch(item)

    @overload
    async def acall(self, item: list[T], /) -> list[U]: ...
    @overload
    async def acall(self, item: T, /) -> U: ...
    async def acall(self, item: Any, /) -> Any:
        """The call for coroutines."""
        return await (for_many(self, item).amap(item) if isinstance(item, list) else self.batcher.aubatch(item))

    def options(  # type: ignore[override]
        self, *, priority: float | None = None, deadline: float | None = None, key: Hashable = UNSET
    ) -> DynamicView[T, U]:
        """The call and the faces, with options for the calls that are made so; see `UBatch.options`."""
        return DynamicView(self.batcher.options(priority=priority, deadline=deadline, key=key), self._threshold)


def for_many(call: Any, items: list[Any]) -> Any:
    """The batcher of a call with many items: less urgent if there are more than the call's threshold."""
    batcher, threshold = call.batcher, call._threshold
    if threshold is None or len(items) <= threshold:
        return batcher
    return batcher.options(priority=getattr(batcher, "priority", 0) + 1)


class DynamicView(Viewing, _DynamicCall[T, U]):
    """Calls that are batched, with options."""

    __slots__ = ()


class DynamicMethod(Bound, _DynamicCall[T, U]):
    """What `dynamically` makes of a method, bound."""

    __slots__ = ()


class DynamicFunction(Decorated, _DynamicCall[T, U]):
    """What `dynamically` makes: the call is batched; and the faces."""

    bound_type = DynamicMethod
    decorator = "dynamically"

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type | None = None, /) -> DynamicFunction[T, U]: ...


class _Plain:
    """The plain function of a decorated one, or of a bound method; pickles by the latter's name."""

    def __init__(self, decorated: Any) -> None:
        functools.update_wrapper(self, decorated.__wrapped__)
        self._decorated = decorated

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Plain, (self._decorated,)


class _Entry:
    """A batcher in its owner's `__dict__`."""

    __slots__ = ("batcher", "owner")

    def __init__(self, owner: Any, batcher: Any) -> None:
        self.owner = owner
        self.batcher = batcher

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


class _OrderCheck:
    """Sits in a class body until the class is made, to find a decorated function inside a `classmethod`.

    `classmethod` tells the function that it wraps nothing about the class, so nothing else could find it there.
    """

    def __init__(self, decorated: Decorated) -> None:
        self.decorated = decorated

    @classmethod
    def put(cls, decorated: Decorated, namespace: dict[str, Any]) -> None:
        namespace[f"{decorated._key}_order"] = cls(decorated)

    def __get__(self, instance: object, owner: type | None = None) -> _OrderCheck:
        return self  # it is never looked up; `enum` takes what has no `__get__` for a member

    def __set_name__(self, owner: type, name: str) -> None:
        type.__delattr__(owner, name)
        for attribute, value in list(vars(owner).items()):
            function = getattr(value, "__func__", None)
            if isinstance(value, classmethod) and function is self.decorated:
                raise TypeError(
                    f"{owner.__qualname__}.{attribute}: put {self.decorated.decorator} outside classmethod, "
                    f"above it: one batcher for each class"
                )


def _renew() -> None:
    global _making
    _making = _native.reentrant_lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
