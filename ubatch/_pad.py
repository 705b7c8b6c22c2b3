"""How a feature is padded, and what options of padding must be.

Pure: no thread, lock or clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from numbers import Number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from typing import Any

    from ._arrays import Array, Numpy, Shape, Torch

    Region = tuple[slice, ...]

RIGHT, LEFT = "right", "left"


class Padding:
    """How one feature is padded.

    Args:
        name: of the feature.
        token: what it is padded with.
        axes: of an example, those along which it is padded; negative ones count from the last.
        multiple: along these, a batch has a multiple of this size.
        side: "right": padding comes after the data. "left": before.
    """

    KNOWN = 1024
    """Sizes of padding to remember, for each kind and shape."""

    def __init__(self, name: str, token: Any, axes: tuple[int, ...], multiple: int, side: str) -> None:
        self._name = name
        self._token = token
        self._given = axes
        self._multiple = multiple
        self._left = side == LEFT
        self._axes: dict[int, tuple[int, ...]] = {}  # by number of axes
        self._scalars: dict[Hashable, Array] = {}  # by kind of array
        self._known: dict[Hashable, dict[int, Array]] = {}  # by kind and shape, and by size: what goes between rows

    def axes(self, ndim: int) -> tuple[int, ...]:
        """The padded axes of an example with `ndim` axes, in order. Raises ValueError: it has no such axis."""
        found = self._axes.get(ndim)
        if found is None:
            if not all(-ndim <= axis < ndim for axis in self._given):
                raise ValueError(
                    f"feature {self._name!r} is padded along {self._given}, and cannot have {ndim} axes alone"
                )
            found = self._axes[ndim] = tuple(sorted({axis % ndim for axis in self._given}))
        return found

    def outline(self, shape: Shape) -> tuple[int | None, ...]:
        """The shape, `None` in place of what is padded."""
        axes = self.axes(len(shape))
        return tuple([None if axis in axes else size for axis, size in enumerate(shape)])

    def scalar(self, library: Numpy | Torch, like: Array) -> Array:
        """The token, 0-d. Raises ValueError: the dtype of `like` cannot represent it."""
        kind = library.kind(like)
        scalar = self._scalars.get(kind)
        if scalar is None:
            scalar = self._scalars[kind] = library.scalar(self._token, like)
        return scalar

    def padded(self, size: int) -> int:
        """What a size becomes along a padded axis."""
        return -(-size // self._multiple) * self._multiple

    def weight(self, shape: Shape) -> int:
        """The padded size of an example, along the padded axes."""
        return prod([self.padded(shape[axis]) for axis in self.axes(len(shape))])

    def shape(self, rows: Sequence[Array]) -> Shape:
        """What the shape of each of some examples becomes in one batch."""
        shape = tuple(rows[0].shape)
        axes = self.axes(len(shape))
        if axes == (0,):
            return (self.padded(max(map(len, rows))), *shape[1:])
        return tuple(
            self.padded(max([row.shape[axis] for row in rows])) if axis in axes else size
            for axis, size in enumerate(shape)
        )

    def fill(self, out: Array, rows: Sequence[Array], scalar: Array, library: Numpy | Torch, is_fresh: bool) -> None:
        """Write rows, and padding around them, into `out`, of shape (number of rows, *padded shape).

        Args:
            out, rows, scalar: of the library; `scalar` is what to pad with.
            is_fresh: whether the memory was never written to. The system maps it page by page, which is quicker in one
                go, with padding, than between rows. Else everything is written once.
        """
        shape = out.shape[1:]
        if is_fresh:
            out[...] = scalar
        if self.axes(len(shape)) == (0,):
            self._fill_first(out, rows, scalar, library, is_fresh)
            return
        for place, row in zip(out, rows, strict=True):
            inside: list[slice] = []
            for axis, size in enumerate(row.shape):
                region, beyond = self._cut(size, shape[axis])
                if size < shape[axis] and not is_fresh:  # one slab for each axis, so that nothing is written twice
                    inside.append(beyond)
                    place[tuple(inside)] = scalar
                    inside.pop()
                inside.append(region)
            place[tuple(inside)] = row

    def _fill_first(
        self, out: Array, rows: Sequence[Array], scalar: Array, library: Numpy | Torch, is_fresh: bool
    ) -> None:
        """The same, padded along the first axis alone, in as few steps of Python as can be."""
        width, rest = out.shape[1], out.shape[2:]
        if not is_fresh:  # rows are contiguous in `out`, as is the padding between them
            parts: list[Any] = [None] * (2 * len(rows))
            parts[self._left :: 2] = rows
            parts[not self._left :: 2] = self._gaps([width - size for size in map(len, rows)], rest, scalar, library)
            library.concatenate(parts, out.reshape(len(rows) * width, *rest))
        elif self._left:
            for place, row in zip(out, rows, strict=True):
                place[width - len(row) :] = row
        else:
            for place, row in zip(out, rows, strict=True):
                place[: len(row)] = row

    def _gaps(self, sizes: list[int], rest: Shape, scalar: Array, library: Numpy | Torch) -> list[Array]:
        """Padding of these sizes; the same arrays for the next batch, as they take no memory, but time to make."""
        kind = library.kind(scalar), rest
        known = self._known.get(kind, {})
        try:
            return [known[size] for size in sizes]
        except KeyError:
            # a fresh dictionary, as another thread may be reading this one
            known = {} if len(known) > self.KNOWN else dict(known)
            known.update({size: library.spread(scalar, (size, *rest)) for size in set(sizes)})
            self._known[kind] = known
            return [known[size] for size in sizes]

    def _cut(self, size: int, full: int) -> tuple[slice, slice]:
        """Where along an axis the data are, and where the padding is."""
        if self._left:
            return slice(full - size, full), slice(0, full - size)
        return slice(0, size), slice(size, full)

    def region(self, shape: Shape, full: Shape) -> Region:
        """Where in a row of shape `full` the data of an example are, up to the last padded axis."""
        last = self.axes(len(shape))[-1]
        return tuple(self._cut(shape[axis], full[axis])[0] for axis in range(last + 1))


def checked_tokens(pad_tokens: Any) -> dict[str, Any]:
    """Raises TypeError: they are not numbers by feature."""
    tokens = {} if pad_tokens is None else pad_tokens
    if not isinstance(tokens, Mapping) or not all(
        isinstance(name, str) and isinstance(token, Number) for name, token in tokens.items()
    ):
        raise TypeError(f"pad_tokens must be a dictionary of numbers by feature, not {pad_tokens!r}")
    return dict(tokens)


def checked_axes(pad_axis: Any, tokens: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The axes of each feature. Raises TypeError, ValueError: they are not integers, or of a feature without token."""
    by_feature = pad_axis if isinstance(pad_axis, Mapping) else dict.fromkeys(tokens, pad_axis)
    unknown = [name for name in by_feature if name not in tokens]
    if unknown:
        raise ValueError(f"pad_axis has {unknown}, which pad_tokens has not")
    found = {name: _several(by_feature.get(name, 0)) for name in tokens}
    if not isinstance(pad_axis, Mapping):
        _several(pad_axis)
    return found


def _several(axes: Any) -> tuple[int, ...]:
    several = tuple(axes) if isinstance(axes, (list, tuple)) else (axes,)
    if not several or not all(isinstance(axis, int) and not isinstance(axis, bool) for axis in several):
        raise TypeError(f"pad_axis must be an axis of an example, or several, not {axes!r}")
    return several


def checked_unpad(unpad: Any, tokens: Mapping[str, Any]) -> dict[str | int | None, str]:
    """The features by output, or that of all, under `None`. Raises ValueError: they have no token."""
    if unpad is None:
        return {}
    found: dict[str | int | None, str] = dict(unpad) if isinstance(unpad, Mapping) else {None: unpad}
    for feature in found.values():
        if not isinstance(feature, str) or feature not in tokens:
            raise ValueError(f"unpad must name a feature that pad_tokens has, not {feature!r}")
    return found
