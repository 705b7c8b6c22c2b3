"""How many items may wait: who is let in, who is refused, who waits in the lobby for room.

Pure: no thread, lock or clock. Guarantees: never more than `max_queue` items are inside whose callers still wait;
those in the lobby come in in their order; a fork finds each in `waiting()` or in the queue, and so does whoever goes
on after an exception. Assumptions: everything but `depart` and `waiting` is for one thread at a time, and bears being
come upon by itself further up on the same stack; that a deque is extended by what is taken from another list is a
single step.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import repeat, starmap

from ._schedule import copy_of
from ._terms import terms_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from ._terms import Rules, Terms

SLACK = 64
"""Items without callers that are kept in the lobby beside as many others."""


class Admission:
    """The door of a queue."""

    __slots__ = ("_absent", "_coming", "_departed", "_inside", "_queue", "lobby", "rules")

    def __init__(self, queue: deque[Any], rules: Rules) -> None:
        self.rules = rules
        self.lobby: deque[Any] = deque()
        """Items that wait for there to be room in the queue."""
        self._coming: list[Any] = []  # on their way from the lobby to the queue
        self._queue = queue
        self._inside = 0  # items in the queue that count
        self._absent = 0  # items in the lobby whose callers have left
        self._departed: deque[Terms] = deque()  # of items whose callers have left, to be accounted for

    def offer(self, items: Sequence[Any], block: bool, whole: bool = True) -> int | None:
        """Let in as many as there is room for.

        Args:
            items: to be let in, in order; they have terms.
            block: whether the others wait in the `lobby`; else they are refused.
            whole: whether all are refused then, not just the last of them.

        Returns:
            How many are in the queue now; `None` if all were refused.
        """
        self._account()
        room = 0 if self.lobby or self._coming else min(len(items), self._room())
        if room < len(items) and whole and not block:
            return None
        for item in items[:room]:
            self._enter(item.terms)
        self._queue.extend(items[:room])
        if block:
            self.lobby.extend(items[room:])
        return room

    def let_in(self) -> list[Any]:
        """Move items from the lobby to the queue, as there is room; says which."""
        self._account()
        moved: list[Any] = []
        lobby, coming = self.lobby, self._coming
        while coming or (lobby and self._room()):
            if not coming:
                try:
                    coming.extend(starmap(lobby.popleft, repeat((), min(len(lobby), self._room()))))
                except IndexError:  # let in further up on this stack
                    pass
            for item in coming:
                if item.left:
                    self._absent -= item.terms.absent
                else:
                    self._enter(item.terms)
            moved += coming
            self._queue.extend(starmap(coming.pop, repeat((0,), len(coming))))
        return moved

    def waiting(self) -> list[Any]:
        """All that have not been let in. May be called by any thread at any time."""
        return [*copy_of(self.lobby), *self._coming]

    def leave(self, terms: Terms) -> None:
        """An item is in the queue no more, or its caller is not there any more."""
        if terms.inside:
            terms.inside = False
            self._inside -= 1

    def depart(self, item: Any) -> None:
        """An item's caller has left. May be called by any thread at any time."""
        terms = item.terms
        if self.rules.max_queue is None or terms is None:
            return
        if terms.inside or self.lobby or self._coming:  # else it runs: nobody may ever look at it again
            self._departed.append(terms)

    def begin(self, items: Iterable[Any]) -> None:
        """There is a bound from now on: count the items that are in the queue already."""
        for item in items:
            if not item.left:
                self._enter(terms_of(item))

    def clear(self, into: list[Any]) -> None:
        """Move all that wait in the lobby to a list."""
        into.extend(self._coming)
        self._coming.clear()
        into.extend(starmap(self.lobby.popleft, repeat((), len(self.lobby))))
        for item in into:
            self.leave(item.terms)
        self._absent = 0

    def _room(self) -> int:
        most = self.rules.max_queue
        return sys.maxsize if most is None else max(0, most - self._inside)

    def _enter(self, terms: Terms) -> None:
        if not terms.inside:
            terms.inside = True
            self._inside += 1

    def _account(self) -> None:
        """Account for those who have left."""
        while self._departed:
            try:
                terms = self._departed.popleft()
            except IndexError:  # done further up on this stack
                return
            if terms.inside:
                self.leave(terms)
            elif not terms.absent:  # in the lobby, perhaps
                terms.absent = True
                self._absent += 1
        if 2 * self._absent > len(self.lobby) + SLACK:
            self._absent = 0
            for item in [item for item in copy_of(self.lobby) if item.left]:
                try:
                    self.lobby.remove(item)
                except ValueError:  # gone further up on this stack
                    pass

    def _check(self) -> None:
        assert self._inside >= 0
        assert not self._coming
        assert all(not item.terms.inside for item in self.lobby)
