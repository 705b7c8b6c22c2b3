"""Observers: who is told of each batch, of one batcher or of all.

An observer is a function of one argument, the record of a `Batch`. The worker calls it after the batch's callers
were woken; the next batch waits until it has returned. One that raises is logged, once for each name of a batcher,
and does no harm. From within, it can call `submit` of its batcher, but not wait for it.

A tracer is not callable; it has a method `begin` instead, called by the worker right before the handler: it is given
the contexts (`contextvars`) of those who handed the items over, and what it returns is told when the handler has
returned (`leave`, in the same thread or task, before anybody is woken) and when the callers were woken (`end`, with the
record, or with `None` if `stop` gave the batch up meanwhile). As long as there is one, each item takes its caller's
context along.

Guarantees: a batcher that is made while an observer of all is added or removed is told of it by one of the two.
"""

from __future__ import annotations

import os
import weakref
from functools import partial
from itertools import count

from . import _native
from ._binding import is_coroutine_function
from ._histogram import Frozen
from .stats import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context
    from typing import Any, Protocol, TypeAlias

    class Span(Protocol):
        """What a tracer makes of a batch."""

        def leave(self) -> object:
            """The handler has returned."""
            ...

        def end(self, batch: Batch | None, /) -> object:
            """The callers were woken."""
            ...

    class Tracer(Protocol):
        """See the head of the file."""

        def begin(self, batcher: str, contexts: Sequence[Context | None], /) -> Span:
            """The handler is about to be called for items that came from these contexts."""
            ...

    Observer: TypeAlias = Callable[["Batch"], object] | Tracer


class Batch(Frozen):
    """What became of one batch; it cannot be changed."""

    __slots__ = ("batcher", "began", "duration", "error", "errors", "max_size", "reason", "size", "waits")

    batcher: str
    """The batcher's name."""
    size: int
    """Its items."""
    max_size: int
    """How many there could have been."""
    waits: tuple[float, ...]
    """Seconds that each of them waited for the handler's call, in their order."""
    began: float
    """When the handler was called, in seconds of `time.monotonic`."""
    duration: float
    """Seconds that the handler took, all of its calls together."""
    reason: str
    """Why it left: see `ubatch.Stats`."""
    errors: int
    """How many of its callers got an exception."""
    error: Exception | None
    """One of these, an object of the observers' own; `None` if there was none."""

    def __repr__(self) -> str:
        shown = {name: value for name, value in self._values().items() if name != "waits"}
        return f"Batch({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Observed:
    """What batchers of either kind have in common: they can be found, and observed."""

    _is_hidden = False
    """Whether it is a part of another batcher, which is observed in its stead."""
    _number = 0
    """It has one of its own, which no batcher before or after it has."""
    _observers: tuple[Any, ...] = ()
    """Its own."""

    if TYPE_CHECKING:

        @property
        def name(self) -> str: ...
        @property
        def stats(self) -> Stats: ...

    def _heed(self) -> None:
        """Its observers are others now; see `observers_of`."""
        raise NotImplementedError


living: dict[int, weakref.ref[Any]] = {}
"""Every batcher, by its number; operations on a dict are atomic."""

_numbers = count(1)

mourners: list[Callable[[Observed], object]] = []
"""Called with each batcher that is about to be collected."""

_everywhere: tuple[Any, ...] = ()  # the observers of all batchers
_lock = _native.reentrant_lock()  # guards the changing of _everywhere and of _observers


def _forked() -> None:
    global _lock
    _lock = _native.reentrant_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def register(batcher: Any) -> None:
    """Let a batcher be found as long as it lives."""
    batcher._number = number = next(_numbers)
    living[number] = weakref.ref(batcher, partial(_forget, number))


def _forget(number: int, _: object) -> None:
    living.pop(number, None)


def batchers() -> list[Observed]:
    """All that are observed."""
    found = [ref() for ref in list(living.values())]
    return [batcher for batcher in found if isinstance(batcher, Observed) and not batcher._is_hidden]


def observers_of(batcher: Observed) -> tuple[Any, ...]:
    """A batcher's own observers, and those of all."""
    return () if batcher._is_hidden else (*batcher._observers, *_everywhere)


def checked_observer(observer: Any) -> Any:
    """Raises TypeError: it is neither `None`, nor callable, nor a tracer; or it is a coroutine function."""
    if observer is None:
        return None
    if not callable(observer) and not callable(getattr(observer, "begin", None)):
        raise TypeError(f"observer must be callable with a record of a batch, not {observer!r}")
    if callable(observer) and is_coroutine_function(observer):
        raise TypeError(f"observer must be a plain function, as nobody awaits it, not {observer!r}")
    return observer


def observe(observer: Observer, batcher: Any = None) -> Callable[[], None]:
    """Have an observer told of every batch: `ubatch.observe(print)`.

    It is called with an `ubatch.Batch` by the worker, after the batch's callers were woken; in `ubatch.aio`, in the
    event loop. The next batch waits for it, so it should be quick. If it raises, that is logged
    once for each name of a batcher.

    Args:
        observer: any callable.
        batcher: whose batches: a `UBatch`, one of `ubatch.aio`, a decorated function. `None` for those of all, also
            of such as will be made. One observer may be added several times; then it is told as often.

    Returns:
        A function without arguments that ends it. It may be called again.

    Raises:
        TypeError: an argument is not as described; the message has its value.
    """
    if observer is None:
        raise TypeError("observer must be callable with a record of a batch, not None")
    entry = [checked_observer(observer)]
    target = None if batcher is None else batcher_of(batcher)
    _change(target, lambda observers: (*observers, entry[0]))

    def end() -> None:
        if entry:
            gone = entry.pop()
            _change(target, lambda observers: _without(observers, gone))

    return end


def batcher_of(given: Any) -> Observed:
    """A batcher, or that of a decorated function. Raises TypeError: it has none."""
    batcher = given if isinstance(given, Observed) else getattr(given, "batcher", None)
    if not isinstance(batcher, Observed):
        raise TypeError(f"batcher must be a UBatch or a decorated function, not {given!r}")
    return batcher


def _without(observers: tuple[Any, ...], gone: Any) -> tuple[Any, ...]:
    left = list(observers)
    for index, observer in enumerate(left):
        if observer is gone:
            del left[index]
            break
    return tuple(left)


def _change(batcher: Observed | None, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    global _everywhere
    with _lock:
        if batcher is None:
            _everywhere = change(_everywhere)  # before the look at who lives; who is made does it the other way round
        else:
            batcher._observers = change(batcher._observers)
    for one in batchers() if batcher is None else [batcher]:
        one._heed()


def mourn(batcher: Observed) -> None:
    """A batcher is about to be collected; never raises."""
    if not batcher._is_hidden:
        for mourner in list(mourners):
            try:
                mourner(batcher)
            except Exception:  # a batcher that was never finished
                pass
