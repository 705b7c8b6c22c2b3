"""Many clients in one process: each sends a text, waits for its embedding, sends the next one at once.

Runs as a process of its own (`python -m embeddings.load`), reads a `Job` from its standard input and writes a `Result`
to its standard output, both as JSON. Texts are sent once each, whoever is free taking the next one, so that all ways
to embed are measured by the same work; a `limit` in seconds sees to it that there is an end.
"""

from __future__ import annotations

import http.client
import json
import queue
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Job:
    """What to send, and where to."""

    host: str
    port: int
    path: str
    texts: list[str]
    clients: int
    limit: float = 120.0
    """Seconds after which no further text is sent."""
    patience: float = 60.0
    """Seconds to wait for an answer."""


@dataclass
class Result:
    """What came of it. Times are seconds."""

    seconds: float = 0.0
    """From the first request to the last answer."""
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    """How often each thing went wrong: a status other than 200, a lost connection."""
    embeddings: dict[str, list[float]] = field(default_factory=dict)
    """By text."""


def drive(job: Job) -> Result:
    """Runs all clients of a job, each in a thread of its own."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for text in job.texts:
        waiting.put(text)
    result, failures, lock = Result(), Counter[str](), threading.Lock()
    began = time.perf_counter()

    def client() -> None:
        with closing(http.client.HTTPConnection(job.host, job.port, timeout=job.patience)) as connection:
            while time.perf_counter() < began + job.limit:
                try:
                    text = waiting.get_nowait()
                except queue.Empty:
                    return
                sent = time.perf_counter()
                try:
                    status, body = _ask(connection, job.path, text)
                except (OSError, http.client.HTTPException) as error:
                    connection.close()  # the next request opens it again
                    with lock:
                        failures[f"connection: {type(error).__name__}"] += 1
                    continue
                took = time.perf_counter() - sent
                with lock:
                    if status == http.HTTPStatus.OK:
                        result.latencies.append(took)
                        result.embeddings[text] = json.loads(body)["embedding"]
                    else:
                        failures[f"status {status}"] += 1

    threads = [threading.Thread(target=client) for _ in range(job.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - began
    if not waiting.empty():
        failures["not sent in time"] += waiting.qsize()
    result.failures = dict(failures)
    return result


def _ask(connection: http.client.HTTPConnection, path: str, text: str) -> tuple[int, bytes]:
    connection.request("POST", path, json.dumps({"text": text}), {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, response.read()


if __name__ == "__main__":
    json.dump(asdict(drive(Job(**json.load(sys.stdin)))), sys.stdout)
