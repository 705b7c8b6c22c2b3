"""ubatch turns a function that is fast on a batch into one that many callers can call with a single item."""

from ._observing import Batch, observe
from .core import UBatch
from .decorators import dynamically, ubatch_decorator
from .errors import (
    BadBatchOutputSize,
    DeadlineExceeded,
    HandlerAlreadySet,
    HandlerFailed,
    HandlerNotSet,
    QueueFull,
    Stopped,
    UBatchError,
    WorkerDied,
)
from .stats import Histogram, Stats

__version__ = "2.0.0"

__all__ = [
    "BadBatchOutputSize",
    "Batch",
    "DeadlineExceeded",
    "HandlerAlreadySet",
    "HandlerFailed",
    "HandlerNotSet",
    "Histogram",
    "QueueFull",
    "Stats",
    "Stopped",
    "UBatch",
    "UBatchError",
    "WorkerDied",
    "__version__",
    "cached",
    "dynamically",
    "observe",
    "ubatch_decorator",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import aio as aio
    from . import inference as inference
    from . import metrics as metrics
    from . import processes as processes
    from ._cached import cached as cached
else:

    def __getattr__(name):
        """What brings asyncio, concurrent.futures and more along, or few programs need, is loaded at first use."""
        if name in ("aio", "inference", "metrics", "processes"):
            from importlib import import_module

            return import_module(f".{name}", __name__)
        if name == "cached":
            from ._cached import cached

            globals()[name] = cached
            return cached
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
