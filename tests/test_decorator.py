"""`ubatch_decorator`: functions and methods that can also be called with single items."""

from __future__ import annotations

import abc
import asyncio
import copy
import dataclasses
import enum
import functools
import gc
import inspect
import pickle
import threading
import typing
import weakref

import pytest

from ubatch import Stopped, UBatch, ubatch_decorator
from ubatch._driver import _drivers

PATIENCE = 30  # seconds; only a bug takes that long


@ubatch_decorator(max_size=8)
def squares(numbers):
    """Square each of them."""
    return [number**2 for number in numbers]


@pytest.fixture(autouse=True)
def _no_batcher_is_left():
    """What the module's own functions and classes have started ends with the test, and can be started again."""
    yield
    for batcher in _drivers():
        if batcher._started:
            batcher.stop()
            batcher.start()


class Model:
    """A class with methods of all kinds; module-level, so that its instances can be pickled."""

    def __init__(self, factor):
        self.factor = factor

    @ubatch_decorator(max_size=4, timeout=0)
    def scaled(self, numbers, plus=0):
        """Multiply each of them."""
        return [self.factor * number for number in numbers] if plus == 0 else [number + 1 for number in plus]

    @ubatch_decorator
    def where(self, items):
        self.worker = threading.current_thread()
        return items

    @ubatch_decorator
    @classmethod
    def name_of_class(cls, items):
        """Say which class it is."""
        return [cls.__name__ for _ in items]

    @ubatch_decorator
    @staticmethod
    def outside(items):
        """Under the decorator."""
        return [item + "!" for item in items]

    @staticmethod
    @ubatch_decorator
    def inside(items):
        """Above the decorator."""
        return [item + "?" for item in items]


class Submodel(Model):
    @ubatch_decorator
    def scaled(self, numbers):
        return [[plain] for plain in super().scaled(numbers)]


# Decorating a function.


@pytest.mark.parametrize(
    ("decorate", "max_size", "timeout", "name"),
    [
        (ubatch_decorator, 64, None, None),
        (ubatch_decorator(), 64, None, None),
        (ubatch_decorator(5), 5, None, None),
        (ubatch_decorator(5, 0.03), 5, 0.03, None),
        (ubatch_decorator(max_size=5, timeout=0), 5, 0.0, None),
        (ubatch_decorator(timeout=0.02, name="mine"), 64, 0.02, "mine"),
        (functools.partial(ubatch_decorator, timeout=0.02, name="mine"), 64, 0.02, "mine"),
    ],
)
def test_options_are_the_batchers(decorate, max_size, timeout, name):
    """Bare, with parentheses, by position and by name."""

    @decorate
    def doubled(numbers):
        return [2 * number for number in numbers]

    assert doubled.ubatch(4) == 8
    batcher = doubled.batcher
    assert type(batcher) is UBatch
    assert (batcher.max_size, batcher.timeout) == (max_size, timeout)
    assert batcher.name == (name or doubled.__qualname__)


def test_the_plain_call_stays_plain():
    """It runs in the thread that calls, with what it was given, and no batcher comes of it."""
    seen = []

    @ubatch_decorator
    def handler(*args, **kwargs):
        seen.append((args, kwargs, threading.current_thread()))
        return "as it is"

    assert handler("one", [2], self=3, key="word") == "as it is"
    assert seen == [(("one", [2]), {"self": 3, "key": "word"}, threading.current_thread())]
    assert not [value for value in vars(handler).values() if type(value).__name__ == "_Entry"]


def test_an_exception_of_the_plain_call_is_the_functions_own():
    """The very object."""
    error = KeyboardInterrupt()

    @ubatch_decorator
    def handler(items):
        raise error

    with pytest.raises(KeyboardInterrupt) as caught:
        handler([])
    assert caught.value is error


def test_all_faces_are_there():
    """The decorated function is called like a batcher, too."""
    assert squares([2, 3]) == [4, 9]
    assert squares.ubatch(2) == 4
    assert squares.submit(3).result(PATIENCE) == 9
    assert squares.map(range(4)) == [0, 1, 4, 9]
    assert asyncio.run(squares.aubatch(5)) == 25
    assert asyncio.run(squares.amap([6, 7])) == [36, 49]
    assert squares.stats == squares.batcher.stats


def test_faces_take_what_the_function_takes():
    """Several arguments, also by keyword, also in `map`."""

    @ubatch_decorator
    def powers(numbers, exponents=2):
        exponents = [exponents] * len(numbers) if isinstance(exponents, int) else exponents
        return [number**exponent for number, exponent in zip(numbers, exponents, strict=True)]

    assert powers.ubatch(3) == 9
    assert powers.ubatch(2, 5) == 32
    assert powers.submit(2, exponents=3).result(PATIENCE) == 8
    assert powers.map([2, 3], [4, 3]) == [16, 27]
    assert asyncio.run(powers.aubatch(numbers=2, exponents=1)) == 2
    with pytest.raises(TypeError, match="exponent"):
        powers.ubatch(2, exponent=3)


def test_items_of_several_callers_share_a_batch():
    """Closed by its size alone."""
    batches = []

    @ubatch_decorator(max_size=5, timeout=PATIENCE)
    def handler(items):
        batches.append(sorted(items))
        return items

    for first in (0, 5):
        threads = [threading.Thread(target=handler.ubatch, args=(first + number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert (handler.stats.items, handler.stats.batches, handler.stats.mean_batch_size) == (10, 2, 5.0)


def test_a_function_has_one_batcher():
    """Always the same one; stopped, its faces refuse, and the plain call goes on."""

    @ubatch_decorator
    def same(items):
        return items

    assert same.batcher is same.batcher
    assert same.batcher.stop()
    with pytest.raises(Stopped):
        same.ubatch(1)
    assert same([1]) == [1]
    same.batcher.start()
    assert same.ubatch(1) == 1


def test_a_decorated_function_may_be_used_by_many_threads(hurry):
    """It has one batcher, however many come first, and each thread gets its own results."""
    for _ in range(20):

        @ubatch_decorator
        def negated(numbers):
            return [-number for number in numbers]

        wrong, batchers, meet = [], set(), threading.Barrier(6)

        def ask(which, function=negated, wrong=wrong, batchers=batchers, meet=meet):
            meet.wait()
            batchers.add(function.batcher)
            wrong.extend(n for n in range(10 * which, 10 * which + 10) if function.ubatch(n) != -n)

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert wrong == []
        assert len(batchers) == 1
        assert negated.stats.items == 60


def test_a_function_that_is_forgotten_is_collected():
    """And its thread ends."""
    workers = []

    @ubatch_decorator
    def handler(items):
        workers.append(threading.current_thread())
        return items

    handler.ubatch(1)
    reference = weakref.ref(handler)
    del handler
    gc.collect()
    assert reference() is None
    workers[0].join(PATIENCE)
    assert not workers[0].is_alive()


# What tools see of it.


def test_it_looks_like_the_function():
    """To `help`, to `inspect`, in a traceback."""
    assert squares.__name__ == squares.__qualname__ == "squares"
    assert squares.__doc__ == "Square each of them."
    assert squares.__module__ == __name__
    assert str(inspect.signature(squares)) == "(numbers)"
    assert inspect.unwrap(squares) is squares.__wrapped__
    assert "squares" in repr(squares)
    assert callable(squares)
    assert not inspect.iscoroutinefunction(squares)


def test_a_bound_method_looks_like_the_method():
    """Without its first parameter, as bound methods do."""
    method = Model(2).scaled
    assert method.__name__ == "scaled"
    assert method.__qualname__ == "Model.scaled"
    assert method.__doc__ == inspect.getdoc(method) == "Multiply each of them."
    assert str(inspect.signature(method)) == "(numbers, plus=0)"
    assert str(inspect.signature(Model.scaled)) == "(self, numbers, plus=0)"
    assert str(inspect.signature(Model.name_of_class)) == "(items)"
    assert Model.name_of_class.__doc__ == "Say which class it is."
    assert Model.outside.__doc__ == "Under the decorator."
    assert Model.inside.__doc__ == "Above the decorator."
    assert "Model.scaled" in repr(method)


def test_bound_methods_compare_like_bound_methods():
    """Equal if they are the same method of the same object."""
    one, other = Model(2), Model(2)
    assert one.scaled == one.scaled
    assert hash(one.scaled) == hash(one.scaled)
    assert one.scaled != other.scaled
    assert one.scaled != one.where
    assert one.scaled != Model.scaled
    assert Model.name_of_class == Model(3).name_of_class
    assert Model.name_of_class != Submodel.name_of_class


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_decorated_function_is_copied_as_functions_are(copied):
    """By its name: it stays the same object."""
    assert copied(squares) is squares
    assert copied(Model.scaled) is Model.scaled
    assert copied(Model.outside) is Model.outside
    assert copied(Model.inside) is Model.inside
    assert copied(Model.name_of_class) == Model.name_of_class


def test_a_bound_method_pickles_with_its_instance():
    """And belongs to the instance's copy afterwards."""
    model = Model(3)
    model.scaled.ubatch(1)
    method = pickle.loads(pickle.dumps(model.scaled))
    assert method([2]) == [6]
    assert method.ubatch(2) == 6
    assert method.batcher is not model.scaled.batcher


def test_a_child_process_calls_it_plainly(run_python):
    """A process pool finds functions and methods by their names; there they may be batched, too."""
    run_python(
        """
        import multiprocessing, os
        from concurrent.futures import ProcessPoolExecutor
        from ubatch import ubatch_decorator

        @ubatch_decorator(max_size=4)
        def squares(numbers):
            return [(number**2, os.getpid()) for number in numbers]

        class Model:
            def __init__(self, factor):
                self.factor = factor

            @ubatch_decorator
            def scaled(self, numbers):
                return [(self.factor * number, os.getpid()) for number in numbers]

            @ubatch_decorator
            @classmethod
            def named(cls, numbers):
                return [(cls.__name__, os.getpid()) for _ in numbers]

        def ask(model):
            return [model.scaled.ubatch(5), squares.ubatch(6), Model.named.ubatch(7)]

        if __name__ == "__main__":
            here, model = os.getpid(), Model(3)
            assert ask(model) == [(15, here), (36, here), ("Model", here)]
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                child = pool.submit(os.getpid).result()
                assert child != here
                assert pool.submit(squares, [2, 3]).result() == [(4, child), (9, child)]
                assert pool.submit(model.scaled, [2, 3]).result() == [(6, child), (9, child)]
                assert pool.submit(Model.named, [2]).result() == [("Model", child)]
                assert pool.submit(ask, model).result() == [(15, child), (36, child), ("Model", child)]
        """
    )


# Methods.


def test_each_instance_has_its_own_batcher():
    """It knows its instance, and is made once."""
    one, other = Model(2), Model(3)
    assert (one.scaled.ubatch(5), other.scaled.ubatch(5)) == (10, 15)
    assert one.scaled.submit(6).result(PATIENCE) == 12
    assert one.scaled.map([1, 2]) == [2, 4]
    assert asyncio.run(one.scaled.aubatch(7)) == 14
    assert asyncio.run(one.scaled.amap([8])) == [16]
    assert one.scaled.ubatch(1, plus=5) == 6
    assert one.scaled([1, 2]) == Model.scaled(one, [1, 2]) == Model.scaled(self=one, numbers=[1, 2]) == [2, 4]
    assert one.scaled.batcher is one.scaled.batcher is not other.scaled.batcher
    assert one.scaled.batcher is not one.where.batcher
    assert (one.scaled.stats.items, other.scaled.stats.items) == (7, 1)
    assert (one.scaled.batcher.max_size, one.where.batcher.max_size) == (4, 64)


def test_a_batcher_is_made_at_first_use():
    """Looking at the method, and calling it plainly, leaves the instance as it was."""
    model = Model(2)
    model.scaled([1])
    assert repr(model.scaled)
    assert vars(model) == {"factor": 2}
    model.scaled.batcher  # noqa: B018
    assert len(vars(model)) == 2


@pytest.mark.parametrize(
    "make", [lambda: Model(2).scaled, lambda: type("Sub", (Model,), {}).name_of_class], ids=["instance", "class"]
)
def test_threads_that_come_first_together_make_one_batcher(hurry, make):
    """However the race between them ends."""
    for _ in range(50):
        method, meet, batchers = make(), threading.Barrier(4), []

        def first(method=method, meet=meet, batchers=batchers):
            meet.wait()
            batchers.append(method.batcher)

        threads = [threading.Thread(target=first) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(batchers) == 4
        assert len(set(batchers)) == 1


def test_a_batcher_goes_with_its_instance():
    """Instance, batcher and thread are all gone once nobody refers to the instance."""
    model = Model(2)
    model.where.ubatch(1)
    worker, instance, batcher = model.worker, weakref.ref(model), weakref.ref(model.where.batcher)
    del model
    gc.collect()
    assert instance() is None
    assert batcher() is None
    worker.join(PATIENCE)
    assert not worker.is_alive()


def test_a_call_keeps_its_instance_alive():
    """Also if nobody else does."""
    assert Model(2).scaled.ubatch(5) == 10
    assert Model(2).scaled.submit(5).result(PATIENCE) == 10
    assert asyncio.run(Model(2).scaled.aubatch(5)) == 10


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_batchers_of_their_own(copied, used):
    """Whether or not the original had one already; each calls the method of its own instance."""
    model = Model(2)
    if used:
        assert model.scaled.ubatch(1) == 2
    twin = copied(model)
    twin.factor = 3
    assert (model.scaled.ubatch(1), twin.scaled.ubatch(1)) == (2, 3)
    assert twin.scaled.batcher is twin.scaled.batcher is not model.scaled.batcher
    assert copied(twin).scaled.ubatch(2) == 6


def test_an_overriding_method_has_a_batcher_of_its_own():
    """The overridden one can be called plainly and with single items."""
    model = Submodel(2)
    assert model.scaled.ubatch(5) == [10]
    assert Model.scaled.__get__(model).ubatch(5) == super(Submodel, model).scaled.ubatch(5) == 10
    assert super(Submodel, model).scaled.batcher is not model.scaled.batcher
    assert (model.scaled.stats.items, super(Submodel, model).scaled.stats.items) == (1, 2)


def test_an_inherited_method_is_the_instances():
    """Its class does not matter."""

    class Inheriting(Model):
        pass

    assert Inheriting(5).scaled.ubatch(5) == 25


@pytest.mark.parametrize(
    "use",
    [
        lambda method: method.batcher,
        lambda method: method.stats,
        lambda method: method.ubatch([1]),
        lambda method: method.submit([1]),
        lambda method: method.map([[1]]),
        lambda method: asyncio.run(method.aubatch([1])),
        lambda method: asyncio.run(method.amap([[1]])),
    ],
    ids=["batcher", "stats", "ubatch", "submit", "map", "aubatch", "amap"],
)
def test_a_class_has_no_batcher_for_its_methods(use):
    """Looked up in the class, a method's faces say why there are none; no batcher comes of it."""
    before = threading.active_count()
    with pytest.raises(TypeError, match=r"Model\.where is a method.* instances"):
        use(Model.where)
    assert threading.active_count() == before


# Instances with little room, or none.


class Slots:
    __slots__ = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    @ubatch_decorator
    def scaled(self, numbers):
        return [self.factor * number for number in numbers]

    @ubatch_decorator
    @classmethod
    def named(cls, items):
        return [cls.__name__ for _ in items]


class RoomySlots(Slots):
    __slots__ = ("__dict__",)


class Roomy(Slots):
    pass


@dataclasses.dataclass(frozen=True)
class Frozen:
    factor: int
    scaled = Model.scaled


@dataclasses.dataclass(slots=True)
class SlottedData:
    factor: int

    @ubatch_decorator
    def scaled(self, numbers):
        return [self.factor * number for number in numbers]


@pytest.mark.parametrize("kind", [Slots, SlottedData])
def test_slots_without_room_are_told(kind):
    """Faces raise a `TypeError` with the class, the method and the way out; plain calls work."""
    instance = kind(3)
    assert instance.scaled([2]) == [6]
    for use in (lambda: instance.scaled.batcher, lambda: instance.scaled.ubatch(2), lambda: instance.scaled.map([2])):
        with pytest.raises(TypeError, match="__slots__") as caught:
            use()
        assert kind.__name__ in str(caught.value)
        assert "scaled" in str(caught.value)
        assert "'__dict__'" in str(caught.value)


@pytest.mark.parametrize("kind", [RoomySlots, Roomy, Frozen])
def test_instances_with_room_are_served(kind):
    """A `__dict__` in the slots, or in a subclass, is enough, and a frozen data class can be written to."""
    one, other = kind(3), kind(4)
    assert (one.scaled.ubatch(2), other.scaled.ubatch(2)) == (6, 8)
    assert one.scaled.batcher is one.scaled.batcher is not other.scaled.batcher


def test_a_data_class_is_compared_by_its_fields():
    """Its batcher is none of them."""
    one, other = Frozen(3), Frozen(3)
    one.scaled.ubatch(1)
    assert one == other
    assert hash(one) == hash(other)
    assert dataclasses.asdict(one) == {"factor": 3}
    assert repr(one) == repr(other)


def test_a_classmethod_needs_no_room_in_instances():
    """Its batcher is its class's."""
    assert Slots(1).named.ubatch(0) == "Slots"


class Color(enum.Enum):
    RED = 1

    @ubatch_decorator
    def mixed(self, others):
        return [f"{self.name} and {other}" for other in others]


def test_an_enum_has_no_member_too_many():
    """Its methods may be decorated like others."""
    assert list(Color) == [Color.RED]
    assert Color.RED.mixed.ubatch("blue") == "RED and blue"


Item = typing.TypeVar("Item")


class Generic(typing.Generic[Item]):
    @ubatch_decorator
    def same(self, items: list[Item]) -> list[Item]:
        return items


def test_generic_classes_may_have_batched_methods():
    """With and without their parameters given."""
    assert Generic[int]().same.ubatch(5) == 5
    assert Generic().same.ubatch("a") == "a"


# Class methods and static methods.


def test_each_class_has_its_own_batcher_for_a_classmethod():
    """A subclass is another class; instances share their class's."""
    assert Model.name_of_class.ubatch(0) == "Model"
    assert Submodel.name_of_class.ubatch(0) == "Submodel"
    assert Model(2).name_of_class.ubatch(0) == "Model"
    assert Submodel(2).name_of_class(["a", "b"]) == ["Submodel", "Submodel"]
    assert Model.name_of_class.batcher is Model(5).name_of_class.batcher
    assert Model.name_of_class.batcher is not Submodel.name_of_class.batcher
    assert asyncio.run(Model.name_of_class.amap([1])) == ["Model"]


def test_an_overriding_classmethod_has_a_batcher_of_its_own():
    """The overridden one is called with the subclass."""

    class Overriding(Model):
        @ubatch_decorator
        @classmethod
        def name_of_class(cls, items):
            return [name.upper() for name in super().name_of_class(items)]

        @classmethod
        def inherited(cls):
            return super().name_of_class

    assert Overriding.name_of_class.ubatch(0) == "OVERRIDING"
    assert Overriding.inherited().ubatch(0) == "Overriding"
    assert Overriding.inherited().batcher is not Overriding.name_of_class.batcher


def test_classes_made_on_the_way_are_collected():
    """With their batchers and threads."""
    workers = []

    class Base:
        @ubatch_decorator
        @classmethod
        def where(cls, items):
            workers.append(threading.current_thread())
            return items

    before = len(Base.__subclasses__())
    for number in range(5):
        made = type(f"Made{number}", (Base,), {})
        made.where.ubatch(number)
    reference = weakref.ref(made)
    del made
    gc.collect()
    assert reference() is None
    assert len(Base.__subclasses__()) == before
    for worker in workers:
        worker.join(PATIENCE)
        assert not worker.is_alive()


def test_a_staticmethod_is_a_function():
    """On either side of the decorator, looked up in the class or in an instance: one batcher for all."""
    for method, of_instance, result in [
        (Model.outside, Model(1).outside, "a!"),
        (Model.inside, Model(1).inside, "a?"),
    ]:
        assert method(["a"]) == of_instance(["a"]) == [result]
        assert method.ubatch("a") == of_instance.ubatch("a") == result
        assert method.batcher is of_instance.batcher


@pytest.mark.parametrize("decorate", [ubatch_decorator, ubatch_decorator(max_size=5)], ids=["bare", "options"])
def test_the_wrong_order_with_classmethod_is_told_when_the_class_is_made(decorate):
    """Not at the first call; it says which method it is, and what to do."""
    with pytest.raises((TypeError, RuntimeError)) as caught:

        class Wrong:
            @decorate
            def right(self, items):
                return items

            @classmethod
            @decorate
            def method(cls, items):
                return items

    error = caught.value.__cause__ if isinstance(caught.value, RuntimeError) else caught.value
    assert type(error) is TypeError
    assert "Wrong.method" in str(error)
    assert "outside classmethod" in str(error)


def test_nothing_is_left_in_a_class_of_the_check_for_the_order():
    """Its names are those that were written there."""

    class Body:
        @ubatch_decorator
        def method(self, items):
            return items

        @ubatch_decorator(max_size=5)
        @classmethod
        def of_class(cls, items):
            return items

        def plain(self):
            pass

    ours = {name for name in vars(Body) if not name.startswith("__") or "ubatch" in name}
    assert ours == {"method", "of_class", "plain"}


@pytest.mark.parametrize("above", [False, True], ids=["outside", "inside"])
def test_abstract_methods_stay_abstract(above):
    """On either side of the decorator; what overrides them need not be decorated."""

    class Abstract(abc.ABC):  # noqa: B024
        if above:

            @abc.abstractmethod
            @ubatch_decorator
            def method(self, items):
                """To be overridden."""
        else:

            @ubatch_decorator
            @abc.abstractmethod
            def method(self, items):
                """To be overridden."""

    class Concrete(Abstract):
        @ubatch_decorator
        def method(self, items):
            return items

    assert Abstract.__abstractmethods__ == {"method"}
    with pytest.raises(TypeError, match="abstract"):
        Abstract()
    assert Concrete().method.ubatch(5) == 5


def test_an_abstract_classmethod_stays_abstract():
    """As any other."""

    class Abstract(abc.ABC):
        @ubatch_decorator
        @classmethod
        @abc.abstractmethod
        def method(cls, items):
            """To be overridden."""

    assert Abstract.__abstractmethods__ == {"method"}


def test_a_function_with_a_second_name_in_a_class_stays_a_function():
    """Looked up in the class, it is the function, with the function's batcher."""

    class Body:
        second = squares
        third = staticmethod(squares)

    assert Body.second is squares
    assert Body.third is Body().third is squares
    assert Body.second.ubatch(3) == squares.ubatch(3) == 9
    assert squares.stats.items >= 2


def test_a_function_made_elsewhere_may_become_a_method():
    """Then it has a batcher for each instance, as methods do, beside its own."""

    @ubatch_decorator
    def described(self_or_items, items=None):
        return [type(self_or_items).__name__ for _ in items or self_or_items]

    class Body:
        method = described

    assert Body().method.ubatch(1) == "Body"
    assert described.ubatch(1) == "list"


# What is refused.


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_size": -5}, ValueError),
        ({"max_size": 2.5}, TypeError),
        ({"max_size": "5"}, TypeError),
        ({"max_size": True}, TypeError),
        ({"max_size": None}, TypeError),
        ({"timeout": -0.5}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"name": 5}, TypeError),
        ({"maxsize": 5}, TypeError),
        ({"handler": len}, TypeError),
    ],
    ids=repr,
)
def test_wrong_options_are_told_where_they_stand(options, error):
    """With the offending value, before there is a function to decorate."""
    with pytest.raises(error) as caught:
        ubatch_decorator(**options)
    [(name, value)] = options.items()
    assert name in str(caught.value)
    if name in ("max_size", "timeout", "name"):
        assert repr(value) in str(caught.value)
    if "max_size" not in options:
        with pytest.raises(error):
            ubatch_decorator(lambda items: items, **options)


async def coroutine_function(items):
    return items


async def asynchronous_generator(items):
    yield items


class AsyncCallable:
    async def __call__(self, items):
        return items


@pytest.mark.parametrize("decorate", [ubatch_decorator, ubatch_decorator(max_size=5)], ids=["bare", "options"])
@pytest.mark.parametrize(
    "function",
    [
        coroutine_function,
        asynchronous_generator,
        AsyncCallable(),
        functools.partial(coroutine_function),
        classmethod(coroutine_function),
        staticmethod(coroutine_function),
    ],
)
def test_coroutine_functions_are_refused(decorate, function):
    """At decoration, with the place where they belong."""
    with pytest.raises(TypeError, match=r"coroutine function.*ubatch\.aio"):
        decorate(function)


@pytest.mark.parametrize("value", [5, "function", None, property(len), classmethod(5), staticmethod(None)])
def test_only_functions_can_be_decorated(value):
    """Anything else is refused at decoration."""
    with pytest.raises(TypeError, match="ubatch_decorator decorates functions"):
        ubatch_decorator(max_size=5)(value)


@pytest.mark.parametrize("function", [sorted, functools.partial(sorted, reverse=False), AsyncCallable], ids=repr)
def test_other_callables_can_be_decorated(function):
    """Builtins, partials, classes."""
    decorated = ubatch_decorator(function)
    assert repr(decorated)
    assert decorated.batcher.name
    if function is not AsyncCallable:
        assert decorated.ubatch(5) == 5
