"""The web application: the same model behind three addresses, batched in two ways and not."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from embeddings.encoder import Encoder, Features
from embeddings.text import LONGEST_BODY, BadTextError, read_text

DEADLINE = 30.0
"""Seconds within which a text is embedded, or refused."""

RETRY_AFTER = "1"
"""Seconds after which a client that was refused may try again, as HTTP has it."""


def create_app(encoder: Encoder, deadline: float = DEADLINE) -> Flask:
    """Makes the application.

    `/embed`, `/embed_fifo` and `/embed_unbatched` take a JSON object, `{"text": "…"}`, by POST, and answer with
    `{"embedding": [float, …], "tokens": int}`. Every error is a JSON object with one field, `error`. What is not
    embedded in time, or for which there is no room, is refused with 503 and `Retry-After`. `/stats` counts.

    Args:
        encoder: What embeds.
        deadline: Seconds within which a batched text is embedded.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LONGEST_BODY

    def embed(way: Callable[[Features], Any]) -> Response:
        features = encoder.tokenise(read_text(request.get_data()))
        return jsonify(embedding=way(features).tolist(), tokens=len(features["input_ids"]))

    @app.post("/embed")
    def batched() -> Response:
        return embed(encoder.batched.options(deadline=deadline).ubatch)

    @app.post("/embed_fifo")
    def fifo() -> Response:
        return embed(encoder.fifo.options(deadline=deadline).ubatch)

    @app.post("/embed_unbatched")
    def unbatched() -> Response:
        return embed(encoder.unbatched)

    @app.get("/stats")
    def stats() -> Response:
        return jsonify(pid=os.getpid(), device=encoder.device, cpu_seconds=time.process_time(), ways=encoder.stats())

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok", device=encoder.device)

    @app.errorhandler(BadTextError)
    def bad_text(error: BadTextError) -> tuple[Response, int]:
        return jsonify(error=str(error)), error.status

    @app.errorhandler(queue.Full)  # QueueFull
    @app.errorhandler(TimeoutError)  # DeadlineExceeded
    def overloaded(error: Exception) -> tuple[Response, int, dict[str, str]]:
        return jsonify(error="the service is overloaded"), 503, {"Retry-After": RETRY_AFTER}

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description or error.name), error.code or 500

    return app
