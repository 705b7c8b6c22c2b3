"""Never run: mypy and pyright check that they see the types which users rely on.

`type: ignore` marks a mistake that both must find: neither accepts such a comment where there is none.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

from typing_extensions import assert_type

import ubatch
from ubatch import UBatch, ubatch_decorator

T = TypeVar("T")


def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


# Batchers: the types of item and result are declared, or come from the handler.


async def faces(batch: UBatch[str, int]) -> None:
    assert_type(batch.ubatch("a"), int)
    assert_type(batch.submit("a"), Future[int])
    assert_type(batch.submit("a").result(timeout=1.0), int)
    assert_type(await batch.aubatch("a"), int)
    assert_type(batch.map(["a", "b"]), list[int])
    assert_type(await batch.amap(iter(["a", "b"])), list[int])


def life(batch: UBatch[str, int]) -> None:
    batch.set_handler(lengths)
    batch.set_handler(handler=lengths)
    assert_type(batch.start(), UBatch[str, int])
    assert_type(batch.stop(), bool)
    assert_type(batch.stop(drain=False, timeout=0.5), bool)
    assert_type(batch.alive, bool)
    with batch as entered:
        assert_type(entered, UBatch[str, int])


async def life_on_a_loop(batch: UBatch[str, int]) -> None:
    assert_type(await batch.astop(drain=True, timeout=None), bool)


def snapshots(batch: UBatch[str, int]) -> None:
    assert_type(batch.stats, ubatch.Stats)
    assert_type(batch.stats.items, int)
    assert_type(batch.stats.mean_batch_size, float)
    assert_type(batch.stats - batch.stats, ubatch.Stats)
    assert_type(batch.stats.wait, ubatch.Histogram)
    assert_type(batch.stats.wait.p99, float)


def seen(record: ubatch.Batch) -> None:
    assert_type(record.waits, tuple[float, ...])
    assert_type(record.error, Exception | None)


def observers(batch: UBatch[str, int]) -> None:
    assert_type(ubatch.observe(seen), Callable[[], None])
    ubatch.observe(print, batch)
    UBatch[str, int](observer=seen)
    ubatch_decorator(max_size=8, observer=seen)
    assert_type(ubatch.metrics.prometheus(batch), Callable[[], None])
    ubatch.metrics.opentelemetry()
    ubatch.metrics.traces()

    ubatch.observe(lambda: None)  # type: ignore
    UBatch[str, int](observer=lengths)  # type: ignore


def made() -> None:
    two_steps: UBatch[str, int] = UBatch(max_size=10, timeout=0.01)
    two_steps.set_handler(handler=lengths)
    greedy: UBatch[str, int] = UBatch()
    assert_type(greedy.ubatch("a"), int)
    assert_type(UBatch(handler=lengths), UBatch[str, int])
    assert_type(UBatch(64, 0.02, handler=lengths, name="lengths", isolate=True), UBatch[str, int])
    with UBatch(max_size=64, timeout=None, handler=lengths) as batch:
        assert_type(batch, UBatch[str, int])


def mistakes(batch: UBatch[str, int]) -> None:
    batch.ubatch(1)  # type: ignore
    batch.submit(1)  # type: ignore
    batch.map([1])  # type: ignore
    batch.set_handler(len)  # type: ignore


# Handlers: any callable that takes a list and returns a sequence or an array.


def squares(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(number**2 for number in numbers)


class Row:
    """One row of a matrix."""


class Matrix:
    """An array as numpy and torch have them: it is no `Sequence`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int, /) -> Row:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Row]:
        raise NotImplementedError


class Encoder:
    """A callable object, as models are."""

    def __call__(self, texts: list[str]) -> Matrix:
        raise NotImplementedError

    def encode(self, texts: list[str]) -> Matrix:
        raise NotImplementedError


def search(queries: list[str], limit: list[int] | None = None) -> list[list[str]]:
    raise NotImplementedError


def handlers() -> None:
    assert_type(UBatch(handler=squares), UBatch[float, float])
    assert_type(UBatch(handler=Encoder()), UBatch[str, Row])
    assert_type(UBatch(handler=Encoder().encode), UBatch[str, Row])
    assert_type(UBatch(handler=search).ubatch("a", limit=3), list[str])
    assert_type(UBatch(handler=search).submit("a", 3), Future[list[str]])
    assert_type(UBatch(handler=search).submit(queries="a", limit=3), Future[list[str]])


# Decorated functions: the plain call keeps its signature, and the faces stand beside it.


@ubatch_decorator
def bare(texts: list[str]) -> list[int]:
    raise NotImplementedError


@ubatch_decorator()
def empty(texts: list[str]) -> list[int]:
    raise NotImplementedError


@ubatch_decorator(max_size=64, timeout=0.01, isolate=True)
def configured(texts: list[str], *, factor: Sequence[float] = ()) -> list[int]:
    raise NotImplementedError


@ubatch_decorator
def generic(items: list[T]) -> list[T]:
    raise NotImplementedError


async def functions() -> None:
    assert_type(bare(["a"]), list[int])
    assert_type(bare(texts=["a"]), list[int])
    assert_type(bare.ubatch("a"), int)
    assert_type(bare.submit("a"), Future[int])
    assert_type(await bare.aubatch("a"), int)
    assert_type(bare.map(["a"]), list[int])
    assert_type(await bare.amap(["a"]), list[int])
    assert_type(bare.batcher, UBatch[str, int])
    assert_type(bare.stats, ubatch.Stats)

    assert_type(empty(["a"]), list[int])
    assert_type(empty.ubatch("a"), int)

    assert_type(configured(["a"], factor=[0.5]), list[int])
    assert_type(configured.ubatch("a"), int)
    assert_type(configured.ubatch("a", factor=0.5), int)
    assert_type(configured.ubatch(texts="a", factor=0.5), int)
    assert_type(configured.map(["a"], [0.5]), list[int])
    assert_type(list(map(bare, [["a"]])), list[list[int]])
    assert_type(bare.__name__, str)

    assert_type(generic([1]), list[int])

    bare("a")  # type: ignore
    bare(["a"], 1)  # type: ignore
    bare.ubatch(1)  # type: ignore


# Methods of each kind: `self` and `cls` are bound, in the plain call and in the faces.


class Model:
    """Has one decorated method of each kind."""

    @ubatch_decorator
    def encode(self, texts: list[str]) -> list[int]:
        raise NotImplementedError

    @ubatch_decorator(max_size=8)
    def score(self, texts: list[str]) -> list[float]:
        raise NotImplementedError

    @ubatch_decorator
    @classmethod
    def of_class(cls, texts: list[str]) -> list[int]:
        raise NotImplementedError

    @ubatch_decorator(timeout=0)
    @staticmethod
    def outside(texts: list[str]) -> list[int]:
        raise NotImplementedError

    @staticmethod
    @ubatch_decorator
    def inside(texts: list[str]) -> list[int]:
        raise NotImplementedError


async def methods(model: Model) -> None:
    assert_type(model.encode(["a"]), list[int])
    assert_type(model.encode.ubatch("a"), int)
    assert_type(model.encode.submit("a"), Future[int])
    assert_type(await model.encode.aubatch("a"), int)
    assert_type(model.encode.map(["a"]), list[int])
    assert_type(await model.encode.amap(["a"]), list[int])
    assert_type(model.encode.batcher, UBatch[str, int])

    assert_type(model.score(["a"]), list[float])
    assert_type(model.score.ubatch("a"), float)

    assert_type(Model.encode(model, ["a"]), list[int])

    assert_type(model.of_class(["a"]), list[int])
    assert_type(model.of_class.ubatch("a"), int)
    assert_type(Model.of_class(["a"]), list[int])
    assert_type(Model.of_class.ubatch("a"), int)

    assert_type(model.outside(["a"]), list[int])
    assert_type(Model.outside.ubatch("a"), int)
    assert_type(model.inside(["a"]), list[int])
    assert_type(Model.inside.ubatch("a"), int)

    assert_type(model.encode.__name__, str)
    assert_type(UBatch(handler=model.encode), UBatch[str, int])

    model.encode("a")  # type: ignore
    model.encode.ubatch(1)  # type: ignore
    model.encode.ubacth("a")  # type: ignore
    Model.encode(["a"])  # type: ignore


# Errors: who catches the standard library's catches ours.


def errors(kind: type[ubatch.UBatchError]) -> None:
    try:
        raise kind
    except ubatch.UBatchError as error:
        assert_type(error, ubatch.UBatchError)


not_set: type[RuntimeError] = ubatch.HandlerNotSet
already_set: type[RuntimeError] = ubatch.HandlerAlreadySet
bad_size: type[ValueError] = ubatch.BadBatchOutputSize
failed: type[RuntimeError] = ubatch.HandlerFailed
full: type[queue.Full] = ubatch.QueueFull
late: type[TimeoutError] = ubatch.DeadlineExceeded
stopped: type[RuntimeError] = ubatch.Stopped
died: type[RuntimeError] = ubatch.WorkerDied
every: list[type[ubatch.UBatchError]] = [
    ubatch.HandlerNotSet,
    ubatch.HandlerAlreadySet,
    ubatch.BadBatchOutputSize,
    ubatch.HandlerFailed,
    ubatch.QueueFull,
    ubatch.DeadlineExceeded,
    ubatch.Stopped,
    ubatch.WorkerDied,
]
