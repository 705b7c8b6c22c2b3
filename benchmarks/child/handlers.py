"""The batch handlers that cases name."""

from __future__ import annotations

import threading
import time
from time import thread_time
from typing import Any

from case import MODELS, Handler


def no_op(items: list[Any]) -> list[Any]:
    """Costs nothing."""
    return items


def device(a: float, c: float) -> Handler:
    """A device that takes `a + c * b` seconds for a batch of `b`, without the GIL, and one batch at a time."""
    busy = threading.Lock()

    def handler(items: list[Any]) -> list[Any]:
        with busy:
            time.sleep(a + c * len(items))
        return items

    return handler


def computing(seconds: float) -> Handler:
    """Python code, which holds the GIL; measured by the thread's own time, so always the same work."""

    def handler(items: list[Any]) -> list[Any]:
        until = thread_time() + seconds
        while thread_time() < until:
            for _ in range(100):
                pass
        return items

    return handler


HANDLERS: dict[str, Handler] = {
    "no-op": no_op,
    "sleeps 1 ms": device(0.001, 0.0),
    "computes 1 ms": computing(0.001),
    "computes 20 ms": computing(0.020),
    **{name: device(a, c) for name, (a, c, _) in MODELS.items()},
}


class Counting:
    """A handler that counts; to be called by one thread at a time if the count is to be right."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.items = self.batches = 0

    def __call__(self, items: list[Any]) -> Any:
        """Count and pass on."""
        self.items += len(items)
        self.batches += 1
        return self.handler(items)
