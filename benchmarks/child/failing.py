"""Contenders that fail, for tests of how that is reported."""

from __future__ import annotations

import os
import sys
import time

from case import Case, Round, Sample


def fails(case: Case) -> Round:
    """Fail, or not, as the handler's name says, in the round that `callers` gives the number of, from 0."""
    number = -1

    def measure(seconds: float) -> Sample:
        nonlocal number
        number += 1
        if number >= case.callers:
            if case.handler == "raises":
                raise RuntimeError("as it was told to")
            if case.handler == "exits":
                print("about to exit", file=sys.stderr, flush=True)
                os._exit(3)
            if case.handler == "hangs":
                time.sleep(3600)
        return {"time": float(number), "cpu": seconds, "process": os.getpid(), "moment": time.monotonic()}

    return measure
