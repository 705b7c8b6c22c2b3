"""What a handler logs in a process of a pool reaches the loggers here.

Purpose: in a child, the loggers that the program has set up are not there, or have no threads to send with. So `Logged`
takes along what is logged during a call, and gives it back with the call's result: no queue, no thread, nothing that
is lost if nobody reads it. What is logged by a call that ends with its process is lost with it.

Guarantees: during a call the child's root logger has one handler, that which keeps the records, and the level of the
root logger here; after it, those that it had. The handler's result, or what it raises, is the same as without.

Assumptions: a child runs one call at a time. Records are made fit for the way by `logging.handlers.QueueHandler`.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import pickle

from .errors import HandlerFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Failed(Exception):
    """What the handler raised, with what it had logged."""

    def __init__(self, error: BaseException, records: list[logging.LogRecord]) -> None:
        super().__init__(error, records)
        self.error = error
        self.records = records


class _Kept(logging.handlers.QueueHandler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.records = records

    def enqueue(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Logged:
    """A handler as it is called in a child. Gives its result, and what was logged.

    Args:
        handler: the handler.
        level: of the root logger.
    """

    def __init__(self, handler: Callable[..., Any], level: int) -> None:
        self.handler = handler
        self.level = level

    def __call__(self, /, *args: Any, **kwargs: Any) -> tuple[Any, list[logging.LogRecord]]:
        """Raises Failed: the handler raised, and had logged. Exception: the handler raised."""
        records: list[logging.LogRecord] = []
        root = logging.getLogger()
        handlers, level = root.handlers, root.level
        root.handlers = [_Kept(records)]
        root.setLevel(self.level)
        try:
            result = self.handler(*args, **kwargs)
            if isinstance(result, (list, tuple)) and any(isinstance(each, BaseException) for each in result):
                result = [sendable(each) if isinstance(each, BaseException) else each for each in result]
            return result, records
        except Exception as error:
            if not records and sendable(error) is error:
                raise
            raise Failed(sendable(error), records) from error
        finally:
            root.handlers = handlers
            root.setLevel(level)


def sendable(error: BaseException) -> BaseException:
    """An exception, or if that cannot be pickled and unpickled, another one that says as much."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return HandlerFailed(f"{type(error).__qualname__}: {error}")


def sendable_results(answer: tuple[Any, list[logging.LogRecord]]) -> tuple[Any, list[logging.LogRecord]]:
    """The answer, with an error in the place of each result that cannot be pickled. Raises TypeError: none has one."""
    results, records = answer
    if not isinstance(results, (list, tuple)):
        raise TypeError(f"a {type(results).__name__} cannot be sent")
    return [_sendable_result(each) for each in results], records


def _sendable_result(result: Any) -> Any:
    try:
        pickle.dumps(result, 5)
    except Exception as error:
        return TypeError(f"the result, a {type(result).__name__}, cannot be sent: {error}")
    return result


def logged(handler: Callable[..., Any]) -> Logged:
    """A handler for a process of a pool."""
    return Logged(handler, logging.getLogger().level)


def told(answer: tuple[Any, list[logging.LogRecord]]) -> Any:
    """The result in an answer; what came with it goes to the loggers."""
    result, records = answer
    _log(records)
    return result


def raised(failed: Failed) -> BaseException:
    """What the handler raised; what came with it goes to the loggers."""
    _log(failed.records)
    error = failed.error
    error.__cause__ = failed.__cause__  # where it was raised, in the child, as a process pool tells it
    return error


def _log(records: list[logging.LogRecord]) -> None:
    for record in records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            with contextlib.suppress(Exception):  # of a log handler: no failure of the batch
                logger.handle(record)
