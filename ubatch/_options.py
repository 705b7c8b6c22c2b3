"""The options of a batcher: what they must be, and the policy and the rules that they stand for."""

from __future__ import annotations

import math
import operator

from ._binding import Binder, is_coroutine_function
from ._policy import Adaptive, Window
from ._terms import INFINITE, UNSET, Rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any

    from ._executor import Renewable
    from ._terms import Asked


def checked_max_size(max_size: int) -> int:
    """Raises TypeError, ValueError: it is not an integer of at least 1."""
    return _checked_count("max_size", max_size, "item")


def checked_workers(workers: int) -> int:
    """Raises TypeError, ValueError: it is not an integer of at least 1."""
    return _checked_count("workers", workers, "worker")


def checked_max_queue(max_queue: int | None) -> int | None:
    """Raises TypeError, ValueError: it is neither `None` nor an integer of at least 1."""
    return None if max_queue is None else _checked_count("max_queue", max_queue, "item")


def checked_threshold(threshold: int | None) -> int | None:
    """Raises TypeError, ValueError: it is neither `None` nor an integer of at least 1."""
    return None if threshold is None else _checked_count("small_batch_threshold", threshold, "item")


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
    """Raises TypeError, ValueError: it is neither `None` nor a string that UTF-8 can encode, as metrics need it."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"name must be encodable as UTF-8, not {name!r}") from None
    return name


def checked_priority(priority: float) -> float:
    """Raises TypeError, ValueError: it is not a finite number."""
    return _checked_number("priority", priority, "finite", -INFINITE)


def checked_aim(deadline: float) -> float:
    """Raises TypeError, ValueError: it is not a number of seconds; 0 and less have passed already."""
    if isinstance(deadline, bool) or not hasattr(deadline, "__float__"):
        raise TypeError(f"deadline must be a number of seconds, not {deadline!r}")
    if math.isnan(deadline):
        raise ValueError(f"deadline must be a number of seconds, not {deadline!r}")
    return _as_float(deadline)


def checked_choice(
    base: Asked, priority: float | None, deadline: float | None, key: Hashable
) -> tuple[float, float, Hashable]:
    """What `options` was called with, or that of `base`. Raises TypeError, ValueError: it is not as it must be."""
    return (
        base.priority if priority is None else checked_priority(priority),
        base.deadline if deadline is None else checked_aim(deadline),
        base.key if key is UNSET else key,
    )


def checked_limit(name: str, seconds: float) -> float:
    """Raises TypeError, ValueError: it is not a number of seconds, more than 0 and finite."""
    return _checked_number(name, seconds, "more than 0 seconds and finite", 0.0)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer that is too large
        return INFINITE if number > 0 else -INFINITE


def _checked_number(name: str, number: float, what: str, above: float) -> float:
    if isinstance(number, bool) or not hasattr(number, "__float__"):
        raise TypeError(f"{name} must be a number, not {number!r}")
    value = _as_float(number)
    if not above < value < INFINITE:
        raise ValueError(f"{name} must be {what}, not {number!r}")
    return value


def _is_infinite(number: object) -> bool:
    return isinstance(number, float) and number == INFINITE


def _checked_function(name: str, function: Callable[..., Any] | None) -> None:
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"{name} must be None or callable, not {function!r}")
    if is_coroutine_function(function):
        raise TypeError(f"{name} must be a plain function, not {function!r}, a coroutine function")


def rules_for(
    key: Callable[..., Hashable] | None,
    weight: Callable[..., float] | None,
    max_weight: float | None,
    padded: bool,
    max_queue: int | None,
    overflow: str,
    deadline: float | None,
    aging: float,
) -> Rules:
    """The rules that options stand for. Raises TypeError, ValueError: one is not as it must be; see `UBatch`."""
    _checked_function("key", key)
    _checked_function("weight", weight)
    if (weight is None) != (max_weight is None):
        raise ValueError(f"weight and max_weight go together, not weight={weight!r} with max_weight={max_weight!r}")
    limit = INFINITE if max_weight is None else _checked_number("max_weight", max_weight, "more than 0 and finite", 0.0)
    if not isinstance(padded, bool):
        raise TypeError(f"padded must be True or False, not {padded!r}")
    if padded and weight is None:
        raise ValueError("padded=True bounds what items weigh: it needs weight and max_weight")
    within = INFINITE
    if deadline is not None and not _is_infinite(deadline):
        within = _checked_number("deadline", deadline, "more than 0 seconds, or None", 0.0)
    aging = INFINITE if _is_infinite(aging) else _checked_number("aging", aging, "more than 0 seconds", 0.0)
    if overflow not in ("reject", "block"):
        raise ValueError(f"overflow must be 'reject' or 'block', not {overflow!r}")
    return Rules(
        key,
        weight,
        limit,
        padded,
        within,
        aging,
        checked_max_queue(max_queue),
        overflow == "block",
    )


def checked_isolate(isolate: bool) -> bool:
    """Raises TypeError: it is neither `True` nor `False`."""
    if not isinstance(isolate, bool):
        raise TypeError(f"isolate must be True or False, not {isolate!r}")
    return isolate


def checked_handlers(handler: Any, coroutines: bool) -> tuple[Callable[..., Any], ...]:
    """The handlers that a batcher is given: one for all workers, or a list with one for each.

    Args:
        handler: as it was given.
        coroutines: whether handlers may be coroutine functions.

    Raises:
        TypeError, ValueError: it is not as it must be; see `UBatch`.
    """
    several = isinstance(handler, (list, tuple)) and not callable(handler)
    handlers: tuple[Any, ...] = tuple(handler) if several else (handler,)
    if not handlers:
        raise ValueError(f"a list of handlers must have at least one, not {handler!r}")
    for each in handlers:
        if not callable(each):
            raise TypeError(f"handler must be callable, not {each!r}")
        if not coroutines and is_coroutine_function(each):
            raise TypeError(f"handler {each!r} is a coroutine function, which is for ubatch.aio, not for a thread")
    if several:
        if len({is_coroutine_function(each) for each in handlers}) > 1:
            raise TypeError(f"handlers must all be coroutine functions, or none of them, not {handler!r}")
        parameters = [Binder(each).parameters for each in handlers]
        for each, theirs in zip(handlers, parameters, strict=True):
            if theirs != parameters[0]:
                raise ValueError(f"handlers must have the same parameters; {each!r} differs from {handlers[0]!r}")
    return handlers


def checked_workers_of(handler: Any, handlers: tuple[Callable[..., Any], ...], workers: int, placed: bool) -> int:
    """The number of workers of a batcher that has these handlers.

    Args:
        handler: as it was given.
        handlers: the same, checked.
        workers: as they were given; 1 also where they were not.
        placed: whether the handlers run in an executor.

    Raises:
        ValueError: a list of handlers with another number of workers, or with an executor.
    """
    if callable(handler):
        return workers
    if placed:
        raise ValueError("a list of handlers means a worker for each, in a thread: it excludes executor")
    if workers not in (1, len(handlers)):
        raise ValueError(f"a list of {len(handlers)} handlers means a worker for each, not workers={workers}")
    return len(handlers)


def checked_changes(
    handlers: tuple[Callable[..., Any], ...], max_size: int, timeout: float | None, max_queue: int | None, workers: int
) -> dict[str, Any]:
    """What `reconfigure` was given, by name, without what is `UNSET`.

    Raises:
        TypeError, ValueError: one is not as it must be, or `workers` not the number of a list of handlers.
    """
    changes: dict[str, Any] = {}
    if max_size is not UNSET:
        changes["max_size"] = checked_max_size(max_size)
    if timeout is not UNSET:
        changes["timeout"] = checked_timeout(timeout)
    if max_queue is not UNSET:
        changes["max_queue"] = checked_max_queue(max_queue)
    if workers is not UNSET:
        changes["workers"] = checked_workers(workers)
        if workers != len(handlers) > 1:
            raise ValueError(f"{len(handlers)} handlers mean a worker for each, not workers={workers}")
    return changes


def checked_executor(executor: Any) -> Renewable | None:
    """Raises TypeError: it is neither an executor nor a function that makes one, or its threads belong to gevent."""
    if executor is None:
        return None
    from ._executor import Renewable, is_executor, is_of_gevent

    if is_of_gevent(executor):
        raise TypeError(
            f"executor {executor!r} is for a hub of gevent, not for workers, which are threads: see workers"
        )
    if is_executor(executor) or callable(executor):
        return Renewable(executor)  # pyright: ignore[reportArgumentType]
    raise TypeError(f"executor must be a concurrent.futures.Executor, or a function that makes one, not {executor!r}")


def policy_for(timeout: float | None, workers: int = 1) -> Window | Adaptive:
    """The policy that a timeout stands for."""
    return Adaptive(workers) if timeout is None else Window(timeout)
