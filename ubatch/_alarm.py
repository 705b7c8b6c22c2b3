"""Deadlines of futures, for which nobody need be waiting: one thread for all of them, while there are any.

Guarantees: what was set is told to expire at its time, unless it is done or forgotten before; a ticket that is done
is not kept. The thread comes with the first deadline and goes when no future with one is left.
Assumptions: a ticket's done-callbacks, which run in this thread, are short; until one returns, others are late.
"""

from __future__ import annotations

import itertools
import os
import weakref
from heapq import heapify, heappop, heappush

from . import _native
from ._native import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Ticket(Protocol):
        """What expires."""

        def done(self) -> bool:
            """Whether it has an outcome."""
            ...

        def expire(self) -> None:
            """Its time is up. Does not raise."""
            ...


LINGER = 1.0
"""Seconds after which it is looked whether any future is left."""

SLACK = 64
"""Entries of futures that are done that are kept beside as many of others."""


class Alarm:
    """The thread and what it waits for."""

    def __init__(self) -> None:
        self._lock = _native.reentrant_lock()  # guards what follows
        self._entries: list[tuple[float, int, weakref.ref[Ticket]]] = []  # a heap
        self._numbers = itertools.count()
        self._most = SLACK  # entries, until those that are done are thrown away
        self._look = 0.0  # when to see whether any is left that is not done
        self._is_running = False
        self._token = _native.allocate_lock()  # released to wake the thread
        self._token.acquire()

    def set(self, when: float, ticket: Ticket) -> None:
        """Let `ticket` expire at `when`, a monotonic time in seconds.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self._lock:
            entry = when, next(self._numbers), weakref.ref(ticket)
            heappush(self._entries, entry)
            if len(self._entries) > self._most:
                self._tidy()
            if self._entries and self._entries[0] is entry:
                self._ring()
            if not self._is_running:
                self._is_running = True
                try:
                    _native.start_thread("ubatch-deadlines", self._run)
                except BaseException:
                    self._is_running = False
                    raise

    def _ring(self) -> None:
        try:
            self._token.release()
        except RuntimeError:  # released already
            pass

    def _tidy(self) -> None:
        self._entries = [entry for entry in self._entries if (ticket := entry[2]()) is not None and not ticket.done()]
        heapify(self._entries)
        self._most = 2 * len(self._entries) + SLACK

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            _native.destroy_hub()  # of a done-callback's

    def _turn(self) -> bool:
        """Let expire what is due, and wait for the next; `False` if there is none."""
        due: list[Ticket] = []
        with self._lock:
            now = monotonic()
            if now >= self._look:
                self._look = now + LINGER
                self._tidy()
            while self._entries and self._entries[0][0] <= now:
                ticket = heappop(self._entries)[2]()
                if ticket is not None:
                    due.append(ticket)
            until = self._entries[0][0] if self._entries else now
            if not self._entries and not due:
                self._is_running = False
                return False
        ticket = None
        while due:
            due.pop(0).expire()
        self._token.acquire(True, min(max(until - monotonic(), 0.0), LINGER))
        return True


alarm = Alarm()


def _renew() -> None:
    global alarm
    alarm = Alarm()  # the thread, and what it waited for, belong to the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
