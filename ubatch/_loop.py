"""The event-loop driver: what a batcher has on one event loop. No thread, no lock.

Purpose: `Home` is to an event loop what `Driver` is to threads. Callers `put` tickets (`_loop_intake`); a *shift*, a
task that serves one batch, looks at the queue, cuts, has the handler called and delivers the outcomes.

Guarantees:
- Every accepted ticket is resolved once, unless its loop ends before: then nobody is left who could wait for it.
- At most `workers` batches run at once. A batch is cut when a shift is free to run it, never before.
- Each batch runs in a task and in a context of its own, an empty one: not in that of whoever came first.
- A shift that is cancelled from outside, as all tasks are when a loop ends, loses nothing: one that has no batch
  yet is replaced a little later, if the loop goes on; one that has makes its callers' error of it.
- All outcomes of a batch are set in one step; callers come back before the next shift looks at the queue.
- What interrupts an observer, a tracer or a log handler, as a signal handler's `SystemExit` does, is raised by the loop
  itself a moment later: no batch is the worse for it.
- Nothing is pending while nothing runs: a hold is a timer, not a task.

How no item is forgotten. `wake_at` is the queue length from which on `put` sees to it that somebody looks. It is
`NEVER` while a shift is about to look, and while all workers are busy: then the end of a batch brings the next shift.
A shift that looks and does not cut says by `wake_at`, and by a timer, when it wants to be followed.

Assumptions: everything here runs in the thread of the loop, and between two awaits nothing else does.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from functools import partial

from ._attempt import Attempt, Raised, description
from ._ceiling import Ceiling
from ._isolation import Isolating
from ._lanes import Lanes, too_late
from ._log import ERROR, say
from ._loop_intake import Intake, deliver
from ._native import monotonic
from ._options import policy_for
from ._schedule import Fifo, claim_all
from .core import UBatch
from .errors import Stopped, WorkerDied
from .stats import Counters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._loop_intake import Job
    from ._schedule import Hold

NEVER = sys.maxsize
"""`wake_at` while nobody needs to be told of new items."""

MOMENT = 0.01
"""Seconds after which a shift follows one that was cancelled: a loop that is ending has ended by then."""

_inherited: list[Shift] = []  # in a forked child: those of its parent

serving: contextvars.ContextVar[Shift | None] = contextvars.ContextVar("ubatch_serving", default=None)
"""The shift whose handler runs; also in tasks and threads that the handler starts, as they inherit its context."""


class Shift:
    """A task that serves one batch. `post` is its number among those that run: says which handler is its own."""

    __slots__ = ("batch", "home", "post", "task")

    def __init__(self, home: Home) -> None:
        self.home = home
        self.post = 0
        self.batch: list[Any] = []  # tickets taken from the queue and not delivered yet
        self.task: asyncio.Task[None] | None = None


class Thread(UBatch["Any", "Any"]):
    """What runs a handler that is a plain function."""

    _is_hidden = True


class Home(Intake):
    """A batcher's queue, batches in flight and policy on one event loop."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.loop = loop
        self.counters = Counters()
        self.schedule: Fifo | Lanes = Fifo()
        self.policy = policy_for(job.timeout, job.workers)
        self.ceilings: list[Ceiling] = []  # one for each handler, where batches that fail are split
        if job.special:
            self.specialise()
        self.wake_at = 1
        self.looking: Shift | None = None  # the one that is about to look at the queue
        self.busy: set[Shift] = set()  # those that run a batch
        self._timer: asyncio.TimerHandle | None = None
        self._held = 0  # items queued when the timer was set
        self._time_is_up = False
        self._farewells: list[asyncio.Future[bool]] = []
        self._threads: list[Thread] = []  # of handlers that are plain functions; those that are free
        self._warned = False

    # -- looking ------------------------------------------------------------------------------------------

    def attend(self) -> None:
        """See to it that a shift looks at the queue, if one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.looking is None and len(self.busy) < self.job.workers:
            self._hire()
        else:
            self.wake_at = NEVER

    def resume(self) -> None:
        """The batcher was started: who waits for it to be done need not any more."""
        self._release(done=False)
        if self.schedule:
            self.attend()

    def reconsider(self) -> None:
        """The policy, or what it goes by, has changed: look again."""
        if self.schedule:
            if self.job.started:
                self.attend()
        elif self.looking is None and self._timer is None and len(self.busy) < self.job.workers:
            self.wake_at = 1

    def renew_policy(self) -> None:
        """The timeout, or the number of workers, is another now; what was learned is not of use for it."""
        self.policy = policy_for(self.job.timeout, self.job.workers)
        if self.schedule.special:
            self.policy.observe()

    # -- working ------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        shift = Shift(self)
        work = self._serve(shift)
        try:
            # the class itself: a task factory may run tasks at once, before others have put what they have
            shift.task = contextvars.Context().run(partial(asyncio.Task, work, loop=self.loop))
            shift.task.add_done_callback(partial(self._ended, shift))
        except BaseException:
            work.close()
            self.wake_at = 1
            raise
        self.looking = shift
        self.wake_at = NEVER

    async def _serve(self, shift: Shift) -> None:
        """Cut a batch, unless the policy says to wait; have the handler called; deliver."""
        job, policy, counters = self.job, self.policy, self.counters
        shift.post = self._vacancy() if job.workers > 1 else 0
        if not self._cuts(shift):
            return
        batch, schedule, most = shift.batch, self.schedule, self._most(shift)
        if isinstance(schedule, Lanes):
            schedule.take(most, batch, monotonic(), policy.cost)
            counters.cancelled += claim_all(batch)
            self._settle(schedule)
        else:
            counters.cancelled += schedule.take(most, batch)
        self.looking = None
        if not batch:
            self._follow()
            return
        self.busy.add(shift)
        counters.items += len(batch)
        reason = "drained" if job.closed else "full" if len(batch) >= most else policy.reason
        counters.cuts[reason] += 1
        watched, recorder = policy.watch(), job.recorder
        began = monotonic()
        if watched:
            arrived = [ticket.arrived for ticket in batch]
            if schedule.special:
                arrived.sort()
            policy.cut(began, arrived, len(schedule), most)
        if schedule.queue or schedule.sorted:
            self.attend()
        elif len(self.busy) < job.workers:
            self.wake_at = 1
        serving.set(shift)
        attempt = Isolating(self._ceiling(shift)) if job.isolate else Attempt()
        cancelled = False
        binder = job.binder
        assert job.handlers and binder is not None, "a shift without a handler"
        handler = job.handlers[shift.post % len(job.handlers)]
        call = handler if job.is_coroutine else partial(self._in_thread, handler)
        begun = recorder.begin(job.name, batch) if recorder.tracers else None
        args = kwargs = raised = None
        for args, kwargs in attempt.calls(batch, binder):
            try:
                attempt.output = await call(*args, **kwargs)
            except BaseException as error:
                if isinstance(error, GeneratorExit) and not self.loop.is_running():
                    raise  # the loop is gone, and everybody with it
                cancelled = isinstance(error, asyncio.CancelledError)
                error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)  # without this frame
                attempt.output = Raised(error)
            if type(attempt.output) is Raised:
                raised = attempt.output.error
            if not shift.batch:  # stop() gave up on it meanwhile
                if begun is not None:
                    begun.leave()
                    begun.end(None)
                del batch, attempt, raised
                return
        done = monotonic()
        took = done - began
        if begun is not None:
            begun.leave()
        sound = raised is None and args is not None  # else no call fitted the handler
        args = kwargs = attempt.output = None
        if attempt.errors:
            counters.failed_as(attempt.outcomes)
        late = too_late(batch, attempt.outcomes, done) if schedule.special else ()
        counters.failed("DeadlineExceeded", len(late))
        if watched:
            policy.finished(done, len(batch), took, len(schedule), sound)
        if recorder.attentive or attempt.errors or late or begun is not None:
            after = recorder.tell(job.name, batch, began, took, most, reason, attempt, raised, late, begun)
        else:
            after = recorder.note(batch, began, took, most)
        shift.batch = []
        deliver(batch, attempt.outcomes)
        self.busy.discard(shift)
        if cancelled:  # the loop may be ending: then nobody looks at futures, and nothing new is begun
            for ticket in batch:
                _seen(ticket.future)
            self._follow_later()
        else:
            self._follow()
        del batch, attempt, raised, late, begun  # an exception's traceback refers to this frame: not to others' items
        if after is not None:
            after()
            recorder.catch_up()

    async def _in_thread(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a plain function in one of as many threads as there are workers."""
        shift = serving.get()
        context = contextvars.copy_context()  # so that the handler's thread knows whom it serves
        thread = self._threads.pop() if self._threads else Thread(1, 0.0, handler=_call_each, name=self.job.name)
        try:
            result = await thread.aubatch(lambda: context.run(_guarded, handler, args, kwargs))
        except BaseException:  # cancelled; the handler may run on
            if shift is not None and shift.batch:
                self._threads.insert(0, thread)  # the last to be taken
            else:  # stop() gave up on it
                thread.stop(drain=False, timeout=0.0)
            raise
        self._threads.append(thread)
        return result[0]

    def _vacancy(self) -> int:
        """The first post that nobody has."""
        taken = {shift.post for shift in self.busy}
        return next(post for post in range(len(taken) + 1) if post not in taken)

    def _most(self, shift: Shift) -> int:
        """The largest batch that a shift is to take now, in items."""
        return self._ceiling(shift).limit(self.job.max_size) if self.job.isolate else self.job.max_size

    def _ceiling(self, shift: Shift) -> Ceiling:
        own = shift.post % len(self.job.handlers)
        while len(self.ceilings) <= own:
            self.ceilings.append(Ceiling())
        return self.ceilings[own]

    def _cuts(self, shift: Shift) -> bool:
        """Whether a batch leaves now; else somebody will look again when it is time."""
        job, policy, schedule, most = self.job, self.policy, self.schedule, self._most(shift)
        time_is_up, self._time_is_up = self._time_is_up, False
        gone = not policy.passive and self._purge(most)  # else `take` passes over them
        hold: Hold | None = None
        now = monotonic()
        if not schedule.queue and not schedule.sorted:
            if not policy.passive and not job.closed and not time_is_up:
                hold = policy.expect(now, most)
            if hold is None:
                self.looking = None
                self.wake_at = 1
                self._say_farewell()
                return False
        elif not policy.passive and not job.closed and not (time_is_up and len(schedule) <= self._held and not gone):
            hold = schedule.hold(policy, now, most)
        if hold is None:
            return True
        self.looking = None
        self.wake_at = hold.wake_at
        self._held = len(schedule)
        self._timer = self.loop.call_later(max(hold.until - now, 0.0), self._ring)
        return False

    def _purge(self, most: int) -> bool:
        """Throw away queued items that do not count any more; whether there were any."""
        schedule, queued = self.schedule, len(self.schedule)
        if isinstance(schedule, Lanes):
            schedule.purge(most, monotonic())
            self._settle(schedule)
        else:
            self.counters.cancelled += schedule.purge(most)
        return len(schedule) != queued

    def _ring(self) -> None:
        self._time_is_up = True
        self.attend()

    def _follow(self) -> None:
        """After a batch: somebody looks at the queue once its callers have had the time to come back."""
        if self.looking is None:
            self.attend()

    def _follow_later(self) -> None:
        """Somebody looks at the queue in a moment, if the loop goes on until then, or with the next item."""
        schedule = self.schedule
        if self.looking is not None:
            return
        if all(ticket.left for ticket in schedule.next(NEVER)):
            self._give_up_queue()
            self.wake_at = 1
            self._say_farewell()
        else:
            self.wake_at = len(schedule.queue) + 1
            self._timer = self._timer or self.loop.call_later(MOMENT, self._ring)

    def _ended(self, shift: Shift, task: asyncio.Task[None]) -> None:
        """However it ended: see to it that all it had is delivered, and that somebody follows."""
        shift.task = None
        error = None if task.cancelled() else task.exception()
        if self.looking is shift:  # cancelled before it could look, or it died looking
            self.looking = None
            if error is None:
                self._follow_later()
            else:
                tickets = [*shift.batch]
                self.schedule.empty(tickets)
                shift.batch = []
                self._bury(tickets, error)
        if shift in self.busy:
            self.busy.discard(shift)
            tickets, shift.batch = shift.batch, []
            self._bury(tickets, error)

    def _bury(self, tickets: list[Any], error: BaseException | None) -> None:
        """A shift died of something that is not the handler's: fail what it had, and go on."""
        died = partial(WorkerDied, self.job.name, "cancelled" if error is None else description(error))
        self.counters.failed("WorkerDied", len(tickets))
        deliver(tickets, [_because(error, died()) for _ in tickets])
        self._follow()
        say(ERROR, "a worker of batcher %r died", self.job.name, error=error)  # last, as log handlers are user code

    # -- stopping -----------------------------------------------------------------------------------------

    def close(self, drain: bool) -> None:
        """Items are refused from now on (`job.closed` is set): run what is queued, or give it up."""
        schedule = self.schedule
        if not drain or not self.job.handlers:
            self._give_up_queue()
        elif isinstance(schedule, Lanes):  # who waits for room has not been accepted yet
            lobby: list[Any] = []
            schedule.admission.clear(lobby)
            deliver(lobby, [Stopped(self.job.name) for _ in lobby])
        if schedule or self._timer is not None:
            self._follow()
        else:
            self._say_farewell()

    def quiet(self) -> asyncio.Future[bool]:
        """A future that is true when there is nothing left to do, false if the batcher is started before."""
        future: asyncio.Future[bool] = self.loop.create_future()
        self._farewells.append(future)
        self._say_farewell()
        return future

    def _say_farewell(self) -> None:
        if self.busy or self.looking is not None or (self.schedule and self.job.handlers):
            return
        while self._threads and self.job.closed:
            self._threads.pop().stop(drain=False, timeout=0.0)
        if self.job.closed and self.job.place is not None:
            self.job.place.close(wait=False)  # if another loop's home still needs it, it gets another
        self._release(done=True)

    def _release(self, done: bool) -> None:
        while self._farewells:
            future = self._farewells.pop()
            if not future.done():
                future.set_result(done)

    def abandon(self) -> None:
        """Give up on all that is left: its callers get `Stopped`, the tasks of running handlers are cancelled."""
        self._give_up_queue()
        if self.job.place is not None:
            self.job.place.abandon()
        for shift in list(self.busy):
            batch, shift.batch = shift.batch, []
            self.counters.failed("Stopped", len(batch))
            self.busy.discard(shift)
            deliver(batch, [Stopped(self.job.name) for _ in batch])
            if shift.task is not None:
                shift.task.cancel()
        self._follow()

    def _give_up_queue(self) -> None:
        dropped: list[Any] = []
        self.schedule.empty(dropped)
        self.counters.cancelled += claim_all(dropped)
        if isinstance(self.schedule, Lanes):
            lobby: list[Any] = []
            self.schedule.admission.clear(lobby)
            deliver(lobby, [Stopped(self.job.name) for _ in lobby])
        self.counters.dropped += len(dropped)
        deliver(dropped, [Stopped(self.job.name) for _ in dropped])

    # -- forking ------------------------------------------------------------------------------------------

    def orphan(self) -> None:
        """In a forked child, by its only thread: fail what there is. The batcher has forgotten this home.

        The loop is the parent's. If it runs here on, as who has forked is one of its tasks, its shifts find nothing.
        Else they never end: they are kept, as asyncio tells of tasks that are collected before.
        """
        _inherited.extend(self.busy)
        tickets = [*self.schedule.next(NEVER), *(ticket for shift in self.busy for ticket in shift.batch)]
        self.schedule = Fifo()
        while self.busy:
            self.busy.pop().batch = []
        for ticket in tickets:
            _settle(ticket.future, WorkerDied(self.job.name, "it belongs to the parent of this forked process"))
        for future in self._farewells:
            _settle(future, False)


def _seen(future: asyncio.Future[Any]) -> None:
    """Nothing is logged if nobody asks for its exception."""
    if not future.cancelled():
        future.exception()


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    """As a forked child can: nobody looks at most of them any more."""
    if future.done():
        return
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except RuntimeError:  # a loop that is closed; or in debug mode, of a thread that does not exist here
        pass
    _seen(future)


def _call_each(calls: list[Callable[[], Any]]) -> list[tuple[Any]]:
    """The handler of a thread: results in boxes, as an exception among them would be raised."""
    return [(call(),) for call in calls]


def _guarded(handler: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return handler(*args, **kwargs)
    except BaseException as error:
        return Raised(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))


def _because(cause: BaseException | None, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raise_soon(interrupt: BaseException) -> None:
    """Have the loop itself raise it: whoever is at work goes on as if it had come a moment later."""
    asyncio.get_running_loop().call_soon(_raise, interrupt)


def _raise(interrupt: BaseException) -> None:
    raise interrupt
