"""Batches that fail are split: bad items are found, the others get their results, and memory suffices."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import math
import re
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ubatch.aio
from ubatch import BadBatchOutputSize, HandlerFailed, Stopped, UBatch, dynamically, ubatch_decorator
from ubatch._attempt import Raised
from ubatch._binding import Binder
from ubatch._ceiling import LONGEST, PATIENCE, Ceiling
from ubatch._isolation import FAILURES, Isolating, forget_variables, out_of_memory

LONG = 10.0  # seconds; only a bug takes that long


class Item:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs, self.call = args, kwargs, None


def attempted(handler, items, ceiling=None):
    """What a driver makes of one batch. Items that are no `Item` are calls with one argument."""
    attempt, binder = Isolating(ceiling or Ceiling()), Binder(handler)
    items = [item if isinstance(item, Item) else Item(item) for item in items]
    for item in items:
        item.call = binder.bind(item.args, item.kwargs)
    for args, kwargs in attempt.calls(items, binder):
        try:
            attempt.output = handler(*args, **kwargs)
        except BaseException as error:
            attempt.output = Raised(error.with_traceback(error.__traceback__.tb_next))
    errors = [one for one in attempt.outcomes if isinstance(one, BaseException)]
    assert attempt.errors == len(errors)
    assert len({id(error) for error in errors}) == len(errors), "each caller's own"
    return list(attempt.outcomes)


class Picky:
    """A handler that raises if there is a bad number in the batch, and says which there are."""

    def __init__(self, bad=()):
        self.bad = set(bad)
        self.batches = []

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        if bad := self.bad.intersection(numbers):
            raise ValueError(*sorted(bad))
        return [2 * number for number in numbers]

    @property
    def failed(self):
        return [batch for batch in self.batches if self.bad.intersection(batch)]


# -- bad items --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 301))
def test_one_bad_item(size):
    """It fails alone, with its own error, for at most 2·log2(n) calls more."""
    for bad in {0, size // 3, size // 2, size - 1}:
        handler = Picky({bad})
        outcomes = attempted(handler, range(size))
        assert (type(outcomes[bad]), outcomes[bad].args) == (ValueError, (bad,))
        outcomes[bad] = 2 * bad
        assert outcomes == [2 * number for number in range(size)]
        assert len(handler.batches) - 1 <= 2 * math.ceil(math.log2(size))


def test_one_bad_item_among_256():
    """Wherever it is: the bound of the documentation."""
    for bad in range(256):
        handler = Picky({bad})
        outcomes = attempted(handler, range(256))
        assert [number for number in range(256) if outcomes[number] != 2 * number] == [bad]
        assert len(handler.batches) - 1 <= 2 * math.log2(256) + 1


@pytest.mark.parametrize("size", range(2, 301))
def test_all_bad(size):
    """The cost is bounded; everybody fails with the error of the smallest part that they were in."""
    handler = Picky(range(size))
    outcomes = attempted(handler, range(size))
    assert len(handler.batches) <= FAILURES * math.log2(size)
    assert {type(error) for error in outcomes} == {ValueError}
    for number, error in enumerate(outcomes):
        parts = [batch for batch in handler.batches if number in batch]
        assert list(error.args) == min(parts, key=len)


def failures(numbers, bad):
    """The calls that fail if nobody ever gives up."""
    if not bad.intersection(numbers):
        return 0
    if len(numbers) == 1:
        return 1
    middle = (len(numbers) + 1) // 2
    return 1 + failures(numbers[:middle], bad) + failures(numbers[middle:], bad)


@st.composite
def bad_sets(draw):
    size = draw(st.integers(1, 300))
    few, many = st.integers(0, 8), st.integers(0, size)
    count = min(draw(st.one_of(few, many)), size)
    numbers = st.sampled_from(range(size))
    return size, draw(st.sets(numbers, min_size=count, max_size=count))


@given(bad_sets())
def test_any_bad_items(sized):
    """Whoever was in a call that went through has that result, in order; the others an error that is about them."""
    size, bad = sized
    handler = Picky(bad)
    outcomes = attempted(handler, range(size))
    budget = int(FAILURES * math.log2(size)) if size > 1 else 1
    assert len(handler.failed) <= budget
    assert len(handler.batches) <= 2 * len(handler.failed) + 1
    sizes = [len(batch) for batch in handler.batches]
    assert sizes == sorted(sizes, reverse=True), "the largest first"
    reached = {number for batch in handler.batches if not bad.intersection(batch) for number in batch}
    for number, outcome in enumerate(outcomes):
        if number in reached:
            assert outcome == 2 * number
        else:
            smallest = min((batch for batch in handler.batches if number in batch), key=len)
            assert type(outcome) is ValueError
            assert list(outcome.args) == sorted(bad.intersection(smallest))
    if failures(range(size), bad) < budget:
        assert reached == set(range(size)) - bad


@given(bad_sets())
def test_nothing_is_called_twice(sized):
    """No two calls have the same items, and none has the same item twice."""
    size, bad = sized
    handler = Picky(bad)
    attempted(handler, range(size))
    assert len({tuple(batch) for batch in handler.batches}) == len(handler.batches)
    assert all(len(set(batch)) == len(batch) for batch in handler.batches)


@given(st.lists(st.tuples(st.sampled_from(["one", "two", "extra", "both"]), st.booleans()), max_size=40))
def test_calls_of_several_shapes(calls):
    """Each shape is split apart from the others; every argument stays with its item."""

    def handler(numbers, *more, **extra):
        columns = [numbers, *more, *extra.values()]
        assert {len(column) for column in columns} == {len(numbers)}
        assert all(abs(value) == abs(row[0]) for row in zip(*columns, strict=True) for value in row)
        if min(numbers) < 0:
            raise ValueError(len(numbers))
        return [len(columns) * number for number in numbers]

    items, wanted = [], []
    for number, (shape, is_bad) in enumerate(calls, 1):
        signed = -number if is_bad else number
        wanted.append(None if is_bad else {"one": 1, "two": 2, "extra": 2, "both": 3}[shape] * number)
        items.append(
            {
                "one": Item(signed),
                "two": Item(signed, number),
                "extra": Item(signed, extra=number),
                "both": Item(signed, number, extra=number),
            }[shape]
        )
    outcomes = attempted(handler, items)
    got = [None if isinstance(outcome, ValueError) else outcome for outcome in outcomes]
    if len(calls) <= 8:  # else so many bad ones may be given up
        assert got == wanted
        assert {outcome.args for outcome in outcomes if isinstance(outcome, ValueError)} <= {(1,)}
    assert all(one in (None, other) for one, other in zip(got, wanted, strict=True))


def test_calls_that_were_accepted_before_the_handler_was_known():
    """One that does not fit fails alone; the others are split as ever."""
    from ubatch._binding import UNBOUND

    def handler(numbers, powers):
        if 0 in numbers:
            raise ZeroDivisionError
        return [number**power for number, power in zip(numbers, powers, strict=True)]

    items = [Item(2, 3), Item(0, 1), Item(1), Item(3, powers=2)]
    for item in items:
        item.call = UNBOUND
    attempt = Isolating(Ceiling())
    for args, kwargs in attempt.calls(items, Binder(handler)):
        try:
            attempt.output = handler(*args, **kwargs)
        except ZeroDivisionError as error:
            attempt.output = Raised(error)
    first, second, third, fourth = attempt.outcomes
    assert (first, fourth) == (8, 9)
    assert (type(second), type(third)) == (ZeroDivisionError, TypeError)
    assert attempt.errors == 2


def test_a_handler_that_uses_up_its_list():
    """Its halves are not taken from what it has left of it."""

    def handler(numbers):
        results = []
        while numbers:
            number = numbers.pop(0)
            if number == 5:
                raise ValueError(number)
            results.append(-number)
        return results

    outcomes = attempted(handler, range(8))
    assert [one for one in outcomes if not isinstance(one, ValueError)] == [0, -1, -2, -3, -4, -6, -7]


def test_an_exception_among_the_results_splits_nothing():
    """The handler has found the bad item itself."""
    batches = []

    def handler(numbers):
        batches.append(numbers)
        return [ValueError(number) if number == 2 else number for number in numbers]

    outcomes = attempted(handler, range(4))
    assert (outcomes[:2], type(outcomes[2]), outcomes[3:]) == ([0, 1], ValueError, [3])
    assert len(batches) == 1


class Lazy(list):
    """Results that are computed when they are looked at."""

    def __iter__(self):
        if 2 in list.copy(self):
            raise ValueError("computed, and bad")
        return super().__iter__()


def test_results_that_raise_when_they_are_looked_at():
    """As some libraries compute them then: this is like a handler that raises."""
    outcomes = attempted(Lazy, range(4))
    assert (outcomes[:2], type(outcomes[2]), outcomes[3:]) == ([0, 1], ValueError, [3])


# -- what is not an item's doing --------------------------------------------------------------------------


def too_few(numbers):
    return numbers[1:]


def raising(error):
    def handler(numbers):
        raise error

    return handler


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (too_few, BadBatchOutputSize),
        (lambda numbers: None, BadBatchOutputSize),
        (raising(BadBatchOutputSize(3, 2)), BadBatchOutputSize),
        (raising(KeyboardInterrupt()), HandlerFailed),
        (raising(SystemExit(3)), HandlerFailed),
        (raising(GeneratorExit()), HandlerFailed),
        (raising(asyncio.CancelledError()), HandlerFailed),
        (raising(concurrent.futures.CancelledError()), HandlerFailed),
    ],
)
def test_what_splits_nothing(handler, kind):
    """All fail, as without isolation."""
    batches = []

    def counted(numbers):
        batches.append(numbers)
        return handler(numbers)

    assert [type(outcome) for outcome in attempted(counted, range(8))] == [kind] * 8
    assert len(batches) == 1


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, TimeoutError, RecursionError, AssertionError])
def test_other_exceptions_split(error):
    """Also those that cannot be raised in a caller as they are."""

    def handler(numbers):
        if 3 in numbers:
            raise error(3)
        return numbers

    outcomes = attempted(handler, range(8))
    wrapped = error in (StopIteration, StopAsyncIteration)
    assert type(outcomes.pop(3)) is (HandlerFailed if wrapped else error)
    assert outcomes == [0, 1, 2, 4, 5, 6, 7]


def test_nothing_more_is_tried_after_an_exit():
    """A handler that is told to go is not called again: what was not found to be good fails."""
    batches = []

    def handler(numbers):
        batches.append(list(numbers))
        if len(batches) == 4:
            raise SystemExit
        if 7 in numbers or 0 in numbers:
            raise ValueError(*numbers)
        return numbers

    outcomes = attempted(handler, range(8))
    assert batches == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [0, 1]]
    assert [type(one) for one in outcomes] == [HandlerFailed] * 2 + [ValueError] * 6
    assert [one.args for one in outcomes[2:]] == [(0, 1, 2, 3)] * 2 + [(4, 5, 6, 7)] * 4


def test_a_part_with_a_wrong_number_of_results():
    """It fails as a whole; the others are tried all the same."""

    def handler(numbers):
        if len(numbers) == 8 or 7 in numbers:
            raise ValueError
        return numbers[1:] if 0 in numbers else numbers

    outcomes = attempted(handler, range(8))
    assert [type(one) for one in outcomes[:4]] == [BadBatchOutputSize] * 4
    assert (outcomes[4:7], type(outcomes[7])) == ([4, 5, 6], ValueError)


# -- what failed lets go ----------------------------------------------------------------------------------


class Tensor:
    """It takes memory for as long as somebody refers to it."""


class Hoarder:
    """A handler whose frames hold memory when it raises, and that looks what is left of it when it is called."""

    def __init__(self, fail):
        self.fail = fail
        self.refs = []
        self.alive = []

    def tensor(self):
        tensor = Tensor()
        self.refs.append(weakref.ref(tensor))
        return tensor

    def __call__(self, numbers):
        self.alive.append(sum(ref() is not None for ref in self.refs))
        mine = self.tensor()
        if 5 in numbers or len(numbers) > 4:
            numbers.append(self.tensor())  # as one that moves items to another device in place
            self.fail(self)
        del mine
        return numbers


def fail_at_once(handler):
    raise MemoryError


def fail_with_a_cause(handler):
    other = handler.tensor()
    try:
        fail_at_once(handler)
    except MemoryError as error:
        raise RuntimeError("CUDA out of memory") from error
    del other


def fail_while_failing(handler):
    other = handler.tensor()
    try:
        fail_with_a_cause(handler)
    except RuntimeError:
        raise ValueError from None
    del other


def fail_in_a_circle(handler):
    """The frame refers to the error, that to its traceback, and that to the frame."""
    error = ValueError()
    error.itself = error
    raise error


def fail_in_a_group(handler):
    errors = []
    try:
        fail_with_a_cause(handler)
    except RuntimeError as error:
        errors.append(error)
    raise ExceptionGroup("several", errors)  # noqa: F821


CONSTANT = ValueError("always the same")


def fail_as_ever(handler):
    raise CONSTANT


WAYS = [fail_at_once, fail_with_a_cause, fail_while_failing, fail_in_a_circle, fail_as_ever]
if sys.version_info >= (3, 11):
    WAYS.append(fail_in_a_group)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """What lives on for as long as a reference cycle is alive."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("fail", WAYS)
def test_memory_of_what_failed_is_free_for_its_halves(fail):
    """Whatever the frames of the failed call held is gone when the next call begins."""
    handler = Hoarder(fail)
    with without_collector():
        outcomes = attempted(handler, range(8))
    assert len(handler.alive) > 4
    assert set(handler.alive) == {0}
    assert [one for one in outcomes if isinstance(one, int)] == [0, 1, 2, 3, 4, 6, 7]
    assert isinstance(outcomes[5], Exception)


def test_a_single_item_keeps_its_traceback():
    """Nothing is called after it, so that a debugger finds all that there was."""

    def handler(numbers):
        secret = numbers[0]
        raise ValueError(secret)

    (error,) = attempted(handler, [7])
    assert error.__traceback__.tb_frame.f_locals["secret"] == 7


@pytest.mark.parametrize("bad", [{5}, set(range(8))], ids=["one", "all"])
def test_tracebacks_tell_the_story(bad):
    """Files, functions and lines are those of the handler, down to where it raised, and for the cause as well."""

    def inner(numbers):
        raise KeyError("first")

    def handler(numbers):
        if bad.intersection(numbers):
            try:
                inner(numbers)
            except KeyError as error:
                raise ValueError(*numbers) from error
        return numbers

    outcomes = attempted(handler, range(8))
    for error in (one for one in outcomes if not isinstance(one, int)):
        frames = traceback.extract_tb(error.__traceback__)
        assert [(frame.filename, frame.name, frame.line) for frame in frames] == [
            (__file__, "handler", "raise ValueError(*numbers) from error")
        ]
        told = "".join(traceback.format_exception(error))
        assert 'raise KeyError("first")' in told
        assert "raise ValueError(*numbers) from error" in told
        assert told.count("direct cause") == 1


def test_a_story_retold():
    """Line by line the same, without the variables; more than once, too."""

    def deep(depth):
        kept = Tensor()
        refs.append(weakref.ref(kept))
        if depth:
            deep(depth - 1)
        raise LookupError

    refs = []
    try:
        deep(20)
    except LookupError as error:
        failure = error
    before = traceback.extract_tb(failure.__traceback__)
    with without_collector():
        forget_variables(failure)
        assert [ref() for ref in refs] == [None] * 21
    forget_variables(failure)
    after = traceback.extract_tb(failure.__traceback__)
    assert [(one.filename, one.name, one.lineno) for one in after] == [
        (one.filename, one.name, one.lineno) for one in before
    ]
    assert failure.__traceback__.tb_frame.f_globals is globals()
    traceback.clear_frames(failure.__traceback__)
    assert "raise LookupError" in "".join(traceback.format_exception(failure))


def test_forgetting_ends_nobody():
    """An exception object may have passed through a coroutine that has caught it and goes on."""

    async def catches():
        try:
            raise CONSTANT
        except ValueError:
            await asyncio.sleep(0)
        return "went on"

    async def main():
        task = asyncio.ensure_future(catches())
        await asyncio.sleep(0)
        forget_variables(CONSTANT)
        return await task

    assert asyncio.run(main()) == "went on"


# -- out of memory: what it is ----------------------------------------------------------------------------


def named(name, base=Exception, module=__name__):
    return type(name, (base,), {"__module__": module})


TOLD = [
    MemoryError(),
    named("ArrayMemoryError", MemoryError)("Unable to allocate 8.00 GiB for an array"),  # numpy
    named("OutOfMemoryError", RuntimeError)("CUDA out of memory. Tried to allocate 2.00 GiB"),  # torch
    named("OutOfMemoryError", MemoryError)("Out of memory allocating 512 bytes"),  # cupy
    named("Narrower", named("OutOfMemoryError", RuntimeError))(),
    named("ResourceExhaustedError")("OOM when allocating tensor with shape[8192]"),  # tensorflow
    RuntimeError("CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity)"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    named("CUDARuntimeError", RuntimeError)("cudaErrorMemoryAllocation: out of memory"),  # cupy
    named("XlaRuntimeError", RuntimeError)("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes."),
    named("XlaRuntimeError", RuntimeError)("RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB"),
    named("RuntimeException", module="onnxruntime.capi.onnxruntime_pybind11_state")(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 643840"
    ),
    named("Fail", module="onnxruntime.capi.onnxruntime_pybind11_state")("CUDA failure 2: out of memory ; GPU=0"),
]


class Untellable(RuntimeError):
    def __str__(self):
        raise SystemExit


NOT_TOLD = [
    ValueError("cannot parse 'out of memory'"),  # what an item says is no evidence
    KeyError("out of memory"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("no memory of this"),
    named("Fail")("out of memory"),
    Untellable(),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", TOLD, ids=repr)
def test_what_says_that_memory_ran_out(error):
    """Also as the cause of another, or come upon by it."""
    assert out_of_memory(error)
    caused, come_upon = ValueError(), ValueError()
    caused.__cause__ = come_upon.__context__ = error
    assert out_of_memory(caused)
    assert out_of_memory(come_upon)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups")
def test_a_group_says_what_its_members_say():
    """One of them is enough."""
    assert out_of_memory(ExceptionGroup("several", [ValueError(), MemoryError()]))  # noqa: F821
    assert not out_of_memory(ExceptionGroup("several", [ValueError(), KeyError()]))  # noqa: F821


@pytest.mark.parametrize("error", NOT_TOLD, ids=lambda error: type(error).__name__)
def test_what_does_not(error):
    """Another error, whatever words are in it."""
    error.__cause__ = LookupError()
    error.__cause__.__context__ = error  # a circle
    assert not out_of_memory(error)


# -- out of memory: what is done --------------------------------------------------------------------------


class Small:
    """A handler with memory for so many items, and for none of those that are too large."""

    def __init__(self, capacity, too_large=()):
        self.capacity = capacity
        self.too_large = set(too_large)
        self.sizes, self.failed = [], []

    def __call__(self, numbers):
        self.sizes.append(len(numbers))
        if len(numbers) > self.capacity or self.too_large.intersection(numbers):
            self.failed.append(len(numbers))
            raise MemoryError(*numbers)
        return [2 * number for number in numbers]


@given(st.integers(2, 300), st.data())
def test_a_batch_that_is_too_large(size, data):
    """However little memory there is, everybody is served; few calls fail; the ceiling is what went through."""
    capacity = data.draw(st.integers(1, size - 1))
    handler, ceiling = Small(capacity), Ceiling()
    assert attempted(handler, range(size), ceiling) == [2 * number for number in range(size)]
    assert len(handler.failed) <= 1 + 4 * math.ceil(math.log2(size / capacity))
    assert capacity < 2 * ceiling.limit(size) <= 2 * capacity
    ceiling._check()


@given(st.integers(2, 300), st.data())
def test_items_that_are_too_large_alone(size, data):
    """They fail alone, and say nothing of other batches: the ceiling stays where it was."""
    too_large = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    handler, ceiling = Small(size, too_large), Ceiling()
    outcomes = attempted(handler, range(size), ceiling)
    for number in range(size):
        if number in too_large:
            assert (type(outcomes[number]), outcomes[number].args) == (MemoryError, (number,))
        else:
            assert outcomes[number] == 2 * number
    assert ceiling.size is None
    assert len(handler.failed) <= FAILURES * math.log2(size)


def test_one_item_that_is_too_large_leaves_the_others_in_large_parts():
    """One failure of a size does not bring all others of that size to be split."""
    for bad in range(64):
        handler = Small(64, {bad})
        attempted(handler, range(64))
        assert sorted(set(handler.sizes) - {64}) == [1, 2, 4, 8, 16, 32]
        assert len(handler.sizes) == 13


def test_parts_no_larger_than_one_that_went_through_are_tried():
    """However many of their size ran out of memory: they did so because of items."""
    handler = Small(64, {0, 8, 16})
    attempted(handler, range(64))
    assert (handler.sizes.count(16), handler.sizes.count(8)) == (2, 4)


def test_an_item_that_is_too_large_in_a_batch_that_is_too_large():
    """Both are found out: the item fails alone, the ceiling is what others went through with."""
    handler, ceiling = Small(20, {3}), Ceiling()
    outcomes = attempted(handler, range(64), ceiling)
    assert [number for number in range(64) if outcomes[number] != 2 * number] == [3]
    assert ceiling.size == 16


@pytest.mark.parametrize("size", [1, 2, 3, 64, 256])
def test_memory_that_is_gone_altogether(size):
    """Smaller batches would not help: few calls, and no ceiling."""
    handler, ceiling = Small(0), Ceiling()
    outcomes = attempted(handler, range(size), ceiling)
    assert {type(outcome) for outcome in outcomes} == {MemoryError}
    assert all(number in error.args for number, error in enumerate(outcomes))
    assert len(handler.sizes) <= max(FAILURES * math.log2(size), 1)
    assert ceiling.size is None


def test_other_errors_are_no_reason_for_a_ceiling():
    """Nor for one to be raised."""
    ceiling = Ceiling()
    attempted(Picky({3}), range(64), ceiling)
    assert ceiling.size is None
    attempted(Small(32), range(64), ceiling)
    assert ceiling.limit(64) == 32
    for _ in range(2 * PATIENCE):
        attempted(Picky({3}), range(32), ceiling)
        assert ceiling.limit(64) == 32
    for _ in range(PATIENCE):
        assert ceiling.limit(64) == 32
        attempted(Picky(), range(32), ceiling)
    assert ceiling.limit(64) == 36


def test_a_batch_of_several_calls_has_a_ceiling_too():
    """As large as the largest call that went through."""

    def handler(numbers, **extra):
        if len(numbers) > 25:
            raise MemoryError
        return numbers

    ceiling = Ceiling()
    items = [Item(number) for number in range(40)] + [Item(number, extra=1) for number in range(24)]
    assert attempted(handler, items, ceiling) == [*range(40), *range(24)]
    assert ceiling.size == 24


# -- the ceiling ------------------------------------------------------------------------------------------


def fill(ceiling, batches, max_size=64):
    for _ in range(batches):
        ceiling.borne(ceiling.limit(max_size))
        ceiling._check()
    return ceiling.limit(max_size)


def lowered(good=32, max_size=64):
    ceiling = Ceiling()
    assert ceiling.limit(max_size) == max_size
    ceiling.exceeded(max_size, good)
    assert ceiling.limit(max_size) == good
    return ceiling


def test_no_ceiling_without_a_failure():
    ceiling = Ceiling()
    assert fill(ceiling, 100) == 64
    assert ceiling.limit(10**6) == 10**6


def test_the_ceiling_is_raised_slowly():
    """By an eighth, or by one item, each time that so many batches filled it."""
    ceiling = lowered(32)
    assert fill(ceiling, PATIENCE - 1) == 32
    assert [fill(ceiling, 1)] + [fill(ceiling, PATIENCE) for _ in range(6)] == [36, 40, 45, 50, 56, 63, 64]
    ceiling = lowered(1)
    assert [fill(ceiling, PATIENCE) for _ in range(10)] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_batches_that_do_not_fill_it_do_not_raise_it():
    """They say nothing, and take nothing back either."""
    ceiling = lowered(32)
    fill(ceiling, PATIENCE - 1)
    for _ in range(100):
        ceiling.limit(64)
        ceiling.borne(31)
    assert ceiling.limit(64) == 32
    assert fill(ceiling, 1) == 36


def test_the_ceiling_is_forgotten_once_full_batches_go_through():
    """With all that was learned: the next failure is like the first."""
    ceiling = lowered(60)
    assert fill(ceiling, PATIENCE) == 64
    assert ceiling.size == 64
    fill(ceiling, PATIENCE)
    assert ceiling.size is None
    ceiling.exceeded(64, 16)
    assert fill(ceiling, PATIENCE) == 18


def test_too_large_a_raise_is_taken_back():
    """To what was known to go through, not to a half; and each time it takes twice as long to the next one."""
    ceiling = lowered(32)
    wait = PATIENCE
    for _ in range(10):
        assert fill(ceiling, wait - 1) == 32
        assert fill(ceiling, 1) == 36
        ceiling.exceeded(36, 18)
        wait = min(2 * wait, LONGEST)
    assert wait == LONGEST


def test_memory_that_becomes_less():
    """What was known to go through goes through no more."""
    ceiling = lowered(32)
    fill(ceiling, PATIENCE)
    ceiling.exceeded(36, 18)
    assert ceiling.limit(64) == 32
    ceiling.exceeded(32, 16)
    assert ceiling.limit(64) == 16
    ceiling.exceeded(10, 5)  # a batch that did not fill it
    assert ceiling.limit(64) == 5
    fill(ceiling, 16 * PATIENCE)
    assert ceiling.limit(64) > 5
    ceiling.exceeded(2, 1)
    assert ceiling.limit(64) == 1


def test_batches_in_flight_lower_the_ceiling_once():
    """Several that were cut before the first of them failed are one failure."""
    ceiling = lowered(32)
    ceiling.exceeded(64, 32)
    ceiling.exceeded(64, 16)
    assert ceiling.limit(64) == 32
    assert fill(ceiling, PATIENCE) == 36


def test_max_size_changes():
    """The ceiling is never above it, and does not come back to life below it."""
    ceiling = lowered(32)
    assert ceiling.limit(16) == 16
    assert ceiling.limit(128) == 32
    assert fill(ceiling, PATIENCE, 34) == 34
    assert ceiling.limit(33) == 33
    assert ceiling.limit(128) == 34
    fill(ceiling, PATIENCE, 16)  # with which one is content
    assert ceiling.size is None


@settings(max_examples=50)
@given(st.integers(2, 300), st.data())
def test_the_ceiling_finds_out_how_much_memory_there_is(max_size, data):
    """It comes within an eighth, with few failures, and goes when there is enough again."""
    capacity = data.draw(st.integers(1, max_size - 1))
    ceiling, failed = Ceiling(), 0
    for _ in range(4000):
        count = good = ceiling.limit(max_size)
        assert 1 <= count <= max_size
        while good > capacity:
            good = (good + 1) // 2
        if good < count:
            failed += 1
            ceiling.exceeded(count, good)
        else:
            ceiling.borne(count)
        ceiling._check()
    step = max(capacity // 8, 1)
    assert capacity - step <= ceiling.limit(max_size) <= min(capacity + step, max_size)
    assert failed <= 10
    for _ in range(50 * LONGEST):
        if ceiling.size is None:
            break
        ceiling.borne(ceiling.limit(max_size))
    assert ceiling.size is None


# -- drivers ----------------------------------------------------------------------------------------------

KINDS = ["threads", "coroutine", "plain"]


def batcher(kind: str, handler: Callable[[list[int]], Any], **options: Any) -> Any:
    """Of threads; of an event loop, with a coroutine function or a plain one. Use their common names."""
    if kind == "threads":
        return UBatch(handler=handler, **options)

    async def coroutine(items: list[int]) -> Any:
        wait = getattr(handler, "wait", None)
        if wait is not None:
            await wait(items)
        return handler(items)

    return ubatch.aio.UBatch(handler=coroutine if kind == "coroutine" else handler, **options)


async def outcomes_of(batch: Any, items: Any) -> list[Any]:
    """Of one batch, if as many are `max_size`."""
    tasks = [asyncio.ensure_future(batch.aubatch(item)) for item in items]
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LONG)


def in_loop(batch: Any, main: Callable[[], Any]) -> None:
    """Run a coroutine, then stop the batcher."""

    async def whole() -> None:
        await asyncio.wait_for(main(), 2 * LONG)
        assert await batch.astop(timeout=LONG) is True
        assert (batch.stats.queued, batch.stats.running) == (0, 0)

    asyncio.run(whole())


@pytest.mark.parametrize("kind", KINDS)
def test_one_poison_among_256(kind):
    """255 results, one error, 17 calls more at most; the next batch is whole again."""
    handler = Picky({77})
    batch = batcher(kind, handler, max_size=256, timeout=LONG, isolate=True)

    async def main():
        outcomes = await outcomes_of(batch, range(256))
        assert (type(outcomes[77]), outcomes[77].args) == (ValueError, (77,))
        assert outcomes[:77] + outcomes[78:] == [2 * number for number in range(256) if number != 77]
        assert len(handler.batches) <= 1 + 17
        assert (batch.stats.batches, batch.stats.full, batch.stats.errors) == (1, 1, 1)
        del handler.batches[:]
        assert await batch.amap(range(1000, 1256)) == [2 * number for number in range(1000, 1256)]
        assert len(handler.batches) == 1

    in_loop(batch, main)


@pytest.mark.parametrize("kind", KINDS)
def test_all_256_bad(kind):
    """64 calls at most; each caller's error is its own, and says where the handler raised."""
    handler = Picky(range(256))
    batch = batcher(kind, handler, max_size=256, timeout=LONG, isolate=True)

    async def main():
        outcomes = await outcomes_of(batch, range(256))
        assert {type(outcome) for outcome in outcomes} == {ValueError}
        assert len({id(outcome) for outcome in outcomes}) == 256
        assert len(handler.batches) <= 64
        assert (batch.stats.batches, batch.stats.errors) == (1, 256)
        for outcome in outcomes[::64]:
            frames = traceback.extract_tb(outcome.__traceback__)
            assert "raise ValueError(*sorted(bad))" in [frame.line for frame in frames]
            names = {frame.filename.rpartition("/")[2] for frame in frames}
            assert names.isdisjoint({"_driver.py", "_turns.py", "_loop.py", "_attempt.py", "_isolation.py"})

    in_loop(batch, main)


@pytest.mark.parametrize("kind", KINDS)
def test_without_isolation_all_fail(kind):
    """It is off unless it is asked for."""
    handler = Picky({3})
    batch = batcher(kind, handler, max_size=8, timeout=LONG)

    async def main():
        assert {type(outcome) for outcome in await outcomes_of(batch, range(8))} == {ValueError}
        assert len(handler.batches) == 1

    in_loop(batch, main)


@pytest.mark.parametrize("timeout", [0, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_ceiling_is_remembered_and_raised_again(kind, timeout):
    """Batches after one that ran out of memory are no larger than what went through, for a time."""
    handler = Small(10)
    batch = batcher(kind, handler, max_size=64, timeout=timeout, isolate=True)

    async def sizes(count):
        del handler.sizes[:], handler.failed[:]
        assert await batch.amap(range(count)) == [2 * number for number in range(count)]
        return handler.sizes

    async def main():
        assert (await sizes(64))[-8:] == [8] * 8
        assert handler.failed[0] == 64
        assert await sizes(8 * 16) == [8] * 16
        assert await sizes(9 * 16) == [9] * 16
        assert await sizes(10 * 16) == [10] * 16
        assert await sizes(11) == [11, 6, 5]
        assert await sizes(10 * 32) == [10] * 32
        assert await sizes(11) == [11, 6, 5]
        handler.capacity = 64
        assert await sizes(10 * 64 + 11) == [10] * 64 + [11]
        assert batch.max_size == 64
        assert batch.stats.errors == 0
        assert batch.stats.full == batch.stats.batches, "as many as there may be"

    in_loop(batch, main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_as_large_as_the_ceiling_is_full(kind):
    """It is not held for items that it could not take."""
    batch = batcher(kind, Small(10), max_size=64, timeout=1000.0, isolate=True)

    async def main():
        await batch.amap(range(64))
        assert await asyncio.wait_for(batch.amap(range(24)), LONG) == [2 * number for number in range(24)]
        assert (batch.stats.full, batch.stats.batches) == (4, 4)

    in_loop(batch, main)


@pytest.mark.parametrize("fail", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_failed_call_is_free_for_the_next(kind, fail):
    """No driver keeps what the frames of the handler held."""
    handler = Hoarder(fail)
    batch = batcher(kind, handler, max_size=8, timeout=LONG, isolate=True)

    async def main():
        outcomes = await outcomes_of(batch, range(8))
        assert isinstance(outcomes.pop(5), Exception)
        assert outcomes == [0, 1, 2, 3, 4, 6, 7]
        assert len(handler.alive) > 4
        assert set(handler.alive) == {0}

    with without_collector():
        in_loop(batch, main)


class Spy:
    """A policy that takes what is there, and remembers for which size it was asked."""

    passive, reason, cost = False, "idle", None

    def __init__(self):
        self.asked = {"expect": set(), "decide": set(), "cut": set()}
        self.was_idle = threading.Event()

    def watch(self):
        return True

    def expect(self, now, max_size):
        self.asked["expect"].add(max_size)
        self.was_idle.set()

    def decide(self, now, queued, oldest, max_size, newest):
        self.asked["decide"].add(max_size)

    def cut(self, now, arrived, queued, max_size):
        self.asked["cut"].add(max_size)

    def finished(self, *args):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_goes_by_the_ceiling(kind):
    """In all that it is asked: else it would wait for items that no batch can take."""
    batch = batcher(kind, Small(10), max_size=64, timeout=0, isolate=True)
    spy = Spy()

    async def main():
        await batch.amap(range(64))
        if kind == "threads":
            batch._policy = spy
        else:
            batch._latest.policy = spy
        await batch.amap(range(24))
        assert await asyncio.to_thread(spy.was_idle.wait, LONG)
        assert set(map(tuple, spy.asked.values())) == {(8,)}

    in_loop(batch, main)


class Gate(Picky):
    """A handler that waits in its second call until it is opened."""

    def __init__(self, bad=()):
        super().__init__(bad)
        self.entered, self.opened = threading.Event(), threading.Event()
        self.threads = []
        self.in_coroutine = False

    async def wait(self, items):
        self.in_coroutine = True
        if len(self.batches) == 1:
            self.entered.set()
            try:
                await asyncio.to_thread(self.opened.wait, LONG)
            except asyncio.CancelledError:
                self.batches.append(list(items))  # it has been called
                raise

    def __call__(self, numbers):
        self.threads.append(threading.current_thread())
        if len(self.batches) == 1 and not self.in_coroutine:
            self.entered.set()
            assert self.opened.wait(LONG)
        return super().__call__(numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_callers_that_leave_in_the_middle_of_a_split(kind):
    """The others get what is theirs."""
    handler = Gate({5})
    batch = batcher(kind, handler, max_size=8, timeout=LONG, isolate=True)

    async def main():
        tasks = [asyncio.ensure_future(batch.aubatch(number)) for number in range(8)]
        assert await asyncio.to_thread(handler.entered.wait, LONG)
        for task in tasks[0], tasks[7]:
            task.cancel()
        handler.opened.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        left, good, bad = asyncio.CancelledError, int, ValueError
        assert kinds == [left, good, good, good, good, bad, good, left]
        assert outcomes[1:5] == [2, 4, 6, 8]
        assert batch.stats.errors == 1
        assert batch.stats.running == 0

    in_loop(batch, main)


@pytest.mark.parametrize("kind", KINDS)
def test_stop_gives_up_in_the_middle_of_a_split(kind):
    """Everybody gets `Stopped`, the handler is not called any more, and the batcher may start again."""
    handler = Gate({5})
    batch = batcher(kind, handler, max_size=8, timeout=LONG, isolate=True)

    async def main():
        before = asyncio.all_tasks()
        tasks = [asyncio.ensure_future(batch.aubatch(number)) for number in range(8)]
        assert await asyncio.to_thread(handler.entered.wait, LONG)
        assert batch.stats.running == 8
        assert await batch.astop(drain=False, timeout=0) is False
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Stopped] * 8
        assert batch.stats.errors == 8
        handler.opened.set()
        for thread in set(handler.threads) - {threading.current_thread()}:
            await asyncio.to_thread(thread.join, LONG)
            assert not thread.is_alive()
        if others := asyncio.all_tasks() - before:
            _, pending = await asyncio.wait(others, timeout=LONG)
            assert not pending
        assert handler.batches == [list(range(8)), [0, 1, 2, 3]]
        batch.timeout = 0
        batch.start()
        assert await batch.aubatch(20) == 40

    in_loop(batch, main)


def test_nothing_more_is_tried_when_a_loop_ends():
    """`asyncio.run` cancels all tasks: the handler's is not asked for other parts."""
    handler = Gate({5})
    batch = batcher("coroutine", handler, max_size=8, timeout=LONG, isolate=True)

    async def main():
        tasks.extend(asyncio.ensure_future(batch.aubatch(number)) for number in range(8))
        assert await asyncio.to_thread(handler.entered.wait, LONG)
        handler.opened.set()  # for its thread, not for the handler: that has not been told before it is cancelled

    tasks: list[Any] = []
    asyncio.run(main())
    assert handler.batches == [list(range(8)), [0, 1, 2, 3]]
    assert all(task.done() for task in tasks)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_of_a_split_is_not_learned(kind):
    """How long several calls and their failures take says nothing of a batch."""
    batch = batcher(kind, Picky({5}), max_size=8, isolate=True)
    told = []

    async def main():
        await batch.aubatch(0)
        policy = batch._policy if kind == "threads" else batch._latest.policy
        finished = policy.finished
        policy.watch = lambda: True
        policy.finished = lambda now, size, *rest: told.append((size, rest[-1])) or finished(now, size, *rest)
        assert await batch.amap(range(8, 16)) == [2 * number for number in range(8, 16)]
        with pytest.raises(ValueError):
            await batch.amap(range(8))
        assert told == [(8, True), (8, False)]

    in_loop(batch, main)


# -- the option -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1, 0, None, "yes", []])
@pytest.mark.parametrize(
    "make",
    [UBatch, ubatch_decorator, dynamically, ubatch.aio.UBatch, ubatch.aio.ubatch_decorator, ubatch.aio.dynamically],
)
def test_isolate_is_true_or_false(make, wrong):
    """Anything else is named in the error."""
    with pytest.raises(TypeError, match=re.escape(f"isolate must be True or False, not {wrong!r}")):
        make(isolate=wrong)


@pytest.mark.parametrize("decorator", [ubatch_decorator, dynamically])
def test_decorated_functions(decorator):
    """They take the option, too."""

    @decorator(max_size=4, timeout=LONG, isolate=True)
    def halved(numbers):
        return [6 // number for number in numbers]

    futures = [halved.submit(number) for number in (3, 0, 2, 1)]
    assert [future.exception(LONG) or future.result() for future in futures if future is not futures[1]] == [2, 3, 6]
    assert type(futures[1].exception()) is ZeroDivisionError
    assert halved.batcher.stop()


@pytest.mark.parametrize("decorator", [ubatch.aio.ubatch_decorator, ubatch.aio.dynamically])
def test_decorated_coroutine_functions(decorator):
    """The same on an event loop."""

    @decorator(max_size=4, timeout=LONG, isolate=True)
    async def halved(numbers):
        return [6 // number for number in numbers]

    async def main():
        outcomes = await asyncio.gather(*(halved.ubatch(number) for number in (3, 0, 2, 1)), return_exceptions=True)
        assert type(outcomes.pop(1)) is ZeroDivisionError
        assert outcomes == [2, 3, 6]

    asyncio.run(main())
