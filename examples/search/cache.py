"""Keeps a built index on disk: a few seconds of work are done once for each Python.

One file holds a digest of all that follows, the key it was built for, the entries, the weights and the
vectors. A file that was cut off, changed, or built by another version of this code or for another library
fails one of two comparisons and is built anew. It is written beside its place and moved there in one step,
so a process that reads while another writes finds the old file or the new one, never half of one. No
pickles are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from search.collect import Entry, library_root, read_module, source_files
from search.index import Index
from search.machine import cache_folder
from search.vectors import Vectoriser

T = TypeVar("T")
_log = logging.getLogger(__name__)
_DIGEST_SIZE = 32
_SOURCES = [Path(__file__).with_name(name) for name in ("collect.py", "vectors.py", "index.py")]


class Progress(Protocol):
    """Wraps a slow loop to show how far it is; `rich.progress.Progress.track` is one."""

    def __call__(self, sequence: Sequence[T], *, description: str) -> Iterable[T]: ...


def _unseen(sequence: Sequence[T], *, description: str) -> Iterable[T]:
    return sequence


def default_folder() -> Path:
    """Where the user's caches are kept."""
    return cache_folder("ubatch-search")


def load_index(
    folder: Path | None = None,
    limit: int | None = None,
    root: Path | None = None,
    progress: Progress = _unseen,
) -> Index:
    """Reads the index from its cache, or builds it and writes the cache.

    A cache that cannot be written is no error: it is logged and the index is used all the same.

    Args:
        folder: Where caches are kept; `default_folder()` if left out.
        limit: Only this many entries, the first ones; all if left out.
        root: The library's folder; that of the running interpreter if left out.
        progress: Shows how far the building is.

    Raises:
        ValueError: The library has no source files.
    """
    root = root or library_root()
    key = _key(root, limit)
    path = (folder or default_folder()) / f"library-{hashlib.blake2b(key[0], digest_size=8).hexdigest()}.index"
    found = _read(path, b"\n".join(key))
    if found is None:
        found = build_index(limit, root, progress)
        try:
            _write(path, b"\n".join(key), found)
        except OSError as error:
            _log.warning("The index is not cached: %s", error)
    return found


def build_index(limit: int | None = None, root: Path | None = None, progress: Progress = _unseen) -> Index:
    """Builds the index without a look at the cache. Arguments and errors as for `load_index`."""
    entries: list[Entry] = []
    files = list(source_files(root or library_root()))
    for module, path in progress(files, description="reading the library"):
        entries += read_module(module, path)
        if limit is not None and len(entries) >= limit:
            break
    if not entries:
        raise ValueError(f"no Python sources in {root}: is the standard library installed without them?")
    return Index.build(entries[:limit], lambda made: progress(made, description="making vectors"))


def _key(root: Path, limit: int | None) -> tuple[bytes, bytes]:
    """What the file is named after, and what else must be the same for it to be of use."""
    place = json.dumps([sys.implementation.cache_tag, os.fspath(root), limit])
    sources = b"".join(part.read_bytes() for part in _SOURCES)
    return place.encode(), f"{sys.version} {hashlib.blake2b(sources).hexdigest()}".encode()


def _read(path: Path, key: bytes) -> Index | None:
    try:
        with path.open("rb") as file:
            if file.read(_DIGEST_SIZE) != _digest(file):
                raise ValueError("it is damaged")
            file.seek(_DIGEST_SIZE)
            if _load(file).tobytes() != key:
                raise ValueError("it is of another version")
            entries = [Entry._make(entry) for entry in json.loads(_load(file).tobytes())]
            idf = _load(file)
            return Index(entries, _load(file), Vectoriser(idf))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, EOFError) as error:
        _log.warning("The cached index is built anew: %s", error)
        return None


def _write(path: Path, key: bytes, built: Index) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with open(descriptor, "w+b") as file:
            file.write(bytes(_DIGEST_SIZE))
            for part in (
                np.frombuffer(key, np.uint8),
                np.frombuffer(json.dumps(built.entries).encode(), np.uint8),
                built.vectoriser.idf,
                built.vectors,
            ):
                np.save(file, part, allow_pickle=False)
            file.seek(_DIGEST_SIZE)
            digest = _digest(file)
            file.seek(0)
            file.write(digest)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _load(file: BinaryIO) -> npt.NDArray[Any]:
    part: npt.NDArray[Any] = np.load(file, allow_pickle=False)
    return part


def _digest(file: BinaryIO) -> bytes:
    """Digest of the rest of the file, read in pieces of 1 MiB."""
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.digest()
