"""From calls with one item each to one call with lists: the arguments of a batch.

Pure. A call with a single positional argument, to a handler that can be called so, is simple: it needs no
binding, and its argument goes into the one list that the handler gets. Every other call is bound by the
handler's signature when it is made, so that a call that does not fit fails alone.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Protocol

    class Bindable(Protocol):
        """What the binder knows of an item."""

        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        call: Call | None
        """Its arguments once bound; `None` if it is simple; `UNBOUND` if the handler was not known yet."""

    Group = tuple[list[int], tuple[list[Any], ...], dict[str, list[Any]]]


class Call:
    """The arguments of one call, sorted out by the handler's signature.

    Args:
        named: values of the handler's parameters that were passed.
        rest: positional arguments beyond them (the handler's `*args`).
        extra: keyword arguments beyond them (the handler's `**kwargs`).
    """

    __slots__ = ("extra", "named", "rest")

    def __init__(self, named: dict[str, Any], rest: tuple[Any, ...], extra: dict[str, Any]) -> None:
        self.named = named
        self.rest = rest
        self.extra = extra


UNBOUND = Call({}, (), {})
"""Stands for the arguments of a call that was accepted before the handler was known."""


class Binder:
    """Binds calls to a handler's signature and gathers bound calls into lists.

    Args:
        handler: any callable. Where its signature cannot be inspected it takes positional arguments only.
    """

    __slots__ = ("_name", "_parameters", "_signature", "accepts_one")

    def __init__(self, handler: Callable[..., Any]) -> None:
        import inspect  # here, as it takes longer than all of ubatch to import

        self._name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
        try:
            signature = inspect.signature(handler)
        except (TypeError, ValueError):
            anything = inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)
            signature = inspect.Signature([anything])
        self._signature = signature
        self._parameters: dict[str, inspect.Parameter] = {
            name: parameter
            for name, parameter in signature.parameters.items()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        self.accepts_one = True
        """Whether a call with one positional argument fits."""
        try:
            signature.bind(None)
        except TypeError:
            self.accepts_one = False

    @property
    def parameters(self) -> list[tuple[str, Any]]:
        """Name and kind of each of the handler's parameters."""
        return [(parameter.name, parameter.kind) for parameter in self._signature.parameters.values()]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Sort out the arguments of one call; `None` if it is simple and needs no sorting.

        Raises:
            TypeError: they do not fit the handler's signature.
        """
        if self.accepts_one and len(args) == 1 and not kwargs:
            return None
        return self._bind(args, kwargs)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error}") from None
        named: dict[str, Any] = {}
        rest: tuple[Any, ...] = ()
        extra: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            parameter = self._signature.parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                rest = value
            elif parameter.kind is parameter.VAR_KEYWORD:
                extra = value
            else:
                named[name] = value
        return Call(named, rest, extra)

    def group(self, items: Sequence[Bindable], failed: Callable[[int, TypeError], None]) -> Iterator[Group]:
        """Sort calls, not all of them simple, into the fewest handler calls that serve them.

        That is one, unless they differ in `*args` or `**kwargs`: these have no defaults, so calls that differ in
        how many or which of them they pass go in separate handler calls. A parameter that none of the calls
        passed is left out; if one call passed it, the others contribute its default.

        Args:
            items: the calls, in order.
            failed: told the position of an item that was accepted before the handler was known, and does
                not fit it.

        Yields:
            Positions in `items`, and the `args` and `kwargs` for `handler(*args, **kwargs)`, each a list with
            one element for each position.
        """
        alike: dict[Any, tuple[list[int], list[Call]]] = {}
        for position, item in enumerate(items):
            try:
                call = item.call
                if call is None or call is UNBOUND:
                    call = self._bind(item.args, item.kwargs)
            except TypeError as error:
                failed(position, error)
                continue
            positions, calls = alike.setdefault((len(call.rest), frozenset(call.extra)), ([], []))
            positions.append(position)
            calls.append(call)
        for positions, calls in alike.values():
            yield positions, *self._columns(calls)

    def _columns(self, calls: list[Call]) -> tuple[tuple[list[Any], ...], dict[str, list[Any]]]:
        passed: set[str] = set().union(*(call.named for call in calls))
        args: list[list[Any]] = []
        kwargs: dict[str, list[Any]] = {}
        by_position = True
        for name, parameter in self._parameters.items():
            by_position = by_position and name in passed and parameter.kind is not parameter.KEYWORD_ONLY
            if name in passed:
                column = [call.named.get(name, parameter.default) for call in calls]
                if by_position:
                    args.append(column)
                else:
                    kwargs[name] = column
        args.extend([call.rest[index] for call in calls] for index in range(len(calls[0].rest)))
        kwargs.update({name: [call.extra[name] for call in calls] for name in calls[0].extra})
        return tuple(args), kwargs


def is_coroutine_function(handler: Callable[..., Any]) -> bool:
    """Whether calling the handler gives a coroutine or an asynchronous generator."""
    from inspect import isasyncgenfunction, iscoroutinefunction

    functions = (handler, getattr(type(handler), "__call__", None))  # noqa: B004
    return any(iscoroutinefunction(function) or isasyncgenfunction(function) for function in functions)
