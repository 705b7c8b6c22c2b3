"""The command line: start the service, measure it or keep it running, stop it."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from search.command import positive, run

from images.server import SERVERS, server

if TYPE_CHECKING:
    from rich.console import Console
    from search.server import Server

_NEEDED = ("ubatch", "numpy", "PIL", "skimage", "psutil", "rich", "flask", "gunicorn")
_NEEDED_BY = {"gevent": ("gevent",), "aiohttp": ("aiohttp",), "uvicorn": ("fastapi", "uvicorn")}
_TICK = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0, 1 if something failed or answers differ, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run(partial(_run, options), (*_NEEDED, *_NEEDED_BY.get(options.server, ())), "images")


def _run(options: argparse.Namespace, console: Console) -> int:
    from images.model import load_model

    with console.status("training the model, if there is none yet"):
        load_model(options.cache)
    with server(options.server, preload=options.preload, port=options.port, cache=options.cache) as started:
        if options.serve:
            console.print(f"Serving on {started.url} (Ctrl-C stops)")
            _watch(console, started)
        return _measure(options, console, started)


def _watch(console: Console, server: Server) -> None:
    """Shows how the steps are, again and again, where there is a terminal; comes to no end but by an error."""
    if not console.is_terminal:
        server.wait()
    from rich.live import Live

    from images.report import steps

    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(steps(server.get("/stats")), refresh=True)
            time.sleep(_TICK)


def _measure(options: argparse.Namespace, console: Console, server: Server) -> int:
    from images import report
    from images.bench import measure

    clients = sorted(set(options.clients))
    options.out.mkdir(parents=True, exist_ok=True)
    with console.status("") as status:
        measured = measure(server, clients, options.rounds, options.images, status.update)
    console.print(report.table(measured, clients, f"Photographs classified: {options.server}"))
    settings = {name: getattr(options, name) for name in ("server", "preload", "clients", "images", "rounds")}
    report.write_figures(options.out / "figures.json", measured, clients, settings)
    console.print(f"Figures: {os.path.relpath(options.out)}")
    return 0 if measured.is_right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/images",
        description="Photographs decoded and classified by a flow in child processes, and in the thread of the "
        "request: starts the service, measures both, stops it.",
    )
    out = Path(__file__).resolve().parent / "out"
    add = parser.add_argument
    add("--serve", action="store_true", help="keep the service running instead of measuring it, and show its steps")
    add(
        "--server", choices=SERVERS, default="gthread", help="gunicorn's worker class, or a server of its own (gthread)"
    )
    add("--preload", action="store_true", help="make and use the flow before gunicorn forks")
    add("--port", type=int, default=0, help="port on 127.0.0.1 (a free one)")
    add("--clients", type=positive(int), nargs="+", default=[1, 8, 32], help="numbers of concurrent clients (1 8 32)")
    add("--images", type=positive(int), default=192, help="images that each endpoint is sent in a round (192)")
    add("--rounds", type=positive(int), default=5, help="how often each is measured, in turns (5)")
    add("--cache", type=Path, metavar="DIR", help="where the model is kept (the user's cache folder)")
    add("--out", type=Path, default=out, metavar="DIR", help="where figures.json goes (examples/images/out)")
    return parser
