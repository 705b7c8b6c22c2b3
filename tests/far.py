"""Handlers for processes: a child imports them from here."""

from __future__ import annotations

import logging
import os
import signal
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
