"""Memory that is used again as soon as nothing can reach it.

Pure: no thread, lock or clock; safe to use from several threads at once.
"""

from __future__ import annotations

from collections import deque


class Blocks:
    """Memory of batches, to be used again once nothing refers to it."""

    LIMIT = 32
    """Blocks of about one size, at most; where more are in use, the library forgets those that it lent first."""

    def __init__(self) -> None:
        self._blocks: dict[int, deque[bytearray]] = {}

    def take(self, size: int) -> memoryview | None:
        """At least `size` bytes that nothing else refers to; `None` for none. O(blocks of that size in use)."""
        if not size:
            return None
        step = 1 << max(size.bit_length() - 3, 12)
        size = -(-size // step) * step  # a quarter more at most, as the next batch is seldom of the very same size
        blocks = self._blocks.get(size)
        if blocks is None:
            blocks = self._blocks.setdefault(size, deque(maxlen=self.LIMIT))
        block = _popped(blocks) or bytearray(size)
        view = memoryview(block)  # before others find it
        blocks.append(block)
        return view


def _popped(blocks: deque[bytearray]) -> bytearray | None:
    """One that is free, taken out; of several threads, one has it."""
    for _ in range(len(blocks)):
        try:
            block = blocks.popleft()
        except IndexError:
            break
        if _is_free(block):
            return block
        blocks.append(block)
    return None


def _is_free(block: bytearray) -> bool:
    """Whether nothing refers to its memory."""
    try:
        block.pop()
    except BufferError:
        return False
    block.append(0)  # there is room: nothing moves
    return True


def no_blocks(size: int) -> None:
    """Fresh memory for each batch."""
