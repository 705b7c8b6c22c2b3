"""gunicorn's settings, however it is run: `gunicorn -c python:search.gunicorn_conf search.wsgi:app`."""

import os
from typing import Any

# Nobody outside this machine has business here.
bind = "127.0.0.1:8000"

# One process unless the environment says otherwise: a batch is made of the requests of one process, so two of them
# would halve the batches.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))

# Seconds. An index that is not cached is built before the worker says that it is alive.
timeout = 180
# At a stop, connections that clients keep open without asking anything are not waited for any longer than
# this.
graceful_timeout = 3
# A connection that is kept ties its client to one process; where there are several, each request may reach another.
keepalive = 30 if workers == 1 else 0

# The longest question that `question.py` lets pass, in four-byte characters, each byte written as %xx.
limit_request_line = 8190

# No socket for remote control in the user's home. Versions that have none ignore this.
control_socket_disable = True


def child_exit(server: Any, worker: Any) -> None:
    """Of a process that has ended `/metrics` goes on to tell what it did, but not what it had queued."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)
