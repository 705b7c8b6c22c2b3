"""The batcher whose handler is called in an event loop.

What belongs to a running loop (queue, batches in flight, what was learned) is kept for each loop apart, so one
object serves successive and several loops; see `_loop`.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import get_running_loop

from ubatch import _native, _observing
from ubatch._binding import Binder, is_coroutine_function
from ubatch._log import catch_up
from ubatch._loop import Home, raise_soon, serving
from ubatch._loop_faces import Faces
from ubatch._loop_intake import Job
from ubatch._observing import Observed
from ubatch._options import (
    checked_changes,
    checked_executor,
    checked_handlers,
    checked_isolate,
    checked_max_size,
    checked_name,
    checked_timeout,
    checked_workers,
    checked_workers_of,
    rules_for,
)
from ubatch._recorder import Recorder
from ubatch._terms import UNSET
from ubatch._typing import TypeVar
from ubatch.errors import HandlerAlreadySet, HandlerNotSet
from ubatch.stats import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Any

    from ubatch._observing import Observer
    from ubatch._typing import AnyHandler
    from ubatch.stats import Stats

Self = TypeVar("Self", bound="UBatch[Any, Any]")
T = TypeVar("T")
U = TypeVar("U")


class UBatch(Observed, Faces[T, U]):
    """Gathers the items of many coroutines and gives them to a batch handler in one call.

    Tasks each call with one item of type `T` and get their own result, of type `U`. Every accepted item resolves:
    with a result, an error, or by its caller's leaving; only the end of its event loop ends it too.

    `ubatch`, `submit`, `map`, `stream` and `stop` are for code that runs in an event loop; an object may be used
    from several loops, in several threads, at once. The others may be called from any thread.

    Args:
        max_size: the largest batch, in items; at least 1.
        timeout: the longest time, in seconds, that an item is held for companions while a worker is free, counted
            from the item's arrival; kept to the loop's own resolution, a millisecond. 0 holds nothing. `None`,
            the default: ubatch learns when waiting pays.
        handler: `await handler(list of items)` returns a sequence or an array with one result for each item, in
            order; an exception instance in it is raised in that caller alone. With several arguments per call it
            gets one list for each. A plain function is called in a thread. Each batch runs in an empty context
            (`contextvars`). With `handler` given here the batcher starts by itself with its first item; otherwise
            items wait for `set_handler` and `start`. A list or tuple of handlers, alike but for what they work with,
            means a worker for each, which calls no other.
        name: shown in errors and in `repr`; by default the handler's name.
        workers: the number of batches that may be in flight at once, in each loop; at least 1.
        executor: where a handler that is a plain function runs, if not in threads of the batcher's own; see
            `ubatch.UBatch`.
        key, weight, max_weight, padded, deadline, aging, isolate: as of `ubatch.UBatch`.
        max_queue, overflow: likewise, for each loop; `submit`, which cannot wait, raises `QueueFull` in any case.
        observer: likewise; called in the event loop, which waits for it.

    Raises:
        TypeError, ValueError: an argument is not as described; the message has its value.
    """

    _home_type = Home

    def __init__(
        self,
        max_size: int = 64,
        timeout: float | None = None,
        *,
        handler: AnyHandler[T, U] | Sequence[AnyHandler[T, U]] | None = None,
        name: str | None = None,
        workers: int = 1,
        executor: Executor | Callable[[], Executor] | None = None,
        key: Callable[..., Hashable] | None = None,
        weight: Callable[..., float] | None = None,
        max_weight: float | None = None,
        padded: bool = False,
        max_queue: int | None = None,
        overflow: str = "reject",
        deadline: float | None = None,
        aging: float = 1.0,
        isolate: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self._given_name = checked_name(name)
        rules = rules_for(key, weight, max_weight, padded, max_queue, overflow, deadline, aging)
        self._job = Job(
            name or "ubatch",
            checked_max_size(max_size),
            checked_timeout(timeout),
            checked_workers(workers),
            rules,
            checked_isolate(isolate),
            checked_executor(executor),
        )
        self._asked = None  # nothing special; an attribute of the object itself is the fastest to look up
        self._fresh()
        if _observing.checked_observer(observer) is not None:
            self._observers = (observer,)
        _observing.register(self)
        self._heed()
        if handler is not None:
            self._job.started = True
            self.set_handler(handler)

    def _fresh(self) -> None:
        """Make all that a forked child must not share with its parent."""
        self._lock = _native.reentrant_lock()  # guards the making and forgetting of homes
        self._homes: dict[asyncio.AbstractEventLoop, Home] = {}
        self._past = Counters()  # of homes whose loops are closed
        self._latest: Home | None = None
        self._job.recorder = Recorder(pass_on=raise_soon)

    # -- the handler, starting, stopping ------------------------------------------------------------------

    def set_handler(self, handler: AnyHandler[T, U] | Sequence[AnyHandler[T, U]]) -> None:
        """Set the batch handler, once, or a list of them.

        Args:
            handler: see the class; any callable.

        Raises:
            HandlerAlreadySet: there is one.
            TypeError: it is not callable; or a coroutine function, for which an `executor` is of no use.
            ValueError: a list of handlers that is empty, or of which one takes other parameters; or one together with
                `executor`, or with another number of `workers`.
        """
        job = self._job
        if job.handlers:
            raise HandlerAlreadySet(job.name)
        handlers = checked_handlers(handler, coroutines=True)
        workers = checked_workers_of(handler, handlers, job.workers, job.place is not None)
        job.is_coroutine = is_coroutine_function(handlers[0])
        if job.is_coroutine and job.place is not None:
            raise TypeError(f"handler {handlers[0]!r} is a coroutine function, which runs in the loop: not in executor")
        job.binder = Binder(handlers[0])
        if self._given_name is None:
            job.name = getattr(handlers[0], "__qualname__", None) or type(handlers[0]).__qualname__
        if job.place is not None:
            handlers = (self._placed(handlers[0]),)
        if workers != job.workers:
            job.workers = workers
            self._tell(Home.renew_policy)
        job.handlers = handlers
        job.simplify()

    def _placed(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler, called in the executor."""
        from ubatch._executor import Executed

        assert self._job.place is not None, "no executor"
        return Executed(handler, self._job.place, self._job.name, set())

    def start(self: Self) -> Self:
        """Let batches run, now and again after `stop`. Does nothing if they may already.

        Returns:
            The batcher itself.

        Raises:
            HandlerNotSet: there is no handler yet.
        """
        if not self._job.handlers:
            raise HandlerNotSet(self._job.name)
        self._job.started = True
        self._job.closed = False
        self._job.simplify()
        self._tell(Home.resume)
        return self

    async def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Refuse new items, in all loops, and run those that are queued; wait for those of this loop.

        May be called again, and concurrently. From the handler itself it does not wait.

        Args:
            drain: whether queued items are run; otherwise they fail with `Stopped` at once. Without a handler
                they fail in any case.
            timeout: the longest time to wait, in seconds; `None` for no limit. After it, all that is left in this
                loop fails with `Stopped`, and the tasks of running handlers are cancelled.

        Returns:
            Whether all was done in time, and before somebody called `start`.

        Raises:
            TypeError, ValueError: `timeout` is negative or not a number.
        """
        timeout = checked_timeout(timeout)
        home = self._home()
        self._job.closed = True
        self._job.simple = False
        self._tell(Home.close, drain)
        catch_up()
        if self._is_own_worker(home):
            return False
        quiet = home.quiet()
        await asyncio.wait([quiet], timeout=timeout)
        if quiet.done():
            return quiet.result()
        home.abandon()
        return False

    astop = stop

    async def __aenter__(self: Self) -> Self:
        """Start; items that were accepted before run now."""
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, after what is queued has run."""
        await self.stop()

    # -- looking at it ------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether items are accepted."""
        return not self._job.closed

    @property
    def name(self) -> str:
        """What errors and `repr` call this batcher."""
        return self._job.name

    @property
    def stats(self) -> Stats:
        """A snapshot of what the batcher has done, in all loops; see `ubatch.Stats`. `a`, `c`: of the latest loop."""
        recorded = self._job.recorder.recorded()  # before what is counted as batches begin
        total, queued, running = Counters(), 0, 0
        latest = self._latest
        with self._lock:
            homes = list(self._homes.values())
            total.add(self._past)
        for home in homes:
            total.add(home.counters)
            queued += len(home.schedule)
            running += sum(len(shift.batch) for shift in list(home.busy))
        learned = latest.policy.cost if latest is not None else None
        a, c = (learned.a, learned.c) if learned is not None else (0.0, 0.0)
        present = {"queued": queued, "running": running, "a": a, "c": c}
        processes = None if self._job.place is None else self._job.place.stats
        return total.snapshot(Counters(), recorded, **present, processes=processes)

    def _heed(self) -> None:
        self._job.recorder.heed(_observing.observers_of(self))
        self._job.simplify()

    @property
    def max_size(self) -> int:
        """The largest batch, in items. May be set at any time; takes effect at the next cut."""
        return self._job.max_size

    @max_size.setter
    def max_size(self, max_size: int) -> None:
        self.reconfigure(max_size=max_size)

    @property
    def timeout(self) -> float | None:
        """The longest hold, in seconds; `None` if ubatch finds it out. May be set; takes effect at the next cut."""
        return self._job.timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self.reconfigure(timeout=timeout)

    @property
    def max_queue(self) -> int | None:
        """The largest number of items that wait, in each loop; `None` for no limit. May be set at any time."""
        return self._job.rules.max_queue

    @max_queue.setter
    def max_queue(self, max_queue: int | None) -> None:
        self.reconfigure(max_queue=max_queue)

    @property
    def workers(self) -> int:
        """The number of batches that may be in flight at once, in each loop. May be set at any time."""
        return self._job.workers

    @workers.setter
    def workers(self, workers: int) -> None:
        self.reconfigure(workers=workers)

    def reconfigure(
        self,
        *,
        max_size: int = UNSET,
        timeout: float | None = UNSET,
        max_queue: int | None = UNSET,
        workers: int = UNSET,
    ) -> None:
        """Change options while batches run, all or none; what is not given stays. Nothing is lost.

        Args:
            max_size, timeout, workers: see the class; take effect at the next cut.
            max_queue: see the class; takes effect with the next item. Items that are queued stay so.

        Raises:
            TypeError, ValueError: an argument is not as described; the message has its value. Also for another number
                of workers than there are handlers, where these are a list.
        """
        job = self._job
        changes = checked_changes(job.handlers, max_size, timeout, max_queue, workers)
        job.max_size = changes.get("max_size", job.max_size)
        job.timeout = changes.get("timeout", job.timeout)
        job.workers = changes.get("workers", job.workers)
        if "max_queue" in changes:
            begins, job.rules.max_queue = job.rules.max_queue is None, changes["max_queue"]
            self._tell(Home.make_room, begins)
        if "timeout" in changes or "workers" in changes:
            self._tell(Home.renew_policy)
        self._tell(Home.reconsider)

    @property
    def _batcher(self: Self) -> Self:
        return self

    def __del__(self) -> None:
        job = getattr(self, "_job", None)
        if job is not None and not job.started:  # nobody will
            self._tell(Home.close, False)
        if _observing.mourners:
            _observing.mourn(self)

    def __repr__(self) -> str:
        job, stats = self._job, self.stats
        state = "stopped" if job.closed else "running" if job.started else "waiting for start()"
        return (
            f"<ubatch.aio.UBatch {job.name!r} {state} max_size={job.max_size} timeout={job.timeout} "
            f"workers={job.workers} queued={stats.queued} running={stats.running}>"
        )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be copied or pickled: it belongs to event loops; make one where it is needed")

    # -- loops --------------------------------------------------------------------------------------------

    def _home(self) -> Home:
        """What this batcher has on the running loop. Raises RuntimeError: no loop is running."""
        loop = get_running_loop()
        home = self._latest
        if home is None or home.loop is not loop:
            home = self._homes.get(loop) or self._settle(loop)
            self._latest = home
        return home

    def _settle(self, loop: asyncio.AbstractEventLoop) -> Home:
        with self._lock:
            for other in [other for other in self._homes if other.is_closed()]:
                self._past.add(self._homes.pop(other).counters)
            home = self._homes[loop] = self._home_type(self._job, loop)
        return home

    def _tell(self, what: Callable[..., None], *args: Any) -> None:
        """Have something done by all homes, each in its own loop: at once in this one."""
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        with self._lock:
            homes = list(self._homes.values())
        for home in homes:
            if home.loop is here:
                what(home, *args)
            else:
                try:
                    home.loop.call_soon_threadsafe(what, home, *args)
                except RuntimeError:  # the loop is closed
                    pass

    def _is_own_worker(self, home: Home) -> bool:
        shift = serving.get()
        return shift is not None and shift.home is home and bool(shift.batch)

    def _own_worker(self) -> RuntimeError:
        return RuntimeError(
            f"the handler of batcher {self._job.name!r} cannot wait for a batch of its own batcher; use submit()"
        )

    def _forked(self) -> None:
        """In the child: start anew; what was inherited has no loop to run it. No inherited lock is touched."""
        homes = list(self._homes.values())
        self._fresh()
        self._heed()
        for home in homes:
            home.orphan()


def _after_fork_in_child() -> None:
    for ref in list(_observing.living.values()):
        batcher = ref()
        if isinstance(batcher, UBatch):
            batcher._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
