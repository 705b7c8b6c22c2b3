"""Many numbers rounded to few: the buckets of a histogram, found for a whole list at once.

Pure, and next to free. The first 12 bits of a floating-point number of 32 are its sign, its exponent and the leading
three digits of its fraction: the number of its bucket, in a histogram that has 8 of them in each power of two. Times
from half a nanosecond up to two seconds have the first four of these bits in common; then the other eight, a byte for
each time, tell their buckets, and to count a byte in bytes takes a nanosecond for each.

A bucket stands for a time that is within 1/16 of all that are in it. Sizes are counted as they are, but for those from
256 on, of which the first 8 bits are kept.

A room of its own because `struct` takes time to import; it is loaded with the first batcher.
"""

from __future__ import annotations

from functools import cache
from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

COMMON = 0x3
"""The four bits that the times have in common, mostly."""

_COMMON_BYTES = bytes(range(COMMON << 4, (COMMON + 1) << 4))

KEPT = 8
"""As many bits of a size are kept."""


def count_times(counts: dict[int, int], seconds: Sequence[float]) -> None:
    """Count each time in its bucket; a later one for a longer time."""
    raw = pack(f"<{len(seconds)}f", *seconds)
    if raw[3::4].translate(None, _COMMON_BYTES):  # there are others
        for bits in unpack(f"<{len(seconds)}I", raw):
            counts[bits >> 20] = counts.get(bits >> 20, 0) + 1
        return
    shifted = int.from_bytes(raw, "little") >> 20  # all of them at once: bits 20 to 27 of each are its lowest byte
    codes = shifted.to_bytes(len(raw), "little")[::4]
    for byte in set(codes):
        code = COMMON << 8 | byte
        counts[code] = counts.get(code, 0) + codes.count(byte)


@cache
def time_of(code: int) -> float:
    """The time that a bucket stands for, in seconds: as far from its least as from its greatest, relatively."""
    least, next_least = unpack("<2f", pack("<2I", code << 20, code + 1 << 20))
    return float(2 * least * next_least / (least + next_least))


def rounded(size: int) -> int:
    """A size, exact below 256, less than 1/128 too small from there on."""
    drop = max(0, size.bit_length() - KEPT)
    return size >> drop << drop
