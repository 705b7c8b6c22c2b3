"""A worker's place at its batcher: what it waits by, what it works on; and the signs that stand for no worker."""

from __future__ import annotations

import sys

from . import _native
from ._waiters import blocking, deliver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._waiters import Ticket

NEVER = sys.maxsize
"""`wake_at` of a worker that is awake."""


class Seat:
    """A worker's place at its batcher.

    Args:
        post: its number among the batcher's workers, from 0; says which handler is its own, where there are several.
    """

    __slots__ = (
        "batch",
        "bell",
        "dismissed",
        "has_hub",
        "hirer",
        "mine",
        "post",
        "strong",
        "thread",
        "token",
        "unclaimed",
        "wake_at",
    )

    def __init__(self, post: int = 0) -> None:
        self.post = post
        self.wake_at = 0  # until a worker sits down
        self.hirer = 0  # identity of the thread that is about to start the worker's
        self.thread = 0  # identity of the worker's thread, once it runs
        self.dismissed = False  # whether it is to touch nothing any more
        self.token = _native.allocate_lock()
        self.token.acquire()
        self.has_hub = False  # whether the handler has used code that gevent patched
        self.bell: Ticket | None = None  # what the worker waits by then, as the token is not enough
        self.strong: Any = None  # the driver, for a worker that is called
        self.unclaimed = [True]  # popped by the thread that sits down, or by who gives the seat up
        self.batch: list[Any] = []  # tickets taken from the queue and not all delivered yet
        self.mine: list[bool] = []  # while the handler runs: who pops its one element delivers `batch`

    def claim(self) -> bool:
        """Take the seat, once; `False` if somebody has."""
        try:
            return self.unclaimed.pop()
        except IndexError:
            return False

    def wake(self, driver: Any) -> None:
        self.strong = driver  # before the release; see `_turns`
        self.ring()

    def ring(self) -> None:
        try:
            self.token.release()
        except RuntimeError:  # released already: the worker is about to look
            pass
        bell = self.bell
        if bell is not None:
            deliver([bell], [None])

    def pause(self, timeout: float) -> bool:
        """Wait for `ring`, `timeout` seconds at most; say whether it came.

        A worker whose handler has used code that gevent patched waits by its hub: a lock that it has held may
        need the hub to run before others get it.
        """
        if not self.has_hub:
            return self.token.acquire(True, timeout)
        ticket = blocking((), {})
        self.bell = ticket  # before the look at the token; `ring` does it the other way round
        try:
            return self.token.acquire(False) or (ticket.wait(timeout) and self.token.acquire(False))
        finally:
            self.bell = None


class _Sign(Seat):
    """Stands where a worker's seat would."""

    __slots__ = ("_name",)

    def __init__(self, name: str, wake_at: int) -> None:
        super().__init__()
        self.wake_at = wake_at
        self._name = name

    def wake(self, driver: Any) -> None:
        """There is nobody to wake."""

    def __repr__(self) -> str:
        return f"<{self._name}>"


NOBODY = _Sign("nobody looks after the queue", 0)
"""The next item calls a worker."""

BUSY = _Sign("all workers are busy", NEVER)
"""The first that is done looks after the queue."""
