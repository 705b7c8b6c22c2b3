"""Never run: what mypy and pyright see of `inference.dynamically`; see `check_faces`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future

from typing_extensions import assert_type

import ubatch
import ubatch.aio.inference
from ubatch import inference


class Array:
    """Stands for an array."""


@inference.dynamically
def bare(features: dict[str, Array]) -> Array:
    raise NotImplementedError


@inference.dynamically(max_size=8, pad_tokens={"ids": 0}, padding_side="left", max_weight=8192, padded=True)
def configured(features: dict[str, Array]) -> dict[str, Array]:
    raise NotImplementedError


@inference.dynamically(spread_kwargs=True, pad_axis={"ids": (0, 1)}, unpad={0: "ids"}, key=len)
def spread(ids: Array, mask: Array) -> tuple[Array, Array]:
    raise NotImplementedError


@ubatch.aio.inference.dynamically
async def aloop(features: dict[str, Array]) -> Array:
    raise NotImplementedError


@ubatch.aio.inference.dynamically(workers=2, pad_tokens={"ids": 0})
async def aconfigured(features: dict[str, Array]) -> list[Array]:
    raise NotImplementedError


@ubatch.aio.inference.dynamically(workers=2)
def plain(features: dict[str, Array]) -> Array:
    raise NotImplementedError


class Model:
    """Has decorated methods."""

    @inference.dynamically
    def encode(self, features: dict[str, Array]) -> Array:
        raise NotImplementedError


async def check(model: Model, array: Array) -> None:
    assert_type(bare({"ids": array}), Array)
    assert_type(bare(ids=array), Array)
    assert_type(bare.ubatch({"ids": array}), Array)
    assert_type(bare.submit({"ids": array}), Future[Array])
    assert_type(await bare.aubatch(ids=array), Array)
    assert_type(bare.map([{"ids": array}]), list[Array])
    assert_type(bare.stream([{"ids": array}]), Iterator[Array])
    assert_type(await bare.acall({"ids": array}), Array)
    assert_type(bare.options(priority=1)({"ids": array}), Array)
    assert_type(bare.stats, ubatch.Stats)
    assert_type(configured(ids=array), dict[str, Array])
    assert_type(spread.ubatch(ids=array, mask=array), tuple[Array, Array])
    assert_type(model.encode({"ids": array}), Array)
    assert_type(await aloop({"ids": array}), Array)
    assert_type(await aloop.ubatch(ids=array), Array)
    assert_type(aloop.submit({"ids": array}), asyncio.Future[Array])
    assert_type(await aconfigured.map([{"ids": array}]), list[list[Array]])
    assert_type(await plain({"ids": array}), Array)
    assert_type(await plain.options(deadline=1)(ids=array), Array)

    bare(array)  # type: ignore
    inference.dynamically(padding="left")  # type: ignore
