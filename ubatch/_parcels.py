"""Objects on their way between a process and a child of it: what is in the message, and what lies in shared memory.

Purpose: `pack` pickles an object; buffers that it speaks of (those of arrays, by pickle's protocol 5) are copied into a
block, once, or, where they lie in one already, only told. `unpack` makes the object of it, on the very same memory.

Pure but for the memory: no thread, lock or clock. Both sides use it, each with the blocks that it knows.
"""

from __future__ import annotations

import pickle
import sys

from ._attempt import description

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from ._shm import Block, Mapped

    Place: TypeAlias = tuple[int, int, int]
    """Bytes in a block: its number, where they begin, how many they are."""

SMALL = 1 << 13
"""Bytes of the largest buffer that stays in the pickle: telling where it lies would cost more than copying it."""

INLINE = 1 << 15
"""Bytes of the largest pickle that stays in the message."""

ALIGNED = 64
"""Buffers begin at multiples of as many bytes."""


class Parcel:
    """A pickled object.

    Args:
        chunks: the pickle, if it stays in the message.
        head: else, where it lies.
        places: where the buffers lie, in order.
        views: of all blocks concerned, by number: as long as these are kept, the blocks are not used again.
    """

    __slots__ = ("chunks", "copied", "head", "passed", "places", "size", "views")

    chunks: Sequence[Any]
    head: Place | None
    places: list[Place]
    views: dict[int, tuple[Block, memoryview]]
    size: int
    """Bytes, in the message and in blocks."""
    copied: int
    """Buffers that were copied into a block."""
    passed: int
    """Buffers that lay in one."""

    def clear(self) -> None:
        """It has arrived: let blocks be used again, whoever still refers to this."""
        self.views.clear()
        self.chunks = ()


class Unpackable(Exception):
    """Something cannot be pickled; `__cause__` says what."""


class Unreadable(TypeError):
    """What came from another process cannot be unpickled; `__cause__` says why.

    Args:
        said: what, and why.
        pickled: it, and its buffers, where it came to; `None` elsewhere. To be forgotten once it is of no use.
    """

    def __init__(self, said: str, pickled: tuple[memoryview, list[memoryview]] | None = None) -> None:
        super().__init__(said)
        self.pickled = pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class NotSent(Exception):
    """A handler's output is no batch of results, nor can it be pickled.

    Args:
        kind: the name of its type.
        reason: why it cannot be.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason


class _Chunks(list):  # type: ignore[type-arg]
    """What a pickler writes, as it comes: large strings and bytes as they are, without a copy."""

    write = list.append


class _Pickler(pickle.Pickler):
    shared = True

    def reducer_override(self, thing: Any) -> Any:
        kind = type(thing)
        if kind is memoryview:
            whole = thing if thing.c_contiguous else memoryview(thing.tobytes()).cast("B")
            flat = whole.cast("B") if whole.nbytes else memoryview(b"")
            return _view, (pickle.PickleBuffer(flat), thing.format, thing.shape)
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind is numpy.ndarray and not (self.shared or thing.flags.writeable):
            return thing.copy().__reduce_ex__(5)  # else it would be read-only there, too
        torch = sys.modules.get("torch")
        if torch is not None and kind is torch.Tensor and _is_plain(thing, torch):
            flat = thing.detach().reshape(-1).view(torch.uint8).numpy()
            return _tensor, (pickle.PickleBuffer(flat), thing.dtype, tuple(thing.shape))
        return NotImplemented


def _view(buffer: Any, format: str, shape: tuple[int, ...]) -> memoryview:
    flat = memoryview(buffer)
    return flat if (format, shape) == ("B", (flat.nbytes,)) or not flat.nbytes else flat.cast(format, shape)  # type: ignore[call-overload]


def _is_plain(tensor: Any, torch: Any) -> bool:
    return bool(
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and tensor.numel()
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _tensor(buffer: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    import warnings
    from importlib import import_module

    torch: Any = import_module("torch")
    with warnings.catch_warnings():  # torch knows no memory that may not be written to, and says so
        warnings.simplefilter("ignore")
        return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def pack(
    thing: object,
    mapped: Mapped,
    take: Callable[[int], tuple[Block, memoryview]],
    shared: bool = True,
    fresh: tuple[Block, memoryview] | None = None,
) -> Parcel:
    """Pickle an object, for a process that shares blocks with this one.

    Args:
        thing: the object.
        mapped: blocks that are known to both.
        take: gives a block of so many bytes.
        shared: whether buffers that lie in a block may stay there; else they are copied like others.
        fresh: a block in which they may in any case.

    Raises:
        Unpackable: the object cannot be pickled.
        Exception: what `take` raises.
    """
    parcel = Parcel()
    parcel.places, parcel.views, parcel.size, parcel.copied, parcel.passed = [], {}, 0, 0, 0
    found: list[tuple[int, memoryview]] = []  # to be copied: which of the places, and what
    needed = 0

    def outside(buffer: pickle.PickleBuffer) -> bool:
        nonlocal needed
        try:
            raw = buffer.raw()
        except BufferError:  # not in one piece
            return True
        if raw.nbytes < SMALL:
            return True
        parcel.size += raw.nbytes
        known = mapped.locate(raw)
        own = known is not None and fresh is not None and known[0] is fresh[0]
        if known is not None and (shared or own):
            block, offset = known
            parcel.places.append((block.number, offset, raw.nbytes))
            parcel.views.setdefault(block.number, (block, raw))
            parcel.passed += not own
        else:
            parcel.places.append((0, needed, raw.nbytes))
            found.append((len(parcel.places) - 1, raw))
            needed += -(-raw.nbytes // ALIGNED) * ALIGNED
        return False

    parcel.chunks = chunks = _Chunks()
    parcel.head = None
    pickler = _Pickler(chunks, 5, buffer_callback=outside)
    pickler.shared = shared
    try:
        pickler.dump(thing)
    except Exception as error:
        raise Unpackable(str(error)) from error
    length = sum(map(len, chunks))
    parcel.size += length
    inline = length <= INLINE
    if not found and inline:
        return parcel
    block, view = take(needed + (0 if inline else length))
    parcel.views[block.number] = block, view
    for index, raw in found:
        _, offset, size = parcel.places[index]
        view[offset : offset + size] = raw
        parcel.places[index] = block.number, offset, size
    parcel.copied = len(found)
    if not inline:
        parcel.chunks, parcel.head = (), (block.number, needed, length)
        for chunk in chunks:
            view[needed : needed + len(chunk)] = chunk
            needed += len(chunk)
    return parcel


def parts(thing: object) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """An object pickled as `pack` does it, but for where its buffers lie: these are its own memory.

    Raises:
        Unpackable: it cannot be pickled.
    """
    chunks = _Chunks()
    buffers: list[pickle.PickleBuffer] = []
    try:
        _Pickler(chunks, 5, buffer_callback=buffers.append).dump(thing)
    except Exception as error:
        raise Unpackable(str(error)) from error.with_traceback(None)
    return b"".join(chunks), buffers


def unpack(
    inline: memoryview,
    head: Place | None,
    places: Sequence[Place],
    view: Callable[[int, int, int], memoryview],
    failure: str = "the answer of a child process cannot be read",
) -> Any:
    """The object that was pickled.

    Args:
        inline: the pickle, if it came in the message.
        head, places: as of `Parcel`.
        view: gives the bytes in a block; what is made of them lies there.
        failure: what is to be said if it cannot be unpickled.

    Raises:
        Unreadable: it cannot be unpickled here.
        MemoryError: there is no memory for it.
        Exception: what `view` raises, or what interrupts it.
    """
    data, buffers = inline if head is None else view(*head), [view(*place) for place in places]
    try:
        return pickle.loads(data, buffers=buffers)
    except MemoryError:  # no fault of what came
        raise
    except Exception as error:
        if _can_be_read(data, buffers):  # it was interrupted, by a signal handler's exception
            raise
        raise Unreadable(f"{failure}: {description(error)}", (data, buffers)) from error
    finally:
        del data, buffers  # a traceback refers to this frame


def _can_be_read(data: memoryview, buffers: Sequence[memoryview]) -> bool:
    try:
        pickle.loads(data, buffers=buffers)
    except Exception:
        return False
    return True
