"""The process of one contender: it is told its case, prepares it, and measures one round for each line it reads.

So the rounds of several contenders can be interleaved, and none inherits another's threads, cores or modules.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

import _callers
import _footprint
from _case import Case, Round

FIGURES: dict[str, Callable[[Case], Round]] = {
    "round trip": _callers.round_trip,
    "lone": _callers.lone,
    "threads": _callers.threads,
    "tasks": _callers.tasks,
    "greenlets": _callers.greenlets,
    "start-up": _footprint.start_up,
    "queued": _footprint.queued,
    "idle": _footprint.idle,
}


def serve() -> None:
    """Read a case, then seconds, line by line; write a sample for each of the latter."""
    case = Case(**json.loads(sys.stdin.readline()))
    measure = FIGURES[case.figure](case)
    for line in sys.stdin:
        print(json.dumps(measure(float(line))), flush=True)
    os._exit(0)  # the bare loops never end


if __name__ == "__main__":
    serve()
