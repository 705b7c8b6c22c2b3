"""What child processes did, and how they are: the counters of a crew, and the frozen snapshot of them.

Any number of threads may note at once, and any may look: a note is two appends to lists, each atomic.
"""

from __future__ import annotations

import os

from . import _native
from .stats import Histogram, _Frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLD = 1024
"""Calls that are noted before they are folded."""


class ChildStats(_Frozen):
    """A child process, at one moment; it cannot be changed."""

    __slots__ = ("alive", "calls", "memory", "pid")

    pid: int
    """The number of the process."""
    alive: bool
    """Whether it is there."""
    calls: int
    """How many calls it was given."""
    memory: int
    """Bytes of its resident memory, blocks that it has mapped included; 0 if it cannot be told."""

    def __init__(self, **values: Any) -> None:
        super().__init__(memory=_memory_of(values["pid"]), **values)

    def __repr__(self) -> str:
        return f"ChildStats({', '.join(f'{name}={value}' for name, value in self._values().items())})"


class ProcessStats(_Frozen):
    """What the children of an executor have done since it was made, at one moment; it cannot be changed."""

    __slots__ = ("blocks", "calls", "children", "copied", "died", "handling", "passed", "received", "sent", "transfer")

    calls: int
    """Calls that were answered."""
    died: int
    """Children that died, but for those that could not start."""
    transfer: Histogram
    """Seconds that a call took beside the function itself: packing, waking, sending and unpacking, both ways."""
    handling: Histogram
    """Seconds that the function took."""
    sent: int
    """Bytes of all calls, arrays included."""
    received: int
    """Bytes of all answers."""
    copied: int
    """Buffers that were copied into shared memory, in either direction."""
    passed: int
    """Buffers that lay in shared memory, and were not copied."""
    blocks: int
    """Bytes of shared memory that this process keeps for all of its children; more than was ever touched."""
    children: tuple[ChildStats, ...]
    """The children, but for those that are being replaced."""

    def asdict(self) -> dict[str, Any]:
        """The numbers by name; histograms and children are dictionaries of their own."""
        values = self._values()
        for name in ("transfer", "handling"):
            values[name] = values[name].asdict()
        values["children"] = [child._values() for child in self.children]
        return values

    def __repr__(self) -> str:
        return f"ProcessStats({', '.join(f'{name}={value}' for name, value in self._values().items())})"


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
                sent=sent,
                received=received,
                copied=copied,
                passed=passed,
                blocks=blocks,
                children=children,
            )

    def _times(self, counts: dict[int, int], total: float) -> Histogram:
        return Histogram([(self._buckets.time_of(code), counts[code]) for code in sorted(counts)], total)
