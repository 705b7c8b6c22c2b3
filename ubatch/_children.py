"""One child process, as its parent sees it: from its start to its end.

Guarantees: a `Child` that does not answer a call, in time or at all, has ended when that is told; so has one that was
interrupted in the middle of a call. Of a child that has ended no descriptor and no block is kept.

How it is known that a process is there: by a descriptor of the process itself, where the system has such, which is
waited for together with the wire. So neither descriptors that others have inherited, nor whoever else waits for our
children, nor gevent's patches can mislead. Then it is but not known how it ended.

Assumptions: one thread at a time owns a child. How it is started, and what forks do to it: see `_starts`.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from contextlib import contextmanager

from . import _native
from ._native import monotonic
from ._parcels import unpack
from ._records import heard
from ._shm import pool
from ._wire import MOST_DESCRIPTORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.process import BaseProcess
    from typing import Any, TypeAlias

    from ._parcels import Parcel
    from ._shm import Block
    from ._starts import Setup

    Room: TypeAlias = tuple[Block, memoryview]

REAP = 1.0
"""Seconds that a child is given to end when its wire is closed; then it is killed."""

MOST_VIEWS = 128
"""Blocks in use from which on arrays are copied out of them, here and in children, as each takes descriptors."""

leaving: deque[Child] = deque()
"""Children that were dismissed, and have not been waited for."""


class Ended(Exception):
    """A child is gone; says how."""


class RemoteTraceback(Exception):
    """The traceback of an exception in the process where it was raised, as text: its `__cause__` here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Child:
    """A process, from its start to its end. Owned by one thread at a time.

    Args:
        name: of its crew.
        setup: how to start it.

    Attributes:
        pid: the number of its process.
        calls: how many it was given.
        ended: whether it is known to be gone.

    Raises:
        Exception: it cannot be started, or what it is to do then cannot be sent.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.calls = 0
        self.ended = False
        self._call = 0  # the number of the last
        self._token = object()  # stands for it where blocks say who refers to them
        self._holding: dict[int, Block] = {}  # what it refers to
        self._known: set[int] = set()  # numbers of the blocks that it has mapped
        self._dropped = pool.dropped
        reap()
        first = setup.first()
        process, self._wire = setup.start(name)
        self._process: BaseProcess | None = process  # until it has ended
        self.pid = process.pid or 0
        self._descriptor = -1  # of the process
        with self._or_end():
            if hasattr(os, "pidfd_open"):
                try:
                    self._descriptor = os.pidfd_open(self.pid)
                except OSError:  # an old kernel, or it is gone and somebody has waited for it
                    pass
            self._wire.watch(self._descriptor)
        self._send(first, None, None)

    def alive(self) -> bool:
        """Whether the process is there. May be called by any thread."""
        descriptor, process = self._descriptor, self._process
        if process is None or self.ended:
            return False
        if descriptor < 0:
            return process.exitcode is None
        poll = _native.poll()
        poll.register(descriptor)
        return not poll.poll(0)

    def ready(self, until: float) -> None:
        """Wait until it can be called, to a moment on the monotonic clock. Called once.

        Raises:
            Ended: it is gone; or it was killed, as it takes longer.
            Exception: what it was to do as it starts failed.
        """
        heard(lambda: outcome(self._answer(until, "it was not ready in time")))

    def call(self, parcel: Parcel, timeout: float | None, room: int) -> Answer:
        """Make a call, and wait for its answer.

        Args:
            parcel: the function and its arguments.
            timeout: seconds that it may take; `None` for no limit.
            room: bytes that the answer may need beside the message; it may have more.

        Raises:
            Ended: it is gone; or it was killed, as the time was up.
            OSError: there is no memory, or too many descriptors.
        """
        self.calls += 1
        began = monotonic()
        until = None if timeout is None else began + timeout
        self._send(parcel, pool.take(room) if room else None, until)
        answer = self._answer(until, f"it hung: there was no answer within {timeout or 0:g} s")
        answer.took = monotonic() - began
        return answer

    def _send(self, parcel: Parcel, lent: Room | None, until: float | None) -> None:
        blocks = [block for block, _ in parcel.views.values()]
        if lent is not None:
            blocks.append(lent[0])
        dropped: list[int] = []
        if self._dropped != pool.dropped:
            self._dropped = pool.dropped
            dropped = [number for number in self._known if number not in pool.blocks]
            self._known.difference_update(dropped)
        self._call += 1
        number = 0 if lent is None else lent[0].number
        copied = pool.used > MOST_VIEWS
        message = ("call", self._call, parcel.head, parcel.places, dropped, number, copied)
        try:
            with self._or_end("it did not take what it was sent in time"):
                self._lend(blocks, until)
                self._wire.send(message, parcel.chunks, until=until)
        finally:
            del lent  # a traceback refers to this frame, and is not to keep a block

    def _lend(self, blocks: list[Block], until: float | None) -> None:
        """See to it that the child has mapped these; it refers to them from now on."""
        for block in blocks:
            block.held.add(self._token)
            self._holding[block.number] = block
        strange = [block for block in blocks if block.number not in self._known]
        for first in range(0, len(strange), MOST_DESCRIPTORS):
            some = strange[first : first + MOST_DESCRIPTORS]
            sizes = [(block.number, block.size) for block in some]
            self._wire.send(("map", sizes), descriptors=[block.descriptor for block in some], until=until)
            self._known.update(block.number for block in some)

    def _answer(self, until: float | None, late: str) -> Answer:
        rooms: list[Room] = []  # not to be given to others before the answer has been looked at
        with self._or_end(late, rooms):
            message, inline, _ = self._wire.receive(until)
            while message[0] == "room":
                rooms.append(pool.take(message[1]))
                self._lend([rooms[-1][0]], until)
                self._wire.send(("room", rooms[-1][0].number), until=until)
                message, inline, _ = self._wire.receive(until)
            if message[1] != self._call:
                raise EOFError("it answers what it was not asked")
            answer = Answer(message, inline)
            self._known.difference_update(answer.missing)
            self._keep(answer.held)
            return answer

    @contextmanager
    def _or_end(self, late: str = "", rooms: list[Room] | None = None) -> Iterator[None]:
        """While it is spoken with: what comes between leaves it in the middle of something. Raises Ended.

        Args:
            late: what is to be said if the time is up.
            rooms: blocks that are needed meanwhile, and no longer.
        """
        try:
            yield
        except EOFError:
            raise Ended(self.end()) from None
        except TimeoutError:
            self.kill()
            self.end()
            raise Ended(late) from None
        except BaseException:
            self.kill()
            self.end()
            raise
        finally:
            if rooms is not None:
                rooms.clear()  # a traceback refers to who has them

    def _keep(self, numbers: Iterable[int]) -> None:
        """It refers to these alone."""
        for number in self._holding.keys() - set(numbers):
            block = self._holding.pop(number)
            block.held.discard(self._token)
            pool.loosen(block)

    def dismiss(self) -> None:
        """Let it end, once it has done what it is at."""
        self._wire.close()
        leaving.append(self)

    def kill(self) -> None:
        """End it at once. May be called by any thread."""
        process = self._process
        if process is not None and self.alive():
            process.kill()

    def end(self, patience: float = REAP) -> str:
        """See to it that it has ended, within so many seconds or by force; say how it did."""
        self._wire.close()
        process = self._process
        if process is None:
            return "its process is gone"
        if not self._await_end(monotonic() + patience):
            self.kill()
            self._await_end(monotonic() + REAP)
        code = process.exitcode
        if code is None:  # who forked it has to tell
            process.join(0.1)
            code = process.exitcode
        self.ended = True
        self._process = None  # and its descriptors with it, whoever still refers to this
        descriptor, self._descriptor = self._descriptor, -1
        self._wire.watch(-1)
        if descriptor >= 0:
            os.close(descriptor)
        self._keep(())
        if code is None:
            return "its process is gone"
        if code < 0:
            return f"its process was killed by {_signal_name(-code)}"
        return f"its process exited with code {code}"

    def _await_end(self, until: float) -> bool:
        if self._descriptor >= 0:
            poll = _native.poll()
            poll.register(self._descriptor)
            return bool(poll.poll(max(0.0, 1e3 * (until - monotonic()))))
        gate = _native.allocate_lock()
        gate.acquire()
        while self.alive() and monotonic() < until:
            gate.acquire(True, 0.002)
        return not self.alive()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Answer:
    """What a child answered. Its memory is not used again before `result` has been asked for."""

    __slots__ = (
        "_head",
        "_inline",
        "_places",
        "_views",
        "copied",
        "held",
        "missing",
        "passed",
        "seconds",
        "size",
        "took",
    )

    took: float
    """Seconds from the call to its coming; `seconds` are those of the function alone."""

    def __init__(self, message: tuple[Any, ...], inline: memoryview) -> None:
        self._head, self._places, self.held, self.missing, self.seconds = message[2:7]
        self.size, self.copied, self.passed = message[7:]
        self._inline = inline
        self._views = [pool.view(*place) for place in self._all_places()]

    def _all_places(self) -> list[tuple[int, int, int]]:
        return self._places if self._head is None else [*self._places, self._head]

    @property
    def room(self) -> int:
        """Bytes that it took beside the message."""
        return sum(size for _, _, size in self._all_places())

    def result(self) -> tuple[bool, Any]:
        """Whether the function returned, and what; or what it raised, and the traceback.

        Raises:
            Exception: it cannot be unpickled.
        """
        view: Callable[[int, int, int], memoryview] = _copied if pool.used > MOST_VIEWS else pool.view
        try:
            answer: tuple[bool, Any] = unpack(self._inline, self._head, self._places, view)
            return answer
        finally:
            self._views.clear()


def _copied(number: int, offset: int, size: int) -> memoryview:
    return memoryview(bytearray(pool.view(number, offset, size)))


def outcome(answer: Answer) -> Any:
    """What the function returned. Raises Exception: what it raised."""
    returned, what = answer.result()
    if returned:
        return what
    error, text = what
    error.__cause__ = RemoteTraceback(text)
    try:
        raise error
    finally:
        del error, what  # the traceback refers to this frame: no cycle through it


def reap(patience: float = 0.0, children: Iterable[Child] | None = None) -> None:
    """Wait for children that were dismissed, for so many seconds all together; kill those that are left then.

    Args:
        patience: 0 waits for none, and kills none.
        children: which; all by default.
    """
    until = monotonic() + patience
    chosen = None if children is None else set(children)
    for _ in range(len(leaving)):
        try:
            child = leaving.popleft()
        except IndexError:
            return
        if not child.alive() or (patience and (chosen is None or child in chosen)):
            child.end(max(0.0, until - monotonic()))
        else:
            leaving.append(child)


os.register_at_fork(after_in_child=leaving.clear)
