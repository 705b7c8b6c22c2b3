"""The package's own errors: what they are beside `UBatchError`, what they say, and that they can be sent around."""

from __future__ import annotations

import copy
import inspect
import pickle
import queue

import pytest

from ubatch import errors

TABLE = [
    (errors.HandlerNotSet("embed"), RuntimeError, ["'embed'", "set_handler"]),
    (errors.HandlerAlreadySet("embed"), RuntimeError, ["'embed'", "already"]),
    (errors.BadBatchOutputSize(5, 3), ValueError, ["3 results", "5 items"]),
    (errors.BadBatchOutputSize(5, "dict"), ValueError, ["a dict", "5 items", "sequence"]),
    (errors.HandlerFailed("SystemExit: 3"), RuntimeError, ["SystemExit: 3"]),
    (errors.QueueFull("embed", 100), queue.Full, ["'embed'", "100"]),
    (errors.DeadlineExceeded("embed", 0.25), TimeoutError, ["'embed'", "0.25 s"]),
    (errors.Stopped("embed"), RuntimeError, ["'embed'", "start()"]),
    (errors.WorkerDied("embed", "MemoryError: no"), RuntimeError, ["'embed'", "MemoryError: no"]),
]
each_error = pytest.mark.parametrize("error", [error for error, *_ in TABLE], ids=repr)


def test_the_table_is_complete():
    """Every error of the package is among those tested here."""
    defined = {value for value in vars(errors).values() if inspect.isclass(value)} - {errors.UBatchError}
    assert {type(error) for error, *_ in TABLE} == defined


@pytest.mark.parametrize(("error", "base", "says"), TABLE, ids=lambda value: repr(value)[:60])
def test_an_error_is_what_a_caller_may_catch_already(error, base, says):
    """Each has its base in the standard library beside `UBatchError`, and names the values it is about."""
    assert isinstance(error, errors.UBatchError)
    assert isinstance(error, base)
    assert not [words for words in says if words not in str(error)]


@each_error
@pytest.mark.parametrize(
    "send",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda error, n=n: pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
    ],
    ids=["copy", "deepcopy", *(f"pickle {n}" for n in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_an_error_arrives_as_it_was_sent(error, send):
    """Copied or pickled it has the same type, arguments, attributes and message."""
    sent = send(error)
    assert sent is not error
    assert type(sent) is type(error)
    assert (sent.args, vars(sent), str(sent), repr(sent)) == (error.args, vars(error), str(error), repr(error))


@each_error
def test_an_errors_values_are_attributes(error):
    """What its message names can be read from it by the name that its constructor gives it."""
    names = list(inspect.signature(type(error)).parameters)
    assert tuple(getattr(error, name) for name in names) == error.args


@pytest.mark.parametrize("package", ["ubatch", "ubatch.aio"])
def test_a_warning_is_about_the_line_that_called(package):
    """Not about a line of the package, or of a package inside it."""
    namespace = {"__package__": package, "warn_caller": errors.warn_caller}
    exec("def call():\n    warn_caller('something')", namespace)
    with pytest.warns(RuntimeWarning, match="something") as caught:
        namespace["call"]()
    assert caught[0].filename == __file__
