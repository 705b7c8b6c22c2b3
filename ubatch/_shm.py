"""Blocks of memory that a process shares with its children, and uses again once nobody refers to them.

Purpose: arrays travel between a process and its children without being sent. A `Block` is memory that has no name in
any file system: who is given its descriptor can map it, and it is gone with the last process that has. So nothing can
be left behind, however processes end. All blocks are made by the parent, whose `Pool` they belong to.

Guarantees:
- A block is given out again only when no object here refers to its memory, and no child is known to. (But a cycle of
  objects that has a memoryview and a `__del__` may find, while that is collected, that others have it.)
- In a forked child blocks are the parent's: they are read, but never given out.

How. Whoever refers to a block's memory does so through its exporter, an object that is there for nothing else: views,
and arrays made of them, keep it alive, and when it goes the block is `loose`. That may be at any moment in any thread,
so it is but noted then, in one step, and found by the next that looks for a free block.

Assumptions: `_lock` is held for a few steps only; it is reentrant, as a collection may come upon it and run a
`__del__`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
import weakref
from bisect import bisect_right, insort
from collections import deque
from itertools import count

from . import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LEAST = 1 << 16
"""Bytes of the smallest block; others have twice, four times, … as many. Pages that nobody touches take no memory."""

SPARE = 1 << 26
"""Bytes of free blocks that are kept, or eight times those of the block that was freed last, if that is more."""

STALE = 512
"""Free blocks of a size that has not been asked for as many times are let go."""

_numbers = count(1)


class Block:
    """Shared memory, mapped into this process.

    Args:
        number: which block it is, in the parent and in its children.
        descriptor: of its memory; remains the giver's.
        size: bytes.
        loose: called with it when nothing here refers to it any more, at any moment.
    """

    __slots__ = ("_array", "_exporter", "_loose", "address", "descriptor", "held", "map", "number", "size", "spoiled")

    def __init__(self, number: int, descriptor: int, size: int, loose: Callable[[Block], object] | None = None) -> None:
        self.number = number
        self.descriptor = descriptor
        self.size = size
        self.map = mmap.mmap(descriptor, size)
        self.held: set[Any] = set()  # children that refer to it
        self.spoiled = False  # whether a forked process may refer to it
        self._array = ctypes.c_ubyte * size
        self._exporter: Any = None
        self._loose = loose
        self.address = ctypes.addressof(self._array.from_buffer(self.map))

    def view(self) -> memoryview:
        """All of it, as writable bytes. Whatever is made of this keeps the block from being used again."""
        exporter = self._exporter and self._exporter()
        if exporter is None:
            exporter = self._array.from_buffer(self.map)
            self._exporter = weakref.ref(exporter, None if self._loose is None else self._left)
        return memoryview(exporter).cast("B")

    @property
    def referred(self) -> bool:
        """Whether anything here refers to its memory."""
        return self._exporter is not None and self._exporter() is not None

    def _left(self, _: object) -> None:
        loose = self._loose
        if loose is not None:
            loose(self)

    def close(self) -> None:
        """Unmap it: nothing refers to it any more, or will when garbage is collected."""
        self._loose = self._exporter = None
        try:
            self.map.close()
        except BufferError:
            pass


class Mapped:
    """The blocks that a process knows, by number and by address."""

    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self._ends: list[tuple[int, int]] = []  # (address, number), ascending

    def add(self, block: Block) -> None:
        """A block is known from now on."""
        self.blocks[block.number] = block
        insort(self._ends, (block.address, block.number))

    def remove(self, block: Block) -> None:
        """It is no more."""
        del self.blocks[block.number]
        self._ends.remove((block.address, block.number))

    def locate(self, raw: memoryview) -> tuple[Block, int] | None:
        """The block in which some bytes lie, and where in it; `None` if they do not, or numpy is not there to tell."""
        numpy = sys.modules.get("numpy")
        if numpy is None or not self._ends:
            return None
        return self.find(numpy.frombuffer(raw, "B").__array_interface__["data"][0], raw.nbytes)

    def find(self, address: int, size: int) -> tuple[Block, int] | None:
        """The block in which so many bytes lie, and where in it."""
        found = bisect_right(self._ends, (address, sys.maxsize)) - 1
        if found < 0:
            return None
        block = self.blocks[self._ends[found][1]]
        offset = address - block.address
        return (block, offset) if offset + size <= block.size else None


class Pool(Mapped):
    """The blocks of this process, for all of its children. Safe to use from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self._fresh()

    def _fresh(self) -> None:
        self._lock = _native.reentrant_lock()  # guards all below, and who makes an exporter
        self._free: dict[int, list[Block]] = {}  # by size; the last was used last
        self._asked: dict[int, int] = {}  # when a size was asked for last, as a number of takes
        self._loose: deque[Block] = deque()  # blocks that may be free; appended to without the lock
        self._rests = False  # whether nobody asks for blocks: then those that become free are not kept
        self._takes = 0
        self._spare = 0  # bytes of free blocks
        self.dropped = 0  # blocks, so far: so that children can be told when there are more

    def take(self, size: int) -> tuple[Block, memoryview]:
        """A block of at least `size` bytes that nobody refers to, and a view of all of it.

        Raises:
            OSError: there is no memory, or there are too many descriptors.
        """
        size = 1 << max((size - 1).bit_length(), LEAST.bit_length() - 1)
        with self._lock:
            self._sweep()
            self._rests = False
            self._takes += 1
            self._asked[size] = self._takes
            if not self._takes % STALE:
                self.trim(self._takes - STALE)
            free = self._free.get(size)
            if free:
                block = free.pop()
                self._spare -= size
            else:
                block = self._make(size)
            return block, block.view()

    def find(self, address: int, size: int) -> tuple[Block, int] | None:
        """As of `Mapped`; blocks come and go meanwhile."""
        with self._lock:
            return super().find(address, size)

    def view(self, number: int, offset: int, size: int) -> memoryview:
        """A part of a block that somebody refers to, so that it is not given out meanwhile."""
        with self._lock:
            return self.blocks[number].view()[offset : offset + size]

    def loosen(self, block: Block) -> None:
        """Somebody does not refer to it any more. May be called at any moment."""
        self._loose.append(block)
        if self._rests and self._lock.acquire(False):
            try:
                self.trim()
            finally:
                self._lock.release()

    @property
    def used(self) -> int:
        """Blocks that somebody refers to, about."""
        return len(self.blocks) - sum(map(len, [*self._free.values()])) - len(self._loose)

    @property
    def size(self) -> int:
        """Bytes of all blocks, whether their pages have been touched or not."""
        return sum(block.size for block in [*self.blocks.values()])

    def _make(self, size: int) -> Block:
        descriptor = _memory(size)
        try:
            block = Block(next(_numbers), descriptor, size, self.loosen)
        except BaseException:
            os.close(descriptor)
            raise
        self.add(block)
        return block

    def _sweep(self) -> None:
        while self._loose:
            block = self._loose.popleft()
            free = self._free.setdefault(block.size, [])
            if block.referred or block.held or block.number not in self.blocks or block in free:
                continue
            if block.spoiled:
                self._drop(block)
                continue
            free.append(block)
            self._spare += block.size
            while self._spare > max(SPARE, 8 * block.size):
                self._unspare(max(size for size, some in self._free.items() if some))

    def _unspare(self, size: int) -> None:
        self._spare -= size
        self._drop(self._free[size].pop(0))

    def trim(self, since: int | None = None) -> None:
        """Return free blocks to the system; until the next take, those that become free later as well.

        Args:
            since: only those of sizes that were asked for no later than at that take.
        """
        with self._lock:
            self._rests = since is None
            self._sweep()
            for size, free in self._free.items():
                while free and (since is None or self._asked.get(size, 0) <= since):
                    self._unspare(size)

    def _drop(self, block: Block) -> None:
        self.remove(block)
        os.close(block.descriptor)
        block.close()
        self.dropped += 1

    def _forked_here(self) -> None:
        """A process is forked that may refer to what is referred to here: not to be overwritten, ever."""
        for block in [*self.blocks.values()]:
            if block.referred:
                block.spoiled = True

    def _forked(self) -> None:
        """In the child: none of these blocks is ours. No inherited lock is touched."""
        for block in self.blocks.values():
            block._loose = None
            os.close(block.descriptor)
        self.__init__()  # type: ignore[misc]


def _memory(size: int) -> int:
    """The descriptor of memory without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ubatch")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


pool = Pool()
"""That of this process: one for all of its children, so that what one of them returns another one can be lent."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=pool._forked_here, after_in_parent=pool._forked_here, after_in_child=pool._forked)
