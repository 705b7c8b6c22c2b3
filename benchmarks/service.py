"""The search service over HTTP, under gunicorn: one by one, batched by the published ubatch, batched by this project.

The service, the server and the clients are the example's (`examples/search`). Clients are a process of their own; each
sends its next request when it has its answer. All contenders give the same answers, which is checked.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .child.case import Sample
from .contenders import CONTENDERS, Directories
from .harness import Progress
from .results import head, read, write
from .serving import UNBATCHED, Servers, Serving, find_example
from .sweep import FILE, choose

GROUP, TITLE = "service", "a search service over HTTP"

WORKERS = ("gevent", "gthread")

CLIENTS = (1, 8, 64)

PUBLISHED = "ubatch 1.0.0"

NEEDED = ("numpy", "flask", "gunicorn")

QUICK_LIMIT = 10_000
"""Entries of a quick run's index."""

WARM_UP = 0.3
"""Seconds of each round before anything counts."""

START = 3.0
"""Seconds that starting a server is thought to take."""

SWEEP_ROUNDS, SWEEP_SECONDS = 2, 1.0

Advance = Callable[[str, float], None]


@dataclass
class Outcome:
    """What came of one contender at one number of clients."""

    settings: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        return {"settings": self.settings, "samples": self.samples} | ({"error": self.error} if self.error else {})


Contenders = Mapping[str, Mapping[int, Serving]]
"""By name and by number of clients, how each is served."""


class Measuring:
    """Rounds of one worker class: all numbers of clients, all contenders, and again, every other time backwards.

    Args:
        worker: gunicorn's worker class.
        contenders: who takes turns.
        questions: what is asked.
        limit: entries of the index; `None` for all.
    """

    def __init__(self, worker: str, contenders: Contenders, questions: list[str], limit: int | None) -> None:
        self.worker, self.contenders, self.questions, self.limit = worker, contenders, questions, limit
        self.outcomes = {(name, count): Outcome() for name, served in contenders.items() for count in served}
        self.answers: dict[str, dict[str, str]] = {name: {} for name in contenders}

    def measure(self, rounds: int, seconds: float, advance: Advance) -> None:
        """Measure; a first, short round of each is thrown away. A contender that fails is not tried again."""
        with Servers(self.worker, self.limit) as servers:
            for number in range(-1, rounds):
                for count in sorted({count for served in self.contenders.values() for count in served}):
                    names = [name for name in self.contenders if count in self.contenders[name]]
                    for name in names[:: -1 if number % 2 else 1]:
                        lasting = seconds if number >= 0 else seconds / 4
                        title = f"{GROUP}: {cell_id(self.worker, count)}: {name}"
                        sample = self._once(servers, name, count, lasting, partial(advance, title))
                        if number >= 0 and sample is not None:
                            self.outcomes[name, count].samples.append(sample)

    def compared(self) -> dict[str, dict[str, int]]:
        """By contender: how many answers were compared with the first one's, how many of them differ."""
        from search.bench import compare

        first, *others = self.answers
        found = {}
        for name in others:
            both, different, _ = compare(self.answers[name], self.answers[first])
            found[name] = {"compared": both, "different": different}
        return found

    def _once(
        self, servers: Servers, name: str, count: int, seconds: float, advance: Callable[[float], None]
    ) -> Sample | None:
        from search.bench import LoadError, run_clients
        from search.load import Job
        from search.server import HOST, ServerError

        outcome, serving = self.outcomes[name, count], self.contenders[name][count]
        started = time.monotonic()
        if any(self.outcomes[name, other].error for other in self.contenders[name]):
            advance(WARM_UP + seconds)
            return None
        try:
            with servers.under_load(serving) as server:
                job = Job(HOST, server.port, serving.path, self.questions, count, WARM_UP, seconds)
                before = server.get("/stats")["batching"]
                result = run_clients(job, lambda gone: None)
                after = server.get("/stats")["batching"]
        except (LoadError, ServerError, OSError) as error:
            outcome.error = _last_line(error)
            return None
        finally:
            advance(min(time.monotonic() - started, WARM_UP + seconds))
        self.answers[name] = result.answers | self.answers[name]
        batches = after["batches"] - before["batches"]
        mean = (after["items"] - before["items"]) / batches if batches else 1.0
        sample: Sample = {"rate": result.requests_per_second, "mean batch": mean} | latencies(result.latencies)
        return sample | ({"failures": result.failures} if result.failures else {})


def latencies(times: Sequence[float]) -> Sample:
    """Percentiles and the histogram of durations, as those of the other groups."""
    ordered = sorted(times)
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    found: Sample = {name: ordered[math.ceil(share * len(ordered)) - 1] for name, share in shares.items()}
    counts = Counter(math.floor(math.log(max(one, 1e-6) / 1e-6) / math.log(1.02)) for one in ordered)
    return found | {"histogram": {str(index): counts[index] for index in sorted(counts)}}


def cell_id(worker: str, clients: int) -> str:
    """What a cell is called."""
    return f"{worker}, {clients} client{'s' * (clients > 1)}"


def planned(quick: bool, rounds: int) -> float:
    """Seconds that `run` is thought to take."""
    seconds, counts, _ = _size(quick)
    turns = rounds * (seconds + WARM_UP + 0.3) + seconds / 4 + WARM_UP + 0.3
    return len(WORKERS) * (3 * len(counts) * turns + (2 if quick else 3) * START)


def run(
    quick: bool,
    rounds: int,
    output: Path,
    progress: Progress,
    directories: Directories,
    command: str = "python -m benchmarks",
) -> None:
    """Measure, and write the group's file after each worker class.

    Args:
        quick: shorter rounds, fewer numbers of clients, a smaller index.
        rounds: how many of each contender are kept.
        output: the folder for the results; also where the sweep's file is looked for, before the committed one.
        progress: is told what runs.
        directories: where the contenders are.
        command: what was typed.
    """
    seconds, counts, limit = _size(quick)
    start = time.monotonic()
    found = head(GROUP, TITLE, command, quick, directories) | {"answers": {}}
    questions = _questions(limit) if all(map(find_spec, NEEDED)) else []
    swept = _swept(output)
    for worker in WORKERS:
        contenders: dict[str, dict[int, Serving]] = {}
        instead: dict[tuple[str, int], dict[str, Any]] = {}
        for name in ("none", "ubatch", *directories.copies, PUBLISHED):
            contenders[name] = {}
            for count in counts:
                try:
                    contenders[name][count] = _serving(name, directories, swept, cell_id(worker, count))
                except LookupError as error:
                    instead[name, count] = {"settings": {}, "samples": [], "error": str(error)}
                    progress.advance(f"{GROUP}: {worker}", rounds * (seconds + WARM_UP))
        missing = next((one for one in (*NEEDED, worker) if one != "gthread" and find_spec(one) is None), None)
        measuring = Measuring(worker, contenders, questions, limit)
        if missing is None:
            measuring.measure(rounds, seconds, progress.advance)
            found["answers"][worker] = measuring.compared()
        for count in counts:
            entries = {}
            for name in contenders:
                if (name, count) in instead:
                    entries[name] = instead[name, count]
                elif missing is not None:
                    entries[name] = {"missing": f"{missing} is not installed"}
                else:
                    outcome = measuring.outcomes[name, count]
                    outcome.settings = _settings(contenders[name][count])
                    entries[name] = outcome.as_json()
            case = {"figure": "service", "worker": worker, "callers": count, "handler": "search", "entries": limit}
            found["cells"].append({"id": cell_id(worker, count), "case": case, "ideal": {}, "contenders": entries})
        found["seconds"] = time.monotonic() - start
        write(output / f"{GROUP}.json", found)


def sweep_planned(quick: bool) -> float:
    """Seconds that `sweep` is thought to take."""
    values = len(CONTENDERS[PUBLISHED].values)
    turn = (SWEEP_ROUNDS + 1.25) * (SWEEP_SECONDS + WARM_UP + 0.3)
    return len(WORKERS) * values * (len(_size(quick)[1]) * turn + START)


def sweep(
    quick: bool, path: Path, progress: Progress, directories: Directories, command: str = "python -m benchmarks --sweep"
) -> None:
    """Try the published ubatch's timeout, and put the cells into the sweep's file.

    Raises:
        LookupError: it is not installed.
    """
    _, counts, limit = _size(quick)
    directory = directories.of(PUBLISHED)
    assert directory is not None
    file = read(path) or head("sweep", "the peers' own settings", command, quick, directories)
    questions = _questions(limit)
    for worker in WORKERS:
        contenders = {
            f"{PUBLISHED} {value:g}": {count: Serving(directory, value) for count in counts}
            for value in CONTENDERS[PUBLISHED].values
        }
        measuring = Measuring(worker, contenders, questions, limit)
        measuring.measure(SWEEP_ROUNDS, SWEEP_SECONDS, progress.advance)
        for count in counts:
            tried = []
            for label, served in contenders.items():
                outcome = measuring.outcomes[label, count]
                outcome.settings = _settings(served[count])
                for sample in outcome.samples:
                    sample.pop("histogram", None)
                tried.append(outcome.as_json())
            id = f"{GROUP}: {cell_id(worker, count)}"
            cell = {"id": id, "chosen by": "rate", "used by": [id]}
            cell |= {"contenders": {PUBLISHED: {"best": choose(tried, "rate"), "tried": tried}}}
            file["cells"] = [one for one in file["cells"] if one["id"] != id] + [cell]
        write(path, file)


def _size(quick: bool) -> tuple[float, tuple[int, ...], int | None]:
    """The length of a round, the numbers of clients, the entries of the index."""
    return (0.7, CLIENTS[-1:], QUICK_LIMIT) if quick else (3.0, CLIENTS, None)


def _questions(limit: int | None) -> list[str]:
    """What is asked. Builds the index, if need be, which the servers then find in its cache."""
    find_example()
    from search.bench import questions_of
    from search.cache import load_index

    return questions_of(load_index(None, limit).entries)


def _swept(output: Path) -> dict[str, Any]:
    """The best settings of the published ubatch, by the sweep's cells."""
    for folder in (output, Path(__file__).with_name("results")):
        file = read(folder / FILE)
        if file is not None:
            return {cell["id"]: (cell["contenders"].get(PUBLISHED) or {}).get("best") for cell in file["cells"]}
    return {}


def _serving(name: str, directories: Directories, swept: Mapping[str, Any], cell: str) -> Serving:
    """How a contender is served in a cell.

    Raises:
        LookupError: it is not installed, or there was no sweep for it.
    """
    if name == "none":
        directory = directories.of("ubatch")
        assert directory is not None
        return Serving(directory, path=UNBATCHED)
    directory = directories.of(name)
    assert directory is not None
    if name != PUBLISHED:
        return Serving(directory)
    best = swept.get(f"{GROUP}: {cell}")
    if best is None:
        raise LookupError(f"no swept settings for {GROUP}: {cell}: run `python -m benchmarks --sweep`")
    return Serving(directory, best["timeout"])


def _settings(serving: Serving) -> dict[str, Any]:
    return {} if serving.timeout is None else {"timeout": serving.timeout}


def _last_line(error: Exception) -> str:
    """What the server logged last of an error of its own, or else the message."""
    lines = [line.strip() for line in reversed(str(error).splitlines()) if line.strip()]
    return next((line for line in lines if "Error" in line), lines[0] if lines else type(error).__name__)
