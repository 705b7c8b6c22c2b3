"""Shared memory: who may refer to a block, when it is used again; objects that travel through it."""

from __future__ import annotations

import gc
import os
import pickle
import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from ubatch import _shm
from ubatch._parcels import INLINE, SMALL, Parcel, Unpackable, pack, unpack
from ubatch._shm import LEAST, SPARE, STALE, Block, Mapped, Pool
from ubatch._stacks import stack

SIZES = (0, 1, SMALL - 1, SMALL, INLINE - 1, INLINE + 1, LEAST, LEAST + 1, 300_000)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    pool = Pool()
    monkeypatch.setattr("ubatch._stacks.pool", pool)
    yield pool
    gc.collect()
    pool.trim()
    assert pool.blocks == {}, "something still refers to a block"


def travelled(thing: Any, pool: Pool, **options: Any) -> tuple[Any, Parcel]:
    """Packed here, unpacked as it would be in another process."""
    parcel = pack(thing, pool, pool.take, **options)
    return unpack(memoryview(b"".join(parcel.chunks)), parcel.head, parcel.places, pool.view), parcel


def test_a_block_is_used_again_when_nothing_refers_to_it(pool):
    block, view = pool.take(100)
    other, _ = pool.take(100)
    assert other is not block
    array = numpy.frombuffer(view[10:20], "B")
    part = array[3:].reshape(-1, 1)
    del view, array
    assert pool.take(100)[0] is not block
    del part
    taken = [pool.take(100) for _ in range(3)]
    assert block in [each for each, _ in taken]


def test_it_is_not_while_a_child_refers_to_it(pool):
    block, view = pool.take(100)
    block.held.add("child")
    del view
    assert pool.take(100)[0] is not block
    block.held.discard("child")
    pool.loosen(block)
    assert block in [pool.take(100)[0] for _ in range(3)]


def test_blocks_have_few_sizes_and_what_fits(pool):
    for size in SIZES:
        block, view = pool.take(size)
        assert block.size == len(view) >= max(size, 1)
        assert block.size.bit_count() == 1
        assert not view.readonly


def test_spare_blocks_are_bounded(pool):
    """By their bytes; or to eight of the size that is in use."""
    size = SPARE // 4
    taken = [pool.take(size) for _ in range(12)]
    assert pool.size == 3 * SPARE
    taken.clear()
    pool.take(1)
    assert pool.size <= 2 * SPARE + LEAST
    large = [pool.take(SPARE) for _ in range(12)]
    large.clear()
    held = pool.take(1)
    assert pool.size <= 8 * SPARE + LEAST
    del held


def test_sizes_that_are_not_asked_for_any_more_are_let_go(pool):
    big = pool.take(1 << 20)[0].number
    for _ in range(2 * STALE):
        pool.take(1)
    assert big not in pool.blocks


@pytest.mark.stress
@pytest.mark.usefixtures("hurry")
def test_where_bytes_lie_while_blocks_come_and_go(pool, seed):
    """No look finds another block, or a place before one."""
    wrong: list[Any] = []
    done = threading.Event()

    def come_and_go() -> None:
        dice = random.Random(seed)
        while not done.is_set():
            taken = [pool.take(dice.choice((1, 1 << 17, 1 << 20))) for _ in range(dice.randrange(8))]
            taken.clear()
            pool.trim()

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    elsewhere = numpy.zeros(100_000)
    mine = [pool.take(1 << 18) for _ in range(4)]
    for turn in range(4000):
        block, view = mine[turn % 4]
        if pool.locate(view[turn : turn + 100]) != (block, turn) or pool.locate(memoryview(elsewhere)) is not None:
            wrong.append(turn)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_becomes_free_later_is_returned_at_once(pool):
    """Once nobody asks for more."""
    _, view = pool.take(1000)
    pool.trim()
    assert len(pool.blocks) == 1
    del view
    assert pool.blocks == {}
    _, view = pool.take(1000)
    del view
    pool.take(1 << 20)
    assert len(pool.blocks) == 2


def test_memory_has_no_name(pool):
    """Nothing can be left behind where there is nothing."""
    before = set(os.listdir("/dev/shm"))
    held = pool.take(1 << 20)
    assert set(os.listdir("/dev/shm")) == before
    assert "deleted" in os.readlink(f"/proc/self/fd/{held[0].descriptor}")


def test_descriptors_go_with_blocks(pool):
    before = set(os.listdir("/proc/self/fd"))
    held = [pool.take(1 << 20) for _ in range(4)]
    held.clear()
    pool.trim()
    assert set(os.listdir("/proc/self/fd")) == before


def test_without_memfd_it_has_no_name_either(pool, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    _, view = pool.take(1000)
    view[:4] = b"abcd"
    assert bytes(view[:4]) == b"abcd"


def test_two_mappings_are_one_memory(pool):
    block, view = pool.take(1000)
    other = Block(block.number, block.descriptor, block.size)
    mapped = Mapped()
    mapped.add(other)
    view[5:8] = b"abc"
    array = numpy.frombuffer(other.view()[4:10], "B")
    assert bytes(array) == b"\0abc\0\0"
    assert mapped.locate(memoryview(array)) == (other, 4)
    assert pool.locate(memoryview(array)) is None
    assert other.referred
    del array
    assert not other.referred
    other.close()


def test_where_bytes_lie(pool):
    blocks = [pool.take(LEAST) for _ in range(4)]
    for block, view in blocks:
        assert pool.locate(view) == (block, 0)
        assert pool.locate(view[7:9]) == (block, 7)
        assert pool.locate(view[-1:]) == (block, block.size - 1)
    assert pool.locate(memoryview(b"elsewhere")) is None


# -- parcels --------------------------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    big = numpy.arange(60_000, dtype=numpy.float32).reshape(200, 300)
    return {
        "large": big,
        "small": big[:2].copy(),
        "fortran": numpy.asfortranarray(big),
        "strided": big[::2, ::3],
        "reversed": big[::-1],
        "scalar": numpy.float64(3),
        "no axes": numpy.array(5.0),
        "empty": numpy.empty((0, 7)),
        "objects": numpy.array([{"a": 1}, None, "b"], dtype=object),
        "structured": numpy.zeros(5000, dtype=[("a", "i4"), ("b", "f8")]),
        "dates": numpy.arange("2000-01", "2900-01", dtype="datetime64[M]"),
        "strings": numpy.array(["ab", "cde"] * 4000),
        "read-only": numpy.frombuffer(bytes(100_000), "B"),
        "big-endian": big.astype(">f4"),
        "bools": big > 7,
    }


@pytest.mark.parametrize("kind", arrays())
def test_arrays_travel(pool, kind):
    given = arrays()[kind]
    got, _ = travelled([given, given, (given,)], pool)
    for each in (got[0], got[1], got[2][0]):
        numpy.testing.assert_array_equal(each, given)
        assert each.dtype == given.dtype
    if isinstance(given, numpy.ndarray):
        assert got[0] is got[1], "one array became two"


@pytest.mark.parametrize("count", [3, 5000])
def test_memoryviews_keep_their_form(pool, count):
    numbers = numpy.arange(2.0 * count).reshape(2, count)
    for given in (
        memoryview(numbers),
        memoryview(numbers[0]),
        memoryview(numpy.asfortranarray(numbers)),
        memoryview(b""),
    ):
        got, _ = travelled([given], pool)
        assert (got[0].format, got[0].shape, got[0].tolist()) == (given.format, given.shape, given.tolist())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, str, lambda raw: pickle.PickleBuffer(raw)])
def test_bytes_travel(pool, kind, size):
    raw = random.Random(size).randbytes(size).replace(b"\xff", b"\0")
    given = raw.decode("latin-1") if kind is str else kind(raw)
    got, parcel = travelled([given, {"deep": (given,)}], pool)
    for each in (got[0], got[1]["deep"][0]):
        if kind in (bytes, bytearray, str):
            assert type(each) is kind
            assert each == given
        else:
            assert bytes(each) == raw
    assert (parcel.copied > 0) is (kind not in (bytes, bytearray, str) and size >= SMALL)


def test_large_bytes_are_not_copied_into_the_pickle(pool):
    """They are handed over as they are, to be copied once, into the block."""
    given = bytes(1 << 20)
    seen: list[Any] = []

    def take(size: int) -> Any:
        seen.append(size)
        return pool.take(size)

    parcel = pack([given], pool, take)
    assert parcel.chunks == ()
    assert parcel.head is not None
    assert seen == [parcel.head[2]]


def test_what_lies_in_a_block_is_not_copied(pool):
    """However often it travels, and whatever part of it."""
    given = numpy.arange(30_000.0)
    got, parcel = travelled([given], pool)
    assert (parcel.copied, parcel.passed) == (1, 0)
    for part in (got[0], got[0][5000:], got[0][::-1][::-1], got[0].reshape(3, -1)[1]):
        again, parcel = travelled([part], pool)
        assert (parcel.copied, parcel.passed) == (0, 1)
        assert numpy.shares_memory(again[0], got[0])
        numpy.testing.assert_array_equal(again[0], part)


def test_it_is_where_it_must_not_be_shared(pool):
    got, _ = travelled([numpy.arange(30_000.0)], pool)
    again, parcel = travelled(got, pool, shared=False)
    assert (parcel.copied, parcel.passed) == (1, 0)
    assert not numpy.shares_memory(again[0], got[0])


def test_a_parcel_keeps_its_blocks(pool):
    parcel = pack(numpy.ones(30_000), pool, pool.take)
    number = parcel.places[0][0]
    assert number not in [pool.take(240_000)[0].number for _ in range(3)]
    del parcel
    assert number in [block.number for block, _ in [pool.take(240_000) for _ in range(4)]]


def test_buffers_are_aligned(pool):
    got, _ = travelled([numpy.zeros(n, "B") for n in range(SMALL, SMALL + 5)], pool)
    assert {array.__array_interface__["data"][0] % 64 for array in got} == {0}


def test_what_cannot_be_pickled_says_so(pool):
    with pytest.raises(Unpackable, match="lambda"):
        pack([numpy.ones(30_000), lambda: None], pool, pool.take)


# -- stacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "M8[s]", "?"])
@pytest.mark.parametrize(("shape", "count"), [((3,), 20), ((100, 100), 20), ((), 20), ((), 3000)])
def test_stacks(pool, shape, count, dtype):
    given = [numpy.full(shape, n, dtype="i8").astype(dtype) for n in range(count)]
    stacked, fresh = stack(given)
    numpy.testing.assert_array_equal(stacked, numpy.stack(given))
    assert (fresh is not None) is (stacked.nbytes >= SMALL)
    again, fresh = stack(list(stacked))
    numpy.testing.assert_array_equal(again, stacked)


def test_arrays_with_masks_are_not_stacked(pool):
    with pytest.raises(TypeError, match="mask"):
        stack([numpy.ma.masked_array([1, 2], [True, False])])


def test_rows_that_lie_one_after_another_are_not_copied(pool):
    stacked, _ = stack([numpy.full((50, 50), n, dtype="f4") for n in range(20)])
    again, fresh = stack(list(stacked))
    assert fresh is None
    assert numpy.shares_memory(again, stacked)
    numpy.testing.assert_array_equal(again, stacked)
    some, fresh = stack(list(stacked[5:12]))
    assert fresh is None
    numpy.testing.assert_array_equal(some, stacked[5:12])


@pytest.mark.parametrize("order", [[0, 2, 1, 3, 4], [0, 1, 3, 4, 5], [5, 4, 3, 2, 1], [0, 0, 0, 0, 0]])
def test_others_are(pool, order):
    stacked, _ = stack([numpy.full((50, 50), n, dtype="f4") for n in range(20)])
    again, fresh = stack([stacked[n] for n in order])
    assert fresh is not None
    numpy.testing.assert_array_equal(again, stacked[order])


def test_rows_elsewhere_are(pool):
    rows = numpy.arange(50_000.0).reshape(5, -1)
    again, fresh = stack(list(rows))
    assert fresh is not None
    numpy.testing.assert_array_equal(again, rows)
    numpy.testing.assert_array_equal(stack(list(again[:, ::2]))[0], rows[:, ::2])


@pytest.mark.parametrize(
    ("other", "said"), [(numpy.ones(4), "shape"), (numpy.ones(3, "f4"), "float32"), ("abc", "<U3")]
)
def test_unlike_arrays_are_named(pool, other, said):
    with pytest.raises(ValueError, match=said):
        stack([numpy.ones(3), other])
    with pytest.raises(ValueError, match="no arrays"):
        stack([])


# -- many threads ---------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.usefixtures("hurry")
def test_no_memory_is_given_to_two(pool, seed):
    """Threads take, keep, slice and drop blocks; each finds in its memory what it wrote."""
    wrong: list[str] = []

    def work(number: int) -> None:
        dice = random.Random(seed + number)
        mine: list[tuple[int, Any]] = []
        for turn in range(3000):
            value = dice.randrange(256)
            _, view = pool.take(dice.choice((1, 70_000, 200_000)))
            array = numpy.frombuffer(view, "B")[:: dice.choice((1, 64))][:64]
            del view
            array[...] = value
            mine.append((value, array))
            dice.shuffle(mine)
            while len(mine) > dice.randrange(12):
                expected, kept = mine.pop()
                if not (kept == expected).all():
                    wrong.append(f"turn {turn} of thread {number}: {kept[:4]} instead of {expected}")
            if not dice.randrange(50):
                pool.trim()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_pool_is_one():
    """What one executor's child returned goes to another's without a copy."""
    from ubatch import _children, _crew, _stacks

    assert _children.pool is _crew.pool is _stacks.pool is _shm.pool
