"""Shows what was measured: a table for the terminal, a chart as PNG, the figures as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from search.bench import ENDPOINTS, Measured
from search.machine import machine, versions

_COLOURS = {"unbatched": "#b0b7c3", "batched": "#2563eb"}


def table(measured: Measured, clients: Sequence[int], title: str) -> Table:
    """One line for each number of clients and endpoint."""
    shown = Table(title=title, caption="\n".join(findings(measured, clients)), caption_justify="left")
    shown.add_column("clients", justify="right")
    shown.add_column("endpoint")
    for heading in ("requests/s", "(all rounds)", "p50 ms", "p99 ms", "batch"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for count in clients:
        for endpoint in ENDPOINTS:
            row = measured.summary(endpoint, count)
            shown.add_row(
                str(count),
                endpoint,
                f"{row.requests_per_second:.0f}",
                f"{row.slowest:.0f} - {row.fastest:.0f}",
                f"{row.p50 * 1e3:.1f}",
                f"{row.p99 * 1e3:.1f}",
                f"{row.mean_batch_size:.1f}" if endpoint == "batched" else "-",
                end_section=endpoint == "batched",
            )
    return shown


def findings(measured: Measured, clients: Sequence[int]) -> list[str]:
    """What the table comes to, in sentences."""
    sentences = []
    for count in clients:
        plain, batched = (measured.summary(endpoint, count) for endpoint in ENDPOINTS)
        if count == 1:
            later = 100 * (batched.p50 / plain.p50 - 1)
            sentences.append(f"With one client, batching changes p50 by {later:+.1f} %.")
        elif plain.requests_per_second:
            faster = batched.requests_per_second / plain.requests_per_second
            sentences.append(f"With {count} clients, batching serves {faster:.1f} times the requests/s.")
    alike = "all alike" if not measured.different else f"{measured.different} of them differently"
    found = 100 * measured.found / max(measured.compared, 1)
    sentences.append(f"Both endpoints answered {measured.compared} questions, {alike}.")
    sentences.append(f"{found:.0f} % of them found an entry of which they are the first line.")
    if measured.failed:
        reasons = sorted({reason for sample in measured.samples for reason in sample.failures})
        sentences.append(f"{measured.failed} requests failed ({'; '.join(reasons)}).")
    return sentences


def write_figures(path: Path, measured: Measured, clients: Sequence[int], settings: Mapping[str, Any]) -> None:
    """Writes every sample, the medians, the settings and the versions."""
    summaries = [asdict(measured.summary(endpoint, count)) for count in clients for endpoint in ENDPOINTS]
    figures = {
        "settings": dict(settings),
        "machine": machine(),
        "versions": versions("ubatch", "numpy", "flask", "gunicorn", "gevent"),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS"),
        "findings": findings(measured, clients),
        "medians": summaries,
        "samples": [asdict(sample) for sample in measured.samples],
    }
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def draw_chart(path: Path, measured: Measured, clients: Sequence[int], title: str) -> None:
    """Draws throughput (whiskers: slowest and fastest round) and latency (p50, whiskers up to p99)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    throughput, latency = figure.subplots(1, 2)
    width = 0.4
    for side, endpoint in enumerate(ENDPOINTS):
        rows = [measured.summary(endpoint, count) for count in clients]
        at = [place + (side - 0.5) * width for place in range(len(clients))]
        rates = [row.requests_per_second for row in rows]
        spread = [
            [row.requests_per_second - row.slowest for row in rows],
            [row.fastest - row.requests_per_second for row in rows],
        ]
        style = {"width": width, "color": _COLOURS[endpoint], "label": endpoint, "capsize": 4}
        throughput.bar_label(throughput.bar(at, rates, yerr=spread, **style), fmt="%.0f", padding=2)
        p50 = [row.p50 * 1e3 for row in rows]
        above = [[0.0] * len(rows), [(row.p99 - row.p50) * 1e3 for row in rows]]
        latency.bar_label(latency.bar(at, p50, yerr=above, **style), fmt="%.1f", padding=2)
    throughput.set(title="requests per second", ylabel="median, slowest and fastest round")
    latency.set(title="latency, ms", ylabel="p50, whisker up to p99", yscale="log")
    for axes in (throughput, latency):
        axes.set_xticks(range(len(clients)), [f"{count} client{'s' * (count > 1)}" for count in clients])
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    throughput.legend(frameon=False)
    figure.savefig(path, dpi=150)
