"""From calls with one item each to one call with lists."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubatch._attempt import Attempt
from ubatch._binding import UNBOUND, Binder, is_coroutine_function


class Item:
    def __init__(self, args, kwargs, call):
        self.args, self.kwargs, self.call = args, kwargs, call


def call(*args, **kwargs):
    return args, kwargs


def outcomes(handler, *calls, unbound=False):
    """What comes of the calls in one batch; `unbound` is for calls that were made before the handler was known."""
    binder = Binder(handler)
    items = [Item(args, kwargs, UNBOUND if unbound else binder.bind(args, kwargs)) for args, kwargs in calls]
    attempt = Attempt()
    for args, kwargs in attempt.calls(items, binder):
        attempt.output = handler(*args, **kwargs)
    return list(attempt.outcomes)


class Recorder:
    """A handler that notes how it was called, and gives each caller the elements of its own row."""

    def __init__(self, signature):
        self.calls = []
        self.__signature__ = inspect.signature(eval(f"lambda {signature}: None"))

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return list(zip(*args, *kwargs.values(), strict=True))


@pytest.mark.parametrize(
    ("signature", "calls", "received"),
    [
        ("a", [call(1), call(2)], [call([1, 2])]),
        ("a, b=0", [call(1), call(2)], [call([1, 2])]),
        ("a, b=0", [call(1), call(2, 3)], [call([1, 2], [0, 3])]),
        ("a, b=0", [call(1, 5), call(2, b=3)], [call([1, 2], [5, 3])]),
        ("a, b=0", [call(a=1, b=5), call(b=3, a=2)], [call([1, 2], [5, 3])]),
        ("a, b=0, c=9", [call(1, c=5), call(2)], [call([1, 2], c=[5, 9])]),
        ("a, b=0, c=9", [call(1, c=5), call(2, 3)], [call([1, 2], [0, 3], [5, 9])]),
        ("a=7, b=0", [call(b=5), call(b=6)], [call(b=[5, 6])]),
        ("a=7, b=0", [call(b=5), call(1)], [call([7, 1], [5, 0])]),
        ("a, /, b=0", [call(1), call(2, b=3)], [call([1, 2], [0, 3])]),
        ("a=7, b=0, /, c=9", [call(c=1), call(c=2)], [call(c=[1, 2])]),
        ("a=7, b=0, /, c=9", [call(1), call(c=2)], [call([1, 7], c=[9, 2])]),
        ("a, /, **extra", [call(1, a=3), call(2, a=4)], [call([1, 2], a=[3, 4])]),
        ("a, *, mode", [call(1, mode=3), call(a=2, mode=4)], [call([1, 2], mode=[3, 4])]),
        ("a, *, mode=0, k=5", [call(1), call(2, k=3)], [call([1, 2], k=[5, 3])]),
        ("*rest", [call(1), call(2)], [call([1, 2])]),
        ("*rest", [call(1, 5), call(2, 6)], [call([1, 2], [5, 6])]),
        ("*rest", [call(1), call(2, 6), call(3)], [call([1, 3]), call([2], [6])]),
        ("a, b=0, *rest", [call(1), call(2, 3), call(4, 5, 6)], [call([1, 2], [0, 3]), call([4], [5], [6])]),
        ("a, *rest, k=0", [call(1, 5, k=2), call(3, 4)], [call([1, 3], [5, 4], k=[2, 0])]),
        ("a, **extra", [call(1, x=5), call(2, x=6)], [call([1, 2], x=[5, 6])]),
        ("a, **extra", [call(1, x=5, y=0), call(2, y=1, x=6)], [call([1, 2], x=[5, 6], y=[0, 1])]),
        ("a, **extra", [call(1, x=5), call(2), call(3, x=6)], [call([1, 3], x=[5, 6]), call([2])]),
        ("a, rest=0, **extra", [call(1, 2, x=3)], [call([1], [2], x=[3])]),
        ("self, cls=0", [call(self=1, cls=2)], [call([1], [2])]),
    ],
)
def test_calls_become_lists(signature, calls, received):
    """One list for each argument that anybody passed; calls that differ in `*args` or `**kwargs` go apart."""
    handler = Recorder(signature)
    rows = outcomes(handler, *calls)
    assert handler.calls == received
    assert [sorted(row) for row in rows] == [sorted(rows[index]) for index in range(len(calls))]
    for (args, kwargs), row in zip(calls, rows, strict=True):
        assert not [value for value in (*args, *kwargs.values()) if value not in row]


@pytest.mark.parametrize("handler", [len, Recorder("a"), Recorder("a, b=0"), Recorder("*rest"), Recorder("a, **k")])
def test_one_positional_argument_skips_binding(handler):
    """The common case costs nothing."""
    assert Binder(handler).bind((1,), {}) is None


@pytest.mark.parametrize(
    ("signature", "args", "kwargs"),
    [("a", (), {"a": 1}), ("a=0, *, k=0", (1,), {"k": 2}), ("a=1, b=2", (1, 2), {}), ("a=1", (), {})],
)
def test_other_calls_are_bound(signature, args, kwargs):
    """Anything but one positional argument is sorted out when the call is made."""
    assert Binder(Recorder(signature)).bind(args, kwargs) is not None


@pytest.mark.parametrize(
    ("signature", "args", "kwargs", "argument"),
    [
        ("a", (), {}, "'a'"),
        ("a, b", (1,), {}, "'b'"),
        ("a, *, mode", (1,), {}, "'mode'"),
        ("*, mode=0", (1,), {}, "positional"),
        ("a", (1, 2), {}, "positional"),
        ("a", (1,), {"z": 2}, "'z'"),
        ("a, b=0", (1,), {"a": 2}, "'a'"),
        ("a, /", (), {"a": 2}, "'a'"),
        ("", (1,), {}, "positional"),
    ],
)
def test_a_call_that_does_not_fit_says_what_does_not(signature, args, kwargs, argument):
    """It is a `TypeError` at once that names the handler and the argument, without a traceback of ours in front."""
    with pytest.raises(TypeError, match=argument) as caught:
        Binder(Recorder(signature)).bind(args, kwargs)
    assert str(caught.value).startswith("Recorder(): ")
    assert caught.value.__suppress_context__


def named():
    """A handler with a name of its own."""


@pytest.mark.parametrize(
    ("handler", "name"),
    [(named, "named"), (functools.partial(named), "partial"), (lambda: 0, "<lambda>"), (Recorder(""), "Recorder")],
)
def test_the_handler_is_named_as_it_names_itself(handler, name):
    """By its qualified name, or by its type's."""
    with pytest.raises(TypeError) as caught:
        Binder(handler).bind((1, 2), {})
    assert name in str(caught.value).partition("():")[0]


class Opaque:
    """Like a builtin without a signature."""

    __signature__ = 5

    def __call__(self, *args):
        return list(zip(*args, strict=True))


def test_a_handler_without_a_signature_takes_positional_arguments():
    """As many as anybody passes, one list for each; calls with different numbers go apart."""
    with pytest.raises(TypeError):
        inspect.signature(Opaque())
    rows = outcomes(Opaque(), call(1), call(2, 3), call(4))
    assert rows == [(1,), (2, 3), (4,)]


def test_a_handler_without_a_signature_takes_no_keyword():
    """A keyword argument is refused at once."""
    with pytest.raises(TypeError, match=r"^Opaque\(\): .*'x'"):
        Binder(Opaque()).bind((1,), {"x": 2})


@pytest.mark.parametrize(
    ("handler", "calls", "results"),
    [
        (sorted, [call(1), call(2)], [1, 2]),
        (list, [call("a"), call("b")], ["a", "b"]),
        (min, [call([1, 2]), call([3])], None),
        (operator.itemgetter(slice(None)), [call(1), call(2)], [1, 2]),
        (functools.partial(map, str), [call(1)], None),
    ],
    ids=repr,
)
def test_builtins_are_handlers(handler, calls, results):
    """Whether or not they have a signature; whether they give a batch of results is another matter."""
    got = outcomes(handler, *calls)
    if results is None:
        assert all(isinstance(outcome, Exception) for outcome in got) or len(got) == len(calls)
    else:
        assert got == results


@pytest.mark.parametrize("wrap", [functools.partial, staticmethod, lambda function: function], ids=repr)
def test_wrapped_functions_have_the_signature_of_what_they_wrap(wrap):
    """Keywords reach the right parameter."""

    def handler(a, b=0):
        return list(zip(a, b, strict=True))

    assert outcomes(wrap(handler), call(1, b=2), call(b=3, a=4)) == [(1, 2), (4, 3)]


def test_a_method_is_a_handler():
    """Its instance is no argument of the calls."""

    class Model:
        def handler(self, a, b=0):
            return list(zip(a, b, strict=True))

    assert outcomes(Model().handler, call(1, b=2), call(3)) == [(1, 2), (3, 0)]


def test_a_default_is_contributed_as_it_is():
    """The very object, whatever it is, also a list."""
    default = []

    def handler(a, b=default):
        return list(zip(a, b, strict=True))

    assert outcomes(handler, call(1, 2), call(3))[1][1] is default


def test_calls_made_before_the_handler_was_known_fail_alone():
    """Who does not fit gets a `TypeError`; the others get their results."""

    def handler(a, *, mode):
        return list(zip(a, mode, strict=True))

    first, second, third, fourth = outcomes(handler, call(1), call(2, mode=3), call(), call(a=4, mode=5), unbound=True)
    assert (second, fourth) == ((2, 3), (4, 5))
    assert isinstance(first, TypeError)
    assert "handler(): missing a required" in str(first)
    assert isinstance(third, TypeError)
    assert first is not third


def test_a_batch_of_misfits_does_not_reach_the_handler():
    """When all calls made beforehand are wrong, there is nothing to call the handler for."""

    def handler(a, b):
        raise AssertionError("called")

    assert [type(outcome) for outcome in outcomes(handler, call(1), call(2), unbound=True)] == [TypeError] * 2


# A random signature, and random calls of it.

NAMES = ("p0", "p1", "n0", "n1", "n2", "k0", "k1")


@st.composite
def handlers(draw):
    """A function of a random signature that gives each caller what it received for it, by parameter."""
    positional = draw(st.integers(0, 2)), draw(st.integers(0, 3))
    names = [*NAMES[: positional[0]], *NAMES[2 : 2 + positional[1]]]
    first_default = draw(st.integers(0, len(names)))
    parts = [name if index < first_default else f"{name}='{name}'" for index, name in enumerate(names)]
    if positional[0]:
        parts.insert(positional[0], "/")
    keywords = NAMES[5 : 5 + draw(st.integers(0, 2))]
    if draw(st.booleans()):
        parts.append("*rest")
    elif keywords:
        parts.append("*")
    parts += [draw(st.sampled_from((name, f"{name}='{name}'"))) for name in keywords]
    if draw(st.booleans()):
        parts.append("**extra")
    namespace = {"rows": rows}
    exec(f"def handler({', '.join(parts)}):\n    return rows(locals())", namespace)
    return namespace["handler"]


def rows(received):
    """One mapping for each caller: what the handler has for it. A default, not passed by anybody, is a string."""
    rest, extra = received.pop("rest", ()), received.pop("extra", {})
    sizes = {len(column) for column in (*received.values(), *rest, *extra.values()) if isinstance(column, list)}
    if not sizes:
        return received  # nobody passed anything
    [size] = sizes
    return [
        {name: column[row] if isinstance(column, list) else column for name, column in received.items()}
        | {"rest": tuple(column[row] for column in rest)}
        | {name: column[row] for name, column in extra.items()}
        for row in range(size)
    ]


@st.composite
def calls(draw, handler):
    """Arguments that mostly fit; every value is another one."""
    parameters = list(inspect.signature(handler).parameters.values())
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = {p.kind for p in parameters}
    most = len(by_position) + 2 * (inspect.Parameter.VAR_POSITIONAL in kinds)
    numbers = itertools.count(draw(st.integers(0, 10**6)) * 100)
    args = tuple(itertools.islice(numbers, draw(st.integers(0, most))))
    names = {
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p not in by_position[: len(args)]
        and (p.default is p.empty or draw(st.booleans()))
    }
    if inspect.Parameter.VAR_KEYWORD in kinds:
        names |= draw(st.sets(st.sampled_from(["x", "y"]), max_size=2))
    if draw(st.integers(0, 9)) == 0:  # not p0, p1: `inspect` errs about `f(a, /, **k)` called with a keyword `a`
        names ^= {draw(st.sampled_from([*NAMES[2:], "z"]))}
    return args, {name: next(numbers) for name in draw(st.permutations(sorted(names)))}


@settings(max_examples=300)
@given(st.data())
def test_everything_arrives_where_it_was_sent(data):
    """Whatever the signature, each caller's arguments are in one row, each where Python itself binds it."""
    handler = data.draw(handlers())
    binder, signature = Binder(handler), inspect.signature(handler)
    items, expected, shapes = [], [], set()
    for args, kwargs in data.draw(st.lists(calls(handler), min_size=1, max_size=6)):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            with pytest.raises(TypeError, match=r"^handler\(\): "):
                binder.bind(args, kwargs)
            if data.draw(st.booleans()):
                items.append(Item(args, kwargs, UNBOUND))
                expected.append(TypeError)
            continue
        shapes.add((len(bound.arguments.get("rest", ())), frozenset(bound.arguments.get("extra", ()))))
        bound.apply_defaults()
        extra = bound.arguments.pop("extra", {})
        expected.append({"rest": (), **bound.arguments, **extra})
        items.append(Item(args, kwargs, UNBOUND if data.draw(st.booleans()) else binder.bind(args, kwargs)))
    if not items:
        return

    attempt, handled = Attempt(), 0
    for args, kwargs in attempt.calls(items, binder):
        handled += 1
        output = handler(*args, **kwargs)
        if isinstance(output, dict):  # it cannot know for how many, but we do
            silent = [item for item in items if not item.args and not item.kwargs]
            output = [{**output, "rest": ()}] * len(silent)
        attempt.output = output

    assert [TypeError if isinstance(row, TypeError) else row for row in attempt.outcomes] == expected
    assert attempt.errors == expected.count(TypeError)
    assert handled == len(shapes)


# What a thread cannot call.


async def coroutine_function():
    pass


async def asynchronous_generator():
    yield


class AsyncCallable:
    async def __call__(self):
        pass

    async def method(self):
        pass


@pytest.mark.parametrize(
    "handler",
    [
        coroutine_function,
        asynchronous_generator,
        AsyncCallable(),
        AsyncCallable().method,
        functools.partial(coroutine_function),
        functools.partial(AsyncCallable().method),
    ],
)
def test_coroutine_functions_are_known(handler):
    """Bare, as methods, in a partial, and as what makes an object callable."""
    assert is_coroutine_function(handler)


@pytest.mark.parametrize("handler", [len, list, named, lambda: 0, AsyncCallable, functools.partial(named), Opaque()])
def test_plain_callables_are_no_coroutine_functions(handler):
    """Calling a class gives an instance, whatever the instance does when called."""
    assert not is_coroutine_function(handler)
