"""Many clients in one process: each sends a photograph's piece, waits for its labels, sends the next one at once.

Runs as a process of its own (`python -m images.load`), reads a `Job` from its standard input and writes a `Result` to
its standard output, both as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field

from embeddings.load import Clients, Sent, post

from images.photographs import encoded, pieces

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


def drive(job: Job) -> Result:
    """Runs all clients of a job."""
    drawn = list(pieces(job.images, job.seed))
    result = Result()

    def take(number: int, body: bytes) -> None:
        labels = result.labels[str(number)] = json.loads(body)["labels"]
        result.right += labels[0]["label"] == drawn[number][0]

    post(job, [(number, encoded(image)) for number, (_, image) in enumerate(drawn)], "image/jpeg", take, result)
    return result


if __name__ == "__main__":
    json.dump(asdict(drive(Job(**json.load(sys.stdin)))), sys.stdout)
