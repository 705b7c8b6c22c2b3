"""Which items leave together: first in, first out. What is not as simple is in `_lanes`.

Pure in that it decides without a clock, a lock or a thread of its own. It is shared, though, so here is who
may do what. Guarantees: an item is taken exactly once, in the order of `append`. Assumptions, each of them a
test: `deque.append`, `deque.popleft` and a `list.extend` fed by them are single steps under the GIL, so any
thread may append, and a fork finds each item either here or in the list that `take` fills.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, repeat, starmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Hold(Protocol):
        """See `_policy`."""

        until: float
        wake_at: int

    class Policy(Protocol):
        """What the schedule knows of a policy; see `_policy`."""

        cost: Any
        reason: str

        def decide(self, now: float, queued: int, oldest: float, max_size: int, newest: float) -> Hold | None:
            """Say how long to hold; `None` to cut."""
            ...

    class Item(Protocol):
        """What the schedule knows of an item."""

        arrived: float
        """Monotonic time of its arrival, in seconds."""
        terms: Any
        """What its call asks for beyond its arguments; `None` if that is nothing. See `_lanes`."""

        @property
        def left(self) -> bool:
            """Whether its caller is gone; final once it is true."""
            ...

        def claim(self) -> bool:
            """Take the item for the handler; `False` if its caller left before. Called once."""
            ...


_ONCE = ((),)


class Fifo:
    """First in, first out. `append` is safe from any thread, `take` and `purge` are for one worker at a time."""

    __slots__ = ("append", "queue", "stale")

    special = False
    """Whether items have terms; see `Lanes`."""
    sorted = 0
    """Items that wait elsewhere than in `queue`."""

    def __init__(self) -> None:
        self.queue: deque[Item] = deque()
        self.append: Callable[[Item], None] = self.queue.append
        self.stale = False
        """Set by whoever sets `left` on an item: some of the queue may not count any more."""

    def __len__(self) -> int:
        return len(self.queue)

    def hold(self, policy: Policy, now: float, most: int) -> Hold | None:
        """What a policy says of what is queued. O(1).

        Args:
            policy: to be asked.
            now: monotonic time, in seconds.
            most: the largest batch, in items.

        Returns:
            `None` to cut a batch now, or how long to hold; `wake_at` is the length of `queue` from which on to ask
            again before that.

        Raises:
            IndexError: nothing is queued.
        """
        queue = self.queue
        oldest, newest = queue[0].arrived, queue[-1].arrived
        return policy.decide(now, len(queue), oldest, most, newest)

    def take(self, most: int, into: list[Item], now: float = 0.0) -> int:
        """Move the next items, `most` at most, into the empty list `into`, and claim them. O(items moved).

        Returns:
            How many more were thrown away because their callers had left.
        """
        queue = self.queue
        gone = held = 0
        while held < most and queue:
            try:
                count = min(most - held, len(queue))
                into.extend(starmap(queue.popleft, _ONCE if count == 1 else repeat((), count)))
            except IndexError:  # stop() took the rest meanwhile
                pass
            left = claim_all(into, held)
            if not left:
                break
            gone += left
            held = len(into)
        return gone

    def empty(self, into: list[Item]) -> None:
        """Move all items into the empty list `into`, unclaimed."""
        queue = self.queue
        while queue:
            try:
                into.extend(starmap(queue.popleft, repeat((), len(queue))))
            except IndexError:  # somebody else took the rest
                pass

    def purge(self, most: int, now: float = 0.0) -> int:
        """Throw away those of the next `most` items whose callers left, until that many are there for the taking.

        After it, neither the length of the queue (up to `most`) nor the age of its oldest item is owed to an
        item that does not count. O(most) for each item thrown away, however long the queue.

        Returns:
            How many there were.
        """
        gone = 0
        self.stale = False  # before the look: whoever leaves from here on sets it again
        while dead := [item for item in self.next(most) if item.left]:
            gone += sum(map(self.withdraw, dead))
        if len(self.queue) > most:
            self.stale = True  # the rest has not been looked at
        return gone

    def next(self, most: int) -> list[Item]:
        """The items that leave next, `most` at most, as they are at one moment."""
        return copy_of(self.queue, most)

    def withdraw(self, item: Item) -> bool:
        """Take back an item that nobody has taken; `False` if somebody has. O(n)."""
        try:
            self.queue.remove(item)
        except ValueError:
            return False
        return True

    def depart(self, item: Item) -> None:
        """An item's caller has left: some of the queue may not count any more. May be called at any time."""
        self.stale = True

    def _check(self) -> None:
        assert all(not item.left for item in self.queue) or self.stale


def claim_all(items: list[Item], start: int = 0) -> int:
    """Claim the items from position `start` on, and drop those whose callers have left.

    Returns:
        How many these were.
    """
    left = set()
    for item in items[start:] if start else items:
        if not item.claim():
            left.add(id(item))
    if left:
        items[:] = [item for item in items if id(item) not in left]
    return len(left)


def copy_of(queue: deque[Item], most: int | None = None) -> list[Item]:
    """The first items of a queue, `most` at most, as they are at one moment."""
    while True:
        try:
            return list(islice(queue, most))
        except RuntimeError:  # something was appended between the making of the iterator and its first step
            pass
