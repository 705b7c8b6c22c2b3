"""Many clients in one process: each sends a text, waits for its embedding, sends the next one at once.

Runs as a process of its own (`python -m embeddings.load`), reads a `Job` from its standard input and writes a `Result`
to its standard output, both as JSON. Texts are sent once each, whoever is free taking the next one, so that all ways
to embed are measured by the same work; a `limit` in seconds sees to it that there is an end. `post` does so with
whatever is to be sent.
"""

from __future__ import annotations

import http.client
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TypeVar

K = TypeVar("K")


@dataclass(frozen=True)
class Clients:
    """How many there are, where they send to, and for how long."""

    host: str
    port: int
    path: str
    clients: int
    limit: float = 120.0
    """Seconds after which nothing further is sent."""
    patience: float = 60.0
    """Seconds to wait for an answer."""


@dataclass(frozen=True, kw_only=True)
class Job(Clients):
    """What to send, and where to."""

    texts: list[str]


@dataclass
class Sent:
    """What became of what was sent. Times are seconds."""

    seconds: float = 0.0
    """From the first request to the last answer."""
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    """How often each thing went wrong: a status other than 200, a lost connection."""


@dataclass
class Result(Sent):
    """What came of a job."""

    embeddings: dict[str, list[float]] = field(default_factory=dict)
    """By text."""


def drive(job: Job) -> Result:
    """Runs all clients of a job, each in a thread of its own."""
    result = Result()

    def take(text: str, body: bytes) -> None:
        result.embeddings[text] = json.loads(body)["embedding"]

    post(job, [(text, json.dumps({"text": text}).encode()) for text in job.texts], "application/json", take, result)
    return result


def post(
    to: Clients, bodies: Iterable[tuple[K, bytes]], kind: str, take: Callable[[K, bytes], None], result: Sent
) -> None:
    """Sends each of the bodies once, by as many clients as asked for, each in a thread of its own.

    Args:
        to: Who sends, and where to.
        bodies: What is sent, and what it is called.
        kind: The bodies' media type.
        take: Given what was sent and its answer; called under a lock.
        result: Where latencies, failures and the duration are put.
    """
    waiting: queue.SimpleQueue[tuple[K, bytes]] = queue.SimpleQueue()
    for named in bodies:
        waiting.put(named)
    failures, lock = Counter[str](), threading.Lock()
    began = time.perf_counter()

    def client() -> None:
        with closing(http.client.HTTPConnection(to.host, to.port, timeout=to.patience)) as connection:
            while time.perf_counter() < began + to.limit:
                try:
                    name, body = waiting.get_nowait()
                except queue.Empty:
                    return
                sent = time.perf_counter()
                try:
                    connection.request("POST", to.path, body, {"Content-Type": kind})
                    response = connection.getresponse()
                    status, answer = response.status, response.read()
                except (OSError, http.client.HTTPException) as error:
                    connection.close()  # the next request opens it again
                    with lock:
                        failures[f"connection: {type(error).__name__}"] += 1
                    continue
                took = time.perf_counter() - sent
                with lock:
                    if status == http.HTTPStatus.OK:
                        result.latencies.append(took)
                        take(name, answer)
                    else:
                        failures[f"status {status}"] += 1

    threads = [threading.Thread(target=client) for _ in range(to.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - began
    if not waiting.empty():
        failures["not sent in time"] += waiting.qsize()
    result.failures = dict(failures)


if __name__ == "__main__":
    json.dump(asdict(drive(Job(**json.load(sys.stdin)))), sys.stdout)
