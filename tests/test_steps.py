"""What comes between two steps of a batcher's threads, at each step in turn: whatever it is, nothing is lost.

A trace function stops a thread where Python may switch to another, run a signal handler or collect garbage: after a
call, where a function begins, where a loop begins again. So races need no luck.

Nor may there be any: a trace function is Python code itself, so that threads might switch or garbage be collected
between any two instructions, where that cannot be without it. So threads only switch where one waits, and nothing is
collected.
"""

from __future__ import annotations

import dis
import functools
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from gates import FOREVER, PATIENCE, eventually, in_thread

import ubatch._seats
import ubatch._turns
from ubatch import Stopped, UBatch

ROOMS = {
    str(Path(ubatch.__file__).parent / name)
    for name in ("_driver.py", "_intake.py", "_seats.py", "_turns.py", "core.py")
}
MOMENT = 0.004  # seconds that a stopped thread waits for another, which may in turn wait for it


@functools.cache
def steps(code: CodeType) -> dict[int, str]:
    """The names of the instructions at each offset."""
    return {step.offset: step.opname for step in dis.get_instructions(code)}


def looks(before: str, jumped: bool) -> bool:
    """Whether Python looks after an instruction if there is something else to be done."""
    if sys.version_info < (3, 11) and before.startswith(("POP_JUMP", "JUMP_ABSOLUTE")):
        return jumped
    return before.startswith("CALL") or before in ("", "RESUME") or "JUMP_BACKWARD" in before


class Between:
    """Calls `act` in a thread at its n-th step, counted over all threads for which `wanted` holds."""

    def __init__(self, step: int, wanted: Callable[[threading.Thread], bool], act: Callable[[], object]) -> None:
        self.step = step
        self.wanted = wanted
        self.act = act
        self.steps = itertools.count()
        self.lock = threading.Lock()  # held while it acts
        self.over = False
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if self.over or frame.f_code.co_filename not in ROOMS or not self.wanted(threading.current_thread()):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        names, before = steps(frame.f_code), -1

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal before
            if event == "opcode" and not self.over:
                name, jumped = names.get(before, ""), frame.f_lasti != before + 2
                if looks(name, jumped) and next(self.steps) == self.step:
                    with self.lock:
                        if not self.over:
                            self.over = True
                            self.where = f"{frame.f_code.co_name}, line {frame.f_lineno}"
                            self.act()
                before = frame.f_lasti
            return trace

        return trace

    def __enter__(self) -> None:
        threading.settrace(self)
        sys.settrace(self)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        with self.lock:
            self.over = True


class World:
    """A batcher with two workers, and what was submitted to it."""

    def __init__(self) -> None:
        self.batch: UBatch[Any, Any] = UBatch(1, 0, handler=self.handler, name="steps", workers=2)
        self.futures: list[Future[Any]] = []
        self.others: list[Future[Any]] = []
        self.all_in: threading.Barrier | None = None
        self.gives_up = False

    def handler(self, items: list[Any]) -> list[Any]:
        if self.all_in is not None:
            self.all_in.wait(PATIENCE)
        return items

    def submit(self, count: int = 1) -> None:
        for _ in range(count):
            try:
                self.futures.append(self.batch.submit(len(self.futures)))
            except Stopped:
                pass

    def give_up(self) -> None:
        self.gives_up = True
        self.batch.stop(timeout=0)
        self.batch.start()

    def stop_and_start(self) -> None:
        self.batch.stop()
        self.batch.start()

    def other_workers(self) -> None:
        self.batch.reconfigure(workers=1)
        self.batch.reconfigure(workers=3)

    def elsewhere(self, act: Callable[[], object]) -> None:
        """Let another thread do something; go on if that waits for this one."""
        self.others.append(in_thread(act))
        try:
            self.others[-1].result(MOMENT)
        except NotYet:
            pass

    def live(self) -> None:
        """What happens meanwhile: some items, an idle worker, an end."""
        self.submit(3)
        self.wait()
        self.submit()
        self.wait()
        self.batch.stop()

    def wait(self) -> None:
        for future in list(self.futures):
            assert future.exception(PATIENCE) is None or isinstance(future.exception(), Stopped)

    def judge(self) -> None:
        """All that was accepted resolves, every call returns, as many workers come as may, and all go."""
        batch = self.batch
        self.wait()
        for other in self.others:
            other.result(PATIENCE)
        batch.start()
        if not self.gives_up:  # one that was given up on may still take an item along
            self.all_in = threading.Barrier(batch.workers)
        again = [batch.submit(n) for n in range(batch.workers)]
        self.futures += again
        self.wait()
        assert self.gives_up or not any(future.exception() for future in again)
        assert in_thread(batch.stop).result(PATIENCE) is True
        assert batch._seat is ubatch._seats.NOBODY
        assert not batch._crew
        assert not batch._idle
        assert not batch._threads
        eventually(lambda: not batch._leaving)
        stats = batch.stats
        assert stats.items + stats.dropped == len(self.futures)
        assert stats.queued == stats.running == 0


def is_worker(thread: threading.Thread) -> bool:
    return thread.name == "ubatch-steps"


def is_caller(thread: threading.Thread) -> bool:
    return thread is threading.main_thread()


@pytest.fixture(autouse=True)
def _nothing_else_comes_between() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(FOREVER)
    gc.disable()
    yield
    gc.enable()
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("what", ["submit", "give_up", "stop_and_start", "other_workers"])
@pytest.mark.parametrize("who", ["another thread, a worker", "another thread, a caller", "a signal handler, a caller"])
def test_at_each_step(monkeypatch, who, what):
    """Who comes between the steps of whom, and what he does there."""
    monkeypatch.setattr(ubatch._turns, "IDLE_EXIT", FOREVER)  # nobody goes unasked, and nobody looks by chance
    reached = True
    for step in itertools.count():
        world = World()
        act: Callable[[], object] = getattr(world, what)
        if who.startswith("another thread"):
            act = lambda world=world, act=act: world.elsewhere(act)  # noqa: E731
        between = Between(step, is_worker if who.endswith("a worker") else is_caller, act)
        with between:
            if who.endswith("a worker"):
                world.others.append(in_thread(world.live))
                world.others[0].result(PATIENCE)
            else:
                world.live()
        try:
            world.judge()
        except BaseException as error:
            raise AssertionError(f"step {step}: {between.where}") from error
        if not between.where and not reached:
            break
        reached = bool(between.where)
    assert step > 30
