"""The photographs that scikit-image ships, by subject, and pieces of them as files to send.

All are in the public domain or free of copyright; `skimage.data` names the source of each. The files are read without
importing scikit-image, which would bring SciPy into every process.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

FILES = {
    "astronaut": "astronaut.png",
    "bricks": "brick.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
"""The file of each subject, in scikit-image's folder `data`."""

SUBJECTS = tuple(FILES)

_SMALLEST_PIECE = 0.6
_QUALITY = 90


def folder() -> Path:
    """Where the photographs are.

    Raises:
        FileNotFoundError: scikit-image is not installed.
    """
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("scikit-image, which ships the photographs, is not installed")
    return Path(spec.submodule_search_locations[0], "data")


@cache
def photograph(name: str) -> Image.Image:
    """A photograph in RGB, by its file's name. It is shared: whoever changes it copies it."""
    with Image.open(folder() / name) as image:
        return image.convert("RGB")


def piece(of: Image.Image, draw: random.Random) -> Image.Image:
    """A square somewhere in a photograph, its side 0.6 to 1 of the shorter one's, every other one mirrored."""
    side = round(min(of.size) * draw.uniform(_SMALLEST_PIECE, 1))
    left, top = (draw.randint(0, length - side) for length in of.size)
    cut = of.crop((left, top, left + side, top + side))
    return ImageOps.mirror(cut) if draw.random() < 0.5 else cut


def pieces(count: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """That many pieces, with their subjects in turns; always the same of one seed."""
    draw = random.Random(seed)
    for number in range(count):
        subject = SUBJECTS[number % len(SUBJECTS)]
        yield subject, piece(photograph(FILES[subject]), draw)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    """An image as a file of that kind, `JPEG` or `PNG`."""
    file = io.BytesIO()
    image.save(file, kind, quality=_QUALITY)
    return file.getvalue()
