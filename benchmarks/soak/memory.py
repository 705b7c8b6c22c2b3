"""What memory is in use when everything rests, and whether that grows.

Two figures are judged, from half-time to the end:

- `blocks`, Python's own count of the blocks of memory it has handed out, which is exact: what belongs to the process
  itself does not change, so whatever grows with the items, however small, shows. Allowed are `MAX_BLOCKS`.
- `resident_mb`, what the system has given to the process, which knows of what is not Python's, too, but also contains
  what allocators keep for later use. Allowed are `MAX_RESIDENT`.

What glibc keeps says nothing about who uses it. It gives threads heaps of their own, and takes ever larger blocks from
these, once it has seen some come and go; the holes that are left grow for millions of items before they level off, with
any load. So `steady` has it use one heap, and none for large blocks.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import NamedTuple

LEAST = 100_000
"""Items after half-time that it takes to judge: caches and allocators fill up first."""

MAX_BLOCKS = 500
"""One for every 1000 items of a second half of 500,000, where a single item that is kept takes several. The soak's own
figures take some 50."""

MAX_RESIDENT = 4.0
"""MiB: 8 bytes for each item of a second half of 500,000, half of what Python's smallest object takes."""

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h


class Mark(NamedTuple):
    """Memory in use, at rest."""

    items: int
    """Handed over so far."""
    resident_mb: float
    blocks: int
    objects: int
    """That the garbage collector knows of."""


def steady() -> None:
    """Where the C library is glibc, let it keep little of what is freed; to be called before there are threads."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_ARENA_MAX, 1)
        library.mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def mark(items: int) -> Mark:
    """What is in use now, garbage aside."""
    gc.collect()
    return Mark(items, resident(), sys.getallocatedblocks(), len(gc.get_objects()))


def growth(marks: list[Mark]) -> dict[str, float]:
    """From half-time to the end; of no marks, one for each quarter, none."""
    if len(marks) < 4:
        return {}
    half, end = marks[1], marks[3]
    return {name: round(now - before, 1) for name, before, now in zip(Mark._fields, half, end, strict=True)}


def violations(marks: list[Mark]) -> list[str]:
    """What is wrong about the growth, if there is enough to judge."""
    grown = growth(marks)
    if not grown or grown["items"] < LEAST:
        return []
    allowed = {"blocks": MAX_BLOCKS, "resident_mb": MAX_RESIDENT}
    return [
        f"{name} grew by {grown[name]} in {grown['items']} items, by more than {most}"
        for name, most in allowed.items()
        if grown[name] > most
    ]


def resident() -> float:
    """Memory of this process, in MiB; 0 where that cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
