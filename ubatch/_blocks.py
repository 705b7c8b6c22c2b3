"""Memory that is used again as soon as nothing can reach it.

Pure: no thread, lock or clock; safe to use from several threads at once.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap
    from typing import TypeAlias

    Block: TypeAlias = bytearray | mmap

LARGE = 1 << 22
"""Bytes from which on a block has pages of its own."""

PHASE = 16
"""Where in a page it begins then: where arrays of this size do, as copies are slower between unequal places."""


class Blocks:
    """Memory of batches, to be used again once nothing refers to it."""

    LIMIT = 32
    """Blocks of one size, at most; where more are in use, the library forgets those that it lent first."""

    def __init__(self) -> None:
        self._blocks: dict[int, deque[Block]] = {}

    def take(self, size: int) -> memoryview | None:
        """At least `size` bytes that nothing else refers to; `None` for none. O(blocks of that size in use)."""
        if not size:
            return None
        size = 1 << max((size - 1).bit_length(), 12)  # few sizes, as the next batch is seldom of the very same one
        blocks = self._blocks.get(size)
        if blocks is None:
            blocks = self._blocks.setdefault(size, deque(maxlen=self.LIMIT))
        block = _popped(blocks) or _made(size)
        view = memoryview(block)[-size:]  # before others find it
        blocks.append(block)
        return view


def _popped(blocks: deque[Block]) -> Block | None:
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


def _is_free(block: Block) -> bool:
    """Whether nothing refers to its memory."""
    try:
        if isinstance(block, bytearray):
            block.pop()
            block.append(0)  # there is room: nothing moves
        else:
            block.resize(len(block))  # to what it has, so that only whether it may be is found out
    except BufferError:
        return False
    return True


def _made(size: int) -> Block:
    if size < LARGE:
        return bytearray(size)
    import mmap

    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray(size)
    # private: a child process has its own. Huge pages, as numpy has them: filling small ones takes a fifth longer
    block = mmap.mmap(-1, size + PHASE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def no_blocks(size: int) -> None:
    """Fresh memory for each batch."""
