"""Measures both endpoints of a running server, in turns, and compares what they answer."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from search.collect import Entry
from search.load import Job, Result
from search.server import HOST, Server
from search.vectors import words

ENDPOINTS = {"unbatched": "/search_unbatched", "batched": "/search"}

TOLERANCE = 1e-5
"""How far two scores of one hit may lie apart."""

_MOST_QUESTIONS = 512
_FEWEST_WORDS = 3
_WARM_UP = 0.5
_TICK = 0.25
_LONGEST_RUN = 120.0


class LoadError(RuntimeError):
    """The clients' process failed; the message says how."""


@dataclass(frozen=True)
class Sample:
    """One endpoint under one number of clients, measured once. Latencies are seconds."""

    endpoint: str
    clients: int
    requests_per_second: float
    p50: float
    p99: float
    mean_batch_size: float
    """Items per batch; 1 for the unbatched endpoint, which has no batches."""
    failures: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """All samples of one endpoint under one number of clients: medians over the rounds, and their spread."""

    endpoint: str
    clients: int
    requests_per_second: float
    slowest: float
    """Requests per second of the slowest round."""
    fastest: float
    p50: float
    p99: float
    mean_batch_size: float
    failures: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """Everything that a run found out."""

    samples: list[Sample]
    compared: int
    """Questions that both endpoints answered."""
    different: int
    """Those of them whose hits or scores were not the same."""
    found: int
    """Those of them that led to an entry with just that first line."""

    @property
    def failed(self) -> int:
        """Requests that went wrong."""
        return sum(sum(sample.failures.values()) for sample in self.samples)

    def summary(self, endpoint: str, clients: int) -> Summary:
        """Medians over the rounds."""
        group = [each for each in self.samples if (each.endpoint, each.clients) == (endpoint, clients)]
        rates = [sample.requests_per_second for sample in group]
        failures: dict[str, int] = {}
        for sample in group:
            for reason, times in sample.failures.items():
                failures[reason] = failures.get(reason, 0) + times
        return Summary(
            endpoint,
            clients,
            statistics.median(rates),
            min(rates),
            max(rates),
            statistics.median(sample.p50 for sample in group),
            statistics.median(sample.p99 for sample in group),
            statistics.median(sample.mean_batch_size for sample in group),
            failures,
        )


def questions_of(entries: Sequence[Entry]) -> list[str]:
    """First lines of docstrings, each once, spread over the library; names if there are no docstrings."""
    lines = dict.fromkeys(entry.summary for entry in entries)
    asked = [line for line in lines if len(words(line)) >= _FEWEST_WORDS and len(line) < 200]
    asked = asked or [entry.name for entry in entries]
    # A step that shares no factor with the length visits every line, neighbours far from each other.
    step = next(
        step for step in range(int(len(asked) * 0.618) + 1, 2 * len(asked) + 2) if math.gcd(step, len(asked)) == 1
    )
    return [asked[at * step % len(asked)] for at in range(min(len(asked), _MOST_QUESTIONS))]


def measure(
    server: Server,
    questions: list[str],
    clients: Sequence[int],
    rounds: int,
    seconds: float,
    advance: Callable[[str, float], None],
) -> Measured:
    """Drives the endpoints in turns, so that a machine that slows down slows both.

    Args:
        server: The running service.
        questions: What is asked, over and over.
        clients: Numbers of concurrent clients, each of which is measured on its own.
        rounds: How often everything is measured.
        seconds: Length of one measurement.
        advance: Told what is being measured and how many seconds went by, several times a second.

    Raises:
        LoadError: The clients could not do their work.
        ServerError: The server has died.
    """
    samples: list[Sample] = []
    answers: dict[str, dict[str, str]] = {endpoint: {} for endpoint in ENDPOINTS}
    for number in range(rounds):
        for count in clients:
            # Every other round goes the other way round: whoever comes first finds a machine that has rested.
            for endpoint in list(ENDPOINTS)[:: -1 if number % 2 else 1]:
                job = Job(HOST, server.port, ENDPOINTS[endpoint], questions, count, _WARM_UP, seconds)
                label = f"round {number + 1} of {rounds}: {endpoint}, {count} client{'s' * (count > 1)}"
                sample, result = _measure_once(server, endpoint, job, partial(advance, label))
                samples.append(sample)
                answers[endpoint] = result.answers | answers[endpoint]
    return Measured(samples, *compare(answers["batched"], answers["unbatched"]))


def duration(clients: Sequence[int], rounds: int, seconds: float) -> float:
    """How many seconds `measure` takes at least."""
    return rounds * len(clients) * len(ENDPOINTS) * (seconds + _WARM_UP)


def compare(some: dict[str, str], others: dict[str, str]) -> tuple[int, int, int]:
    """Counts the questions that both answered, that they answered differently, that found their own entry."""
    both = some.keys() & others.keys()
    decoded = [
        (question, json.loads(some[question])["hits"], json.loads(others[question])["hits"]) for question in both
    ]
    different = sum(not same_hits(hits, other_hits) for _, hits, other_hits in decoded)
    found = sum(any(question.startswith(hit["summary"] or " ") for hit in hits) for question, hits, _ in decoded)
    return len(both), different, found


def same_hits(hits: Sequence[dict[str, object]], others: Sequence[dict[str, object]]) -> bool:
    """Whether two answers name the same entries in the same order, with scores equal within `TOLERANCE`."""
    return len(hits) == len(others) and all(
        math.isclose(float(str(hit["score"])), float(str(other["score"])), rel_tol=0, abs_tol=TOLERANCE)
        and all(hit[name] == other[name] for name in hit if name != "score")
        for hit, other in zip(hits, others, strict=True)
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed; NaN if there are none."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1] if values else math.nan


def _measure_once(server: Server, endpoint: str, job: Job, advance: Callable[[float], None]) -> tuple[Sample, Result]:
    before = server.get("/stats")["batching"]
    try:
        result = run_clients(job, advance)
    except LoadError:
        server.check()  # if that is why, its log tells more
        raise
    after = server.get("/stats")["batching"]
    batches = after["batches"] - before["batches"]
    sample = Sample(
        endpoint,
        job.clients,
        result.requests_per_second,
        percentile(result.latencies, 0.5),
        percentile(result.latencies, 0.99),
        (after["items"] - before["items"]) / batches if batches else 1.0,
        result.failures,
    )
    return sample, result


def run_clients(job: Job, advance: Callable[[float], None]) -> Result:
    """Runs the clients in a process of their own.

    Args:
        job: What they do.
        advance: Told how many seconds went by, several times a second.

    Raises:
        LoadError: They could not do their work.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "search.load"],
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the other below
    )
    question: str | None = json.dumps(asdict(job))
    try:
        waited = 0.0
        while True:
            with suppress(subprocess.TimeoutExpired):
                output, errors = process.communicate(question, timeout=_TICK)
                break
            waited, question = waited + _TICK, None
            advance(min(_TICK, max(0.0, job.warm_up + job.seconds - waited + _TICK)))
            if waited > job.warm_up + job.seconds + _LONGEST_RUN:
                raise LoadError("the clients do not come to an end")
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise LoadError(f"the clients failed: {errors.strip()}")
    return Result(**json.loads(output))
