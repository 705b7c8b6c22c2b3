"""Batches of which something cannot be read where it comes to: what it is, so that the others' callers are served.

Purpose: a batch travels as one pickle, on its way in as on its way out. If that cannot be unpickled on the other side
(a class that is not to be found there), nothing tells whose fault it is. So what is in it goes once more, each item or
result pickled on its own, and is read one by one. Handlers are not called again for that.

Guarantees: this costs a call more, and only then. What only the process can read in which it was made may be asked of
another one, which cannot either; then all of the batch fail with what was raised first.
"""

from __future__ import annotations

import pickle
import traceback

from ._attempt import description, length
from ._children import RemoteTraceback
from ._isolation import forget_variables
from ._parcels import NotSent, Unreadable, parts
from ._records import Failed, sendable_result
from .errors import HandlerFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from ._records import Record

    Piece: TypeAlias = tuple[bytes, Sequence[Any]]
    """A pickle, and its buffers."""


class Piecewise:
    """Asks child processes, in which a batch is at home.

    Args:
        call: as `Crew.call`, for a batcher of some name.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def unreadable(self, items: Sequence[tuple[Any, ...]]) -> dict[int, Exception]:
        """The errors of items that cannot be read in a child, by their positions.

        Args:
            items: what each has for the handler's parameters.

        Raises:
            Exception: as of `Crew.call`.
        """
        found = self._call(_unreadable, ([parts(item) for item in items],), {}, None, 0)
        errors: dict[int, Exception] = {}
        for number, (reason, told) in found.items():
            kinds = ", ".join(f"a {type(value).__name__}" for value in items[number])
            error = TypeError(f"the item, {kinds}, cannot be read in the child process: {reason}")
            error.__cause__ = RemoteTraceback(told)
            errors[number] = error
        return errors

    def results(self, error: Unreadable) -> tuple[list[Any], list[Record]]:
        """The results that are in a handler's answer, with an error for each that cannot be read; and what was logged.

        Args:
            error: of the answer; does not keep it from now on.

        Raises:
            Failed: the handler raised what cannot be read; or, with `NotSent`, it did not return a batch of results.
            Unreadable: this error; a child cannot read it either.
        """
        pickled, error.pickled = error.pickled, None
        try:
            pieces, records = self._call(_apart, pickled, {}, None, 0)
        except Failed:
            raise
        except Exception:
            raise error from error.__cause__
        finally:
            del pickled
        return [_read(*piece) for piece in pieces], records


def _read(what: str, piece: Piece) -> Any:
    data, buffers = piece
    try:
        return pickle.loads(data, buffers=buffers)
    except Exception as reason:
        error = TypeError(f"the result, {what}, cannot be read: {description(reason)}")
        forget_variables(reason)  # its frames know those that have all results
        error.__cause__ = reason
        return error


# -- in the child -------------------------------------------------------------------------------------------


def _unreadable(pieces: Sequence[Piece]) -> dict[int, tuple[str, str]]:
    """Why items cannot be read here, in words and as a traceback, by their positions."""
    found: dict[int, tuple[str, str]] = {}
    for number, (data, buffers) in enumerate(pieces):
        try:
            pickle.loads(data, buffers=buffers)
        except Exception as error:
            begun = error.__traceback__ and error.__traceback__.tb_next  # not here
            found[number] = description(error), "".join(traceback.format_exception(type(error), error, begun))
    return found


def _apart(data: Any, buffers: Sequence[Any]) -> tuple[list[tuple[str, Piece]], list[Record]]:
    """A handler's results, each with what it is, and what was logged. Raises as `Piecewise.results`."""
    returned, answer = pickle.loads(data, buffers=buffers)
    if not returned:
        error, told = answer
        failed = error if isinstance(error, Failed) else Failed(error, [])
        raise Failed(HandlerFailed(description(failed.error)), failed.records) from RemoteTraceback(told)
    output, records = answer
    size = length(output)
    if not isinstance(size, int):
        raise Failed(NotSent(size, "it cannot be read there"), records)
    return [(_what(result), parts(sendable_result(result))) for result in output], records


def _what(result: object) -> str:
    return description(result) if isinstance(result, BaseException) else f"a {type(result).__name__}"
