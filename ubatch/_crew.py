"""Child processes that run functions: the parent's side. Starting them, calling them, replacing them.

Purpose: a `Crew` has a number of posts, and each of these a `Child` (see `_children`) at a time. `call` runs a function
in one that is free, and waits for what comes of it in this very thread.

Guarantees:
- A call returns what the function returned, raises what it raised, or raises `WorkerDied`, which says how the process
  ended. It is made once more for each retry that is allowed.
- A child that dies is replaced: its successor is started at once, and waited for by the next call that needs it. If it
  cannot start, then the next attempt is put off, for longer each time; until then calls fail at once, with the reason.
- No child outlives its crew, or this process, by more than `_child.GRACE` seconds; nor does a call its time limit.
- A process that is forked off this one has a crew of its own; the parent's is unaffected.

How. Whoever has taken a post off `_idle` owns it and its child, and gives it back.

Assumptions: `_lock` is held for a few steps only, and never while a process is started or waited for.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections import deque

from . import _native
from ._children import Child, Ended, Setup, forget_parents, leaving, outcome, reap
from ._native import monotonic
from ._parcels import pack
from ._process_stats import ProcessStats
from ._shm import pool
from ._tally import Tally, child_stats
from .errors import WorkerDied

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._children import Answer
    from ._parcels import Parcel
    from ._shm import Block

FIRST_PAUSE = 0.1
"""Seconds until a child is started again after one that could not start; doubled each time."""

LONGEST_PAUSE = 30.0
"""Seconds that this grows to."""

EXIT_WAIT = 2.0
"""Seconds that the interpreter's exit waits for children, all together; then they are killed."""

_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


class Post:
    """A place for a child. Owned by who has taken it off its crew's `_idle`."""

    __slots__ = ("child",)

    def __init__(self) -> None:
        self.child: Child | None = None


class _Waiter:
    """Who waits for a post."""

    __slots__ = ("gate", "left", "post")

    def __init__(self) -> None:
        self.gate = _native.allocate_lock()
        self.gate.acquire()
        self.left = False
        self.post: Post | None = None


class Crew:
    """Child processes that run functions; see the head of the file. May be called from any thread.

    Args:
        name: for errors and processes.
        size: how many.
        setup: how they are started.
        timeout: seconds that a call may take, else the child is killed; `None` for no limit.
        retries: how often a call is made again whose child died.
    """

    def __init__(self, name: str, size: int, setup: Setup, timeout: float | None, retries: int) -> None:
        self.name = name
        self._size = size
        self._setup = setup
        self._timeout = timeout
        self._retries = retries
        self._fresh()
        _crews.add(self)

    def _fresh(self) -> None:
        self._lock = _native.reentrant_lock()  # guards _idle, _waiting and _closed
        self._posts = [Post() for _ in range(self._size)]
        self._idle = [*self._posts]  # the last is taken first
        self._waiting: deque[_Waiter] = deque()
        self._closed = False
        self._failures = 0  # starts that failed, one after another
        self._pause = 0.0  # until when none is tried
        self._reason = ""  # why
        self._room = 0  # bytes that answers take, of late
        self._tally = Tally()

    def __del__(self) -> None:
        for post in self.__dict__.get("_posts", ()):
            _vacate(post)

    def stats(self) -> ProcessStats:
        """A snapshot; see there."""
        children = [post.child for post in self._posts]
        told = [child_stats(one.pid, one.alive(), one.calls) if one else child_stats() for one in children]
        return self._tally.snapshot(tuple(told), pool.size)

    # -- starting and ending ------------------------------------------------------------------------------

    def start(self, timeout: float | None) -> None:
        """Start all children that are not there, side by side, and wait until they are ready.

        Args:
            timeout: seconds; `None` for that of the setup.

        Raises:
            RuntimeError: it is closed.
            WorkerDied: one of them died.
            TimeoutError: one was not ready in time.
            Exception: what one of them raised as it started; or it cannot be started.
        """
        timeout = self._setup.timeout if timeout is None else timeout
        until = monotonic() + timeout
        with self._lock:
            self._check_open()
            mine, self._idle = self._idle, []
        try:
            for post in mine:
                post.child = post.child or Child(self.name, self._setup)
            for post in mine:
                assert post.child is not None
                post.child.ready(max(0.001, until - monotonic()))
            self._failures, self._pause = 0, 0.0
        except BaseException as error:
            failed = [post.child for post in mine if post.child is not None]
            for post in mine:
                post.child = None
            for child in failed:
                child.kill()
            for child in failed:
                child.end()
            if isinstance(error, Ended) and monotonic() >= until:
                raise TimeoutError(f"{self.name}: children were not ready within {timeout:g} s") from None
            if isinstance(error, Ended):
                raise WorkerDied(self.name, f"{error} before it was ready") from None
            raise
        finally:
            for post in mine:
                self._give_back(post)

    def close(self) -> None:
        """Take no more calls. Children end once they have done what they are at."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            waiter.gate.release()
        for post in idle:
            _vacate(post)
        settle()

    def kill(self) -> None:
        """Take no more calls, and end all children that are at one now: it fails."""
        self.close()
        for post in self._posts:
            child = post.child
            if child is not None:  # whoever called it will see to the rest
                child.kill()

    def reopen(self) -> None:
        """Take calls again, after `close`; does nothing before."""
        with self._lock:
            if self._closed:
                tally = self._tally
                self._fresh()
                self._tally = tally

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the child processes of {self.name!r} have been shut down")

    # -- calling ------------------------------------------------------------------------------------------

    def call(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        fresh: tuple[Block, memoryview] | None,
        copied: int,
    ) -> Any:
        """Run a function in a child.

        Args:
            function, args, kwargs: are pickled, but for large buffers.
            fresh: a block and a view of it, which nothing but the arguments refers to; or `None`.
            copied: how many buffers were copied there.

        Raises:
            WorkerDied: the child died, or there is none.
            RuntimeError: the crew is closed.
            Exception: what the function raised; or something cannot be pickled.
        """
        try:
            began = monotonic()
            shared = not self._setup.writable  # else the child could write to what others refer to
            parcel = pack((function, args, kwargs), pool, pool.take, shared, fresh)
            seconds = monotonic() - began
            post = self._take()
            try:
                answer = None
                for _ in range(self._retries):
                    try:
                        answer = self._answer(post, parcel)
                        break
                    except WorkerDied:
                        if not shared:  # the child may have written to what it got
                            parcel = pack((function, args, kwargs), pool, pool.take, shared)
                answer = answer or self._answer(post, parcel)
                self._room = answer.room if answer.room > self._room else self._room - self._room // 4
            finally:
                self._give_back(post)
            sent = parcel.size, parcel.copied + copied, parcel.passed
            del parcel
            began = monotonic()
            try:
                return outcome(answer)
            finally:
                self._tally.note(seconds + answer.took + monotonic() - began, answer, *sent)
        finally:
            del self, function, args, kwargs, fresh  # a traceback refers to this frame: to nobody's items

    def _answer(self, post: Post, parcel: Parcel) -> Answer:
        """Have the child at a post make a call. Raises WorkerDied: it died, or there is none."""
        child = self._staffed(post)
        try:
            return child.call(parcel, self._timeout, self._room)
        except BaseException as error:
            self._replace(post)
            if not isinstance(error, Ended):
                raise
            self._tally.died += 1
            raise WorkerDied(self.name, str(error)) from None

    def _take(self) -> Post:
        with self._lock:
            self._check_open()
            if self._idle:
                return self._idle.pop()
            waiter = _Waiter()
            self._waiting.append(waiter)
        try:
            waiter.gate.acquire()
        except BaseException:  # interrupted by a signal handler
            with self._lock:
                waiter.left = True
            if waiter.post is not None:
                self._give_back(waiter.post)
            raise
        if waiter.post is None:
            self._check_open()
            raise AssertionError("called without a post")
        return waiter.post

    def _give_back(self, post: Post) -> None:
        with self._lock:
            open_here = not self._closed and post in self._posts  # not where it was closed and opened again
            while open_here and self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.left:
                    waiter.post = post
                    waiter.gate.release()
                    return
            if open_here:
                # one whose child is ready is taken before one whose child is not
                ready = post.child is not None and post.child.is_ready
                self._idle.insert(len(self._idle) if ready else 0, post)
                return
        _vacate(post)

    def _staffed(self, post: Post) -> Child:
        """The child at a post, ready to be called. Raises WorkerDied: there is none."""
        child = post.child
        if child is not None and child.is_ready:
            if child.alive():
                return child
            child.end()  # it died while it had nothing to do
            self._tally.died += 1
            child = post.child = None
        if child is None and monotonic() < self._pause:
            raise WorkerDied(self.name, f"{self._reason}; the next attempt is due in {self._pause - monotonic():.1f} s")
        try:
            if child is None:
                child = post.child = Child(self.name, self._setup)
            child.ready(self._setup.timeout)
        except BaseException as error:
            post.child = None
            if child is not None:
                child.kill()
                child.end()
            if not isinstance(error, Exception):
                raise
            raise self._put_off(error) from (None if isinstance(error, Ended) else error)
        self._failures = 0
        return child

    def _put_off(self, error: Exception) -> WorkerDied:
        """A child could not start: let some time pass until the next is tried."""
        self._failures += 1
        self._pause = monotonic() + min(FIRST_PAUSE * 2.0 ** min(self._failures - 1, 30), LONGEST_PAUSE)
        how = str(error) if isinstance(error, Ended) else f"{type(error).__name__}: {error}"
        self._reason = f"a child process could not start: {how}"
        return WorkerDied(self.name, self._reason)

    def _replace(self, post: Post) -> None:
        """The child at a post has ended: start another one, which somebody else will wait for."""
        post.child = None
        if self._closed or monotonic() < self._pause:
            return
        try:
            post.child = Child(self.name, self._setup)
        except Exception as error:
            self._put_off(error)


def _vacate(post: Post) -> None:
    child, post.child = post.child, None
    if child is not None:
        child.dismiss()


def settle(patience: float = 0.0) -> None:
    """Wait for children that were dismissed, as `reap` does; if there is no crew left, memory is returned, too."""
    reap(patience)
    if all(crew._closed for crew in list(_crews)):
        pool.trim()


def _at_exit() -> None:
    """Those that idle may end by themselves. Batchers have given the others a moment already."""
    for crew in list(_crews):
        crew.kill()
    reap(EXIT_WAIT)


def _after_fork_in_child() -> None:
    leaving.clear()
    forget_parents()
    for crew in list(_crews):
        crew._fresh()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
