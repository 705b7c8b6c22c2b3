"""Reads a text from a request's body and refuses what is none, before it can join a batch."""

from __future__ import annotations

import json

LONGEST_TEXT = 10_000
"""In characters: some ten times what the model reads of it."""

LONGEST_BODY = 12 * LONGEST_TEXT + 1000
"""In bytes: a character may be written as two escapes of six bytes each."""


class BadTextError(ValueError):
    """The text cannot be embedded; the message says why in words for the one who asked.

    Attributes:
        status: The HTTP status that fits.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def read_text(body: bytes) -> str:
    """Takes the text from a JSON object, `{"text": "…"}`.

    Args:
        body: As received.

    Raises:
        BadTextError: It is no such object, or the text is empty, too long or not Unicode.
    """
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        raise BadTextError('the body is not JSON: send {"text": "your text"}') from None
    if not isinstance(decoded, dict) or "text" not in decoded:
        raise BadTextError('text is missing: send {"text": "your text"}')
    text = decoded["text"]
    if not isinstance(text, str):
        raise BadTextError("text must be a string")
    if len(text) > LONGEST_TEXT:
        raise BadTextError(f"text is longer than {LONGEST_TEXT} characters", 413)
    if not text.strip():
        raise BadTextError("text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write half a pair of surrogates
        raise BadTextError("text is not valid Unicode") from None
    return text
