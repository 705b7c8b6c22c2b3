"""Messages between a process and a child of it, over a pair of connected sockets.

A message is a tuple of plain values, bytes that go with it, and descriptors. The sockets are the operating system's,
and block the thread, also under gevent's monkey patching.

Guarantees: `receive` gives whole messages, in order. If the other side is gone, that is an `EOFError`.

Assumptions: one thread at a time sends and one receives. The other side is trusted.
"""

from __future__ import annotations

import marshal
import struct
from _socket import SCM_RIGHTS, SO_RCVTIMEO, SOL_SOCKET, socket
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_LENGTHS = struct.Struct("<II")
_TIME = struct.Struct("@ll")

MOST_DESCRIPTORS = 128
"""In one message."""

_READ = 1 << 17
_ANCILLARY = 24 + 4 * 253  # as many as a kernel lets through


class Wire:
    """One end of it.

    Args:
        end: a connected stream socket between processes of one machine; is owned from now on.
    """

    def __init__(self, end: socket) -> None:
        self._socket = end
        end.setblocking(True)
        self._data = bytearray()
        self._descriptors: list[int] = []
        self._timeout: float | None = None

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """The other side will find that this one is gone."""
        self._socket.close()

    def limit(self, timeout: float | None) -> None:
        """From now on `receive` waits at most so many seconds for each piece; `None` for no limit."""
        if timeout == self._timeout:
            return
        self._timeout = timeout
        # at least a microsecond, as none is no limit
        micros = 0 if timeout is None else max(1, min(int(timeout * 1e6), 1 << 50))
        self._socket.setsockopt(SOL_SOCKET, SO_RCVTIMEO, _TIME.pack(micros // 1_000_000, micros % 1_000_000))

    def send(self, message: tuple[Any, ...], chunks: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        """Send a message.

        Raises:
            EOFError: the other side is gone.
        """
        meta = marshal.dumps(message)
        data = b"".join((_LENGTHS.pack(len(meta), sum(map(len, chunks))), meta, *chunks))
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        try:
            sent = self._socket.sendmsg([data], rights) if rights else self._socket.send(data)
            if sent < len(data):
                self._socket.sendall(memoryview(data)[sent:])
        except OSError as error:
            raise EOFError from error

    def receive(self) -> tuple[tuple[Any, ...], memoryview, list[int]]:
        """Wait for a message.

        Returns:
            The message, the bytes that go with it, and the descriptors, which are the caller's now.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: the time is up.
        """
        data = self._data
        while len(data) < _LENGTHS.size:
            self._read()
        needed = _LENGTHS.size + sum(_LENGTHS.unpack_from(data))
        while len(data) < needed:
            self._read()
        first = _LENGTHS.size + _LENGTHS.unpack_from(data)[0]
        message, inline = marshal.loads(data[_LENGTHS.size : first]), memoryview(bytes(data[first:needed]))
        del data[:needed]
        descriptors, self._descriptors = self._descriptors, []
        return message, inline, descriptors

    def _read(self) -> None:
        try:
            piece, ancillary, _, _ = self._socket.recvmsg(_READ, _ANCILLARY)
        except BlockingIOError:
            raise TimeoutError from None
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
