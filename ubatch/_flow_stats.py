"""What flows and their steps have done: frozen snapshots."""

from __future__ import annotations

from ._histogram import Frozen
from .stats import types_since

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._histogram import Histogram
    from ._process_stats import ProcessStats
    from .stats import Stats


class StepStats(Frozen):
    """What a step of a flow has done, at one moment; it cannot be changed."""

    __slots__ = ("batches", "name")

    name: str
    """That of its batcher, "<flow>.<step>"."""
    batches: Stats
    """What its batcher has done; see `ubatch.Stats`."""

    @property
    def processes(self) -> ProcessStats | None:
        """What its child processes have done; `None` if it has none, or none was ever started."""
        return self.batches.processes

    def asdict(self) -> dict[str, Any]:
        """The numbers of `batches` by name, and the name."""
        return {"name": self.name, **self.batches.asdict()}

    def __sub__(self, before: StepStats) -> StepStats:
        """What was done since an earlier snapshot. Raises ValueError: it is not an earlier one of this step."""
        if not isinstance(before, StepStats):
            return NotImplemented
        if self.name != before.name:
            raise ValueError(f"a snapshot of step {before.name!r} cannot be taken from one of {self.name!r}")
        return StepStats(name=self.name, batches=self.batches - before.batches)

    def __repr__(self) -> str:
        return f"StepStats(name={self.name!r}, batches={self.batches!r})"


class FlowStats(Frozen):
    """What a flow has done since it was made, at one moment; it cannot be changed."""

    __slots__ = ("cancelled", "error_types", "expired", "rejected", "running", "steps", "time")

    running: int
    """Items that are under way, now."""
    time: Histogram
    """Seconds from an item's arrival to its result or its error, through all steps."""
    error_types: tuple[tuple[str, int], ...]
    """Items whose callers got an exception, by the name of its type; without those that follow."""
    cancelled: int
    """Items whose callers left before that: a cancelled future or task, an interrupted call."""
    expired: int
    """Items whose deadline passed before that."""
    rejected: int
    """Items that were refused as the queue was full."""
    steps: tuple[StepStats, ...]
    """Each step's own numbers."""

    @property
    def items(self) -> int:
        """Items that came to a result or an error."""
        return self.time.count

    @property
    def errors(self) -> int:
        """How many of these came to an error."""
        return sum(count for _, count in self.error_types)

    @property
    def submitted(self) -> int:
        """Items accepted."""
        return self.running + self.items + self.cancelled + self.expired

    def asdict(self) -> dict[str, Any]:
        """The numbers by name; histograms, errors and steps are dictionaries of their own."""
        values = {name: getattr(self, name) for name in ("submitted", "running", "items", "errors")}
        values |= {name: getattr(self, name) for name in _UNSERVED}
        values |= {"error_types": dict(self.error_types), "time": self.time.asdict()}
        return {**values, "steps": [step.asdict() for step in self.steps]}

    def __sub__(self, before: FlowStats) -> FlowStats:
        """What was done since an earlier snapshot. Raises ValueError: it is not an earlier one of this flow."""
        if not isinstance(before, FlowStats):
            return NotImplemented
        try:
            counts = {name: getattr(self, name) - getattr(before, name) for name in _UNSERVED}
            if min(counts.values()) < 0:
                raise ValueError("a count has become less")
            return FlowStats(
                **counts,
                running=self.running,
                time=self.time - before.time,
                error_types=types_since(self.error_types, before.error_types),
                steps=tuple(now - then for now, then in zip(self.steps, before.steps, strict=True)),
            )
        except ValueError as error:  # of a histogram, or a step, it may be
            raise ValueError(
                "only an earlier snapshot can be taken from a later one, of the same flow, in the same process"
            ) from error

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in ("submitted", "running", "items", "errors")}
        shown |= self._values()
        return f"FlowStats({', '.join(f'{name}={value}' for name, value in shown.items())})"


_UNSERVED = ("cancelled", "expired", "rejected")
