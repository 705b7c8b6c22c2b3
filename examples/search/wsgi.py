"""What gunicorn loads: `gunicorn --pythonpath examples search.wsgi:app`.

Settings come from the environment: `SEARCH_CACHE` (folder of the cached index) and `SEARCH_LIMIT` (number of
entries).
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import ubatch.metrics
from search.app import create_app
from search.cache import load_index
from search.index import Query

_folder = os.environ.get("SEARCH_CACHE")
_limit = os.environ.get("SEARCH_LIMIT")

ubatch.metrics.prometheus()
app = create_app(load_index(Path(_folder) if _folder else None, int(_limit) if _limit else None))

# The first request need not pay for what happens only once. With `--preload` this runs before the fork: the
# workers take the batcher over as the parent left it and go on with a thread of their own.
app.extensions["batch"].ubatch(Query("warm up"))

# The entries live as long as the process. The garbage collector need not look at them again and again, nor,
# after a fork, touch and thereby copy the pages they are on.
gc.collect()
gc.freeze()
