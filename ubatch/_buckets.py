"""Many numbers rounded to few: the buckets of a histogram, found for a whole list at once.

Pure, and next to free: the first bits of a floating-point number are its sign, its exponent and the leading digits of
its fraction. Its first 16 bits are, in other words, the number of its bucket in a histogram that has 16 of them in each
power of two; so a list of times becomes bytes, and of these every fourth pair is taken. A bucket stands for the time in
its middle, which is within 1/32 of all that are in it.

Sizes are few: they are counted as they are, but for those from 256 on, of which the first 8 bits are kept.

A room of its own because `struct` takes time to import; it is loaded with the first batcher.
"""

from __future__ import annotations

import sys
from functools import cache
from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST = 3 if sys.byteorder == "little" else 0
"""Where, among the four pairs of bytes of a number, its first is."""

KEPT = 8
"""As many bits of a size are kept."""


def codes_of(seconds: Sequence[float]) -> list[int]:
    """The bucket of each time; a later one for a longer time."""
    return memoryview(pack(f"{len(seconds)}d", *seconds)).cast("H")[FIRST::4].tolist()


@cache
def time_of(code: int) -> float:
    """The time that a bucket stands for, in seconds."""
    words = [0] * 8
    words[FIRST], words[4 + FIRST] = code, code + 1
    least, next_least = unpack("2d", pack("8H", *words))
    return (least + next_least) / 2 if code else 0.0


def rounded(size: int) -> int:
    """A size, exact below 256, less than 1/128 too small from there on."""
    drop = max(0, size.bit_length() - KEPT)
    return size >> drop << drop
