"""One batch of which some items may be bad: split until these are found, so that the others get their results.

Pure: `Isolating` is an `Attempt` that does not put up with a handler that raises. It asks for the two halves of
what failed, the largest parts first, until what fails is single items; their errors are their own.

Guarantees, for a batch of n items, besides those of `Attempt`:
- One bad item costs at most 2·log2(n) calls more, log2 rounded up. At most 8·log2(n) calls fail; then what was not
  found to be good fails with the error of the smallest part that it was in. So a batch that is all bad costs no
  more calls than that.
- What a failed call held in its variables is let go before the next call: the error keeps the story of its
  traceback, not the frames. Else the halves of a batch that ran out of memory would do so as well.

Not split, as it is not an item's doing: a result of the wrong size (`BadBatchOutputSize`), and what is no ordinary
exception (`SystemExit`, a `CancelledError`): after such a one nothing is tried any more.

Out of memory. It is the size of a part that is bad then, rather than an item in it. So once two parts of some size ran
out of it, others of that size are split without a call, unless larger ones went through; and the batcher's `Ceiling`
is told. It is not told if the blame is on items that ran out of memory alone, or if nothing went through: then memory
is short for another reason.
"""

from __future__ import annotations

import builtins
from heapq import heappop, heappush
from math import log2
from types import FunctionType, TracebackType

from ._attempt import Attempt, Raised, cancels, description, listed, outcomes_from
from .errors import BadBatchOutputSize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ._attempt import Arguments
    from ._binding import Bindable, Binder, Group
    from ._ceiling import Ceiling

    Part = tuple[int, list[int], BaseException | None]
    """Minus its size, so that a heap has the largest first; positions of its items; the error it was in."""

FAILURES = 8
"""As many calls may fail as this times log2 of the batch's size, before the rest is given up."""


class Isolating(Attempt):
    """A batch on its way from calls to outcomes, split where the handler raises; see the head of the file.

    Args:
        ceiling: told whether the batch was too large for the memory there is.
    """

    __slots__ = ("_ceiling",)

    def __init__(self, ceiling: Ceiling) -> None:
        self._ceiling = ceiling

    def calls(self, items: Sequence[Bindable], binder: Binder) -> Iterator[Arguments]:
        """See `Attempt.calls`. The handler may be called again with items that it has seen."""
        size = len(items)
        called = False
        for item in items:
            if item.call is not None:
                break
        else:  # the usual case, before anything is made that takes time: one call, and it goes through
            yield ([item.args[0] for item in items],), {}
            output = _read(self.output, size)
            if type(output) is not Raised:
                self.outcomes, self.errors = outcomes_from(output, size)
                self._ceiling.borne(size)
                return
            called, self.output = True, output
        outcomes: list[Any] = [None] * size
        self.outcomes, self.errors = outcomes, 0
        left = int(FAILURES * log2(size)) if size > 1 else 1  # calls that may fail
        memory = _Memory()
        sound = True
        parts: list[Part] = [(-size, list(range(size)), None)]
        while parts:
            _, part, error = heappop(parts)
            if error is not None and left <= 0:
                self._settle(outcomes, part, Raised(error))
                continue
            if memory.is_short_for(len(part)):
                _split(part, error, parts)
                continue
            for group, args, kwargs in self._groups(outcomes, items, part, binder):
                if not called:
                    yield args, kwargs
                called = False
                output, self.output = _read(self.output, len(group)), None
                if type(output) is Raised:
                    sound, failure = False, output.error
                    ordinary = issubclass(type(failure), Exception) and not cancels(failure)
                    left = left - 1 if ordinary else 0
                    if size > 1:
                        forget_variables(failure)
                    if ordinary and out_of_memory(failure):
                        memory.exceeded.append(group)
                    if len(group) > 1 and not isinstance(failure, BadBatchOutputSize):
                        _split(group, failure, parts)
                        continue
                else:
                    memory.borne = max(memory.borne, len(group))
                self._settle(outcomes, group, output)
        if not sound:
            memory.tell(self._ceiling, size)
        elif memory.borne:
            self._ceiling.borne(size)

    def _groups(
        self, outcomes: list[Any], items: Sequence[Bindable], part: list[int], binder: Binder
    ) -> Iterator[Group]:
        """The handler calls that a part takes: several only at first, as then it is split along these."""
        chosen = [items[position] for position in part]
        if all(item.call is None for item in chosen):
            yield part, ([item.args[0] for item in chosen],), {}
            return

        def misfit(index: int, error: TypeError) -> None:
            self._settle(outcomes, [part[index]], Raised(error))

        for indices, args, kwargs in binder.group(chosen, misfit):
            yield [part[index] for index in indices], args, kwargs

    def _settle(self, outcomes: list[Any], part: list[int], output: Any) -> None:
        """What came of it is final."""
        results, errors = outcomes_from(output, len(part))
        self.errors += errors
        for position, result in zip(part, results, strict=True):
            outcomes[position] = result


def _split(part: list[int], error: BaseException | None, parts: list[Part]) -> None:
    middle = (len(part) + 1) // 2
    for half in part[:middle], part[middle:]:
        heappush(parts, (-len(half), half, error))  # errors are not compared, as no two parts have the same items


def _read(output: Any, expected: int) -> Any:
    """A handler's output as a list, or `Raised`: some arrays are computed when they are looked at."""
    if type(output) is list or type(output) is Raised:
        return output
    try:
        return listed(output, expected)
    except BaseException as error:
        return Raised(error.with_traceback(None))


class _Memory:
    """What the calls of one batch say of the memory there is."""

    __slots__ = ("borne", "exceeded")

    def __init__(self) -> None:
        self.borne = 0  # items in the largest part that went through
        self.exceeded: list[list[int]] = []  # the parts that did not

    def is_short_for(self, size: int) -> bool:
        """Whether a part of `size` items need not be tried: two that were no larger ran out of memory.

        Two, as one of them may have had an item that is too large for itself. Single items are always tried.
        """
        return size > 1 and sum(self.borne < len(part) <= size for part in self.exceeded) > 1

    def tell(self, ceiling: Ceiling, size: int) -> None:
        """Draw the conclusion, if there is one, for batches to come; this one had `size` items."""
        too_large = {part[0] for part in self.exceeded if len(part) == 1}
        if self.borne and any(too_large.isdisjoint(part) for part in self.exceeded):
            ceiling.exceeded(size, self.borne)


# -- errors -----------------------------------------------------------------------------------------------

_KINDS = {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}
"""Classes of this name, and what is made of them: Python, numpy, cupy; torch; tensorflow."""

_WORDS = (
    "out of memory",  # older torch ("CUDA out of memory", "CUDA error: out of memory"), CUDA in other libraries
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "failed to allocate memory",  # onnxruntime
    "bad allocation",  # its C++ library, on Windows
    "bad_alloc",  # on Linux
    "resource_exhausted",  # jax
    "status_alloc_failed",  # cuBLAS, cuDNN
)
"""What a `RuntimeError` says, or an error of onnxruntime, which has a base class of its own."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is not enough memory, of whatever device; it or what it came from."""
    return any(map(_is_out_of_memory, _story(error)))


def _is_out_of_memory(error: BaseException) -> bool:
    kind = type(error)
    if any(base.__name__ in _KINDS for base in kind.__mro__):
        return True
    if not issubclass(kind, RuntimeError) and not str(kind.__module__).startswith("onnxruntime"):
        return False
    text = description(error).lower()
    return any(words in text for words in _WORDS)


_Group: Any = getattr(builtins, "BaseExceptionGroup", ())  # Python 3.11


def _story(error: BaseException) -> list[BaseException]:
    """The error, and all others that came before it or are in it."""
    story = [error]
    for one in story:
        members = getattr(one, "exceptions", ()) if issubclass(type(one), _Group) else ()
        for other in (one.__cause__, one.__context__, *members):
            if other is not None and not any(other is known for known in story):
                story.append(other)
    return story


def forget_variables(error: BaseException) -> None:
    """Let go of the frames that failed, and of what is in them, but not of what a traceback says of them."""
    for one in _story(error):
        if one.__traceback__ is not None:
            BaseException.with_traceback(one, _retold(one.__traceback__))


def _retold(traceback: TracebackType | None) -> TracebackType | None:
    """A traceback of the same files, functions and lines, with frames that never ran.

    Clearing the old ones instead would, before Python 3.13, end a suspended coroutine that is in an older part of
    a traceback, as an exception object that is raised again still has.
    """
    entries: list[TracebackType] = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    for entry in reversed(entries):
        frame = entry.tb_frame
        code = frame.f_code
        twin = _nowhere.__code__.replace(
            co_filename=code.co_filename, co_name=code.co_name, co_firstlineno=code.co_firstlineno
        )
        # the frame of a generator, as that is there before it runs, and knows of no caller
        frame = FunctionType(twin, frame.f_globals)().gi_frame
        traceback = TracebackType(traceback, frame, -1, entry.tb_lineno or 0)  # -1: no part of the line
    return traceback


def _nowhere() -> Iterator[None]:
    yield
