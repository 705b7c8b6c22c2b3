"""Deadlines of futures, for which nobody need be waiting: one thread for all of them, while there are any.

Guarantees: what was set is told to expire at its time, unless it is done or forgotten before; what is done is not
kept. The thread comes with the first deadline and goes when no future with one is left. `set` may be called at any
time, in a signal handler and in a `__del__` too: it appends, and takes a lock only to start the thread.

How no deadline is lost. `set` appends to `_coming`, then reads `_until`, the time to which the thread sleeps; the
thread writes `_until`, then looks at `_coming`, then sleeps. Whichever comes second sees the other. The thread ends
under `_lock`, with nothing in `_coming`; who finds none under it starts another.

Assumptions: appending to a deque is atomic. A ticket's done-callbacks, which run in this thread, are short; until one
returns, others are late.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from heapq import heapify, heappop, heappush

from . import _native
from ._native import get_ident, monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Ticket(Protocol):
        """What expires."""

        @property
        def is_settled(self) -> bool:
            """Whether it has an outcome; to be told without a lock."""
            ...

        def expire(self) -> None:
            """Its time is up. Does not raise."""
            ...


LINGER = 1.0
"""Seconds after which it is looked whether any future is left."""

NEVER = float("inf")


class Alarm:
    """The thread and what it waits for."""

    def __init__(self) -> None:
        self.thread = 0
        """The identity of the thread; 0 while there is none."""
        self._coming: deque[tuple[float, int, weakref.ref[Ticket]]] = deque()
        self._entries: list[tuple[float, int, weakref.ref[Ticket]]] = []  # a heap; the thread's own
        self._numbers = itertools.count()
        self._until = -NEVER  # an earlier deadline must wake the thread
        self._look = 0.0  # when to see whether any is left that is not settled
        self._lock = _native.reentrant_lock()  # guards _is_running
        self._is_running = False
        self._token = _native.allocate_lock()  # released to wake the thread
        self._token.acquire()

    def set(self, when: float, ticket: Ticket) -> None:
        """Let `ticket` expire at `when`, a monotonic time in seconds.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._coming.append((when, next(self._numbers), weakref.ref(ticket)))
        if not self._is_running:
            self._start()
        if when < self._until:
            try:
                self._token.release()
            except RuntimeError:  # released already
                pass

    def _start(self) -> None:
        with self._lock:
            if self._is_running:
                return
            self._is_running = True
            try:
                _native.start_thread("ubatch-deadlines", self._run)
            except BaseException:
                self._is_running = False
                raise

    def _run(self) -> None:
        self.thread = get_ident()
        try:
            while self._turn():
                pass
        finally:
            _native.destroy_hub()  # of a done-callback's

    def _turn(self) -> bool:
        """Let expire what is due, and wait for the next; `False` if there is none."""
        entries, coming = self._entries, self._coming
        while coming:
            heappush(entries, coming.popleft())
        now = monotonic()
        if now >= self._look:
            self._look = now + LINGER
            entries[:] = [entry for entry in entries if (found := entry[2]()) is not None and not found.is_settled]
            heapify(entries)
        while entries and entries[0][0] <= now:
            ticket = heappop(entries)[2]()
            if ticket is not None:
                ticket.expire()
            del ticket
        if not entries:
            with self._lock:
                if not coming:
                    self.thread = 0
                    self._is_running = False
                    return False
            return True
        self._until = min(entries[0][0], self._look)
        if not coming:
            self._token.acquire(True, max(self._until - monotonic(), 0.0))
        self._until = -NEVER
        return True


alarm = Alarm()


def _renew() -> None:
    global alarm
    alarm = Alarm()  # the thread, and what it waited for, belong to the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
