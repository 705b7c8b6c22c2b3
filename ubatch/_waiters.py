"""How each kind of caller waits for its outcome, and how it is woken.

A `Ticket` is one call on its way: its arguments, and later its outcome. There is one kind for each kind of
caller: a thread (a raw lock, the cheapest waiter there is), a greenlet (its hub), a task (its event loop); the
ticket of `submit`, a future, is in `_future`.

Guarantees: `deliver` sets every outcome before it wakes anybody, outside any lock, and wakes each *home* once:
one call into an event loop or a hub for all tickets of it. Threads are woken in chains: `deliver` wakes the
first of each, and each thread that wakes up wakes the next before it goes on. That takes the cost of the system
calls, and the fight for the GIL, off the worker. But each link waits for the GIL anew, which a handler may hold
for `sys.getswitchinterval()` each time. So how many chains there are depends on the time that the handler takes:
one after a batch that took next to none; pairs after one beside which the worker's own waking costs nothing.

Assumptions: a ticket is delivered by whoever owns it at that time, once (`core` sees to that). What can come
between a thread's waking up and its waking the next would strand the rest of the chain, so the main thread,
which signal handlers interrupt, is woken directly, and so is a thread's second ticket in one batch (a call made
from a `__del__` inside a call): it stands above the first on the same stack. An exception injected into another
thread (`PyThreadState_SetAsyncExc`) is allowed for everywhere except inside the `finally` that wakes the next.
"""

from __future__ import annotations

import sys
from collections import deque
from weakref import WeakKeyDictionary

from . import _native
from ._native import allocate_lock, monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable, Sequence
    from typing import Any

    from ._binding import Call
    from ._terms import Terms

PENDING: Any = type("Pending", (), {"__slots__": (), "__repr__": lambda self: "<no outcome yet>"})()
"""The outcome of a ticket that has none yet."""


class Ticket:
    """One call on its way: its arguments, and an outcome once it is delivered."""

    __slots__ = ("args", "arrived", "call", "context", "kwargs", "left", "outcome", "terms")

    context: Any
    """That of its caller (`contextvars`); set only where there is a tracer. See `_observing`."""

    home: Any
    """Tickets of equal homes are woken together."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.call: Call | None = None
        self.left = False
        self.terms: Terms | None = None
        self.outcome: Any = PENDING
        self.arrived = monotonic()

    def claim(self) -> bool:
        """Take the item for the handler; `False` if its caller has left. Called once."""
        return not self.left

    def leave(self) -> None:
        """Its caller is gone, for good, whatever becomes of the ticket."""
        self.left = True

    def admit(self, accepted: bool) -> None:
        """There is room for it in the queue, or never will be."""

    def locked_here(self) -> bool:
        """Whether the worker would have to wait for a lock that this very thread holds."""
        return False

    def wake(self) -> None:
        """Wake its caller; its outcome is set."""
        self.wake_all([self], None)

    @staticmethod
    def wake_all(tickets: Sequence[Any], took: float | None) -> None:
        """Wake the callers of tickets of this kind and of one home; their outcomes are set. `took` as in `deliver`."""
        raise NotImplementedError

    def orphan(self, error: Exception) -> None:
        """Give the ticket an outcome in a forked child, by its only thread, without any inherited lock."""
        raise NotImplementedError


class BlockingTicket(Ticket):
    """A ticket whose caller stops until it is delivered."""

    __slots__ = ()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the outcome, `timeout` seconds at most; say whether it is there."""
        raise NotImplementedError

    def result(self) -> Any:
        """Return or raise the outcome. Called once."""
        outcome = self.outcome
        if isinstance(outcome, BaseException):
            self.outcome = None  # the traceback will refer to the frames of callers: no cycle through them,
            try:
                raise outcome
            finally:
                del self, outcome  # nor through this one
        return outcome


def blocking(args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockingTicket:
    """A ticket for whoever runs right now: a greenlet if this thread has a gevent hub, else the thread."""
    hub = _native.current_hub()
    return ThreadTicket(args, kwargs, _native.get_ident()) if hub is None else HubTicket(args, kwargs, hub)


WAKING = 50e-6
"""Seconds of a batch for each of which its worker wakes one more thread itself: some ten times what that costs."""


def deliver(tickets: Sequence[Ticket], outcomes: Sequence[Any], took: float | None = None) -> None:
    """Set the outcomes, then wake the callers, each home once.

    Args:
        tickets: any number of any kind.
        outcomes: one for each.
        took: seconds that the handler worked for them; `None` to wake each thread directly, as is needed where
            some may have been woken before: the rest of a chain would wait for them in vain.
    """
    if len(tickets) == 1:
        ticket = tickets[0]
        ticket.outcome = outcomes[0]
        ticket.wake()
        return
    home = None
    mixed = False
    for ticket, outcome in zip(tickets, outcomes, strict=True):
        ticket.outcome = outcome
        if ticket.home is not home:
            mixed = mixed or home is not None
            home = ticket.home
    if not mixed:
        if tickets:
            tickets[0].wake_all(tickets, took)
        return
    homes: dict[Hashable, list[Ticket]] = {}
    for ticket in tickets:
        homes.setdefault(ticket.home, []).append(ticket)
    for group in homes.values():
        group[0].wake_all(group, took)


class ThreadTicket(BlockingTicket):
    """The ticket of a thread. `thread` is its identity, 0 if it is never to be a link of a chain."""

    __slots__ = ("lock", "next", "thread", "woken")

    home = "threads"

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], thread: int) -> None:
        # all of Ticket's fields here as well: a call of its __init__ is a fifth of what this costs
        self.args = args
        self.kwargs = kwargs
        self.call = None
        self.left = False
        self.terms = None
        self.outcome = PENDING
        self.arrived = monotonic()
        self.thread = thread
        self.woken = False
        self.next: ThreadTicket | None = None
        self.lock = lock = allocate_lock()
        lock.acquire()

    def wait(self, timeout: float | None = None) -> bool:
        arrived = False
        try:
            arrived = (
                self.lock.acquire() if timeout is None else self.lock.acquire(True, min(timeout, _native.MAX_WAIT))
            )
        finally:
            if not arrived:
                self.leave()
            elif self.next is not None:
                self.next.wake()
                self.next = None  # a traceback may keep this ticket: not others' items and results as well
        return arrived

    def leave(self) -> None:
        self.left = True  # before the look at `woken`; `wake` does it the other way round
        if self.woken and self.next is not None:
            self.next.wake()
            self.next = None

    def wake(self) -> None:
        """Let the caller go on, and the rest of the chain with it. May be called twice."""
        ticket: ThreadTicket | None = self
        while ticket is not None:
            ticket.woken = True
            try:
                ticket.lock.release()
            except RuntimeError:  # woken before
                pass
            if not ticket.left:
                return
            ticket = ticket.next  # nobody is there to wake the next

    @staticmethod
    def wake_all(tickets: Sequence[ThreadTicket], took: float | None) -> None:
        main = _native.main_ident
        direct = {0, main}
        heads: list[ThreadTicket] = []
        # of each chain; a clock may have been set back
        links = 1 if took is None else max(2, -(-len(tickets) // (1 + max(0, int(took / WAKING)))))
        for end in range(len(tickets), 0, -links):
            head: ThreadTicket | None = None
            for ticket in reversed(tickets[max(0, end - links) : end]):
                thread = ticket.thread
                if thread in direct or main is None:
                    ticket.wake()
                else:
                    direct.add(thread)
                    ticket.next = head
                    head = ticket
            if head is not None:
                heads.append(head)
        for head in reversed(heads):
            head.wake()

    def orphan(self, error: Exception) -> None:
        if self.outcome is PENDING:
            self.outcome = error
        self.next = None
        self.wake()  # also if it was delivered: the fork may have come before its waking


class HubTicket(BlockingTicket):
    """The ticket of a greenlet: the hub runs on while it waits, and does not think itself deadlocked."""

    __slots__ = ("greenlet", "home", "hub")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], hub: Any) -> None:
        Ticket.__init__(self, args, kwargs)
        self.hub = hub
        home = _hub_homes.get(hub)
        if home is None:  # a hub belongs to one thread, this one: no race
            home = _hub_homes[hub] = _HubHome(hub)
        self.home = home
        self.greenlet: Any = None

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None:
            self._wait()
            return True
        from gevent import Timeout

        with Timeout(timeout, False):  # pyright: ignore[reportArgumentType]
            self._wait()
        return self.outcome is not PENDING

    def _wait(self) -> None:
        from greenlet import getcurrent

        greenlet = getcurrent()
        if greenlet is self.hub:
            raise RuntimeError("a callback of the gevent hub cannot wait for a batch; spawn a greenlet")
        self.greenlet = greenlet
        self.home.enter()
        try:
            while self.outcome is PENDING:
                self.hub.switch()
        finally:
            self.left = self.outcome is PENDING
            self.greenlet = None
            self.home.leave()

    @staticmethod
    def wake_all(tickets: Sequence[HubTicket], took: float | None) -> None:
        tickets[0].home.wake(tickets)

    def orphan(self, error: Exception) -> None:
        if self.outcome is PENDING:
            self.outcome = error
        if self.greenlet is not None and self.hub is _native.current_hub():
            # the watcher may still share its file descriptor with the parent: not through it
            self.home.ready.append(self)
            self.hub.loop.run_callback(self.home._switch)


class _HubHome:
    """What wakes the greenlets of one hub: a watcher that any thread can trigger.

    It is active while a greenlet waits, which is what keeps a hub with nothing else to do from ending.
    """

    __slots__ = ("ready", "waiting", "watcher")

    def __init__(self, hub: Any) -> None:
        self.watcher = hub.loop.async_()
        self.ready: deque[HubTicket] = deque()
        self.waiting = 0

    def enter(self) -> None:
        if not self.waiting:
            self.watcher.start(self._switch)
        self.waiting += 1

    def leave(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.watcher.stop()
            self.ready.clear()  # whoever is left in it has seen its outcome, or will

    def wake(self, tickets: Sequence[HubTicket]) -> None:
        """Called by any thread. A greenlet that has not begun to wait will see its outcome by itself."""
        self.ready.extend(tickets)
        try:
            self.watcher.send()
        except Exception:  # the hub was destroyed, and its greenlets with it
            self.ready.clear()

    def _switch(self) -> None:
        ready = self.ready
        while ready:
            ticket = ready.popleft()
            if ticket.greenlet is not None:
                try:
                    ticket.greenlet.switch()
                except BaseException:
                    ticket.hub.handle_error(ticket.greenlet, *sys.exc_info())


_hub_homes: WeakKeyDictionary[Any, _HubHome] = WeakKeyDictionary()


class LoopTicket(Ticket):
    """The ticket of a task: an `asyncio.Future` of its running loop."""

    __slots__ = ("future", "home")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], loop: asyncio.AbstractEventLoop) -> None:
        # Ticket's fields here as well, as in ThreadTicket
        self.args = args
        self.kwargs = kwargs
        self.call = None
        self.left = False
        self.terms = None
        self.outcome = PENDING
        self.arrived = monotonic()
        self.home = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    @staticmethod
    def wake_all(tickets: Sequence[LoopTicket], took: float | None) -> None:
        try:
            tickets[0].home.call_soon_threadsafe(_resolve, tickets)
        except RuntimeError:  # the loop is closed, and its tasks are gone
            pass

    def leave(self) -> None:
        self.left = True
        if self.future.done() and not self.future.cancelled():
            self.future.exception()  # seen: nothing is logged if nobody asks for it

    def orphan(self, error: Exception) -> None:
        if not self.future.done():
            try:
                self.future.set_exception(error)
            except RuntimeError:  # a loop in debug mode, of a thread that does not exist here
                pass
            self.leave()


def _resolve(tickets: Sequence[LoopTicket]) -> None:
    for ticket in tickets:
        future = ticket.future
        if ticket.left or future.done():  # nobody waits for it any more
            continue
        outcome = ticket.outcome
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


async def outcomes_of(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """Wait for all; then raise the first error among them, in order, if there is one, else return the results."""
    import asyncio

    if futures:
        await asyncio.wait(futures)
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        try:
            raise errors[0]
        finally:
            del error, errors, futures  # the traceback refers to this frame: no cycle through it
    return [future.result() for future in futures]
