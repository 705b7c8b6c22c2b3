"""Which items of different lengths go together, where a batch is padded to the longest of them.

Pure: no thread, lock or clock.
"""

from __future__ import annotations

from ._terms import INFINITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OVERHEAD = 1 / 16
"""Fixed cost of a batch, as a share of a full one, that is waste as padding is."""


def alike(weights: Sequence[float], most: int, limit: float) -> list[int]:
    """Which items go best with the first, where a batch weighs its number of items times the heaviest.

    The first item is joined by the next lighter one or the next heavier one, whichever takes less padding, and so
    on; of all these groups it is the one with the least waste, overhead and padding, per item. O(n log n).

    Args:
        weights: of the items, in order; at least one.
        most: the largest number of items.
        limit: the largest padded weight, unless the first item alone exceeds it.

    Returns:
        Positions in `weights`, in order, 0 among them.
    """
    first = weights[0]
    others = range(1, len(weights))
    # the next one of each is the last
    lighter = sorted((index for index in others if weights[index] < first), key=lambda index: -weights[index])[::-1]
    heavier = sorted((index for index in others if weights[index] >= first), key=lambda index: weights[index])[::-1]
    chosen, heaviest, total = [0], first, first
    best, count = INFINITE, 1
    while True:
        size = len(chosen)
        waste = (OVERHEAD * limit + heaviest * size - total) / size
        if waste <= best:
            best, count = waste, size
        if size == most:
            break
        size += 1
        down = heaviest * size - total - weights[lighter[-1]] if lighter and heaviest * size <= limit else INFINITE
        longer = weights[heavier[-1]] if heavier else INFINITE
        up = longer * size - total - longer if longer * size <= limit else INFINITE
        if down == up == INFINITE:
            break
        chosen.append(lighter.pop() if down < up else heavier.pop())
        total += weights[chosen[-1]]
        heaviest = max(heaviest, weights[chosen[-1]])
    return sorted(chosen[:count])
