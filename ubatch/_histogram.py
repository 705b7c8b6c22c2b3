"""Values that cannot be changed: what snapshots are, and the histograms in them. Pure."""

from __future__ import annotations

from math import ceil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn


class Frozen:
    """A value that cannot be changed: what its slots hold is given once."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(tuple(self._values().values()))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: {name}")

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self._values())


def _restored(kind: type[Frozen], values: dict[str, Any]) -> Frozen:
    return kind(**values)


class Histogram(Frozen):
    """How many of which value there were; it cannot be changed. Histograms can be added and subtracted.

    Times are within 1/16 of the truth, sizes exact below 256 and within 1/128 from there on; `sum`, and so the mean,
    is exact. However many values there are, a histogram has at most 8 (of sizes: 128) different ones in each power
    of two.

    Args:
        buckets: pairs of a value and how often it was, in ascending order of the values.
        sum: of all values.
    """

    __slots__ = ("buckets", "sum")

    buckets: tuple[tuple[float, int], ...]
    """Pairs of a value and how often it was, in ascending order of the values."""
    sum: float
    """Of all values."""

    def __init__(self, buckets: Iterable[tuple[float, int]] = (), sum: float = 0) -> None:
        super().__init__(buckets=tuple(buckets), sum=sum)

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(count for _, count in self.buckets)

    @property
    def mean(self) -> float:
        """Their mean; 0.0 if there were none."""
        return self.sum / self.count if self.buckets else 0.0

    def quantile(self, q: float) -> float:
        """The least value that a share `q` of all does not exceed; 0.0 if there were none.

        Args:
            q: from 0 (the smallest value) to 1 (the largest).

        Raises:
            ValueError: `q` is not between 0 and 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must be between 0 and 1, not {q!r}")
        wanted = max(1, ceil(q * self.count - 1e-9))
        for value, count in self.buckets:
            wanted -= count
            if wanted <= 0:
                return value
        return 0.0

    @property
    def p50(self) -> float:
        """The median."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """What nine in ten do not exceed."""
        return self.quantile(0.9)

    @property
    def p99(self) -> float:
        """What 99 in a hundred do not exceed."""
        return self.quantile(0.99)

    def asdict(self) -> dict[str, float]:
        """Count, mean and percentiles by name."""
        return {name: getattr(self, name) for name in ("count", "mean", "p50", "p90", "p99")}

    def __add__(self, other: Histogram) -> Histogram:
        """The values of both."""
        if not isinstance(other, Histogram):
            return NotImplemented
        counts = dict(self.buckets)
        for value, count in other.buckets:
            counts[value] = counts.get(value, 0) + count
        return Histogram(sorted(counts.items()), self.sum + other.sum)

    def __sub__(self, other: Histogram) -> Histogram:
        """The values of this one without those of `other`. Raises ValueError: it has others."""
        if not isinstance(other, Histogram):
            return NotImplemented
        counts = dict(self.buckets)
        for value, count in other.buckets:
            counts[value] = counts.get(value, 0) - count
        if min(counts.values(), default=0) < 0:
            raise ValueError("a histogram can be taken from a later one of the same values alone")
        left = [(value, count) for value, count in sorted(counts.items()) if count]
        return Histogram(left, max(self.sum - other.sum, 0) if left else 0)

    def __repr__(self) -> str:
        return f"Histogram({', '.join(f'{name}={value:.4g}' for name, value in self.asdict().items())})"
