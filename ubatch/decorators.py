"""`ubatch_decorator`: a batch function that can also be called with single items.

The decorated name stays the plain function; beside it stand the faces of a batcher. On a method there is one
batcher for each instance, on a classmethod one for each class; it is made at first use, once however many threads
come first, and goes with its owner.

Where it is kept: in the `__dict__` of the instance or class, under a key of the descriptor's own, so an overriding
method has another. `copy` and `pickle` take the entry along, but it says whose it is: a copy finds that the entry
is not its own and makes a fresh batcher, and the entry pickles to nothing.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import types

from . import _native
from ._binding import is_coroutine_function
from ._typing import Generic, ParamSpec, TypeVar, overload
from .core import UBatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from concurrent.futures import Future
    from typing import Any, Concatenate, NoReturn, Protocol

    from ._typing import Face, Results
    from .stats import Stats

    class _Decorator(Protocol):
        """The decorator with its options given."""

        @overload
        def __call__(self, function: classmethod[Any, P, R], /) -> BatchedClassMethod[P, R]: ...
        @overload
        def __call__(self, function: staticmethod[P, R], /) -> BatchedStaticMethod[P, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> BatchedFunction[P, R]: ...


P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")

_numbers = itertools.count(1)
_making = _native.reentrant_lock()  # guards the making of batchers


@overload
def ubatch_decorator(function: classmethod[Any, P, R], /) -> BatchedClassMethod[P, R]: ...
@overload
def ubatch_decorator(function: staticmethod[P, R], /) -> BatchedStaticMethod[P, R]: ...
@overload
def ubatch_decorator(function: Callable[P, R], /) -> BatchedFunction[P, R]: ...
@overload
def ubatch_decorator(
    max_size: int = 64, timeout: float | None = None, *, name: str | None = None
) -> _Decorator: ...
def ubatch_decorator(max_size: Any = 64, timeout: float | None = None, *, name: str | None = None) -> Any:
    """Give a batch function the faces of a batcher: `f.ubatch(x)`, `f.submit(x)`, `await f.aubatch(x)`, `f.map(xs)`.

    Used bare, `@ubatch_decorator`, or with options, `@ubatch_decorator(max_size=5, timeout=0.01)`. `f(...)` itself
    stays the plain, unbatched function. On a method there is one batcher for each instance, which needs a
    `__dict__`. It goes outside `@classmethod` (one batcher for each class) and on either side of `@staticmethod`.
    `f.batcher` is the `UBatch`, `f.stats` its counts. Safe to use from any thread; a decorated function pickles
    by its qualified name.

    Args:
        max_size: the largest batch, in items.
        timeout: the longest hold, in seconds; see `UBatch`.
        name: the batcher's name; by default the function's.

    Raises:
        TypeError, ValueError: an option is not as described, or the function is not a plain one (a coroutine
            function is for `ubatch.aio`). Also, when the class is made, for `@classmethod` outside the decorator
            (Python before 3.12 wraps it in a `RuntimeError`).
    """
    if callable(max_size) or isinstance(max_size, (classmethod, staticmethod)):
        return _decorate(max_size, {"timeout": timeout, "name": name}, sys._getframe(1))
    options = {"max_size": max_size, "timeout": timeout, "name": name}
    UBatch(**options)  # a wrong option is told here, where it stands

    def decorator(function: Any) -> Any:
        return _decorate(function, options, sys._getframe(1))

    return decorator


def _decorate(function: Any, options: dict[str, Any], frame: types.FrameType) -> BatchedFunction[..., Any]:
    kind: type[BatchedFunction[..., Any]] = BatchedFunction
    if isinstance(function, classmethod):
        function, kind = function.__func__, BatchedClassMethod
    elif isinstance(function, staticmethod):
        function, kind = function.__func__, BatchedStaticMethod
    if not callable(function):
        raise TypeError(f"ubatch_decorator decorates functions, not {function!r}")
    if is_coroutine_function(function):
        raise TypeError(f"{function!r} is a coroutine function, which is for ubatch.aio, not for a thread")
    decorated = kind(function, options)
    if "__module__" in frame.f_locals and "__qualname__" in frame.f_locals:  # a class body
        _OrderCheck.put(decorated, frame.f_locals)
    return decorated


class _Faces(Generic[P, R_co]):
    """The faces of a batcher on something that has one; `P` and `R_co` are those of the plain function."""

    __slots__ = ()

    @property
    def batcher(self: _Faces[Concatenate[list[T], ...], Results[U]]) -> UBatch[T, U]:
        """The batcher behind the faces; made at first use."""
        raise NotImplementedError

    @property
    def stats(self) -> Stats:
        """See `UBatch.stats`."""
        return self.batcher.stats

    @property
    def ubatch(self: _Faces[Concatenate[list[T], ...], Results[U]]) -> Face[T, U]:
        """Hand over one item and wait for its result; see `UBatch.ubatch`."""
        return self.batcher.ubatch

    @property
    def submit(self: _Faces[Concatenate[list[T], ...], Results[U]]) -> Face[T, Future[U]]:
        """Hand over one item and get a future; see `UBatch.submit`."""
        return self.batcher.submit

    @property
    def aubatch(self: _Faces[Concatenate[list[T], ...], Results[U]]) -> Face[T, Coroutine[Any, Any, U]]:
        """`ubatch` for coroutines; see `UBatch.aubatch`."""
        return self.batcher.aubatch

    def map(
        self: _Faces[Concatenate[list[T], ...], Results[U]], items: Iterable[T], /, *more: Iterable[Any]
    ) -> list[U]:
        """Hand over many items and wait for all; see `UBatch.map`."""
        return self.batcher.map(items, *more)

    async def amap(
        self: _Faces[Concatenate[list[T], ...], Results[U]], items: Iterable[T], /, *more: Iterable[Any]
    ) -> list[U]:
        """`map` for coroutines; see `UBatch.amap`."""
        return await self.batcher.amap(items, *more)


class BatchedFunction(_Faces[P, R_co]):
    """What `ubatch_decorator` makes: the plain function, the faces, and a descriptor for methods."""

    __wrapped__: Callable[P, R_co]
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[P, R_co], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._options = options
        self._key = f"__ubatch_{next(_numbers)}_{getattr(function, '__name__', '')}"
        self._is_method = False

    def __set_name__(self, owner: type, name: str) -> None:
        # a function made elsewhere that a class body gives a second name stays a function
        self._is_method |= getattr(self, "__qualname__", None) == f"{owner.__qualname__}.{name}"

    @overload
    def __get__(self, instance: None, owner: type, /) -> BatchedFunction[P, R_co]: ...
    @overload
    def __get__(
        self: BatchedFunction[Concatenate[S, Q], R_co], instance: S, owner: type | None = None, /
    ) -> BatchedMethod[Q, R_co]: ...
    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        return self if instance is None else BatchedMethod(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the plain function."""
        return self.__wrapped__(*args, **kwargs)

    @property
    def batcher(self: BatchedFunction[Concatenate[list[T], ...], Results[U]]) -> UBatch[T, U]:
        """The function's batcher.

        Raises:
            TypeError: it is a method; only an instance, or a class, has a batcher.
        """
        if self._is_method:
            raise TypeError(f"{self.__qualname__} is a method: its batchers belong to instances, or to classes")
        return self._batcher_of(self, self.__wrapped__)

    def _batcher_of(self, owner: Any, handler: Callable[..., Any]) -> UBatch[Any, Any]:
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
                entry = _Entry(owner, UBatch(handler=handler, **self._options))
                if isinstance(owner, type):
                    type.__setattr__(owner, self._key, entry)
                else:
                    entries[self._key] = entry
            return entry.batcher

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<ubatch_decorator of {self.__wrapped__!r}>"


class BatchedClassMethod(BatchedFunction[P, R_co]):
    """A decorated `classmethod`."""

    def __get__(self, instance: object, owner: type | None = None, /) -> BatchedMethod[P, R_co]:  # type: ignore[override]
        return BatchedMethod(self, type(instance) if owner is None else owner)

    @property
    def batcher(self) -> NoReturn:
        """There is none without a class."""
        raise TypeError(f"{self.__qualname__} is a classmethod: its batchers belong to classes")


class BatchedStaticMethod(BatchedFunction[P, R_co]):
    """A decorated `staticmethod`: a function in a class."""

    def __set_name__(self, owner: type, name: str) -> None:
        pass

    def __get__(self, instance: object, owner: type | None = None, /) -> BatchedStaticMethod[P, R_co]:  # type: ignore[override]
        return self


class BatchedMethod(_Faces[P, R_co]):
    """A decorated method bound to its instance, or a decorated classmethod bound to its class."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: BatchedFunction[..., R_co], owner: Any) -> None:
        self.__func__ = function
        self.__self__ = owner

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        return types.MethodType(self.__func__.__wrapped__, self.__self__)

    @property
    def batcher(self: BatchedMethod[Concatenate[list[T], ...], Results[U]]) -> UBatch[T, U]:
        """The batcher of this instance or class; made at first use.

        Raises:
            TypeError: the instance has `__slots__` without room for it.
        """
        return self.__func__._batcher_of(self.__self__, self.__wrapped__)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the plain method."""
        return self.__func__.__wrapped__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)  # __name__, __doc__ and the like

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BatchedMethod)
            and self.__self__ is other.__self__
            and self.__func__ is other.__func__
        )

    def __hash__(self) -> int:
        return hash((id(self.__self__), id(self.__func__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.__self__, self.__func__.__name__)

    def __repr__(self) -> str:
        return f"<ubatch_decorator of {self.__wrapped__!r}>"


class _Entry:
    """A batcher in its owner's `__dict__`."""

    __slots__ = ("batcher", "owner")

    def __init__(self, owner: Any, batcher: UBatch[Any, Any]) -> None:
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

    def __init__(self, decorated: BatchedFunction[..., Any]) -> None:
        self.decorated = decorated

    @classmethod
    def put(cls, decorated: BatchedFunction[..., Any], namespace: dict[str, Any]) -> None:
        namespace[f"{decorated._key}_order"] = cls(decorated)

    def __set_name__(self, owner: type, name: str) -> None:
        type.__delattr__(owner, name)
        for attribute, value in list(vars(owner).items()):
            if isinstance(value, classmethod) and value.__func__ is self.decorated:
                raise TypeError(
                    f"{owner.__qualname__}.{attribute}: put ubatch_decorator outside classmethod, "
                    f"above it: one batcher for each class"
                )


def _renew() -> None:
    global _making
    _making = _native.reentrant_lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
