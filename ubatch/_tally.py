"""What child processes did, and how they are: the counters of a crew.

Any number of threads may note at once, and any may look, also from a signal handler or a `__del__`: a note is one
append to a list, which is atomic. Folding works as in `_recorder`: the new numbers are worked out beside the old ones
and take their place in one step, so that a look from within a fold, further up on the same stack, sees what was folded
before.
"""

from __future__ import annotations

import os

from . import _native
from ._histogram import Histogram
from ._process_stats import ChildStats, ProcessStats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLD = 1024
"""Calls that are noted before they are folded."""


def child_stats(pid: int = 0, alive: bool = False, calls: int = 0) -> ChildStats:
    """What is to be told of a child."""
    return ChildStats(pid=pid, alive=alive, calls=calls, memory=_memory_of(pid) if alive else 0)


def _memory_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


class Tally:
    """The mutable side of `ProcessStats`."""

    def __init__(self) -> None:
        from . import _buckets

        self._buckets = _buckets
        self._lock = _native.reentrant_lock()  # held by who folds
        self._noted: list[tuple[float, float, int, int, int, int]] = []
        # calls by the bucket of their transfer, and of the handler's time; the sums of what is noted; how many calls
        self._folded: tuple[dict[int, int], dict[int, int], list[float], int] = ({}, {}, [0.0, 0.0, 0, 0, 0, 0], 0)
        self.died = 0

    def note(self, seconds: float, answer: Any, size: int, copied: int, passed: int) -> None:
        """A call was answered.

        Args:
            seconds: that it took in all, but for waiting for a child.
            answer: what came.
            size: bytes of what was sent.
            copied, passed: buffers of it.
        """
        transfer = max(0.0, seconds - answer.seconds)
        copied, passed = copied + answer.copied, passed + answer.passed
        self._noted.append((transfer, answer.seconds, size, answer.size, copied, passed))
        if len(self._noted) >= FOLD:
            self._fold()

    def _fold(self) -> None:
        if self._lock._is_owned():
            return
        with self._lock:
            noted = self._noted[:]
            count = len(noted)
            if not noted:
                return
            columns = [*zip(*noted, strict=True)]
            packed = self._buckets.packers[count]
            transfer, handling, sums, calls = self._folded
            transfer, handling = transfer.copy(), handling.copy()
            self._buckets.count_times(transfer, packed(*columns[0]))
            self._buckets.count_times(handling, packed(*columns[1]))
            sums = [total + sum(column) for total, column in zip(sums, columns, strict=True)]
            folded, done = (transfer, handling, sums, calls + count), slice(count)
            # in one step: no call, and nothing to be allocated
            del self._noted[done]
            self._folded = folded

    def snapshot(self, children: tuple[ChildStats, ...], blocks: int) -> ProcessStats:
        """Freeze the numbers.

        Args:
            children: those that there are.
            blocks: bytes of shared memory.
        """
        self._fold()
        transfers, handlings, sums, calls = self._folded
        transfer, handling, sent, received, copied, passed = sums
        return ProcessStats(
            calls=calls,
            died=self.died,
            transfer=Histogram(self._buckets.levels(transfers), transfer),
            handling=Histogram(self._buckets.levels(handlings), handling),
            sent=int(sent),
            received=int(received),
            copied=int(copied),
            passed=int(passed),
            blocks=blocks,
            children=children,
        )
