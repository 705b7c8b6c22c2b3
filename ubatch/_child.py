"""What runs in a child process: it takes calls from its parent, one at a time, and answers each.

Guarantees:
- A call is answered with what the function returned or raised; only the end of the process leaves it without.
- The process ends when its parent is gone, or closes its end: at once if it idles, else when its call is over, but no
  later than `GRACE` seconds after.
- An interrupt from the terminal is the parent's affair: it does not reach the functions that are called here.
- Arrays that come in shared memory are read-only, unless the parent has it otherwise. The parent is told which blocks
  are still referred to when a call is over, by whatever the function keeps, and does not write to these.

The messages. From the parent: `call` (a function and its arguments, which blocks it may not know any more, and a block
for the answer), `room` (a block for it, as asked for), `map` (descriptors of blocks). To it: `room`, which asks for a
block of so many bytes, and `done`. The first call is what the process is to do as it starts.
"""

from __future__ import annotations

import _socket
import os
import signal
import traceback
from functools import partial

from . import _native
from ._parcels import Parcel, Unpackable, pack, unpack
from ._records import Failed, Logged, sendable, sendable_results
from ._shm import Block, Mapped
from ._wire import Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from typing import Any

GRACE = 2.0
"""Seconds that a call may go on when the parent is gone."""

_prepare: Callable[[], object] | None = None  # where the process was forked: what it is to do as it starts


def main(end: Connection, writable: bool, prepare: Callable[[], object] | None) -> None:
    """The process.

    Args:
        end: its end of the wire.
        writable: whether arrays that come in may be written to.
        prepare: what the process is to do as it starts, if that need not be sent.
    """
    global _prepare
    _prepare = prepare
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # of the descriptor alone: `socket.socket` is gevent's, where a process that it has patched was forked
    wire = Wire(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, os.dup(end.fileno())))
    end.close()
    _native.start_thread("ubatch-parent", partial(_watch, wire.fileno()))
    try:
        _Served(wire, writable).run()
    except ParentGone:  # or it wants this to end
        pass


def prepared() -> None:
    """The first call, where what the process is to do was not sent."""
    if _prepare is not None:
        _prepare()


def _watch(descriptor: int) -> None:
    """End the process if its parent is gone and it does not end by itself."""
    _native.wait_for_hangup(descriptor)
    gate = _native.allocate_lock()
    gate.acquire()
    gate.acquire(True, GRACE)
    os._exit(1)


class ParentGone(BaseException):
    """There is nobody to answer to: no error of a function that is called."""


class _Served:
    """The child's side of the wire."""

    def __init__(self, wire: Wire, writable: bool) -> None:
        self._wire = wire
        self._writable = writable
        self._mapped = Mapped()
        self._lent: Block | None = None

    def run(self) -> None:
        """Answer calls. Raises ParentGone: there will be no more."""
        while True:
            message, inline, descriptors = self._receive()
            if message[0] == "map":
                self._map(message[1], descriptors)
            else:
                _, head, places, dropped, lent = message
                for number in dropped:
                    block = self._mapped.blocks[number]
                    self._mapped.remove(block)
                    block.close()
                self._lent = self._mapped.blocks[lent] if lent else None
                self._answer(inline, head, places)

    def _receive(self) -> tuple[tuple[Any, ...], memoryview, list[int]]:
        try:
            return self._wire.receive()
        except EOFError:
            raise ParentGone from None

    def _send(self, message: tuple[Any, ...], chunks: Sequence[Any] = ()) -> None:
        try:
            self._wire.send(message, chunks)
        except EOFError:
            raise ParentGone from None

    def _map(self, blocks: list[tuple[int, int]], descriptors: list[int]) -> None:
        for (number, size), descriptor in zip(blocks, descriptors, strict=True):
            self._mapped.add(Block(number, descriptor, size))
            os.close(descriptor)

    def _answer(self, inline: memoryview, head: Any, places: Any) -> None:
        answer, seconds = self._called(inline, head, places)
        inline.release()
        held = [block.number for block in self._mapped.blocks.values() if block.referred]
        done = ("done", answer.head, answer.places, held, seconds, answer.size, answer.copied, answer.passed)
        self._send(done, answer.chunks)

    def _called(self, inline: memoryview, head: Any, places: Any) -> tuple[Parcel, float]:
        """Make the call, and pack what came of it; the answer's views are left to the parent."""
        began = _native.monotonic()
        try:
            function, args, kwargs = unpack(inline, head, places, self._view)
            began = _native.monotonic()
            result = function(*args, **kwargs)
            seconds = _native.monotonic() - began
            is_handler = isinstance(function, Logged)
            del function, args, kwargs
            try:
                answer = self._packed((True, result))
            except Exception:
                if not is_handler:
                    raise
                answer = self._packed((True, sendable_results(result)))  # those that can be are not disturbed
        except (ParentGone, SystemExit):
            raise
        except BaseException as error:
            seconds = _native.monotonic() - began
            if isinstance(error, Unpackable):
                error = error.__cause__ or error
            origin = error.__cause__ if isinstance(error, Failed) and error.__cause__ is not None else error
            origin.with_traceback(origin.__traceback__ and origin.__traceback__.tb_next)  # without this frame
            told = "".join(traceback.format_exception(type(origin), origin, origin.__traceback__))
            answer = self._packed((False, (sendable(error), told)))
        answer.views.clear()
        return answer, seconds

    def _packed(self, thing: object) -> Parcel:
        return pack(thing, self._mapped, self._take)

    def _view(self, number: int, offset: int, size: int) -> memoryview:
        view = self._mapped.blocks[number].view()[offset : offset + size]
        return view if self._writable else view.toreadonly()

    def _take(self, size: int) -> tuple[Block, memoryview]:
        """A block for the answer: the one that was lent for it, or one that is asked for now."""
        block, self._lent = self._lent, None
        if block is None or block.size < size:
            self._send(("room", size))
            message, _, descriptors = self._receive()
            while message[0] == "map":
                self._map(message[1], descriptors)
                message, _, descriptors = self._receive()
            block = self._mapped.blocks[message[1]]
        return block, block.view()
