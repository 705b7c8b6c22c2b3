"""What functions log in child processes reaches the loggers here.

Purpose: in a child, the loggers that the program has set up are not there, or have no threads to send with. So `Logged`
takes along what is logged during a call, and gives it back with the call's result: no queue, no thread, nothing that
is lost if nobody reads it. What is logged by a call that ends with its process is lost with it.

Guarantees: during a call the child's loggers have one handler, the root's, which keeps the records, and those that have
a level here have the same there; after it all is as it was. What the function returns, or raises, is the same
as without. A record arrives as it was logged, its exception's traceback as text; but its arguments are in its message,
and what cannot be pickled is told by its `repr`. A field that cannot be unpickled here alone is left out.

Assumptions: a child runs one call at a time.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import reprlib

from ._attempt import description, length
from ._parcels import NotSent, Unpackable, parts
from .errors import HandlerFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Record: TypeAlias = tuple[dict[str, Any], dict[str, bytes]]  # its fields as they are, and those that are pickled

_PLAIN = frozenset((str, int, float, bool, type(None)))
"""Types of fields that are sent as they are: of nearly all."""

_tracebacks = logging.Formatter()
_reprs = reprlib.Repr()  # bears objects whose own one raises
_reprs.maxother = 200


class Failed(Exception):
    """What a function raised, with what it had logged."""

    def __init__(self, error: BaseException, records: list[Record]) -> None:
        super().__init__(error, records)
        self.error = error
        self.records = records

    def __str__(self) -> str:
        return description(self.error)


class _Kept(logging.Handler):
    def __init__(self, records: list[Record]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.records.append(_packed(record))
        except Exception:  # its arguments do not fit its message
            self.handleError(record)


def _packed(record: logging.LogRecord) -> Record:
    plain: dict[str, Any] = {}
    others: dict[str, bytes] = {}
    fields = {**vars(record), "msg": record.getMessage(), "args": None, "exc_info": None}
    for name, value in fields.items():
        if type(value) in _PLAIN:
            plain[name] = value
        elif (data := _pickled(value)) is not None:
            others[name] = data
        else:
            plain[name] = _reprs.repr(value)
    if record.exc_info:
        error = record.exc_info[1]
        plain["exc_text"] = _tracebacks.formatException(record.exc_info)
        if error is not None and (data := _pickled((type(error), error, None))) is not None:
            others["exc_info"] = data
    return plain, others


def _pickled(value: object) -> bytes | None:
    """`None` if it cannot be pickled and unpickled."""
    try:
        data = pickle.dumps(value, 5)
        pickle.loads(data)
        return data
    except Exception:
        return None


class Logged:
    """A function as it is called in a child. Gives its result, and what was logged.

    Args:
        function: the function.
        is_handler: whether its results are those of a batch's items: each that is an exception is made sendable.
        levels: of loggers, by their names; of those that have one.
    """

    def __init__(self, function: Callable[..., Any], is_handler: bool, levels: dict[str, int]) -> None:
        self.function = function
        self.is_handler = is_handler
        self.levels = levels

    def __call__(self, /, *args: Any, **kwargs: Any) -> tuple[Any, list[Record]]:
        """Raises Failed: the function raised, and had logged. Exception: the function raised."""
        records: list[Record] = []
        root = logging.getLogger()
        handlers = root.handlers
        root.handlers = [_Kept(records)]
        silenced = _silenced()
        others = _set_levels(self.levels)
        try:
            result = self.function(*args, **kwargs)
            is_sequence = self.is_handler and isinstance(result, (list, tuple))
            if is_sequence and any(isinstance(each, BaseException) for each in result):
                result = [sendable(each) if isinstance(each, BaseException) else each for each in result]
            return result, records
        except Exception as error:
            if not records and sendable(error) is error:
                raise
            raise Failed(sendable(error), records) from error
        finally:
            root.handlers = handlers
            for logger, theirs, propagates in silenced:
                logger.handlers = [*theirs, *logger.handlers]  # the function may have added some
                logger.propagate = propagates
            _set_levels(others)


def _silenced() -> list[tuple[logging.Logger, list[logging.Handler], bool]]:
    """Have loggers hand on what they get, and do nothing else with it: where the process was forked, or sets up its
    loggers as this one does, a record would be handled twice. Gives those that did otherwise, and how.
    """
    silenced = [
        (logger, logger.handlers, logger.propagate) for logger in _loggers() if logger.handlers or not logger.propagate
    ]
    for logger, _, _ in silenced:
        logger.handlers, logger.propagate = [], True
    return silenced


def _loggers() -> list[logging.Logger]:
    """All but the root."""
    loggers = [*logging.getLogger().manager.loggerDict.values()]  # at once: other threads make some
    return [logger for logger in loggers if isinstance(logger, logging.Logger)]


def _set_levels(levels: dict[str, int]) -> dict[str, int]:
    """Set the levels of loggers, by their names. Gives what those had that had another."""
    others: dict[str, int] = {}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        if logger.level != level:
            others[name] = logger.level
            logger.setLevel(level)  # it makes all loggers forget what they are enabled for: only where it must be
    return others


def _levels() -> dict[str, int]:
    """The levels of the loggers here, by their names; of those that have one."""
    root = logging.getLogger()
    return {root.name: root.level, **{logger.name: logger.level for logger in _loggers() if logger.level}}


def sendable(error: BaseException) -> BaseException:
    """An exception, or if that cannot be pickled and unpickled, another one that says as much."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return HandlerFailed(description(error))


class _Caused:
    """An exception that arrives with its cause, which pickles leave out."""

    def __init__(self, error: Exception, cause: BaseException | None) -> None:
        self.error = error
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return _caused, (self.error, None if self.cause is None else sendable(self.cause))


def _caused(error: Exception, cause: BaseException | None) -> Exception:
    error.__cause__ = cause
    return error


def sendable_results(answer: tuple[Any, list[Record]], error: Unpackable) -> tuple[list[Any], list[Record]]:
    """A handler's answer that cannot be pickled, with an error in the place of each result that cannot be.

    Args:
        answer: the results, and what was logged.
        error: why it cannot be pickled.

    Raises:
        Failed: with `NotSent`, as what was returned is no batch of results.
        Exception: what a sequence with a mind of its own raises.
    """
    output, records = answer
    size = length(output)
    if not isinstance(size, int):
        raise Failed(NotSent(size, str(error)), records) from error.__cause__
    return [sendable_result(each) for each in output], records


def sendable_result(result: Any) -> Any:
    """A result, or what arrives as an error that says why it cannot be pickled."""
    if isinstance(result, BaseException):
        return sendable(result)
    try:
        parts(result)
    except Unpackable as error:
        said = TypeError(f"the result, a {type(result).__name__}, cannot be sent: {error}")
        return _Caused(said, error.__cause__)
    return result


def logged(function: Callable[..., Any], is_handler: bool = False) -> Logged:
    """A function for a child; see `Logged`."""
    return Logged(function, is_handler, _levels())


def heard(call: Callable[[], tuple[Any, list[Record]]]) -> Any:
    """The result of a call of what is `Logged`; what came with it goes to the loggers here.

    Raises:
        Exception: what the function raised, or the call.
    """
    try:
        result, records = call()
    except Failed as failed:
        _log(failed.records)
        raise failed.error from failed.__cause__  # where it was raised, in the child, as a process pool tells it
    finally:
        del call  # a traceback refers to this frame: to nobody's items
    _log(records)
    return result


def _log(records: list[Record]) -> None:
    for plain, others in records:
        with contextlib.suppress(Exception):  # of a log handler: no failure of the call
            record = _unpacked(plain, others)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)


def _unpacked(plain: dict[str, Any], others: dict[str, bytes]) -> logging.LogRecord:
    record = logging.makeLogRecord(plain)
    for name, data in others.items():
        with contextlib.suppress(Exception):  # it could be unpickled there, but not here
            setattr(record, name, pickle.loads(data))
    return record
