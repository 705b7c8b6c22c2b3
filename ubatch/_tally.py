"""What child processes did, and how they are: the counters of a crew.

Any number of threads may note at once, and any may look: a note is two appends to lists, each atomic.
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
        self._lock = _native.reentrant_lock()  # guards all below but `died` and `_noted`
        self._noted: list[tuple[float, float, int, int, int, int]] = []
        self._transfer: dict[int, int] = {}
        self._handling: dict[int, int] = {}
        self._sums = [0.0, 0.0, 0, 0, 0, 0]
        self._calls = 0
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
        with self._lock:
            noted = self._noted[:]
            del self._noted[: len(noted)]
            if not noted:
                return
            columns = [*zip(*noted, strict=True)]
            self._buckets.count_times(self._transfer, columns[0])
            self._buckets.count_times(self._handling, columns[1])
            self._sums = [total + sum(column) for total, column in zip(self._sums, columns, strict=True)]
            self._calls += len(noted)

    def snapshot(self, children: tuple[ChildStats, ...], blocks: int) -> ProcessStats:
        """Freeze the numbers.

        Args:
            children: those that there are.
            blocks: bytes of shared memory.
        """
        with self._lock:
            self._fold()
            transfer, handling, sent, received, copied, passed = self._sums
            return ProcessStats(
                calls=self._calls,
                died=self.died,
                transfer=self._times(self._transfer, transfer),
                handling=self._times(self._handling, handling),
                sent=int(sent),
                received=int(received),
                copied=int(copied),
                passed=int(passed),
                blocks=blocks,
                children=children,
            )

    def _times(self, counts: dict[int, int], total: float) -> Histogram:
        return Histogram([(self._buckets.time_of(code), counts[code]) for code in sorted(counts)], total)
