"""What is compared with what, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from _case import Case


@dataclass(frozen=True)
class Aim:
    """A bound on what a row compares: at most, or at least."""

    most: float | None = None
    least: float | None = None

    def met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value <= self.most if self.most is not None else value >= (self.least or 0.0)


@dataclass(frozen=True)
class Row:
    """One figure of ubatch, alone or beside a reference.

    Args:
        figure: the key in the samples.
        unit: one of the table's.
        beside: the reference; `None` for none.
        aim: for the ratio to the reference; for the distance from it; for the figure itself if there is none.
        above: compare by the distance, not by the ratio.
        remark: shown behind.
    """

    figure: str
    unit: str
    beside: str | None
    aim: Aim | None = None
    above: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Scenario:
    """Contenders that take turns, and what is read off them.

    Args:
        title: shown in the table.
        case: what ubatch measures; the references measure the same.
        rows: what is compared.
        seconds: the length of a round.
        extra: seconds that a round is thought to take beyond its length.
        others: cases of references that differ in more than their name.
        afresh: whether each round needs a new process; then there are three rounds at most.
        needs: a module without which there is nothing to measure.
    """

    title: str
    case: Case
    rows: tuple[Row, ...]
    seconds: float = 0.3
    extra: float = 0.05
    others: tuple[tuple[str, Case], ...] = ()
    afresh: bool = False
    needs: str | None = None

    def cases(self) -> dict[str, Case]:
        """The contenders, in the order of their turns."""
        others = dict(self.others)
        names = dict.fromkeys(row.beside for row in self.rows if row.beside is not None)
        return {"ubatch": self.case} | {n: others.get(n, replace(self.case, contender=n)) for n in names}

    def smaller(self) -> Scenario:
        """The same, fast: whether it works, not how well."""
        if not self.afresh:
            return replace(self, seconds=self.seconds / 3)
        fewer = self.case.callers // 20
        others = tuple((name, replace(case, callers=fewer)) for name, case in self.others)
        return replace(self, case=replace(self.case, callers=fewer), others=others, extra=self.extra / 5)


def scenarios(quick: bool = False) -> list[Scenario]:
    """All that is measured, in the order of the table."""
    found = [*_one_caller(), *_many_threads(), *_tasks(), *_greenlets(), *_start_up(), *_memory()]
    return [one.smaller() for one in found if not one.title.endswith("worker gone")] if quick else found


HANDOVER = {"one core": Aim(most=1.6), "two cores": Aim(most=1.25), "free": None}
"""What a call may cost, as a multiple of a bare ping-pong; free, the scheduler moves between the two."""


def _one_caller() -> list[Scenario]:
    def rows(cores: str, remark: str = "") -> tuple[Row, ...]:
        return (
            Row("time", "µs", "ping-pong", HANDOVER[cores], remark=remark),
            Row("time", "µs", "bare loop"),
            Row("time", "µs", "ThreadPoolExecutor(1)"),
        )

    stated = {"free": "stated of peers: 4.4 ms (ubatch 1), 5.1 ms (batched)"}
    found = [
        Scenario(
            f"round trip, {cores}",
            Case("round trip", "ubatch", cores),
            rows(cores, stated.get(cores, "")),
            seconds=0.15,
        )
        for cores in HANDOVER
    ]
    found += [
        Scenario(
            f"lone call beyond its handler, which {handler}; {cores}",
            Case("lone", "ubatch", cores, handler=handler),
            rows(cores),
            seconds=0.2,
        )
        for handler in ("sleeps 1 ms", "computes 1 ms")
        for cores in HANDOVER
    ]
    return found


def _many_threads() -> list[Scenario]:
    stated = {
        8: "stated of the best peer: 1.9 k/s; aim 20 times that",
        64: "stated of the best peer: 19 k/s; aim 2.5 times that, 10 times on one core",
    }
    found = [
        Scenario(
            f"{callers} threads, no-op; {cores}",
            Case("threads", "ubatch", cores, callers),
            (
                Row("rate", "k/s", "bare, at once", remark=stated[callers]),
                Row("rate", "k/s", "bare, chain"),
                Row("cpu", "µs", "bare, chain", remark="CPU time per item"),
                Row("mean batch", "", "bare, chain"),
            ),
            extra=0.15,
        )
        for callers in (8, 64)
        for cores in ("free", "one core")
    ]
    slow, holding = "sleeps 5 ms + 0.1 ms per item", "computes 20 ms"
    found += [
        Scenario(
            f"64 threads, handler {slow}",
            Case("threads", "ubatch", callers=64, handler=slow),
            (
                Row("rate", "k/s", "bare, gathering 64", remark="aim 0.97 once the adaptive policy exists"),
                Row("rate", "k/s", "bare, gathering 64, chain"),
                Row("mean batch", "", None),
            ),
            seconds=0.6,
            extra=0.3,
        ),
        Scenario(
            f"64 threads, handler {holding}",
            Case("threads", "ubatch", callers=64, handler=holding),
            (
                Row("rate", "k/s", "bare, at once", remark="the handler holds the GIL that callers need"),
                Row("rate", "k/s", "bare, chain"),
                Row("p99", "ms", "bare, at once", remark="99th percentile of a call"),
                Row("p99", "ms", "bare, chain"),
            ),
            seconds=0.8,
            extra=0.4,
        ),
    ]
    return found


def _tasks() -> list[Scenario]:
    sizes = ((1, 64), (64, 64), (1000, 64), (1000, 1000))
    return [
        Scenario(
            f"{callers} tasks, no-op, max_size {max_size}",
            Case("tasks", "ubatch", callers=callers, max_size=max_size),
            (
                Row("rate", "k/s", "bare"),
                Row("wake-ups", "", None, Aim(most=1.0), remark="of the event loop, per batch"),
            ),
            extra=0.1,
        )
        for callers, max_size in sizes
    ]


def _greenlets() -> list[Scenario]:
    return [
        Scenario(
            "64 greenlets, no-op",
            Case("greenlets", "ubatch", callers=64),
            (
                Row("rate", "k/s", "bare"),
                Row("rate", "k/s", "64 threads", Aim(least=2.0)),
            ),
            extra=0.1,
            others=(("64 threads", Case("threads", "ubatch", callers=64)),),
            needs="gevent",
        )
    ]


def _start_up() -> list[Scenario]:
    return [
        Scenario(
            "import ubatch",
            Case("start-up", "ubatch"),
            (
                Row("time", "ms", "bare interpreter", Aim(most=0.015), above=True),
                Row("cpu", "ms", "bare interpreter", above=True, remark="CPU time"),
            ),
        )
    ]


def _memory() -> list[Scenario]:
    found = [
        Scenario(
            f"an item queued by {face}",
            Case("queued", "ubatch", callers=10_000, handler=face),
            (Row("memory", "bytes", beside, above=True),),
            afresh=True,
            extra=1.0,
        )
        for face, beside in (("submit", "bare Future"), ("map", "bare lock"))
    ]
    for use, extra in (("never used", 1.0), ("used once", 3.0), ("used once, worker gone", 10.0)):
        case = Case("idle", "ubatch", callers=10_000, handler=use)
        executor = replace(case, contender="executor", handler=use.partition(",")[0])
        found.append(
            Scenario(
                f"an idle batcher, {use}",
                case,
                (Row("memory", "kB", "ThreadPoolExecutor(1)", remark="resident memory"),),
                others=(("ThreadPoolExecutor(1)", executor),),
                afresh=True,
                extra=extra,
            )
        )
    return found
