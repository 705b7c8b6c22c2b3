"""What figures depend on, the machine and what is installed; and where a user's caches are."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder(name: str) -> Path:
    """Where this user's cache of that name is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", name)


def machine() -> dict[str, Any]:
    """The machine, to be written beside figures."""
    return {"cores": cores(), "architecture": platform.machine(), "system": platform.system()}


def versions(*packages: str) -> dict[str, str | None]:
    """The versions of Python and of these packages, `None` for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
