"""Many clients in one process: each asks, waits for the answer, asks the next question at once.

Runs as a process of its own (`python -m search.load`), reads a `Job` from its standard input and writes a
`Result` to its standard output, both as JSON. The machine's cores are shared with the server under test, so
a client must cost little: a bare `asyncio.Protocol` on a kept-open connection, the requests made
beforehand. It understands just the HTTP that a WSGI server answers such requests with and gives up on
anything else.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from urllib.parse import quote

_MOST_FAILED_CONNECTIONS = 20
_LONGEST_ANSWER = 60.0
_END_OF_HEADERS = b"\r\n\r\n"


@dataclass(frozen=True)
class Job:
    """What to ask, and for how long. Times are seconds."""

    host: str
    port: int
    path: str
    questions: list[str]
    clients: int
    warm_up: float
    seconds: float


@dataclass
class Result:
    """What came of it. Latencies are seconds, of requests sent after the warm-up."""

    requests_per_second: float = 0.0
    """Answers that came within the measured time, divided by it."""
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    """How often each thing went wrong: a status other than 200, a lost connection, an answer that changed."""
    answers: dict[str, str] = field(default_factory=dict)
    """The first answer to each question."""


async def drive(job: Job) -> Result:
    """Runs all clients of a job.

    Raises:
        ConnectionError: The server cannot be reached.
        TimeoutError: Answers are still missing a minute after the end.
    """
    crowd = _Crowd(job)
    await crowd.run()
    return crowd.result


class _Crowd:
    """The clients together: they draw questions from one list, in turns, and put their times in one place."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.result = Result()
        self.failures = Counter[str]()
        self.requests = [_request(job, question) for question in job.questions]
        self.answers: dict[int, bytes] = {}
        self.in_time = 0
        self.failed_connections = 0
        self.drawn = 0
        self.begin = time.perf_counter() + job.warm_up
        self.end = self.begin + job.seconds

    async def run(self) -> None:
        limit = self.job.warm_up + self.job.seconds + _LONGEST_ANSWER
        await asyncio.wait_for(asyncio.gather(*(self._client() for _ in range(self.job.clients))), limit)
        self.result.requests_per_second = self.in_time / self.job.seconds
        self.result.failures = dict(self.failures)
        self.result.answers = {self.job.questions[at]: body.decode() for at, body in sorted(self.answers.items())}

    async def _client(self) -> None:
        loop = asyncio.get_running_loop()
        while time.perf_counter() < self.end:
            done: asyncio.Future[None] = loop.create_future()
            try:
                await loop.create_connection(partial(_Connection, self, done), self.job.host, self.job.port)
                await done
                self.failed_connections = 0
            except ConnectionError as error:
                self.fail(f"connection: {error}")
                self.failed_connections += 1
                if self.failed_connections > _MOST_FAILED_CONNECTIONS:
                    raise
                await asyncio.sleep(0.05)

    def draw(self) -> int:
        """The number of the next question."""
        self.drawn += 1
        return (self.drawn - 1) % len(self.requests)

    def fail(self, reason: str) -> None:
        self.failures[reason] += 1

    def record(self, question: int, status: int, body: bytes, sent: float, now: float) -> None:
        if self.begin <= now < self.end:
            self.in_time += 1
        if self.begin <= sent:
            self.result.latencies.append(now - sent)
        if status != 200:
            self.fail(f"status {status}")
        elif self.answers.setdefault(question, body) != body:
            self.fail("another answer to the same question")


class _Connection(asyncio.Protocol):
    """One connection: request, answer, request, answer, until the time is over or the server closes it."""

    def __init__(self, crowd: _Crowd, done: asyncio.Future[None]) -> None:
        self._crowd = crowd
        self._done = done
        self._sent = time.perf_counter()  # connecting is part of the first request's time
        self._received = b""
        self._asking = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_size = self._received.find(_END_OF_HEADERS)
        if head_size < 0:
            return
        head = self._received[:head_size].lower()
        try:
            status = int(head[len("http/1.1 ") : len("http/1.1 200")])
            whole = head_size + len(_END_OF_HEADERS) + int(_header(head, b"content-length"))
        except ValueError:
            self._done.set_exception(ConnectionError(f"not understood: {head[:200]!r}"))
            self._transport.abort()
            return
        if len(self._received) < whole:
            return
        now = time.perf_counter()
        body, self._received = self._received[head_size + len(_END_OF_HEADERS) : whole], b""
        self._asking = False
        self._crowd.record(self._question, status, body, self._sent, now)
        if now >= self._crowd.end or _header(head, b"connection") == b"close":
            self._transport.close()
        else:
            self._sent = now
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if self._asking:
            self._done.set_exception(ConnectionError("closed before the answer"))
        else:
            self._done.set_result(None)

    def _ask(self) -> None:
        self._asking = True
        self._question = self._crowd.draw()
        self._transport.write(self._crowd.requests[self._question])


def _request(job: Job, question: str) -> bytes:
    return f"GET {job.path}?q={quote(question)} HTTP/1.1\r\nHost: {job.host}:{job.port}\r\n\r\n".encode()


def _header(head: bytes, name: bytes) -> bytes:
    """The value of a header in lower-cased headers, empty if there is none."""
    _, _, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip()


if __name__ == "__main__":
    try:
        json.dump(asdict(asyncio.run(drive(Job(**json.load(sys.stdin))))), sys.stdout)
    except (OSError, asyncio.TimeoutError) as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
