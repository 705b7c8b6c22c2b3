"""Many numbers rounded to few: the buckets of a histogram, found for a whole lot at once.

Pure, and next to free. Times are packed as they are measured: as bytes they take an eighth of the memory that numbers
in a list do, and what is done with them is done by the byte, without a step of the interpreter for each.

The first 15 bits of a floating-point number are its sign, its exponent and the leading three digits of its fraction:
the number of its bucket, in a histogram that has 8 of them in each power of two. Times from half a nanosecond up to two
seconds have the first seven of these bits in common; then the other eight, a byte for each time, tell their buckets.
These are counted by taking off one bucket's after another: the fuller a bucket, the sooner its turn is likely to come,
and the less is left for those that follow.

A bucket stands for a time that is within 1/16 of all that are in it. Sizes are counted as they are, but for those from
256 on, of which the first 8 bits are kept.

A room of its own because `struct` takes time to import; it is loaded with the first batcher.
"""

from __future__ import annotations

from functools import cache
from struct import Struct, pack, unpack
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 8
"""Bytes of a time."""

_FIRST, _SECOND = (7, 6) if byteorder == "little" else (0, 1)  # where those are of which a time's bucket is made

COMMON = 0x3E << 7
"""The number of the first of the 256 buckets that most times are in."""

_COMMON_BYTES = b"\x3e\x3f"  # the first bytes of these times
_UPPER = bytes(byte << 7 & 0xFF for byte in range(256))  # what a time's first byte adds to its bucket
_LOWER = bytes(byte >> 1 for byte in range(256))  # what the second one adds

KEPT = 8
"""As many bits of a size are kept."""

FEW = 1024
"""For lots of fewer times than that, what packs them is kept."""


class Packers(dict[int, "Callable[..., bytes]"]):
    """For each number of times a function that packs as many: `packers[2](0.5, 0.25)`."""

    __slots__ = ()

    def __missing__(self, count: int) -> Callable[..., bytes]:
        packer = Struct(f"{count}d").pack
        if count < FEW:
            self[count] = packer
        return packer


packers = Packers()


def unpacked(packed: bytes) -> memoryview[float]:
    """The packed times, to be gone through one after another."""
    return memoryview(packed).cast("d")


def count_times(counts: dict[int, int], packed: bytes) -> None:
    """Count each of the packed times, in seconds, in its bucket; a later one for a longer time."""
    high, low = packed[_FIRST::WIDTH], packed[_SECOND::WIDTH]
    if high.translate(None, _COMMON_BYTES):  # there are others
        for bits in unpack(f"{len(high)}Q", packed):
            counts[bits >> 49] = counts.get(bits >> 49, 0) + 1
        return
    both = int.from_bytes(high.translate(_UPPER), "little") | int.from_bytes(low.translate(_LOWER), "little")
    codes = both.to_bytes(len(high), "little")  # of all of them at once
    while codes:
        rest = codes.translate(None, codes[:1])
        code = COMMON + codes[0]
        counts[code] = counts.get(code, 0) + len(codes) - len(rest)
        codes = rest


@cache
def time_of(code: int) -> float:
    """The time that a bucket stands for, in seconds: as far from its least as from its greatest, relatively."""
    least, next_least = unpack("<2d", pack("<2Q", code << 49, code + 1 << 49))
    return float(2 * least * next_least / (least + next_least))


def levels(counts: dict[int, int]) -> list[tuple[float, int]]:
    """The times, in seconds, that the buckets stand for, and the counts of these; the shortest first."""
    return [(time_of(code), counts[code]) for code in sorted(counts)]


def rounded(size: int) -> int:
    """A size, exact below 256, less than 1/128 too small from there on."""
    drop = max(0, size.bit_length() - KEPT)
    return size >> drop << drop
