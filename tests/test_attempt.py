"""From one batch to one outcome for each caller, whatever the handler does."""

from __future__ import annotations

import array
import asyncio
import concurrent.futures
import copy
import dataclasses
import subprocess
import sys
import threading
import traceback
import urllib.error
from collections import UserList, deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubatch import BadBatchOutputSize, HandlerFailed
from ubatch._attempt import Attempt, Raised, own
from ubatch._binding import Binder

SIZE = 3


class Item:
    def __init__(self, number):
        self.args, self.kwargs, self.call = (number,), {}, None


def outcomes(handler, size=SIZE):
    """What a driver makes of one batch: outcomes, and how many of them are errors."""
    attempt = Attempt()
    for args, kwargs in attempt.calls([Item(number) for number in range(size)], Binder(handler)):
        try:
            attempt.output = handler(*args, **kwargs)
        except BaseException as error:
            attempt.output = Raised(error)
    return list(attempt.outcomes), attempt.errors


def returning(output):
    return outcomes(lambda items: output)


def raising(error):
    def handler(items):
        raise error

    return outcomes(handler)


# What may be returned.


class Ducks(Sequence):
    """A sequence of somebody's own."""

    def __init__(self, *values, length=None):
        self.values, self.length = values, len(values) if length is None else length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.values[index]


class List(list):
    """A list of somebody's own."""


@pytest.mark.parametrize(
    "output",
    [
        [0, 1, 4],
        (0, 1, 4),
        range(3),
        deque([0, 1, 4]),
        UserList([0, 1, 4]),
        array.array("d", [0, 1, 4]),
        Ducks(0, 1, 4),
        List([0, 1, 4]),
        [None, None, None],
        [[], {}, ()],
        ["", b"", "one"],
        [ValueError, KeyError, SystemExit],
    ],
    ids=repr,
)
def test_any_sequence_of_the_right_length_is_a_batch_of_results(output):
    """Each caller gets its element, whatever that is; an exception class is a value like others."""
    results, errors = returning(output)
    assert all(one is other or one == other for one, other in zip(results, output, strict=True))
    assert errors == 0


@given(
    st.lists(st.integers(), max_size=20), st.lists(st.integers(), max_size=20), st.sampled_from([list, tuple, deque])
)
def test_one_outcome_for_each_item(items, results, kind):
    """In order, if the sizes are equal; else everybody is told both."""
    got, errors = outcomes(lambda batch: kind(results), size=len(items))
    assert len(got) == len(items)
    if len(items) == len(results):
        assert (got, errors) == (results, 0)
    else:
        assert errors == len(items)
        assert {(type(error), error.args) for error in got} <= {(BadBatchOutputSize, (len(items), len(results)))}
        assert len({id(error) for error in got}) == len(got)


def arrays():
    numpy = pytest.importorskip("numpy")
    return numpy.array([1.0, 2.0, 3.0]), numpy.arange(6).reshape(3, 2), numpy.array(["a", "b", "c"])


def test_arrays_are_split_along_their_first_axis():
    """One element, or one row, for each caller."""
    numpy = pytest.importorskip("numpy")
    for output in (*arrays(), numpy.ma.masked_array([1, 2, 3]), numpy.array([{}, [], None], dtype=object)):
        results, errors = returning(output)
        assert errors == 0
        assert all(numpy.array_equal(one, other) for one, other in zip(results, output, strict=True))


class Tensor:
    """Like an array, of somebody's own: no sequence, but with axes."""

    dtype = "float"

    def __init__(self, *shape):
        self.shape = shape

    def __iter__(self):
        return iter([Tensor(*self.shape[1:]) for _ in range(self.shape[0])])


def test_whatever_has_axes_and_elements_is_an_array():
    """Of any library: its shape says how many results there are."""
    results, errors = returning(Tensor(3, 5))
    assert ([row.shape for row in results], errors) == ([(5,)] * 3, 0)
    assert {error.got for error in returning(Tensor(4, 3))[0]} == {4}


def test_an_array_of_exceptions_is_as_good_as_a_list():
    """An element that is an exception is that caller's error."""
    numpy = pytest.importorskip("numpy")
    results, errors = returning(numpy.array([1, ValueError("no"), 3], dtype=object))
    assert (results[0], type(results[1]), results[2], errors) == (1, ValueError, 3, 1)


def test_torch_tensors_are_split_along_their_first_axis():
    """One row for each caller."""
    torch = pytest.importorskip("torch")
    output = torch.arange(6).reshape(3, 2)
    results, errors = returning(output)
    assert errors == 0
    assert all(torch.equal(one, other) for one, other in zip(results, output, strict=True))
    assert returning(torch.tensor(1.0))[0][0].got == "0-d Tensor"


def test_a_series_is_a_batch_of_results():
    """It has one axis, unlike a data frame."""
    pandas = pytest.importorskip("pandas")
    assert returning(pandas.Series([1, 2, 3], index=["x", "y", "z"])) == ([1, 2, 3], 0)
    assert returning(pandas.Series([1, 2]))[0][0].got == 2


# What may not.


class Frame:
    """Like a data frame: a length, a shape, and columns rather than rows when iterated."""

    shape = (3, 3)
    dtypes = ("int", "int", "int")

    def __len__(self):
        return 3

    def __iter__(self):
        return iter("abc")


class Scalar:
    """Like an array without an axis."""

    shape = ()
    dtype = "float"


def generator():
    yield from range(3)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (None, "NoneType"),
        (3, "int"),
        (generator(), "generator"),
        (iter([0, 1, 4]), "list_iterator"),
        (map(str, range(3)), "map"),
        ({0: 0, 1: 1, 2: 4}, "dict"),
        ({0: 0, 1: 1, 2: 4}.values(), "dict_values"),
        ({0, 1, 4}, "set"),
        (frozenset({0, 1, 4}), "frozenset"),
        ("014", "str"),
        (b"014", "bytes"),
        (bytearray(b"014"), "bytearray"),
        (memoryview(b"014"), "memoryview"),
        (Frame(), "Frame"),
        (Scalar(), "0-d Scalar"),
        (ValueError("not raised"), "ValueError"),
        (list, "type"),
        ([], 0),
        ([0, 1], 2),
        ((0, 1, 4, 9), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_everybodys_error(output, got):
    """Each caller gets a `BadBatchOutputSize` of its own that names both sizes, or the type."""
    results, errors = returning(output)
    assert errors == SIZE
    assert len({id(error) for error in results}) == SIZE
    assert {type(error) for error in results} == {BadBatchOutputSize}
    assert {(error.expected, error.got) for error in results} == {(SIZE, got)}
    assert {str(got) in str(error) and str(SIZE) in str(error) for error in results} == {True}


def test_arrays_of_another_shape_are_everybodys_error():
    """Too short, too long, and without an axis."""
    numpy = pytest.importorskip("numpy")
    for output, got in [
        (numpy.zeros(2), 2),
        (numpy.zeros((4, 3)), 4),
        (numpy.zeros((0, 3)), 0),
        (numpy.array(1.0), "0-d ndarray"),
        (numpy.float64(1.0), "0-d float64"),
        (numpy.str_("abc"), "0-d str_"),
    ]:
        results, _ = returning(output)
        assert {(type(error), error.got) for error in results} == {(BadBatchOutputSize, got)}


def test_data_frames_are_everybodys_error():
    """Iterated, they would give their columns' names."""
    pandas = pytest.importorskip("pandas")
    results, _ = returning(pandas.DataFrame({"a": [1, 2, 3], "b": 0, "c": 0}))
    assert {(type(error), error.got) for error in results} == {(BadBatchOutputSize, "DataFrame")}


def test_a_length_that_lies_is_found_out():
    """What counts is how many results there are."""
    results, _ = returning(Ducks(0, 1, length=3))
    assert {(type(error), error.got) for error in results} == {(BadBatchOutputSize, 2)}
    results, _ = returning(Ducks(0, 1, 2, 3, length=3))
    assert {(type(error), error.got) for error in results} == {(BadBatchOutputSize, 4)}


class Broken(Ducks):
    """A sequence that raises when it is used."""

    def __init__(self, error, *, at):
        super().__init__(0, 1, 4)
        self.error, self.at = error, at

    def __len__(self):
        if self.at == "len":
            raise self.error
        return 3

    def __getitem__(self, index):
        raise self.error

    @property
    def shape(self):
        raise self.error


class BrokenShape:
    @property
    def shape(self):
        raise LookupError("broken")


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (Broken(LookupError("broken"), at="len"), LookupError),
        (Broken(LookupError("broken"), at="iter"), LookupError),
        (Broken(SystemExit("broken"), at="len"), HandlerFailed),
        (Broken(KeyboardInterrupt("broken"), at="iter"), HandlerFailed),
        (BrokenShape(), LookupError),
        (Ducks(0, 1, 4, length=-1), ValueError),
    ],
)
def test_a_sequence_that_raises_is_everybodys_error(output, kind):
    """As if the handler had raised."""
    results, errors = returning(output)
    assert errors == SIZE
    assert {type(error) for error in results} == {kind}
    assert len({id(error) for error in results}) == SIZE


def test_a_result_that_pretends_to_be_an_exception_strands_nobody():
    """It cannot be raised, so each caller gets an error that can."""

    class Pretender:
        __class__ = ValueError

    results, errors = returning([1, Pretender(), 3])
    assert errors == sum(isinstance(result, Exception) for result in results) >= 1
    assert all(issubclass(type(result), Exception) or result in (1, 3) for result in results)


def test_a_result_without_a_class_strands_nobody():
    """A proxy of nothing, say."""

    class Unbound:
        @property
        def __class__(self):
            raise RuntimeError("unbound")

    results, _ = returning([1, Unbound(), 3])
    assert len(results) == SIZE


# Exceptions among the results.


def test_an_exception_among_the_results_is_that_callers_alone():
    """The others get their values."""
    results, errors = returning([1, ValueError("no", 5), 3])
    assert (results[0], results[2], errors) == (1, 3, 1)
    assert (type(results[1]), results[1].args) == (ValueError, ("no", 5))


def test_one_exception_for_several_callers_is_copied():
    """So that its traceback does not grow with each of them."""
    error = ValueError("no")
    results, errors = returning([error, 1, error])
    assert errors == 2
    assert len({id(error), id(results[0]), id(results[2])}) == 3
    assert {(type(result), result.args) for result in (results[0], results[2])} == {(ValueError, ("no",))}


def test_an_exception_that_a_handler_keeps_stays_as_it_was():
    """One that it returns again and again: raising what callers get leaves no traceback on it."""
    error = LookupError("missing")
    for _ in range(3):
        results, _ = returning([1, error, 3])
        with pytest.raises(LookupError):
            raise results[1]
    assert error.__traceback__ is None


def test_the_handlers_own_list_is_left_alone():
    """It may hold on to it."""
    output = [1, SystemExit("no"), 3]
    kept = list(output)
    returning(output)
    assert output == kept


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        concurrent.futures.CancelledError("inner"),
        StopIteration(5),
        StopAsyncIteration(),
        type("CancelledError", (Exception,), {})("somebody's own"),
        type("Subclass", (asyncio.CancelledError,), {})(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_must_not_be_raised_in_a_caller_is_wrapped(error):
    """Raised or among the results: it would end a thread or a generator, or look like a cancel."""
    results, errors = raising(error)
    assert errors == SIZE
    assert len({id(result) for result in results}) == SIZE
    single, one = returning([1, error, 3])
    assert one == 1
    for result in (*results, single[1]):
        assert type(result) is HandlerFailed
        assert result.__cause__ is error
        assert type(error).__name__ in str(result)
        assert str(error) in str(result)


# A copy for each caller.


class Odd(Exception):
    """Its constructor takes something else than it passes on."""

    def __init__(self, code, *, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class Doubling(Exception):
    """A copy made with its constructor would say something else."""

    def __init__(self, text):
        super().__init__(text + text)


class Slotted(Exception):
    """It keeps some of its state outside its `__dict__`."""

    __slots__ = ("code", "unset")

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code


class Loose(Exception):
    __slots__ = ("code",)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Not even Python can set anything on it in Python's way."""

    code: int


class Own(Exception):
    """It cannot be made from its arguments, and knows how to be copied."""

    def __new__(cls, first, second):
        return super().__new__(cls, "own")

    def __init__(self, first, second):
        super().__init__("own")
        self.both = first, second

    def __reduce__(self):
        return type(self), self.both


class Disguised(Exception):
    """Its copies are something else."""

    def __reduce__(self):
        return Exception, self.args


def loose():
    error = Loose("no")
    error.code = 5
    return error


def with_attributes():
    error = ValueError("no")
    error.code, error.again = 5, error
    return error


def caught(kind, function, *args):
    try:
        function(*args)
    except kind as error:
        return error.with_traceback(None)


COPIED = [
    Exception(),
    ValueError("no", 5, None),
    KeyError("key"),
    OSError(2, "No such file", "/nowhere"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    UnicodeEncodeError("ascii", "é", 0, 1, "not in range"),
    SyntaxError("bad", ("file.py", 3, 4, "x = =")),
    ImportError("no module", name="numpy", path="/nowhere"),
    subprocess.CalledProcessError(3, ["false"], b"out", b"err"),
    urllib.error.HTTPError("http://localhost/", 503, "busy", {}, None),
    BadBatchOutputSize(3, "dict"),
    HandlerFailed("SystemExit"),
    Odd(5, detail="no"),
    Doubling("no"),
    Slotted("no", 5),
    Frozen(5),
    Frozen(code=5),
    Own(1, 2),
    Disguised("no"),
    loose(),
    with_attributes(),
    caught(AttributeError, lambda: "".missing),
    caught(NameError, lambda: missing),  # noqa: F821
    caught(ZeroDivisionError, lambda: 1 / 0),
    RecursionError("deep"),
    MemoryError(),
]
STATE = ("code", "unset", "name", "path", "obj", "filename", "errno", "lineno", "text", "returncode", "stderr", "both")


@pytest.mark.parametrize("error", COPIED, ids=lambda error: type(error).__name__)
def test_each_caller_gets_an_equal_exception_of_its_own(error):
    """Of the same type, with the same arguments, message and state, wherever it keeps that."""
    results, errors = raising(error)
    assert errors == SIZE
    assert len({id(error), *map(id, results)}) == SIZE + 1
    nothing = object()
    for result in results:
        assert type(result) is type(error)
        assert result.args == error.args
        assert str(result) == str(error)
        assert vars(result) == vars(error)
        for name in STATE:
            assert getattr(result, name, nothing) is getattr(error, name, nothing) or (
                getattr(result, name) == getattr(error, name)
            )


def test_arguments_that_cannot_be_compared_do_not_matter():
    """Arrays, whose `==` has no truth value."""
    numpy = pytest.importorskip("numpy")
    argument = numpy.arange(3)
    results, _ = raising(ValueError("shape", argument))
    assert {type(result) for result in results} == {ValueError}
    assert all(result.args[1] is argument for result in results)
    assert len({id(result) for result in results}) == SIZE


class Copying(Exception):
    """Its constructor copies its argument, so that a copy's is equal to it only element by element."""

    def __init__(self, values):
        super().__init__(copy.copy(values))


def test_a_copy_whose_arguments_cannot_be_compared_is_not_trusted():
    """Another way to copy it is, and that keeps the arguments themselves."""
    numpy = pytest.importorskip("numpy")
    error = Copying(numpy.arange(3))
    results, _ = raising(error)
    assert {id(result.args[0]) for result in results} == {id(error.args[0])}
    assert len({id(error), *map(id, results)}) == SIZE + 1


class Uncopyable(Exception):
    """There is one of it."""

    def __new__(cls, secret=None):
        if secret != "secret":
            raise TypeError("cannot be made")
        return super().__new__(cls)

    def __init__(self, secret):
        super().__init__()


class Untellable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Exiting(Exception):
    """Whoever copies it is told to go."""

    def __reduce__(self):
        raise SystemExit

    def __str__(self):
        raise SystemExit


@pytest.mark.parametrize(
    "error", [Uncopyable("secret"), Untellable(), Exiting()], ids=lambda error: type(error).__name__
)
def test_an_exception_that_cannot_be_copied_reaches_everybody(error):
    """As itself: a shared traceback is the lesser evil."""
    results, errors = raising(error)
    assert errors == SIZE
    assert {id(result) for result in results} == {id(error)}


class TerribleExit(SystemExit):
    def __str__(self):
        raise RuntimeError("no words")


class WorseExit(SystemExit):
    def __str__(self):
        raise self


@pytest.mark.parametrize("kind", [TerribleExit, WorseExit])
def test_what_cannot_say_its_name_is_wrapped_too(kind):
    """Its type is enough."""
    results, _ = raising(kind())
    assert {(type(result), str(result)) for result in results} == {
        (HandlerFailed, f"the handler raised {kind.__name__}")
    }


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups")
def test_exception_groups_are_copied():
    """The group is each caller's own; its members are the same."""
    members = [ValueError("one"), KeyError("two")]
    group = ExceptionGroup("several", members)  # noqa: F821
    results, _ = raising(group)
    assert {type(result) for result in results} == {type(group)}
    assert len({id(group), *map(id, results)}) == SIZE + 1
    assert {result.message for result in results} == {"several"}
    assert {result.exceptions for result in results} == {tuple(members)}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups")
def test_a_group_that_must_not_be_raised_is_wrapped():
    """One with a `KeyboardInterrupt` in it is no `Exception`."""
    group = BaseExceptionGroup("several", [KeyboardInterrupt()])  # noqa: F821
    results, _ = raising(group)
    assert {(type(result), result.__cause__) for result in results} == {(HandlerFailed, group)}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no notes")
@pytest.mark.parametrize("make", [lambda: ValueError("no"), lambda: Frozen(5), lambda: Odd(5, detail="no")])
def test_notes_are_copied(make):
    """A note that one caller adds is not seen by the others."""
    error = make()
    BaseException.__setattr__(error, "__notes__", ["from the handler"])
    results, _ = raising(error)
    results[0].__notes__.append("from a caller")
    assert [result.__notes__ for result in results[1:]] == [["from the handler"]] * 2
    assert error.__notes__ == ["from the handler"]


@pytest.mark.parametrize("make", [lambda: ValueError("no"), lambda: Frozen(5), lambda: Slotted("no", 5)])
def test_cause_and_context_are_kept(make):
    """Each caller sees where the error came from, as the handler raised it."""
    first = LookupError("first")

    def chained(items):
        try:
            raise first
        except LookupError as error:
            raise make() from error

    def in_between(items):
        try:
            raise first
        except LookupError:
            raise make()  # noqa: B904

    def silenced(items):
        try:
            raise first
        except LookupError:
            raise make() from None

    for handler, cause, suppressed in [(chained, first, True), (in_between, None, False), (silenced, None, True)]:
        for result in outcomes(handler)[0]:
            assert result.__cause__ is cause
            assert result.__context__ is first
            assert result.__suppress_context__ is suppressed


@pytest.mark.parametrize("make", [lambda: ValueError("no"), lambda: Frozen(5), SystemExit])
def test_tracebacks_do_not_grow(make):
    """However many callers raise it, each traceback has the handler's frames and that caller's own."""

    def handler(items):
        raise make()

    def caller(error):
        try:
            raise error
        except Exception as raised:
            return [frame.name for frame in traceback.extract_tb(raised.__traceback__)]

    results, _ = outcomes(handler, size=5)
    own_frames = ["caller", *(["outcomes", "handler"] * (make is not SystemExit))]
    assert [caller(result) for result in results] == [own_frames] * 5
    causes = {len(traceback.extract_tb(result.__cause__.__traceback__)) for result in results if result.__cause__}
    assert causes == ({2} if make is SystemExit else set())


def test_callers_in_several_threads_raise_at_once():
    """Each its own object: what one sees does not depend on the others."""
    results, _ = raising(ValueError("no"))
    meet, lengths = threading.Barrier(SIZE), []

    def caller(error):
        meet.wait()
        for _ in range(100):
            try:
                raise error
            except ValueError as raised:
                length = len(traceback.extract_tb(raised.__traceback__))
                error = raised.with_traceback(None)
                lengths.append(length)

    threads = [threading.Thread(target=caller, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(lengths) == {1, 3}  # at first with the frames of the handler


@given(
    st.lists(
        st.one_of(st.integers(), st.builds(ValueError, st.text()), st.builds(SystemExit, st.integers())), max_size=10
    )
)
def test_errors_are_counted(output):
    """As many as there are exceptions among the outcomes, none of them a `BaseException` alone, nor shared."""
    results, errors = outcomes(lambda items: output, size=len(output))
    failed = [result for result in results if isinstance(result, BaseException)]
    assert errors == len(failed) == sum(isinstance(one, BaseException) for one in output)
    assert all(isinstance(error, Exception) for error in failed)
    assert len({id(error) for error in failed}) == len(failed)
    assert [one for one in output if isinstance(one, int)] == [one for one in results if isinstance(one, int)]


def test_own_of_own_is_equal():
    """A copy is as good as the original."""
    error = Odd(5, detail="no")
    assert (own(own(error)).args, vars(own(own(error)))) == (error.args, vars(error))
