"""Handlers for processes: a child imports them from here."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

from ubatch import dynamically, ubatch_decorator
from ubatch.inference import dynamically as dynamically_inferred


def double(items: list[Any]) -> list[Any]:
    return [2 * item for item in items]


def whereabouts(items: list[Any]) -> list[int]:
    return [os.getpid() for _ in items]


def fate(items: list[str]) -> list[Any]:
    """What an item says happens to the process, or to the item."""
    for item in items:
        if item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif item == "exit":
            os._exit(3)
        elif item == "raise":
            raise ValueError(os.getpid())
        elif item == "slow":
            time.sleep(0.05)
    return [ValueError(item) if item == "error" else item for item in items]


def chatty(items: list[str]) -> list[str]:
    """Logs its items."""
    logger = logging.getLogger("far.model")
    for item in items:
        if item == "raise":
            try:
                raise KeyError(item)
            except KeyError:
                logger.exception("cannot do %s", item)
                raise
        logger.info("doing %s", item)
        logger.debug("not %s", item)
    return items


class Unpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


class Local(Exception):
    """Unpickles only where it was made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _local, (os.getpid(),)


def _local(pid: int) -> Local:
    if pid != os.getpid():
        raise OSError("far from home")
    return Local()


def told(what: str) -> str:
    """Logs one record, of a kind that is not easily sent."""
    logger = logging.getLogger("far.odd")
    if what == "exception":
        try:
            raise KeyError(what)
        except KeyError:
            logger.exception("cannot do %s", what)
    elif what == "unpicklable exception":
        try:
            raise Unpicklable(what, "")
        except Unpicklable:
            logger.exception("cannot do %s", what)
    elif what == "local exception":
        try:
            raise Local
        except Local as error:
            logger.exception("cannot do %s", what, extra={"error": error, "user": [7]})
    elif what == "no exception":
        logger.exception("there is none")
    elif what == "stack":
        logger.error("here", stack_info=True)
    elif what == "arguments":
        logger.error("by %s, 100 %%", Unreadable())
    elif what == "extra":
        logger.error("more", extra={"lock": threading.Lock(), "unreadable": Unreadable(), "user": [7]})
    elif what == "level":
        logger.log(signal.SIGUSR2 + 90, "an integer")
        logger.log(signal.Signals.SIGTERM, "an integer of a kind")
    elif what == "misfit":
        logger.error("%d", what)
        logger.error("fits")
    return what


class Unreadable:
    """Neither pickles, nor has a `repr`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        return "a name"

    def __repr__(self) -> str:
        raise OSError("unreadable")


def whispers(names: list[str]) -> list[list[int]]:
    """Logs at all levels, to loggers of these names, and gives the levels that these have by themselves."""
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.debug("debug")
        logger.info("info")
        logger.warning("warning")
    return [[logger.level] for logger in loggers]


def levels(*names: str) -> list[int]:
    """The levels that loggers have by themselves."""
    return [logging.getLogger(name).level for name in names]


def set_levels(**levels: int) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def scaled(items: list[float], factor: list[float] = 10) -> list[float]:  # type: ignore[assignment]
    return [item * each for item, each in zip(items, factor, strict=True)]


@ubatch_decorator(max_size=8, executor=dict)  # a test puts one in its place that makes executors
def decorated(items: list[int]) -> list[int]:
    return [item + os.getpid() for item in items]


@dynamically(max_size=8, executor=dict)
def dynamic(items: list[int]) -> list[int]:
    return [item + os.getpid() for item in items]


@dynamically_inferred(max_size=8, pad_tokens={"x": 0}, executor=dict)
def sums(features: dict[str, Any]) -> dict[str, Any]:
    x = features["x"]
    return {"sum": x.sum(1), "pid": 0 * x[:, 0] + os.getpid()}


class Model:
    """Its methods run far from where it was made."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    @ubatch_decorator(executor=dict)
    def plain(self, items: list[int]) -> list[int]:
        return [self.offset + item + os.getpid() for item in items]

    @dynamically(executor=dict)
    def dynamic(self, items: list[int]) -> list[int]:
        return [self.offset + item + os.getpid() for item in items]
