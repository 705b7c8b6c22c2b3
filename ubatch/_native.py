"""What the operating system gives, also under gevent's monkey patching: thread, lock, clock.

A worker must be a native thread: a handler that computes outside the GIL would otherwise stop the hub, and
with it every other greenlet. gevent replaces these names in their modules, so they are taken from where it
keeps the originals. gevent is looked at only if the program has imported it already.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


_loaded = sys.modules.get


def _monkey() -> Any:
    return _loaded("gevent.monkey")


def _original(module: Any, name: str) -> Any:
    monkey = _monkey()
    return getattr(module, name) if monkey is None else monkey.get_original(module.__name__, name)


def threading_is_patched() -> bool:
    """Whether gevent has replaced the locks and threads of `threading`."""
    monkey = _monkey()
    return monkey is not None and monkey.is_module_patched("threading")


allocate_lock: Callable[[], _thread.LockType] = _original(_thread, "allocate_lock")
get_ident: Callable[[], int] = _original(_thread, "get_ident")
monotonic: Callable[[], float] = _original(time, "monotonic")
_start_new_thread: Callable[..., int] = _original(_thread, "start_new_thread")

reentrant_lock: Callable[[], Any] = _thread.RLock
"""A lock that its owner, a thread, may take again: from a signal handler, from a `__del__`."""

MAX_WAIT: float = _thread.TIMEOUT_MAX
"""The longest time, in seconds, that a lock can be waited for."""

main_ident: int | None = None if threading_is_patched() else threading.main_thread().ident
"""Identity of the thread in which Python runs signal handlers; `None` where that cannot be told (gevent)."""


def start_thread(name: str, target: Callable[[], None]) -> None:
    """Run `target` in a native daemon thread called `name`.

    Safe wherever Python code can run, in a `__del__` or a signal handler too: `threading.Thread.start` takes
    a lock of the threading module that this very thread may hold at that moment, so it is called from a
    fresh thread. Under monkey patching `threading.Thread` would be a greenlet; the thread is then a bare one.

    Args:
        name: shown by `threading`, by debuggers and in log records.
        target: must not raise, and must bear being called twice.

    Raises:
        RuntimeError: no thread can be started (a limit of the system, the interpreter is shutting down).
    """
    target = partial(_own, target)
    if threading_is_patched():
        _settle_gevent()
        _start_new_thread(target, ())
    else:
        _start_new_thread(_launch, (name, target))


_own_threads: set[int] = set()  # identities of those that run what `start_thread` was given


def _own(target: Callable[[], None]) -> None:
    _own_threads.add(get_ident())
    try:
        target()
    finally:
        _own_threads.discard(get_ident())


def is_own_thread() -> bool:
    """Whether `start_thread` has started this thread: then it is nobody's but ours, and nobody means to end it."""
    return get_ident() in _own_threads


def _settle_gevent() -> None:
    """Have gevent import what its hubs are made of, before a worker makes one at the same moment as this thread.

    The import lock is patched too: it makes a hub for the thread that waits for it, which imports in its turn.
    """
    from gevent import config

    for setting in ("loop", "libev_backend", "format_context"):
        getattr(config, setting)


def _launch(name: str, target: Callable[[], None]) -> None:
    try:
        threading.Thread(target=target, name=name, daemon=True).start()
    except BaseException:  # a limit of the system; or the interpreter is about to end, and lets no thread begin
        target()  # this one will do


def poll() -> Any:
    """A `select.poll` that stops this thread."""
    import select

    return _original(select, "poll")()


def current_hub() -> Any:
    """The gevent hub of this thread, or `None` (gevent not imported, or no hub made in this thread)."""
    local = _loaded("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()


def in_hub() -> bool:
    """Whether what runs is a gevent hub itself: a callback of its loop, or a signal handler that came upon it."""
    hub = current_hub()
    if hub is None:
        return False
    from greenlet import getcurrent

    return getcurrent() is hub


def run_hub() -> None:
    """Let the hub that patched code made for this thread do what other threads have asked of it."""
    from gevent import sleep

    sleep(0)


def destroy_hub() -> None:
    """Free the hub that patched code made for this thread, if any: one left behind costs two descriptors."""
    hub = current_hub()
    if hub is not None:
        run_hub()
        hub.destroy(destroy_loop=True)


def _forked() -> None:
    global main_ident
    main_ident = None if main_ident is None else get_ident()
    _own_threads.intersection_update({get_ident()})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
