"""What flows and their steps have done: frozen snapshots."""

from __future__ import annotations

from ._histogram import Frozen

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
        values |= {name: getattr(self, name) for name in ("cancelled", "expired", "rejected")}
        values |= {"error_types": dict(self.error_types), "time": self.time.asdict()}
        return {**values, "steps": [step.asdict() for step in self.steps]}

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in ("submitted", "running", "items", "errors")}
        shown |= self._values()
        return f"FlowStats({', '.join(f'{name}={value}' for name, value in shown.items())})"
