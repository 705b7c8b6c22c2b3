"""What the service tells about itself: `/stats` for programs and for the page, `/metrics` for Prometheus.

Both are of the process that answers, but for `/metrics` where `PROMETHEUS_MULTIPROC_DIR` is set: then it is of all
processes that share that folder. What `/metrics` shows of the batcher, `ubatch.metrics` puts there (`wsgi`).

A client of `/stats` sees each batch once, however many clients there are and however seldom they ask: an answer has a
`mark`, and who brings it along, `/stats?since=MARK`, also gets the difference between then and now. Marks of other
processes and forgotten ones are passed over, so a client may bring those of all processes that it has met.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, jsonify, request
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from ubatch import Stats, UBatch

MOST_MARKS = 64
"""Marks that are known at most; a client that keeps on asking needs its latest one alone."""

_COUNTERS = (
    "submitted",
    "queued",
    "running",
    "items",
    "batches",
    "errors",
    "cancelled",
    "expired",
    "rejected",
    "mean_batch_size",
)


class Marks:
    """The latest snapshots of a batcher that were given out, by their marks. Safe for threads."""

    def __init__(self, batch: UBatch[Any, Any]) -> None:
        self._batch = batch
        self._lock = Lock()  # guards what follows
        self._given: OrderedDict[str, tuple[float, Stats]] = OrderedDict()
        self._count = 0

    def look(self, known: Iterable[str]) -> dict[str, Any]:
        """Takes a snapshot.

        Args:
            known: Marks of earlier ones; the latest that was given out here counts, others are passed over.

        Returns:
            `batching`, counters since the start; `mark`; and `since`, `None` if no mark is known, else what was done
            since then, as `Stats.asdict()` has it, and in how many `seconds`.
        """
        with self._lock:
            now, stats = time.monotonic(), self._batch.stats
            before = max(
                (self._given[mark] for mark in known if mark in self._given), default=None, key=lambda at: at[0]
            )
            self._count += 1
            mark = f"{os.getpid()}.{self._count}"
            self._given[mark] = now, stats
            if len(self._given) > MOST_MARKS:
                self._given.popitem(last=False)
        since = None if before is None else {"seconds": now - before[0], **(stats - before[1]).asdict()}
        return {"batching": {name: getattr(stats, name) for name in _COUNTERS}, "mark": mark, "since": since}


def watching(batch: UBatch[Any, Any], entries: int, registry: CollectorRegistry = REGISTRY) -> Blueprint:
    """Makes `/stats` and `/metrics`.

    Args:
        batch: What `/stats` tells about.
        entries: How many entries are searched; `/stats` tells that too.
        registry: What `/metrics` shows where it shows one process.
    """
    blueprint = Blueprint("watch", __name__)
    marks = Marks(batch)

    @blueprint.get("/stats")
    def stats() -> Response:
        seen = marks.look(request.args.getlist("since"))
        response = jsonify(pid=os.getpid(), several=request.is_multiprocess, entries=entries, **seen)
        response.cache_control.no_store = True
        return response

    @blueprint.get("/metrics")
    def metrics() -> Response:
        scraped = registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            scraped = CollectorRegistry()
            MultiProcessCollector(scraped)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(scraped), content_type=content_type)

    return blueprint
