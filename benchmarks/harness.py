"""Interleaved rounds of contenders that live in processes of their own; the progress display; the machine."""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from .child.case import Case, Sample

CHILD = Path(__file__).with_name("child")

PATIENCE = 30.0
"""Seconds beyond ten times a round's length after which the round has failed."""

ROUNDS_OF_A_CHILD = 5

FAILURES = 3
"""How often a contender may fail at a case before it is not tried again."""


class Failed(RuntimeError):
    """A contender's process died or did not answer; says the last line that it wrote to stderr."""


class Child:
    """One contender of one case, in a process that stands still between its rounds.

    The process leads a group of its own, which is stopped between rounds, as some contenders poll, and killed in
    the end with all that the contender has started.

    Args:
        case: what it measures.
        directory: where it finds the contender's package; `None` if it needs none.
        patience: see `PATIENCE`.
    """

    def __init__(self, case: Case, directory: str | None = None, patience: float = PATIENCE) -> None:
        environment = dict(os.environ)
        if directory is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (directory, os.environ.get("PYTHONPATH"))))
            environment["BENCHMARKED"] = directory
        self.case = case
        self.patience = patience
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self._send(json.dumps(asdict(case)))

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:  # the answer will say so
            pass

    def round(self, seconds: float) -> Sample:
        """Measure one round.

        Raises:
            Failed: the process died, or did not answer in time.
        """
        self._signal(signal.SIGCONT)
        self._send(repr(seconds))
        sample: Sample = json.loads(self._answer(self.patience + 10 * seconds))
        self._signal(signal.SIGSTOP)
        return sample

    def _answer(self, patience: float) -> bytes:
        assert self.process.stdout is not None
        line = b""
        until = time.monotonic() + patience
        while not line.endswith(b"\n"):
            # Not just until the pipe's end: the contender's own processes may hold it after the death of ours.
            ended = self.process.poll() is not None
            ready = select.select([self.process.stdout], [], [], 0 if ended else 0.5)[0]
            part = os.read(self.process.stdout.fileno(), 1 << 16) if ready else None
            line += part or b""
            if part == b"" or (part is None and ended):
                raise Failed(self._why(f"ended with status {self._status()}"))
            if time.monotonic() > until:
                raise Failed(self._why(f"did not answer within {patience:.0f} s"))
        return line

    def _status(self) -> int | None:
        try:
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            return None

    def _why(self, what: str) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return f"{what}: {lines[-1].strip()}" if lines else what

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Kill the process and all that it has started."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.said):
            assert file is not None
            file.close()


@dataclass
class Outcome:
    """What came of one contender at one case: its samples, one a round; its last error, if there was one."""

    samples: list[Sample] = field(default_factory=list)
    error: str | None = None
    failures: int = 0


def interleaved(
    cases: Mapping[str, tuple[Case, str | None]],
    rounds: int,
    seconds: float,
    *,
    afresh: bool = False,
    patience: float = PATIENCE,
    after_each: Callable[[str], None] = lambda name: None,
) -> dict[str, Outcome]:
    """Measure A B C A B C …

    Each contender's process is replaced after some rounds, as the luck of memory layout and hashing is worth a few
    per cent; its first round, a short one, is a warm-up and thrown away. Who fails is tried again in a later round,
    but not for ever.

    Args:
        cases: by contender, what to measure and the contender's directory.
        rounds: how many of each are kept.
        seconds: how long each takes.
        afresh: whether each round has a new process, without a warm-up.
        patience: see `Child`.
        after_each: called with the contender's name after each of its rounds, taken or not.
    """
    outcomes = {name: Outcome() for name in cases}
    children: dict[str, Child] = {}
    try:
        for number in range(rounds):
            if number % ROUNDS_OF_A_CHILD == 0:
                while children:
                    children.popitem()[1].close()
            for name, (case, directory) in cases.items():
                outcome = outcomes[name]
                if outcome.failures < FAILURES:
                    try:
                        if name not in children:
                            children[name] = Child(replace(case, seed=number), directory, patience)
                            if not afresh:
                                children[name].round(seconds / 2)
                        outcome.samples.append(children[name].round(seconds))
                        failed = False
                    except Failed as error:
                        outcome.error, failed = str(error), True
                        outcome.failures += 1
                    if afresh or failed:
                        children.pop(name).close()
                after_each(name)
    finally:
        for child in children.values():
            child.close()
    return outcomes


class Progress:
    """What runs, how far all is, and how long the rest will take: a bar on a terminal, else a line now and then.

    Args:
        planned: seconds that all of it is thought to take.
    """

    EVERY = 15.0

    def __init__(self, planned: float) -> None:
        self.planned = max(planned, 1e-9)
        self.done = 0.0
        self.start = self.written = time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.description}"),
            )
            self.bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self.task = self.bar.add_task("", total=self.planned, left=self._left())

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
        else:
            print(f"about {_clock(self.planned)} to go", file=sys.stderr, flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        print(f"measured in {_clock(time.monotonic() - self.start)}", file=sys.stderr)

    def _left(self) -> str:
        took, share = time.monotonic() - self.start, min(self.done / self.planned, 1.0)
        left = took * (1 - share) / share if share > 0.02 else self.planned - took
        return f"{_clock(max(left, 0))} left"

    def advance(self, title: str, seconds: float) -> None:
        """Something that was thought to take `seconds` is done; `title` is what runs."""
        self.done = min(self.done + seconds, self.planned)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=title, left=self._left())
        elif time.monotonic() - self.written > self.EVERY:
            self.written = time.monotonic()
            print(f"{self.done / self.planned:4.0%}  {self._left()}  {title}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"


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
