"""What batchers have done since the last look: the difference of two snapshots of each, summed up by name.

Guarantees: whatever a batcher counted is told once, under the name that it had then, also if the batcher was made and
forgotten between two looks, or was not wanted for a while. A forked child starts anew, as its batchers do.
"""

from __future__ import annotations

import os
import weakref
from collections import deque

from . import _native, _observing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._observing import Exporter, Observed
    from .stats import Stats

MOST_GONE = 1000
"""Batchers that were forgotten whose last snapshots are kept until somebody looks; beyond, they are summed up."""

UNSERVED = ("cancelled", "dropped", "expired", "rejected")
"""Why items were never given to the handler; counts of `Stats`."""


class Changes:
    """What the batchers that an exporter shows have done since the last look, by name. Safe to use from any thread."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._gone: deque[tuple[int, str, Stats]] = deque()
        self._renew()
        _observing.mourners.append(weakref.WeakMethod(self._mourn, _observing.mourners.remove))

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = _native.reentrant_lock()  # guards what follows
        self._seen: dict[int, Stats] = {}  # of each batcher that lives, by its number
        self._unread: dict[str, Stats] = {}  # of those that were forgotten, where there were many

    def _mourn(self, batcher: Observed) -> None:
        if not self._exporter.shows(batcher):
            self._seen.pop(batcher._number, None)
        else:
            self._gone.append((batcher._number, batcher.name, batcher.stats))
            if len(self._gone) > MOST_GONE and not self._lock._is_owned() and self._lock.acquire(False):
                try:
                    self._bury(self._unread)
                finally:
                    self._lock.release()

    def _bury(self, changes: dict[str, Stats]) -> set[int]:
        """Add what those did that were forgotten; their numbers."""
        gone = set()
        while self._gone:
            number, name, stats = self._gone.popleft()
            gone.add(number)
            add(changes, name, self._since(number, stats))
            del self._seen[number]
        return gone

    def _since(self, number: int, stats: Stats) -> Stats:
        before = self._seen.get(number)
        self._seen[number] = stats
        return stats if before is None else stats - before

    def look(self, totals: dict[str, Stats] | None = None) -> dict[str, Stats]:
        """What was done since the last look, also added to `totals`; `queued`, `running`, `a`, `c` are those of now."""
        if self._pid != os.getpid():  # a forked child, which starts anew as its batchers do
            self._renew()
            self._gone.clear()
        with self._lock:
            changes, self._unread = self._unread, {}
            gone = self._bury(changes)
            for batcher in self._exporter.batchers():
                if batcher._number not in gone:  # else it is about to be collected
                    add(changes, batcher.name, self._since(batcher._number, batcher.stats))
            if totals is not None:
                for name, stats in changes.items():
                    add(totals, name, stats)
            return changes


def add(changes: dict[str, Stats], name: str, stats: Stats) -> None:
    changes[name] = changes[name] + stats if name in changes else stats
