"""The service on FastAPI: `uvicorn --app-dir examples --factory images.fastapi_app:create_app`.

Each request awaits the flow; the event loop goes on meanwhile. Addresses and answers are those of `flask_app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from images.decode import LONGEST_BODY, check
from images.pipeline import Images, create_flow
from images.service import DEADLINE, REFUSED, answer, classify_here, health, refusal, stats


def create_app(flow: Images | None = None, deadline: float = DEADLINE) -> FastAPI:
    """Makes the application, which starts the flow before it serves, and stops it in the end.

    Args:
        flow: What decodes and classifies; if left out, one with the default settings.
        deadline: Seconds within which an image is classified.
    """
    flow = create_flow() if flow is None else flow
    in_time = flow.options(deadline=deadline)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(flow.start)
        yield
        await flow.astop(timeout=5)

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        return answer(await in_time.aubatch(check(await _body(request))))

    @app.post("/classify_here")
    async def here(request: Request) -> dict[str, Any]:
        return answer(classify_here(await _body(request)))

    @app.get("/stats")
    async def show_stats() -> dict[str, Any]:
        return stats(flow)

    @app.get("/health")
    async def show_health() -> dict[str, Any]:
        return health(flow)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        body, status, headers = refusal(error)
        return JSONResponse(body, status, headers)

    for kind in REFUSED:
        app.add_exception_handler(kind, refused)

    @app.exception_handler(HTTPException)
    async def not_served(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    return app


async def _body(request: Request) -> bytes:
    """The body, of which no more is kept than may be sent: `check` refuses what is longer."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_BODY:
            break
    return bytes(body)
