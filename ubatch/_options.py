"""The options of a batcher: what they must be, and the policy that they stand for."""

from __future__ import annotations

import math
import operator

from ._policy import Adaptive, Window


def checked_max_size(max_size: int) -> int:
    """Raises TypeError, ValueError: it is not an integer of at least 1."""
    return _checked_count("max_size", max_size, "item")


def checked_workers(workers: int) -> int:
    """Raises TypeError, ValueError: it is not an integer of at least 1."""
    return _checked_count("workers", workers, "worker")


def _checked_count(name: str, count: int, unit: str) -> int:
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"{name} must be an integer, not {count!r}")
    if operator.index(count) < 1:
        raise ValueError(f"{name} must be at least 1 {unit}, not {count!r}")
    return operator.index(count)


def checked_timeout(timeout: float | None) -> float | None:
    """Raises TypeError, ValueError: it is neither `None` nor a number of at least 0."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not hasattr(timeout, "__float__"):
        raise TypeError(f"timeout must be None or a number of seconds, not {timeout!r}")
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return float(timeout)


def checked_name(name: str | None) -> str | None:
    """Raises TypeError: it is neither `None` nor a string."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    return name


def checked_isolate(isolate: bool) -> bool:
    """Raises TypeError: it is neither `True` nor `False`."""
    if not isinstance(isolate, bool):
        raise TypeError(f"isolate must be True or False, not {isolate!r}")
    return isolate


def policy_for(timeout: float | None, workers: int = 1) -> Window | Adaptive:
    """The policy that a timeout stands for."""
    return Adaptive(workers) if timeout is None else Window(timeout)
