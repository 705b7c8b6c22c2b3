"""Many clients in one process: each sends a photograph's piece, waits for its labels, sends the next one at once.

Meanwhile one more asks for something that has nothing to do with images, now and then: how long it waits shows what the
server's other requests have to bear.

Runs as a process of its own (`python -m images.load`), reads a `Job` from its standard input and writes a `Result` to
its standard output, both as JSON.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field

from embeddings.load import Clients, Sent, post

from images.photographs import encoded, pieces

_PAUSE = 0.01

Labels = list[dict[str, str | float]]
"""The subjects that fit best, each with its `label` and `score`."""


@dataclass(frozen=True, kw_only=True)
class Job(Clients):
    """What to send, and where to."""

    images: int
    """How many pieces of photographs, each once."""
    seed: int
    """Those of one seed are the same."""


@dataclass
class Result(Sent):
    """What came of a job."""

    labels: dict[str, Labels] = field(default_factory=dict)
    """By the number of the image."""
    right: int = 0
    """How many images had their subject for the first label."""
    others: list[float] = field(default_factory=list)
    """Seconds that each other request took."""


def drive(job: Job) -> Result:
    """Runs all clients of a job."""
    drawn = list(pieces(job.images, job.seed))
    result = Result()

    def take(number: int, body: bytes) -> None:
        labels = result.labels[str(number)] = json.loads(body)["labels"]
        result.right += labels[0]["label"] == drawn[number][0]

    bodies = [(number, encoded(image)) for number, (_, image) in enumerate(drawn)]
    over = threading.Event()
    other = threading.Thread(target=_ask_for_others, args=(job, over, result.others))
    other.start()
    try:
        post(job, bodies, "image/jpeg", take, result)
    finally:
        over.set()
        other.join()
    return result


def _ask_for_others(job: Job, over: threading.Event, took: list[float]) -> None:
    with closing(http.client.HTTPConnection(job.host, job.port, timeout=job.patience)) as connection:
        while not over.wait(_PAUSE):
            sent = time.perf_counter()
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()  # whether the server is well is seen by the images
                continue
            took.append(time.perf_counter() - sent)


if __name__ == "__main__":
    json.dump(asdict(drive(Job(**json.load(sys.stdin)))), sys.stdout)
