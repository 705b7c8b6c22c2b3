"""The names of `typing` that the package needs while it runs, without `typing`; and the types of its face.

Importing `typing` takes longer than importing all of ubatch. Type checkers see the real names; at run time
generic classes can be subscripted, as those of the standard library can, and that is all. What only checkers
need is imported from `typing` under `TYPE_CHECKING`.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator
    from concurrent.futures import Executor
    from typing import Any, Concatenate, Protocol, TypeAlias, TypedDict
    from typing import Generic as Generic
    from typing import ParamSpec as ParamSpec
    from typing import TypeVar as TypeVar
    from typing import overload as overload

    from typing_extensions import Unpack as Unpack

    from ._observing import Observer

    T = TypeVar("T")
    T_contra = TypeVar("T_contra", contravariant=True)
    U = TypeVar("U")
    U_co = TypeVar("U_co", covariant=True)

    class Results(Protocol[U_co]):
        """What a handler returns: a sequence or an array, with one result for each item."""

        def __len__(self) -> int: ...
        def __iter__(self) -> Iterator[U_co]: ...

    Handler: TypeAlias = Callable[Concatenate[list[T], ...], Results[U]]
    """`handler(list of items, ...)`; with several arguments per call, a list for each."""

    Method: TypeAlias = Callable[Concatenate[Any, list[T], ...], Results[U]]
    """A handler as a method, unbound."""

    AnyHandler: TypeAlias = Callable[Concatenate[list[T], ...], Results[U] | Awaitable[Results[U]]]
    """A handler that may be a coroutine function."""

    AnyMethod: TypeAlias = Callable[Concatenate[Any, list[T], ...], Results[U] | Awaitable[Results[U]]]
    """Such a handler as a method, unbound."""

    class Options(TypedDict, total=False):
        """The options of `UBatch` that its decorators take by name."""

        name: str | None
        key: Callable[..., Hashable] | None
        weight: Callable[..., float] | None
        max_weight: float | None
        padded: bool
        max_queue: int | None
        overflow: str
        deadline: float | None
        aging: float
        isolate: bool
        observer: Observer | None
        workers: int
        executor: Executor | Callable[[], Executor] | None

    class Face(Protocol[T_contra, U_co]):
        """A way to call a batcher with one item. The arguments after the first have no types of their own."""

        @overload
        def __call__(self, item: T_contra, /, *args: Any, **kwargs: Any) -> U_co: ...
        @overload
        def __call__(self, **kwargs: Any) -> U_co: ...

else:

    class Generic:
        """Subscripting gives an alias with `__origin__` and `__args__`."""

        __slots__ = ()

        __class_getitem__ = classmethod(type(list[int]))

    def TypeVar(name, **_):
        """Only its name is left."""
        return name

    def overload(function):
        """Replaced by the implementation that follows it."""
        return function

    ParamSpec = TypeVar
