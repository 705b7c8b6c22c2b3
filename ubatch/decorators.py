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
    from typing import Any, Concatenate

    from ._typing import Face, Handler
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
    max_size: int = 64, timeout: float | None = None, *, name: str | None = None
) -> Callable[[F], BatchedFunction[F]]: ...
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
    options: dict[str, Any] = {"timeout": timeout, "name": name}
    bare = callable(max_size) or isinstance(max_size, (classmethod, staticmethod))
    if not bare:
        options["max_size"] = max_size
    UBatch(**options)  # a wrong option is told here, where it stands
    if bare:
        return _decorate(max_size, options, sys._getframe(1))

    def decorator(function: Any) -> Any:
        return _decorate(function, options, sys._getframe(1))

    return decorator


def _decorate(function: Any, options: dict[str, Any], frame: types.FrameType) -> BatchedFunction[Any]:
    kind: type[BatchedFunction[Any]] = BatchedFunction
    given = function
    if isinstance(given, classmethod):
        function, kind = function.__func__, BatchedClassMethod
    elif isinstance(given, staticmethod):
        function, kind = function.__func__, BatchedStaticMethod
    if not callable(function):
        raise TypeError(f"ubatch_decorator decorates functions, not {function!r}")
    if is_coroutine_function(function):
        raise TypeError(f"{function!r} is a coroutine function, which is for ubatch.aio, not for a thread")
    decorated: BatchedFunction[Any] = kind(function, options)
    if "__module__" in frame.f_locals and "__qualname__" in frame.f_locals:  # a class body
        _OrderCheck.put(decorated, frame.f_locals)
    return decorated


class _Faces(Generic[F_co]):
    """The faces of a batcher on something that has one; `F_co` is the type of the plain function."""

    __slots__ = ()

    __call__: F_co
    """The plain function."""
    __name__: str
    __qualname__: str

    @property
    def batcher(self: _Faces[Handler[T, U]]) -> UBatch[T, U]:
        """The batcher behind the faces; made at first use."""
        raise NotImplementedError

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


class BatchedFunction(_Faces[F_co]):
    """What `ubatch_decorator` makes: the plain function, the faces, and a descriptor for methods."""

    __wrapped__: Callable[..., Any]

    def __init__(self: BatchedFunction[Any], function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        if not hasattr(self, "__qualname__"):  # functools.partial and other callable objects
            self.__name__ = self.__qualname__ = type(function).__qualname__
        self._options = options
        self._key = f"__ubatch_{next(_numbers)}_{self.__name__}"
        self._is_method = False

    def __set_name__(self, owner: type, name: str) -> None:
        # a function made elsewhere that a class body gives a second name stays a function
        self._is_method |= getattr(self, "__qualname__", None) == f"{owner.__qualname__}.{name}"

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
    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        return self if instance is None else BatchedMethod(self, instance)

    if not TYPE_CHECKING:  # to checkers it is of the function's own type: `F_co`, see `_Faces`

        def __call__(self, /, *args, **kwargs):
            """Call the plain function."""
            return self.__wrapped__(*args, **kwargs)

    @property
    def batcher(self: BatchedFunction[Handler[T, U]]) -> UBatch[T, U]:
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


class BatchedClassMethod(BatchedFunction["Any"]):
    """A decorated `classmethod`."""

    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return BatchedMethod(self, type(instance) if owner is None else owner)

    @property
    def batcher(self) -> Any:
        """There is none without a class."""
        raise TypeError(f"{self.__qualname__} is a classmethod: its batchers belong to classes")


class BatchedStaticMethod(BatchedFunction["Any"]):
    """A decorated `staticmethod`: a function in a class."""

    def __set_name__(self, owner: type, name: str) -> None:
        pass

    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        return self


class BatchedMethod(_Faces[F_co]):
    """A decorated method bound to its instance, or a decorated classmethod bound to its class."""

    __slots__ = ("__func__", "__self__")

    def __init__(self: BatchedMethod[Any], function: BatchedFunction[Any], owner: Any) -> None:
        self.__func__ = function
        self.__self__ = owner

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return types.MethodType(self.__func__.__wrapped__, self.__self__)

    @property
    def batcher(self: BatchedMethod[Handler[T, U]]) -> UBatch[T, U]:
        """The batcher of this instance or class; made at first use.

        Raises:
            TypeError: the instance has `__slots__` without room for it.
        """
        return self.__func__._batcher_of(self.__self__, self.__wrapped__)

    if not TYPE_CHECKING:  # to checkers it is `F_co`, and a misspelt face is a mistake

        def __call__(self, /, *args, **kwargs):
            """Call the plain method."""
            return self.__func__.__wrapped__(self.__self__, *args, **kwargs)

        def __getattr__(self, name):
            return getattr(self.__func__, name)  # __name__ and the like

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.__func__.__doc__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchedMethod) and self.__self__ is other.__self__ and self.__func__ is other.__func__

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

    def __init__(self, decorated: BatchedFunction[Any]) -> None:
        self.decorated = decorated

    @classmethod
    def put(cls, decorated: BatchedFunction[Any], namespace: dict[str, Any]) -> None:
        namespace[f"{decorated._key}_order"] = cls(decorated)

    def __get__(self, instance: object, owner: type | None = None) -> _OrderCheck:
        return self  # it is never looked up; `enum` takes what has no `__get__` for a member

    def __set_name__(self, owner: type, name: str) -> None:
        type.__delattr__(owner, name)
        for attribute, value in list(vars(owner).items()):
            function = getattr(value, "__func__", None)
            if isinstance(value, classmethod) and function is self.decorated:
                raise TypeError(
                    f"{owner.__qualname__}.{attribute}: put ubatch_decorator outside classmethod, "
                    f"above it: one batcher for each class"
                )


def _renew() -> None:
    global _making
    _making = _native.reentrant_lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
