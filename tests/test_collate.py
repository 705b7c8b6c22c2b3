"""`_collate`: examples of any shape and dtype, stacked, padded and split, beside the plainest way to do it."""

from __future__ import annotations

import gc
import math
import threading
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubatch import _arrays
from ubatch._blocks import LARGE, Blocks
from ubatch._collate import Collator, joined, rows_of
from ubatch._pad import Padding
from ubatch.errors import BadBatchOutputSize

np = pytest.importorskip("numpy")
try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")

LIBRARIES = ["numpy", pytest.param("torch", marks=needs_torch)]

DTYPES = [
    *("?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">i8", "<f2", ">f2", "<f4", "<f8", ">f8", "<c8", ">c16"),
    *("<M8[s]", "<m8[ms]", "S3", "<U2"),
]


def array(shape, dtype, seed=0):
    """Bytes of all kinds, as an array; none of them a NaN, so that arrays can be compared."""
    dtype = np.dtype(dtype)
    numbers = np.random.default_rng(seed).integers(0, 2 if dtype.kind == "b" else 100, shape)
    return numbers.astype(str).astype(dtype) if dtype.kind in "SU" else numbers.astype(dtype)


def padded_plainly(rows, token, axes, side, multiple):
    """What `stack` is to make of one feature: one element after the other."""
    axes = {axis % rows[0].ndim for axis in axes} if rows[0].ndim else set()
    shape = []
    for axis in range(rows[0].ndim):
        most = max(row.shape[axis] for row in rows)
        shape.append(math.ceil(most / multiple) * multiple if axis in axes else most)
    out = np.empty((len(rows), *shape), rows[0].dtype)
    for place, row in enumerate(rows):
        for index in np.ndindex(*shape):
            origin = [
                i - (full - size) * (side == "left") for i, size, full in zip(index, row.shape, shape, strict=True)
            ]
            inside = all(0 <= i < size for i, size in zip(origin, row.shape, strict=True))
            out[(place, *index)] = row[tuple(origin)] if inside else token
    return out


@st.composite
def disguised(draw, plain):
    """The same array, laid out in another way in memory."""
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only"]))
    if layout == "F":
        return np.asfortranarray(plain)
    if layout == "strided" and plain.ndim:
        wide = np.repeat(plain, 2, axis=-1)
        return wide[..., ::2]
    if layout == "reversed" and plain.ndim:
        return plain[::-1].copy()[::-1]
    plain = plain.copy()
    plain.flags.writeable = layout != "read-only"
    return plain


@st.composite
def batches(draw):
    """Options of padding, and examples that fit together."""
    ndim = draw(st.integers(1, 3))
    axes = tuple(draw(st.sets(st.integers(-ndim, ndim - 1), min_size=1, max_size=ndim)))
    dtype = draw(st.sampled_from(DTYPES[:16]))
    fixed = draw(st.lists(st.integers(0, 3), min_size=ndim, max_size=ndim))
    real = {axis % ndim for axis in axes}
    rows = []
    for number in range(draw(st.integers(1, 5))):
        shape = [draw(st.integers(0, 4)) if axis in real else fixed[axis] for axis in range(ndim)]
        rows.append(draw(disguised(array(shape, dtype, number))))
    token = draw(st.sampled_from([0, 1]))
    side = draw(st.sampled_from(["left", "right"]))
    return rows, token, axes, side, draw(st.integers(1, 4))


@settings(deadline=None, max_examples=300)
@given(batches(), st.booleans())
def test_padding_is_what_the_plainest_way_gives(batch, reuse):
    """Any axes, either side, any multiple, any layout in memory, nothing at all in it; and the dtype stays."""
    rows, token, axes, side, multiple = batch
    collator = Collator({"x": token}, side, multiple, axes, lengths="n", reuse=reuse)
    plain = padded_plainly(rows, token, axes, side, multiple)
    for _ in range(2):  # the second time in memory that was used
        examples = [collator.example({"x": row}) for row in rows]
        assert len({example.form for example in examples}) == 1
        stacked = collator.stack(examples)
        assert stacked["x"].dtype == rows[0].dtype
        assert stacked["x"].flags.c_contiguous and stacked["x"].flags.writeable
        np.testing.assert_array_equal(stacked["x"], plain)
        real = sorted({axis % rows[0].ndim for axis in axes})
        sizes = [[row.shape[axis] for axis in real] for row in rows]
        np.testing.assert_array_equal(stacked["n"]["x"], [one[0] for one in sizes] if len(real) == 1 else sizes)
        assert stacked["n"]["x"].dtype == np.int64
        stacked["x"].fill(7 if stacked["x"].dtype.kind != "b" else 1)  # a handler may
        del stacked


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 3)], ids=str)
def test_stacking_keeps_dtypes_and_shapes(dtype, shape):
    """Also of what no padding is known for; byte order included."""
    collator = Collator()
    rows = [array(shape, dtype, seed) for seed in range(3)]
    stacked = collator.stack([collator.example({"x": row}) for row in rows])["x"]
    assert (stacked.dtype, stacked.shape) == (np.dtype(dtype), (3, *shape))
    np.testing.assert_array_equal(stacked, np.stack(rows))


TORCH_DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]
TORCH_DTYPES += ["complex64", "complex128", "float8_e4m3fn"]


@needs_torch
@pytest.mark.parametrize("name", TORCH_DTYPES)
@pytest.mark.parametrize("reuse", [True, False], ids=["reuse", "fresh"])
def test_tensors(name, reuse):
    """Padded and not, of any dtype, sliced, transposed, empty, without axes, with a gradient."""
    dtype = getattr(torch, name)
    collator = Collator({"x": 1, "grid": 0}, "left", pad_axis={"grid": (0, 1)}, reuse=reuse, lengths="n")
    lengths = [4, 0, 2]
    for _ in range(2):
        examples = []
        for length in lengths:
            x = torch.arange(2 * length).to(torch.float32).to(dtype)[::2]
            if name in ("float32", "complex64"):
                x = x.clone().requires_grad_()
            grid = torch.ones((3, length)).to(dtype).T
            examples.append(collator.example({"x": x, "grid": grid, "y": torch.ones(()).to(dtype)}))
        stacked = collator.stack(examples)
        assert all(stacked[key].dtype == dtype and not stacked[key].requires_grad for key in ("x", "grid", "y"))
        wanted = [[0, 2, 4, 6], [1, 1, 1, 1], [1, 1, 0, 2]]
        assert torch.equal(stacked["x"].to(torch.complex64), torch.tensor(wanted).to(dtype).to(torch.complex64))
        grid = torch.zeros(3, 4, 3)
        for row, length in zip(grid, lengths, strict=True):
            row[4 - length :] = 1
        assert torch.equal(stacked["grid"].to(torch.complex64), grid.to(torch.complex64))
        assert stacked["y"].shape == (3,)
        assert stacked["n"]["x"].tolist() == lengths and stacked["n"]["x"].dtype == torch.int64


@needs_torch
def test_tensors_that_are_a_view_with_a_sign_or_conjugated():
    """These are marks on a tensor, of which its memory knows nothing."""
    collator = Collator({"x": 0})
    number = torch.tensor([1 + 2j, 3 - 4j])
    rows = [number.conj(), number, number.conj().imag + 0j]
    stacked = collator.stack([collator.example({"x": row}) for row in rows])["x"]
    assert torch.equal(stacked, torch.stack([row.resolve_conj().resolve_neg() for row in rows]))


@needs_torch
def test_a_device():
    """Numpy's examples and torch's are copied there in one piece; what torch has no dtype for is the caller's error."""
    collator = Collator({"x": 0}, device="meta", lengths="n")
    for make in (np.arange, torch.arange):
        stacked = collator.stack([collator.example({"x": make(size)}) for size in (2, 5)])
        assert stacked["x"].device.type == stacked["n"]["x"].device.type == "meta"
        assert (stacked["x"].dtype, tuple(stacked["x"].shape)) == (torch.int64, (2, 5))
    with pytest.raises(ValueError, match=r"'x'.*byte order"):
        collator.example({"x": np.arange(3, dtype=">i8")})
    with pytest.raises(TypeError, match="'y'"):
        collator.example({"y": np.zeros(3, "M8[s]")})
    frozen = np.arange(3)
    frozen.flags.writeable = False
    there = Collator({"x": 9}, device="cpu")
    stacked = there.stack([there.example({"x": row}) for row in (frozen, [4])])["x"]
    assert torch.equal(stacked, torch.tensor([[0, 1, 2], [4, 9, 9]]))
    with pytest.raises(RuntimeError):
        Collator(device="nowhere")


@needs_torch
def test_torch_without_numpy(monkeypatch):
    """Lists become tensors then; all else is torch's own work."""
    monkeypatch.setattr(_arrays, "_numpy", lambda: None)
    collator = Collator({"x": 9}, "left", pad_axis=0, lengths="n")
    rows = [[1, 2], torch.tensor([3]), torch.tensor([[4, 4], [5, 5]])[:, 0]]
    for _ in range(2):
        stacked = collator.stack([collator.example({"x": row, "y": 1.5}) for row in rows])
        assert torch.equal(stacked["x"], torch.tensor([[1, 2], [9, 3], [4, 5]]))
        assert torch.equal(stacked["y"], torch.full((3,), 1.5))
        assert torch.equal(stacked["n"]["x"], torch.tensor([2, 1, 2]))


def test_threads_may_share_a_collator(hurry, monkeypatch):
    """What it remembers of padding is forgotten under the eyes of others, who do not notice."""
    monkeypatch.setattr(Padding, "KNOWN", 0)
    collator, wrong = Collator({"x": 0}), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(1000):
            rows = [np.full(size, seed + 1) for size in rng.integers(0, 100, 30)]
            stacked = collator.stack([collator.example({"x": row}) for row in rows])["x"]
            for found, row in zip(stacked, rows, strict=True):
                if not (found == (seed + 1) * (np.arange(len(found)) < len(row))).all():
                    wrong.append((seed, found, row))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert wrong == []


# -- what is of one form ----------------------------------------------------------------------------------


def differing():
    """Examples that must not share a batch with `{"x": int64 array of shape (3,), "y": …}`."""
    x, y = np.zeros(3, np.int64), np.zeros((3, 2), np.float32)
    yield "a dtype", {"x": x.astype(np.int32), "y": y}
    yield "a byte order", {"x": x.astype(">i8"), "y": y}
    yield "a list of floats", {"x": [0.0, 0.0, 0.0], "y": y}
    yield "a shape", {"x": x, "y": np.zeros((2, 2), np.float32)}
    yield "an axis that is not padded", {"x": x, "y": np.zeros((3, 3), np.float32)}
    yield "an axis more", {"x": x[None], "y": y}
    yield "a feature less", {"x": x}
    yield "a feature more", {"x": x, "y": y, "z": x}
    yield "another name", {"x": x, "Y": y}


@pytest.mark.parametrize("example", [pytest.param(one, id=name) for name, one in differing()])
def test_what_cannot_be_stacked_as_it_is_has_another_form(example):
    """It is neither cast nor cut to fit. The order of features makes no difference, and padding none."""
    collator = Collator({"x": 0}, unequal="apart")
    x, y = np.zeros(3, np.int64), np.zeros((3, 2), np.float32)
    form = collator.example({"x": x, "y": y}).form
    assert collator.example({"y": y, "x": np.zeros(7, np.int64)}).form == form
    assert collator.example({"x": [1, 2], "y": y}).form == form
    assert collator.example(example).form != form


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"x": np.zeros((2, 5)), "y": 1}, r"'x' of shape \(2, 5\).* shape \(3, 4\).*; pad_axis pads it"),
        ({"x": np.zeros((9, 4)), "y": [1, 2]}, "another form"),
        ({"x": np.zeros((9, 4)), "z": np.zeros(3), "y": 1}, "another form"),
        ({"x": np.zeros((9, 4)), "y": 1.0}, "another form"),
    ],
)
def test_sizes_that_differ_are_told(example, words):
    """What is of the same form but another size is a misfit, told with the remedy; padded sizes are none."""
    collator = Collator({"x": 0})
    first = collator.example({"x": np.zeros((3, 4)), "y": 1})
    other = collator.example(example)
    longer = collator.example({"x": np.zeros((7, 4)), "y": 2})
    if words == "another form":
        assert other.form != first.form
        return
    assert other.form == first.form
    misfits = collator.misfits([first, longer, other, longer])
    assert [*misfits] == [2]
    with pytest.raises(ValueError, match=words):
        raise misfits[2]
    bare = Collator()
    misfits = bare.misfits([bare.example({"x": np.zeros(size)}) for size in (3, 4, 3, 5)])
    assert [*misfits] == [1, 3]
    assert "pad_tokens={'x': …}" in str(misfits[1])


@needs_torch
def test_numpy_and_torch_are_two_forms():
    collator = Collator()
    assert collator.example({"x": np.zeros(3)}).form != collator.example({"x": torch.zeros(3).double()}).form


@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        ([1, 2], TypeError, "dictionary"),
        ({}, ValueError, "at least one"),
        ({1: [1]}, TypeError, "name 1"),
        ({"n": [1]}, TypeError, "name 'n'"),
        ({"x": "text"}, TypeError, "'x'.*'text'"),
        ({"x": None}, TypeError, "'x'.*None"),
        ({"x": object()}, TypeError, "'x'"),
        ({"x": []}, ValueError, "'x'.*empty list"),
        ({"x": [[1], [1, 2]]}, ValueError, "'x'"),
        ({"x": [10**30]}, TypeError, "'x'.*object"),
        ({"x": np.array([None])}, TypeError, "'x'.*object"),
        ({"x": np.ma.masked_array([1, 2], [0, 1])}, TypeError, "'x'.*mask"),
        ({"tokens": 3}, ValueError, "'tokens'"),
        ({"tokens": np.zeros(3, np.uint8)}, ValueError, "'tokens'.*uint8.*-100"),
        ({"tokens": np.zeros(3, bool)}, ValueError, "'tokens'.*bool.*-100"),
        ({"tokens": np.zeros(3, "M8[s]")}, ValueError, "'tokens'.*-100"),
    ],
    ids=str,
)
def test_what_is_no_example_says_why(features, error, words):
    """The feature and the value are in the message."""
    with pytest.raises(error, match=words):
        Collator({"tokens": -100}, lengths="n").example(features)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("token", "dtype", "fits"),
    [
        (0.5, "int64", False),
        (1e6, "float16", False),
        (0.1, "float16", True),
        (float("nan"), "float32", True),
        (float("nan"), "int32", False),
        (float("-inf"), "float32", True),
        (256, "uint8", False),
        (-1, "int8", True),
        (2, "bool", False),
        (True, "bool", True),
        (1j, "float32", False),
        (1j, "complex64", True),
        (2**40, "int32", False),
    ],
)
def test_a_pad_token_must_be_one_of_the_dtypes_values(library, token, dtype, fits):
    """Rounding is fine, wrapping around or running over is not."""
    collator = Collator({"x": token})
    values = np.zeros(2, dtype) if library == "numpy" else torch.zeros(2, dtype=getattr(torch, dtype))
    if not fits:
        with pytest.raises(ValueError, match="pad token"):
            collator.example({"x": values})
        return
    examples = [collator.example({"x": values}), collator.example({"x": values[:1]})]
    pad = collator.stack(examples)["x"][1, 1].item()
    assert pad == pytest.approx(token, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    "options",
    [
        {"pad_tokens": {"x": "0"}},
        {"pad_tokens": {"x": None}},
        {"pad_tokens": ["x"]},
        {"padding_side": "both"},
        {"pad_to": 0},
        {"pad_to": 2.0},
        {"pad_to": True},
        {"pad_axis": "0"},
        {"pad_axis": ()},
        {"pad_axis": {"x": 0}},
        {"lengths": 1},
        {"unpad": "x"},
        {"pad_tokens": {"x": 0}, "unpad": {"y": "z"}},
        {"reuse": 1},
    ],
    ids=str,
)
def test_wrong_options(options):
    """The message has the value, or the feature that is not there."""
    with pytest.raises((TypeError, ValueError), match=str(list(options.keys())[-1])):
        Collator(**options)


# -- memory -----------------------------------------------------------------------------------------------

HOLDS: dict[str, Any] = {
    "itself": lambda a: a,
    "a row": lambda a: a[0],
    "every other": lambda a: a[::2],
    "a view of a view": lambda a: a[1:][:, ::-1] if isinstance(a, np.ndarray) else a[1:][:, 1:],
    "another shape": lambda a: a.reshape(-1),
    "transposed": lambda a: a.T,
    "a memoryview": lambda a: memoryview(np.asarray(a)),
    "through numpy": lambda a: np.asarray(a),
    "other dtype": lambda a: a.view(np.int32 if isinstance(a, np.ndarray) else torch.int32),
    "dlpack": lambda a: np.from_dlpack(a),
    "a bytes-like": lambda a: memoryview(np.asarray(a)).cast("B")[8:16],
    "an object's attribute": lambda a: types.SimpleNamespace(row=a[1]).row,
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("width", [8, LARGE // 24 + 1])
@pytest.mark.parametrize("hold", HOLDS)
def test_memory_that_something_can_reach_is_not_used_again(library, hold, width):
    """What is kept of 100 batches (fewer large ones) stays as it was; once it is gone, its memory is used again."""
    count = 100 if width < 1000 else 5
    collator = Collator({"x": 0})

    def stacked(number):
        rows = [np.full(size, number) for size in (5, width, 3)]
        if library == "torch":
            rows = [torch.from_numpy(row) for row in rows]
        return collator.stack([collator.example({"x": row}) for row in rows])["x"]

    def copied(kept):
        return bytes(kept) if isinstance(kept, memoryview) else np.asarray(kept).copy()

    kept = [HOLDS[hold](stacked(number)) for number in range(count)]
    wanted = [copied(HOLDS[hold](stacked(number))) for number in range(count)]
    for one, other in zip(kept, wanted, strict=True):
        np.testing.assert_array_equal(copied(one), other)
    del kept, one
    gc.collect()
    where = {address(stacked(number)) for number in range(count)}
    assert len(where) <= Blocks.LIMIT


def address(batch):
    """Where it lies."""
    return batch.ctypes.data if isinstance(batch, np.ndarray) else batch.data_ptr()


@pytest.mark.parametrize("size", [1000, LARGE // 16])
@pytest.mark.parametrize("library", LIBRARIES)
def test_memory_is_used_again(library, size):
    """One block for batches that nobody keeps, small or large; fresh memory if that is asked for."""
    collator, row = Collator({"x": 0}), np.arange(size)
    example = collator.example({"x": row if library == "numpy" else torch.from_numpy(row)})
    assert len({address(collator.stack([example] * 4)["x"]) for _ in range(4)}) == 1
    kept = [collator.stack([example] * 4)["x"] for _ in range(3)]
    assert len({address(one) for one in kept}) == 3
    kept = [Collator({"x": 0}, reuse=False).stack([example])["x"] for _ in range(3)]
    assert len({address(one) for one in kept}) == 3


def test_blocks_are_lent_to_one_at_a_time(hurry):
    """Many threads take and return them; nobody finds another's mark in its own."""
    blocks, wrong, stop = Blocks(), [], threading.Event()

    def work(mark):
        while not stop.is_set():
            view = blocks.take(5000)
            view[:8] = mark
            if bytes(view[:8]) != mark:
                wrong.append(mark)
            view.release()

    threads = [threading.Thread(target=work, args=(bytes([n] * 8),)) for n in range(4)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    held = [blocks.take(5000) for _ in range(100)]
    assert len({id(view.obj) for view in held}) == 100
    assert all(len(known) <= Blocks.LIMIT for known in blocks._blocks.values())
    assert blocks.take(0) is None


def test_examples_keep_their_shape():
    """A caller that reshapes its array before the batch runs harms nobody."""
    collator, mine = Collator({"x": 0}), np.arange(6)
    examples = [collator.example({"x": mine}), collator.example({"x": np.arange(3)})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine.shape = (2, 3)
    assert collator.stack(examples)["x"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 0, 0]]


# -- splitting and joining --------------------------------------------------------------------------------


def examples(collator, count=3):
    """That many, of lengths 1, 2, …"""
    return [collator.example({"x": np.arange(size + 1)}) for size in range(count)]


@pytest.mark.parametrize("library", LIBRARIES)
def test_split(library):
    """Rows as views, in the structure of the output; scalars of one axis."""
    grid, line = np.arange(6.0).reshape(3, 2), np.arange(3)
    if library == "torch":
        grid, line = torch.from_numpy(grid), torch.from_numpy(line)
    collator = Collator()
    for output, row in [
        (grid, lambda i: grid[i]),
        ({"a": grid, "b": {"c": line}}, lambda i: {"a": grid[i], "b": {"c": line[i]}}),
        ([grid, line], lambda i: [grid[i], line[i]]),
        ((line, [grid]), lambda i: (line[i], [grid[i]])),
    ]:
        split = collator.split(output, examples(collator))
        assert [str(one) for one in split] == [str(row(i)) for i in range(3)]
        assert str(joined(split)) == str(output)
    rows = collator.split(grid, examples(collator))
    rows[1][0] = 99
    assert grid[1, 0] == 99
    one = joined(rows[:1])
    one[0, 0] = 77
    assert grid[0, 0] == 77, "a single row is a view"


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (None, "NoneType"),
        ({}, "dict"),
        ([], "list"),
        (np.float64(1), "0-d float64"),
        (np.zeros(()), "0-d ndarray"),
        (np.zeros((2, 3)), 2),
        (np.zeros((0,)), 0),
        ({"a": np.zeros(3), "b": np.zeros(4)}, 4),
        ([np.zeros(3), 5], "int"),
        ((np.zeros(3), None), "NoneType"),
        ("abc", "str"),
        ([1.0, 2.0, 3.0], "float"),
        (iter([1, 2, 3]), "list_iterator"),
    ],
    ids=str,
)
def test_a_bad_output(output, got):
    """It is told what came, and how many rows there should have been."""
    collator = Collator()
    with pytest.raises(BadBatchOutputSize) as caught:
        collator.split(output, examples(collator))
    assert (caught.value.expected, caught.value.got) == (3, got)


@pytest.mark.parametrize("library", LIBRARIES)
def test_rows_that_share_memory_are_copied(library):
    """What one caller does to its result is nobody else's business."""
    if library == "numpy":
        output = np.lib.stride_tricks.as_strided(np.zeros(4), (3, 4), (0, 8))
    else:
        output = torch.zeros(4).expand(3, 4)
    rows = Collator().split(output, examples(Collator()))
    rows[0][:] = 1
    assert [float(row.sum()) for row in rows] == [4, 0, 0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_unpad(side, library):
    """Each result as long as its example; only those outputs that are named."""
    inputs = [np.arange(1, size + 1) for size in (2, 4, 1)]
    if library == "torch":
        inputs = [torch.from_numpy(row) for row in inputs]
    for unpad, output, pick in [
        ("x", lambda x: x, lambda row: row),
        ({"all": "x"}, lambda x: {"all": x[..., None] * x[:, None], "one": x[:, 0]}, lambda row: row["all"][:, 0]),
        ({1: "x"}, lambda x: (x[:, 0], x), lambda row: row[1]),
    ]:
        collator = Collator({"x": 0}, side, pad_to=8, unpad=unpad)
        batch = [collator.example({"x": row}) for row in inputs]
        rows = collator.split(output(collator.stack(batch)["x"]), batch)
        assert [len(pick(row)) for row in rows] == [2, 4, 1]
    collator = Collator({"x": 0}, side, unpad="x")
    batch = [collator.example({"x": row}) for row in inputs]
    rows = collator.split(collator.stack(batch)["x"], batch)
    assert [row.tolist() for row in rows] == [[1, 2], [1, 2, 3, 4], [1]]
    for wrong in (np.zeros((3, 5)), np.zeros(3)):
        with pytest.raises(ValueError, match="not padded as 'x'"):
            collator.split(wrong, batch)


def test_unpad_several_axes():
    collator = Collator({"image": 0}, "left", pad_axis=(0, -2), unpad="image")
    inputs = [np.random.default_rng(seed).random((seed + 1, 4 - seed, 2)) for seed in range(3)]
    batch = [collator.example({"image": image}) for image in inputs]
    stacked = collator.stack(batch)["image"]
    assert stacked.shape == (3, 3, 4, 2)
    for row, image in zip(collator.split(stacked, batch), inputs, strict=True):
        np.testing.assert_array_equal(row, image)


def test_rows_of():
    """Arrays give views, lists their elements, which need not be alike."""
    x = np.arange(6).reshape(2, 3)
    rows = rows_of({"x": x, "ids": [[1, 2], [3]], "label": np.arange(2)})
    assert np.shares_memory(rows[1]["x"], x)
    assert rows[1]["ids"] == [3]
    assert rows[1]["label"].shape == ()
    for wrong, words in [
        ({}, "at least one feature"),
        ({"x": x[:0]}, "at least one row"),
        ({"x": x, "y": x[:1]}, "'x': 2, 'y': 1"),
        ({"x": np.float64(3)}, "'x' has no batch axis"),
    ]:
        with pytest.raises(ValueError, match=words):
            rows_of(wrong)
    for wrong in ([x], {"x": "ab"}, {"x": None}):
        with pytest.raises(TypeError):
            rows_of(wrong)


@pytest.mark.parametrize(
    "results",
    [
        [np.zeros(3), np.zeros(2)],
        [np.zeros(3), np.zeros(3, np.int64)],
        [{"a": np.zeros(1)}, {"b": np.zeros(1)}],
        [{"a": np.zeros(1)}, np.zeros(1)],
        [[np.zeros(1)], [np.zeros(1), np.zeros(1)]],
        [[np.zeros(1)], (np.zeros(1),)],
        [np.zeros(1), 3],
    ],
    ids=str,
)
def test_results_that_are_not_alike_are_not_stacked(results):
    """No broadcasting, no common dtype."""
    with pytest.raises(ValueError, match="not alike"):
        joined(results)


def test_the_weight_is_the_padded_size():
    collator = Collator({"ids": 0, "image": 0}, pad_to=4, pad_axis={"image": (0, 1)})
    assert collator.weight(collator.example({"ids": [1] * 5, "other": np.zeros(99)})) == 8
    assert collator.weight(collator.example({"ids": [1] * 5, "image": np.zeros((3, 5, 3))})) == 32
    assert collator.weight(collator.example({"other": np.zeros(99)})) == 1
