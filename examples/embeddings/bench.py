"""Measures all endpoints of a running server, in turns and by the same texts, and compares what they answer."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search.bench import LoadError, percentile
from search.collect import Entry
from search.server import HOST, Server

from embeddings.load import Clients, Job, Result
from embeddings.text import LONGEST_TEXT

ENDPOINTS = {"unbatched": "/embed_unbatched", "fifo": "/embed_fifo", "budget": "/embed"}

LEAST_COSINE = 0.9999
"""Of a text's embedding that was made in a batch with the one that was made alone, at least."""

_SEED = 1
_LONGEST_END = 90.0


@dataclass(frozen=True)
class Sample:
    """One endpoint, measured once. Times are seconds."""

    endpoint: str
    requests_per_second: float
    p50: float
    p99: float
    cpu_per_request: float
    """Of the server's process: what a busy machine changes least."""
    mean_batch_size: float
    padding: float
    """The share of padding among the tokens that the model was given."""
    failures: dict[str, int]


@dataclass(frozen=True)
class Ratio:
    """How many times as good one endpoint is as another: the rounds' ratios, of the same texts."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Measured:
    """Everything that a run found out."""

    samples: list[Sample]
    compared: int
    """Answers from batches that were compared with the text's embedding alone."""
    least_cosine: float
    """The smallest cosine of two such."""

    @property
    def failed(self) -> int:
        """Requests that went wrong."""
        return sum(sum(sample.failures.values()) for sample in self.samples)

    @property
    def is_right(self) -> bool:
        """Whether all requests were answered, and batches changed no embedding."""
        return not self.failed and self.compared > 0 and self.least_cosine >= LEAST_COSINE

    def of(self, endpoint: str, figure: str) -> list[float]:
        """A figure of an endpoint, by round."""
        return [getattr(sample, figure) for sample in self.samples if sample.endpoint == endpoint]

    def median(self, endpoint: str, figure: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.of(endpoint, figure))

    def throughput(self, one: str, other: str) -> Ratio:
        """Requests per second, one over the other."""
        return ratio_of(self.of(one, "requests_per_second"), self.of(other, "requests_per_second"))

    def work(self, one: str, other: str) -> Ratio:
        """Requests for each second of the processor's, one over the other."""
        return ratio_of(self.of(other, "cpu_per_request"), self.of(one, "cpu_per_request"))


def texts_of(entries: Iterable[Entry], count: int) -> list[str]:
    """Docstrings, each once, drawn at random but always the same: their lengths are as mixed as the library's."""
    docs = list(dict.fromkeys(entry.doc for entry in entries if entry.doc.strip() and len(entry.doc) <= LONGEST_TEXT))
    if len(docs) < count:
        raise ValueError(f"the library has {len(docs)} docstrings, fewer than {count}")
    return random.Random(_SEED).sample(docs, count)


def measure(server: Server, texts: Sequence[Sequence[str]], clients: int, advance: Callable[[str], None]) -> Measured:
    """Drives the endpoints in turns, so that a machine that slows down slows all of them.

    Args:
        server: The running service.
        texts: For each round, what is sent to every endpoint.
        clients: How many send at once.
        advance: Told what is measured next.

    Raises:
        LoadError: The clients could not do their work.
        ServerError: The server has died.
    """
    for endpoint, path in ENDPOINTS.items():
        advance(f"warming up: {endpoint}")
        run_clients(Job(HOST, server.port, path, clients, texts=list(texts[0][: 2 * clients])))
    samples: list[Sample] = []
    cosines: list[float] = []
    names = list(ENDPOINTS)
    for number, sent in enumerate(texts):
        answers = {}
        turn = number % len(names)
        for endpoint in names[turn:] + names[:turn]:
            advance(f"round {number + 1} of {len(texts)}: {endpoint}")
            job = Job(HOST, server.port, ENDPOINTS[endpoint], clients, texts=list(sent))
            sample, answers[endpoint] = _measure_once(server, endpoint, job)
            samples.append(sample)
        alone = answers.pop("unbatched")
        cosines += [
            cosine(embedding, alone[text])
            for embeddings in answers.values()
            for text, embedding in embeddings.items()
            if text in alone
        ]
    return Measured(samples, len(cosines), min(cosines, default=math.nan))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors of the same length; NaN if one of them is zero."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / length if length else math.nan


def ratio_of(some: Sequence[float], others: Sequence[float]) -> Ratio:
    """The ratios of figures of the same rounds: median, least and most; NaN where one would divide by zero."""
    ratios = [one / other if other else math.nan for one, other in zip(some, others, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _measure_once(server: Server, endpoint: str, job: Job) -> tuple[Sample, dict[str, list[float]]]:
    before = server.get("/stats")
    try:
        result = run_clients(job)
    except LoadError:
        server.check()  # if that is why, its log tells more
        raise
    after = server.get("/stats")
    work = {name: after["ways"][endpoint][name] - value for name, value in before["ways"][endpoint].items()}
    answered = len(result.latencies)
    sample = Sample(
        endpoint,
        answered / result.seconds,
        percentile(result.latencies, 0.5),
        percentile(result.latencies, 0.99),
        (after["cpu_seconds"] - before["cpu_seconds"]) / max(answered, 1),
        work["texts"] / max(work["batches"], 1),
        1 - work["tokens"] / max(work["padded"], 1),
        result.failures,
    )
    return sample, result.embeddings


def run_clients(job: Job) -> Result:
    """Runs the clients in a process of their own.

    Raises:
        LoadError: They could not do their work.
    """
    return Result(**run_process("embeddings.load", job))


def run_process(module: str, job: Clients) -> dict[str, Any]:
    """Runs clients in a process of their own: a module that reads a job and writes what came of it, both as JSON.

    Raises:
        LoadError: They could not do their work.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            cwd=Path(__file__).resolve().parent.parent,
            input=json.dumps(asdict(job)),
            capture_output=True,
            text=True,
            timeout=job.limit + job.patience + _LONGEST_END,
        )
    except subprocess.TimeoutExpired:
        raise LoadError("the clients do not come to an end") from None
    if done.returncode != 0:
        raise LoadError(f"the clients failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
