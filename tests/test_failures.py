"""The table of what a handler may do wrong, and of what its callers then get, through every face.

`check` is a plain function, so that a fresh interpreter with gevent can go through the same table.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import importlib.util
import json
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ubatch import BadBatchOutputSize, HandlerFailed, Stats, UBatch

SIZE = 3
BAD = [-1, -2, -3]  # the items of a batch with which the handler does wrong
GOOD = [1, 2, 3]
PATIENCE = 30  # seconds; only a bug takes that long


@dataclasses.dataclass(frozen=True)
class Case:
    """What the handler does to a batch, and what its callers get.

    Args:
        does: in words.
        misbehave: the handler, for the bad batch.
        gets: the type of the callers' exception.
        says: words in its message.
        cause: the type of its cause.
        only: the one item whose caller gets it; `None` if all do.
    """

    does: str
    misbehave: Callable[[list[int]], Any]
    gets: type[Exception]
    says: tuple[str, ...] = ()
    cause: type[BaseException] | None = None
    only: int | None = None


class OddError(Exception):
    """Its constructor takes something else than it passes on."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{detail} ({code})")
        self.code = code


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    """Nothing can be set on it in Python's way."""

    code: int


class Frame:
    """Like a data frame: a length, a shape, and columns rather than rows when iterated."""

    shape = (SIZE, SIZE)

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Any:
        return iter("abc")


class Scalar:
    """Like an array without an axis."""

    shape = ()
    dtype = "float"


class Broken(list):  # type: ignore[type-arg]
    """A sequence that raises when it is looked at."""

    def __iter__(self) -> Any:
        raise LookupError("broken")


def zero_d(items: list[int]) -> Any:
    import numpy

    return numpy.array(1.0)


def raises(error: Callable[[], BaseException], gets: type[Exception] = HandlerFailed, *says: str) -> Case:
    def misbehave(items: list[int]) -> None:
        raise error()

    kind = type(error())
    return Case(f"raises {kind.__qualname__}", misbehave, gets, says, kind if gets is HandlerFailed else None)


def returns(what: str, misbehave: Callable[[list[int]], Any], *says: str) -> Case:
    return Case(f"returns {what}", misbehave, BadBatchOutputSize, (str(SIZE), *says))


def puts(what: str, error: Callable[[], BaseException], gets: type[Exception], *says: str) -> Case:
    """The error is the result of the item -2; the others have good ones."""

    def misbehave(items: list[int]) -> list[Any]:
        return [error() if item == -2 else 2 * item for item in items]

    cause = type(error()) if gets is HandlerFailed else None
    return Case(f"returns {what} for one item", misbehave, gets, says, cause, only=-2)


CONSTANT = LookupError("always the same")

CASES = [
    raises(lambda: ValueError("no", 5), ValueError, "no"),
    raises(lambda: OddError(5, detail="odd"), OddError, "odd (5)"),
    raises(lambda: FrozenError(5), FrozenError, "5"),
    raises(lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), UnicodeDecodeError, "0xff"),
    raises(lambda: TimeoutError("inner"), TimeoutError, "inner"),
    raises(lambda: CONSTANT, LookupError, "always"),
    raises(lambda: SystemExit(3), HandlerFailed, "SystemExit: 3"),
    raises(KeyboardInterrupt, HandlerFailed, "KeyboardInterrupt"),
    raises(GeneratorExit, HandlerFailed, "GeneratorExit"),
    raises(asyncio.CancelledError, HandlerFailed, "CancelledError"),
    raises(lambda: concurrent.futures.CancelledError("inner"), HandlerFailed, "CancelledError: inner"),
    raises(lambda: StopIteration(5), HandlerFailed, "StopIteration: 5"),
    raises(StopAsyncIteration, HandlerFailed, "StopAsyncIteration"),
    returns("too few", lambda items: items[1:], "2 results"),
    returns("too many", lambda items: [*items, 0], "4 results"),
    returns("nothing at all", lambda items: [], "0 results"),
    returns("None", lambda items: None, "NoneType"),
    returns("a generator", lambda items: (item for item in items), "generator"),
    returns("a dict", lambda items: {item: item for item in items}, "dict"),
    returns("a set", lambda items: set(items), "set"),
    returns("a string", lambda items: "abc", "str"),
    returns("bytes", lambda items: b"abc", "bytes"),
    returns("a data frame", lambda items: Frame(), "Frame"),
    returns("an array without an axis", lambda items: Scalar(), "0-d Scalar"),
    returns("a 0-d numpy array", zero_d, "0-d ndarray"),
    Case("returns a broken sequence", lambda items: Broken(items), LookupError, ("broken",)),
    Case("returns the same exception for all", lambda items: [CONSTANT] * SIZE, LookupError, ("always",)),
    puts("an exception", lambda: ValueError("bad item"), ValueError, "bad item"),
    puts("an odd exception", lambda: OddError(5, detail="odd"), OddError, "odd (5)"),
    puts("a SystemExit", lambda: SystemExit(3), HandlerFailed, "SystemExit: 3"),
    puts("a CancelledError", asyncio.CancelledError, HandlerFailed, "CancelledError"),
    puts("the same exception each time", lambda: CONSTANT, LookupError, "always"),
]
if importlib.util.find_spec("numpy") is None:
    CASES = [case for case in CASES if case.misbehave is not zero_d]


# The faces: each gives one outcome for each item, in order; `map` and `amap` only the first error if there is one.

Face = Callable[[UBatch[int, int], list[int]], list[Any]]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


def by_threads(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    outcomes = {}
    threads = [
        threading.Thread(target=lambda item=item: outcomes.update({item: outcome(lambda: batch.ubatch(item))}))
        for item in items
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return [outcomes[item] for item in items]


def by_submit(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    futures = [batch.submit(item) for item in items]
    outcomes = [outcome(lambda future=future: future.result(PATIENCE)) for future in futures]
    assert [future.exception(0) or future.result(0) for future in futures] == outcomes
    assert not any(future.cancelled() for future in futures)
    return outcomes


def by_map(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    results = outcome(lambda: batch.map(items))
    return results if isinstance(results, list) else [results]


def by_tasks(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(batch.aubatch(item)) for item in items]
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        assert not any(task.cancelled() for task in tasks)
        return outcomes

    return asyncio.run(main())


def by_amap(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    results = outcome(lambda: asyncio.run(batch.amap(items)))
    return results if isinstance(results, list) else [results]


def by_all_at_once(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    """One batch of a thread, a future and a task."""
    outcomes = {}
    thread = threading.Thread(target=lambda: outcomes.update({0: outcome(lambda: batch.ubatch(items[0]))}))
    thread.start()
    future = batch.submit(items[1])
    outcomes[2] = outcome(lambda: asyncio.run(batch.aubatch(items[2])))
    outcomes[1] = outcome(lambda: future.result(PATIENCE))
    thread.join(PATIENCE)
    return [outcomes[index] for index in range(SIZE)]


def by_greenlets(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    import gevent

    greenlets = [gevent.spawn(outcome, lambda item=item: batch.ubatch(item)) for item in items]
    gevent.joinall(greenlets, timeout=PATIENCE)
    return [greenlet.value for greenlet in greenlets]


def by_greenlets_futures(batch: UBatch[int, int], items: list[int]) -> list[Any]:
    import gevent

    greenlets = [gevent.spawn(outcome, batch.submit(item).result) for item in items]
    gevent.joinall(greenlets, timeout=PATIENCE)
    return [greenlet.value for greenlet in greenlets]


FACES: list[Face] = [by_threads, by_submit, by_map, by_tasks, by_amap, by_all_at_once]
GREEN_FACES: list[Face] = [by_greenlets, by_greenlets_futures, by_map]


def check(case: Case, face: Face, isolate: bool = False) -> None:
    """Every caller gets what is its, nothing lingers, and the worker goes on."""
    workers = []

    def handler(items: list[int]) -> Any:
        workers.append(threading.current_thread())
        return case.misbehave(items) if items[0] < 0 else [2 * item for item in items]

    # batches are closed by their size alone
    batch: UBatch[int, int] = UBatch(max_size=SIZE, timeout=PATIENCE, handler=handler, isolate=isolate)
    with batch:
        for turn in 1, 2, 3:
            outcomes = face(batch, BAD)
            check_outcomes(case, outcomes, alone=face in (by_map, by_amap))
            errors = turn * (SIZE if case.only is None else 1)
            check_stats(batch.stats, batches=2 * turn - 1, errors=errors)
            assert face(batch, GOOD) == [2 * item for item in GOOD], "the next batch"
            check_stats(batch.stats, batches=2 * turn, errors=errors)
        assert len(set(workers)) == 1, "one worker from first to last"
    assert len(workers) == 6 or isolate


def is_error(result: Any) -> bool:
    return isinstance(result, BaseException)


def check_outcomes(case: Case, outcomes: list[Any], *, alone: bool) -> None:
    errors = [one for one in outcomes if is_error(one)]
    if alone:
        assert len(outcomes) == len(errors) == 1
    elif case.only is None:
        assert len(errors) == SIZE
    else:
        assert [2 * item if item != case.only else None for item in BAD] == [
            None if is_error(one) else one for one in outcomes
        ]
    assert len({id(error) for error in errors}) == len(errors), "each caller's own"
    for error in errors:
        assert type(error) is case.gets, repr(error)
        assert not [words for words in case.says if words not in str(error)], str(error)
        assert type(error.__cause__) is (case.cause or type(None)), repr(error.__cause__)
        files = [Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)]
        ours = {"_attempt.py", "_driver.py", "_isolation.py", "_turns.py"}
        assert ours.isdisjoint(files), "the worker's frames are nobody's business"


def check_stats(stats: Stats, *, batches: int, errors: int) -> None:
    expected = {"batches": batches, "items": SIZE * batches, "errors": errors}
    expected |= {"queued": 0, "running": 0, "cancelled": 0, "dropped": 0}
    assert {name: getattr(stats, name) for name in expected} == expected


def check_log(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """There is one warning of a handler that raised, or whose output was no batch; none of errors in its output."""
    logged = [(record.name, record.levelname) for record in caplog.records]
    fails = case.does.startswith("raises") or case.gets is BadBatchOutputSize
    assert logged == ([("ubatch", "WARNING")] if fails else [])


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.does)
def test_callers_get_errors_and_the_worker_goes_on(case, face, caplog):
    """Whatever the handler does, each caller gets its own exception or value, and the next batch its results."""
    check(case, face)
    check_log(case, caplog)


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.does)
def test_items_that_are_all_bad_are_no_worse_off_with_isolation(case, face, caplog):
    """Each caller gets the same as without it."""
    check(case, face, isolate=True)
    check_log(case, caplog)


def report(case: Case, face: Face) -> str:
    try:
        check(case, face)
    except BaseException:
        return traceback.format_exc()
    return ""


@pytest.fixture(scope="module", params=["gevent", "gevent, patched"])
def reports(request, run_python):
    """What a fresh interpreter found, by case and face."""
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed")
    patch = "from gevent import monkey; monkey.patch_all()" if "patched" in request.param else ""
    return json.loads(
        run_python(
            f"""
            {patch}
            import json, logging, sys
            logging.getLogger("ubatch").setLevel(logging.ERROR)  # standard error is to stay empty
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from test_failures import CASES, GREEN_FACES, report
            print(json.dumps({{
                case.does: {{face.__name__: report(case, face) for face in GREEN_FACES}} for case in CASES
            }}))
            """
        )
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.does)
def test_greenlets_get_errors_and_the_worker_goes_on(case, reports):
    """The same for greenlets, with gevent's monkey patching and without."""
    for face, found in reports[case.does].items():
        assert found == "", face


def test_tracebacks_do_not_grow_from_batch_to_batch():
    """An exception that the handler returns again and again stays as it was, however often it is raised."""
    constant = LookupError("always the same")
    with UBatch(max_size=2, timeout=PATIENCE, handler=lambda items: [constant] * len(items)) as batch:
        lengths = set()
        for _ in range(5):
            for future in [batch.submit(item) for item in (1, 2)]:
                with pytest.raises(LookupError) as caught:
                    future.result(PATIENCE)
                lengths.add(len(caught.traceback))
    assert len(lengths) == 1
    assert constant.__traceback__ is None


class Failure(Exception):
    """It can be referred to weakly."""


def failed(call: Callable[[], Any]) -> weakref.ref[Failure]:
    try:
        call()
    except Failure as error:
        return weakref.ref(error)
    raise AssertionError("no failure")


async def failed_task(call: Callable[[], Any]) -> weakref.ref[Failure]:
    try:
        await call()
    except Failure as error:
        return weakref.ref(error)
    raise AssertionError("no failure")


@pytest.mark.parametrize(
    "ask",
    [
        lambda batch: failed(lambda: batch.ubatch(1)),
        lambda batch: failed(lambda: batch.map([1, 2])),
        lambda batch: failed(lambda: batch.submit(1).result(PATIENCE)),
        lambda batch: asyncio.run(failed_task(lambda: batch.aubatch(1))),
        lambda batch: asyncio.run(failed_task(lambda: batch.amap([1, 2]))),
    ],
    ids=["ubatch", "map", "submit", "aubatch", "amap"],
)
def test_an_error_is_free_once_its_caller_lets_go_of_it(ask):
    """Nothing else refers to it: neither worker nor batcher, nor a cycle that waits for the collector."""

    def handler(items):
        raise Failure

    with UBatch(handler=handler) as batch:
        gc.collect()
        gc.disable()
        try:
            reference = ask(batch)
            failed(lambda: batch.ubatch(2))  # the worker is done with the first batch
            assert reference() is None
        finally:
            gc.enable()
