"""Shows what was measured, as a table and as JSON, and how the steps are, as a table that goes on changing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from search.machine import machine, versions

from images.bench import ENDPOINTS, Measured

_FIGURES = ("requests_per_second", "p50", "p99", "cpu_per_request", "others_p90", "right")
_PACKAGES = (
    "ubatch",
    "numpy",
    "pillow",
    "scikit-image",
    "flask",
    "aiohttp",
    "fastapi",
    "uvicorn",
    "gunicorn",
    "gevent",
)


def table(measured: Measured, clients: Sequence[int], title: str) -> Table:
    """One line for each number of clients and endpoint: medians of the rounds.

    Times are milliseconds. "CPU" is the time on a core for each request, of the server's process and its children;
    "others" what 9 of 10 requests that need no image take meanwhile at most; "batches" the mean sizes of the flow's,
    step by step.
    """
    shown = Table(
        title=title,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="\n".join(findings(measured, clients)),
        caption_justify="left",
    )
    shown.add_column("clients", justify="right")
    shown.add_column("endpoint")
    for heading in ("requests/s", "p50 ms", "p99 ms", "CPU ms", "others", "batches"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for count in clients:
        for endpoint in ENDPOINTS:
            rates = [sample.requests_per_second for sample in measured.of(endpoint, count)]
            rate, p50, p99, cpu, others, _ = (measured.median(endpoint, count, figure) for figure in _FIGURES)
            sizes = [f"{measured.size(step, count):.1f}" for step in ("images.decode", "images.classify")]
            shown.add_row(
                str(count),
                endpoint,
                f"{rate:.0f} ({min(rates):.0f} - {max(rates):.0f})",
                f"{p50 * 1e3:.1f}",
                f"{p99 * 1e3:.1f}",
                f"{cpu * 1e3:.1f}",
                f"{others * 1e3:.1f}",
                ", ".join(sizes) if endpoint == "flow" else "-",
                end_section=endpoint == "flow",
            )
    return shown


def findings(measured: Measured, clients: Sequence[int]) -> list[str]:
    """What the table comes to, in sentences."""
    sentences = []
    for count in clients:
        rate = measured.throughput(count)
        flow, here = (measured.median(name, count, "others_p90") * 1e3 for name in ("flow", "here"))
        sentences.append(
            f"With {count} client{'s' * (count > 1)} the flow serves {rate.median:.2f} times the requests/s of the "
            f"request's own thread ({rate.least:.2f} to {rate.most:.2f}); 9 of 10 other requests take at most "
            f"{flow:.0f} ms meanwhile, rather than {here:.0f} ms."
        )
    alike = "all alike" if not measured.different else f"{measured.different} of them differently"
    sentences.append(f"Both endpoints classified {measured.compared} images, {alike}.")
    right = min((measured.median("flow", count, "right") for count in clients), default=0.0)
    sentences.append(f"{right:.0%} of the images had their subject for the first label.")
    if measured.failed:
        reasons = sorted({reason for sample in measured.samples for reason in sample.failures})
        sentences.append(f"{measured.failed} requests failed ({'; '.join(reasons)}).")
    return sentences


def write_figures(path: Path, measured: Measured, clients: Sequence[int], settings: Mapping[str, Any]) -> None:
    """Writes every sample, the medians, the ratios, the settings and the versions."""
    figures = {
        "settings": dict(settings),
        "machine": machine() | {"load": os.getloadavg()[0]},
        "versions": versions(*_PACKAGES),
        "findings": findings(measured, clients),
        "medians": [
            {
                "endpoint": endpoint,
                "clients": count,
                **{figure: measured.median(endpoint, count, figure) for figure in _FIGURES},
            }
            for count in clients
            for endpoint in ENDPOINTS
        ],
        "flow over here": {count: asdict(measured.throughput(count)) for count in clients},
        "compared": measured.compared,
        "different": measured.different,
        "samples": [asdict(sample) for sample in measured.samples],
    }
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def steps(stats: Mapping[str, Any]) -> Table:
    """How the steps are at this moment, and the children of each: what `/stats` tells."""
    shown = Table(
        title=f"process {stats['pid']}",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="times in ms: the median, below it the 99th percentile; MB sent to the children, below it received",
    )
    shown.add_column("step", no_wrap=True)
    for heading in ("queue", "items", "batch", "wait", "transfer", "handler", "MB", "child: MiB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for step in stats["steps"]:
        cells = ["-"] * 4
        if processes := step["processes"]:
            cells = [_milliseconds(processes["transfer"]), _milliseconds(processes["handling"])]
            cells += [f"{processes['sent'] / 1e6:.0f}\n{processes['received'] / 1e6:.0f}"]
            cells += ["\n".join(_child(child) for child in processes["children"])]
        shown.add_row(
            step["name"].rpartition(".")[2],
            str(step["queued"]),
            str(step["items"]),
            f"{step['size']['mean']:.1f}",
            _milliseconds(step["wait"]),
            *cells,
            end_section=True,
        )
    return shown


def _milliseconds(times: Mapping[str, float]) -> str:
    return f"{times['p50'] * 1e3:.1f}\n{times['p99'] * 1e3:.1f}"


def _child(child: Mapping[str, Any]) -> str:
    if not child["pid"]:
        return "not started"
    return f"{child['pid']}: {child['memory'] / 2**20:.0f}" if child["alive"] else f"{child['pid']}: dead"
