"""Every exception that ubatch raises of its own.

Each inherits `UBatchError` and, beside it, the standard library's exception that a caller might already
catch. Messages are built inside the classes from their arguments, and the arguments are all there is: an
exception pickles, copies and unpickles to an equal one.

What the caller did wrong in a single call (a wrong type, a call that does not fit the handler's signature)
is a plain `TypeError` or `ValueError`, as everywhere in Python. What is no error, but surely no intention either, is
a warning.
"""

from __future__ import annotations

import queue
import sys
import warnings


class UBatchError(Exception):
    """Base of all errors in this file."""


class HandlerNotSet(UBatchError, RuntimeError):
    """`start()` was called on a batcher without a handler."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"batcher {self.name!r} has no handler: call set_handler(handler) before start()"


class HandlerAlreadySet(UBatchError, RuntimeError):
    """`set_handler()` was called on a batcher that has a handler."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"batcher {self.name!r} has a handler already; make another UBatch for another handler"


class BadBatchOutputSize(UBatchError, ValueError):
    """The handler did not return one result for each item.

    Args:
        expected: items in the batch.
        got: results in the handler's output, or the name of its type where that has no usable length.
    """

    def __init__(self, expected: int, got: int | str) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        if isinstance(self.got, int):
            return f"the handler returned {self.got} results for a batch of {self.expected} items"
        return (
            f"the handler returned a {self.got} for a batch of {self.expected} items; it must return a sequence "
            f"(not str or bytes) or an array, with one result for each item, in order"
        )


class HandlerFailed(UBatchError, RuntimeError):
    """The handler raised what must not be raised in a caller as it is; `__cause__` is the original.

    That is a `BaseException` (it would end the caller's thread or server), a `CancelledError` (it would look
    as if the caller had been cancelled) or a `StopIteration` (it would end a generator around the call).

    Args:
        error: the original's type and message.
    """

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return f"the handler raised {self.error}"


class QueueFull(UBatchError, queue.Full):
    """The batcher holds as many items as it is allowed to.

    Args:
        name: the batcher's name.
        max_queue: its limit, in items.
    """

    def __init__(self, name: str, max_queue: int) -> None:
        super().__init__(name, max_queue)
        self.name = name
        self.max_queue = max_queue

    def __str__(self) -> str:
        return (
            f"batcher {self.name!r} has {self.max_queue} items queued, its max_queue; try again later, or let callers "
            f"wait with overflow='block'"
        )


class DeadlineExceeded(UBatchError, TimeoutError):
    """The item's deadline passed before its result was there.

    Args:
        name: the batcher's name.
        deadline: the time allowed, in seconds from the item's arrival.
    """

    def __init__(self, name: str, deadline: float) -> None:
        super().__init__(name, deadline)
        self.name = name
        self.deadline = deadline

    def __str__(self) -> str:
        return f"batcher {self.name!r} had no result within the item's deadline of {self.deadline} s"


class Stopped(UBatchError, RuntimeError):
    """The batcher was stopped: it accepts no items, or it gave up this one.

    Args:
        name: the batcher's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"batcher {self.name!r} is stopped; start() lets it accept items again"


class WorkerDied(UBatchError, RuntimeError):
    """The worker that held this item is gone, and the item with it. The next item gets a new worker.

    Args:
        name: the batcher's name; that of a `ProcessExecutor`, if that was called directly.
        reason: what ended the worker.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the worker of {self.name!r} died: {self.reason}"


def warn_caller(message: str) -> None:
    """Give a `RuntimeWarning` about the line that called ubatch."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and (frame.f_globals.get("__package__") or "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)
