"""ubatch turns a function that is fast on a batch into one that many callers can call with a single item."""

from .core import UBatch
from .decorators import ubatch_decorator
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
from .stats import Stats

__version__ = "2.0.0"

__all__ = [
    "BadBatchOutputSize",
    "DeadlineExceeded",
    "HandlerAlreadySet",
    "HandlerFailed",
    "HandlerNotSet",
    "QueueFull",
    "Stats",
    "Stopped",
    "UBatch",
    "UBatchError",
    "WorkerDied",
    "__version__",
    "ubatch_decorator",
]
