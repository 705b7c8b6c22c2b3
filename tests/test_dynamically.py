"""`dynamically`, and the decorators of `ubatch.aio`: calls that batch by themselves."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from typing import Any

import pytest

import ubatch.aio
from ubatch import Stopped, dynamically


@dynamically(max_size=8)
def squares(numbers):
    """Square each of them."""
    return [number**2 for number in numbers]


class Model:
    """Methods of all kinds."""

    def __init__(self, factor):
        self.factor = factor

    @dynamically(max_size=4)
    def scaled(self, numbers):
        return [self.factor * number for number in numbers]

    @dynamically
    @classmethod
    def names(cls, items):
        return [(cls.__name__, item) for item in items]

    @dynamically
    @staticmethod
    def negated(numbers):
        return [-number for number in numbers]


@pytest.fixture(autouse=True)
def _workers_end():
    yield
    for batcher in (squares.batcher, Model.names.batcher, Model.negated.batcher):
        batcher.stop()
        batcher.start()


def test_one_item_or_a_list():
    """One result for an item, a list for a list; none for none, without a call."""
    assert squares(3) == 9
    assert squares([1, 2, 3]) == [1, 4, 9]
    before = squares.stats.batches
    assert squares([]) == []
    assert squares.stats.batches == before
    assert asyncio.run(squares.acall(4)) == 16
    assert asyncio.run(squares.acall([4, 5])) == [16, 25]
    assert squares.__wrapped__([2]) == [4]
    assert (squares.__name__, squares.__doc__) == ("squares", "Square each of them.")


def test_a_long_list_is_split_and_rejoined_in_order():
    sizes = []

    @dynamically(max_size=16)
    def tagged(items):
        sizes.append(len(items))
        return [("tag", item) for item in items]

    assert tagged(list(range(1000))) == [("tag", item) for item in range(1000)]
    assert max(sizes) <= 16
    tagged.batcher.stop()


def test_what_is_a_list_and_what_is_an_item():
    """Only a list is many; an item that is a list goes through the other faces."""

    @dynamically
    def sizes(items):
        return [len(item) for item in items]

    assert sizes((1, 2, 3)) == 3
    assert sizes("text") == 4
    assert sizes.ubatch([1, 2]) == 2
    assert sizes.map([[1], [1, 2]]) == [1, 2]
    assert sizes([[1], [1, 2]]) == [1, 2]
    assert sizes.submit([1, 2, 3]).result() == 3
    assert list(sizes.stream(["a", "bb"])) == [1, 2]
    sizes.batcher.stop()


@pytest.mark.parametrize("arguments", [(), (1, 2)], ids=repr)
def test_a_call_takes_exactly_one_item(arguments):
    with pytest.raises(TypeError):
        squares(*arguments)
    with pytest.raises(TypeError):
        squares(number=3)


def test_many_callers_share_batches():
    arrived = threading.Barrier(9)
    sizes = []

    @dynamically(max_size=64, timeout=0.2)
    def slow(items):
        sizes.append(len(items))
        return items

    def caller():
        arrived.wait()
        slow(1)

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    arrived.wait()
    for thread in threads:
        thread.join()
    assert sizes == [8]
    slow.batcher.stop()


def test_methods():
    """A batcher for each instance, for each class of a classmethod, one for a staticmethod."""
    two, three = Model(2), Model(3)
    assert (two.scaled(5), three.scaled([5, 6])) == (10, [15, 18])
    assert two.scaled.batcher is not three.scaled.batcher
    assert two.scaled.batcher is two.scaled.batcher
    assert asyncio.run(two.scaled.acall([1, 2])) == [2, 4]
    assert Model.names(1) == ("Model", 1)
    assert two.names([1]) == [("Model", 1)]
    assert two.negated(1) == Model.negated(1) == -1
    twin = copy.copy(two)
    assert twin.scaled.batcher is not two.scaled.batcher
    for batcher in (two.scaled.batcher, three.scaled.batcher, twin.scaled.batcher):
        batcher.stop()


def test_errors():
    @dynamically
    def picky(items):
        return [ValueError(item) if item < 0 else item for item in items]

    with pytest.raises(ValueError):
        picky(-1)
    with pytest.raises(ValueError):
        picky([1, -1, 2])
    picky.batcher.stop()
    with pytest.raises(Stopped):
        picky(1)


def test_what_cannot_be_decorated():
    async def coroutine(items):
        return items

    with pytest.raises(TypeError, match=r"ubatch\.aio"):
        dynamically(coroutine)
    with pytest.raises(TypeError, match="dynamically decorates functions, not"):
        dynamically()(3)
    with pytest.raises(ValueError, match="max_size"):
        dynamically(max_size=0)
    with pytest.raises((TypeError, RuntimeError)) as raised:

        class Wrong:
            @classmethod
            @dynamically
            def method(cls, items):
                return items

    assert "put dynamically outside classmethod" in str(raised.value.__cause__ or raised.value)


def test_it_pickles_by_its_name():
    assert pickle.loads(pickle.dumps(squares)) is squares
    assert repr(squares).startswith("<dynamically of <function squares")


# -- on event loops ---------------------------------------------------------------------------------------


class Remote:
    """Coroutine methods."""

    def __init__(self, factor):
        self.factor = factor

    @ubatch.aio.dynamically(max_size=4, workers=2)
    async def scaled(self, numbers):
        await asyncio.sleep(0)
        return [self.factor * number for number in numbers]

    @ubatch.aio.dynamically
    @classmethod
    async def names(cls, items):
        return [(cls.__name__, item) for item in items]

    @ubatch.aio.ubatch_decorator
    async def plain(self, numbers):
        return [self.factor * number for number in numbers]


def test_coroutine_functions(run):
    sizes = []

    @ubatch.aio.dynamically(max_size=8)
    async def squares(numbers):
        sizes.append(len(numbers))
        return [number**2 for number in numbers]

    async def main():
        assert await squares(3) == 9
        assert await squares([]) == []
        assert await squares([1, 2]) == await squares.acall([1, 2]) == [1, 4]
        assert await asyncio.gather(*(squares(n) for n in range(20))) == [n**2 for n in range(20)]
        assert await squares.map(range(3)) == [0, 1, 4]
        assert await squares.ubatch(5) == 25
        assert await squares.submit(5) == 25
        assert [n async for n in squares.stream([1, 2])] == [1, 4]
        assert squares.stats.items == 1 + 2 + 2 + 20 + 3 + 1 + 1 + 2
        assert await squares.__wrapped__([3]) == [9]

    run(main)
    assert max(sizes) == 8
    assert inspect.iscoroutinefunction(squares.__call__)  # which is what web frameworks look at


def test_coroutine_methods(run):
    async def main():
        two, three = Remote(2), Remote(3)
        assert await two.scaled(5) == 10
        assert await three.scaled([5, 6]) == [15, 18]
        assert two.scaled.batcher is not three.scaled.batcher
        assert await Remote.names(1) == ("Remote", 1)
        assert await two.plain([1, 2]) == [2, 4]
        assert await two.plain.ubatch(4) == 8
        assert two.plain.stats.items == 1
        with pytest.raises(TypeError, match="is a method"):
            _ = Remote.scaled.batcher

    run(main)


def test_plain_functions_on_a_loop(run):
    """Run in a thread."""

    @ubatch.aio.dynamically
    def where(items):
        return [threading.current_thread()] * len(items)

    async def main():
        thread = await where(1)
        assert thread is not threading.current_thread()
        assert await where.batcher.stop()
        return thread

    run(main).join(10)


def test_bad_options_are_told_where_they_stand():
    for wrong in ({"max_size": 0}, {"timeout": -1}, {"workers": 0}):
        for decorator in (ubatch.aio.dynamically, ubatch.aio.ubatch_decorator):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                decorator(**wrong)


def test_the_names_of_the_module():
    assert ubatch.aio.__all__ == ["UBatch", "dynamically", "ubatch_decorator"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _: Any = ubatch.nothing
