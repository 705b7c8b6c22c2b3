"""Batching on an event loop alone: handlers that are coroutine functions, without any thread.

The names are those of `ubatch`: `UBatch`, `ubatch_decorator`, `dynamically`. Here `ubatch`, `map` and `stop` are
coroutines, and `submit` gives an `asyncio.Future`. A handler that is a plain function runs in a thread of the
batcher's own, so that the loop is not blocked and its default pool not used up.

One object serves successive and several loops.
"""

from __future__ import annotations

from .core import UBatch
from .decorators import dynamically, ubatch_decorator

__all__ = ["UBatch", "dynamically", "ubatch_decorator"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import inference as inference
else:

    def __getattr__(name):
        """`ubatch.aio.inference` is loaded at first use."""
        if name == "inference":
            from importlib import import_module

            return import_module(".inference", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
