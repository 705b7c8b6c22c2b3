"""The service on aiohttp: `python examples/images --server aiohttp --serve`, or `create_app` in a server of one's own.

The handler of a request awaits the flow; the event loop goes on meanwhile. Addresses and answers are those of
`flask_app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from images.decode import LONGEST_BODY, check
from images.pipeline import Images, create_flow
from images.service import DEADLINE, REFUSED, answer, classify_here, health, refusal, stats

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(flow: Images | None = None, deadline: float = DEADLINE) -> web.Application:
    """Makes the application, which starts the flow before it serves, and stops it in the end.

    Args:
        flow: What decodes and classifies; if left out, one with the default settings.
        deadline: Seconds within which an image is classified.
    """
    flow = create_flow() if flow is None else flow
    in_time = flow.options(deadline=deadline)

    async def classify(request: web.Request) -> web.Response:
        return web.json_response(answer(await in_time.aubatch(check(await request.read()))))

    async def here(request: web.Request) -> web.Response:
        return web.json_response(answer(classify_here(await request.read())))

    async def show_stats(_: web.Request) -> web.Response:
        return web.json_response(stats(flow))

    async def show_health(_: web.Request) -> web.Response:
        return web.json_response(health(flow))

    async def life(_: web.Application) -> AsyncIterator[None]:
        await asyncio.to_thread(flow.start)
        yield
        await flow.astop(timeout=5)

    app = web.Application(client_max_size=LONGEST_BODY, middlewares=[_errors_as_json])
    app.add_routes([web.post("/classify", classify), web.post("/classify_here", here)])
    app.add_routes([web.get("/stats", show_stats), web.get("/health", show_health)])
    app.cleanup_ctx.append(life)
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except REFUSED as error:
        body, status, headers = refusal(error)
        return web.json_response(body, status=status, headers=headers)
    except web.HTTPException as error:
        return web.json_response({"error": error.text or error.reason}, status=error.status)
