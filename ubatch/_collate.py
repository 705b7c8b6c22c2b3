"""From examples to one batch of arrays, and from a handler's output back to one result for each example.

Pure: array functions alone; no thread, lock or clock. One `Collator` may be used by several threads at once.

Which examples fit together. An example is a dictionary of arrays, by feature. Two can be stacked if they have the same
features, each with the same library, dtype, device, number of axes and, along the axes that are not padded, size. What
is not like that is never cast, cut or padded to fit. All of it but the sizes is an example's `form`; what is of another
form goes in a batch of its own. What is of another size does so, too, or is one of the `misfits` of its batch.

Memory. Each batch is filled once, row after row, in one pass. The blocks it lies in are used again when nothing can
reach them any more, and that is known, not assumed: as long as an array, a tensor, a view of one, or anything else that
was made from them without a copy is alive, the block is exported (PEP 3118) and Python refuses to resize it. So memory
is used again exactly where it would have been freed, and a result, or what a handler keeps, never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter

from ._arrays import LIBRARIES, Device, library_for, library_of
from ._blocks import Blocks, no_blocks
from ._pad import LEFT, RIGHT, Padding, checked_axes, checked_tokens, checked_unpad
from .errors import BadBatchOutputSize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from typing import Any

    from ._arrays import Array


ERROR, APART = "error", "apart"


class Example(dict[str, "Array"]):
    """The arrays of one example by feature, without the batch axis; each has a shape of its own."""

    __slots__ = ("form", "key", "outline")

    form: Hashable
    """Examples of one form may share a batch."""
    outline: tuple[tuple[int | None, ...], ...]
    """The sizes of its features, in order of their names; `None` in place of what is padded."""
    key: Hashable
    """Examples of one key share batches: the form, and what the caller asked for."""


class Collator:
    """Stacks examples, and splits what the handler makes of them; see the head of the file.

    Args:
        pad_tokens: by feature, what it is padded with; a feature without one is not padded.
        padding_side: "right" or "left" of the data.
        pad_to: a batch has a multiple of this size along padded axes.
        pad_axis: the axis or axes of an example along which it is padded; or these by feature.
        unequal: "apart" if sizes that differ are part of the form, so that they share no batch; "error" if not.
        lengths: under this name the handler gets the true sizes; `None` for not at all.
        unpad: the feature of whose padding the outputs are to be freed; or these by output.
        reuse: whether the memory of batches is used again.
        device: where batches are to be, as tensors; `None` for where the examples are.

    Raises:
        TypeError, ValueError: an argument is not as described; the message has its value.
    """

    def __init__(
        self,
        pad_tokens: Mapping[str, Any] | None = None,
        padding_side: str = RIGHT,
        pad_to: int = 1,
        pad_axis: int | Sequence[int] | Mapping[str, int | Sequence[int]] = 0,
        unequal: str = ERROR,
        lengths: str | None = None,
        unpad: str | Mapping[str | int, str] | None = None,
        reuse: bool = True,
        device: Any = None,
    ) -> None:
        tokens = checked_tokens(pad_tokens)
        if padding_side not in (RIGHT, LEFT):
            raise ValueError(f"padding_side must be 'right' or 'left', not {padding_side!r}")
        if isinstance(pad_to, bool) or not isinstance(pad_to, int):
            raise TypeError(f"pad_to must be an integer, not {pad_to!r}")
        if pad_to < 1:
            raise ValueError(f"pad_to must be at least 1, not {pad_to!r}")
        if unequal not in (ERROR, APART):
            raise ValueError(f"unequal must be 'error' or 'apart', not {unequal!r}")
        if lengths is not None and not isinstance(lengths, str):
            raise TypeError(f"lengths must be None or a name, not {lengths!r}")
        if not isinstance(reuse, bool):
            raise TypeError(f"reuse must be True or False, not {reuse!r}")
        axes = checked_axes(pad_axis, tokens)
        self._paddings = {
            name: Padding(name, token, axes[name], pad_to, padding_side) for name, token in tokens.items()
        }
        self._apart = unequal == APART
        self._lengths = lengths
        self._unpad = checked_unpad(unpad, tokens)
        self._is_fresh = not reuse
        self._allocate = Blocks().take if reuse else no_blocks
        self._device = None if device is None else Device(device)

    @property
    def pads(self) -> bool:
        """Whether any feature is padded."""
        return bool(self._paddings)

    # -- examples -----------------------------------------------------------------------------------------

    def example(self, features: Mapping[str, Any]) -> Example:
        """One example, of arrays, tensors, lists or numbers, without the batch axis. Arrays are not copied.

        Raises:
            TypeError, ValueError: that is not what it is, or a dtype cannot represent its pad token. Names the feature.
        """
        if not isinstance(features, Mapping):
            raise TypeError(f"an example is a dictionary of arrays, not {features!r}")
        if not features:
            raise ValueError("an example must have at least one feature")
        example = Example()
        form: list[tuple[str, Hashable]] = []
        outlines: dict[str, tuple[int | None, ...]] = {}
        for name, value in features.items():
            if not isinstance(name, str) or name == self._lengths:
                raise TypeError(f"a feature cannot have the name {name!r}")
            try:
                library = library_for(value)
                example[name] = array = library.own(value)
                kind = library.kind(array)
                if isinstance(value, (list, tuple)) and 0 in array.shape:
                    raise ValueError("an empty list does not say its dtype; an empty array does")
                outline: tuple[int | None, ...] = array.shape
                padding = self._paddings.get(name)
                if padding is not None:
                    outline = padding.outline(array.shape)
                    padding.scalar(library, array)
                if self._device is not None:
                    self._device.check(array)
            except (TypeError, ValueError) as error:
                raise _about(name, error) from error
            form.append((name, (kind, outline if self._apart else len(outline))))
            outlines[name] = outline
        form.sort(key=itemgetter(0))
        example.form = example.key = tuple(form)
        example.outline = tuple([outlines[name] for name, _ in form])
        return example

    def weight(self, example: Example) -> int:
        """The padded size of an example: that of the feature of which it is the largest."""
        sizes = [padding.weight(example[name].shape) for name, padding in self._paddings.items() if name in example]
        return max(sizes, default=1)

    # -- batches ------------------------------------------------------------------------------------------

    def misfits(self, examples: Sequence[Example]) -> dict[int, ValueError]:
        """By position, why an example of a batch cannot be stacked with the first."""
        first = examples[0]
        outline = first.outline
        if self._apart or all(example.outline == outline for example in examples):
            return {}
        return {
            position: self._misfit(example, first)
            for position, example in enumerate(examples)
            if example.outline != outline
        }

    def _misfit(self, example: Example, first: Example) -> ValueError:
        names = sorted(example)
        name = next(name for name, own, its in zip(names, example.outline, first.outline, strict=True) if own != its)
        remedy = "pad_axis" if name in self._paddings else f"pad_tokens={{{name!r}: …}}"
        return ValueError(
            f"feature {name!r} of shape {tuple(example[name].shape)} cannot be stacked with one of shape "
            f"{tuple(first[name].shape)}, the first of its batch; {remedy} pads it, unequal='apart' keeps them apart"
        )

    def stack(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Examples of one form as one batch.

        Returns:
            By feature, an array of shape (n, *padded shape of an example). If asked for, also the true sizes: by
            padded feature, an int64 array of shape (n,), or (n, k) where k axes are padded.
        """
        batch: dict[str, Any] = {}
        for name in examples[0]:
            batch[name] = self._stacked(name, list(map(itemgetter(name), examples)))
        if self._lengths is not None:
            batch[self._lengths] = {
                name: self._sizes(padding, [example[name] for example in examples])
                for name, padding in self._paddings.items()
                if name in examples[0]
            }
        return batch

    def _stacked(self, name: str, rows: list[Array]) -> Array:
        first, padding = rows[0], self._paddings.get(name)
        library = library_for(first)
        filler, rows = library.plain(rows)
        shape = (len(rows), *(first.shape if padding is None else padding.shape(rows)))
        if self._device is None:
            batch = library.empty(shape, first, self._allocate)
            out = library.plain([batch])[1][0]
        else:
            out, batch = self._device.staged(shape, rows[0], first)
        if padding is not None:
            scalar = library.plain([padding.scalar(library, first)])[1][0]
            padding.fill(out, rows, scalar, filler, self._is_fresh)
        elif first.ndim == 0:
            filler.concatenate([row.reshape(1) for row in rows], out)
        else:
            filler.concatenate(rows, out.reshape(len(rows) * first.shape[0], *first.shape[1:]))
        return batch if self._device is None else self._device.moved(batch)

    def _sizes(self, padding: Padding, rows: list[Array]) -> Array:
        axes = padding.axes(rows[0].ndim)
        one = len(axes) == 1
        sizes = [row.shape[axes[0]] if one else [row.shape[axis] for axis in axes] for row in rows]
        if self._device is not None:
            return self._device.integers(sizes)
        return library_for(rows[0]).integers(sizes, rows[0])

    def split(self, output: Any, examples: Sequence[Example]) -> list[Any]:
        """What a handler made of a batch, as one result for each example; views where that is safe.

        Args:
            output: an array with the batch as first axis, or a dictionary, list or tuple of such.
            examples: the batch's.

        Raises:
            BadBatchOutputSize: it is not that.
            ValueError: what is to be freed from padding is not as large as that.
        """
        return self._split(output, examples, None)

    def _split(self, output: Any, examples: Sequence[Example], name: str | int | None) -> list[Any]:
        expected = len(examples)
        if isinstance(output, Mapping) and output:
            parts = [self._split(part, examples, key if name is None else name) for key, part in output.items()]
            return [dict(zip(output, row, strict=True)) for row in zip(*parts, strict=True)]
        if isinstance(output, (list, tuple)) and output:
            parts = [self._split(part, examples, key if name is None else name) for key, part in enumerate(output)]
            made = list if isinstance(output, list) else tuple
            return [made(row) for row in zip(*parts, strict=True)]
        shape = getattr(output, "shape", None)
        if shape is None or not hasattr(type(output), "dtype"):
            raise BadBatchOutputSize(expected, type(output).__name__)
        if len(shape) == 0 or shape[0] != expected:
            raise BadBatchOutputSize(expected, int(shape[0]) if len(shape) else f"0-d {type(output).__name__}")
        library = library_of(output)
        rows = list(output) if library is None else library.rows(output)
        feature = self._unpad.get(name, self._unpad.get(None)) if self._unpad else None
        return rows if feature is None else self._freed(feature, rows, examples)

    def _freed(self, feature: str, rows: list[Array], examples: Sequence[Example]) -> list[Array]:
        """Rows without the padding that they have as the feature had it."""
        if feature not in examples[0]:
            return rows
        padding = self._paddings[feature]
        inputs = [example[feature] for example in examples]
        full = padding.shape(inputs)
        axes = padding.axes(len(full))
        shape = getattr(rows[0], "shape", ())
        if not all(axis < len(shape) and shape[axis] == full[axis] for axis in axes):
            raise ValueError(f"an output of shape {(len(rows), *shape)} is not padded as {feature!r} is: (n, *{full})")
        return [row[padding.region(one.shape, full)] for row, one in zip(rows, inputs, strict=True)]


def rows_of(features: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Take apart a batch: arrays, or lists of arrays, with the batch as first axis. Views, no copies.

    Raises:
        TypeError, ValueError: there are no features or rows, or not as many rows of each.
    """
    if not isinstance(features, Mapping):
        raise TypeError(f"features must be a dictionary of arrays, not {features!r}")
    if not features:
        raise ValueError("there must be at least one feature")
    columns = {name: _column(name, value) for name, value in features.items()}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"features must have the same number of rows, not {counts}")
    if not all(counts.values()):
        raise ValueError("there must be at least one row")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def joined(results: Sequence[Any]) -> Any:
    """The results of several examples as one: arrays with the batch as first axis, in dictionaries, lists or tuples.

    Those of a single example are views of it.

    Raises:
        ValueError: they differ in shape, dtype or kind, as those of different batches may.
    """
    first = results[0]
    if isinstance(first, dict):
        _check_alike([tuple(result) if isinstance(result, dict) else type(result) for result in results])
        return {name: joined([result[name] for result in results]) for name in first}
    if isinstance(first, (list, tuple)):
        _check_alike([(type(result), len(result)) for result in results])
        return type(first)(joined(parts) for parts in zip(*results, strict=True))
    library = library_of(first)
    if library is None:
        return list(results)
    if len(results) == 1:
        return first.reshape(1, *first.shape)
    _check_alike([(tuple(row.shape), row.dtype) if library_of(row) is library else type(row) for row in results])
    return library.stack(results)


def _check_alike(kinds: Iterable[Any]) -> None:
    found = list(dict.fromkeys(kinds))
    if len(found) > 1:
        raise ValueError(f"the rows' results cannot be stacked, as they are not alike: {found[0]} and {found[1]}")


def _about(name: str, error: TypeError | ValueError) -> TypeError | ValueError:
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"feature {name!r}: {error}")


def _column(name: str, value: Any) -> Any:
    """The rows of a feature: lists stay lists, whose elements need not be of one length."""
    if isinstance(value, (list, tuple)):
        return value
    try:
        array = value if type(value) in LIBRARIES else library_for(value).own(value)
    except (TypeError, ValueError) as error:
        raise _about(name, error) from error
    if array.ndim == 0:
        raise ValueError(f"feature {name!r} has no batch axis: {value!r}")
    return [array[index, ...] for index in range(array.shape[0])]
