"""The ticket of `submit`: a `concurrent.futures.Future`.

A room of its own because `concurrent.futures` brings `logging` along, which takes longer to import than all of
ubatch: it is loaded with the first batcher.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any, Protocol

from . import _native
from ._waiters import BlockingTicket, Ticket, blocking, deliver

_log = logging.getLogger("concurrent.futures")  # where a future's callbacks that raise are always reported


class Queue(Protocol):
    """What a ticket knows of the queue that it is in."""

    def depart(self, item: Any, /) -> None:
        """The ticket's caller has left. May be called at any time."""
        ...


class _Waker:
    """A done-callback that ends a wait."""

    __slots__ = ("ticket",)

    def __init__(self, ticket: BlockingTicket) -> None:
        self.ticket = ticket

    def __call__(self, _: object) -> None:
        deliver([self.ticket], [None])


def _condition() -> threading.Condition:
    # Of a native lock: a patched one, held by the worker, would make a hub for whoever meets it there, to wait in.
    return threading.Condition(_native.reentrant_lock())


class FutureTicket(Ticket, Future[Any]):
    """The ticket of `submit`: it is the future that the caller gets."""

    home = "futures"

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], queue: Queue) -> None:
        Ticket.__init__(self, args, kwargs)
        Future.__init__(self)
        self._condition = _condition() if _native.threading_is_patched() else self._condition
        self._queue: Queue | None = queue
        self.gate: BlockingTicket | None = None  # what its caller waits by until there is room in the queue
        self.late: Callable[[], Exception] | None = None  # makes the error of its deadline's passing

    def claim(self) -> bool:
        with self._condition:
            # not set_running_or_notify_cancel, which complains if cancel() has already told the waiters
            pending = self._state == "PENDING"
            if pending:
                self._state = "RUNNING"
        return pending

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
        try:
            return super().result(self._wait(timeout))
        finally:
            del self  # the traceback refers to this frame: no cycle through it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As of any future; a greenlet lets others run meanwhile."""
        return super().exception(self._wait(timeout))

    def _wait(self, timeout: float | None) -> float | None:
        """Where gevent is at work the condition will not do: wait here. Gives the time that is left to wait."""
        if self.done() or not (_native.threading_is_patched() or _native.current_hub()):
            return timeout
        ticket = blocking((), {})
        self.add_done_callback(_Waker(ticket))
        ticket.wait(timeout)
        return 0

    def _forget(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.depart(self)
        self.args, self.kwargs, self.call = (), {}, None

    @property
    def is_settled(self) -> bool:
        """Whether it has an outcome; told without its lock, so perhaps a little late."""
        return self._state not in ("PENDING", "RUNNING")

    def expire(self) -> None:
        """Its deadline has passed: whoever has it drops it."""
        if self.late is not None and not self.is_settled:
            self.left = True
            if self._queue is not None:
                self._queue.depart(self)
            self._settle_safely(self.late())  # what it has of the call may be on its way to the handler

    @staticmethod
    def wake_all(tickets: Sequence[FutureTicket], took: float | None) -> None:
        for ticket in tickets:
            ticket.admit(True)  # if that was prevented
            outcome, ticket.outcome = ticket.outcome, None
            ticket.args, ticket.kwargs, ticket.call, ticket._queue = (), {}, None, None
            if ticket.locked_here():
                # A signal handler, or a __del__, has come upon a look at this future. To settle it from inside would
                # be to call the waiters before they wait: another thread does it, once this one has let go.
                try:
                    _native.start_thread("ubatch-late", partial(ticket._settle_late, outcome))
                    continue
                except RuntimeError:  # no thread: then at that risk
                    pass
            ticket._settle_safely(outcome)

    def _settle_safely(self, outcome: Any) -> None:
        try:
            self._settle(outcome)
        except BaseException:  # of a done-callback, most likely; or injected into this thread
            _log.exception("exception calling callback for %r", self)
            self._settle(outcome)
            with self._condition:
                self._condition.notify_all()

    def admit(self, accepted: bool) -> None:
        gate, self.gate = self.gate, None
        if gate is not None:
            deliver([gate], [accepted])

    def locked_here(self) -> bool:
        condition: Any = self._condition
        owned: bool = condition._is_owned()
        return owned

    def _settle(self, outcome: Any) -> None:
        try:
            if isinstance(outcome, BaseException):
                self.set_exception(outcome)
            else:
                self.set_result(outcome)
        except InvalidStateError:  # somebody else set its result
            pass

    def _settle_late(self, outcome: Any) -> None:
        try:
            self._settle(outcome)
        finally:
            _native.destroy_hub()

    def _invoke_callbacks(self) -> None:
        if self._state == "CANCELLED" and not self.left:
            self.left = True  # for a callback that looks at the queue
            if self._queue is not None:
                self._queue.depart(self)
        # as of any future, but one that raises SystemExit or the like does not stop those after it
        raised: BaseException | None = None
        for callback in self._done_callbacks:
            try:
                callback(self)
            except Exception:
                _log.exception("exception calling callback for %r", self)
            except BaseException as error:
                raised = error
        if raised is not None:
            try:
                raise raised
            finally:
                del raised

    def orphan(self, error: Exception) -> None:
        # the condition may be held by a thread that does not exist here, and what was to be called back belongs
        # to the parent
        inherited: Any = self._condition
        self._condition = _condition()
        if self.gate is not None:
            self.gate.orphan(error)
        wakers = [callback for callback in self._done_callbacks if type(callback) is _Waker]
        self._done_callbacks: list[Any] = []
        self._waiters = []
        if not self.done():
            self.set_exception(error)
        for waiter in inherited._waiters:  # of this very thread, if it forked in a signal handler within result()
            try:
                waiter.release()
            except RuntimeError:  # notified before
                pass
        for waker in wakers:
            waker.ticket.orphan(error)
