"""What batchers and calls ask for: rules about which items leave together, and each item's terms.

Pure: no thread, lock or clock. User code, `key` and `weight`, is called in `Rules.terms` alone, by the caller.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any, Protocol

    class Asked(Protocol):
        """What is special about one call."""

        priority: float
        deadline: float
        key: Any


INFINITE = float("inf")

UNSET: Any = type("Unset", (), {"__slots__": (), "__repr__": lambda self: "<not given>"})()
"""An option that is not given, where `None` is a value."""


class Chosen:
    """A batcher, and what is asked for in some calls of it. Whatever else the batcher has, it has as well.

    Faces are added by inheritance; see `View` in `_faces` and `_loop_faces`.
    """

    __slots__ = ("_batcher", "deadline", "key", "priority")

    def __init__(self, batcher: Any, priority: float, deadline: float, key: Any) -> None:
        self._batcher = batcher
        self.priority = priority
        self.deadline = deadline
        self.key = key

    @property
    def _asked(self) -> Any:
        return self

    if not TYPE_CHECKING:  # to checkers it has the faces alone

        def __getattr__(self, name):
            if name == "_batcher":  # of a copy in the making
                raise AttributeError(name)
            return getattr(self._batcher, name)

    def __repr__(self) -> str:
        return f"<View of {self._batcher!r} priority={self.priority} deadline={self.deadline} key={self.key!r}>"


class Rules:
    """What a batcher's options say about which items leave together, and how many may wait.

    Args:
        key: called with a call's arguments; `None` if all items go together.
        weight: likewise; `None` if each counts 1.
        max_weight: the largest batch by weight; infinite for no limit.
        padded: whether a batch weighs its number of items times the heaviest of them, not their sum.
        deadline: seconds from its arrival by which an item must have its result; infinite for no limit.
        aging: seconds in which a waiting item gains one level of priority; may be infinite.
        max_queue: the largest number of items that may wait; `None` for no limit.
        block: whether those beyond wait for room, instead of being refused.
    """

    __slots__ = ("aging", "block", "deadline", "key", "max_queue", "max_weight", "padded", "weight")

    def __init__(
        self,
        key: Callable[..., Hashable] | None = None,
        weight: Callable[..., float] | None = None,
        max_weight: float = INFINITE,
        padded: bool = False,
        deadline: float = INFINITE,
        aging: float = 1.0,
        max_queue: int | None = None,
        block: bool = False,
    ) -> None:
        self.key = key
        self.weight = weight
        self.max_weight = max_weight
        self.padded = padded
        self.deadline = deadline
        self.aging = aging
        self.max_queue = max_queue
        self.block = block

    @property
    def special(self) -> bool:
        """Whether each item has terms."""
        return self.key is not None or self.weight is not None or self.deadline < INFINITE or self.max_queue is not None

    def terms(self, args: tuple[Any, ...], kwargs: dict[str, Any], arrived: float, asked: Asked | None) -> Terms:
        """The terms of a call.

        Args:
            args, kwargs: the call's arguments.
            arrived: monotonic time, in seconds.
            asked: what is special about this very call.

        Raises:
            TypeError, ValueError: the key cannot be hashed, or the weight is not a number of at least 0.
            Exception: what `key` and `weight` raise.
        """
        terms = Terms()
        deadline = self.deadline
        if asked is None or asked.key is UNSET:
            terms.key = self.key(*args, **kwargs) if self.key is not None else None
        else:
            terms.key = asked.key
        hash(terms.key)
        if self.weight is not None:
            terms.weight = checked_weight(self.weight(*args, **kwargs))
        if asked is not None:
            terms.priority = asked.priority
            deadline = asked.deadline
        if deadline < INFINITE:
            terms.deadline = deadline
            terms.expires = arrived + deadline
        return terms

    def rank(self, priority: float, since: float) -> tuple[float, float]:
        """What items are ordered by that have a priority and have waited since then."""
        if self.aging == INFINITE:
            return priority, since
        return since + self.aging * priority, since


def checked_weight(weight: Any) -> float:
    """Raises TypeError, ValueError: it is not a finite number of at least 0."""
    if not hasattr(weight, "__float__"):
        raise TypeError(f"an item's weight must be a number, not {weight!r}")
    try:
        value = float(weight)
    except OverflowError:  # an integer that is too large
        value = INFINITE
    if not 0.0 <= value < INFINITE:
        raise ValueError(f"an item's weight must be at least 0 and finite, not {weight!r}")
    return value


class Terms:
    """What a call asks for beyond its arguments."""

    __slots__ = ("absent", "behind", "deadline", "expires", "inside", "key", "lane", "priority", "since", "weight")

    priority: float
    """Lower runs first."""
    key: Hashable
    """Items of different keys share no batch."""
    weight: float
    """Counts towards `max_weight`; at least 0."""
    deadline: float
    """Seconds from its arrival by which it must have its result."""
    expires: float
    """That moment, on the monotonic clock."""
    behind: float
    """Seconds that its result will need from there: of the steps behind, if the batcher is one of a flow's."""
    since: float
    """Since when it has waited: its arrival, but not before that of the item that was appended before it."""
    inside: bool
    """Whether it counts among those that wait."""
    absent: bool
    """Whether its caller is known to have left before it came in."""
    lane: Any
    """Where it is queued; `None` before it is sorted, and once it is gone."""

    def __init__(self) -> None:
        self.priority = 0
        self.key = None
        self.weight = 1.0
        self.deadline = self.expires = INFINITE
        self.behind = self.since = 0.0
        self.lane = None
        self.inside = False
        self.absent = False

    @property
    def due(self) -> float:
        """When the batcher is to be done with it."""
        return self.expires - self.behind


def terms_of(item: Any) -> Terms:
    """The terms of an item; those of one that asks for nothing, if it has none."""
    terms: Terms | None = item.terms
    if terms is None:
        terms = item.terms = Terms()
    return terms
