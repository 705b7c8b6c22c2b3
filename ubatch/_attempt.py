"""One batch: from its calls to one outcome for each caller.

Pure: `Attempt` asks its driver to call the handler and turns what comes of it into outcomes, so that a thread
and an event loop can drive the same decisions. An outcome is a plain value, or an exception instance that is to
be raised in that caller: the convention of the handler's own output.

Guarantees: one outcome for each item, whatever the handler does; no two callers share an exception object,
unless it is one that cannot be copied; nobody gets a `BaseException` that would end their thread.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MemberDescriptorType

from .errors import BadBatchOutputSize, HandlerFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ._binding import Bindable, Binder

    Arguments = tuple[tuple[list[Any], ...], dict[str, list[Any]]]


class Raised:
    """What a driver makes of it when the handler raises."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Attempt:
    """A batch on its way from calls to outcomes.

    A driver makes each of the `calls` of the handler, puts what comes of it into `output` before it asks for the
    next, and finds the `outcomes` when there are no more.
    """

    __slots__ = ("errors", "outcomes", "output")

    output: Any
    """What came of the last call of the handler: what it returned, or `Raised`."""
    outcomes: Sequence[Any]
    """One for each item, in order."""
    errors: int
    """How many of the outcomes are errors."""

    def calls(self, items: Sequence[Bindable], binder: Binder) -> Iterator[Arguments]:
        """Yield `(args, kwargs)` for each call of the handler that the batch takes."""
        simple = []
        for item in items:
            if item.call is not None:
                break
            simple.append(item.args[0])
        else:
            yield (simple,), {}
            self.outcomes, self.errors = outcomes_from(self.output, len(items))
            return
        del simple, item
        outcomes: list[Any] = [None] * len(items)
        self.outcomes, self.errors = outcomes, 0

        def misfit(position: int, error: TypeError) -> None:
            outcomes[position] = error
            self.errors += 1

        for positions, args, kwargs in binder.group(items, misfit):
            yield args, kwargs
            results, errors = outcomes_from(self.output, len(positions))
            self.errors += errors
            for position, result in zip(positions, results, strict=True):
                outcomes[position] = result


def outcomes_from(output: Any, expected: int) -> tuple[Sequence[Any], int]:
    """What comes of one handler call for each of its `expected` items, and how many of these are errors."""
    error: BaseException
    if type(output) is Raised:
        error = output.error
    else:
        try:
            results = output if type(output) is list else listed(output, expected)
            if len(results) != expected:
                raise BadBatchOutputSize(expected, len(results))
            for result in results:
                if isinstance(result, BaseException):
                    return _errors_apart(results)
            return results, 0
        except BaseException as raised:  # BadBatchOutputSize, or a sequence with a mind of its own
            error = raised.with_traceback(None)
    return [own(error) for _ in range(expected)], expected


def listed(output: Any, expected: int) -> list[Any]:
    """A handler's output as a list. Raises BadBatchOutputSize, and whatever a sequence with a mind of its own does."""
    got = length(output)
    if got != expected:
        raise BadBatchOutputSize(expected, got)
    return list(output)


def _errors_apart(results: list[Any]) -> tuple[list[Any], int]:
    """See to it that each exception among the results is its caller's alone, and may be raised there."""
    # copies, as the handler may hold on to its own: one and the same exception for every bad item there ever is
    results = [own(result) if isinstance(result, BaseException) else result for result in results]
    return results, sum(isinstance(result, BaseException) for result in results)


def length(output: Any) -> int | str:
    """The number of results in a handler's output; the name of its type if it is not a batch of results."""
    if isinstance(output, Sequence) and not isinstance(output, (str, bytes, bytearray, memoryview)):
        return len(output)
    shape = getattr(output, "shape", None)
    if shape is None or not hasattr(type(output), "dtype"):  # data frames have a shape too
        return type(output).__name__
    return int(shape[0]) if len(shape) else f"0-d {type(output).__name__}"


def _must_not_be_raised(error: BaseException) -> bool:
    return (
        not issubclass(type(error), Exception)  # what only pretends to be one cannot be raised either
        or isinstance(error, (StopIteration, StopAsyncIteration))
        or cancels(error)
    )


def cancels(error: BaseException) -> bool:
    """Whether it is a `CancelledError`, known by its name: asyncio, concurrent.futures and others have one each."""
    return any(kind.__name__ == "CancelledError" for kind in type(error).__mro__)


def own(error: BaseException) -> Exception:
    """An exception equal to `error` for one caller alone, so that no two callers' tracebacks grow on one object.

    Returns:
        A copy of the same type and state; `error` itself if it cannot be copied faithfully; `HandlerFailed`
        with `error` as its cause if it must not be raised in a caller as it is.
    """
    if not isinstance(error, Exception) or _must_not_be_raised(error):
        failure = HandlerFailed(description(error))
        failure.__cause__ = error
        return failure
    for make in (_copy, _bare_copy):
        try:
            twin = make(error)
            faithful = (
                twin is not error
                and type(twin) is type(error)
                and len(twin.args) == len(error.args)
                and all(a is b or a == b for a, b in zip(twin.args, error.args, strict=True))
                and str(twin) == str(error)
            )
        except BaseException:  # constructors of other people's exceptions take what they like
            continue
        if faithful:
            for name in ("__traceback__", "__cause__", "__context__", "__suppress_context__"):
                _set(twin, name, getattr(error, name))
            notes = getattr(error, "__notes__", None)
            if notes is not None:
                _set(twin, "__notes__", list(notes))
            return twin
    return error


_set = BaseException.__setattr__  # a class may forbid it, as frozen data classes do


def _copy(error: Exception) -> Exception:
    return _with_members(error, copy.copy(error))


def _bare_copy(error: Exception) -> Exception:
    twin = type(error).__new__(type(error), *error.args)
    _set(twin, "args", error.args)
    twin.__dict__.update(error.__dict__)
    return _with_members(error, twin)


def _with_members(error: Exception, twin: Exception) -> Exception:
    """Give `twin` what `error` keeps outside its `__dict__`: in `__slots__`, or in fields of a built-in type."""
    for kind in type(error).__mro__:
        for member in vars(kind).values():
            if isinstance(member, MemberDescriptorType):
                try:
                    value = member.__get__(error)
                    if getattr(twin, member.__name__, None) is not value:  # unset ones of built-in types are None
                        member.__set__(twin, value)
                except (AttributeError, TypeError):  # it has no value, or is read-only
                    pass
    return twin


def description(error: BaseException) -> str:
    """Its type and message, whatever its `__str__` does."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:  # other people's exceptions do what they like here, too
        return kind
    return f"{kind}: {text}" if text else kind
