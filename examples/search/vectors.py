"""Turns text into vectors with numpy alone: hashed n-grams, idf weights, a random projection.

A text is a bag of features: its words, its pairs of neighbouring words, and the 3- and 4-letter pieces of
each word (so that `encode` is near `JSONEncoder`). Each feature is hashed into one of `BUCKETS` buckets. A
bucket has a weight, high when few of the known texts use it, and a direction: `DIMENSIONS` signs. A text's
vector is the weighted sum of its features' directions, at unit length, so that a dot product is a cosine.

Everything is a pure function of the texts: the hash is CRC-32 and the signs are the output of SHAKE-128,
which give the same on every machine, run and Python.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

DIMENSIONS = 384
BUCKETS = 1 << 19

_PAIR_WEIGHT = 0.6
_PIECE_WEIGHT = 0.5
_PIECE_SIZES = (3, 4)
_LONGEST_WORD = 40
_REMEMBERED_WORDS = 1 << 16

# Runs of capitals, capitalised or lower-case words, digits, anything else that is a letter: `HTTPServer2`
# gives `HTTP`, `Server`, `2`, and `snake_case` gives `snake`, `case`.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_a-zA-Z]+")


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case; identifiers are taken apart."""
    return [word[:_LONGEST_WORD].lower() for word in _WORD.findall(text)]


class Vectoriser:
    """Maps a text to a vector of `DIMENSIONS` numbers. May be used by many threads at once.

    Args:
        idf: Weight of each bucket, shape `(BUCKETS,)`; 0 for buckets that no known text uses.

    Raises:
        ValueError: `idf` has another shape or type.
    """

    def __init__(self, idf: Floats) -> None:
        if idf.shape != (BUCKETS,) or idf.dtype != np.float32:
            raise ValueError(f"idf must be {BUCKETS} float32 numbers, not {idf.dtype} of shape {idf.shape}")
        self.idf = idf
        self._word_vector = lru_cache(_REMEMBERED_WORDS)(self._project_word)

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Vectoriser:
        """Learns the weights of the buckets from the texts that will be searched."""
        used_by = np.zeros(BUCKETS, np.int64)
        total = 0
        for text in texts:
            found = words(text)
            buckets = {bucket for word in set(found) for bucket in _word_buckets(word)}
            buckets.update(_pair_buckets(found))
            used_by[list(buckets)] += 1
            total += 1
        idf = np.log((1 + total) / np.maximum(used_by, 1))
        return cls(np.where(used_by > 0, idf, 0.0).astype(np.float32))

    def vector(self, text: str) -> Floats:
        """The text's vector, `(DIMENSIONS,)`, of length 1; zeros if it shares nothing with known texts."""
        found = words(text)
        if not found:
            return np.zeros(DIMENSIONS, np.float32)
        counted = Counter(found)
        rows = np.stack([self._word_vector(word) for word in counted])
        vector = _damped(counted.values()) @ rows
        pairs = Counter(_pair_buckets(found))
        if pairs:
            buckets = np.fromiter(pairs, np.int64, len(pairs))
            vector += _project(buckets, _PAIR_WEIGHT * _damped(pairs.values()) * self.idf[buckets])
        length = math.sqrt(float(vector @ vector))
        return vector / np.float32(length) if length > 0.0 else vector

    def _project_word(self, word: str) -> Floats:
        buckets = np.array(_word_buckets(word))
        weights = self.idf[buckets]
        weights[1:] *= _PIECE_WEIGHT / math.sqrt(max(len(weights) - 1, 1))
        return _project(buckets, weights)


@lru_cache(_REMEMBERED_WORDS)
def _word_buckets(word: str) -> tuple[int, ...]:
    """The bucket of the word itself, then those of its pieces, each once."""
    framed = f"<{word}>"
    pieces = {framed[at : at + size]: None for size in _PIECE_SIZES for at in range(len(framed) - size + 1)}
    return _bucket(word), *(_bucket(f"#{piece}") for piece in pieces)


def _pair_buckets(found: list[str]) -> Iterator[int]:
    return (_bucket(f"{first} {second}") for first, second in pairwise(found))


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode()) % BUCKETS


def _damped(counts: Collection[int]) -> Floats:
    """A word said ten times counts three times as much as one said once, not ten times."""
    return 1 + np.log(np.fromiter(counts, np.float32, len(counts)))


def _project(buckets: Integers, weights: Floats) -> Floats:
    """The weighted sum of the buckets' directions, each of which is a row of +1 and -1."""
    bits = np.unpackbits(_directions()[buckets], axis=1)
    projected: Floats = 2 * (weights @ bits.astype(np.float32)) - weights.sum()
    return projected


@cache
def _directions() -> Bytes:
    """One bit for each sign, shape `(BUCKETS, DIMENSIONS / 8)`: 25 MB, made in a tenth of a second."""
    stream = hashlib.shake_128(b"directions").digest(BUCKETS * DIMENSIONS // 8)
    return np.frombuffer(stream, np.uint8).reshape(BUCKETS, -1)
