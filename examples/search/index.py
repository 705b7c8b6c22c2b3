"""Exact cosine search: the dot products of all vectors with a batch of queries, and the best few of each.

The best hits of a query are the same in whatever batch it is asked. A matrix-vector product and a
matrix-matrix product add up in different orders and differ in the last bits, which could swap two near
hits, so their float32 scores only choose candidates: everything within the largest rounding error of the
k-th best. The candidates are then scored again in float64, one by one, and that score, rounded, is the one
that ranks and is shown. Equal scores rank in the order of the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from search.collect import Entry
from search.vectors import DIMENSIONS, Floats, Integers, Vectoriser

MOST_HITS = 100
"""The largest `Query.wanted`."""

_DECIMALS = 6
_GROUPS = 1024

# How far below the k-th best float32 score one of the k best can lie. For vectors of length 1 a product of
# n terms is off by at most n/2 units in the last place, once for the k-th best and once for the other; then
# scores are rounded.
_MARGIN = DIMENSIONS * float(np.finfo(np.float32).eps) + 10**-_DECIMALS


class Query(NamedTuple):
    """One question."""

    text: str
    wanted: int = 10
    """How many hits are wanted, 1 to `MOST_HITS`."""


class Hit(NamedTuple):
    """One answer: an entry and its cosine, rounded to six decimals."""

    entry: Entry
    score: float


class Index:
    """The library's entries with one unit vector each. Never changes, so it is safe for many threads.

    Args:
        entries: What is searched.
        vectors: Their vectors, float32 of shape `(len(entries), DIMENSIONS)`.
        vectoriser: The one they were made with; it makes those of the queries.

    Raises:
        ValueError: The vectors do not fit the entries, or there are no entries.
    """

    def __init__(self, entries: Sequence[Entry], vectors: Floats, vectoriser: Vectoriser) -> None:
        if vectors.shape != (len(entries), DIMENSIONS) or vectors.dtype != np.float32 or not entries:
            raise ValueError(f"{len(entries)} entries do not go with {vectors.dtype} vectors of shape {vectors.shape}")
        self.entries = entries
        self.vectors = vectors
        self.vectoriser = vectoriser

    @classmethod
    def build(cls, entries: Sequence[Entry], progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter) -> Index:
        """Makes the vectors of the entries.

        Args:
            entries: What will be searched.
            progress: Wraps the slow loop, for a progress display.
        """
        vectoriser = Vectoriser.fit(entry.text for entry in entries)
        vectors = np.empty((len(entries), DIMENSIONS), np.float32)
        for row, entry in enumerate(progress(entries)):
            vectors[row] = vectoriser.vector(entry.text)
        return cls(entries, vectors, vectoriser)

    def search(self, queries: Sequence[Query]) -> list[list[Hit]]:
        """Answers a batch of queries: for each one its best hits, best first.

        A query that shares no word or piece of a word with the library has no hits.
        """
        answers: list[list[Hit]] = [[] for _ in queries]
        asked = np.stack([self.vectoriser.vector(query.text) for query in queries])
        known = np.flatnonzero(asked.any(axis=1))
        if known.size:
            most = max(query.wanted for query in queries)
            for number, row, score in zip(*self._best(asked[known], most), strict=True):
                query = known[number]
                if len(answers[query]) < queries[query].wanted:
                    answers[query].append(Hit(self.entries[row], score))
        return answers

    def _best(self, asked: Floats, count: int) -> tuple[list[int], list[int], list[float]]:
        """At least the `count` best of each query: three lists (query, row, score), best first."""
        scores = self._scores(asked)
        query, row = _candidates(scores, count)
        exact = (self.vectors[row].astype(np.float64) * asked[query]).sum(axis=1).round(_DECIMALS) + 0.0  # no -0.0
        order = np.lexsort((row, -exact, query))
        return query[order].tolist(), row[order].tolist(), exact[order].tolist()

    def _scores(self, asked: Floats) -> Floats:
        """Dot products, `(rows, number of queries)`: a row for each entry, then -inf up to whole groups."""
        entries = len(self.entries)
        scores: Floats = np.empty((-(-entries // _GROUPS) * _GROUPS, len(asked)), np.float32)
        scores[entries:] = -np.inf
        # For one query numpy calls BLAS's matrix-vector product, for several its matrix-matrix product.
        # Entries before queries: the latter is a quarter faster this way round.
        np.matmul(self.vectors, asked.T, out=scores[:entries])
        return scores


def _candidates(scores: Floats, count: int) -> tuple[Integers, Integers]:
    """All (query, row) that may be among the `count` best of a query.

    A full sort or partition of each query's scores would cost as much as the product itself. Instead the
    rows are dealt out to groups (row r to group r modulo `_GROUPS`, so that the maxima of all groups are
    plain element-wise maxima). The k-th largest of the maxima cannot exceed the k-th largest score, and few
    groups reach it.
    """
    groups = scores.reshape(-1, _GROUPS, scores.shape[1])
    maxima = groups.max(axis=0).T.copy()
    floor = np.partition(maxima, -count, axis=1)[:, -count] - np.float32(_MARGIN)
    floor = np.maximum(floor, np.float32(-2))  # fewer rows than wanted: all of them, but not the padding
    query, group = np.nonzero(maxima >= floor[:, None])
    depth, found = np.nonzero(groups[:, group, query] >= floor[query])
    return query[found], depth * _GROUPS + group[found]
