"""Arrays that are alike, as one array in shared memory."""

from __future__ import annotations

from ._parcels import SMALL
from ._shm import pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._shm import Block


def stack(arrays: Sequence[Any]) -> tuple[Any, tuple[Block, memoryview] | None]:
    """Stack arrays in a block; not those that lie there one after another, which are looked at as one.

    Args:
        arrays: at least one, of numpy, or what numpy makes arrays of.

    Returns:
        An array of shape (n, …), and the block that was taken for it, with a view of it, if there was one.

    Raises:
        TypeError, ValueError: as of `alike`.
        OSError: there is no memory.
    """
    import numpy

    given = alike(arrays)
    first = given[0]
    size = first.nbytes * len(given)
    if size < SMALL or first.dtype.hasobject:
        return numpy.stack(given), None
    shape = (len(given), *first.shape)
    place = _place(given)
    if place is not None:
        return numpy.ndarray(shape, first.dtype, pool.view(*place)), None
    block, view = pool.take(size)
    stacked: Any = numpy.ndarray(shape, first.dtype, view[:size])
    for number, array in enumerate(given):
        stacked[number, ...] = array
    return stacked, (block, view)


def alike(arrays: Sequence[Any]) -> list[Any]:
    """Arrays as they are stacked, all of numpy.

    Raises:
        TypeError: one cannot be stacked, see `as_array`.
        ValueError: they differ in shape or dtype, or there is none.
    """
    given = [as_array(array) for array in arrays]
    if not given:
        raise ValueError("there are no arrays to stack")
    first = given[0]
    for array in given:
        if array.shape != first.shape or array.dtype != first.dtype:
            raise ValueError(
                f"arrays that are stacked must be alike; one is {array.dtype} of shape {array.shape}, another "
                f"{first.dtype} of shape {first.shape}"
            )
    return given


def as_array(given: Any) -> Any:
    """What is to be stacked, as an array of numpy.

    Raises:
        TypeError: some of it would be lost: it has a mask, or numpy makes another thing of it.
        Exception: what its type raises of which numpy cannot make an array.
    """
    import numpy

    if type(given) is numpy.ndarray:
        return given
    if isinstance(given, numpy.ma.MaskedArray):
        raise TypeError("arrays with masks cannot be stacked: pass data and mask on their own")
    array = numpy.asarray(given)
    if array.shape != tuple(getattr(given, "shape", array.shape)):
        raise TypeError(f"a {type(given).__name__} cannot be stacked: numpy makes no array of its shape of it")
    return array


def _place(arrays: Sequence[Any]) -> tuple[int, int, int] | None:
    """Where they lie one after another; `None` if they do not."""
    first = arrays[0]
    if not first.flags.c_contiguous:
        return None
    address = first.__array_interface__["data"][0]
    for array in arrays:
        if array.__array_interface__["data"][0] != address or not array.flags.c_contiguous:
            return None
        address += first.nbytes
    size = first.nbytes * len(arrays)
    found = pool.find(address - size, size)
    return None if found is None else (found[0].number, found[1], size)
