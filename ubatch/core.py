"""`UBatch`: the batcher that users hold. Its options, its handler, starting and stopping it, looking at it.

Everything that happens between threads is in `_driver`, the ways to call it are in `_faces`.
"""

from __future__ import annotations

from ._binding import Binder
from ._driver import Driver, leave_before_executors
from ._faces import Faces, View
from ._log import catch_up
from ._observing import checked_observer
from ._options import (
    checked_changes,
    checked_executor,
    checked_handlers,
    checked_isolate,
    checked_max_size,
    checked_name,
    checked_timeout,
    checked_workers,
    checked_workers_of,
    policy_for,
    rules_for,
)
from ._terms import UNSET
from ._typing import TypeVar
from ._waiters import LoopTicket
from .errors import HandlerAlreadySet, HandlerNotSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Any

    from ._observing import Observer
    from ._terms import Asked
    from ._typing import Handler
    from .stats import Stats

Self = TypeVar("Self", bound="UBatch[Any, Any]")

T = TypeVar("T")
U = TypeVar("U")


class UBatch(Driver, Faces[T, U]):
    """Gathers the items of many callers and gives them to a batch handler in one call.

    Threads, greenlets and coroutines each call with one item of type `T` and get their own result, of type
    `U`; a background thread gathers what is there and calls `handler(list of items)`. The thread comes with
    the first item and goes after a time without any. Every accepted item resolves: with a result, an error,
    or by its caller's leaving.

    All methods may be called from any thread, any greenlet and any event loop, at any time.

    Args:
        max_size: the largest batch, in items; at least 1.
        timeout: the longest time, in seconds, that an item is held for companions while the worker is free,
            counted from the item's arrival. 0 holds nothing. `None`, the default: ubatch learns when waiting pays.
        handler: `handler(list of items)` returns a sequence or an array with one result for each item, in
            order; an exception instance in it is raised in that caller alone. With several arguments per
            call it gets one list for each. With `handler` given here the batcher starts by itself with its
            first item; otherwise items wait for `set_handler` and `start`. A list or tuple of handlers, alike but for
            what they work with (a GPU each, say), means a worker for each, which calls no other.
        name: shown in errors, in `repr` and as the name of the thread; by default the handler's name.
        workers: the largest number of batches that run at once, each in a thread of its own; at least 1. Threads come
            as they are needed, and go after a time without items.
        executor: where the handler runs, if not in those threads: any `concurrent.futures.Executor`, or a function
            that makes one, which ubatch shuts down in `stop`. In one of processes, the handler, items and results must
            pickle. If a process dies, its batch fails with `WorkerDied`, and the next one gets a new executor: one more
            from the function, or one with the settings of the `ProcessPoolExecutor` that was given. A call that hangs
            there is not ended, and an executor of the standard library holds up the interpreter's exit for it. Thread
            pools under gevent's patching, and gevent's own, cannot be used: workers are native threads anyway.
        key: `key(item)`, called with a call's own arguments, in the caller; items whose keys differ share no batch.
            A key that has waited longer goes first; of keys that always have items each is served in its turn.
        weight: `weight(item)`, likewise: a number of at least 0.
        max_weight: the largest batch by the sum of its items' weights. An item that weighs more runs alone.
        padded: a batch weighs its number of items times the heaviest of them, as if each were padded to it; items
            of like weight go together where that saves padding. Each batch has the item that came first.
        max_queue: the largest number of items that wait for a worker; `None` for no limit.
        overflow: what becomes of those beyond: "reject" raises `QueueFull`, also for all of a `map` of which some
            are beyond; "block" waits for room, in the order of arrival.
        deadline: seconds from its arrival in which an item must have its result; then its caller gets
            `DeadlineExceeded`, also while its batch runs. If it still waits, the handler never sees it. A batch leaves
            early if waiting for companions would break a deadline. `None` for none.
        aging: seconds in which a waiting item gains one level of priority; see `options`. May be infinite.
        isolate: whether a batch is split whose handler raises, so that one bad item does not fail the others: the
            handler is called again with its halves, with theirs, and so on. Only for handlers to which it does no
            harm to see an item again. One bad item among n costs 2·log2(n) calls more; once 8·log2(n) calls have
            failed, the items not yet known to be good fail. A batch that runs out of memory (of the GPU, too) is
            split likewise, and those after it are kept as small as its parts that went through, for a time.
        observer: called with an `ubatch.Batch`, by the worker, after the callers of a batch were woken; the next batch
            waits for it. If it raises, that is logged once. See `ubatch.observe`.

    Raises:
        TypeError, ValueError: an argument is not as described; the message has its value.
    """

    def __init__(
        self,
        max_size: int = 64,
        timeout: float | None = None,
        *,
        handler: Handler[T, U] | Sequence[Handler[T, U]] | None = None,
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
        from ._future import FutureTicket  # not in submit(), which a signal handler or a __del__ may call at any time

        self._future = FutureTicket
        self._given_name = checked_name(name)
        self._timeout = checked_timeout(timeout)
        rules = rules_for(key, weight, max_weight, padded, max_queue, overflow, deadline, aging)
        workers = checked_workers(workers)
        policy = policy_for(self._timeout, workers)
        if checked_observer(observer) is not None:
            self._observers = (observer,)
        super().__init__(name or "ubatch", checked_max_size(max_size), policy, rules, checked_isolate(isolate), workers)
        self._place = checked_executor(executor)
        if self._place is not None:
            leave_before_executors()
        if handler is not None:
            self._started = True
            self.set_handler(handler)

    # -- the handler, starting, stopping ------------------------------------------------------------------

    def set_handler(self, handler: Handler[T, U] | Sequence[Handler[T, U]]) -> None:
        """Set the batch handler, once, or a list of them.

        Args:
            handler: see the class; any callable but a coroutine function.

        Raises:
            HandlerAlreadySet: there is one.
            TypeError: it is not callable, or its calls would be coroutines.
            ValueError: a list of handlers that is empty, or of which one takes other parameters; or one together with
                `executor`, or with another number of `workers`.
        """
        if self._handlers:
            raise HandlerAlreadySet(self._name)
        handlers = checked_handlers(handler, coroutines=False)
        workers = checked_workers_of(handler, handlers, self._workers, self._place is not None)
        self._binder = Binder(handlers[0])
        if self._given_name is None:
            self._name = getattr(handlers[0], "__qualname__", None) or type(handlers[0]).__qualname__
        if self._place is not None:
            handlers = (self._placed(handlers[0]),)
        if workers != self._workers:
            self._engage(workers)
        self._handlers = handlers
        self._simplify()

    def _placed(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The handler, called in the executor."""
        from ._executor import Executed

        assert self._place is not None, "no executor"
        return Executed(handler, self._place, self._name, self._threads)

    def start(self: Self) -> Self:
        """Let the worker run, now and again after `stop`. Does nothing if it may run already.

        Returns:
            The batcher itself.

        Raises:
            HandlerNotSet: there is no handler yet.
        """
        if not self._handlers:
            raise HandlerNotSet(self._name)
        with self._lock:
            self._started = True
            self._closed = False
            self._simplify()
        self._resume()
        return self

    def stop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """Refuse new items, run those that are queued, and end the worker.

        May be called again, concurrently, from a `__del__` and from a signal handler. From the handler
        itself or from a done-callback it does not wait.

        Args:
            drain: whether queued items are run; otherwise they fail with `Stopped` at once. Without a
                handler they fail in any case.
            timeout: the longest time to wait, in seconds; `None` for no limit. After it, all that is left
                fails with `Stopped`; if a handler is still running, its callers too, and its result is dropped.

        Returns:
            Whether all was done in time, and before somebody called `start`.

        Raises:
            ValueError: `timeout` is negative or not a number.
        """
        timeout = checked_timeout(timeout)
        try:
            return self._stop(drain, timeout)
        finally:
            catch_up()

    async def astop(self, drain: bool = True, timeout: float | None = None) -> bool:
        """`stop` for coroutines: the event loop runs on meanwhile. Cancelling it cancels the waiting alone."""
        import asyncio

        timeout = checked_timeout(timeout)
        self._close(drain)
        catch_up()
        if self._cannot_wait():
            return False
        ticket = LoopTicket((), {}, asyncio.get_running_loop())
        self._say_when_done(ticket)
        done, _ = await asyncio.wait([ticket.future], timeout=timeout)
        if done:
            return bool(ticket.future.result())
        if self._closed:  # not if a start() has overtaken
            self._dismiss()
        return False

    def __enter__(self: Self) -> Self:
        """Start; items that were accepted before run now."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, after what is queued has run."""
        self.stop()

    # -- looking at it ------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether items are accepted."""
        return not self._closed

    @property
    def name(self) -> str:
        """What errors, `repr` and the thread call this batcher."""
        return self._name

    @property
    def stats(self) -> Stats:
        """A snapshot of what the batcher has done; see `ubatch.Stats`. Blocks nobody."""
        return self._snapshot()

    @property
    def max_size(self) -> int:
        """The largest batch, in items. May be set at any time; takes effect at the next cut."""
        return self._max_size

    @max_size.setter
    def max_size(self, max_size: int) -> None:
        self.reconfigure(max_size=max_size)

    @property
    def timeout(self) -> float | None:
        """The longest hold, in seconds; `None` if ubatch finds it out. May be set; takes effect at the next cut."""
        return self._timeout

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self.reconfigure(timeout=timeout)

    @property
    def max_queue(self) -> int | None:
        """The largest number of items that wait; `None` for no limit. May be set at any time."""
        return self._rules.max_queue

    @max_queue.setter
    def max_queue(self, max_queue: int | None) -> None:
        self.reconfigure(max_queue=max_queue)

    @property
    def workers(self) -> int:
        """The largest number of batches that run at once. May be set at any time; takes effect at the next cut."""
        return self._workers

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
        """Change options while the batcher runs, all or none; what is not given stays. Nothing is lost.

        Args:
            max_size, timeout, workers: see the class; take effect at the next cut. What was learned about waiting is
                learned anew if `timeout` or `workers` is given.
            max_queue: see the class; takes effect with the next item. Items that are queued stay so.

        Raises:
            TypeError, ValueError: an argument is not as described; the message has its value. Also for another number
                of workers than there are handlers, where these are a list.
        """
        changes = checked_changes(self._handlers, max_size, timeout, max_queue, workers)
        if "max_queue" in changes:
            begins, self._rules.max_queue = self._rules.max_queue is None, changes["max_queue"]
            if self._rules.max_queue is not None or self._schedule.special:
                lanes = self._specialise()
                if begins:
                    with self._sorting:
                        lanes.admission.begin(lanes.queued())
                self._let_in(lanes)
        self._max_size = changes.get("max_size", self._max_size)
        self._timeout = changes.get("timeout", self._timeout)
        if "timeout" in changes or "workers" in changes:
            self._engage(changes.get("workers", self._workers))
        self._reconsider()

    def _engage(self, workers: int) -> None:
        """So many workers from now on, and a policy for them; what was learned is not of use for it."""
        self._policy = policy_for(self._timeout, workers)
        if self._schedule.special:
            self._policy.observe()
        if workers != self._workers:
            self._staff(workers)

    @property
    def _batcher(self: Self) -> Self:
        return self

    @property
    def _asked(self) -> Asked:
        return View(self, 0, self._rules.deadline, UNSET)

    def __repr__(self) -> str:
        state = "stopped" if self._closed else "running" if self._started else "waiting for start()"
        stats = self.stats
        return (
            f"<UBatch {self._name!r} {state} max_size={self._max_size} timeout={self._timeout} workers={self._workers} "
            f"queued={stats.queued} running={stats.running}>"
        )

    def _own_worker(self) -> RuntimeError:
        return RuntimeError(
            f"the worker of batcher {self._name!r} cannot wait for a batch that only itself could run; use submit()"
        )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be copied or pickled: it has a thread; make one where it is needed")
