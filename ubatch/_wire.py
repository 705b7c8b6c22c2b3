"""Messages between a process and a child of it, over a pair of connected sockets.

A message is a tuple of plain values, bytes that go with it, and descriptors. Waiting stops the thread, also under
gevent's monkey patching.

Guarantees: `receive` gives whole messages, in order. If the other side is gone, that is an `EOFError`, also where a
process that was forked off it still has its end. A deadline holds in both directions, whatever signals come.

Assumptions: one thread at a time uses it. The other side is trusted.
"""

from __future__ import annotations

import marshal
import os
import struct
from _socket import MSG_DONTWAIT, SCM_RIGHTS, SOL_SOCKET, socket
from array import array
from math import ceil
from select import POLLIN, POLLOUT

from . import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_LENGTHS = struct.Struct("<II")

MOST_DESCRIPTORS = 128
"""In one message."""

_READ = 1 << 17
_ANCILLARY = 24 + 4 * 253  # as many descriptors as a kernel lets through


class Wire:
    """One end of it.

    Args:
        end: a connected stream socket between processes of one machine; is owned from now on.
    """

    def __init__(self, end: socket) -> None:
        self._socket = end
        self._process = -1
        self._data = bytearray()
        self._descriptors: list[int] = []

    def watch(self, process: int) -> None:
        """The other side is the process of this descriptor, which stays the giver's: it says when that is gone."""
        self._process = process

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """The other side will find that this one is gone."""
        self._socket.close()

    def abandon(self) -> None:
        """In a process that was forked off: its descriptors are the parent's."""
        process, self._process = self._process, -1  # its number may be another's from now on
        self._socket.close()
        if process >= 0:
            os.close(process)

    def send(
        self,
        message: tuple[Any, ...],
        chunks: Sequence[Any] = (),
        descriptors: Sequence[int] = (),
        until: float | None = None,
    ) -> None:
        """Send a message.

        Args:
            message: plain values.
            chunks: bytes that go with it.
            descriptors: at most `MOST_DESCRIPTORS`.
            until: when the time is up, on the monotonic clock.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: the time is up.
        """
        meta = marshal.dumps(message)
        data = memoryview(b"".join((_LENGTHS.pack(len(meta), sum(map(len, chunks))), meta, *chunks)))
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        while data:
            try:
                if rights:
                    sent = self._socket.sendmsg([data], rights, MSG_DONTWAIT)
                else:
                    sent = self._socket.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(POLLOUT, until)
                continue
            except OSError as error:
                raise EOFError from error
            rights = []
            data = data[sent:]

    def receive(self, until: float | None = None) -> tuple[tuple[Any, ...], memoryview, list[int]]:
        """Wait for a message, until a moment on the monotonic clock.

        Returns:
            The message, the bytes that go with it, and the descriptors, which are the caller's now.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: the time is up.
        """
        data = self._data
        while len(data) < _LENGTHS.size:
            self._read(until)
        needed = _LENGTHS.size + sum(_LENGTHS.unpack_from(data))
        while len(data) < needed:
            self._read(until)
        first = _LENGTHS.size + _LENGTHS.unpack_from(data)[0]
        message, inline = marshal.loads(data[_LENGTHS.size : first]), memoryview(bytes(data[first:needed]))
        del data[:needed]
        descriptors, self._descriptors = self._descriptors, []
        return message, inline, descriptors

    def _read(self, until: float | None) -> None:
        self._wait(POLLIN, until)
        try:
            piece, ancillary, _, _ = self._socket.recvmsg(_READ, _ANCILLARY, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError from error
        for level, kind, rights in ancillary:
            if level == SOL_SOCKET and kind == SCM_RIGHTS:
                descriptors = array("i")
                descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
                self._descriptors += descriptors
        if not piece:
            raise EOFError
        self._data += piece

    def _wait(self, event: int, until: float | None) -> None:
        mine = self._socket.fileno()
        if mine < 0:
            raise EOFError
        poll = _native.poll()
        poll.register(mine, event)
        if self._process >= 0:
            poll.register(self._process, POLLIN)
        left = None if until is None else max(0, ceil(1e3 * (until - _native.monotonic())))
        ready = [descriptor for descriptor, _ in poll.poll(left)]
        if mine in ready:  # what it has said before it went counts
            return
        if ready:
            raise EOFError
        raise TimeoutError
