"""What the web applications share: what they answer, and how they tell that they cannot."""

from __future__ import annotations

import os
import queue
from collections.abc import Sequence
from functools import cache
from typing import Any

from images.decode import BadImageError, check, decode
from images.model import Classifier, Score
from ubatch import Flow
from ubatch.errors import Stopped, WorkerDied

DEADLINE = 30.0
"""Seconds within which an image is classified, or refused."""

RETRY_AFTER = "1"
"""Seconds after which a client that was refused may try again, as HTTP has it."""

REFUSED = (BadImageError, queue.Full, TimeoutError, WorkerDied, Stopped)
"""What `refusal` knows: QueueFull and DeadlineExceeded are the second and the third."""

_SHOWN = 3


def answer(scores: Sequence[Score]) -> dict[str, Any]:
    """What is sent for an image: the subjects that fit best, with their scores."""
    return {"labels": [score._asdict() for score in scores[:_SHOWN]]}


def refusal(error: Exception) -> tuple[dict[str, str], int, dict[str, str]]:
    """The JSON, the status and the headers by which one of `REFUSED` is told."""
    if isinstance(error, BadImageError):
        return {"error": str(error)}, error.status, {}
    overloaded = isinstance(error, (queue.Full, TimeoutError))
    reason = "the service is overloaded" if overloaded else "the process that had the image in hand ended: try again"
    return {"error": reason}, 503, {"Retry-After": RETRY_AFTER}


def classify_here(body: bytes) -> list[Score]:
    """The same without a flow: both steps in this thread, for comparison.

    Raises:
        BadImageError: The body is no image.
    """
    (pixels,) = decode([check(body)])
    if isinstance(pixels, BadImageError):
        raise pixels
    return _classifier()(pixels[None])[0]


def stats(flow: Flow[Any, Any]) -> dict[str, Any]:
    """What the flow has done, step by step, and how its child processes are. Times are seconds, sizes bytes."""
    return {"pid": os.getpid(), **flow.stats.asdict()}


def health(flow: Flow[Any, Any]) -> dict[str, Any]:
    """Whether images are accepted, and how many children each step has alive."""
    alive = {}
    for step in flow.stats.steps:
        children = step.processes.children if step.processes else ()
        alive[step.name] = sum(child.alive for child in children)
    return {"status": "ok" if flow.alive else "stopped", "children": alive}


@cache
def _classifier() -> Classifier:
    return Classifier()
