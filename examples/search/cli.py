"""The command line: start the service, measure it or keep it running, stop it."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from search.server import Server

N = TypeVar("N", int, float)

_NEEDED = ("ubatch", "numpy", "flask", "gunicorn", "prometheus_client", "rich", "matplotlib")
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0, 1 if something failed or answers differ, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.processes > 1 and not options.serve:
        parser.error("--processes goes with --serve: of several, the measured batches would be those of one")
    needed = (*_NEEDED, "gevent") if options.worker == "gevent" else _NEEDED
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        print(
            f"Not installed: {', '.join(missing)}.\n"
            "In the checkout's main folder, `python -m pip install '.[examples]'` installs all of it.",
            file=sys.stderr,
        )
        return 1
    from rich.console import Console

    from search.bench import LoadError
    from search.server import ServerError

    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)  # leave in order, as after Ctrl-C
    try:
        return _run(options, console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return _INTERRUPTED
    except (LoadError, ServerError, OSError, ValueError) as error:
        Console(stderr=True).print(f"Failed: {error}", style="red", markup=False, soft_wrap=True)
        return 1


def _run(options: argparse.Namespace, console: Console) -> int:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from search.bench import questions_of
    from search.cache import load_index
    from search.server import Server

    server = Server(
        options.worker,
        processes=options.processes,
        preload=options.preload,
        port=options.port,
        cache=options.cache,
        limit=options.limit,
    )
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    quiet = not console.is_terminal
    shown = partial(Progress, *columns, console=console, refresh_per_second=4, transient=True, disable=quiet)
    with shown() as progress:
        # Built here rather than by the server, which finds it cached, so that it shows how far it is.
        index = load_index(options.cache, options.limit, progress=progress.track)
        entries, questions = len(index.entries), questions_of(index.entries)
        del index
    processes = f" × {options.processes}" if options.processes > 1 else ""
    how = f"{options.worker}{processes}{', preloaded' if options.preload else ''}, {entries:,} entries"
    with server:
        if options.serve:
            console.print(f"Serving {how} on {server.url} (Ctrl-C stops)")
            server.wait()
        with shown() as progress:
            return _measure(options, console, progress, server, questions, how)


def _measure(
    options: argparse.Namespace,
    console: Console,
    progress: Progress,
    server: Server,
    questions: list[str],
    how: str,
) -> int:
    from search import report
    from search.bench import duration, measure

    clients = sorted({1, options.clients})
    options.out.mkdir(parents=True, exist_ok=True)
    task = progress.add_task("", total=duration(clients, options.rounds, options.seconds))
    measured = measure(
        server,
        questions,
        clients,
        options.rounds,
        options.seconds,
        lambda doing, gone: progress.update(task, advance=gone, description=doing),
    )
    progress.stop()
    title = f"Search in Python's library: gunicorn {how}"
    console.print(report.table(measured, clients, title))
    settings = {name: getattr(options, name) for name in ("worker", "preload", "limit", "seconds", "rounds", "clients")}
    report.write_figures(options.out / "figures.json", measured, clients, settings)
    report.draw_chart(options.out / "chart.png", measured, clients, title)
    console.print(f"Chart and figures: {os.path.relpath(options.out)}")
    return 1 if measured.failed or measured.different or not measured.compared else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/search",
        description="Vector search in Python's standard library, batched by ubatch and request by request: "
        "starts the service under gunicorn, measures both, stops it.",
    )
    out = Path(__file__).resolve().parent / "out"
    add = parser.add_argument
    add("--serve", action="store_true", help="keep the service running instead of measuring it")
    add(
        "--worker",
        choices=("gevent", "gthread", "sync"),
        default="gevent",
        help="gunicorn's worker class (gevent)",
    )
    add("--processes", type=_positive(int), default=1, help="how many worker processes, with --serve (1)")
    add("--preload", action="store_true", help="load the application before gunicorn forks")
    add("--port", type=int, default=0, help="port on 127.0.0.1 (a free one)")
    add("--clients", type=_positive(int), default=64, help="concurrent clients besides the single one (64)")
    add("--seconds", type=_positive(float), default=3.0, help="length of one measurement (3)")
    add("--rounds", type=_positive(int), default=5, help="how often each is measured, in turns (5)")
    add("--limit", type=_positive(int), help="number of entries (all of the library)")
    add("--cache", type=Path, metavar="DIR", help="where the vectors are kept (the user's cache folder)")
    add(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="where chart.png and figures.json go (examples/search/out)",
    )
    return parser


def _positive(kind: Callable[[str], N]) -> Callable[[str], N]:
    def parse(text: str) -> N:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return parse


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
