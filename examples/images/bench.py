"""Measures both endpoints of a running server, in turns and by the same images, and compares what they answer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from embeddings.bench import Ratio, ratio_of, run_process
from search.bench import LoadError, percentile
from search.server import HOST, Server

from images.load import Job, Labels, Result

ENDPOINTS = {"here": "/classify_here", "flow": "/classify"}
"""In the thread of the request, and by the flow's child processes."""

TOLERANCE = 1e-4
"""How far two scores of one image may lie apart."""

_FEW = 16


@dataclass(frozen=True)
class Sample:
    """One endpoint under one number of clients, measured once. Times are seconds."""

    endpoint: str
    clients: int
    requests_per_second: float
    p50: float
    p99: float
    cpu_per_request: float
    """Of the server's process and all its children: what a busy machine changes least."""
    others_p90: float
    """Of requests that need no image, while the images were classified."""
    sizes: dict[str, float]
    """Mean batch of each step; empty without the flow."""
    right: float
    """The share of images whose subject came first."""
    failures: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """Everything that a run found out."""

    samples: list[Sample]
    compared: int
    """Images that both endpoints classified."""
    different: int
    """Those of them whose labels or scores were not the same."""

    @property
    def failed(self) -> int:
        """Requests that went wrong."""
        return sum(sum(sample.failures.values()) for sample in self.samples)

    @property
    def is_right(self) -> bool:
        """Whether all requests were answered, and both endpoints answered alike."""
        return not self.failed and self.compared > 0 and not self.different

    def of(self, endpoint: str, clients: int) -> list[Sample]:
        """The samples of one endpoint under one number of clients, by round."""
        return [each for each in self.samples if (each.endpoint, each.clients) == (endpoint, clients)]

    def median(self, endpoint: str, clients: int, figure: str) -> float:
        """The median of a figure over the rounds."""
        return statistics.median(getattr(sample, figure) for sample in self.of(endpoint, clients))

    def size(self, step: str, clients: int) -> float:
        """The median over the rounds of a step's mean batch; NaN if there was none."""
        return statistics.median(
            [each.sizes[step] for each in self.of("flow", clients) if step in each.sizes] or [math.nan]
        )

    def throughput(self, clients: int) -> Ratio:
        """Requests per second, by the flow over in the request's thread."""
        flow, here = ([each.requests_per_second for each in self.of(name, clients)] for name in ("flow", "here"))
        return ratio_of(flow, here)


def measure(
    server: Server, clients: Sequence[int], rounds: int, images: int, advance: Callable[[str], None]
) -> Measured:
    """Drives the endpoints in turns, so that a machine that slows down slows both.

    Args:
        server: The running service.
        clients: Numbers of concurrent clients, each of which is measured on its own.
        rounds: How often everything is measured, each time by other images.
        images: How many are sent in a measurement.
        advance: Told what is measured next.

    Raises:
        LoadError: The clients could not do their work.
        ServerError: The server has died.
    """
    for endpoint, path in ENDPOINTS.items():
        advance(f"warming up: {endpoint}")
        _drive(server, Job(HOST, server.port, path, max(clients), images=2 * max(clients), seed=0))
    samples: list[Sample] = []
    pairs: list[tuple[Labels, Labels]] = []
    for number in range(rounds):
        for count in clients:
            answers: dict[str, dict[str, Labels]] = {}
            # Every other round goes the other way round: whoever comes first finds a machine that has rested.
            for endpoint in list(ENDPOINTS)[:: -1 if number % 2 else 1]:
                advance(f"round {number + 1} of {rounds}: {endpoint}, {count} client{'s' * (count > 1)}")
                job = Job(HOST, server.port, ENDPOINTS[endpoint], count, images=images, seed=number + 1)
                sample, answers[endpoint] = _measure_once(server, endpoint, job)
                samples.append(sample)
            both = answers["here"].keys() & answers["flow"].keys()
            pairs += [(answers["here"][each], answers["flow"][each]) for each in both]
    return Measured(samples, len(pairs), sum(not same(*pair) for pair in pairs))


def same(some: Labels, others: Labels) -> bool:
    """Whether two answers have the same labels with scores equal within `TOLERANCE`; equal scores in any order."""
    scores, other_scores = ({each["label"]: float(each["score"]) for each in labels} for labels in (some, others))
    apart = [abs(scores.get(label, 0.0) - other_scores.get(label, 0.0)) for label in scores | other_scores]
    return len(some) == len(others) and max(apart, default=0.0) <= TOLERANCE


def _measure_once(server: Server, endpoint: str, job: Job) -> tuple[Sample, dict[str, Labels]]:
    before = server.get("/stats")
    worked = _cpu_seconds(before["pid"])
    result = _drive(server, job)
    worked = _cpu_seconds(before["pid"]) - worked
    after = server.get("/stats")
    answered = len(result.latencies)
    sample = Sample(
        endpoint,
        job.clients,
        answered / result.seconds,
        percentile(result.latencies, 0.5),
        percentile(result.latencies, 0.99),
        worked / max(answered, 1),
        percentile(result.others, 0.9),
        _sizes(before["steps"], after["steps"]),
        result.right / max(answered, 1),
        result.failures,
    )
    return sample, result.labels


def _drive(server: Server, job: Job) -> Result:
    try:
        return Result(**run_process("images.load", job))
    except LoadError:
        server.check()  # if that is why, its log tells more
        raise


def _cpu_seconds(pid: int) -> float:
    """Of a process and its children, as long as they live."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _sizes(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> dict[str, float]:
    sizes = {}
    for old, new in zip(before, after, strict=True):
        if batches := new["batches"] - old["batches"]:
            sizes[new["name"]] = (new["items"] - old["items"]) / batches
    return sizes
