"""The web application: the same search behind two addresses, one batched and one not."""

from __future__ import annotations

import queue
from typing import Any

from flask import Flask, Response, jsonify, render_template, request
from prometheus_client import REGISTRY, CollectorRegistry
from werkzeug.exceptions import HTTPException

from search.index import Hit, Index, Query
from search.question import BadQuestionError, read_question, read_questions
from search.watch import watching
from ubatch import UBatch

DEADLINE = 5.0
"""Seconds within which a question is answered, or refused."""

MOST_WAITING = 1024
"""Questions that wait at most; a second's worth, about."""

RETRY_AFTER = "1"
"""Seconds after which a client that was refused may try again, as HTTP has it."""

_LONGEST_SUMMARY = 200
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


def create_app(
    index: Index,
    batch: UBatch[Query, list[Hit]] | None = None,
    deadline: float = DEADLINE,
    registry: CollectorRegistry = REGISTRY,
) -> Flask:
    """Makes the application.

    `/search` and `/search_unbatched` take `q`, the question, and `k`, how many hits (10 if left out, at
    most 100); `/search_many` takes `q` several times, and answers all or none. `/` is the page, `/stats` and
    `/metrics` are `watch`'s. Every error is a JSON object with one field, `error`. A batched question that is
    not answered in time, or for which there is no room, is refused with 503 and `Retry-After`: under overload
    those that are taken on are answered in time. `app.extensions["batch"]` is the batcher.

    Args:
        index: What is searched.
        batch: A batcher whose handler is `index.search`; if left out, one with a bounded queue.
        deadline: Seconds within which a batched question is answered.
        registry: What `/metrics` shows; by default what prometheus_client does.
    """
    app = Flask(__name__)
    batch = UBatch(handler=index.search, name="search", max_queue=MOST_WAITING) if batch is None else batch
    in_time = batch.options(deadline=deadline)
    app.extensions["batch"] = batch
    app.register_blueprint(watching(batch, len(index.entries), registry))

    @app.get("/search")
    def search() -> Response:
        query = read_question(request.query_string)
        return jsonify(answer(query, in_time.ubatch(query)))

    @app.get("/search_unbatched")
    def search_unbatched() -> Response:
        query = read_question(request.query_string)
        return jsonify(answer(query, index.search([query])[0]))

    @app.get("/search_many")
    def search_many() -> Response:
        queries = read_questions(request.query_string)
        return jsonify(answers=[answer(*pair) for pair in zip(queries, in_time.map(queries), strict=True)])

    @app.get("/health")
    def health() -> Response:
        return jsonify(status="ok", entries=len(index.entries))

    @app.get("/")
    def page() -> str:
        answered = None
        if request.query_string:
            query = read_question(request.query_string)
            answered = answer(query, in_time.ubatch(query))
        return render_template("page.html", entries=len(index.entries), answer=answered)

    @app.errorhandler(BadQuestionError)
    def bad_question(error: BadQuestionError) -> tuple[Response, int]:
        return jsonify(error=str(error)), error.status

    @app.errorhandler(queue.Full)  # QueueFull
    @app.errorhandler(TimeoutError)  # DeadlineExceeded
    def overloaded(error: Exception) -> tuple[Response, int, dict[str, str]]:
        return jsonify(error="the service is overloaded"), 503, {"Retry-After": RETRY_AFTER}

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.description or error.name), error.code or 500

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    return app


def answer(query: Query, hits: list[Hit]) -> dict[str, Any]:
    """What is sent for a question: the question and its hits, best first."""
    return {"query": query.text, "hits": [_shown(hit) for hit in hits]}


def _shown(hit: Hit) -> dict[str, Any]:
    entry = hit.entry
    return {
        "name": entry.name,
        "kind": entry.kind,
        "signature": entry.signature,
        "summary": entry.summary[:_LONGEST_SUMMARY],
        "line": entry.line,
        "score": hit.score,
    }
