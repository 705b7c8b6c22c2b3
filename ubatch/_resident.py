"""Handlers that live where they run: made, or sent, once."""

from __future__ import annotations

import itertools
import os
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable
    from typing import Any

_numbers = itertools.count(1)
_handlers: dict[tuple[int, int], Callable[..., Any]] = {}  # those that live in this process


class Resident:
    """A handler that lives in the processes of an executor: `initializer` brings it there, and calls but name it.

    Args:
        handler: the handler; or what makes it, see `is_factory`.

    Raises:
        TypeError: it is not callable.
    """

    def __init__(self, handler: Callable[..., Any]) -> None:
        if not callable(handler):
            raise TypeError(f"handler must be callable, not {handler!r}")
        self._handler = handler
        self._number = os.getpid(), next(_numbers)
        self.__qualname__ = name_of(handler)
        self.__signature__ = signature_of(handler)

    def initializer(self) -> Callable[[], None]:
        """What a process is to do as it starts."""
        return partial(_move_in, self._number, self._handler)

    def here(self) -> Callable[..., Any]:
        """The handler, made in this process.

        Raises:
            TypeError: what was made is not callable.
            Exception: what its making raises.
        """
        return made(self._handler)

    def __reduce__(self) -> tuple[Any, ...]:
        return _resident, (self._number,)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"handler {self.__qualname__} lives in other processes")

    def __repr__(self) -> str:
        return f"<Resident {self.__qualname__}>"


def is_factory(handler: Callable[..., Any]) -> bool:
    """Whether it makes the handler: a class, also with arguments (`partial`); or a function without positional ones."""
    import inspect

    if isinstance(without_arguments(handler), type):
        return True
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):  # none to be had
        return False
    return all(parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD) for parameter in parameters)


def signature_of(handler: Callable[..., Any]) -> inspect.Signature:
    """That of the handler, told before it is made: of one that a function makes, only that it takes positionals."""
    import inspect

    anything = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])
    try:
        kind: Any = without_arguments(handler)
        if isinstance(kind, type):
            signature = inspect.signature(kind.__call__)
            return signature.replace(parameters=[*signature.parameters.values()][1:])  # without `self`
        return anything if is_factory(handler) else inspect.signature(handler)
    except (TypeError, ValueError):  # none to be had
        return anything


def made(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler itself, or what it makes. Raises TypeError: that is not callable. Exception: what it raises."""
    if not is_factory(handler):
        return handler
    one = handler()
    if not callable(one):
        raise TypeError(f"{name_of(handler)} must make a handler, something callable, not {one!r}")
    return one  # type: ignore[no-any-return]


def without_arguments(handler: Callable[..., Any]) -> Callable[..., Any]:
    """What is called, if the handler is that with some of its arguments."""
    return handler.func if isinstance(handler, partial) else handler  # one of another one is one by itself


def name_of(handler: Callable[..., Any]) -> str:
    """What to call it."""
    inner: Any = without_arguments(handler)
    return getattr(inner, "__qualname__", None) or type(inner).__qualname__


def _move_in(number: tuple[int, int], handler: Callable[..., Any]) -> None:
    _handlers[number] = made(handler)


def _resident(number: tuple[int, int]) -> Callable[..., Any]:
    return _handlers[number]
