"""What is known of every item: which are on their way, and what went wrong with any."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import ubatch


class ItemError(Exception):
    """What one item gets, by its number."""


class BatchError(Exception):
    """What a whole batch gets."""


REFUSED = (ubatch.Stopped, ubatch.QueueFull, ubatch.DeadlineExceeded)  # a submit may raise these
SHARED = (BatchError, ubatch.HandlerFailed, ubatch.BadBatchOutputSize, *REFUSED)  # any item may get these


MAX_WEIGHT = 40


def value(item: int) -> int:
    """The right result of an item."""
    return 3 * item + 1


def key(item: int) -> int:
    """The key of an item."""
    return item // 16 % 3


def weight(item: int) -> int:
    """The weight of an item, now and then more than a batch may have."""
    return item * 7 % 43


class Ledger:
    """Which items are on their way, and what went wrong. Lock-free: it is used in forked children too.

    Args:
        exact: whether an item that the handler has not seen when its caller leaves must not be seen later; else
            it may be on its way to the handler, and is forgotten after a time.
    """

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.numbers = itertools.count(1)
        self.unseen: set[int] = set()
        self.vague: set[int] = set()  # given up by their callers: the handler may see them, or not
        self.vague_before: set[int] = set()
        self.violations: deque[str] = deque(maxlen=100)
        self.attempts = itertools.count()
        self.resolutions = itertools.count()
        self.seen = itertools.count()

    def new(self) -> int:
        """A new item, about to be handed over."""
        next(self.attempts)
        item = next(self.numbers)
        self.unseen.add(item)
        return item

    def see(self, items: list[int]) -> None:
        """The handler got these."""
        for item in items:
            next(self.seen)
            try:
                self.unseen.remove(item)
            except KeyError:
                if item in self.vague:
                    self.vague.discard(item)
                elif item not in self.vague_before:
                    self.violations.append(f"the handler got item {item} twice, or after it was cancelled")

    def resolved(self, item: int, outcome: Any) -> None:
        """An item's caller got a result or an exception."""
        next(self.resolutions)
        if isinstance(outcome, ubatch.QueueFull):
            self.withheld(item, "refused")
        elif isinstance(outcome, SHARED):
            self.let_go(item)
        elif item in self.unseen:
            self.violations.append(f"item {item} resolved unseen with {outcome!r}")
        elif isinstance(outcome, ItemError):
            if outcome.args != (item,):
                self.violations.append(f"item {item} got the error of another: {outcome!r}")
        elif outcome != value(item):
            self.violations.append(f"item {item} got {outcome!r}")

    def cancelled(self, item: int) -> None:
        """`cancel()` of an item's future said yes: the handler must not see it."""
        next(self.resolutions)
        self.withheld(item, "cancelled")

    def left(self, item: int) -> None:
        """An item's caller stopped waiting."""
        next(self.resolutions)
        self.let_go(item)

    def failed(self, items: list[int], error: BaseException) -> None:
        """A call with many items raised: what became of each cannot be told, unless all were refused."""
        for item in items:
            if isinstance(error, ubatch.QueueFull):
                self.resolved(item, error)
            else:
                self.left(item)

    def withheld(self, item: int, why: str) -> None:
        """The handler must not see this item, nor have seen it."""
        try:
            self.unseen.remove(item)
        except KeyError:
            self.violations.append(f"item {item} was {why}, yet the handler has seen it")

    def let_go(self, item: int) -> None:
        """Nobody waits for this item any more."""
        if item in self.unseen:
            if not self.exact:
                self.vague.add(item)
            self.unseen.discard(item)

    def forget(self) -> None:
        """Drop what was given up long ago."""
        self.vague_before, self.vague = self.vague, set()


def count(counter: itertools.count[int]) -> int:
    """How often a counter was stepped; for a counter that nobody steps any more, or roughly."""
    return int(repr(counter)[6:-1])
