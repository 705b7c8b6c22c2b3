"""The flow: files are decoded in as many processes as there are cores, what comes of them is classified in one more."""

from __future__ import annotations

from typing import Any

from search.machine import cores

from images.decode import decode
from images.model import Classifier, Score
from ubatch import Flow, Step

Images = Flow[bytes, list[Score]]
"""From a file's bytes to the scores of all subjects."""

MOST_WAITING = 256
"""Files that wait to be decoded at most; a second's worth, about."""

LONGEST_HANDLING = 20.0
"""Seconds after which a child that still has the same batch is taken for hung."""

LONGEST_START = 120.0
"""Seconds: a model that no file has yet is trained first."""


def create_flow(processes: int | None = None) -> Images:
    """Makes the flow: a file's bytes in, the scores of all subjects out, best first.

    A file takes as long to decode in company as alone, so decoding leaves at once and in small batches, which keep
    all processes busy. The model gains by company: its batches are arrays of whatever has been decoded meanwhile.

    Args:
        processes: How many decode; as many as there are cores if left out; with 0 both steps run in this process.
    """
    processes = cores() if processes is None else processes
    limits: dict[str, Any] = {"handler_timeout": LONGEST_HANDLING, "start_timeout": LONGEST_START} if processes else {}
    return Flow(
        Step(
            decode,
            name="decode",
            processes=processes,
            max_size=4,
            timeout=0,
            max_queue=MOST_WAITING,
            **limits,
        ),
        Step(Classifier, name="classify", processes=min(processes, 1), stacked=True, max_size=32, **limits),
        name="images",
    )
