"""Child processes as an executor, to which arrays travel through shared memory.

    batch = UBatch(handler=decode, workers=4, executor=ProcessExecutor(4))

Functions that hold the GIL run beside each other there. Arrays, and whatever else speaks pickle's protocol 5, are
copied once on their way in, into memory that both processes have, and once on their way out; what lies in such memory
already is not copied at all. Small things go in the message. A process that dies is replaced.

Guarantees, and how they come about: see `_crew` for processes, `_shm` for memory.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor
from functools import partial

from . import _native
from ._children import RemoteTraceback
from ._crew import Crew, settle
from ._options import checked_limit, checked_name, checked_timeout, checked_workers
from ._parcels import Unpackable, Unreadable
from ._piecewise import Piecewise
from ._process_stats import ChildStats, ProcessStats
from ._records import heard, logged
from ._stacks import stack
from ._starts import METHODS, Setup
from ._typing import TypeVar
from ._waiters import blocking, deliver
from .core import UBatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from typing import Any

__all__ = ["ChildStats", "ProcessExecutor", "ProcessStats", "RemoteTraceback"]

SHUTDOWN_WAIT = 10.0
"""Seconds that `shutdown` waits for processes to end that have nothing to do; then they are killed."""

Self = TypeVar("Self", bound="ProcessExecutor")


class ProcessExecutor(Executor):
    """Child processes that run functions: a `concurrent.futures.Executor`. May be used from any thread.

    What functions log reaches the loggers here, with the answer of their call; with a process that dies it is lost.

    A process that dies is replaced: at once, or, if it had nothing to do, with the next call that comes upon it, or by
    `start`. If another one cannot start, calls go to the others or wait for a few more attempts. After these, or if
    none was ever ready, an attempt is made for a call, and put off for longer each time; while there is no process at
    all, calls fail at once, with the reason.

    Functions, arguments and results must pickle. Large buffers of theirs (of numpy arrays, torch tensors in CPU memory,
    bytes, bytearrays, memoryviews) go through shared memory. An array that comes out of a call lies in such memory, and
    can go into the next call without being copied; it keeps the memory of all that came with it: copy it if it is to be
    kept for long.

    A program whose main module starts things when it is imported needs `if __name__ == "__main__":`, unless
    `start_method` is "fork".

    Args:
        max_workers: how many processes; by default as many as there are cores.
        start_method: "spawn" starts them afresh. "forkserver" forks them off a process that was. "fork" forks them off
            this one, which is only safe while it has no other threads; then the initializer need not pickle.
        initializer: called with `initargs` in each process as it starts.
        initargs: its arguments.
        start_timeout: seconds in which a process must be ready; then it is killed.
        call_timeout: seconds that a call may take; then its process is killed, and it fails with `WorkerDied`. `None`
            for no limit.
        retries: how often a call is made again whose process died or was killed. Only for functions to which it does
            no harm to be called twice.
        writable: whether functions may write to arrays that they are given. By default these are read-only, as other
            processes may read the very same memory; if they are writable, they are copied for each call. A tensor of
            torch cannot be made read-only: it must not be written to.
        stacked: the first argument of each call is a list of arrays of one shape and type; the function gets it as one
            array of shape (n, …), which is made in shared memory at once.
        name: of the processes, and in errors of what is called directly; a batcher's have that of the batcher.

    Raises:
        TypeError, ValueError: an argument is not as described; the message has its value.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        start_method: str = "spawn",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        start_timeout: float = 60.0,
        call_timeout: float | None = None,
        retries: int = 0,
        writable: bool = False,
        stacked: bool = False,
        name: str = "ubatch-process",
    ) -> None:
        size = checked_workers((os.cpu_count() or 1) if max_workers is None else max_workers)
        if start_method not in METHODS:
            raise ValueError(f"start_method must be one of {', '.join(METHODS)}, not {start_method!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        if isinstance(retries, bool) or not hasattr(retries, "__index__"):
            raise TypeError(f"retries must be an integer, not {retries!r}")
        if retries < 0:
            raise ValueError(f"retries must be at least 0, not {retries!r}")
        for option, value in {"writable": writable, "stacked": stacked}.items():
            if not isinstance(value, bool):
                raise TypeError(f"{option} must be True or False, not {value!r}")
        prepare = partial(_nothing if initializer is None else initializer, *initargs)
        if start_method != "spawn" and _native.threading_is_patched():
            raise ValueError(f"start_method {start_method!r} does not go with gevent's patches; use 'spawn'")
        setup = Setup(start_method, prepare, checked_limit("start_timeout", start_timeout), writable)
        limit = None if call_timeout is None else checked_limit("call_timeout", call_timeout)
        self._size = size
        self._stacked = stacked
        self._crew = Crew(checked_name(name) or "ubatch-process", size, setup, limit, retries)
        self._calls: UBatch[Any, Any] | None = None
        self._futures: set[Future[Any]] = set()  # those that are not done
        self._closing = False

    def start(self: Self, timeout: float | None = None) -> Self:
        """Start the processes side by side, and wait until all are ready. Does nothing for those that are.

        Those that have died meanwhile are replaced.

        Without it, a process is started with the first call that needs it.

        Args:
            timeout: seconds; `start_timeout` by default.

        Returns:
            The executor itself.

        Raises:
            RuntimeError: it has been shut down.
            TimeoutError: a process was not ready in time. None is left.
            WorkerDied: a process died. None is left.
            Exception: what the initializer raised; `__cause__` has the traceback. None is left.
        """
        _cooperatively(partial(self._crew.start, checked_timeout(timeout)))
        return self

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a function called in one of the processes.

        Returns:
            A future of its result; `WorkerDied` if the process died, and not all retries are used up.

        Raises:
            RuntimeError: the executor has been shut down.
        """
        if self._closing:
            raise RuntimeError(f"{self!r} has been shut down")
        if self._calls is None:
            with self._crew._lock:
                if self._calls is None:
                    handler = partial(_made, self._crew, self._stacked)
                    self._calls = _Calls(1, 0, handler=handler, workers=self._size, name=self._crew.name)
        future = self._calls.submit((fn, args, kwargs))
        self._futures.add(future)
        future.add_done_callback(self._done)
        return future

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in one of the processes, and wait for it in this very thread: cheaper than a future.

        Raises:
            WorkerDied: the process died, or, time and again, none can be started; says how.
            RuntimeError: the executor has been shut down.
            TypeError: something does not unpickle, there or here; says what.
            Exception: what the function raised, with the traceback in `__cause__`; something does not pickle.
        """
        try:
            return heard(partial(self._run, self._crew.name, logged(fn), args, kwargs))
        except Unpackable as error:
            raise error.__cause__ or error from None
        except Unreadable as error:
            error.pickled = None  # not to be kept with it
            raise

    def _run(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`call` for a batcher of that name.

        Raises:
            Unpackable: function or arguments do not pickle.
            Unreadable: they do not unpickle there; or the answer does not here.
            Exception: as of `call`.
        """
        return _called(self._crew, self._stacked, name, fn, args, kwargs)

    def _piecewise(self, name: str) -> Piecewise:
        """Finds out, for a batcher of that name, what of a batch it is that cannot be read."""
        return Piecewise(partial(self._crew.call, name))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Processes end once they have done what was submitted.

        Args:
            wait: whether to wait until they have ended.
            cancel_futures: whether calls are cancelled that have not begun.
        """
        self._closing = True
        if cancel_futures:
            for future in [*self._futures]:
                future.cancel()
        if self._calls is not None:
            if wait:
                wait = self._calls.stop()  # not from one of its own callbacks
            else:
                self._calls._close(drain=True)
        if wait:
            _cooperatively(partial(self._crew.close, wait=True))
            _cooperatively(partial(settle, SHUTDOWN_WAIT))
        elif not self._futures:
            self._crew.close()

    def _done(self, future: Future[Any]) -> None:
        self._futures.discard(future)
        if self._closing and not self._futures:
            self._crew.close()

    def kill_workers(self) -> None:
        """Take no more calls, and end all processes now. Calls that are running fail with `WorkerDied`."""
        self._crew.kill()
        if self._calls is not None:
            self._calls._close(drain=False)

    @property
    def stats(self) -> ProcessStats:
        """A snapshot of what was done, and of the processes; see `ProcessStats`. Blocks nobody."""
        return self._crew.stats()

    def __repr__(self) -> str:
        return f"<ProcessExecutor {self._crew.name!r} max_workers={self._size}>"


class _Calls(UBatch["Any", "Any"]):
    """What is submitted to an executor, one call a batch."""

    _is_hidden = True


def _nothing() -> None:
    pass


def _made(crew: Crew, stacked: bool, calls: Sequence[Any]) -> list[Any]:
    """The outcomes of what was submitted; errors are outcomes, which are for the futures alone: nothing is logged."""
    outcomes: list[Any] = []
    for call in calls:
        fn, args, kwargs = call
        try:
            outcomes.append(heard(partial(_called, crew, stacked, crew.name, logged(fn), args, kwargs)))
        except Unpackable as error:
            outcomes.append(error.__cause__)
        except BaseException as error:
            if isinstance(error, Unreadable):
                error.pickled = None  # as above
            outcomes.append(error)
    return outcomes


def _called(
    crew: Crew, stacked: bool, name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    fresh, copied = None, 0
    if stacked:
        if not args:
            raise TypeError("the first argument of a call must be a list of arrays to be stacked")
        copied = len(args[0])
        first, fresh = stack(args[0])
        args = (first, *args[1:])
        del first
    return crew.call(name, fn, args, kwargs, fresh, copied if fresh is not None else 0)


def _cooperatively(function: Callable[[], object]) -> None:
    """Call a function that blocks; a greenlet lets others run meanwhile."""
    if _native.current_hub() is None or _native.in_hub():
        function()
        return
    ticket = blocking((), {})

    def run() -> None:
        outcome: object = None
        try:
            function()
        except BaseException as error:
            outcome = error
        deliver([ticket], [outcome])

    _native.start_thread("ubatch-start", run)
    ticket.wait()
    ticket.result()
