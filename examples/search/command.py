"""What the examples' commands have in common: what must be installed, how they end, what numbers they take."""

from __future__ import annotations

import argparse
import importlib.util
import math
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

N = TypeVar("N", int, float)

_INTERRUPTED = 130


def run(work: Callable[[Console], int], needed: Sequence[str], extra: str) -> int:
    """Does a command's work, and gives its exit status: 1 if something is missing or failed, 130 after Ctrl-C.

    Args:
        work: Given the console, gives the exit status.
        needed: The modules that must be installed.
        extra: The extra of this distribution that brings them along.
    """
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        print(
            f"Not installed: {', '.join(missing)}.\n"
            f"In the checkout's main folder, `python -m pip install '.[{extra}]'` installs all of it.",
            file=sys.stderr,
        )
        return 1
    from rich.console import Console

    from search.bench import LoadError
    from search.server import ServerError

    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)  # leave in order, as after Ctrl-C
    try:
        return work(console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return _INTERRUPTED
    except (LoadError, ServerError, OSError, ValueError) as error:
        Console(stderr=True).print(f"Failed: {error}", style="red", markup=False, soft_wrap=True)
        return 1


def positive(kind: Callable[[str], N]) -> Callable[[str], N]:
    """For `argparse`: a finite number of that kind, more than 0."""

    def parse(text: str) -> N:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return parse


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
