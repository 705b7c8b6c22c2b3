"""The command line: start the service, measure it or keep it running, stop it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from search.command import positive, run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from search.server import Server

_NEEDED = ("ubatch", "numpy", "flask", "gunicorn", "prometheus_client", "rich", "matplotlib")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0, 1 if something failed or answers differ, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.processes > 1 and not options.serve:
        parser.error("--processes goes with --serve: of several, the measured batches would be those of one")
    needed = (*_NEEDED, "gevent") if options.worker == "gevent" else _NEEDED
    return run(partial(_run, options), needed, "examples")


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
    add("--processes", type=positive(int), default=1, help="how many worker processes, with --serve (1)")
    add("--preload", action="store_true", help="load the application before gunicorn forks")
    add("--port", type=int, default=0, help="port on 127.0.0.1 (a free one)")
    add("--clients", type=positive(int), default=64, help="concurrent clients besides the single one (64)")
    add("--seconds", type=positive(float), default=3.0, help="length of one measurement (3)")
    add("--rounds", type=positive(int), default=5, help="how often each is measured, in turns (5)")
    add("--limit", type=positive(int), help="number of entries (all of the library)")
    add("--cache", type=Path, metavar="DIR", help="where the vectors are kept (the user's cache folder)")
    add(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="where chart.png and figures.json go (examples/search/out)",
    )
    return parser
