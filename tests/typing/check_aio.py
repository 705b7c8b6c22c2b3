"""Never run: what mypy and pyright see of `dynamically`, of streams and of `ubatch.aio`; see `check_faces`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from typing_extensions import assert_type

import ubatch.aio
from ubatch import UBatch, dynamically


def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


async def alengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@dynamically
def bare(texts: list[str]) -> list[int]:
    raise NotImplementedError


@dynamically(max_size=8, timeout=0.1, isolate=True)
def configured(texts: list[str]) -> tuple[int, ...]:
    raise NotImplementedError


class Model:
    """Has decorated methods of both kinds."""

    @dynamically
    def encode(self, texts: list[str]) -> list[int]:
        raise NotImplementedError

    @dynamically(max_size=8)
    def score(self, texts: list[str]) -> list[float]:
        raise NotImplementedError

    @ubatch.aio.dynamically
    async def aencode(self, texts: list[str]) -> list[int]:
        raise NotImplementedError

    @ubatch.aio.ubatch_decorator
    async def plain(self, texts: list[str]) -> list[int]:
        raise NotImplementedError


async def threads(model: Model, batch: UBatch[str, int]) -> None:
    assert_type(bare("a"), int)
    assert_type(bare(["a"]), list[int])
    assert_type(await bare.acall("a"), int)
    assert_type(await bare.acall(["a"]), list[int])
    assert_type(bare.ubatch("a"), int)
    assert_type(bare.map(["a"]), list[int])
    assert_type(bare.stats, ubatch.Stats)
    assert_type(configured("a"), int)
    assert_type(model.encode("a"), int)
    assert_type(model.encode(["a"]), list[int])
    assert_type(model.score("a"), float)
    assert_type(batch.stream(["a"]), Iterator[int])
    assert_type(batch.astream(["a"]), AsyncIterator[int])
    assert_type(bare.stream(["a"], ahead=3), Iterator[int])

    bare(1)  # type: ignore
    bare.ubatch(1)  # type: ignore
    batch.stream([1])  # type: ignore


@ubatch.aio.dynamically
async def abare(texts: list[str]) -> list[int]:
    raise NotImplementedError


@ubatch.aio.dynamically(max_size=8, workers=2, isolate=True)
async def aconfigured(texts: list[str]) -> list[int]:
    raise NotImplementedError


@ubatch.aio.ubatch_decorator(max_size=8, isolate=True)
async def decorated(texts: list[str]) -> list[int]:
    raise NotImplementedError


async def loops(model: Model, batch: ubatch.aio.UBatch[str, int]) -> None:
    assert_type(await batch.ubatch("a"), int)
    assert_type(await batch.aubatch("a"), int)
    assert_type(batch.submit("a"), asyncio.Future[int])
    assert_type(await batch.map(["a"]), list[int])
    assert_type(batch.stream(["a"]), AsyncIterator[int])
    assert_type(await batch.stop(timeout=1), bool)
    async with batch as entered:
        assert_type(entered, ubatch.aio.UBatch[str, int])
    assert_type(await ubatch.aio.UBatch(handler=alengths, isolate=True).ubatch("a"), int)
    assert_type(await ubatch.aio.UBatch(handler=lengths).ubatch("a"), int)

    assert_type(await abare("a"), int)
    assert_type(await abare(["a"]), list[int])
    assert_type(await abare.acall("a"), int)
    assert_type(await abare.ubatch("a"), int)
    assert_type(await abare.map(["a"]), list[int])
    assert_type(await aconfigured("a"), int)
    assert_type(await decorated(["a"]), list[int])
    assert_type(await decorated.ubatch("a"), int)
    assert_type(decorated.submit("a"), asyncio.Future[int])
    assert_type(await model.aencode("a"), int)
    assert_type(await model.aencode(["a"]), list[int])
    assert_type(await model.plain(["a"]), list[int])
    assert_type(await model.plain.ubatch("a"), int)

    await batch.ubatch(1)  # type: ignore
    await abare(1)  # type: ignore
