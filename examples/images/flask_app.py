"""The service on Flask, for gunicorn: each request waits in its thread or greenlet."""

from __future__ import annotations

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from images.decode import LONGEST_BODY, check
from images.pipeline import Images
from images.service import DEADLINE, REFUSED, answer, classify_here, health, refusal, stats


def create_app(flow: Images, deadline: float = DEADLINE) -> Flask:
    """Makes the application.

    `/classify` takes a JPEG or a PNG by POST, as the body, and answers with
    `{"labels": [{"label": str, "score": float}, …]}`, the best first; `/classify_here` does the same work in the
    request's own thread. Every error is a JSON object with one field, `error`. What is not classified in time, for
    which there is no room, or whose child process died, is refused with 503 and `Retry-After`. `/stats` and `/health`
    tell of the steps and their children. `app.extensions["flow"]` is the flow.

    Args:
        flow: What decodes and classifies; it is started by the first image.
        deadline: Seconds within which an image is classified.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = LONGEST_BODY
    app.extensions["flow"] = flow
    in_time = flow.options(deadline=deadline)

    @app.post("/classify")
    def classify() -> Response:
        return jsonify(answer(in_time.ubatch(check(request.get_data()))))

    @app.post("/classify_here")
    def here() -> Response:
        return jsonify(answer(classify_here(request.get_data())))

    @app.get("/stats")
    def show_stats() -> Response:
        return jsonify(stats(flow))

    @app.get("/health")
    def show_health() -> Response:
        return jsonify(health(flow))

    def refused(error: Exception) -> tuple[Response, int, dict[str, str]]:
        body, status, headers = refusal(error)
        return jsonify(body), status, headers

    for kind in REFUSED:
        app.register_error_handler(kind, refused)

    @app.errorhandler(HTTPException)
    def not_served(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description or error.name), error.code or 500

    return app
