"""The command line of the soak."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import secrets
import sys
import warnings
from pathlib import Path
from typing import Any

from . import memory
from .loops import Loops
from .threads import Threads

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """Run one soak and write down what came of it; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Every face of one batcher at once, for as long as asked."
    )
    parser.add_argument("--seconds", type=float, default=None, help="60 by default, if --items is not given")
    parser.add_argument("--items", type=float, default=float("inf"), help="items after which it ends")
    parser.add_argument("--options", action="store_true", help="with keys, weights, priorities, deadlines and a bound")
    parser.add_argument("--aio", action="store_true", help="a batcher of ubatch.aio, with all of these")
    parser.add_argument("--plain", action="store_true", help="with --aio: the handler is a plain function")
    parser.add_argument(
        "--kills",
        type=int,
        nargs="?",
        const=100,
        help="a flow instead, of whose child processes so many are killed (100) for 100,000 results, or --items",
    )
    parser.add_argument("--interval", type=float, default=5.0, help="seconds for each throughput figure")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--switch", type=float, default=1e-6, help="sys.setswitchinterval")
    parser.add_argument("--no-forks", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    seed = secrets.randbits(32) if options.seed is None else options.seed
    print(f"UBATCH_SEED={seed}", flush=True)
    memory.steady()
    sys.setswitchinterval(options.switch)
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
    warnings.filterwarnings("ignore", "coroutine 'Home._serve' was never awaited")  # see `Loops.complain`
    logging.getLogger("concurrent.futures").disabled = True  # callbacks that raise are part of it
    logging.getLogger("ubatch").setLevel(logging.ERROR)  # as are handlers that do
    seconds = options.seconds or (60.0 if options.items == float("inf") else float("inf"))
    course: Any
    if options.kills is not None:
        from .kills import Kills  # numpy is needed

        course, name = Kills(seed, options.kills), "soak-kills.json"
        seconds, options.items = options.seconds or float("inf"), min(options.items, 100_000)
    elif options.aio:
        course, name = Loops(seed, plain=options.plain), "soak-aio.json"
    else:
        course = Threads(seed, forks=hasattr(os, "fork") and not options.no_forks, special=options.options)
        name = "soak-options.json" if options.options else "soak.json"
    result = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seed": seed,
        "switch_interval": options.switch,
        **course.run(seconds, options.interval, options.items),
    }
    out = options.out or RESULTS / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.stdout.flush()
    if result["violations"]:
        os._exit(1)  # what hangs would hang the exit, too
    return 0


if __name__ == "__main__":
    sys.exit(main())
