"""The search example on FastAPI and on aiohttp for real: a server, HTTP, concurrent clients, clients that hang up."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ubatch import UBatch

for package in ("numpy", "flask", "fastapi", "uvicorn", "aiohttp"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
if not (EXAMPLES / "search").is_dir():
    pytest.skip("the examples are not here", allow_module_level=True)
sys.path.insert(0, str(EXAMPLES))

import aiohttp_app  # noqa: E402
import fastapi_app  # noqa: E402
from search.app import answer  # noqa: E402
from search.collect import collect  # noqa: E402
from search.index import Index, Query  # noqa: E402

QUESTIONS = ["read a file", "parse a date", "open a socket", "sort a list", "compress data"]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build(list(islice(collect(), 300)))


class Gate:
    """The index's search, which waits while the gate is shut, and remembers its batches."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.open = threading.Event()
        self.open.set()
        self.batches: list[list[str]] = []

    def search(self, queries: list[Query]) -> Any:
        self.batches.append([query.text for query in queries])
        assert self.open.wait(30)
        return self.index.search(queries)


@asynccontextmanager
async def with_fastapi(index: Any, batch: UBatch[Any, Any]) -> AsyncIterator[int]:
    import uvicorn

    config = uvicorn.Config(fastapi_app.create_app(index, batch), port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[method-assign, attr-defined]
    task = asyncio.create_task(server._serve() if hasattr(server, "_serve") else server.serve())
    while not server.started:
        assert not task.done(), task.exception()
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def with_aiohttp(index: Any, batch: UBatch[Any, Any]) -> AsyncIterator[int]:
    from aiohttp import web

    runner = web.AppRunner(aiohttp_app.create_app(index, batch), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def get(port: int, path: str) -> tuple[int, Any]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        response = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = response.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = body.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0]
    return int(head.split()[1]), json.loads(body)


async def eventually(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came about")


@pytest.fixture(params=[with_fastapi, with_aiohttp], ids=["fastapi", "aiohttp"])
def serve(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_concurrent_requests_share_batches(serve: Any, index: Index) -> None:
    """Each gets its own hits, those of an unbatched search."""
    gate = Gate(index)

    async def main() -> None:
        batch = UBatch(64, handler=gate.search)
        async with serve(gate, batch) as port:
            asked = [QUESTIONS[n % len(QUESTIONS)] for n in range(100)]
            got = await asyncio.gather(*(get(port, f"/search?q={quote(text)}&k=3") for text in asked))
            for text, (status, body) in zip(asked, got, strict=True):
                query = Query(text, 3)
                assert status == 200
                assert body == json.loads(json.dumps(answer(query, index.search([query])[0])))
            status, stats = await get(port, "/stats")
            assert (status, stats["items"], stats["queued"], stats["errors"]) == (200, 100, 0, 0)
            assert stats["batches"] < 100
            status, body = await get(port, "/search")
            assert status == 400 and "q is missing" in body["error"]
        assert not batch.alive

    asyncio.run(main())


def test_a_client_that_hangs_up_takes_its_question_back(serve: Any, index: Index) -> None:
    """It is never computed; the other requests are answered."""
    gate = Gate(index)

    async def main() -> None:
        batch = UBatch(64, timeout=0, handler=gate.search)
        async with serve(gate, batch) as port:
            gate.open.clear()
            first = asyncio.create_task(get(port, "/search?q=first"))
            await eventually(lambda: gate.batches)
            leaver = asyncio.create_task(get(port, "/search?q=leaver"))
            stayer = asyncio.create_task(get(port, "/search?q=stayer"))
            await eventually(lambda: batch.stats.queued == 2)
            leaver.cancel()
            await eventually(lambda: any(ticket.left for ticket in batch._schedule.next(9)))
            gate.open.set()
            assert (await first)[0] == (await stayer)[0] == 200
        assert gate.batches == [["first"], ["stayer"]]
        assert batch.stats.cancelled == 1

    asyncio.run(main())
