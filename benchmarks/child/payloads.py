"""What travels through pipelines, and the handlers of their steps; imported in the children, too.

Payloads are float32 arrays of small whole numbers, so that sums of them are exact in any order: each item has a number
of its own in one place, and a right answer is the answer to no other item.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Any

FLOATS, IMAGE = (8,), (224, 224, 3)

SHAPES = {"sums": FLOATS, "looks": IMAGE, "averages": IMAGE}
"""The shape of an item, by the handler of the last step."""

NUMBERS = 1 << 19
"""Items are numbered from 1 to this, again and again."""


def bytes_of(handler: str) -> int:
    """The size of an item in bytes."""
    return 4 * math.prod(SHAPES[handler])


def passes(items: list[Any]) -> list[Any]:
    """The handler of all steps but the last: hands each array on as it is."""
    return items


def sums(items: list[Any]) -> list[float]:
    """Add up each array."""
    return [float(item.sum()) for item in items]


def looks(items: list[Any]) -> list[float]:
    """Look at one element of each image."""
    return [float(item[0, 0, 0]) for item in items]


def averages(items: list[Any]) -> list[float]:
    """Average each image."""
    return [float(item.mean()) for item in items]


HANDLERS: dict[str, Callable[[list[Any]], list[Any]]] = {"sums": sums, "looks": looks, "averages": averages}


def chain(handler: str, steps: int) -> list[Callable[[list[Any]], list[Any]]]:
    """The handlers of a pipeline's steps."""
    return [*[passes] * (steps - 1), HANDLERS[handler]]


class WrongAnswer(AssertionError):
    """An item got another answer than its own; says both."""


class Stock:
    """Arrays that callers take, hand over and put back, each time with another number in it. Thread-safe.

    Args:
        handler: of the last step.
        size: how many arrays; so many may be taken at once.
        seed: of what they contain.
    """

    def __init__(self, handler: str, size: int, seed: int = 0) -> None:
        import numpy as np  # here, as children that only look at what they are sent need not wait for it

        self.handler = handler
        self.numbers = itertools.cycle(range(1, NUMBERS + 1))
        self.items: deque[tuple[Any, int]] = deque()
        rng = np.random.default_rng(seed)
        for _ in range(size):
            array = rng.integers(-1, 2, SHAPES[handler]).astype(np.float32)
            array.flat[0] = 0
            self.items.append((array, int(array.sum(dtype=np.float64))))

    def take(self) -> tuple[Any, int, int]:
        """An array, the number that it has now, and the sum of the rest of it."""
        array, rest = self.items.popleft()
        number = next(self.numbers)
        array.flat[0] = number
        return array, number, rest

    def put_back(self, taken: tuple[Any, int, int], answer: Any) -> None:
        """Check the answer.

        Raises:
            WrongAnswer: it is not this item's.
        """
        array, number, rest = taken
        found = round(answer * array.size) if self.handler == "averages" else answer
        wanted = number if self.handler == "looks" else number + rest
        if found != wanted:
            raise WrongAnswer(f"{self.handler} of item {number}: {found!r} instead of {wanted!r}")
        self.items.append((array, rest))
