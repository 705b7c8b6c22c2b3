"""What is aimed at, as data: the report reads it beside the results and says what is met.

A target looks at the median of a contender's figure in one cell: by itself; as a ratio, the median of the ratios
within the rounds, to what it is beside; or as the distance from it.
"""

from __future__ import annotations

from dataclasses import dataclass

BEST_PEER = "best peer"
"""Whichever of the other libraries is best at that cell, by whatever face."""

IDEAL = "ideal"
"""The closed form of the cell."""


@dataclass(frozen=True)
class Target:
    """One bound.

    Args:
        group: the results file, without its ending.
        cell: the cell's id.
        figure: the key in the samples.
        beside: contenders that it is compared with, each of which it must hold for; `BEST_PEER` or `IDEAL` alone;
            empty for the figure by itself.
        least: at least; for the figure, the ratio or the distance.
        most: at most.
        contender: who must reach it.
        above: whether the distance from `beside` is bounded, not the ratio.
    """

    group: str
    cell: str
    figure: str
    beside: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    contender: str = "ubatch"
    above: bool = False

    def met(self, value: float) -> bool:
        """Whether `value`, a figure, a ratio or a distance as the target says, is good enough."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def _one_caller() -> list[Target]:
    """A call may cost so many ping-pongs; a lone one, which idled before, no more than that beyond its handler."""
    bounds = {"two cores": 1.25, "one core": 1.6}
    cells = ["round trip; {}", *(f"lone call, handler {one}; {{}}" for one in ("sleeps 1 ms", "computes 1 ms"))]
    return [
        Target("round-trip", cell.format(cores), "time", ("ping-pong",), most=bound)
        for cell in cells
        for cores, bound in bounds.items()
    ]


def _gathering() -> list[Target]:
    """Callers that come back at once are waited for: nearly the closed form, nearly a loop that always waits."""
    bounds = {2: 0.95, 8: 0.93, 32: 0.93}
    found = [
        Target("closed-loop", f"{handler}, K = {callers}", "rate", (IDEAL,), least=bound)
        for handler in ("gpu", "net")
        for callers, bound in bounds.items()
    ]
    return [*found, Target("closed-loop", "gpu, K = 64", "rate", ("bare loop",), least=0.97)]


TARGETS: tuple[Target, ...] = (
    *_one_caller(),
    Target("threads", "8 threads; free", "rate", (BEST_PEER,), least=20.0),
    Target("threads", "64 threads; free", "rate", (BEST_PEER,), least=2.5),
    Target("threads", "64 threads; two cores", "rate", (BEST_PEER,), least=2.5),
    Target("threads", "64 threads; one core", "rate", (BEST_PEER,), least=10.0),
    Target("threads", "64 greenlets; free", "rate", ("ubatch, threads",), least=2.0),
    Target("tasks", "64 tasks; free", "rate", (BEST_PEER,), least=5.0, contender="ubatch.aio"),
    Target("tasks", "1000 tasks; free", "rate", (BEST_PEER,), least=5.0, contender="ubatch.aio"),
    Target("tasks", "1000 tasks; free", "rate", ("batched",), least=3.0),
    Target("tasks", "1000 tasks; free", "wake-ups", most=1.0),
    *_gathering(),
    Target("import", "import", "time", ("bare interpreter",), most=0.015, above=True),
)


def _beside_aqueduct() -> list[Target]:
    """One step, 32 in flight, called by tasks, as aqueduct is, and by threads."""
    bounds = {"averages": 3.0, "looks": 5.0, "sums": 2.0}
    return [
        Target("pipelines", f"{handler}, 1 step, 32 in flight", "rate", ("aqueduct",), least=bound, contender=face)
        for handler, bound in bounds.items()
        for face in ("ubatch", "ubatch, tasks")
    ]


PIPELINES: tuple[Target, ...] = tuple(_beside_aqueduct())
"""Those of `python -m benchmarks.pipelines`."""
