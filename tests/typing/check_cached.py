"""Never run: what mypy and pyright see of `cached`; see `check_faces`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, MutableMapping
from concurrent.futures import Future

from typing_extensions import assert_type

import ubatch.aio
from ubatch import UBatch, cached, dynamically, ubatch_decorator


@ubatch_decorator
def decorated(texts: list[str]) -> list[int]:
    raise NotImplementedError


@dynamically(max_size=8)
def dynamic(texts: list[str]) -> list[int]:
    raise NotImplementedError


@ubatch.aio.ubatch_decorator
async def adecorated(texts: list[str]) -> list[int]:
    raise NotImplementedError


@ubatch.aio.dynamically
async def adynamic(texts: list[str]) -> list[int]:
    raise NotImplementedError


class Model:
    """Has decorated methods."""

    @ubatch_decorator
    def encode(self, texts: list[str]) -> list[int]:
        raise NotImplementedError

    @dynamically
    def score(self, texts: list[str]) -> list[float]:
        raise NotImplementedError

    @ubatch.aio.dynamically
    async def aencode(self, texts: list[str]) -> list[int]:
        raise NotImplementedError


class Store:
    """All that is needed of a cache."""

    def __getitem__(self, key: str) -> int:
        raise NotImplementedError

    def __setitem__(self, key: str, value: int) -> None:
        raise NotImplementedError


async def threads(batch: UBatch[str, int], model: Model, mapping: MutableMapping[str, int]) -> None:
    fast = cached(batch, {})
    assert_type(fast.ubatch("a"), int)
    assert_type(fast.ubatch("a", limit=3), int)
    assert_type(fast.submit("a"), Future[int])
    assert_type(await fast.aubatch("a"), int)
    assert_type(fast.map(["a"]), list[int])
    assert_type(await fast.amap(["a"]), list[int])
    assert_type(fast.stream(["a"], ahead=3), Iterator[int])
    assert_type(fast.astream(["a"]), AsyncIterator[int])
    assert_type(fast.batcher, UBatch[str, int])
    assert_type(fast.stats.hits, int)
    assert_type(fast.stats.batcher, ubatch.Stats)

    assert_type(cached(batch, cache=mapping).ubatch("a"), int)
    assert_type(cached(batch, OrderedDict[str, int](), key=len).ubatch("a"), int)
    assert_type(cached(batch, Store(), str.lower).ubatch("a"), int)
    assert_type(cached(decorated, {}).ubatch("a"), int)
    assert_type(cached(dynamic, {}).ubatch("a"), int)
    assert_type(cached(model.encode, {}).ubatch("a"), int)
    assert_type(cached(model.score, {}).ubatch("a"), float)

    fast.ubatch(1)  # type: ignore
    fast.map([1])  # type: ignore
    cached(batch, None)  # type: ignore
    cached(batch, {}, key=3)  # type: ignore
    cached(3, {})  # type: ignore


async def loops(batch: ubatch.aio.UBatch[str, int], model: Model) -> None:
    fast = cached(batch, {})
    assert_type(await fast.ubatch("a"), int)
    assert_type(await fast.aubatch("a"), int)
    assert_type(fast.submit("a"), asyncio.Future[int])
    assert_type(await fast.map(["a"]), list[int])
    assert_type(await fast.amap(["a"]), list[int])
    assert_type(fast.stream(["a"]), AsyncIterator[int])
    assert_type(fast.astream(["a"]), AsyncIterator[int])
    assert_type(fast.batcher, ubatch.aio.UBatch[str, int])
    assert_type(fast.stats.misses, int)

    assert_type(await cached(adecorated, {}).ubatch("a"), int)
    assert_type(await cached(adynamic, {}).ubatch("a"), int)
    assert_type(await cached(model.aencode, {}).ubatch("a"), int)

    await fast.ubatch(1)  # type: ignore
    await fast.map([1])  # type: ignore
