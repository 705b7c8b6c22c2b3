"""A flow of two steps in child processes, of which one is killed at a random moment, again and again.

Threads and tasks of event loops call the flow with arrays, small ones that travel in messages and larger ones that
travel through shared memory, each filled with a number of its own; what comes back is the least and the greatest value
that the last step found in it. What must hold: every item resolves, once, with its own result or with `WorkerDied`,
which says how. When the flow has stopped, no child is alive, nothing new is in `/dev/shm`, there are no more
descriptors and threads than before, and blocks of shared memory that are kept to be used again are referred to by
nobody.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from ubatch import Flow, Step, WorkerDied
from ubatch._shm import pool

from .course import PATIENCE, drift
from .ledger import count

SIZES = (8, 1000, 50_000)
"""Of the arrays, in elements of four bytes."""

WARM_UP = 200
"""Items before anything is counted: what is opened once, and kept, is open then."""

KILLED = "killed by SIGKILL"
"""What is said of each child that dies here."""

NONE = "could not start"
"""What is said where there is no child at the moment."""

PAUSE = 0.01
"""Seconds that a caller waits then."""

SHARED = Path("/dev/shm")

BLOCK = "memfd:ubatch"
"""What descriptors of blocks refer to."""

Range = tuple[int, int]


def doubled(arrays: list[Any]) -> list[Any]:
    """The first step: every other array goes on as it is, the rest in new memory."""
    return [array if array[0] % 2 else array * 2 for array in arrays]


def ranges(arrays: list[Any]) -> list[Range]:
    """The second step."""
    return [(int(array.min()), int(array.max())) for array in arrays]


def how(error: WorkerDied) -> str:
    """How it is said that a child died, without the name of its step and what comes next."""
    return f"WorkerDied: {str(error).partition('died: ')[2].partition(';')[0]}"


def wanted(item: int) -> Range:
    """The right result of an item."""
    value = item if item % 2 else 2 * item
    return value, value


class Kills:
    """The flow, who calls it, and who kills its children.

    Args:
        seed: of everything that is left to chance.
        kills: how many children are killed.
    """

    def __init__(self, seed: int, kills: int) -> None:
        self.seeds = random.Random(seed)
        self.kills = kills
        self.killed: dict[int, str] = {}  # steps, by process
        self.seen: set[int] = set()  # all processes that there have been, as far as they were seen
        self.numbers = itertools.count(1)
        self.outcomes: Counter[str] = Counter()  # guarded by lock
        self.lock = threading.Lock()
        self.resolutions = itertools.count()
        self.violations: list[str] = []
        self.ending = threading.Event()
        self.actors: list[Callable[[random.Random], None]] = [*[self.calls] * 4, *[self.futures] * 2, self.maps]
        self.actors += [self.tasks] * 2
        self.flow: Any = None

    def run(self, seconds: float, interval: float, items: float) -> dict[str, Any]:
        """Run until all kills are done and so many items have their results, or the time is up."""
        self.start()
        self.flow.map([self.array(item, random.Random(0)) for item in range(1, WARM_UP)])
        self.stop()
        before, begin = belongings(), time.monotonic()
        self.start()
        throughput: list[int] = []
        threads = [
            threading.Thread(target=self.act, args=(actor, random.Random(self.seeds.random())), daemon=True)
            for actor in self.actors
        ]
        for thread in threads:
            thread.start()
        self.kill(begin + seconds, items, interval, throughput)
        self.children()
        self.ending.set()
        late = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(late - time.monotonic(), 0))
        if any(thread.is_alive() for thread in threads):
            self.violations.append("callers hang")
        self.stop()
        self.judge(before)
        return {
            "seconds": round(time.monotonic() - begin, 1),
            "interval": interval,
            "items_per_second": throughput,
            "drift": drift(throughput),
            "items": count(self.numbers) - 1,
            "resolved": count(self.resolutions),
            "outcomes": dict(self.outcomes),
            "kills": len(self.killed),
            "killed_by_step": dict(Counter(self.killed.values())),
            "batches_that_died": {step.name: step.processes.died for step in self.flow.stats.steps},
            "children": len(self.seen),
            "violations": self.violations,
        }

    def start(self) -> None:
        """A new flow. Batches of the first step fail with their child, those of the second are tried once more."""
        first = Step(doubled, processes=2, max_size=16, name="doubled")
        second = Step(ranges, processes=1, max_size=16, name="ranges", retries=1)
        self.flow = Flow(first, second, name="soak").start(timeout=PATIENCE)

    def stop(self) -> None:
        """Stop the flow, which waits for all items."""
        if not self.flow.stop(timeout=PATIENCE):
            self.violations.append("the flow did not stop in time")

    def judge(self, before: dict[str, set[Any]]) -> None:
        """What is left when all has ended."""
        attempts, resolved = count(self.numbers) - 1, count(self.resolutions)
        if attempts != resolved:
            self.violations.append(f"{attempts} items, of which {resolved} resolved")
        late = time.monotonic() + PATIENCE
        while (more := beyond(before)) and time.monotonic() < late:
            time.sleep(0.05)
        self.violations += [f"{name}: {many} more than before" for name, many in more.items()]
        left = [pid for pid in self.seen if Path(f"/proc/{pid}").exists()]
        if left:
            self.violations.append(f"children that were not reaped: {left}")

    # -- kills ---------------------------------------------------------------------------------------------

    def kill(self, until: float, items: float, interval: float, throughput: list[int]) -> None:
        """Kill a child now and then, spread over the results; note how many items were resolved meanwhile."""
        chance = random.Random(self.seeds.random())
        due = sorted(chance.random() * items for _ in range(self.kills))
        done, at = count(self.resolutions), time.monotonic()
        while (due or self.outcomes["result"] < items) and not self.violations:
            time.sleep(chance.random() * 0.01)
            now = time.monotonic()
            if due and self.outcomes["result"] > due[0] and self.kill_one(chance):
                due.pop(0)
            if now - at >= interval:
                before, done = done, count(self.resolutions)
                throughput.append(round((done - before) / (now - at)))
                at = now
            if now > until:
                self.violations.append(f"not done in time: {len(due)} kills to go")

    def kill_one(self, chance: random.Random) -> bool:
        """Kill a child that has not been killed yet, whatever it is doing; whether there was one."""
        living = {child.pid: name for name, child in self.children() if child.alive and child.pid not in self.killed}
        if not living:
            return False
        pid = chance.choice(sorted(living))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed[pid] = living[pid]
        return True

    def children(self) -> list[tuple[str, Any]]:
        """The children that there are now, with the names of their steps."""
        found = [(step.name, child) for step in self.flow.stats.steps for child in step.processes.children]
        self.seen |= {child.pid for _, child in found}
        return found

    # -- callers: each runs in a thread of its own, again and again ------------------------------------------

    def act(self, actor: Callable[[random.Random], None], chance: random.Random) -> None:
        """Do one thing again and again."""
        while not self.ending.is_set():
            try:
                actor(chance)
            except BaseException:
                self.violations.append(f"{actor.__name__}: {traceback.format_exc()}")
                return

    def array(self, item: int, chance: random.Random) -> Any:
        """What travels."""
        import numpy as np

        return np.full(chance.choice(SIZES), item, np.int32)

    def resolved(self, item: int, outcome: Any) -> None:
        """An item's caller got a result or an exception."""
        next(self.resolutions)
        right = outcome == wanted(item)
        died = isinstance(outcome, WorkerDied)
        with self.lock:
            self.outcomes["result" if right else how(outcome) if died else type(outcome).__name__] += 1
        if not right and not (died and KILLED in str(outcome)):
            why = "".join(traceback.format_exception(outcome)) if isinstance(outcome, Exception) else ""
            self.violations.append(f"item {item} got {outcome!r}\n{why}".strip())

    def calls(self, chance: random.Random) -> None:
        """A thread that calls and waits."""
        item = next(self.numbers)
        try:
            outcome: Any = self.flow.ubatch(self.array(item, chance))
        except Exception as error:
            outcome = error
        self.resolved(item, outcome)
        self.pause(outcome)

    def futures(self, chance: random.Random) -> None:
        """A thread that submits, and waits."""
        pending: list[Future[Range]] = []
        for _ in range(chance.randrange(1, 40)):
            item = next(self.numbers)
            pending.append(self.flow.submit(self.array(item, chance)))
            pending[-1].add_done_callback(
                lambda future, item=item: self.resolved(item, future.exception() or future.result())
            )
        for future in pending:
            self.pause(future.exception(PATIENCE))

    def maps(self, chance: random.Random) -> None:
        """A thread that maps; if an item fails, it is not told what became of the others."""
        items = [next(self.numbers) for _ in range(chance.randrange(1, 40))]
        try:
            outcomes: list[Any] = self.flow.map([self.array(item, chance) for item in items])
        except WorkerDied as error:
            outcomes = [error] * len(items)
        for item, outcome in zip(items, outcomes, strict=True):
            self.resolved(item, outcome)
        self.pause(outcomes[0])

    def pause(self, outcome: Any) -> None:
        """Wait a moment if there was no child: until there is one, there is nothing to do."""
        if NONE in str(outcome):
            time.sleep(PAUSE)

    def tasks(self, chance: random.Random) -> None:
        """A thread with an event loop and many tasks on it."""

        async def task() -> None:
            for _ in range(10):
                item = next(self.numbers)
                try:
                    outcome: Any = await self.flow.aubatch(self.array(item, chance))
                except Exception as error:
                    outcome = error
                self.resolved(item, outcome)
                if NONE in str(outcome):
                    await asyncio.sleep(PAUSE)

        async def main() -> None:
            await asyncio.wait_for(asyncio.gather(*(task() for _ in range(16))), PATIENCE)

        asyncio.run(main())


def belongings() -> dict[str, set[Any]]:
    """What this process has: child processes, shared memory, descriptors, threads."""
    gc.collect()
    return {
        "children": processes(),
        "files in /dev/shm": {path.name for path in SHARED.iterdir()},
        "blocks in use": {number for number, block in [*pool.blocks.items()] if block.referred or block.held},
        "descriptors": {path.name for path in Path("/proc/self/fd").iterdir() if BLOCK not in target(path)},
        "threads": set(threading.enumerate()),
    }


def beyond(before: dict[str, set[Any]]) -> dict[str, int]:
    """How many of each there are now that are more than there were."""
    now = belongings()
    more = {name: len(now[name]) - len(before[name]) for name in now}
    more["files in /dev/shm"] = len(now["files in /dev/shm"] - before["files in /dev/shm"])  # others may remove theirs
    return {name: many for name, many in more.items() if many > 0}


def target(path: Path) -> str:
    """What a descriptor refers to."""
    try:
        return os.readlink(path)
    except FileNotFoundError:  # that of the listing itself
        return ""


def processes() -> set[int]:
    """The processes that this one has started, but for the one in which `multiprocessing` cleans up."""
    found: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found |= set(map(int, path.read_text().split()))
        except OSError:  # the thread has ended
            pass
    return found - {resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
