"""What a step of a flow is: a handler, where it lives, and the options of its batcher."""

from __future__ import annotations

import os
from functools import partial

from . import _native
from ._binding import is_coroutine_function
from ._histogram import Frozen
from ._observing import checked_observer
from ._options import (
    checked_executor,
    checked_handlers,
    checked_isolate,
    checked_limit,
    checked_max_size,
    checked_name,
    checked_timeout,
    checked_workers,
    checked_workers_of,
    rules_for,
)
from ._resident import Resident, is_factory, name_of, signature_of, without_arguments
from ._typing import Generic, TypeVar, overload
from .core import UBatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from concurrent.futures import Executor
    from typing import Any, Literal, TypedDict

    from typing_extensions import Unpack

    from ._observing import Observer
    from ._typing import Handler
    from .processes import ProcessExecutor

    class StepOptions(TypedDict, total=False):
        """The options of `Step` but `stacked`."""

        processes: int
        when: Callable[..., object] | None
        name: str | None
        max_size: int
        timeout: float | None
        start_method: str
        start_timeout: float
        handler_timeout: float | None
        retries: int
        writable: bool
        workers: int
        executor: Executor | Callable[[], Executor] | None
        key: Callable[..., Hashable] | None
        weight: Callable[..., float] | None
        max_weight: float | None
        padded: bool
        max_queue: int | None
        overflow: str
        aging: float
        isolate: bool
        observer: Observer | None


T = TypeVar("T")
U = TypeVar("U")


class Step(Frozen, Generic[T, U]):
    """A step of a `Flow`: a handler, where it lives, and how its batches are formed. It cannot be changed.

    It may be a step of several flows, or several times of one; each time it is another batcher.

    Args:
        handler: as of a `UBatch`; in a step behind the first it gets one list, what the step before returned. A class
            (with arguments: `functools.partial` of it), or a function that takes no positional argument, makes the
            handler: it is called once where the handler lives, so that a model is loaded there alone. A list of
            handlers means a worker for each.
        processes: 0: it runs in a thread here. n: it runs in n child processes, fed by n workers; then handler, items
            and results must pickle. Large arrays travel through shared memory.
        when: `when(item)`, called with what comes to the step, says whether it takes it. An item for which it is false
            goes on to the next step as it is.
        name: by default the handler's name. In a flow the batcher is called "<flow>.<step>".
        max_size, timeout: as of a `UBatch`.
        start_method, start_timeout, retries, writable: of the processes; see `ubatch.processes.ProcessExecutor`, also
            for what comes of those that die, or cannot start.
        handler_timeout: seconds that the handler may take for a batch; then its process is killed, and the batch fails
            with `WorkerDied`, or is tried again. `None` for no limit.
        stacked: items are arrays. The handler gets a batch as one array of shape (n, …), in child processes made in
            shared memory at once; arrays that differ in shape or dtype share no batch. It returns n results as ever.
            Of several arguments only the first is stacked, as the handler has them; the others are lists.
        workers, executor, key, weight, max_weight, padded, max_queue, overflow, aging, isolate, observer: as of a
            `UBatch`. Where `max_queue` is reached, "reject" fails an item that comes from another step with
            `QueueFull`, and "block" lets the step before it wait. A deadline is the flow's: a batch leaves early
            enough for the steps behind it, if their batches take as long as before.

    Raises:
        TypeError, ValueError: an argument is not as described, or means nothing beside the others; the message has its
            value.
    """

    __slots__ = (
        "aging",
        "executor",
        "handler",
        "handler_timeout",
        "isolate",
        "key",
        "max_queue",
        "max_size",
        "max_weight",
        "name",
        "observer",
        "overflow",
        "padded",
        "processes",
        "retries",
        "stacked",
        "start_method",
        "start_timeout",
        "timeout",
        "weight",
        "when",
        "workers",
        "writable",
    )

    handler: Any
    processes: int
    when: Callable[..., object] | None
    name: str | None
    max_size: int
    timeout: float | None
    start_method: str
    start_timeout: float
    handler_timeout: float | None
    retries: int
    writable: bool
    stacked: bool
    workers: int
    executor: Executor | Callable[[], Executor] | None
    key: Callable[..., Hashable] | None
    weight: Callable[..., float] | None
    max_weight: float | None
    padded: bool
    max_queue: int | None
    overflow: str
    aging: float
    isolate: bool
    observer: Observer | None

    @overload
    def __init__(
        self,
        handler: Handler[T, U] | Sequence[Handler[T, U]],
        *,
        stacked: Literal[False] = ...,
        **options: Unpack[StepOptions],
    ) -> None: ...
    @overload
    def __init__(
        self, handler: Callable[[], Handler[T, U]], *, stacked: Literal[False] = ..., **options: Unpack[StepOptions]
    ) -> None: ...
    @overload
    def __init__(
        self: Step[Any, Any], handler: Callable[..., Any], *, stacked: bool = ..., **options: Unpack[StepOptions]
    ) -> None: ...
    def __init__(
        self,
        handler: Any,
        *,
        processes: int = 0,
        when: Callable[..., object] | None = None,
        name: str | None = None,
        max_size: int = 64,
        timeout: float | None = None,
        start_method: str = "spawn",
        start_timeout: float = 60.0,
        handler_timeout: float | None = None,
        retries: int = 0,
        writable: bool = False,
        stacked: bool = False,
        workers: int = 1,
        executor: Executor | Callable[[], Executor] | None = None,
        key: Callable[..., Hashable] | None = None,
        weight: Callable[..., float] | None = None,
        max_weight: float | None = None,
        padded: bool = False,
        max_queue: int | None = None,
        overflow: str = "reject",
        aging: float = 1.0,
        isolate: bool = False,
        observer: Observer | None = None,
    ) -> None:
        values = {option: value for option, value in locals().items() if option in Step.__slots__}
        super().__init__(**values)
        _checked_handler(handler)
        handlers = checked_handlers(handler, coroutines=False)
        if isinstance(processes, bool) or not hasattr(processes, "__index__"):
            raise TypeError(f"processes must be an integer, not {processes!r}")
        if processes < 0:
            raise ValueError(f"processes must be at least 0, not {processes!r}")
        if when is not None and (not callable(when) or is_coroutine_function(when)):
            raise TypeError(f"when must be None or a plain function, not {when!r}")
        if not isinstance(stacked, bool):
            raise TypeError(f"stacked must be True or False, not {stacked!r}")
        if stacked:
            _stacked_parameter(next(iter(handlers)))
        checked_name(name)
        checked_max_size(max_size)
        checked_timeout(timeout)
        checked_isolate(isolate)
        checked_observer(observer)
        rules_for(key, weight, max_weight, padded, max_queue, overflow, None, aging)
        checked_workers_of(handler, handlers, checked_workers(workers), bool(processes) or executor is not None)
        if processes:
            if workers not in (1, processes):
                raise ValueError(f"processes={processes} means as many workers, not workers={workers}")
            if executor is not None:
                raise ValueError(f"processes={processes} is an executor, and excludes executor={executor!r}")
            self._executor(Resident(handler), "")
        else:
            checked_executor(executor)
            if executor is not None and (stacked or is_factory(handler)):
                what = "stacked=True" if stacked else f"{_name_of(handler)}, which makes a handler,"
                raise ValueError(f"{what} is for processes=n or a thread here, not for executor={executor!r}")
            for option in ("start_method", "start_timeout", "handler_timeout", "retries", "writable"):
                if values[option] != _DEFAULTS[option]:
                    raise ValueError(
                        f"{option}={values[option]!r} is for child processes: it needs processes=1 or more"
                    )

    def __repr__(self) -> str:
        given = {option: getattr(self, option) for option in _DEFAULTS}
        shown = [f"{option}={value!r}" for option, value in given.items() if value is not _DEFAULTS[option]]
        return f"Step({', '.join([_name_of(self.handler), *shown])})"

    @property
    def label(self) -> str:
        """Its name, or that of its handler, without where that is defined."""
        return self.name or _name_of(self.handler).rpartition(".")[2]

    @property
    def alike(self) -> Callable[..., Hashable] | None:
        """What items of one batch must have in common whatever their key is; `None` if that is nothing."""
        if not self.stacked:
            return None
        from ._stacks import as_array

        first = self.handler if callable(self.handler) else self.handler[0]
        return partial(_alike, as_array, _stacked_parameter(first))

    def batcher(self, name: str) -> tuple[UBatch[T, U], list[Callable[[float | None], object]]]:
        """A batcher for the step, that accepts items.

        Args:
            name: the batcher's.

        Returns:
            It, and functions that make ready what it works with, which else comes with its first batch: each takes
            the seconds in which that is to be done, `None` for as many as it has for itself.
        """
        executor, workers, handler = self.executor, self.workers, self.handler
        loads: list[Callable[[float | None], object]] = []
        if self.processes:
            handler, workers = Resident(handler), self.processes
            executor = partial(self._executor, handler, name)
        elif executor is None:
            handlers = [self._here(each) for each in checked_handlers(handler, coroutines=False)]
            loads += [each.load for each in handlers if isinstance(each, Here)]
            handler = handlers[0] if callable(handler) else handlers
        batcher: UBatch[T, U] = UBatch(
            self.max_size,
            self.timeout,
            handler=handler,
            name=name,
            workers=workers,
            executor=executor,
            key=self._key(),
            weight=self.weight,
            max_weight=self.max_weight,
            padded=self.padded,
            max_queue=self.max_queue,
            overflow=self.overflow,
            aging=self.aging,
            isolate=self.isolate,
            observer=self.observer,
        )
        if self.processes:
            assert batcher._place is not None, "no executor"
            loads.append(partial(_start, batcher._place))
        return batcher, loads

    def _executor(self, resident: Resident, name: str) -> ProcessExecutor:
        from .processes import ProcessExecutor

        limit = self.handler_timeout
        return ProcessExecutor(
            self.processes,
            start_method=self.start_method,
            initializer=resident.initializer(),
            start_timeout=checked_limit("start_timeout", self.start_timeout),
            call_timeout=None if limit is None else checked_limit("handler_timeout", limit),
            retries=self.retries,
            writable=self.writable,
            stacked=self.stacked,
            name=name,
        )

    def _here(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        return Here(handler, self.stacked) if self.stacked or is_factory(handler) else handler

    def _key(self) -> Callable[..., Hashable] | None:
        alike = self.alike
        return self.key if alike is None else partial(_alike_and, self.key, alike)


_DEFAULTS: dict[str, Any] = Step.__init__.__kwdefaults__ or {}


class Here:
    """A handler that is made in this process, once: when it is told to, or is called first. For any thread.

    Args:
        handler: the handler, or what makes it.
        stacked: whether it gets an array, made of a list of arrays.
    """

    def __init__(self, handler: Callable[..., Any], stacked: bool) -> None:
        self._resident = Resident(handler)
        self._stacked = stacked
        self._made: Callable[..., Any] | None = None
        # held while it is made, which is user code, so that this is done once; a forked child has another one
        self._locks: dict[int, Any] = {}
        self.__qualname__ = self._resident.__qualname__
        self.__signature__ = self._resident.__signature__

    def load(self, timeout: float | None = None) -> Callable[..., Any]:
        """Make it, if it is not; `timeout` does not hold here. Raises what its making raises."""
        if self._made is None:
            with self._locks.setdefault(os.getpid(), _native.reentrant_lock()):
                if self._made is None:
                    self._made = self._resident.here()
        return self._made

    def __call__(self, first: list[Any], /, *args: Any, **kwargs: Any) -> Any:
        handler = self.load()
        if not self._stacked:
            return handler(first, *args, **kwargs)
        import numpy

        from ._stacks import alike

        return handler(numpy.stack(alike(first)), *args, **kwargs)


def _start(place: Any, timeout: float | None) -> None:
    place._present().start(timeout)


def _alike(as_array: Callable[[Any], Any], name: str | None, /, *args: Any, **kwargs: Any) -> Hashable:
    if not args and name not in kwargs:  # it has a default
        raise TypeError(f"a stacked step takes an array as its first argument{'' if name is None else f', {name!r}'}")
    array = args[0] if args else kwargs[name]  # type: ignore[index]
    if not (hasattr(array, "shape") and hasattr(array, "dtype")):
        raise TypeError(f"a stacked step takes arrays, not {type(array).__name__!r}")
    array = as_array(array)
    return array.shape, array.dtype


def _alike_and(
    key: Callable[..., Hashable] | None, alike: Callable[..., Hashable], /, *args: Any, **kwargs: Any
) -> Hashable:
    return None if key is None else key(*args, **kwargs), alike(*args, **kwargs)


def _stacked_parameter(handler: Callable[..., Any]) -> str | None:
    """Which of the handler's parameters gets the stacked array: the first; `None` if it has no name.

    Raises:
        TypeError: it cannot be passed by position.
    """
    first = next(iter(signature_of(handler).parameters.values()), None)
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        raise TypeError(f"a stacked step's handler takes an array as its first argument, unlike {handler!r}")
    return first.name if first.kind is first.POSITIONAL_OR_KEYWORD else None


def _name_of(handler: Any) -> str:
    return name_of(handler if callable(handler) else next(iter(handler), handler))


def _checked_handler(handler: Any) -> None:
    """Raises TypeError: it is to make the handler, but cannot, or not one for a thread."""
    import inspect

    for each in [handler] if callable(handler) or not isinstance(handler, (list, tuple)) else handler:
        made_of: Any = without_arguments(each)
        if isinstance(made_of, type):
            if not any("__call__" in vars(kind) for kind in made_of.__mro__):
                raise TypeError(f"handler {made_of!r} is a class whose objects cannot be called: give it a __call__")
            if is_coroutine_function(made_of.__call__):
                raise TypeError(
                    f"handler {made_of!r} makes coroutine functions, which are for ubatch.aio, not for a flow"
                )
        if callable(each) and is_factory(each):
            try:
                inspect.signature(each).bind()
            except ValueError:  # it has none
                pass
            except TypeError as error:
                raise TypeError(f"{each!r} makes the handler, so it is called without arguments: {error}") from None
