"""aqueduct: tasks with a field in shared memory, a process for each step; one event loop calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aqueduct import BaseTask, BaseTaskHandler, Flow, FlowStep, log
from case import Case
from payloads import chain
from pipeline import STARTING, Pipeline
from systems import DEPTH, PATIENCE


class Task(BaseTask):  # type: ignore
    """An array on its way, and in the end the answer."""

    def __init__(self, array: Any) -> None:
        super().__init__()
        self.array = array
        self.answer: Any = None


class Passes(BaseTaskHandler):  # type: ignore
    """All steps but the last: the array stays in the task."""

    def __init__(self, handler: Callable[[list[Any]], list[Any]]) -> None:
        self.handler = handler

    def handle(self, *tasks: Task) -> None:
        """Call the handler; what it returns is what is there already."""
        self.handler([task.array for task in tasks])


class Answers(Passes):
    """The last step.

    Args:
        handler: of a batch of arrays.
        let_go: whether tasks go back without their array, which the caller then need not attach again.
    """

    def __init__(self, handler: Callable[[list[Any]], list[Any]], let_go: bool) -> None:
        super().__init__(handler)
        self.let_go = let_go

    def handle(self, *tasks: Task) -> None:
        """Answer each task."""
        for task, answer in zip(tasks, self.handler([task.array for task in tasks]), strict=True):
            task.answer = answer
            if self.let_go:
                task.array = None


class Aqueduct(Pipeline):
    """See the module. To be made where its event loop runs.

    The settings are those of `FlowStep`, and two of this adapter: `shared`, whether arrays go through shared memory,
    and `let_go`, see `Answers`.
    """

    def __init__(self, case: Case) -> None:
        log.setLevel("ERROR")
        settings = dict(case.settings)
        self.shared, let_go = settings.pop("shared", True), settings.pop("let_go", False)
        *before, last = chain(case.handler, case.steps)
        handlers = [*map(Passes, before), Answers(last, let_go)]
        steps = [FlowStep(handler, **settings) for handler in handlers]
        self.flow: Any = Flow(*steps, metrics_enabled=False, queue_size=DEPTH)
        self.flow.start(timeout=STARTING)

    async def acall(self, array: Any) -> Any:
        """As of `Pipeline`."""
        task = Task(array)
        if self.shared:
            task.share_value("array")
        await self.flow.process(task, timeout_sec=PATIENCE)
        return task.answer
