"""`inference.dynamically`, of threads and of event loops: arrays of many callers in one batch."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import far
import pytest

from ubatch import BadBatchOutputSize, Stopped, cached
from ubatch.aio import inference as aio_inference
from ubatch.inference import dynamically

np = pytest.importorskip("numpy")
try:
    import torch
except ImportError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
LIBRARIES = ["numpy", pytest.param("torch", marks=needs_torch)]


@pytest.fixture
def threads(request):
    """`dynamically`, whose batchers are stopped in the end."""
    made = []

    def decorator(*args, **options):
        if args and callable(args[0]):
            made.append(dynamically(*args, **options))
            return made[-1]

        def decorate(function):
            made.append(dynamically(*args, **options)(function))
            return made[-1]

        return decorate

    yield decorator
    for function in made:
        function.batcher.stop()


@dynamically(pad_tokens={"ids": 0})
def sums(features):
    """The sum of each row."""
    return features["ids"].sum(axis=1)


class Model:
    """Methods, spread and not."""

    def __init__(self, factor):
        self.factor = factor

    @dynamically
    def scaled(self, features):
        return features["x"] * self.factor

    @dynamically(spread_kwargs=True, pad_tokens={"x": 0})
    def both(self, x, y):
        return {"x": x.sum(1) * self.factor, "y": y}

    @dynamically
    @staticmethod
    def negated(features):
        return -features["x"]

    @aio_inference.dynamically(spread_kwargs=True)
    async def ascaled(self, x):
        return x * self.factor


@pytest.fixture(autouse=True)
def _workers_end():
    yield
    for batcher in (sums.batcher, Model.negated.batcher):
        batcher.stop()
        batcher.start()


def together(function, examples):
    """The results of examples that go in one batch, if they may."""
    return [future.result(10) for future in [function.submit(example) for example in examples]]


# -- faces ------------------------------------------------------------------------------------------------


def test_all_faces():
    """With the batch axis by a call, without it by the others; lists of numbers are arrays."""
    assert sums({"ids": np.array([[1, 2], [3, 4]])}).tolist() == [3, 7]
    assert sums(ids=[[1, 2], [3]]).tolist() == [3, 3]
    assert sums.ubatch({"ids": np.array([1, 2])}) == 3
    assert sums.ubatch(ids=[1, 2, 3]) == 6
    assert sums.submit({"ids": [4]}).result() == 4
    assert sums.map([{"ids": [1]}, {"ids": [1, 1]}]) == [1, 2]
    assert list(sums.stream({"ids": [n]} for n in range(3))) == [0, 1, 2]
    assert sums.options(priority=-1, key="mine").ubatch(ids=[7]) == 7
    assert sums.options(deadline=10)({"ids": [[1], [2]]}).tolist() == [1, 2]
    assert sums.batcher.ubatch({"ids": [5]}) == sums.batcher.ubatch(ids=[5]) == 5
    assert sums.batcher.options(key=3).map([{"ids": [5]}]) == [5]
    assert sums.__wrapped__({"ids": np.ones((1, 3))}).tolist() == [3]
    assert (sums.__name__, sums.__doc__, sums.batcher.name) == ("sums", "The sum of each row.", "sums")
    assert pickle.loads(pickle.dumps(sums)) is sums

    async def main():
        assert await sums.aubatch(ids=[1, 2]) == 3
        assert await sums.amap([{"ids": [1]}, {"ids": [2, 3]}]) == [1, 5]
        assert (await sums.acall({"ids": [[1, 1], [2, 2]]})).tolist() == [2, 4]
        assert (await sums.options(priority=1).acall(ids=[[1, 1]])).tolist() == [2]

    asyncio.run(main())


def test_all_faces_of_an_event_loop(run):
    """Coroutine functions, and plain ones in a thread."""
    for is_coroutine in (True, False):

        async def handler(features):
            await asyncio.sleep(0)
            return features["ids"].sum(axis=1)

        def plain(features):
            return features["ids"].sum(axis=1)

        asums = aio_inference.dynamically(pad_tokens={"ids": 0}, workers=2)(handler if is_coroutine else plain)

        async def main(asums=asums):
            assert (await asums({"ids": [[1, 2], [3]]})).tolist() == [3, 3]
            assert (await asums.acall(ids=np.ones((2, 3)))).tolist() == [3, 3]
            assert await asums.ubatch(ids=[1, 2]) == await asums.aubatch({"ids": [1, 2]}) == 3
            assert await asums.submit({"ids": [4]}) == 4
            assert await asums.map([{"ids": [1]}, {"ids": [1, 1]}]) == [1, 2]
            assert [one async for one in asums.stream({"ids": [n]} for n in range(3))] == [0, 1, 2]
            assert await asums.options(priority=-1, key="mine").ubatch(ids=[7]) == 7
            assert (await asums.options(deadline=10)({"ids": [[1], [2]]})).tolist() == [1, 2]
            with pytest.raises(TypeError, match="'ids'"):
                await asums.ubatch(ids="text")
            await asums.batcher.stop()

        run(main)


def test_methods():
    """Bare and with options; a batcher for each instance."""
    two, three = Model(2), Model(3)
    x = np.arange(6).reshape(2, 3)
    assert (two.scaled({"x": x}) == x * 2).all()
    assert three.scaled.ubatch(x=[1, 2]).tolist() == [3, 6]
    assert two.scaled.batcher is not three.scaled.batcher
    both = two.both({"x": [[1, 2], [3]], "y": np.ones((2, 1))})
    assert both["x"].tolist() == [6, 6] and both["y"].shape == (2, 1)
    assert Model.negated.ubatch(x=3) == -3
    assert asyncio.run(two.ascaled(x=[[1], [2]])).tolist() == [[2], [4]]
    for method in (two.scaled, three.scaled, two.both):
        method.batcher.stop()


def test_it_is_loaded_at_first_use(run_python):
    """By attribute and by import, without numpy and torch; and so is `ubatch.aio.inference`, with asyncio."""
    found = run_python(
        """
        import sys
        import ubatch
        print(ubatch.inference.dynamically.__module__, "asyncio" in sys.modules)
        print(ubatch.aio.inference.dynamically.__module__)
        from ubatch.aio import inference
        import ubatch.aio.inference
        from ubatch import inference

        @inference.dynamically(pad_tokens={"x": 0})
        def f(features):
            return features["x"]

        print(*({"numpy", "torch"} & set(sys.modules)))
        """
    )
    assert found.splitlines() == ["ubatch.inference False", "ubatch.aio.inference", ""]


@pytest.mark.parametrize("decorator", [dynamically, aio_inference.dynamically], ids=["threads", "aio"])
@pytest.mark.parametrize(
    "options",
    [
        {"padding_side": "top"},
        {"pad_tokens": 0},
        {"spread_kwargs": 1},
        {"max_weight": 100},
        {"padded": True},
        {"max_size": 0},
        {"misspelt": 1},
        {"handler": len},
        {"small_batch_threshold": 0},
    ],
    ids=str,
)
def test_a_wrong_option_is_told_where_it_stands(decorator, options):
    with pytest.raises((TypeError, ValueError)):
        decorator(**options)


def test_a_coroutine_function_is_for_aio():
    with pytest.raises(TypeError, match=r"ubatch\.aio"):

        @dynamically
        async def wrong(features):
            return features["x"]


def test_a_call_takes_features_and_nothing_else():
    for args, kwargs in [((), {}), (({"ids": [1]}, {"ids": [1]}), {}), (({"ids": [1]},), {"ids": [1]})]:
        for face in (sums, sums.ubatch, sums.submit):
            with pytest.raises(TypeError):
                face(*args, **kwargs)
    with pytest.raises(ValueError, match="at least one row"):
        sums({"ids": np.zeros((0, 3))})


# -- batches ----------------------------------------------------------------------------------------------


def test_callers_share_a_batch(threads):
    """Padded and stacked, with the true lengths, as its dtype; rows of a call count one by one."""
    seen: list[Any] = []

    @threads(max_size=4, timeout=60, pad_tokens={"ids": 9, "mask": 0}, pad_to=4, lengths="n", padding_side="left")
    def handler(features):
        seen.append(dict(features))
        return [features["ids"], (features["mask"].sum(1), features["label"])]

    def features(length):
        return {"ids": np.full(length, length, np.int32), "mask": np.ones(length, bool), "label": length}

    with ThreadPoolExecutor(3) as pool:
        one = pool.submit(handler.ubatch, features(1))
        two = pool.submit(
            handler, {"ids": [np.full(2, 2, np.int32)] * 2, "mask": np.ones((2, 2), bool), "label": [2, 2]}
        )
        five = pool.submit(handler.ubatch, **features(5))
        ids, (count, label) = one.result()
        assert ids.tolist() == [9] * 7 + [1] and (count, label) == (1, 1)
        ids, (count, label) = two.result()
        assert ids.tolist() == [[9] * 6 + [2, 2]] * 2 and count.tolist() == label.tolist() == [2, 2]
        assert five.result()[0].tolist() == [9] * 3 + [5] * 5
    assert len(seen) == 1
    assert seen[0]["ids"].dtype == np.int32 and seen[0]["ids"].shape == (4, 8)
    assert sorted(seen[0]["n"]["ids"]) == sorted(seen[0]["n"]["mask"]) == [1, 2, 2, 5]
    assert handler.stats.items == 4


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("driver", ["threads", "aio"])
def test_results_that_are_kept_never_change(threads, run, library, driver):
    """An identity handler, results of 100 batches, in every structure."""
    structures = [
        lambda x: x,
        lambda x: {"x": x, "rest": [x[:, ::2], x.reshape(len(x), -1, 1)]},
        lambda x: (x[:, 1:], x),
    ]

    def row_of(number):
        return np.arange(number % 7 + 1) + number + 1

    def example(number):
        return {"x": row_of(number) if library == "numpy" else torch.from_numpy(row_of(number))}

    def leaves(result):
        if isinstance(result, dict):
            result = list(result.values())
        return [leaf for part in result for leaf in leaves(part)] if isinstance(result, (list, tuple)) else [result]

    for structure in structures:
        options = {"max_size": 4, "pad_tokens": {"x": 0}}
        kept = []
        if driver == "threads":
            function = threads(**options)(lambda features, structure=structure: structure(features["x"]))
            for start in range(0, 400, 4):
                kept += function.map([example(number) for number in range(start, start + 4)])
        else:

            async def handler(features, structure=structure):
                await asyncio.sleep(0)
                return structure(features["x"])

            async def main(handler=handler, kept=kept, options=options):
                function = aio_inference.dynamically(**options, workers=3)(handler)
                for start in range(0, 400, 8):
                    kept += await function.map([example(number) for number in range(start, start + 8)])
                await function.batcher.stop()

            run(main)
        for number, result in enumerate(kept):
            found = [np.asarray(leaf) for leaf in leaves(result)]
            row = row_of(number)
            padded = np.zeros((1, max(map(len, found))), row.dtype)
            padded[0, : len(row)] = row
            for leaf, wanted in zip(found, leaves(structure(padded)), strict=True):
                np.testing.assert_array_equal(leaf, wanted[0])


def test_two_workers_have_buffers_of_their_own(run):
    """While one batch is with its handler, the next is stacked; the handler sees its own to the end."""
    wrong = []

    @aio_inference.dynamically(max_size=2, workers=4, timeout=0, pad_tokens={"x": -1})
    async def handler(features):
        before = features["x"].copy()
        await asyncio.sleep(0.001)
        if not (before == features["x"]).all():
            wrong.append(before)
        features["x"] *= 2  # it may
        return features["x"]

    async def main():
        results = await asyncio.gather(*(handler.ubatch(x=[number] * 3) for number in range(200)))
        assert [result.tolist() for result in results] == [[2 * number] * 3 for number in range(200)]
        await handler.batcher.stop()

    run(main)
    assert wrong == []


def test_many_threads(threads, hurry, seed):
    """Examples of several forms from many threads; results kept, input mutated and kept by the handler."""
    history = []

    @threads(max_size=16, pad_tokens={"x": 0}, unpad="x")
    def handler(features):
        history.append(features["x"])
        del history[:-3]
        features["x"] += 1
        return features["x"]

    def caller(number):
        rng = np.random.default_rng([seed, number])
        mine = []
        for _ in range(60):
            row = rng.integers(0, 1000, rng.integers(1, 50)).astype(rng.choice(["i4", "i8", "f4"]))
            mine.append((row.copy(), handler.ubatch(x=row), row))
        for before, result, row in mine:
            np.testing.assert_array_equal(result, before + 1)
            np.testing.assert_array_equal(row, before)
            assert result.dtype == row.dtype

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(caller, range(8)))
    assert handler.stats.items == 480


# -- what differs -----------------------------------------------------------------------------------------


def test_what_differs_goes_apart_and_nobody_notices(threads):
    """Dtypes, shapes, missing and extra features: each handler call is of one form, and fails for that one alone."""
    forms = []

    @threads(max_size=8, timeout=0.05, pad_tokens={"x": 0}, unequal="apart")
    def handler(features):
        forms.append((tuple(sorted(features)), features["x"].dtype.str, features["x"].shape[2:]))
        return features["x"].sum(1) + features["y"]

    good = [{"x": np.ones(size, np.int64), "y": 1} for size in (1, 2, 3)]
    other = [
        {"x": np.ones(2, np.float32), "y": 1},
        {"x": np.ones((2, 4), np.int64), "y": np.zeros(4, np.int64)},
        {"x": np.ones(2, np.int64), "y": 1, "z": 1},
    ]
    bad = [{"x": np.ones(2, np.int64)}, {"y": 1}]
    futures = [handler.submit(one) for one in [bad[0], *good, *other, bad[1]]]
    assert [future.result(10).tolist() for future in futures[1:-1]] == [2, 3, 4, 3.0, [2] * 4, 3]
    for future in (futures[0], futures[-1]):
        with pytest.raises(KeyError):
            future.result(10)
    assert len(forms) == len(set(forms)) == 5
    assert [form[1] for form in forms].count("<f4") == 1


def test_a_shape_that_does_not_fit_fails_alone(threads):
    """Without a pad token for it its caller is told what to do; all others of the batch get their results."""
    batches = []

    @threads(max_size=8, timeout=0.05)
    def handler(features):
        batches.append(features["x"].shape)
        return features["x"].sum(1)

    futures = [handler.submit(x=np.ones(size)) for size in (3, 3, 4, 3, 5)]
    assert [futures[position].result(10) for position in (0, 1, 3)] == [3.0] * 3
    for position in (2, 4):
        with pytest.raises(ValueError, match=r"'x' of shape .* pad_tokens"):
            futures[position].result(10)
    assert batches == [(3, 3)]
    assert handler.stats.errors == 2
    with pytest.raises(ValueError, match="pad_tokens"):  # two rows of one call
        handler(x=[np.ones(3), np.ones(4)])
    assert handler.ubatch(x=np.ones(4)) == 4.0


@pytest.mark.parametrize("plain", [False, True])
def test_a_shape_that_does_not_fit_fails_alone_on_an_event_loop(run, plain):
    async def coroutine(features):
        return features["x"].sum(1)

    def function(features):
        return features["x"].sum(1)

    handler = aio_inference.dynamically(max_size=8, timeout=0.05)(function if plain else coroutine)

    async def main():
        calls = [handler.ubatch(x=np.ones(size)) for size in (3, 4, 3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [results[0], results[2]] == [3.0, 3.0]
        assert isinstance(results[1], ValueError)
        await handler.batcher.stop()

    run(main)


@pytest.mark.usefixtures("_processes_may_be_spawned")
def test_a_handler_in_a_process():
    """Arrays are stacked here, and travel there; the handler goes by its name."""
    far.sums._options["executor"] = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
    try:
        results = far.sums.map([{"x": np.full(size, size)} for size in (1, 2, 3)])
        assert [result["sum"].item() for result in results] == [1, 4, 9]
        assert os.getpid() not in {result["pid"].item() for result in results}
    finally:
        far.sums.batcher.stop()
        del far.sums.__dict__[far.sums._key]


def test_keys_come_on_top_of_forms(threads):
    """The option's and the view's; the function gets the example as arrays."""
    batches = []

    def language(example):
        assert isinstance(example["x"], np.ndarray)
        return int(example["lang"])

    @threads(max_size=8, timeout=0.05, key=language)
    def handler(features):
        batches.append(sorted(set(features["lang"].tolist())))
        return features["x"]

    futures = [handler.submit(x=np.ones(2, dtype), lang=lang) for lang in (1, 2) for dtype in ("i4", "f4", "i4")]
    futures += [
        handler.options(key="all").submit(x=np.ones(2, dtype), lang=lang) for lang in (1, 2) for dtype in ("i4", "f4")
    ]
    for future in futures:
        future.result(10)
    assert sorted(batches) == [[1], [1], [1, 2], [1, 2], [2], [2]]


def test_keys_of_views_come_on_top_of_forms_on_an_event_loop(run):
    """One handler call for each form, whatever key is asked for."""
    dtypes = []

    @aio_inference.dynamically(max_size=8, timeout=0.05)
    async def handler(features):
        dtypes.append(features["x"].dtype.str)
        return features["x"]

    async def main():
        mixed = handler.options(key="all")
        results = await asyncio.gather(*(mixed.ubatch(x=np.ones(2, dtype)) for dtype in ("i4", "f4", "i4")))
        assert [result.dtype.str for result in results] == ["<i4", "<f4", "<i4"]
        await handler.batcher.stop()

    run(main)
    assert sorted(dtypes) == ["<f4", "<i4"]


def test_a_bad_call_fails_alone(threads):
    """At once, in its caller; of a map or a call, all or none."""

    @threads(timeout=0.05, pad_tokens={"x": -1})
    def handler(features):
        return features["x"]

    future = handler.submit(x=[1, 2])
    with pytest.raises(ValueError, match="uint8"):
        handler.submit(x=np.zeros(2, np.uint8))
    with pytest.raises(TypeError, match="'x'"):
        handler.map([{"x": [1]}, {"x": None}])
    with pytest.raises(ValueError, match="same number of rows"):
        handler({"x": [[1], [2]], "y": [1]})
    assert future.result(10).tolist() == [1, 2]
    assert handler.stats.items == 1


@pytest.mark.parametrize("driver", ["threads", "aio"])
def test_isolate(threads, run, driver):
    """The handler is called again with halves, each stacked anew; the bad item's caller alone has the error."""
    sizes = []

    def work(features):
        sizes.append(features["x"].shape)
        features["x"] += 1
        if (features["x"] == 14).any():
            raise ValueError("thirteen")
        return features["x"][:, 0]

    options = {"max_size": 16, "timeout": 0.1, "isolate": True, "pad_tokens": {"x": 0}}
    examples = [{"x": [number] * (number % 5 + 1)} for number in range(16)]
    if driver == "threads":
        handler = threads(**options)(work)
        results = [future.exception() or future.result() for future in [handler.submit(one) for one in examples]]
    else:

        async def main():
            async def awork(features):
                return work(features)

            handler = aio_inference.dynamically(**options)(awork)
            results = await asyncio.gather(*(handler.ubatch(one) for one in examples), return_exceptions=True)
            await handler.batcher.stop()
            return results

        results = run(main)
    assert isinstance(results.pop(13), ValueError)
    assert results == [number + 1 for number in range(16) if number != 13]
    assert sizes[0] == (16, 5) and 3 <= len(sizes) <= 9


@pytest.mark.parametrize(
    "output",
    [
        lambda x: x[:-1],
        lambda x: np.concatenate([x, x]),
        lambda x: {"a": x, "b": x[:-1]},
        lambda x: x.sum(),
        lambda x: None,
        lambda x: (row for row in x),
    ],
)
def test_a_wrong_number_of_rows(threads, run, output):
    """Every caller of that batch is told; the next batch is unaffected."""
    broken = [True]

    @threads(max_size=2, timeout=0.1)
    def handler(features):
        return output(features["x"]) if broken[0] else features["x"]

    futures = [handler.submit(x=[1, 2]) for _ in range(2)]
    for future in futures:
        with pytest.raises(BadBatchOutputSize, match="2 items"):
            future.result(10)
    broken[0] = False
    assert handler.ubatch(x=[1, 2]).tolist() == [1, 2]


def test_rows_that_come_back_different(threads):
    """Outputs of one call's rows from batches padded differently: unpad makes one of them, or it is told."""

    @threads(max_size=1, pad_tokens={"x": 0}, unpad="x")
    def handler(features):
        return features["x"] + 1.5

    assert handler(x=[[1, 2], [3, 4]]).tolist() == [[2.5, 3.5], [4.5, 5.5]]
    with pytest.raises(ValueError, match="not alike"):
        handler(x=[[1, 2], [3]])


# -- token budget -----------------------------------------------------------------------------------------


def test_a_token_budget(threads):
    """`max_weight` and `padded` alone: no batch has more tokens, padding included; like lengths go together."""
    rng = np.random.default_rng(1)
    lengths = rng.permutation(np.repeat(2 ** np.arange(3, 10), 32))

    def padding_of(**options):
        shapes, open_gate = [], threading.Event()

        @threads(max_size=64, pad_tokens={"ids": 0}, lengths="n", **options)
        def handler(features):
            open_gate.wait(10)
            shapes.append((features["ids"].shape, int(features["n"]["ids"].sum())))
            return features["n"]["ids"]

        futures = [handler.submit(ids=np.ones(length, np.int64)) for length in lengths]
        open_gate.set()
        assert [int(future.result(30)) for future in futures] == lengths.tolist()
        assert sum(true for _, true in shapes) == lengths.sum()
        return shapes, 1 - lengths.sum() / sum(rows * width for (rows, width), _ in shapes)

    plain, wasted = padding_of()
    sorted_, saved = padding_of(max_weight=4096, padded=True)
    assert all(rows * width <= 4096 for (rows, width), _ in sorted_)
    assert wasted > 0.6 and saved < 0.25, (wasted, saved)
    assert any(rows * width > 4096 for (rows, width), _ in plain)


def test_a_weight_of_ones_own(threads):
    """It gets the example as a dictionary of arrays, however the call was made."""
    seen = []

    def weight(example):
        seen.append(example["x"].dtype)
        return 1

    @threads(weight=weight, max_weight=10)
    def handler(features):
        return features["x"]

    assert handler.ubatch(x=[1]).tolist() == handler.ubatch({"x": [1]}).tolist() == [1]
    assert seen == [np.dtype("i8")] * 2


def test_long_calls_give_way(threads):
    """`small_batch_threshold`, as with `ubatch.dynamically`."""
    order, running, go = [], threading.Event(), threading.Event()

    @threads(max_size=2, timeout=0, small_batch_threshold=2, aging=60)
    def handler(features):
        running.set()
        go.wait(10)
        order.extend(features["x"].tolist())
        return features["x"]

    first = handler.submit(x=0)
    assert running.wait(10)
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(handler, x=[1, 2, 3, 4])
        while handler.stats.queued < 4:
            pass
        few = handler.submit(x=9)
        go.set()
        assert many.result(10).tolist() == [1, 2, 3, 4]
    assert (first.result(10), few.result(10)) == (0, 9)
    assert order.index(9) == 1


# -- life -------------------------------------------------------------------------------------------------


def test_examples_and_results_are_let_go_of(threads):
    """Neither the batcher nor its buffers hold on to what a caller gave or got."""
    import weakref

    @threads(pad_tokens={"x": 0})
    def handler(features):
        return features["x"] * 1.5

    mine = np.ones(5)
    result = handler.ubatch(x=mine)
    base = weakref.ref(result.base)
    held = weakref.ref(mine)
    del mine, result
    handler.ubatch(x=[1.0])
    gc.collect()
    assert held() is None and base() is None


def test_stop_and_start(threads):
    @threads
    def handler(features):
        return features["x"]

    handler.batcher.stop()
    with pytest.raises(Stopped):
        handler.ubatch(x=1)
    handler.batcher.start()
    assert handler.ubatch(x=1) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_process(run_python):
    """After a fork both sides have memory of their own."""
    found = run_python(
        """
        import os
        import warnings
        import numpy as np
        from ubatch import inference

        @inference.dynamically(pad_tokens={"x": 0})
        def handler(features):
            return features["x"]

        kept = [handler.ubatch(x=[number, number]) for number in range(20)]
        warnings.simplefilter("ignore")
        child = os.fork()
        more = [handler.ubatch(x=[number + (0 if child else 100)] * 2) for number in range(50)]
        good = [row.tolist() for row in kept] == [[n, n] for n in range(20)]
        good = good and [row.tolist() for row in more] == [[n + (0 if child else 100)] * 2 for n in range(50)]
        handler.batcher.stop()
        if not child:
            os._exit(0 if good else 1)
        print(good, os.waitpid(child, 0)[1])
        """
    )
    assert found.split() == ["True", "0"]


def test_behind_a_cache(threads):
    """`cached` needs a key, as dictionaries of arrays have none."""
    calls = []

    @threads
    def handler(features):
        calls.append(len(features["x"]))
        return features["x"] * 2

    fast = cached(handler, cache={}, key=lambda features: features["x"].tobytes())
    x = np.arange(3)
    assert fast.ubatch({"x": x}).tolist() == fast.ubatch({"x": x}).tolist() == [0, 2, 4]
    assert calls == [1]


@needs_torch
def test_torch(threads):
    """Tensors in, tensors out, of the caller's dtype, beside arrays of others."""

    @threads(pad_tokens={"x": 0}, timeout=0.05, max_size=8)
    def handler(features):
        return {"sum": features["x"].sum(1), "x": features["x"]}

    futures = [handler.submit(x=torch.ones(n, dtype=torch.bfloat16)) for n in (1, 3)]
    array = handler.submit(x=np.ones(2))
    assert [float(future.result(10)["sum"]) for future in futures] == [1, 3]
    assert futures[0].result()["x"].dtype == torch.bfloat16
    assert isinstance(array.result(10)["x"], np.ndarray)
    rows = handler(x=torch.arange(6.0).reshape(2, 3))
    assert torch.equal(rows["x"], torch.arange(6.0).reshape(2, 3))
