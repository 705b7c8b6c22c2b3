"""Observers: who is told of each batch, of one batcher or of all.

An observer is a function of one argument, the record of a `Batch`. The worker calls it after the batch's callers
were woken; the next batch waits until it has returned. One that raises is logged, once for each name of a batcher,
and does no harm. From within, it can call `submit` of its batcher, but not wait for it.

A tracer is not callable; it has a method `begin` instead, called by the worker right before the handler: it is given
the contexts (`contextvars`) of those who handed the items over, and what it returns is told when the handler has
returned (`leave`, in the same thread or task, before anybody is woken) and when the callers were woken (`end`, with the
record, or with `None` if `stop` gave the batch up meanwhile). As long as there is one, each item takes its caller's
context along.

An exporter shows batchers elsewhere, and may be wanted by many, for all batchers and for some of them. One that is to
be told of batches is an observer as well, and told of each batch once.

Guarantees: a batcher that is made while an observer of all is added or removed is told of it by one of the two. What
ends an observer holds no batcher, and holds no observer once it was called.
"""

from __future__ import annotations

import atexit
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

mourners: list[Callable[[], Callable[[Observed], object] | None]] = []
"""Weak references to what is called with each batcher that is about to be collected."""

_everywhere: tuple[Any, ...] = ()  # the observers of all batchers
_lock = _native.reentrant_lock()  # guards the changing of _everywhere and of _observers, and who wants exporters

last: list[Callable[[], object]] = []
"""What is called at the interpreter's exit, once batchers have been stopped."""


def _at_exit() -> None:
    for function in list(last):
        function()


atexit.register(_at_exit)  # before the drivers, whose room imports this one: what is registered last comes first


def _forked() -> None:
    global _lock
    _lock = _native.reentrant_lock()


def lock() -> Any:
    """Guards the making of exporters, too; a forked child has another."""
    return _lock


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
    """A batcher's own observers, and those of all; each exporter that is to be told of batches once."""
    if batcher._is_hidden:
        return ()
    found = (*batcher._observers, *_everywhere)
    exporters = dict.fromkeys(one for one in found if isinstance(one, Exporter))
    return (*(one for one in found if not isinstance(one, Exporter)), *exporters)


def checked_observer(observer: Any) -> Any:
    """Raises TypeError: it is neither `None`, nor callable, nor a tracer; or it is a coroutine function."""
    if observer is None:
        return None
    if not _can_be_told(observer):
        raise TypeError(f"observer must be callable with a record of a batch, not {observer!r}")
    if callable(observer) and is_coroutine_function(observer):
        raise TypeError(f"observer must be a plain function, as nobody awaits it, not {observer!r}")
    return observer


def _can_be_told(observer: Any) -> bool:
    return callable(observer) or callable(getattr(observer, "begin", None))


def observe(observer: Observer, batcher: Any = None) -> Callable[[], None]:
    """Have an observer told of every batch: `ubatch.observe(print)`.

    It is called with an `ubatch.Batch` by the worker, after the batch's callers were woken; in `ubatch.aio`, in the
    event loop. The next batch waits for it, so it should be quick. If it raises, that is logged
    once for each name of a batcher.

    Args:
        observer: any callable.
        batcher: whose batches: a `UBatch`, one of `ubatch.aio`, a decorated function, a `Flow` for those of all its
            steps. `None` for those of all, also of such as will be made. One observer may be added several times; then
            it is told as often.

    Returns:
        A function without arguments that ends it. It may be called again.

    Raises:
        TypeError: an argument is not as described; the message has its value.
    """
    if observer is None:
        raise TypeError("observer must be callable with a record of a batch, not None")
    return _add(checked_observer(observer), batchers_of(batcher))


def batchers_of(given: Any) -> Sequence[Observed] | None:
    """A batcher, that of a decorated function, or those of a flow's steps; `None` for all. Raises TypeError: none."""
    if given is None:
        return None
    if isinstance(given, Observed):
        return (given,)
    steps = getattr(given, "steps", None)
    candidates: Sequence[Any] = steps if isinstance(steps, tuple) else (getattr(given, "batcher", None),)
    found = [one for one in candidates if isinstance(one, Observed)]
    if not found or len(found) < len(candidates):
        raise TypeError(f"batcher must be a UBatch, a decorated function or a Flow, not {given!r}")
    return found


class Exporter:
    """Shows batchers elsewhere as long as somebody wants that: is told of batches, or looks when it is asked."""

    _wishes: tuple[frozenset[int] | None, ...] = ()
    """Of each call of `add` that was not ended: the batchers' numbers, or `None` for all; changed under _lock."""

    @property
    def is_wanted(self) -> bool:
        """Whether somebody wants it."""
        return bool(self._wishes)

    def add(self, chosen: Sequence[Observed] | None) -> Callable[[], None]:
        """Somebody wants these batchers, or all. Gives a function that ends it, once, however often it is called."""
        wish = None if chosen is None else frozenset(batcher._number for batcher in chosen)
        with _lock:
            if not self._wishes:
                self.open()
            self._wishes = (*self._wishes, wish)
        return _once(partial(self._end, wish, _add(self, chosen) if _can_be_told(self) else None))

    def _end(self, wish: frozenset[int] | None, remove: Callable[[], None] | None) -> None:
        try:
            self.flush()
        finally:
            if remove is not None:
                remove()
            with _lock:
                self._wishes = _without(self._wishes, wish)
                if not self._wishes:
                    self.close()

    def open(self) -> None:
        """Somebody wants it. May raise; then nobody does."""

    def flush(self) -> None:
        """Note what was done until now: some batchers may be shown no more. May raise; then it ends all the same."""

    def close(self) -> None:
        """Nobody wants it any more; it may be wanted again."""

    def shows(self, batcher: Observed) -> bool:
        """Whether somebody wants this one."""
        return any(wish is None or batcher._number in wish for wish in self._wishes)

    def batchers(self) -> list[Observed]:
        """Those that are wanted."""
        return [batcher for batcher in batchers() if self.shows(batcher)]


def _add(observer: Any, chosen: Sequence[Observed] | None) -> Callable[[], None]:
    _change(chosen, lambda observers: (*observers, observer))
    return _once(partial(_remove, observer, None if chosen is None else [weakref.ref(one) for one in chosen]))


def _remove(observer: Any, chosen: Sequence[weakref.ref[Observed]] | None) -> None:
    found = None if chosen is None else [ref() for ref in chosen]
    left = None if found is None else [one for one in found if one is not None]
    _change(left, lambda observers: _without(observers, observer))


def _once(function: Callable[[], None]) -> Callable[[], None]:
    """Calls it when it is called first, and then lets go of it."""
    entry = [function]

    def end() -> None:
        try:
            last = entry.pop()
        except IndexError:  # it was called before, perhaps by another thread at this moment
            return
        last()

    return end


def _without(observers: tuple[Any, ...], gone: Any) -> tuple[Any, ...]:
    left = list(observers)
    for index, observer in enumerate(left):
        if observer is gone:
            del left[index]
            break
    return tuple(left)


def _change(chosen: Sequence[Observed] | None, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
    global _everywhere
    with _lock:
        if chosen is None:
            _everywhere = change(_everywhere)  # before the look at who lives; who is made does it the other way round
        else:
            for one in chosen:
                one._observers = change(one._observers)
    for one in batchers() if chosen is None else chosen:
        known = None
        while known != (now := [*map(id, observers_of(one))]):  # another thread's change may be heeded before this one
            known = now
            one._heed()


def mourn(batcher: Observed) -> None:
    """A batcher is about to be collected: nobody finds it any more, before anybody is told. Never raises."""
    living.pop(batcher._number, None)
    if not batcher._is_hidden:
        for ref in list(mourners):
            mourner = ref()
            try:
                if mourner is not None:
                    mourner(batcher)
            except Exception:  # a batcher that was never finished
                pass
