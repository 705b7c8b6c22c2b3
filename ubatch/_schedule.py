"""Which items leave together: first in, first out.

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
    from typing import Protocol

    class Item(Protocol):
        """What the schedule knows of an item."""

        arrived: float
        """Monotonic time of its arrival, in seconds."""

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

    def __init__(self) -> None:
        self.queue: deque[Item] = deque()
        self.append: Callable[[Item], None] = self.queue.append
        self.stale = False
        """Set by whoever sets `left` on an item: some of the queue may not count any more."""

    def __len__(self) -> int:
        return len(self.queue)

    def oldest(self) -> float | None:
        """Arrival of the item that leaves next; `None` if the queue is empty. O(1)."""
        try:
            return self.queue[0].arrived
        except IndexError:
            return None

    def take(self, most: int, into: list[Item]) -> int:
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
            left = set()
            for item in into[held:] if held else into:
                if not item.claim():
                    left.add(id(item))
            if not left:
                break
            gone += len(left)
            into[:] = [item for item in into if id(item) not in left]
            held = len(into)
        return gone

    def purge(self, most: int) -> int:
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
        while True:
            try:
                return list(islice(self.queue, most))
            except RuntimeError:  # something was appended between the making of the iterator and its first step
                pass

    def withdraw(self, item: Item) -> bool:
        """Take back an item that nobody has taken; `False` if somebody has. O(n)."""
        try:
            self.queue.remove(item)
        except ValueError:
            return False
        return True

    def _check(self) -> None:
        assert all(not item.left for item in self.queue) or self.stale
