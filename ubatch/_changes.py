"""What batchers have done since the last look: the difference of two snapshots of each, summed up by name.

Guarantees: whatever a batcher counted is told once, under the name that it had then, also if the batcher was made and
forgotten between two looks, or was not wanted for a while; also if a look is interrupted, or another batcher's snapshot
fails. A forked child starts anew, as its batchers do.

How. A batcher that is about to be collected leaves its last snapshot, after which nobody finds it any more; a look
takes these snapshots before it finds those that live, and so has no batcher twice. It works out the new state beside
the old one, which takes its place in one step (see `_turns`).
"""

from __future__ import annotations

import os
import weakref

from . import _native, _observing
from ._log import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._observing import Exporter, Observed
    from .stats import Stats

MOST_GONE = 1000
"""Batchers that were forgotten whose last snapshots are kept until somebody looks; beyond, they are summed up."""

UNSERVED = ("cancelled", "dropped", "expired", "rejected")
"""Why items were never given to the handler; counts of `Stats`."""

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of times."""

ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the buckets of sizes."""


class Changes:
    """What the batchers that an exporter shows have done since the last look, by name. Safe to use from any thread."""

    totals: dict[str, Stats]
    """The sums of all looks, by name; no more than counts. Replaced, and never changed."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._renew()
        _everyone.add(self)
        _observing.mourners.append(weakref.WeakMethod(self._mourn, _observing.mourners.remove))

    def _renew(self) -> None:
        self._lock = _native.reentrant_lock()  # guards what follows, but for the appending to lists
        self._gone: list[_Gone] = []
        self._seen: dict[int, Stats] = {}  # of each batcher that lives, by its number
        self._unread: dict[str, Stats] = {}  # what is to be told by the next look
        self._failed: list[tuple[str, Exception]] = []  # names of batchers without a snapshot, and why
        self.totals = {}

    def _mourn(self, batcher: Observed) -> None:
        self._gone.append(_Gone(batcher, self._exporter.shows(batcher)))
        if len(self._gone) > MOST_GONE and not self._lock._is_owned() and self._lock.acquire(False):
            try:
                self._note(list)
            finally:
                self._lock.release()

    def look(self) -> dict[str, Stats]:
        """What was done since the last look; `queued`, `running`, `a`, `c` and children are those of now.

        Nothing if it is called from within a look, further up on the same stack: by a signal handler.
        """
        if self._lock._is_owned():
            return {}
        with self._lock:
            self._note(self._exporter.batchers)
            changes, totals = self._unread, self.totals.copy()
            for name, stats in changes.items():
                add(totals, name, stats.without_children())
            self._unread, self.totals = {}, totals
            return changes

    def _note(self, batchers: Callable[[], Iterable[Observed]]) -> None:
        """Add what these did, and those that were forgotten, to what is unread. The lock is held."""
        seen, unread = self._seen.copy(), self._unread.copy()
        gone = self._gone[:]
        found: list[_Gone | Observed] = [*gone, *batchers()]
        for batcher in found:
            number, name = batcher._number, batcher.name
            try:
                stats = batcher.stats
                if stats is not None:
                    add(unread, name, stats - seen[number] if number in seen else stats)
                    seen[number] = stats
            except Exception as error:
                self._failed.append((name, error))
        for last in gone:
            seen.pop(last._number, None)
        noted = slice(len(gone))
        # in one step: no call, and nothing to be allocated
        del self._gone[noted]
        self._seen, self._unread = seen, unread

    def complain(self) -> None:
        """Warn of batchers without a snapshot. Called while no lock is held, as log handlers are user code."""
        failed, self._failed = self._failed, []
        for name, error in failed:
            message = "batcher %r: its statistics cannot be told; failures since the last such warning: %d"
            report(name, 1, message, error=error)


class _Gone:
    """What a batcher that was forgotten leaves in its stead."""

    __slots__ = ("_number", "name", "stats")

    def __init__(self, batcher: Observed, is_shown: bool) -> None:
        self._number = batcher._number
        self.name = batcher.name
        self.stats = batcher.stats.without_children() if is_shown else None


def add(changes: dict[str, Stats], name: str, stats: Stats) -> None:
    """Add to what was done under a name."""
    changes[name] = changes[name] + stats if name in changes else stats


_everyone: weakref.WeakSet[Changes] = weakref.WeakSet()


def _forked() -> None:
    for changes in list(_everyone):
        changes._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
