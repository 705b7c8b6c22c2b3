"""What runs in a child process: it takes calls from its parent, one at a time, and answers each.

Guarantees:
- A call is answered with what the function returned or raised; only the end of the process leaves it without.
- The process ends when its parent is gone, or closes its end: at once if it idles, else when its call is over, but no
  later than `GRACE` seconds after.
- An interrupt from the terminal is the parent's affair: it does not reach the functions that are called here.
- Arrays that come in shared memory are read-only, unless the parent has it otherwise. The parent is told which blocks
  are still referred to when a call is over, by whatever the function keeps, and does not write to these.

The messages. From the parent: `call` (its number, a function and arguments, which blocks are no more, a block for the
answer), `room` (a block for it, as asked for), `map` (descriptors of blocks). To it: `room`, which asks for a block of
so many bytes, and `done`, with the number of the call. The first call is what the process is to do as it starts.
"""

from __future__ import annotations

import _socket
import os
import signal
import traceback
from functools import partial

from . import _native
from ._parcels import Parcel, Unpackable, Unreadable, pack, unpack
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

_SENT = "what was sent cannot be read in the child process"

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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # where it was forked: neither the parent's, nor its loop's
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # of the descriptor alone: `socket.socket` is gevent's, where a process that it has patched was forked
    wire = Wire(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, os.dup(end.fileno())))
    end.close()
    os.register_at_fork(after_in_child=wire.close)  # functions may fork
    _native.start_thread("ubatch-parent", partial(_watch, wire.fileno()))
    try:
        _Served(wire, writable).run()
    except ParentGone:  # or it wants this to end
        pass


def prepared(sent: Callable[[], object] | None) -> None:
    """The first call: what the process is to do as it starts, which may not have been sent."""
    prepare = sent or _prepare
    if prepare is not None:
        prepare()


def _watch(descriptor: int) -> None:
    """End the process if its parent is gone and it does not end by itself."""
    poll = _native.poll()
    poll.register(descriptor, 0)  # for nothing but that the other end is closed
    poll.poll()
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
        self._copied = False  # whether what comes in is copied out of its block
        self._lent: Block | None = None
        self._missing: dict[int, OSError] = {}  # blocks that could not be mapped, and why

    def run(self) -> None:
        """Answer calls. Raises ParentGone: there will be no more."""
        while True:
            message, inline = self._receive()
            _, call, head, places, dropped, lent, copied = message
            for number in dropped:
                block = self._mapped.blocks[number]
                self._mapped.remove(block)
                block.close()
            self._lent = self._mapped.blocks.get(lent)
            self._copied = copied
            self._answer(call, inline, head, places)

    def _receive(self) -> tuple[tuple[Any, ...], memoryview]:
        """The next message that is not about blocks."""
        while True:
            try:
                message, inline, descriptors = self._wire.receive()
            except EOFError:
                raise ParentGone from None
            if message[0] != "map":
                return message, inline
            for (number, size), descriptor in zip(message[1], descriptors, strict=True):
                try:
                    self._mapped.add(Block(number, descriptor, size))
                except OSError as error:
                    self._missing[number] = error
                finally:
                    os.close(descriptor)

    def _send(self, message: tuple[Any, ...], chunks: Sequence[Any] = ()) -> None:
        try:
            self._wire.send(message, chunks)
        except EOFError:
            raise ParentGone from None

    def _block(self, number: int) -> Block:
        if number in self._missing:
            raise self._missing[number].with_traceback(None)
        return self._mapped.blocks[number]

    def _answer(self, call: int, inline: memoryview, head: Any, places: Any) -> None:
        answer, seconds = self._called(inline, head, places)
        inline.release()
        held = [block.number for block in self._mapped.blocks.values() if block.referred]
        counts = answer.size, answer.copied, answer.passed
        missing, self._missing = list(self._missing), {}
        self._send(("done", call, answer.head, answer.places, held, missing, seconds, *counts), answer.chunks)

    def _called(self, inline: memoryview, head: Any, places: Any) -> tuple[Parcel, float]:
        """Make the call, and pack what came of it; the answer's views are left to the parent."""
        began = _native.monotonic()
        try:
            function, args, kwargs = unpack(inline, head, places, self._view, _SENT)
            began = _native.monotonic()
            result = function(*args, **kwargs)
            seconds = _native.monotonic() - began
            is_handler = isinstance(function, Logged) and function.is_handler
            del function, args, kwargs
            try:
                answer = self._packed((True, result))
            except Unpackable as error:
                if not is_handler:
                    raise
                answer = self._packed((True, sendable_results(result, error)))  # those that can be are not disturbed
        except (ParentGone, SystemExit):
            raise
        except BaseException as error:
            seconds = _native.monotonic() - began
            if isinstance(error, Unpackable):
                error = error.__cause__ or error
            origin = error
            if isinstance(error, (Failed, Unreadable)) and error.__cause__ is not None:
                origin = error.__cause__
            origin.with_traceback(origin.__traceback__ and origin.__traceback__.tb_next)  # without this frame
            told = "".join(traceback.format_exception(type(origin), origin, origin.__traceback__))
            answer = self._packed((False, (sendable(error), told)))
        answer.views.clear()
        return answer, seconds

    def _packed(self, thing: object) -> Parcel:
        # what may be written to in the next call is not lent to the parent
        return pack(thing, self._mapped, self._take, shared=not self._writable)

    def _view(self, number: int, offset: int, size: int) -> memoryview:
        view = self._block(number).view()[offset : offset + size]
        if self._copied:
            view = memoryview(bytearray(view))
        return view if self._writable else view.toreadonly()

    def _take(self, size: int) -> tuple[Block, memoryview]:
        """A block for the answer: the one that was lent for it, or one that is asked for now."""
        block, self._lent = self._lent, None
        if block is None or block.size < size:
            self._send(("room", size))
            message, _ = self._receive()
            block = self._block(message[1])
        return block, block.view()
