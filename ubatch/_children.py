"""One child process, as its parent sees it: from its start to its end.

Guarantees: a `Child` that does not answer a call, in time or at all, has ended when that is told. Whatever interrupts a
call, its process is ended too, as it is in the middle of something.

Assumptions: one thread at a time owns a child. Other code may reap our children (a `SIGCHLD` handler that waits for
any): then it is not known how they ended.
"""

from __future__ import annotations

import _socket
import itertools
import os
import signal
import sys
import weakref
from collections import deque
from contextlib import contextmanager

from . import _child, _native
from ._native import monotonic
from ._parcels import Unpackable, pack, unpack
from ._records import Failed, logged, raised, told
from ._shm import pool
from ._wire import MOST_DESCRIPTORS, Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.process import BaseProcess
    from typing import Any, TypeAlias

    from ._parcels import Parcel
    from ._shm import Block

    Room: TypeAlias = tuple[Block, memoryview]

METHODS = ("spawn", "forkserver", "fork")
"""How children can be started; see `multiprocessing`."""

REAP = 1.0
"""Seconds that a child is given to end when its wire is closed; then it is killed."""

MOST_VIEWS = 128
"""Blocks in use from which on results are copied out of them, as each takes two descriptors."""

leaving: deque[Child] = deque()
"""Children that were dismissed, and have not been waited for."""

_wires: weakref.WeakSet[Wire] = weakref.WeakSet()
_serial = itertools.count(1)


class Ended(Exception):
    """A child is gone; says how."""


class RemoteTraceback(Exception):
    """The traceback of an exception in the process where it was raised, as text: its `__cause__` here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class Setup:
    """How children are started, and what they do then.

    Args:
        method: one of `METHODS`.
        prepare: called in each child first of all.
        timeout: seconds that it may take until a child is ready.
        writable: whether arrays that come in may be written to.
    """

    def __init__(self, method: str, prepare: Callable[[], object], timeout: float, writable: bool) -> None:
        self.method = method
        self.timeout = timeout
        self.writable = writable
        self._inherited = prepare if method == "fork" else None  # it need not be pickled then
        self.first = logged(_child.prepared if method == "fork" else prepare)

    def start(self, name: str, theirs: _socket.socket) -> BaseProcess:
        """A new process, with its end of the wire. Raises Exception: it cannot be started."""
        import multiprocessing.process
        from multiprocessing.connection import Connection

        context: Any = multiprocessing.get_context(self.method)
        if self.method == "forkserver":
            from multiprocessing import forkserver

            forkserver.ensure_running()  # now, as it is others' as well, who may be interrupted
        end = Connection(os.dup(theirs.fileno()))
        # not daemonic: it may have children of its own
        process: BaseProcess = context.Process(
            target=_child.main, args=(end, self.writable, self._inherited), name=f"{name}-{next(_serial)}", daemon=False
        )
        # an interrupt from the terminal is not for it, even before it can say so: it inherits what is blocked here
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            end.close()
            # ours to wait for: `multiprocessing` would do so at exit, also in a process that is forked off this one
            getattr(multiprocessing.process, "_children", set()).discard(process)
        return process


class Child:
    """A process, from its start to its end. Owned by one thread at a time.

    Args:
        name: of its crew.
        setup: how to start it.

    Attributes:
        pid: the number of its process.
        calls: how many it was given.
        is_ready: whether it has started.

    Raises:
        Exception: it cannot be started, or what it is to do then cannot be sent.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.calls = 0
        self.is_ready = False
        self._holding: dict[int, Block] = {}  # what it refers to
        self._known: set[int] = set()  # numbers of the blocks that it has mapped
        self._dropped = pool.dropped
        reap()
        try:
            first = pack((setup.first, (), {}), pool, pool.take)
        except Unpackable as error:
            raise error.__cause__ or error from None
        ours, theirs = _socket.socketpair()
        self._wire = Wire(ours)
        _wires.add(self._wire)  # before another thread forks
        try:
            self._process: BaseProcess | None = setup.start(name, theirs)  # until it has ended
            self.pid = self._process.pid or 0
        except BaseException:
            self._wire.close()
            raise
        finally:
            theirs.close()
        self._call(first, None)

    def alive(self) -> bool:
        """Whether the process is there. May be called by any thread."""
        process = self._process
        if process is None or process.exitcode is not None:
            return False
        try:
            os.kill(self.pid, 0)
        except OSError:  # somebody else has waited for it
            return False
        return True

    def ready(self, timeout: float) -> None:
        """Wait until it can be called.

        Raises:
            Ended: it is gone; or it was killed, as it takes longer.
            Exception: what it was to do as it starts failed.
        """
        if self.is_ready:
            return
        try:
            told(outcome(self._answer(timeout, f"it was not ready within {timeout:g} s")))
        except Failed as failed:
            raise raised(failed) from failed.__cause__
        self.is_ready = True

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
        self._call(parcel, pool.take(room) if room else None)
        answer = self._answer(timeout, f"it hung: there was no answer within {timeout or 0:g} s")
        answer.took = monotonic() - began
        return answer

    def _call(self, parcel: Parcel, lent: Room | None) -> None:
        blocks = [block for block, _ in parcel.views.values()]
        if lent is not None:
            blocks.append(lent[0])
        dropped: list[int] = []
        if self._dropped != pool.dropped:
            self._dropped = pool.dropped
            dropped = [number for number in self._known if number not in pool.blocks]
            self._known.difference_update(dropped)
        with self._or_end():
            self._lend(blocks)
            number = 0 if lent is None else lent[0].number
            self._wire.send(("call", parcel.head, parcel.places, dropped, number), parcel.chunks)

    def _lend(self, blocks: list[Block]) -> None:
        """See to it that the child has mapped these; it refers to them from now on."""
        for block in blocks:
            block.held.add(self)
            self._holding[block.number] = block
        strange = [block for block in blocks if block.number not in self._known]
        for first in range(0, len(strange), MOST_DESCRIPTORS):
            some = strange[first : first + MOST_DESCRIPTORS]
            sizes = [(block.number, block.size) for block in some]
            self._wire.send(("map", sizes), descriptors=[block.descriptor for block in some])
            self._known.update(block.number for block in some)

    def _answer(self, timeout: float | None, late: str) -> Answer:
        with self._or_end(late):
            self._wire.limit(timeout)
            message, inline, _ = self._wire.receive()
            rooms: list[Room] = []  # not to be given to others before the answer has been looked at
            while message[0] == "room":
                rooms.append(pool.take(message[1]))
                self._lend([rooms[-1][0]])
                self._wire.send(("room", rooms[-1][0].number))
                message, inline, _ = self._wire.receive()
            answer = Answer(message, inline)
            self._keep(answer.held)
            return answer

    @contextmanager
    def _or_end(self, late: str = "") -> Iterator[None]:
        """While it is spoken with: what comes between leaves it in the middle of something. Raises Ended."""
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

    def _keep(self, numbers: Iterable[int]) -> None:
        """It refers to these alone."""
        for number in self._holding.keys() - set(numbers):
            block = self._holding.pop(number)
            block.held.discard(self)
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
        code = self._exitcode(patience)
        if code is None and self.alive():
            self.kill()
            code = self._exitcode(REAP)
        self._process = None  # and its descriptors with it, whoever still refers to this
        self._keep(())
        if code is None:
            return "its process is gone"
        if code < 0:
            return f"its process was killed by {_signal_name(-code)}"
        return f"its process exited with code {code}"

    def _exitcode(self, patience: float) -> int | None:
        process = self._process
        if process is None:
            return None
        until = monotonic() + patience
        gate = _native.allocate_lock()
        gate.acquire()
        while (code := process.exitcode) is None and self.alive() and monotonic() < until:
            gate.acquire(True, 0.002)
        return code


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Answer:
    """What a child answered. Its memory is not used again before `result` has been asked for."""

    __slots__ = ("_head", "_inline", "_places", "_views", "copied", "held", "passed", "seconds", "size", "took")

    took: float
    """Seconds from the call to its coming; `seconds` are those of the function alone."""

    def __init__(self, message: tuple[Any, ...], inline: memoryview) -> None:
        _, self._head, self._places, self.held, self.seconds, self.size, self.copied, self.passed = message
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


def reap(patience: float = 0.0) -> None:
    """Wait for children that were dismissed, for so many seconds all together; kill those that are left then.

    Args:
        patience: 0 waits for none, and kills none.
    """
    until = monotonic() + patience
    for _ in range(len(leaving)):
        try:
            child = leaving.popleft()
        except IndexError:
            return
        if patience or not child.alive():
            child.end(max(0.0, until - monotonic()))
        else:
            leaving.append(child)


def forget_parents() -> None:
    """In a process that was forked off: wires are its parent's, and so is the server that children are forked off."""
    for wire in list(_wires):
        wire.close()
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if server is not None and server._forkserver_alive_fd is not None:  # as of Python 3.10 to 3.13; a test holds that
        os.close(server._forkserver_alive_fd)
        server.__init__()
