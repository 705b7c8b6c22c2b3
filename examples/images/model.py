"""The second step: which of the photographs an image is a piece of.

Random patches of the training images, whitened, are the filters of one convolution; what each finds in the quarters of
the image goes into a linear classifier. Small and quick to train, yet a network's first layer in kind: it looks at all
pixels and costs a few products of matrices, more for one image than for each of many.

It is trained at first use, on random pieces of the photographs, and kept in a file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from search.machine import cache_folder

from images import photographs
from images.decode import SIDE, pixels

Array = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)
_POOL = 7
_PATCH = 6
_STRIDE = 2
_FILTERS = 96
_SAMPLES = 40
_EXAMPLES = 40
_SEED = 1
_WHITENING = 0.01
_RIDGE = 3.0
_SHARPNESS = 8.0
_SOURCES = [Path(__file__).with_name(name) for name in ("photographs.py", "decode.py", "model.py")]


class Score(NamedTuple):
    """How well a subject fits: the scores of one image are positive and sum to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Model:
    """What was learned. Any thread may use it.

    Attributes:
        mean: Of a patch, shape (pixels of a patch,).
        filters: Shape (pixels of a patch, filters).
        weights: Shape (features + 1, subjects); the last row is for the constant.
    """

    mean: Array
    filters: Array
    weights: Array

    def features(self, images: Array) -> Array:
        """What the filters find, in each quarter of each image: shape (n, 4 * filters)."""
        found = np.maximum((_patches(_shrunk(images)) - self.mean) @ self.filters, 0)
        top, left = found.shape[1] // 2, found.shape[2] // 2
        quarters = [
            found[:, rows, columns].mean((1, 2))
            for rows in (slice(None, top), slice(top, None))
            for columns in (slice(None, left), slice(left, None))
        ]
        return np.concatenate(quarters, axis=1)

    def scores(self, images: Array) -> Array:
        """How well each subject fits, shape (n, subjects).

        Args:
            images: Shape (n, SIDE, SIDE, 3), from 0 to 1.
        """
        fit = np.exp(_SHARPNESS * _with_constant(self.features(images)) @ self.weights)
        return fit / fit.sum(axis=1, keepdims=True)


class Classifier:
    """The model as a step of a flow: made where the step runs, called with a whole batch.

    Args:
        folder: Where the model is kept; if left out, what `IMAGES_CACHE` names, or else the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._model = load_model(folder)

    def __call__(self, images: Array) -> list[list[Score]]:
        """For each of the images, shape (n, SIDE, SIDE, 3), the scores of all subjects, best first."""
        return [
            sorted(map(Score, photographs.SUBJECTS, row), key=_by_score, reverse=True)
            for row in self._model.scores(images).tolist()
        ]


def load_model(folder: Path | None = None) -> Model:
    """Reads the model from its file, or trains it, some seconds, and writes the file.

    A file that cannot be written is no error: it is logged and the model is used all the same. Several processes may
    do this at once: each reads a whole file or none.

    Args:
        folder: As of `Classifier`.

    Raises:
        FileNotFoundError: The photographs are not installed.
    """
    folder = folder or Path(os.environ.get("IMAGES_CACHE") or cache_folder("ubatch-images"))
    path = folder / f"model-{_digest()}.npz"
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return Model(**file)
    except FileNotFoundError:
        pass
    except Exception as error:  # a file that is damaged, of whatever kind
        _log.warning("The model is trained anew: %s", error)
    model = train()
    try:
        _write(path, model)
    except OSError as error:
        _log.warning("The model is not kept: %s", error)
    return model


def train(seed: int = _SEED) -> Model:
    """Learns the subjects from random pieces of their photographs; always the same of one seed."""
    draw = np.random.default_rng(seed)
    drawn = list(photographs.pieces(_EXAMPLES * len(photographs.SUBJECTS), seed))
    images = np.stack([pixels(image) for _, image in drawn])
    wanted = np.array([[subject == each for each in photographs.SUBJECTS] for subject, _ in drawn], np.float32)

    patches = _patches(_shrunk(images)).reshape(-1, 3 * _PATCH**2)
    patches = patches[draw.choice(len(patches), _SAMPLES * len(images), replace=False)]
    mean = patches.mean(0)
    values, vectors = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    whiten = vectors @ np.diag((values + _WHITENING) ** -0.5) @ vectors.T
    white = (patches[:_FILTERS] - mean) @ whiten
    filters = (whiten @ (white / np.linalg.norm(white, axis=1, keepdims=True)).T).astype(np.float32)

    model = Model(mean, filters, np.zeros((4 * _FILTERS + 1, len(photographs.SUBJECTS)), np.float32))
    seen = _with_constant(model.features(images))
    fit = np.linalg.solve(seen.T @ seen + _RIDGE * np.eye(seen.shape[1]), seen.T @ (2 * wanted - 1))
    return Model(mean, filters, fit.astype(np.float32))


def _shrunk(images: Array) -> Array:
    """Means of squares of pixels: shape (n, SIDE / _POOL, SIDE / _POOL, 3)."""
    count, side = len(images), SIDE // _POOL
    rows = images.reshape(count, side, _POOL, SIDE * 3).mean(2)  # first along what lies together: five times as fast
    return rows.reshape(count, side, side, _POOL, 3).mean(3)


def _patches(images: Array) -> Array:
    """All patches, some pixels apart: shape (n, rows, columns, pixels of a patch)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (_PATCH, _PATCH), axis=(1, 2))
    windows = windows[:, ::_STRIDE, ::_STRIDE]
    return windows.reshape(*windows.shape[:3], -1)


def _with_constant(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)


def _by_score(score: Score) -> float:
    return score.score


def _digest() -> str:
    """Changes with what the model is made by."""
    made_by = [sys.version, np.__version__, PIL.__version__]
    sources = b"".join(part.read_bytes() for part in _SOURCES)
    return hashlib.blake2b(" ".join(made_by).encode() + sources, digest_size=8).hexdigest()


def _write(path: Path, model: Model) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, **asdict(model))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
