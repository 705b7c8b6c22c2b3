"""The search service on FastAPI: `uvicorn --app-dir examples fastapi_app:app`.

Each request awaits its own hits. A thread of the batcher's own answers the questions that came together in one
product of matrices, so the event loop goes on taking requests meanwhile. A question whose client hangs up before
its batch leaves is never computed.

Settings come from the environment, as with gunicorn: `SEARCH_CACHE`, `SEARCH_LIMIT`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from search.app import answer
from search.cache import load_index
from search.index import Hit, Index, Query
from search.question import BadQuestionError, read_question

from ubatch import UBatch

CLIENT_CLOSED_REQUEST = 499
"""What nginx calls it; nobody reads the answer."""


def create_app(index: Index | None = None, batch: UBatch[Query, list[Hit]] | None = None) -> FastAPI:
    """Makes the application: `/search` takes `q`, the question, and `k`, how many hits; `/stats` counts.

    Args:
        index: What is searched; if left out, it is loaded when the server starts.
        batch: A batcher whose handler is `index.search`; if left out, one with the default settings.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        folder, limit = os.environ.get("SEARCH_CACHE"), os.environ.get("SEARCH_LIMIT")
        searched = index or load_index(Path(folder) if folder else None, int(limit) if limit else None)
        app.state.batch = batch or UBatch(handler=searched.search, name="search")
        yield
        await app.state.batch.astop(timeout=5)

    app = FastAPI(lifespan=lifespan)

    @app.get("/search")
    async def search(request: Request) -> dict[str, Any]:
        query = read_question(request.scope["query_string"])
        return answer(query, await unless_gone(request, app.state.batch.aubatch(query)))

    @app.get("/stats")
    async def stats() -> dict[str, Any]:
        counted: dict[str, Any] = app.state.batch.stats.asdict()
        return counted

    @app.exception_handler(BadQuestionError)
    async def bad_question(request: Request, error: BadQuestionError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    return app


async def unless_gone(request: Request, call: Coroutine[Any, Any, Any]) -> Any:
    """Awaits a call, and cancels it if the client hangs up: FastAPI itself goes on to the end."""
    work = asyncio.ensure_future(call)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise HTTPException(CLIENT_CLOSED_REQUEST)
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


app = create_app()
