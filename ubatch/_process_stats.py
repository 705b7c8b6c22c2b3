"""What child processes did, and how they are, as their users see it. Pure."""

from __future__ import annotations

from ._histogram import Frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._histogram import Histogram


class ChildStats(Frozen):
    """A child process, at one moment; it cannot be changed."""

    __slots__ = ("alive", "calls", "memory", "pid")

    pid: int
    """The number of the process; 0 if there is none, as it has not been started yet, or is about to be replaced."""
    alive: bool
    """Whether it is there."""
    calls: int
    """How many calls it was given."""
    memory: int
    """Bytes of its resident memory, blocks that it has mapped included; 0 if that cannot be told."""

    def __repr__(self) -> str:
        return f"ChildStats({', '.join(f'{name}={value}' for name, value in self._values().items())})"


class ProcessStats(Frozen):
    """What the children of an executor have done since it was made, at one moment; it cannot be changed.

    `after - before` is what they did between two snapshots, with `blocks` and `children` as they were at the end.
    """

    __slots__ = ("blocks", "calls", "children", "copied", "died", "handling", "passed", "received", "sent", "transfer")

    calls: int
    """Calls that were answered."""
    died: int
    """Children that died or were killed while they had work or waited for some; not those that could not start."""
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
    """The children, in the order of their places."""

    def asdict(self) -> dict[str, Any]:
        """The numbers by name; histograms and children are dictionaries of their own."""
        values = self._values()
        for name in ("transfer", "handling"):
            values[name] = values[name].asdict()
        values["children"] = [child._values() for child in self.children]
        return values

    def __add__(self, other: ProcessStats) -> ProcessStats:
        """What both have done."""
        if not isinstance(other, ProcessStats):
            return NotImplemented
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        return ProcessStats(**sums, blocks=max(self.blocks, other.blocks), children=(*self.children, *other.children))

    def __sub__(self, before: ProcessStats) -> ProcessStats:
        """What was done since an earlier snapshot. Raises ValueError: it is not an earlier one of this executor."""
        if not isinstance(before, ProcessStats):
            return NotImplemented
        try:
            changes = {name: getattr(self, name) - getattr(before, name) for name in _SUMS}
            if min(change for change in changes.values() if isinstance(change, int)) < 0:
                raise ValueError("a count has become less")
        except ValueError as error:  # of a histogram, it may be
            raise ValueError(
                "only an earlier snapshot can be taken from a later one, of the same executor, in the same process"
            ) from error
        return ProcessStats(**changes, blocks=self.blocks, children=self.children)

    def without_children(self) -> ProcessStats:
        """What was done by children that are no more."""
        return ProcessStats(**{**self._values(), "children": ()})

    def __repr__(self) -> str:
        return f"ProcessStats({', '.join(f'{name}={value}' for name, value in self._values().items())})"


_SUMS = ("calls", "died", "transfer", "handling", "sent", "received", "copied", "passed")
