"""Reads questions from a URL's query string and refuses what is none, before it can join a batch."""

from __future__ import annotations

import unicodedata
from urllib.parse import parse_qsl

from search.index import MOST_HITS, Query
from search.vectors import words

LONGEST_QUESTION = 500
"""In characters."""

MOST_QUESTIONS = 32
"""In one request."""

_MOST_FIELDS = 16
_USUAL_COUNT = 10
_MISSING = "q is missing: ask with ?q=your+question"


class BadQuestionError(ValueError):
    """The question cannot be answered; the message says why in words for the one who asked.

    Attributes:
        status: The HTTP status that fits.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def read_question(query_string: bytes) -> Query:
    """Takes `q` (the question) and `k` (how many hits, 10 if left out) from a query string.

    Args:
        query_string: As received: `b"q=wrap+text&k=5"`.

    Raises:
        BadQuestionError: A field is missing, given twice, not text, too long, empty of words or out of range.
    """
    fields = _fields(query_string, _MOST_FIELDS)
    text = _only(fields, "q")
    if text is None:
        raise BadQuestionError(_MISSING)
    return Query(_checked(text), _count(_only(fields, "k")))


def read_questions(query_string: bytes) -> list[Query]:
    """Takes `q`, once or more, and `k`, which is for all of them, from a query string.

    Args:
        query_string: As received: `b"q=wrap+text&q=parse+json&k=5"`.

    Raises:
        BadQuestionError: As `read_question`, or there are more than `MOST_QUESTIONS`.
    """
    fields = _fields(query_string, MOST_QUESTIONS + _MOST_FIELDS)
    texts = [value for key, value in fields if key == "q"]
    if not texts:
        raise BadQuestionError(_MISSING)
    if len(texts) > MOST_QUESTIONS:
        raise BadQuestionError(f"q is given more than {MOST_QUESTIONS} times")
    count = _count(_only(fields, "k"))
    return [Query(_checked(text), count) for text in texts]


def _fields(query_string: bytes, most: int) -> list[tuple[str, str]]:
    # Flask's own `request.args` lets bytes that are not UTF-8 pass, in a changed form; here they are refused.
    try:
        return parse_qsl(query_string.decode(), keep_blank_values=True, errors="strict", max_num_fields=most)
    except UnicodeDecodeError:
        raise BadQuestionError("the query string is not valid UTF-8") from None
    except ValueError:
        raise BadQuestionError(f"the query string has more than {most} fields") from None


def _checked(text: str) -> str:
    if len(text) > LONGEST_QUESTION:
        raise BadQuestionError(f"q is longer than {LONGEST_QUESTION} characters", 414)
    if any(unicodedata.category(character) == "Cc" and character not in "\t\n\r" for character in text):
        raise BadQuestionError("q holds control characters")
    if not words(text):
        raise BadQuestionError("q holds no letters or digits")
    return text


def _only(fields: list[tuple[str, str]], name: str) -> str | None:
    values = [value for key, value in fields if key == name]
    if len(values) > 1:
        raise BadQuestionError(f"{name} is given more than once")
    return values[0] if values else None


def _count(value: str | None) -> int:
    if value is None:
        return _USUAL_COUNT
    if not (value.isascii() and value.isdigit() and len(value) <= 3 and 1 <= int(value) <= MOST_HITS):
        raise BadQuestionError(f"k must be a whole number from 1 to {MOST_HITS}")
    return int(value)
