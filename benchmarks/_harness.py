"""Interleaved rounds of contenders that live in processes of their own; progress, statistics, the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _case import Case, Sample

CHILD = Path(__file__).with_name("_child.py")

HANGING = 180.0
"""Seconds after which a round has failed."""

ROUNDS_OF_A_CHILD = 5


class Child:
    """One contender of one case, in a process that sleeps between its rounds.

    Args:
        case: what it measures.
        folder: where it finds the package `ubatch`; by default where this process would.
    """

    def __init__(self, case: Case, folder: str | None = None) -> None:
        environment = dict(os.environ)
        if folder is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        self.case = case
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._send(json.dumps(asdict(case)))

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def round(self, seconds: float) -> Sample:
        """Measure one round.

        Raises:
            RuntimeError: the process died, or did not answer in time.
        """
        assert self.process.stdout is not None
        watchdog = threading.Timer(HANGING, self.process.kill)
        watchdog.start()
        try:
            self._send(repr(seconds))
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            raise RuntimeError(f"no answer from {self.case}: exit status {self.process.wait()}")
        sample: Sample = json.loads(line)
        return sample

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def interleaved(
    cases: Mapping[str, tuple[Case, str | None]],
    rounds: int,
    seconds: float,
    *,
    afresh: bool = False,
    after_each: Callable[[], None] = lambda: None,
) -> dict[str, list[Sample]]:
    """Measure A B C A B C …

    Each contender's process is replaced after some rounds, as the luck of memory layout and hashing is worth a
    few per cent; its first round, a short one, is a warm-up and thrown away.

    Args:
        cases: by contender, what to measure and where that contender's package is.
        rounds: how many of each are kept.
        seconds: how long each takes.
        afresh: whether each round has a new process, without a warm-up.
        after_each: called after each round that is kept.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    children: dict[str, Child] = {}
    try:
        for number in range(rounds):
            if not afresh and number % ROUNDS_OF_A_CHILD == 0:
                for name, (case, folder) in cases.items():
                    if name in children:
                        children.pop(name).close()
                    children[name] = Child(case, folder)
                    children[name].round(seconds / 2)
            for name, (case, folder) in cases.items():
                if afresh:
                    children[name] = Child(case, folder)
                samples[name].append(children[name].round(seconds))
                if afresh:
                    children.pop(name).close()
                after_each()
    finally:
        for child in children.values():
            child.close()
    return samples


class Progress:
    """A line on stderr: what runs, how far all is, and how long the rest will take.

    Args:
        planned: seconds that all of it is thought to take.
    """

    def __init__(self, planned: float) -> None:
        self.planned = planned
        self.done = 0.0
        self.start = time.monotonic()
        self.written = float("-inf")
        self.begin, self.end, self.every = ("\r", "\x1b[K", 0.2) if sys.stderr.isatty() else ("", "\n", 15.0)
        self.say("", force=True)

    def advance(self, title: str, seconds: float) -> None:
        """Something that was thought to take `seconds` is done."""
        self.done += seconds
        self.say(title)

    def say(self, title: str, force: bool = False) -> None:
        """Write the line, if that is not too often."""
        now = time.monotonic()
        if now - self.written < self.every and not force:
            return
        self.written = now
        share = min(self.done / self.planned, 1.0)
        took = now - self.start
        left = round(took * (1 - share) / share if share > 0.02 else self.planned - took)
        clock = f"{left // 60} min {left % 60:02} s left"
        print(f"{self.begin}{share:4.0%}  {clock}  {title}", end=self.end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """All is done."""
        print(f"{self.begin}measured in {time.monotonic() - self.start:.0f} s{self.end.rstrip()}", file=sys.stderr)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load at the start": os.getloadavg()[0],
    }
