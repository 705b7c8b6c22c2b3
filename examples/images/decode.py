"""The first step: from a file's bytes to an array of pixels. A file that is none is refused for its sender alone."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SIDE = 224
"""Of the square that the model looks at, in pixels."""

LONGEST_BODY = 8_000_000
"""In bytes."""

MOST_PIXELS = 40_000_000
"""A file of a few bytes may claim any size: what is larger than this is not unpacked."""

KINDS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n"}
"""What is accepted, by the first bytes of its files."""

Pixels = npt.NDArray[np.float32]
"""Of shape (SIDE, SIDE, 3), from 0 to 1."""


class BadImageError(ValueError):
    """The body is no image that can be classified; the message says why in words for the one who sent it.

    Attributes:
        status: The HTTP status that fits.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def check(body: bytes) -> bytes:
    """Returns the body if it may be an image: what is none need not travel to another process to be refused.

    Raises:
        BadImageError: It is empty, too long, or begins as neither a JPEG nor a PNG.
    """
    if not body:
        raise BadImageError("the body is empty: send a JPEG or a PNG")
    if len(body) > LONGEST_BODY:
        raise BadImageError(f"the body is longer than {LONGEST_BODY} bytes", 413)
    if not body.startswith(tuple(KINDS.values())):
        raise BadImageError("the body is neither a JPEG nor a PNG", 415)
    return body


def decode(bodies: Sequence[bytes]) -> list[Pixels | BadImageError]:
    """For each file its pixels, or why it has none."""
    return [_decode(body) for body in bodies]


def pixels(image: Image.Image) -> Pixels:
    """The middle of an image, as large a square as it has, scaled to what the model looks at."""
    if image.mode.startswith("I"):  # 16 bits of grey, of which Pillow would keep the lower half
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.float32) / np.float32(255)


def _decode(body: bytes) -> Pixels | BadImageError:
    try:
        with Image.open(io.BytesIO(body), formats=tuple(KINDS)) as image:
            if image.width * image.height > MOST_PIXELS:
                return BadImageError(f"the image has more than {MOST_PIXELS} pixels", 413)
            image.draft("RGB", (SIDE, SIDE))  # a JPEG can be decoded at half its size, or a quarter, for less
            return pixels(ImageOps.exif_transpose(image))
    except MemoryError:
        raise
    except Exception as error:  # what Pillow raises depends on where the file is broken
        return BadImageError(f"the image cannot be read: {error}")
