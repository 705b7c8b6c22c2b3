"""A cell of the results: who is measured with what, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .child.case import Case
from .contenders import CONTENDERS, FIXED, TASKS, plain


@dataclass(frozen=True)
class Scenario:
    """Contenders that take turns at one case.

    A contender's name may end in the face that it is called by, as in `batched, tasks`. Without, that is the case's,
    or tasks where it has no other.

    Args:
        group: the results file that the cell goes to, without its ending.
        id: what the cell is called, unique within its group.
        case: what is measured; each contender measures it under its own name and with its own settings.
        contenders: in the order of their turns.
        missing: why a contender cannot take part, by its name; it is not among `contenders`.
        others: cases of contenders that differ in more than name, face and swept settings, by the contender's name.
        ideal: figures of the closed form, by their names in the samples.
        seconds: the length of a round.
        extra: seconds that a round is thought to take beyond its length.
        rounds: at most so many are worth taking; `None` for as many as are wanted.
        afresh: whether each round has a new process and no warm-up.
        swept: whether contenders run with their swept settings, or as they come.
        best: the figure that chooses a contender's settings: the highest `rate`, the lowest of any other.
        needs: a module without which there is nothing to measure.
        patience: seconds, beyond ten times a round's length, after which a round has failed.
    """

    group: str
    id: str
    case: Case
    contenders: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Case] = field(default_factory=dict)
    ideal: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.3
    extra: float = 0.1
    rounds: int | None = None
    afresh: bool = False
    swept: bool = True
    best: str = "rate"
    needs: str | None = None
    patience: float = 30.0

    def case_of(self, name: str) -> Case:
        """What that contender measures, its swept settings aside."""
        if name in self.others:
            return self.others[name]
        contender, face = plain(name), name.partition(", ")[2]
        if not face:
            known = CONTENDERS.get(contender)
            face = TASKS if known is not None and known.faces == (TASKS,) else self.case.face
        return replace(self.case, contender=contender, face=face)


def fixed(case: Case) -> dict[str, Case]:
    """Cases of this project with a fixed `timeout`, for `Scenario.others`."""
    return {name: replace(case, contender="ubatch", settings={"timeout": seconds}) for name, seconds in FIXED.items()}
