"""What all tests share: a guard against leaks, fresh interpreters, provoked races, a printed seed.

The guard looks at the process itself (`/proc/self`), so it also sees threads that `threading` does not know.
It forgives nothing by name. What a runtime opens once and keeps as long as its process lives is kept out of
this process instead:

- gevent: a hub holds an epoll and an event descriptor, and a main thread that has one is, to the core, a
  thread with greenlets in every later test. Tests of gevent therefore run in `run_python`, as do those that
  fork or exit. gevent in a thread that ends with `get_hub().destroy(destroy_loop=True)` is fine here.
- uvloop: libuv opens one pipe at the first loop; the session-wide fixture `uvloop` has it open beforehand.
- numpy: OpenBLAS keeps native threads, ends them at a fork and starts others at the next product. Here it
  computes in the thread that calls it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing.resource_tracker
import os
import secrets
import selectors
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from gates import Gate

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before anything imports numpy

PATIENCE = 5.0  # seconds in which what is about to end must have ended
PROC = Path("/proc/self")
PR_SET_CHILD_SUBREAPER = 36

Held = dict[tuple[object, ...], str]  # threads, children, descriptors of this process, and their names

hypothesis.settings.register_profile("ubatch", deadline=None, print_blob=True)  # a slow core is no failure
hypothesis.settings.load_profile("ubatch")

_has_failed = pytest.StashKey[bool]()


def pytest_configure() -> None:
    """Have interrupts arrive, and become the parent of orphaned grandchildren, so that the guard sees them too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background, and all that it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_has_failed] = True
    return report


@pytest.fixture(autouse=True)
def _leak_guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves behind a thread, a child process or a file descriptor, and name it.

    A test that has failed already is not accused: its traceback keeps alive what it would have let go of.
    Children end in either case, so that they do not disturb the tests that follow.
    """
    if not (PROC / "task").exists():  # not Linux
        yield
        return
    before = _surely_held()
    yield
    if request.node.stash.get(_has_failed, False):
        _kill(_new(before))
    elif leaked := _held_since(before):
        threads = _stacks() if any(kind == "thread" for kind, *_ in leaked) else ""
        _kill(leaked)
        pytest.fail(f"leaked: {', '.join(leaked.values())}\n{threads}", pytrace=False)


@pytest.fixture(autouse=True)
def _nothing_warned_of() -> Iterator[None]:
    """What was warned of in the test before may be again; and what was not is not told when all have run."""
    _forget_warnings()
    yield
    _forget_warnings()


def _forget_warnings() -> None:
    log = sys.modules.get("ubatch._log")
    if log is not None:
        log.known.clear()


def _surely_held() -> Held:
    """What is held, with nothing overlooked.

    Linux ends a listing of threads where it comes upon one that dies at that moment, as the watchdog that pytest
    had for the test before may. Such a listing ends with that thread, so that no two in a row are cut short alike.
    """
    held: Held = {}
    while held != (again := _held()):
        held = again
    return held


def _held() -> Held:
    held: Held = {}
    for task in (PROC / "task").iterdir():
        held["thread", int(task.name)] = f"native thread {task.name}"
        with contextlib.suppress(OSError):  # the thread, or the child, has just ended
            for pid in (task / "children").read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                held["child", int(pid)] = f"child process {pid} ({command.strip()})"
    for thread in threading.enumerate():
        held["thread", thread.native_id] = f"thread {thread.name}"
    for entry in (PROC / "fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor through which this folder was read
            target = os.readlink(entry)
            held["fd", entry.name, target] = f"file descriptor {entry.name} ({target})"
    return held


def _new(before: Held) -> Held:
    return {key: name for key, name in _held().items() if key not in before}


def _held_since(before: Held) -> Held:
    """What is held and was not before, once patience with what is about to end has run out."""
    deadline = time.monotonic() + PATIENCE
    pause = 0.001
    while new := _new(before):
        if time.monotonic() > deadline:
            break
        _reap(new)
        gc.collect()  # a forgotten batcher ends its worker when it is collected
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return new


def _reap(held: Held) -> None:
    """Fetch the exit status of orphans that have ended: this process is their parent now."""
    for kind, pid, *_ in held:
        if kind == "child" and isinstance(pid, int):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _kill(held: Held) -> None:
    for kind, pid, *_ in held:
        if kind == "child" and isinstance(pid, int):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _stacks() -> str:
    """Where each thread of Python is, but for the one that asks."""
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    return "\n".join(f"{ident:#x}:\n{''.join(traceback.format_stack(at))}" for ident, at in frames.items())


RunPython = Callable[..., str]


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> RunPython:
    """`run_python(code, *, timeout=60, options=(), env=None, returncode=0, stderr="")` gives the output.

    The code runs in a fresh interpreter, in a folder of its own, so that `ubatch` is the installed one. The
    test fails, and shows what was written to standard error, if that is not `stderr` (None: anything may be),
    if the exit status is not `returncode`, or if it takes longer than `timeout` seconds; then with the stacks
    of all threads. `env` is added to the environment, `options` are the interpreter's.
    """

    def run(
        code: str,
        *,
        timeout: float = 60.0,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        returncode: int = 0,
        stderr: str | None = "",
    ) -> str:
        __tracebackhide__ = True
        script = tmp_path_factory.mktemp("run_python") / "snippet.py"
        script.write_text(textwrap.dedent(code), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *options, str(script)],
            cwd=script.parent,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # so that what it forks can be ended with it
        )
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                out, err = _abort(process)
                ended = f"no end after {timeout} s"
            else:
                ended = f"exit status {process.returncode}"
        if ended != f"exit status {returncode}" or (stderr is not None and err != stderr):
            pytest.fail(f"{ended}\n--- stdout\n{out}\n--- stderr\n{err}")
        return out

    return run


def _abort(process: subprocess.Popen[str]) -> tuple[str, str]:
    """End a process and what it forked; each writes the stacks of its threads first."""
    os.killpg(process.pid, signal.SIGABRT)
    try:
        return process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


@pytest.fixture
def hurry() -> Iterator[None]:
    """Let threads take the GIL from each other all the time, so that races happen."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A handler that is shut; open when the test is over."""
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def seed() -> int:
    """A random seed, printed with a failure; `UBATCH_SEED` in the environment repeats it."""
    value = int(os.environ.get("UBATCH_SEED") or secrets.randbits(32))
    print(f"UBATCH_SEED={value}")
    return value


@pytest.fixture(scope="session")
def _processes_may_be_spawned() -> None:
    """The process that multiprocessing starts once, and keeps, is there before the test begins."""
    multiprocessing.resource_tracker.ensure_running()


@pytest.fixture(scope="session")
def uvloop() -> ModuleType:
    """The module, with the pipe that libuv opens once for each process open already."""
    module: ModuleType = pytest.importorskip("uvloop")
    module.new_event_loop().close()
    return module


@pytest.fixture(scope="session")
def _uvloop_is_open(request: pytest.FixtureRequest) -> None:
    """What uvloop opens once, if it is there, is open before the test begins."""
    with contextlib.suppress(pytest.skip.Exception):
        request.getfixturevalue("uvloop")


@pytest.fixture(params=["asyncio", "uvloop"])
def run(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, _uvloop_is_open: None
) -> Iterator[Callable[..., Any]]:
    """Run a coroutine in a fresh event loop in debug mode. Nothing may be logged by the loop."""
    new_loop = asyncio.new_event_loop
    if request.param == "uvloop":
        new_loop = request.getfixturevalue("uvloop").new_event_loop

    def run(main: Callable[[], Coroutine[Any, Any, Any]], *, timeout: float = 2 * PATIENCE) -> Any:
        loop = new_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 2 * PATIENCE
        try:
            return loop.run_until_complete(asyncio.wait_for(main(), timeout))
        finally:
            with contextlib.suppress(BaseException):
                for task in asyncio.all_tasks(loop):
                    task.cancel()
                loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    yield run
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


class Instant(selectors.SelectSelector):
    """Waits for nothing: what would be waited for is added to the clock."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing would ever happen again")
        if not ready:
            self.now += timeout or 0.0
        return ready


class Virtual:
    """A virtual-time event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.selector = Instant()
        self.loop = asyncio.SelectorEventLoop(self.selector)
        monkeypatch.setattr(self.loop, "time", lambda: self.selector.now)
        for room in ("_loop", "_loop_intake"):
            monkeypatch.setattr(f"ubatch.{room}.monotonic", lambda: self.selector.now)

    @property
    def now(self) -> float:
        return self.selector.now

    def __call__(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return self.loop.run_until_complete(main())
        finally:
            assert asyncio.all_tasks(self.loop) == set(), "something is still pending"


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Iterator[Virtual]:
    """Runs a coroutine in virtual time."""
    virtual = Virtual(monkeypatch)
    yield virtual
    virtual.loop.close()
