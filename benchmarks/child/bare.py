"""Bare loops to measure ubatch against: the same job with nothing of what makes it safe or clever.

No policy, no statistics, no errors, no way to stop or to leave; callers keep one lock for all their calls. What
they cost is what the interpreter and the operating system cost, so the distance to them is ubatch's own.
"""

from __future__ import annotations

import _thread
import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

Handler = Callable[[list[Any]], Any]

NEVER = sys.maxsize


def ping_pong(handler: Handler | None) -> Callable[[int], None]:
    """Two threads and two raw locks: the least that handing something to another thread and back can cost.

    Args:
        handler: what the other thread calls in between; `None` for nothing.

    Returns:
        A function that makes that many round trips.
    """
    ping, pong = _thread.allocate_lock(), _thread.allocate_lock()
    ping.acquire()
    pong.acquire()

    def partner() -> None:
        while handler is None:
            ping.acquire()
            pong.release()
        while True:
            ping.acquire()
            handler([0])
            pong.release()

    def loop(count: int) -> None:
        for _ in range(count):
            ping.release()
            pong.acquire()

    _thread.start_new_thread(partner, ())
    return loop


class Caller:
    """What a caller of a bare loop hands over, over and over again."""

    __slots__ = ("item", "lock", "loop", "next", "result", "switch")

    def __init__(self, loop: BareLoop, switch: Callable[[], Any] | None = None) -> None:
        self.loop = loop
        self.item: Any = None
        self.result: Any = None
        self.next: Caller | None = None
        self.switch = switch
        self.lock = _thread.allocate_lock()
        self.lock.acquire()

    def call(self, item: Any) -> Any:
        """Hand over the item and wait."""
        self.item = item
        self.loop.put(self)
        self.lock.acquire()
        if self.next is not None:
            self.next.lock.release()
        return self.result


class BareLoop:
    """A worker thread that takes what is queued, calls the handler and wakes the callers.

    Args:
        handler: the batch handler.
        max_size: the largest batch, in items.
        gather: how many items the worker waits for before each batch.
        wake: given the callers of a batch, whose results are set.
    """

    def __init__(self, handler: Handler, max_size: int, gather: int, wake: Callable[[list[Any]], None]) -> None:
        self.handler = handler
        self.max_size = max_size
        self.gather = gather
        self.wake = wake
        self.queue: deque[Any] = deque()
        self.wake_at = NEVER
        self.token = _thread.allocate_lock()
        self.token.acquire()
        _thread.start_new_thread(self._work, ())

    def put(self, caller: Any) -> None:
        """Queue a caller and wake the worker if it waits for that many."""
        self.queue.append(caller)
        if len(self.queue) >= self.wake_at:
            self.ring()

    def ring(self) -> None:
        """Let the worker look at the queue."""
        try:
            self.token.release()
        except RuntimeError:
            pass

    def _work(self) -> None:
        queue = self.queue
        while True:
            if len(queue) < self.gather:
                self.wake_at = self.gather
                if len(queue) < self.gather:
                    self.token.acquire()
                self.wake_at = NEVER
                continue
            batch = [queue.popleft() for _ in range(min(len(queue), self.max_size))]
            results = self.handler([caller.item for caller in batch])
            for caller, result in zip(batch, results, strict=True):
                caller.result = result
            self.wake(batch)


def all_at_once(batch: list[Caller]) -> None:
    """The worker wakes every caller."""
    for caller in batch:
        caller.lock.release()


def in_a_chain(batch: list[Caller]) -> None:
    """The worker wakes the first caller, each caller the next."""
    previous = None
    for caller in reversed(batch):
        caller.next = previous
        previous = caller
    batch[0].lock.release()


class LoopCaller:
    """What a task hands over: a future of its event loop."""

    __slots__ = ("future", "item", "result")

    def __init__(self, item: Any, future: asyncio.Future[Any]) -> None:
        self.item = item
        self.result: Any = None
        self.future = future


def in_loop(loop: asyncio.AbstractEventLoop) -> Callable[[list[LoopCaller]], None]:
    """A `wake` for tasks: one call into their event loop for each batch."""

    def resolve(batch: list[LoopCaller]) -> None:
        for caller in batch:
            caller.future.set_result(caller.result)

    def wake(batch: list[LoopCaller]) -> None:
        loop.call_soon_threadsafe(resolve, batch)

    return wake


def in_hub(watcher: Any) -> Callable[[list[Caller]], None]:
    """A `wake` for greenlets: one signal to their gevent hub for each batch.

    Args:
        watcher: an `async_` watcher of the hub, not started yet.
    """
    ready: deque[list[Caller]] = deque()

    def switch() -> None:
        while ready:
            for caller in ready.popleft():
                assert caller.switch is not None
                caller.switch()

    def wake(batch: list[Caller]) -> None:
        ready.append(batch)
        watcher.send()

    watcher.start(switch)
    return wake
