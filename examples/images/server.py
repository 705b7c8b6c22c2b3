"""Runs the service: under gunicorn as the other examples do, or on a server of one event loop."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from search.server import WORKERS, Server

LOOPS = ("aiohttp", "uvicorn")
SERVERS = (*WORKERS, *LOOPS)


class LoopServer(Server):
    """The service on an event loop, of aiohttp or, with FastAPI, of uvicorn. All else is as under gunicorn.

    Args:
        loop: One of `LOOPS`.
    """

    def __init__(self, loop: str, **options: Any) -> None:
        super().__init__(**options)
        self._loop = loop

    def _command(self, listener: int) -> list[str]:
        return ["-m", "images.server", self._loop, str(listener)]


def server(kind: str, *, preload: bool = False, port: int = 0, cache: str | os.PathLike[str] | None = None) -> Server:
    """The service, not yet started.

    Args:
        kind: One of `SERVERS`.
        preload: Whether gunicorn makes, and uses, the flow before it forks.
        port: The port on 127.0.0.1; 0 takes a free one.
        cache: Folder of the model; the user's own cache folder if left out.
    """
    environment = {} if cache is None else {"IMAGES_CACHE": os.fspath(cache)}
    if kind in LOOPS:
        return LoopServer(kind, port=port, environment=environment)
    return Server(kind, preload=preload, port=port, application="images.wsgi:app", environment=environment)


def serve(loop: str, listener: socket.socket) -> None:
    """Serves on a listening socket until a signal ends it."""
    if loop == "aiohttp":
        from aiohttp import web

        from images import aiohttp_app

        web.run_app(aiohttp_app.create_app(), sock=listener, print=None)
    else:
        import uvicorn

        from images import fastapi_app

        config = uvicorn.Config(fastapi_app.create_app(), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
