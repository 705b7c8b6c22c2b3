"""The process of one contender: it is told its case, prepares it, and measures one round for each line it reads.

So the rounds of several contenders can be interleaved, and none inherits another's threads, cores or modules.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from pathlib import Path

from case import Case

FIGURES = {
    "round trip": "handover.round_trip",
    "lone": "handover.lone",
    "closed loop": "closed.closed_loop",
    "open loop": "open.open_loop",
    "import": "footprint.importing",
    "queued": "footprint.queued",
    "idle": "footprint.idle",
    "fails": "failing.fails",
    "pipeline": "pipeline.pipeline",
}
"""Where each figure is measured: a function that takes the case and returns what measures a round."""

PACKAGES = ("ubatch", "batched", "async_batcher", "aqueduct")

PR_SET_TIMERSLACK = 29


PR_SET_PDEATHSIG, SIGKILL = 1, 9


def end_with_parent() -> None:
    """Die when the process that started this one does, even if it was stopped then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def exact_sleeps() -> None:
    """Let sleeps end on time, within a microsecond; otherwise they last up to 50 µs longer. Threads inherit it."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def check_origin(directory: str) -> None:
    """See that the contender came from its own directory.

    Raises:
        ImportError: another copy of it was found first.
    """
    for name in PACKAGES:
        module = sys.modules.get(name)
        if module is not None and not Path(module.__file__ or "").resolve().is_relative_to(Path(directory).resolve()):
            raise ImportError(f"{name} was found at {module.__file__}, not in {directory}")


def serve() -> None:
    """Read a case, then seconds, line by line; write a sample for each of the latter."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the contender prints is not an answer
    end_with_parent()
    exact_sleeps()
    case = Case(**json.loads(sys.stdin.readline()))
    module, _, function = FIGURES[case.figure].partition(".")
    measure = getattr(importlib.import_module(module), function)(case)
    for line in sys.stdin:
        sample = measure(float(line))
        check_origin(os.environ.get("BENCHMARKED", "/"))
        print(json.dumps(sample), file=answers, flush=True)
    os._exit(0)  # the bare loops never end


if __name__ == "__main__":
    serve()
