"""What tests of batchers share: a handler that waits until it is let go on, and ways to wait for what others do."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

PATIENCE = 10.0  # seconds; what takes longer never ends
FOREVER = 1000.0  # seconds; a window that no test lives to see closing


class Gate:
    """A handler that records its batches and, while it is shut, keeps them waiting."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.batches: list[list[Any]] = []
        self.threads: list[int] = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        if is_open:
            self.opened.set()

    def __call__(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.threads.append(threading.get_native_id())
        self.entered.release()
        assert self.opened.wait(PATIENCE)
        return items

    def wait_for_batch(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE)


def echo(items: list[Any]) -> list[Any]:
    return items


def results(futures: list[Any]) -> list[Any]:
    return [future.result(PATIENCE) for future in futures]


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    """Call a function in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"in_thread-{function!r}", daemon=True).start()
    return future


def inject(error: type[BaseException], thread: int) -> None:
    """Let another thread find an exception raised at its next step in Python."""
    set_async = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert set_async(ctypes.c_ulong(thread), ctypes.py_object(error)) == 1
