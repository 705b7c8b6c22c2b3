"""Handlers that run in an executor: a thread pool, a process pool, a cluster.

Purpose: `Executed` wraps a handler so that each call of it goes through a `concurrent.futures.Executor` and waits for
its result; to a batcher it is a handler like any other. `Renewable` has the executor, and another one when it breaks.

Guarantees: a call whose executor breaks under it (a process of a pool was killed) fails with `WorkerDied`, and the
next call gets a working executor; so does the first call in a forked child, to which the parent's executor is of no
use. A call that an executor refused, as it had broken before, has not begun: it goes to the next one.
What of a batch our own processes cannot send or read, be it an item or a result, is the error of its caller alone.
What `Renewable` made it also shuts down. An executor that was given to it is its giver's.

Assumptions: an executor that has broken says so by `BrokenExecutor`, as those of the standard library, loky's and
others do. `_lock` is held while an executor is made or shut down, which is user code: so that there is one at a time,
and none is left when `close` returns. Only workers take it, and who stops the batcher when no worker is left. As user
code may never end, `abandon` leaves the lock to who holds it, and brings another one.
"""

from __future__ import annotations

import contextvars
import functools
import os
import sys
import weakref

from . import _native
from ._attempt import listed
from ._parcels import NotSent, Unpackable, Unreadable, parts
from .errors import BadBatchOutputSize, WorkerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from typing import Any

    from ._process_stats import ProcessStats

_living: dict[int, weakref.ref[Renewable]] = {}  # every one, by id; operations on a dict are atomic


def is_executor(given: object) -> bool:
    """Whether it is an executor, not something that makes one."""
    return not isinstance(given, type) and callable(getattr(given, "submit", None))


def is_of_gevent(given: object) -> bool:
    """Whether it is a pool of threads that gevent has made greenlets, or its own, which serve one hub."""
    if type(given).__module__.partition(".")[0] == "gevent":
        return True
    threads = sys.modules.get("concurrent.futures.thread")
    return _native.threading_is_patched() and threads is not None and isinstance(given, threads.ThreadPoolExecutor)


class Renewable:
    """An executor that is replaced when it breaks, and in a forked child. Safe to use from any thread.

    Args:
        given: an executor, or a function without parameters that makes one. A `ThreadPoolExecutor` and a
            `ProcessPoolExecutor` that were given are replaced by new ones with the same settings; others cannot be.
    """

    def __init__(self, given: Executor | Callable[[], Executor]) -> None:
        self._given = given
        # an executor, and what processes did of those that it replaced: set in one step, under _lock
        self._state: tuple[Any, ProcessStats | None] = (given if is_executor(given) else None, None)
        self._before: ProcessStats | None = self._executor.stats if _is_ours(given) else None  # as it was given
        self._lock = _native.reentrant_lock()
        self._closing: Any = None  # an executor that is being shut down
        self._inherited: list[Any] = []  # a parent's: not to be collected, as that would speak to the parent's children
        _living[id(self)] = weakref.ref(self, functools.partial(_forget, id(self)))

    @property
    def _executor(self) -> Any:
        return self._state[0]

    def submit(
        self, executed: Executed, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Callable[[], Any]]:
        """Submit a call.

        Returns:
            The executor, and a function that waits for what comes of the call.

        Raises:
            RuntimeError: the executor has been shut down, or is broken and cannot be replaced.
            Exception: what the making of another executor, or its `submit`, raises.
        """
        executor = self._present()
        if _is_ours(executor):  # this very thread can see to it
            return executor, functools.partial(
                executor._run, executed._name, executed.function_for(executor), args, kwargs
            )
        try:
            return executor, executor.submit(executed.function_for(executor), *args, **kwargs).result
        except RuntimeError as error:  # it has not taken the call
            if executor is self._executor and not (_tells_of_breakage(error) and self.replace(executor)):
                raise
        executor = self._present()
        return executor, executor.submit(executed.function_for(executor), *args, **kwargs).result

    def _present(self) -> Any:
        lock = self._lock
        with lock:
            executor = self._executor
            if executor is None:
                executor = self._make()
                if lock is not self._lock:
                    executor.shutdown(wait=False)
                    raise RuntimeError("the batcher did not wait for its executor to be made")
                self._state = executor, self._state[1]
            return executor

    def _make(self) -> Any:
        given: Any = self._given
        made = _twin(given) if is_executor(given) else given()
        if made is None:
            raise RuntimeError(f"executor {given!r} is of no use in a forked child; give a function that makes one")
        if not is_executor(made):
            raise TypeError(f"executor {given!r} must make an executor, not {made!r}")
        return made

    def replace(self, executor: Any) -> bool:
        """An executor has broken: let the next call have another; `False` if none can be made."""
        if is_executor(self._given) and _twin(self._given) is None:
            return False
        with self._lock:
            self._drop(executor)
        if executor is not self._given:
            executor.shutdown(wait=False)
        return True

    def close(self, wait: bool) -> None:
        """Shut down what was made here, once it has run what it has; the next call makes another.

        Args:
            wait: whether to wait until it is down.
        """
        with self._lock:
            executor = self._executor
            if executor is not None and executor is not self._given:
                self._drop(executor)
                self._closing = executor
                executor.shutdown(wait=wait)
                self._closing = None

    def abandon(self) -> None:
        """What runs may never end, be it a call, a factory or a shutdown: let the next call have another executor."""
        self._lock = _native.reentrant_lock()  # who holds the other one is given up
        executor = self._executor or self._closing
        if executor is not None and executor is not self._given:
            self._drop(executor)
            # as a `ProcessPoolExecutor` has it, from Python 3.14 on
            getattr(executor, "kill_workers", functools.partial(executor.shutdown, wait=False))()

    def _drop(self, executor: Any) -> None:
        """It is of no use any more; what it did is remembered."""
        if executor is self._executor:
            stats = self.stats
            self._state = None, stats and stats.without_children()

    @property
    def stats(self) -> ProcessStats | None:
        """What child processes have done for this one and for others meanwhile, if they are ours."""
        executor, past = self._state
        if not _is_ours(executor):
            return past
        stats: ProcessStats = executor.stats
        if self._before is not None:
            stats = stats - self._before
        return stats if past is None else past + stats

    def _forked(self) -> None:
        """In the child: the parent's executor has no threads here. No inherited lock is touched."""
        self._lock = _native.reentrant_lock()
        self._before = None
        executor = self._executor
        if not _is_ours(executor):
            self._inherited.append(executor)
            executor = None
        self._state = executor, None  # one of ours has seen to the fork itself


def _tells_of_breakage(error: BaseException) -> bool:
    from concurrent.futures import BrokenExecutor

    return isinstance(error, BrokenExecutor)


def _is_ours(executor: Any) -> bool:
    """Whether it is a `ProcessExecutor`, which replaces its processes itself."""
    processes = sys.modules.get("ubatch.processes")
    return processes is not None and isinstance(executor, processes.ProcessExecutor)


def _is_process_pool(executor: Any) -> bool:
    """Whether calls run in children of this process, with the same packages."""
    processes = sys.modules.get("concurrent.futures.process")
    return _is_ours(executor) or (processes is not None and isinstance(executor, processes.ProcessPoolExecutor))


def _twin(executor: Any) -> Any:
    """A new executor with the settings of another; `None` if it cannot be told what these are."""
    kind = type(executor)
    settings = {
        "concurrent.futures.thread.ThreadPoolExecutor": (
            "max_workers",
            "thread_name_prefix",
            "initializer",
            "initargs",
        ),
        "concurrent.futures.process.ProcessPoolExecutor": (
            "max_workers",
            "mp_context",
            "initializer",
            "initargs",
            "max_tasks_per_child",  # from Python 3.11 on
        ),
    }.get(f"{kind.__module__}.{kind.__qualname__}")
    if settings is None:
        return None
    # kept by the standard library, from 3.10 to 3.13, under these names; a test holds that
    return kind(**{name: getattr(executor, f"_{name}") for name in settings if hasattr(executor, f"_{name}")})


class Executed:
    """A handler that runs in an executor. May be called from several threads at once.

    Args:
        handler: goes to where the executor runs it, as a batch's items do: to a process, that is, pickled.
        place: the executor.
        name: of the batcher, for errors.
        threads: identities of the threads that run the batcher's handlers; kept up to date for a thread pool, so that
            a handler that calls its own batcher is found there too.
    """

    def __init__(self, handler: Callable[..., Any], place: Renewable, name: str, threads: set[int]) -> None:
        functools.update_wrapper(self, handler)  # the handler's signature is this one's
        self._handler = handler
        self._place = place
        self._name = name
        self._threads = threads

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the handler there, and wait for its result.

        Raises:
            WorkerDied: the executor broke.
            Exception: what the handler raised; what the executor raises that does not take the call.
        """
        from ._records import heard

        executor = wait = None
        try:
            executor, wait = self._place.submit(self, args, kwargs)
            return heard(wait) if _is_process_pool(executor) else wait()
        except Unpackable as error:
            return self._without_bad(args, kwargs, error.__cause__ or error, _unsendable)
        except Unreadable as error:
            if not _is_ours(executor):  # it is what the handler raised
                raise
            return self._piecewise(executor, args, kwargs, error)
        except NotSent as error:
            raise _judged(error, args, kwargs) from error.__cause__
        except RuntimeError as error:
            if not _tells_of_breakage(error):
                raise
            if executor is not None:
                self._place.replace(executor)
            raise WorkerDied(self._name, str(error)) from error
        finally:
            del self, executor, wait, args, kwargs  # a traceback refers to this frame: to nobody's items

    def _piecewise(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: Unreadable) -> Any:
        """Some items, or results, cannot be read where they came to. Raises what `__call__` does."""
        from ._records import heard

        try:
            piecewise = executor._piecewise(self._name)
            if error.pickled is None:  # the call, in the child
                return self._without_bad(args, kwargs, error, piecewise.unreadable)
            if _size_of(args, kwargs) is None:
                error.pickled = None
                raise error
            return heard(functools.partial(piecewise.results, error))
        except NotSent as other:
            raise _judged(other, args, kwargs) from other.__cause__
        finally:
            del self, args, kwargs  # as above

    def _without_bad(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        error: BaseException,
        errors_of: Callable[[Sequence[tuple[Any, ...]]], dict[int, Any]],
    ) -> Any:
        """Some items cannot be sent, or read: theirs is the error alone. Raises what `__call__` does."""
        if _size_of(args, kwargs) is None:
            raise error
        columns = [*args, *kwargs.values()]
        items = [*zip(*columns, strict=True)]
        errors = errors_of(items)
        if not errors:
            raise error
        left = [number for number in range(len(items)) if number not in errors]
        results: Sequence[Any] = ()
        if left:
            some = [[column[number] for number in left] for column in columns]
            named = dict(zip(kwargs, some[len(args) :], strict=True))
            results = listed(self(*some[: len(args)], **named), len(left))
        return [errors[number] if number in errors else results[left.index(number)] for number in range(len(items))]

    def function_for(self, executor: Any) -> Callable[..., Any]:
        """What to submit to an executor."""
        from concurrent.futures import ThreadPoolExecutor

        if _is_process_pool(executor):
            from ._records import logged

            return logged(self._handler, is_handler=True)
        if not isinstance(executor, ThreadPoolExecutor):
            return self._handler
        return functools.partial(contextvars.copy_context().run, self._here)  # the context tells whom a thread serves

    def _here(self, /, *args: Any, **kwargs: Any) -> Any:
        thread = _native.get_ident()
        self._threads.add(thread)
        try:
            return self._handler(*args, **kwargs)
        finally:
            self._threads.discard(thread)


def _size_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """How many items a call has; `None` if it has one thing that is made of all."""
    columns = [*args, *kwargs.values()]
    return len(columns[0]) if columns and all(type(column) is list for column in columns) else None


def _judged(error: NotSent, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception:
    """What the callers of a batch are told of what is no batch of results, and could not be sent."""
    size = _size_of(args, kwargs)
    if size is None:
        return TypeError(f"what the handler returned, a {error.kind}, cannot be sent: {error.reason}")
    return BadBatchOutputSize(size, error.kind)


def _unsendable(items: Sequence[tuple[Any, ...]]) -> dict[int, BaseException]:
    """Why items cannot be pickled, by the positions of those that cannot be."""
    errors: dict[int, BaseException] = {}
    for number, item in enumerate(items):
        try:
            parts(item)
        except Unpackable as error:
            errors[number] = error.__cause__ or error
    return errors


def _forget(key: int, _: object) -> None:
    _living.pop(key, None)


def _after_fork_in_child() -> None:
    for ref in list(_living.values()):
        renewable = ref()
        if renewable is not None:
            renewable._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
