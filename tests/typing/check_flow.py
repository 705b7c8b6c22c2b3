"""Never run: what mypy and pyright see of `Flow` and `Step`; see `check_faces`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from typing_extensions import assert_type

from ubatch import Flow, Stats, Step, UBatch
from ubatch.flow import FlowStats


class Array:
    """Stands for an array."""


class Label:
    """Stands for a result."""


def decode(files: list[bytes]) -> list[Array]:
    raise NotImplementedError


def classify(arrays: list[Array]) -> list[Label]:
    raise NotImplementedError


def stacked(array: Array) -> list[Label]:
    raise NotImplementedError


def named(labels: list[Label]) -> list[str]:
    raise NotImplementedError


class Classifier:
    """A handler that is made."""

    def __call__(self, arrays: list[Array]) -> list[Label]:
        raise NotImplementedError


def load() -> Classifier:
    raise NotImplementedError


def steps() -> None:
    assert_type(Step(decode), Step[bytes, Array])
    assert_type(Step(decode, processes=2, max_size=8, timeout=0.01, retries=1, name="d"), Step[bytes, Array])
    assert_type(Step(Classifier, processes=1), Step[Array, Label])
    assert_type(Step(load), Step[Array, Label])
    assert_type(Step([classify, classify]), Step[Array, Label])
    assert_type(Step(stacked, stacked=True), Step[Any, Any])
    Step(decode, proceses=2)  # type: ignore[call-overload]


def one() -> None:
    flow = Flow(Step(decode))
    assert_type(flow, Flow[bytes, Array])
    assert_type(Flow(decode, name="images", deadline=1.0), Flow[bytes, Array])
    flow.ubatch("text")  # type: ignore[call-overload]


def two() -> None:
    assert_type(Flow(decode, classify), Flow[bytes, Label])
    flow = Flow(Step(decode, processes=2), Step(Classifier))
    assert_type(flow, Flow[bytes, Label])
    assert_type(flow.ubatch(b""), Label)
    assert_type(flow.submit(b""), Future[Label])
    assert_type(flow.map([b""]), list[Label])
    assert_type(flow.stream([b""]), Iterator[Label])
    assert_type(flow.options(priority=1).ubatch(b""), Label)
    assert_type(flow.start(timeout=1.0), Flow[bytes, Label])
    assert_type(flow.stop(drain=True, timeout=1.0), bool)
    assert_type(flow.steps, tuple[UBatch[Any, Any], ...])
    assert_type(flow.stats, FlowStats)
    assert_type(flow.stats.steps[0].batches, Stats)
    with flow as entered:
        assert_type(entered, Flow[bytes, Label])


def several() -> None:
    assert_type(Flow(decode, Step(classify), named), Flow[bytes, str])
    assert_type(Flow(decode, classify, named, named), Flow[Any, Any])


async def awaited(flow: Flow[bytes, Label]) -> None:
    assert_type(await flow.aubatch(b""), Label)
    assert_type(await flow.amap([b""]), list[Label])
    assert_type(await flow.astop(), bool)
