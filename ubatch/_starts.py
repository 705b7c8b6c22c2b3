"""How a child process is started, and what becomes of all that when this process is forked.

Guarantees: processes are started one after another, and none within a fork (`FORK_WAIT`). A process that is forked off
this one closes what it has of children's and their parent's ends, and starts children of its own. Interrupts from the
terminal do not reach a child.

Assumptions: a fork in the very moment in which the ends of a wire are made keeps them for as long as that process is.
"""

from __future__ import annotations

import _socket
import itertools
import os
import signal
import sys
import weakref
from contextlib import suppress
from functools import partial
from importlib import import_module

from . import _child, _native
from ._parcels import Unpackable, pack
from ._records import logged
from ._shm import pool
from ._wire import Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from typing import Any

    from ._parcels import Parcel

METHODS = ("spawn", "forkserver", "fork")
"""How children can be started; see `multiprocessing`."""

FORK_WAIT = 5.0
"""Seconds that a fork waits for a process that is being started, which takes some milliseconds."""

# held while a process is started: one after another, as locks of `multiprocessing` that gevent patched do not bear
# more; and by a fork, as the forked process would find those closed for ever that another thread has at that moment
_launching = _native.reentrant_lock()
_forking: list[bool] = []  # for each fork that is on its way whether it has that
_wires: weakref.WeakSet[Wire] = weakref.WeakSet()
_serial = itertools.count(1)
_theirs: dict[int, int] = {}  # descriptors that are a child's, while it is started, and the thread that does that


class Setup:
    """How children are started, and what they do then.

    Args:
        method: one of `METHODS`.
        prepare: called in each child first of all.
        timeout: seconds that it may take until a child is ready.
        writable: whether arrays that come in may be written to.
    """

    def __init__(self, method: str, prepare: Callable[[], object], timeout: float, writable: bool) -> None:
        self.method = method
        self.timeout = timeout
        self.writable = writable
        self._inherited = prepare if method == "fork" else None  # it need not be pickled then
        self._first = partial(_child.prepared, None if method == "fork" else prepare)
        # here, not in the threads that start children: gevent patches the lock of imports, too
        module = {"spawn": "popen_spawn_posix", "forkserver": "popen_forkserver", "fork": "popen_fork"}[method]
        for name in ("connection", "process", "resource_tracker", "spawn", module):
            import_module(f"multiprocessing.{name}")

    def first(self) -> Parcel:
        """The first call of a child. Raises Exception: it cannot be pickled."""
        try:
            return pack((logged(self._first), (), {}), pool, pool.take)
        except Unpackable as error:
            raise error.__cause__ or error from None

    def start(self, name: str) -> tuple[BaseProcess, Wire]:
        """A new process, and the wire to it. Raises Exception: it cannot be started."""
        with _launching:
            return self._launched(name)

    def _launched(self, name: str) -> tuple[BaseProcess, Wire]:
        import multiprocessing.process
        from multiprocessing import resource_tracker
        from multiprocessing.connection import Connection

        context: Any = multiprocessing.get_context(self.method)
        # what serves others as well is not to inherit what is blocked below; nor is it to unblock it
        if self.method != "fork":
            resource_tracker.ensure_running()
        if self.method == "forkserver":
            from multiprocessing import forkserver

            forkserver.ensure_running()
        ours, theirs = _socket.socketpair()
        wire = Wire(ours)
        _wires.add(wire)
        end = Connection(theirs.detach())
        _theirs[end.fileno()] = _native.get_ident()
        # an interrupt from the terminal is not for it, even before it can say so: it inherits what is blocked here
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            # not daemonic: it may have children of its own
            process: BaseProcess = context.Process(
                target=_child.main,
                args=(end, self.writable, self._inherited),
                name=f"{name}-{next(_serial)}",
                daemon=False,
            )
            try:
                process.start()
            finally:
                # ours to wait for: `multiprocessing` would do so at exit, also in a process that is forked off this one
                getattr(multiprocessing.process, "_children", set()).discard(process)
        except BaseException:
            wire.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            del _theirs[end.fileno()]
            end.close()
        return process, wire


def _before_fork() -> None:
    _forking.append(_launching.acquire(True, FORK_WAIT))


def _after_fork_in_parent() -> None:
    if _forking.pop():
        _launching.release()


def _after_fork_in_child() -> None:
    """Wires are the parent's, and so is the server that processes are forked off."""
    global _launching
    _launching = _native.reentrant_lock()
    _forking.clear()
    for wire in list(_wires):
        with suppress(OSError):
            wire.abandon()
    _wires.clear()
    for descriptor, thread in list(_theirs.items()):
        if thread != _native.get_ident():  # else this is the very child that it is for
            with suppress(OSError):
                os.close(descriptor)
            del _theirs[descriptor]
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None and server._forkserver_alive_fd is not None:  # as of Python 3.10 to 3.13; a test holds that
        with suppress(OSError):
            os.close(server._forkserver_alive_fd)
        server.__init__()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
