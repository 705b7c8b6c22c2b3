"""Arrays of numpy and tensors of torch under one set of names.

Pure: array functions alone. Nothing is imported for a value of a library's own; lists and numbers, which belong to
none, become arrays of numpy, or tensors of torch where there is no numpy.
"""

from __future__ import annotations

from functools import cache
from math import prod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from typing import Any, TypeAlias

    Array: TypeAlias = Any  # numpy.ndarray or torch.Tensor
    Shape: TypeAlias = tuple[int, ...]
    Allocate: TypeAlias = Callable[[int], memoryview | None]
    """Gives at least so many bytes that nothing else refers to; `None` for fresh memory of the library's own."""


class Numpy:
    """numpy's arrays.

    Args:
        numpy: the module.
    """

    def __init__(self, numpy: Any) -> None:
        self._numpy = numpy

    def own(self, value: Any) -> Array:
        """`value` as an array with a shape of its own; no copy is made of an array.

        Raises:
            TypeError, ValueError: it is none, or one with Python objects in it, or with a mask, which would be lost.
        """
        if type(value) is not self._numpy.ndarray:
            if isinstance(value, self._numpy.ma.MaskedArray):
                raise TypeError("a masked array would lose its mask")
            value = self._numpy.asarray(value)
        if value.dtype.hasobject:
            raise TypeError(f"an array of dtype {value.dtype} cannot be stacked in plain memory")
        return value.view()

    def kind(self, array: Array) -> Hashable:
        """What arrays that are stacked must have in common, beside the shape: the dtype, byte order included."""
        kind: Hashable = array.dtype
        return kind

    def plain(self, arrays: list[Array]) -> tuple[Numpy | Torch, list[Array]]:
        """The same memory as arrays of the library that is quickest at copying it, and that library."""
        return self, arrays

    def empty(self, shape: Shape, like: Array, allocate: Allocate) -> Array:
        """A contiguous array of that shape with the dtype of `like`; its content is undefined."""
        count = prod(shape)
        block = allocate(count * like.dtype.itemsize)
        if block is None:
            return self._numpy.empty(shape, like.dtype)
        # an array of frombuffer keeps the view, which is an export of the block, as long as anything refers to it
        return self._numpy.frombuffer(block, like.dtype, count).reshape(shape)

    def concatenate(self, arrays: Sequence[Array], out: Array) -> None:
        """Write arrays, one after the other along their first axis, into `out`."""
        self._numpy.concatenate(arrays, out=out)

    def stack(self, rows: Sequence[Array]) -> Array:
        """A new array of rows of one shape and dtype, and one more axis, the first."""
        return self._numpy.array(rows, rows[0].dtype) if rows[0].ndim == 0 else self._numpy.stack(rows)

    def scalar(self, number: Any, like: Array) -> Array:
        """A 0-d array of the dtype of `like`. Raises ValueError: the dtype cannot represent the number."""
        kind = like.dtype.kind
        if kind in "biufc" and (kind == "c" or not isinstance(number, complex)):
            with self._numpy.errstate(all="ignore"):
                try:
                    scalar = self._numpy.asarray(number).astype(like.dtype)
                except (TypeError, ValueError, OverflowError):  # some versions of numpy raise, some wrap around
                    scalar = None
            if scalar is not None and _represents(scalar.item(), number, kind in "fc"):
                return scalar
        raise ValueError(f"dtype {like.dtype} cannot represent the pad token {number!r}")

    def spread(self, scalar: Array, shape: Shape) -> Array:
        """An array of that shape, all of whose elements are the one of `scalar`; to be read only."""
        return self._numpy.ndarray(shape, scalar.dtype, scalar, 0, (0,) * len(shape))

    def integers(self, numbers: Sequence[Any], like: Array) -> Array:
        """An int64 array, where `like` is."""
        return self._numpy.array(numbers, self._numpy.int64)

    def rows(self, batch: Array) -> list[Array]:
        """The rows as views, but scalars if it is 1-d; as copies if all share one row's memory and may be written."""
        return list(batch.copy() if batch.strides[0] == 0 and batch.flags.writeable else batch)


class Torch:
    """torch's tensors, on any device.

    Args:
        torch: the module.
    """

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        words = {1: torch.int8, 2: torch.int16, 4: torch.int32}
        numpy_lacks = [
            dtype
            for name, dtype in vars(torch).items()
            if name.startswith(("bfloat", "float8", "complex32", "uint16", "uint32")) and hasattr(dtype, "itemsize")
        ]
        self._words = {dtype: words[dtype.itemsize] for dtype in numpy_lacks}

    def own(self, value: Any) -> Array:
        """`value` as a tensor with a shape of its own, without gradient; no copy is made of a tensor.

        Raises:
            TypeError, ValueError: it is none, or a sparse, quantized or nested one.
        """
        if not isinstance(value, self._torch.Tensor):
            value = self._torch.as_tensor(value)
        if value.layout is not self._torch.strided or value.is_quantized or value.is_nested:
            raise TypeError(f"a tensor of layout {value.layout}, dtype {value.dtype} cannot be stacked")
        return value.detach().resolve_conj().resolve_neg()

    def kind(self, array: Array) -> Hashable:
        """What tensors that are stacked must have in common, beside the shape: dtype and device."""
        return array.dtype, array.device

    def plain(self, arrays: list[Array]) -> tuple[Numpy | Torch, list[Array]]:
        """The same memory as arrays of the library that is quickest at copying it, and that library."""
        first = arrays[0]
        if first.device.type != "cpu" or _numpy() is None:
            return self, arrays
        words = self._words.get(first.dtype)
        if words is not None:
            arrays = [tensor.view(words) for tensor in arrays]
        return _libraries(Numpy), [tensor.numpy() for tensor in arrays]

    def empty(self, shape: Shape, like: Array, allocate: Allocate) -> Array:
        """A contiguous tensor of that shape with the dtype and on the device of `like`; its content is undefined."""
        size = prod(shape) * like.element_size()
        block = allocate(size) if like.device.type == "cpu" and _numpy() is not None else None
        if block is None:
            return self._torch.empty(shape, dtype=like.dtype, device=like.device)
        # through numpy, as torch.frombuffer keeps the block alive without being an export of it
        octets = _numpy().frombuffer(block, "u1", size)
        return self._torch.from_numpy(octets).view(like.dtype).view(shape)

    def concatenate(self, arrays: Sequence[Array], out: Array) -> None:
        """Write tensors, one after the other along their first axis, into `out`."""
        self._torch.cat(arrays, out=out)

    def stack(self, rows: Sequence[Array]) -> Array:
        """A new tensor of rows of one shape and dtype, and one more axis, the first."""
        return self._torch.stack(rows)

    def scalar(self, number: Any, like: Array) -> Array:
        """A 0-d tensor of the dtype of `like`. Raises ValueError: the dtype cannot represent the number."""
        try:
            scalar = self._torch.full((), number, dtype=like.dtype)
        except (TypeError, ValueError, RuntimeError):
            scalar = None
        is_inexact = like.dtype.is_floating_point or like.dtype.is_complex
        if scalar is None or not _represents(scalar.item(), number, is_inexact):
            raise ValueError(f"dtype {like.dtype} cannot represent the pad token {number!r}")
        return scalar.to(like.device)

    def spread(self, scalar: Array, shape: Shape) -> Array:
        """A tensor of that shape, all of whose elements are the one of `scalar`; to be read only."""
        return scalar.expand(shape)

    def integers(self, numbers: Sequence[Any], like: Array) -> Array:
        """An int64 tensor, where `like` is."""
        return self._torch.tensor(numbers, dtype=self._torch.int64, device=like.device)

    def rows(self, batch: Array) -> list[Array]:
        """The rows as views; as copies if all share one row's memory."""
        return list(batch.clone() if batch.stride(0) == 0 else batch)


def _represents(found: Any, wanted: Any, is_inexact: bool) -> bool:
    """Whether a dtype's version of a number is that number: rounded at most, if the dtype is an inexact one."""
    if not is_inexact or found == wanted or wanted != wanted:
        return bool(found == wanted or (is_inexact and found != found))
    return bool(abs(found - wanted) <= abs(wanted) / 4)  # float8 has three bits or so; an overflow is infinitely far


LIBRARIES: dict[type, Numpy | Torch] = {}
"""By the class of an array, for those classes that values have been of: `numpy.ndarray`, `torch.Tensor`."""

_CLASSES = {("numpy", "ndarray"): Numpy, ("numpy", "generic"): Numpy, ("torch", "Tensor"): Torch}


def library_of(value: Any) -> Numpy | Torch | None:
    """The library that an array or a scalar is of; `None` if it is neither's."""
    found = LIBRARIES.get(type(value))
    if found is not None:
        return found
    for one in type(value).__mro__:
        kind = _CLASSES.get((one.__module__, one.__name__))
        if kind is not None:
            found = _libraries(kind)
            if one is type(value):
                LIBRARIES[one] = found
            return found
    return None


def library_for(value: Any) -> Numpy | Torch:
    """The library of an array, or the one that makes an array of a list, a number or another's array.

    Raises:
        TypeError: it is nothing that arrays are made of.
        ImportError: there is neither numpy nor torch.
    """
    found = library_of(value)
    if found is not None:
        return found
    if not isinstance(value, (list, tuple, int, float, complex)) and not hasattr(type(value), "__array__"):
        raise TypeError(f"an array, a list or a number, not {value!r}")
    return _libraries(Torch if _numpy() is None else Numpy)


@cache
def _libraries(kind: type[Numpy] | type[Torch]) -> Numpy | Torch:
    if kind is Numpy:
        import numpy

        return Numpy(numpy)
    return Torch(_torch())


def _torch() -> Any:
    """The module. Raises ImportError: it is not installed."""
    from importlib import import_module

    return import_module("torch")


@cache
def _numpy() -> Any:
    """The module; `None` if it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


class Device:
    """Where batches are to be: tensors, copied there at once, from pinned memory if it is a GPU.

    Args:
        device: what `torch.device` takes.

    Raises:
        ImportError: there is no torch.
        RuntimeError: torch does not know the device.
    """

    def __init__(self, device: Any) -> None:
        self._torch = _torch()
        self._device = self._torch.device(device)

    def check(self, array: Array) -> None:
        """Raises TypeError, ValueError: torch has no such dtype."""
        if not isinstance(array, self._torch.Tensor):
            self._torch.from_numpy(_numpy().empty(0, array.dtype))

    def staged(self, shape: Shape, like: Array, origin: Array) -> tuple[Array, Array]:
        """Memory for a batch on its way: as an array of the library of `like`, to be filled, and as a tensor.

        torch keeps pinned memory for the next batch, once what is copied from it has arrived.

        Args:
            like, origin: an example's array, plain and as it is.
        """
        pinned = self._device.type == "cuda"
        if not isinstance(origin, self._torch.Tensor):
            tensor = self._torch.from_numpy(_numpy().empty(0, origin.dtype))
            tensor = self._torch.empty(shape, dtype=tensor.dtype, pin_memory=pinned)
            return tensor.numpy(), tensor
        pinned = pinned and origin.device.type == "cpu"
        tensor = self._torch.empty(shape, dtype=origin.dtype, device=origin.device, pin_memory=pinned)
        return _libraries(Torch).plain([tensor])[1][0], tensor

    def moved(self, tensor: Array) -> Array:
        """The tensor, there."""
        return tensor.to(self._device, non_blocking=True)

    def integers(self, numbers: Sequence[Any]) -> Array:
        """An int64 tensor, there."""
        return self._torch.tensor(numbers, dtype=self._torch.int64, device=self._device)
