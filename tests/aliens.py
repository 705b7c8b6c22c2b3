"""Functions for the children of a `ProcessExecutor`: a child imports them from here."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from typing import Any, ClassVar

kept: list[Any] = []


def same(thing: Any) -> Any:
    return thing


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def pid(_: Any = None) -> int:
    return os.getpid()


def keep(thing: Any) -> None:
    """Refer to it when the call is over."""
    kept.append(thing)


def let_go() -> list[Any]:
    """What was kept, which is not any more."""
    sums = [float(thing.sum()) for thing in kept]
    kept.clear()
    return sums


def sums(items: list[Any]) -> list[float]:
    return [float(item.sum()) for item in items]


def sums_of_rows(stacked: Any) -> Any:
    assert stacked.ndim > 1, stacked.shape
    return stacked.reshape(len(stacked), -1).sum(1)


def write(array: Any) -> float:
    array[...] = 1
    return float(array.sum())


def is_writable(thing: Any) -> bool:
    return not memoryview(thing).readonly


def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def die(how: str) -> None:
    """End the process."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        import faulthandler

        faulthandler.disable()
        ctypes.string_at(0)
    elif how == "os._exit":
        os._exit(3)
    elif how == "sys.exit":
        sys.exit(4)
    time.sleep(60)


def die_once(marker: str) -> str:
    """End the process, but for the second time."""
    if not os.path.exists(marker):
        with open(marker, "w"):
            os._exit(5)
    return "survived"


class Odd(Exception):
    """Cannot be unpickled: its class takes what its arguments do not tell."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


class Rooted:
    """Can be pickled, but unpickled only in the process where it was made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rooted, (type(self), *getattr(self, "args", ()), os.getpid())


def _rooted(kind: type[Rooted], *args: Any) -> Rooted:
    if args[-1] != os.getpid():
        raise LookupError("not at home")
    return kind(*args[:-1])


class RootedError(Rooted, Exception):
    """An exception of that kind."""


class Timed:
    """Is as if an alarm went off when it is unpickled, where there is one."""

    alarms: ClassVar[list[Exception]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _timed, ()


def _timed() -> Timed:
    if Timed.alarms:
        raise Timed.alarms.pop()
    return Timed()


def fail(kind: str = "plain") -> None:
    if kind == "odd":
        raise Odd("a", "b")
    if kind == "rooted":
        raise RootedError("far away")
    if kind == "memory":
        bytearray(1 << 60)
    raise ValueError("no")


def no_result() -> Any:
    return lambda: None


def load_badly(how: str = "raise") -> None:
    """What an initializer may do."""
    if how == "raise":
        raise FileNotFoundError("model.bin")
    if how == "exit":
        os._exit(7)
    if how == "hang":
        time.sleep(60)


def load_after(path: str) -> None:
    """Fails unless there is such a file."""
    if not os.path.exists(path):
        raise FileNotFoundError(path)


class Model:
    """Made once in each process."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.pid = os.getpid()

    def __call__(self, items: list[int]) -> list[tuple[int, int]]:
        return [(item + self.offset, self.pid) for item in items]


class Lens:
    """Made with an argument, and another one that need not be given."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        self.seen = path, device

    def __call__(self, items: list[int]) -> list[tuple[str, str]]:
        return [self.seen for _ in items]


def make_model() -> Model:
    return Model(100)


def make_nothing() -> None:
    return None


def nested() -> int:
    """The answer of a child's child."""
    import multiprocessing

    queue = multiprocessing.get_context("spawn").SimpleQueue()
    process = multiprocessing.get_context("spawn").Process(target=queue.put, args=(5,))
    process.start()
    answer: int = queue.get()
    process.join()
    return answer


def names(items: list[Any]) -> list[Any]:
    """Of their types; what cannot be sent, for "lock" and "odd"."""
    import threading

    cannot = {"lock": threading.Lock(), "odd": Odd("a", "b")}
    return [cannot.get(item, type(item).__name__) if item in ("lock", "odd") else type(item).__name__ for item in items]


def with_locks(items: list[Any]) -> list[Any]:
    """The items; what cannot be sent, for "lock", or read where it comes to, for others."""
    import threading

    made = {"lock": threading.Lock, "rooted": Rooted, "rooted error": lambda: RootedError("far away")}
    return [made[item]() if isinstance(item, str) and item in made else item for item in items]


def beside_rooted(items: list[Any]) -> list[Any]:
    """The first result can only be read here; the second is large."""
    import numpy

    return [Rooted(), numpy.ones(50_000)]


def rooted_batch(items: list[Any]) -> Any:
    """Not a list of results."""
    return Rooted()


def noted(items: list[Any], *more: list[Any], **options: list[Any]) -> list[Any]:
    """As `with_locks`; notes how many items there are, here and in a logger."""
    import logging

    kept.append(len(items))
    logging.getLogger("aliens").warning("%d items", len(items))
    if any(isinstance(item, str) and item == "raise" for item in items):
        fail("rooted")
    return with_locks(items)


def as_form(items: list[Any]) -> Any:
    """The items, in the form that the first of them names; what cannot be sent, for "lock"."""
    import collections

    import numpy

    results = with_locks(items)
    array = numpy.empty(len(items), object)
    array[:] = results
    forms = {
        "generator": lambda results: (result for result in results),
        "dict_values": lambda results: dict(enumerate(results)).values(),
        "map": lambda results: map(str, results),
        "dict": lambda results: dict(enumerate(results)),
        "0-d ndarray": lambda results: numpy.array(results[-1], object),
        "list": list,
        "tuple": tuple,
        "UserList": collections.UserList,
        "ndarray": lambda results: array,
    }
    return forms[items[0]](results)


def load_first(path: str) -> None:
    """Succeeds for the first process alone."""
    with open(path, "x"):
        pass


def fork(times: int, seconds: float) -> int:
    """Leave processes behind, which go on for a time; one returns from here."""
    for number in range(times):
        if not os.fork():
            time.sleep(seconds)
            if number:
                os._exit(0)
            return os.getpid()
    return os.getpid()


def die_with(_: Any) -> None:
    os._exit(9)


def write_and_die_once(arrays: Any, marker: str) -> list[float]:
    """The sums of what came; written to afterwards."""
    found = [float(array.sum()) for array in arrays]
    for array in arrays:
        array[...] = 7
    if not os.path.exists(marker):
        with open(marker, "w"):
            os._exit(5)
    return found


def load_by_number(folder: str, bad: range) -> None:
    """Exits at these starts, counted from 0; each leaves a file, its number."""
    number = 0
    while True:
        try:
            with open(os.path.join(folder, str(number)), "x"):
                break
        except FileExistsError:
            number += 1
    if number in bad:
        os._exit(9)


def may_map(more: int) -> None:
    """Limit the memory that the process may map further, in bytes; -1 for no limit."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if more < 0 else used + more, hard))


def load_in_weather(path: str, seed: int) -> None:
    """Fails with the probability that the file has, in one of several ways."""
    with open(path) as file:
        chance = float(file.read() or 0)
    dice = random.Random(seed + os.getpid())
    if dice.random() < chance:
        dice.choice((lambda: os._exit(9), lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: fail("odd"), fail))()
