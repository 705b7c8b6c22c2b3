"""What a batcher's batches took: recorded by workers, folded into histograms, told to observers.

Purpose: a driver tells its `Recorder` of each batch, in one call between the handler's return and the waking of the
callers, and calls what that returns once they are awake. So the callers wait for no more than a list being made and
appended; histograms, observers and log handlers are not on their time.

Observers, tracers and log handlers are other people's code. In a worker's thread whatever they raise is their failure.
In an event loop's it may be an interrupt that came upon them, as a signal handler's `SystemExit` does: it is passed on,
and all that is to be done for the batch is done nevertheless.

Guarantees:
- Any number of workers may record at once, and any thread may look, at any time, also from a signal handler or a
  `__del__`: what was recorded is counted once. A look may wait for another thread's fold, a worker never does.
- A batch is in all three histograms or in none, and no look sees fewer batches than an earlier one did.
- No item, result or exception is kept. No user code runs while a lock is held.

How. Recording is one `extend` of one of two lists, which is atomic. Folding is done by whoever holds `_folding`: it
copies the lists, works out the new histograms beside the old ones, and then, in one step (see `_turns`), puts them in
their place and takes off what it has copied, while others append behind it. So a look from within a fold, further up on
the same stack, sees what was folded before, and a fold that a signal handler's exception ends has not been.

What it costs is, for the most part, memory that is in no cache any more: a lot is folded long after its first batch was
noted. So the waits of a batch are packed at once, and their numbers given back, to be used again by whoever comes next.
Of what is kept, the garbage collector has nothing to look at.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

from . import _native
from ._attempt import cancels, own
from ._log import catch_up, report, report_once
from ._observing import Batch
from .errors import BadBatchOutputSize, DeadlineExceeded
from .stats import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextvars import Context
    from typing import Any, Protocol

    from ._attempt import Attempt
    from ._observing import Span

    class Ticket(Protocol):
        """What is recorded of an item."""

        arrived: float


FOLD = 4096
"""Times that are recorded before they are folded."""

BESIDE = 2
"""A batch counts as so many times more than it has waits, for what else is recorded of it."""

_folding = _native.reentrant_lock()  # guards the folding of all recorders: it is short, and a fork has one to renew


def _forked() -> None:
    global _folding
    _folding = _native.reentrant_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Recorder:
    """What a batcher's batches took; see the head of the file.

    Args:
        observers: who is told of them.
        pass_on: takes what interrupts a worker that is not in a thread of its own.
    """

    __slots__ = (
        "_batches",
        "_buckets",
        "_folded",
        "_held",
        "_packers",
        "_pass_on",
        "_singles",
        "attentive",
        "capture",
        "observers",
        "tracers",
    )

    attentive: bool
    """Whether there are observers, or tracers."""
    capture: Callable[[], Context] | None
    """Gives the context of who hands an item over, as long as there is a tracer to use it."""

    def __init__(self, observers: Sequence[Any] = (), pass_on: Callable[[BaseException], object] | None = None) -> None:
        from . import _buckets  # now, rather than in a worker

        self._buckets = _buckets
        self._packers = _buckets.packers
        # of each batch, one after another: its waits, packed; its duration; how many it could have had
        self._batches: list[Any] = []
        self._singles: list[Any] = []  # of each batch of one item: its wait, its duration, how many it could have had
        self._held = 0  # times in _batches, about: workers that come between each other may lose some
        self._folded = _Folded()
        self._pass_on = pass_on
        self.heed(observers)

    def heed(self, observers: Sequence[Any]) -> None:
        """These are the observers from now on."""
        self.observers = tuple(observer for observer in observers if callable(observer))
        self.tracers = tuple(observer for observer in observers if not callable(observer))
        self.attentive = bool(observers)
        self.capture = None
        if self.tracers:
            from contextvars import copy_context

            self.capture = copy_context

    # -- by the worker ------------------------------------------------------------------------------------

    def begin(self, name: str, batch: Sequence[Any]) -> Begun:
        """The handler is about to be called: tell the tracers."""
        contexts = [getattr(ticket, "context", None) for ticket in batch]  # some came before the tracer
        for ticket in batch:
            ticket.context = None  # a future lives on
        begun = Begun(name, self)
        for tracer in self.tracers:
            begun.enter(tracer, contexts)
        return begun

    def note(self, batch: Sequence[Ticket], began: float, took: float, most: int) -> Callable[[], None] | None:
        """The handler has returned, nobody has been woken yet; nothing failed, and nobody is `attentive`.

        Args:
            batch: the items.
            began: monotonic time, in seconds, before the handler's calls.
            took: seconds that they took.
            most: how many items there could have been.

        Returns:
            What is to be called once the callers are awake, if anything.
        """
        count = len(batch)
        if count == 1:
            singles = self._singles
            singles.extend((began - batch[0].arrived, took, most))
            return None if len(singles) < FOLD else self.fold
        waits: list[float] = []
        for ticket in batch:  # before Python 3.12 a comprehension is a function to be made: 0.1 µs more
            waits.append(began - ticket.arrived)
        self._batches.extend((self._packers[count](*waits), took, most))
        self._held = held = self._held + count + BESIDE
        return None if held < FOLD else self.fold

    def tell(
        self,
        name: str,
        batch: Sequence[Ticket],
        began: float,
        took: float,
        most: int,
        reason: str,
        attempt: Attempt,
        raised: BaseException | None,
        late: Sequence[Any],
        begun: Begun | None,
    ) -> Callable[[], None] | None:
        """As `note`, of a batch that somebody is to be told of.

        Args:
            name: of the batcher.
            batch, began, took, most: as there.
            reason: why it left.
            attempt: what came of it.
            raised: by the handler.
            late: those of the items whose deadlines passed meanwhile.
            begun: what `begin` returned, if there were tracers.

        Returns:
            What is to be called once the callers are awake.
        """
        fold = self.note(batch, began, took, most)
        errors = attempt.errors + len(late)
        record = error = None
        if attempt.errors:
            error = next(outcome for outcome in attempt.outcomes if isinstance(outcome, BaseException))
        elif late:
            error = DeadlineExceeded(name, late[0].terms.deadline)
        if self.observers or begun is not None:
            record = Batch(
                batcher=name,
                size=len(batch),
                max_size=most,
                waits=tuple(began - ticket.arrived for ticket in batch),
                began=began,
                duration=took,
                reason=reason,
                errors=errors,
                error=None if error is None else own(error),  # the caller will raise its own
            )
        if raised is None and isinstance(error, BadBatchOutputSize):
            raised = own(error)
        return partial(self._after, name, record, attempt.errors, raised, len(late), begun, fold)

    def _after(
        self,
        name: str,
        record: Batch | None,
        errors: int,
        raised: BaseException | None,
        late: int,
        begun: Begun | None,
        fold: Callable[[], None] | None,
    ) -> None:
        """The callers are awake."""
        if raised is not None:
            message = "batcher %r: the handler failed with %s; items that failed since the last such warning: %d"
            self._log(report, name, errors, message, type(raised).__name__, error=raised)
        if late:
            self.expired(name, late)
        if begun is not None:
            begun.end(record)
        for observer in self.observers if record is not None else ():
            try:
                observer(record)
            except BaseException as error:
                self.complain(name, observer, error)
        if fold is not None:
            fold()

    def complain(self, name: str, observer: object, error: BaseException) -> None:
        """An observer, or a tracer, has raised: say so once."""
        if self._pass_on is not None and not isinstance(error, Exception) and not cancels(error):
            self._pass_on(error)
            return
        kind = getattr(observer, "__qualname__", type(observer).__qualname__)
        self._log(report_once, name, "batcher %r: observer %s failed; this is told once", kind, error=error)

    def catch_up(self) -> None:
        """The callers are awake: an occasion to warn of what has not been told."""
        self._log(catch_up)

    # -- by anybody ---------------------------------------------------------------------------------------

    def rejected(self, name: str, items: int) -> None:
        """There was no room for them: warn of it. Raises what interrupts that: it is the caller's own."""
        report(name, items, "batcher %r: its queue is full; items rejected since the last such warning: %d")

    def expired(self, name: str, items: int) -> None:
        """Their deadlines passed before they had results: warn of it. Raises what interrupts that, or passes it on."""
        message = "batcher %r: it is behind; items whose deadline has passed since the last such warning: %d"
        self._log(report, name, items, message)

    def _log(self, what: Callable[..., None], *args: Any, **error: Any) -> None:
        try:
            what(*args, **error)
        except BaseException as interrupt:
            if self._pass_on is None:
                raise
            self._pass_on(interrupt)

    def fold(self, wait: bool = False) -> None:
        """Fold what was recorded; if another thread is at it, `wait` for that, or leave it."""
        if _folding._is_owned() or not _folding.acquire(wait):
            return
        try:
            folded, buckets = self._folded.copy(), self._buckets
            singles, batches = self._singles[:], self._batches[:]
            few, many = slice(len(singles)), slice(len(batches))
            alone, groups = singles[0::3], batches[0::3]
            runs = singles[1::3] + batches[1::3]
            sizes = Counter(map(len, groups))
            if alone:
                sizes[buckets.WIDTH] += len(alone)
            for width, count in sizes.items():
                kept = buckets.rounded(width // buckets.WIDTH)
                folded.sizes[kept] = folded.sizes.get(kept, 0) + count
            groups.append(self._packers[len(alone)](*alone))
            waits = b"".join(groups)
            buckets.count_times(folded.waits, waits)
            buckets.count_times(folded.runs, self._packers[len(runs)](*runs))
            folded.items += len(waits) // buckets.WIDTH
            folded.waited += sum(buckets.unpacked(waits))
            folded.ran += sum(runs)
            folded.room += sum(singles[2::3]) + sum(batches[2::3])
            # in one step: no call, and nothing to be allocated
            del self._singles[few], self._batches[many]
            self._held = 0
            self._folded = folded
        finally:
            _folding.release()

    def recorded(self) -> dict[str, Any]:
        """The histograms `size`, `wait` and `run`, and `room`, all of the same batches; see `Stats`."""
        self.fold(wait=True)
        folded = self._folded
        return {
            "size": Histogram(sorted(folded.sizes.items()), folded.items),
            "wait": Histogram(self._buckets.levels(folded.waits), folded.waited),
            "run": Histogram(self._buckets.levels(folded.runs), folded.ran),
            "room": folded.room,
        }


class _Folded:
    """What was folded; never changed once it is a recorder's."""

    __slots__ = ("items", "ran", "room", "runs", "sizes", "waited", "waits")

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}  # batches by their rounded size; see `_buckets`
        self.waits: dict[int, int] = {}  # items by the bucket of their wait
        self.runs: dict[int, int] = {}  # batches by that of the handler's time
        self.items = self.room = 0
        self.waited = self.ran = 0.0  # seconds, all together

    def copy(self) -> _Folded:
        new = _Folded()
        new.sizes, new.waits, new.runs = self.sizes.copy(), self.waits.copy(), self.runs.copy()
        new.items, new.room, new.waited, new.ran = self.items, self.room, self.waited, self.ran
        return new


class Begun:
    """What tracers have made of a batch. Owned by its worker."""

    __slots__ = ("_name", "_recorder", "_spans")

    def __init__(self, name: str, recorder: Recorder) -> None:
        self._name = name
        self._recorder = recorder
        self._spans: list[tuple[Any, Span]] = []

    def enter(self, tracer: Any, contexts: Sequence[Context | None]) -> None:
        """The handler is about to be called."""
        try:
            self._spans.append((tracer, tracer.begin(self._name, contexts)))
        except BaseException as error:
            self._recorder.complain(self._name, tracer, error)

    def leave(self) -> None:
        """The handler has returned."""
        for tracer, span in reversed(self._spans):
            try:
                span.leave()
            except BaseException as error:
                self._recorder.complain(self._name, tracer, error)

    def end(self, record: Batch | None) -> None:
        """The callers are awake, or were told that the batch was given up."""
        for tracer, span in self._spans:
            try:
                span.end(record)
            except BaseException as error:
                self._recorder.complain(self._name, tracer, error)
