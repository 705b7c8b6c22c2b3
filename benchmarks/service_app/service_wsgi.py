"""The example's search service, for gunicorn, batched by whichever ubatch lies in the folder that is measured.

The environment says which: `BENCHMARKED` is the folder, `SEARCH_TIMEOUT` the timeout of the published ubatch, in
seconds; without it, it is this project, in the example's own application. The rest is as in the example's `wsgi`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ubatch

_folder = Path(os.environ["BENCHMARKED"]).resolve()
if not Path(ubatch.__file__).resolve().is_relative_to(_folder):
    raise ImportError(f"ubatch was found at {ubatch.__file__}, not in {_folder}")

MAX_SIZE = 64


@dataclass
class Counters:
    """What the service shows of its batcher; the published one counts nothing itself."""

    items: int = 0
    batches: int = 0
    submitted: int = 0
    queued: int = 0
    running: int = 0
    errors: int = 0
    cancelled: int = 0
    expired: int = 0
    rejected: int = 0

    @property
    def mean_batch_size(self) -> float:
        """Items per batch."""
        return self.items / max(self.batches, 1)


class Published(ubatch.UBatch):  # type: ignore
    """The published batcher, started as its users do, in the process that serves; with counters."""

    def __init__(self, handler: Any, timeout: float) -> None:
        super().__init__(max_size=MAX_SIZE, timeout=timeout)
        self.stats = Counters()

        def counted(queries: Sequence[Any]) -> Any:
            self.stats.items += len(queries)
            self.stats.batches += 1
            return handler(queries)

        self.set_handler(counted)
        self.start()

    def options(self, deadline: float) -> Published:
        """It knows no deadlines."""
        return self


def _published(timeout: float) -> Any:
    from search.app import create_app
    from search.cache import load_index
    from search.index import Query

    cache, limit = os.environ.get("SEARCH_CACHE"), os.environ.get("SEARCH_LIMIT")
    index = load_index(Path(cache) if cache else None, int(limit) if limit else None)
    batch = Published(index.search, timeout)
    batch.ubatch(Query("warm up"))
    made = create_app(index, batch)
    gc.collect()
    gc.freeze()
    return made


if "SEARCH_TIMEOUT" in os.environ:
    app = _published(float(os.environ["SEARCH_TIMEOUT"]))
else:
    from search.wsgi import app  # noqa: F401
