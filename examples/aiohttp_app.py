"""The search service on aiohttp: `python examples/aiohttp_app.py`, then ask `http://127.0.0.1:8080/search?q=…`.

The handler of a request awaits the batched call. aiohttp cancels it if the client hangs up, and with it the
question, unless its batch has left.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from search.app import answer
from search.cache import load_index
from search.index import Hit, Index, Query
from search.question import BadQuestionError, read_question

from ubatch import UBatch


def create_app(index: Index, batch: UBatch[Query, list[Hit]] | None = None) -> web.Application:
    """Makes the application: `/search` takes `q`, the question, and `k`, how many hits; `/stats` counts.

    Args:
        index: What is searched.
        batch: A batcher whose handler is `index.search`; if left out, one with the default settings.
    """
    batch = UBatch(handler=index.search, name="search") if batch is None else batch

    async def search(request: web.Request) -> web.Response:
        try:
            query = read_question(request.rel_url.raw_query_string.encode())
        except BadQuestionError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        return web.json_response(answer(query, await batch.aubatch(query)))

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(batch.stats.asdict())

    async def life(_: web.Application) -> AsyncIterator[None]:
        yield
        await batch.astop(timeout=5)

    app = web.Application()
    app.add_routes([web.get("/search", search), web.get("/stats", stats)])
    app.cleanup_ctx.append(life)
    return app


if __name__ == "__main__":
    folder, limit = os.environ.get("SEARCH_CACHE"), os.environ.get("SEARCH_LIMIT")
    index = load_index(Path(folder) if folder else None, int(limit) if limit else None)
    web.run_app(create_app(index), host="127.0.0.1", port=8080, handler_cancellation=True)
