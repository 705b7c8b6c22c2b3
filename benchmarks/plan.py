"""All that is measured: the cells of every group but the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import arrivals
from .child.case import MODELS, Case, seconds_of
from .contenders import ALL, CONTENDERS, FIXED, GREENLETS, NO_FACE, PEERS, TASKS, THREADS, plain
from .scenario import Scenario, fixed

GROUPS = {
    "round-trip": "one caller: a call's round trip",
    "threads": "threads, a handler that does nothing",
    "tasks": "tasks of one event loop, a handler that does nothing",
    "closed-loop": "callers that call again at once, a handler that takes a + c·b",
    "open-loop": "random arrivals that do not wait for each other",
    "bursts": "16 items at one moment",
    "service": "a search service over HTTP",
    "memory": "memory of queued items and of idle batchers",
    "import": "what an import takes",
}
"""Each group is a results file; its title."""

REGIMES = ("free", "one core", "two cores")

BARE = ("bare loop", "bare chain")


def scenarios(quick: bool = False) -> list[Scenario]:
    """All cells, in the order of the report; the quick ones are some of them, and smaller."""
    found = [*_round_trips(), *_threads(), *_tasks(), *_closed_loops()]
    if quick:
        found = [replace(one, seconds=one.seconds / 3) for one in found if (one.group, one.id) in QUICK]
    found += arrivals.scenarios(quick)
    rest = [*_memory(), *_imports()]
    return found + ([_smaller(one) for one in rest if (one.group, one.id) in QUICK] if quick else rest)


QUICK = {
    ("round-trip", "round trip; one core"),
    ("round-trip", "lone call, handler sleeps 1 ms; two cores"),
    ("threads", "64 threads; free"),
    ("threads", "64 threads; one core"),
    ("tasks", "64 tasks; free"),
    ("closed-loop", "gpu, K = 8"),
    ("closed-loop", "gpu, K = 64"),
    ("memory", "an item queued by submit"),
    ("memory", "an item queued by a task"),
    ("memory", "an idle batcher, used once"),
    ("import", "import"),
}
"""Cells of `--quick`: at least one of each kind."""


def left_out() -> list[str]:
    """Cells that `--quick` does not measure."""
    kept = {(one.group, one.id) for one in scenarios(quick=True)}
    return [f"{one.group}: {one.id}" for one in scenarios() if (one.group, one.id) not in kept]


def _smaller(scenario: Scenario) -> Scenario:
    fewer = scenario.case.callers // 20 if scenario.afresh else scenario.case.callers
    others = {name: replace(case, callers=case.callers // 20) for name, case in scenario.others.items()}
    return replace(
        scenario,
        case=replace(scenario.case, callers=fewer),
        others=others if scenario.afresh else scenario.others,
        seconds=scenario.seconds / 3,
        extra=scenario.extra / 10,
    )


def without_face(face: str, names: Sequence[str] = PEERS) -> dict[str, str]:
    """Which of the contenders nobody can call like that, and why."""
    return {name: NO_FACE[face] for name in names if face not in CONTENDERS[name].faces}


def with_face(face: str) -> tuple[str, ...]:
    """Libraries, references aside, that can be called like that."""
    return tuple(one.name for one in ALL if one.requirement is not None and face in one.faces)


def _round_trips() -> list[Scenario]:
    references = (*BARE, "ThreadPoolExecutor(1)", "ping-pong")

    def cell(title: str, case: Case, contenders: tuple[str, ...]) -> Scenario:
        title = f"{title}; {case.cores}"
        missing = without_face(THREADS)
        return Scenario("round-trip", title, case, contenders, missing, seconds=0.2, extra=0.02, best="time")

    found = [
        cell("round trip", Case("round trip", "", cores=cores), (*with_face(THREADS), "none", *references))
        for cores in REGIMES
    ]
    return found + [
        cell(f"lone call, handler {handler}", Case("lone", "", cores=cores, handler=handler), contenders)
        for contenders in [(*with_face(THREADS), *references)]
        for handler in ("sleeps 1 ms", "computes 1 ms")
        for cores in REGIMES[1:]
    ]


def _threads() -> list[Scenario]:
    alone = "threads that nothing holds up only pass the GIL round: see 8 threads"
    found = [
        Scenario(
            "threads",
            f"{callers} threads; {cores}",
            Case("closed loop", "", cores=cores, callers=callers),
            (*with_face(THREADS), *(["none"] if callers == 8 else []), *BARE),
            without_face(THREADS) | ({} if callers == 8 else {"none": alone}),
            seconds=0.25,
            extra=0.05,
        )
        for callers in (8, 64, 256)
        for cores in REGIMES
    ]
    holding = "computes 20 ms"  # and so holds the GIL that callers need
    found.append(
        Scenario(
            "threads",
            f"64 threads, handler {holding}; free",
            Case("closed loop", "", callers=64, handler=holding),
            (*with_face(THREADS), *BARE),
            without_face(THREADS),
            seconds=0.8,
            extra=0.5,
        )
    )
    found.append(
        Scenario(
            "threads",
            "64 greenlets; free",
            Case("closed loop", "", GREENLETS, callers=64),
            ("ubatch", "ubatch, threads", "bare loop"),
            without_face(GREENLETS) | {"none": "greenlets that nothing holds up never let another run"},
            needs="gevent",
        )
    )
    return found


def _tasks() -> list[Scenario]:
    contenders = (*with_face(TASKS), "none", "bare loop")
    found = [
        Scenario(
            "tasks",
            f"{callers} task{'s' * (callers > 1)}; {cores}",
            Case("closed loop", "", TASKS, cores, callers),
            contenders,
            without_face(TASKS),
            seconds=0.25,
            extra=0.05,
        )
        for callers in (1, 64, 1000)
        for cores in REGIMES
    ]
    case = Case("closed loop", "", TASKS, callers=1000, max_size=1000)
    title = "1000 tasks, max_size 1000; free"
    found.append(Scenario("tasks", title, case, contenders, without_face(TASKS), seconds=0.25, extra=0.05))
    return found


def _closed_loops() -> list[Scenario]:
    return [_closed_loop(handler, callers) for handler in MODELS for callers in (1, 2, 8, 32, 64)]


def _closed_loop(handler: str, callers: int) -> Scenario:
    size = MODELS[handler][2]
    gathered = min(callers, size)
    case = Case("closed loop", "", callers=callers, handler=handler, max_size=size)
    contenders = ("ubatch", *FIXED, "ubatch, tasks", "ubatch.aio", "ubatch 1.0.0", "batched", "batched, tasks")
    seconds = 1.0 if handler == "net" and callers == 64 else 0.4
    return Scenario(
        "closed-loop",
        f"{handler}, K = {callers}",
        case,
        (*contenders, "async-batcher", "aqueduct", "none", *(BARE if callers > 1 else BARE[:1])),
        others=fixed(case) | {name: replace(case, contender=name, settings={"gather": gathered}) for name in BARE},
        # All callers are back at once, so a batch has as many items as there are callers, or is full.
        ideal={"rate": gathered / seconds_of(handler, gathered), "p50": _best_p50(handler, callers)},
        seconds=seconds,
        extra=0.1,
        rounds=3,
    )


def _best_p50(handler: str, callers: int) -> float:
    """With more callers than a batch takes, the rest wait for the next one: half of an answer's time is Little's."""
    size = min(callers, MODELS[handler][2])
    return seconds_of(handler, size) * callers / size


MANY = 10_000

FEWER = {"ubatch 1.0.0": 300, "batched": 300, "batched, tasks": 1000, "aqueduct": 20}
"""How many idle objects of those are made whose idle threads, tasks or processes poll: with 10,000 of them the machine
would do nothing else, or has no room for them."""


def _memory() -> list[Scenario]:
    def afresh(
        id: str, case: Case, contenders: tuple[str, ...], missing: dict[str, str], extra: float, rounds: int = 2
    ) -> Scenario:
        return Scenario(
            "memory",
            id,
            case,
            contenders,
            missing,
            others={name: _fewer(case, name) for name in contenders if name in FEWER and case.figure == "idle"},
            seconds=0.1,
            extra=extra,
            rounds=rounds,
            afresh=True,
            patience=180.0,
        )

    waits = "its calls wait for their result, so an item takes a thread or a task"
    queued, idle = Case("queued", "", callers=MANY), Case("idle", "", callers=MANY)
    every = ("ubatch", "ubatch.aio", "ubatch 1.0.0", "batched", "batched, tasks", "async-batcher", "aqueduct")
    return [
        afresh(
            "an item queued by submit",
            replace(queued, handler="submit"),
            ("ubatch", "ThreadPoolExecutor(1)", "bare Future"),
            dict.fromkeys(PEERS, waits),
            0.5,
        ),
        afresh(
            "an item queued by one call of many",
            replace(queued, handler="map"),
            ("ubatch", "batched", "bare lock"),
            {name: waits for name in PEERS if name != "batched"},
            0.7,
        ),
        afresh(
            "an item queued by a task",
            replace(queued, handler="task", face=TASKS),
            (*with_face(TASKS), "bare future"),
            without_face(TASKS),
            1.2,
        ),
        *(
            afresh(f"an idle batcher, {use}", replace(idle, handler=use), (*every, "ThreadPoolExecutor(1)"), {}, extra)
            for use, extra in (("never used", 1.0), ("used once", 3.0))
        ),
        replace(
            afresh(
                "a single idle batcher, used once", replace(idle, callers=1, handler="used once"), every, {}, 0.3, 3
            ),
            others={},
        ),
        afresh(
            "an idle batcher, used once, worker gone",
            replace(idle, handler="used once, worker gone", callers=MANY // 10),
            ("ubatch",),
            dict.fromkeys(PEERS, "its worker never goes"),
            15.0,
            1,
        ),
    ]


def _fewer(case: Case, name: str) -> Case:
    face = TASKS if name.endswith(TASKS) or CONTENDERS[plain(name)].faces == (TASKS,) else case.face
    return replace(case, contender=plain(name), face=face, callers=FEWER[name])


def _imports() -> list[Scenario]:
    case = Case("import", "", handler="")
    names = [one.name for one in ALL if one.requirement is not None]
    others = {name: replace(case, contender=name, handler=CONTENDERS[name].module) for name in names}
    return [
        Scenario(
            "import",
            "import",
            case,
            (*names, "bare interpreter"),
            others=others | {"bare interpreter": replace(case, contender="bare interpreter")},
            seconds=0.4,
            swept=False,
        )
    ]
