"""The ticket of `submit`: a `concurrent.futures.Future`.

A room of its own because `concurrent.futures` brings `logging` along, which takes longer to import than all of
ubatch: it is loaded with the first `submit`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Protocol

from . import _native
from ._waiters import HubTicket, Ticket, deliver


class Queue(Protocol):
    """What a ticket knows of the queue that it is in."""

    stale: bool
    """To be set once the ticket's caller has left."""


class FutureTicket(Ticket, Future[Any]):
    """The ticket of `submit`: it is the future that the caller gets."""

    home = "futures"

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], queue: Queue) -> None:
        Ticket.__init__(self, args, kwargs)
        Future.__init__(self)
        self._queue: Queue | None = queue

    def claim(self) -> bool:
        if self.left:
            return False
        try:
            return self.set_running_or_notify_cancel()
        except (InvalidStateError, RuntimeError):  # somebody else set its result
            return False

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        with self._condition:
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()  # waiters need not wait for a worker to look
        self.left = True
        self._forget()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """As of any future; a greenlet lets others run meanwhile."""
        return super().result(self._wait(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As of any future; a greenlet lets others run meanwhile."""
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Where this thread has a gevent hub, wait by it (the condition would stop it, or end it); what is left."""
        hub = None if self.done() else _native.current_hub()
        if hub is None:
            return timeout
        ticket = HubTicket((), {}, hub)
        self.add_done_callback(lambda _: deliver([ticket], [None]))
        ticket.wait(timeout)
        return 0

    def _forget(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.stale = True
        self.args, self.kwargs, self.call = (), {}, None

    @staticmethod
    def wake_all(tickets: Sequence[FutureTicket]) -> None:
        for ticket in tickets:
            outcome, ticket.outcome = ticket.outcome, None
            ticket.args, ticket.kwargs, ticket.call, ticket._queue = (), {}, None, None
            try:
                if isinstance(outcome, BaseException):
                    ticket.set_exception(outcome)
                else:
                    ticket.set_result(outcome)
            except InvalidStateError:  # somebody else set its result
                pass

    def orphan(self, error: Exception) -> None:
        if not self.done():
            # the condition may have been held by a thread that does not exist here, and what was to be called
            # back belongs to the parent
            self._condition = threading.Condition()
            self._done_callbacks: list[Any] = []
            self._waiters = []
            self.set_exception(error)
