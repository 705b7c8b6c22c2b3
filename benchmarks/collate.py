"""Stacking and splitting arrays: what `inference` needs for a batch, beside `batched`, `numpy.stack` and a bare copy.

    python -m benchmarks.collate [--quick] [--readme]

64 examples of 8 to 512 tokens with three int64 features, padded; 64 images of 224 x 224 x 3 float32. "collate" is from
examples to batch, "with split" also from an output of shape (64, 384) to a result for each caller. Each contender has a
process of its own, as it depends on a process's past what its memory costs; the rounds take turns, and what is compared
are medians of the ratios of a round. The copy writes as many bytes as a batch has, from one piece of memory to another.

Then, with a batcher: how much of what the handler gets is padding, first in, first out, and with a token budget. Writes
`results/collate.json`, and with `--readme` the table of README.md. The extra `bench` is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- collate: begin -->", "<!-- collate: end -->"

COUNT, SHORTEST, LONGEST, FEATURES = 64, 8, 512, ("input_ids", "attention_mask", "token_type_ids")
CASES = {
    "tokens": ("ubatch", "ubatch reuse=False", "batched", "memcpy"),
    "images": ("ubatch", "ubatch reuse=False", "numpy.stack", "batched", "memcpy"),
}
REPEATS = {"tokens": 50, "images": 3}
TARGETS = (
    ("tokens", "ubatch", "batched", "collate", 1 / 2),
    ("tokens", "ubatch reuse=False", "batched", "collate", 1.0),
    ("images", "ubatch", "memcpy", "collate", 1.2),
)
BUDGET = 8192


# -- in a contender's process -----------------------------------------------------------------------------


def examples_of(case: str) -> list[dict[str, Any]]:
    """The same for everybody."""
    rng = np.random.default_rng(1)
    if case == "images":
        return [{"image": rng.random((224, 224, 3), dtype=np.float32)} for _ in range(COUNT)]
    lengths = rng.integers(SHORTEST, LONGEST + 1, COUNT)
    return [{name: rng.integers(0, 30_000, length) for name in FEATURES} for length in lengths]


def work_of(case: str, contender: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by figure."""
    examples = examples_of(case)
    output = np.zeros((COUNT, 384), np.float32)
    if contender.startswith("ubatch"):
        from ubatch._collate import Collator

        tokens = dict.fromkeys(FEATURES, 0) if case == "tokens" else None
        collator = Collator(tokens, reuse="reuse=False" not in contender)
        ours = [collator.example(example) for example in examples]
        return {
            "collate": lambda: collator.stack(ours),
            "with split": lambda: (collator.stack(ours), collator.split(output, ours)),
        }
    if contender == "batched":
        from batched.inference.helper import stack_features, unstack_outputs

        return {
            "collate": lambda: stack_features(examples, {}),
            "with split": lambda: (stack_features(examples, {}), unstack_outputs(output)),
        }
    if contender == "numpy.stack":
        return {"collate": lambda: np.stack([example["image"] for example in examples])}
    size = sum(COUNT * max(example[name].nbytes for example in examples) for name in examples[0])
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    return {"collate": lambda: np.copyto(target, source)}


def serve(case: str, contender: str) -> None:
    """Time a round for each line of the standard input."""
    try:
        work = work_of(case, contender)
        for function in work.values():
            function()
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        return
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        round_ = {}
        for figure, function in work.items():
            began = time.perf_counter()
            for _ in range(REPEATS[case]):
                function()
            round_[figure] = (time.perf_counter() - began) / REPEATS[case]
        print(json.dumps(round_), flush=True)


# -- in the process that asks -----------------------------------------------------------------------------


def measure(case: str, rounds: int, path: dict[str, str]) -> dict[str, Any]:
    """Seconds a batch takes, by contender: samples by figure, or why there are none."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        children = {}
        for contender in CASES[case]:
            command = [sys.executable, "-m", "benchmarks.collate", "--serve", case, contender]
            folders = [path[contender]] if contender in path else []
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, str(ROOT)])}
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
            )
            children[contender] = stack.enter_context(child)
            found[contender] = ask(child)
        for turn in range(rounds + 1):
            for contender, child in children.items():
                if "error" in found[contender]:
                    continue
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
                sample = ask(child)
                if turn:  # the first round is thrown away
                    for figure, seconds in sample.items():
                        found[contender].setdefault(figure, []).append(seconds)
        for child in children.values():
            assert child.stdin is not None
            child.stdin.close()
    return found


def ask(child: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a child."""
    assert child.stdout is not None
    line = child.stdout.readline()
    return json.loads(line) if line else {"error": "ended"}


def padding() -> dict[str, Any]:
    """What a handler gets of 2048 examples that wait, first in, first out and with a token budget."""
    from ubatch import inference

    lengths = np.clip(np.random.default_rng(2).lognormal(4.3, 0.9, 2048), SHORTEST, LONGEST).astype(int)
    found: dict[str, Any] = {"true tokens": int(lengths.sum())}
    for way, options in {
        "max_size=64": {},
        f"max_weight={BUDGET}, padded=True": {"max_weight": BUDGET, "padded": True},
    }.items():
        shapes: list[tuple[int, int]] = []
        go = threading.Event()

        @inference.dynamically(max_size=64, pad_tokens={"ids": 0}, **options)
        def handler(features: dict[str, Any], shapes: list[tuple[int, int]] = shapes, go: threading.Event = go) -> Any:
            go.wait()
            shapes.append(features["ids"].shape)
            return features["ids"][:, 0]

        futures = [handler.submit(ids=np.ones(length, np.int64)) for length in lengths]
        go.set()
        for future in futures:
            future.result()
        handler.batcher.stop()
        tokens = [rows * width for rows, width in shapes]
        found[way] = {"tokens": sum(tokens), "batches": len(shapes), "largest": max(tokens)}
        found[way]["padding"] = 1 - found["true tokens"] / sum(tokens)
    return found


# -- the report -------------------------------------------------------------------------------------------


def ratio(samples: dict[str, Any], one: str, other: str, figure: str) -> float:
    """How many times as long one takes as the other: median of the rounds."""
    return median(
        a / b
        for a, b in zip(samples[one][figure], samples[other]["collate" if other == "memcpy" else figure], strict=True)
    )


def table(result: dict[str, Any]) -> str:
    """Markdown, from the results file alone."""
    lines = [
        "| a batch of 64 | | collate | with split | × a bare copy | times as fast as `batched` |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for case, samples in result["samples"].items():
        for contender, found in samples.items():
            cells = [case, contender]
            if "error" in found:
                lines.append(f"| {case} | {contender} | cannot | | | |")
                continue
            for figure in ("collate", "with split"):
                cells.append(f"{median(found[figure]) * 1e6:,.0f} µs" if figure in found else "")
            cells.append(f"{ratio(samples, contender, 'memcpy', 'collate'):.2f}" if contender != "memcpy" else "")
            beside = contender.startswith("ubatch") and "error" not in samples["batched"]
            cells.append(f"{1 / ratio(samples, contender, 'batched', 'collate'):.2f}" if beside else "")
            lines.append(f"| {' | '.join(cells)} |")
    waste = result["padding"]
    ways = [f"{found['padding']:.0%} with `{way}`" for way, found in waste.items() if isinstance(found, dict)]
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += [
        "",
        f"Padding, of the tokens that a handler gets (2048 examples of 8 to 512 tokens): {', '.join(ways)}.",
        "",
    ]
    how = f"Medians of {result['rounds']} rounds in turns, each contender in a process of its own"
    lines.append(f"{how}. {shown(machine)}; {versions}.")
    return "\n".join(lines)


def shown(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    from .report.tables import machine_shown

    return machine_shown(machine)


def judged(result: dict[str, Any]) -> list[str]:
    """The targets, and what became of them."""
    lines = []
    for case, one, other, figure, most in TARGETS:
        samples = result["samples"][case]
        if "error" in samples[other]:
            lines.append(f"{case}: {other} could not be measured")
            continue
        reached = ratio(samples, one, other, figure)
        lines.append(f"{case}: {one} ≤ {most:.2f} × {other}: {reached:.2f}, {'met' if reached <= most else 'MISSED'}")
    return lines


def write_readme(readme: Path, text: str) -> None:
    """Put the table where README.md has its marks."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough look, of a few seconds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="write the table of README.md")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    from importlib.metadata import version

    from .contenders import CACHE, install
    from .harness import machine
    from .results import now, write

    rounds = 3 if options.quick else 60
    directories = install(["batched"], CACHE, {})
    peer = directories.installed["batched"]
    result: dict[str, Any] = {
        "started": now(),
        "machine": machine(),
        "versions": {"ubatch": version("ubatch"), "numpy": np.__version__, "batched": peer.version},
        "rounds": rounds,
    }
    path = {"batched": peer.directory} if peer.directory else {}
    result["samples"] = {case: measure(case, rounds, path) for case in CASES}
    result["padding"] = padding()
    write(options.out / "collate.json", result)
    text = table(result)
    console = Console(soft_wrap=True)
    console.print(text, markup=False)
    for line in judged(result):
        console.print(line, markup=False)
    if options.readme:
        write_readme(ROOT / "README.md", text)


if __name__ == "__main__":
    main()
