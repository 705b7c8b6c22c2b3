"""Who is measured, and how each is installed into a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

CHECKOUT = "this checkout"

CACHE = Path("~/.cache/ubatch-benchmarks")

THREADS, GREENLETS, TASKS = "threads", "greenlets", "tasks"

NO_FACE = {
    THREADS: "no face for threads",
    GREENLETS: "no face for greenlets",
    TASKS: "no face for tasks",
}


@dataclass(frozen=True)
class Contender:
    """One library, or one reference.

    Args:
        name: as in cases and results.
        faces: who may call it.
        requirement: what pip installs; `CHECKOUT` for this project, `None` where nothing is needed.
        distribution: its name in the metadata.
        module: what is imported.
        setting: the one of its own settings that is swept: how long it holds items.
        values: what of it is tried, in the contender's own unit; all that it tells apart between 0 and 20 ms.
    """

    name: str
    faces: tuple[str, ...]
    requirement: str | None = None
    distribution: str = ""
    module: str = ""
    setting: str | None = None
    values: tuple[float, ...] = ()


FIXED = {"ubatch timeout=0": 0.0, "ubatch timeout=0.01": 0.01}
"""This project with a fixed `timeout`, in seconds, instead of its default: what the default is worth."""

ALL = (
    Contender("ubatch", (THREADS, GREENLETS, TASKS), CHECKOUT, "ubatch", "ubatch"),
    Contender("ubatch.aio", (TASKS,), CHECKOUT, "ubatch", "ubatch.aio"),
    *(Contender(name, (), CHECKOUT, "ubatch", "ubatch") for name in FIXED),
    # A worker that polls every 2 ms and runs what would be late by then: 0 and 2 ms are the same to it.
    Contender("ubatch 1.0.0", (THREADS,), "ubatch==1.0.0", "ubatch", "ubatch", "timeout", (0.0, 0.005, 0.01, 0.02)),
    Contender(
        "batched", (THREADS, TASKS), "batched==0.1.5", "batched", "batched", "timeout_ms", (0.0, 0.2, 1.0, 5.0, 20.0)
    ),
    Contender(
        "async-batcher",
        (TASKS,),
        "async-batcher==0.2.2",
        "async-batcher",
        "async_batcher.batcher",
        "max_queue_time",
        (0.0, 0.001, 0.005, 0.02),
    ),
    Contender(
        "aqueduct",
        (TASKS,),
        "aqueduct==1.15.0",
        "aqueduct",
        "aqueduct",
        "batch_timeout",
        (0.0, 0.001, 0.005, 0.02),
    ),
    Contender("none", (THREADS, GREENLETS, TASKS)),
    Contender("bare loop", (THREADS, GREENLETS, TASKS)),
    Contender("bare chain", (THREADS,)),
    Contender("ping-pong", ()),
    Contender("ThreadPoolExecutor(1)", (THREADS,)),
    Contender("ProcessPoolExecutor(1)", (THREADS, TASKS)),
    Contender("memcpy", (THREADS,)),
)

CONTENDERS: Mapping[str, Contender] = {one.name: one for one in ALL}

PEERS = ("ubatch 1.0.0", "batched", "async-batcher", "aqueduct")


def plain(name: str) -> str:
    """The contender behind a name in a cell: `batched` for `batched, tasks`."""
    return name.partition(", ")[0]


@dataclass
class Installed:
    """What became of a contender's installation.

    Args:
        requirement: what was asked for.
        directory: where it is; `None` if it could not be installed.
        version: as its metadata says.
        error: why it is not there.
    """

    requirement: str
    directory: str | None = None
    version: str | None = None
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For the results; without the directory."""
        found: dict[str, Any] = {"version": self.version, "requirement": self.requirement}
        return found | {"installed": self.error is None} | ({"error": self.error} if self.error else {})


@dataclass
class Directories:
    """Where the contenders are.

    Args:
        installed: by contender, those that need a directory.
        copies: by name, folders with other copies of this project's package.
    """

    installed: dict[str, Installed] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str | None:
        """The directory of a contender or of a copy; `None` if it needs none.

        Raises:
            LookupError: it is not installed; says why.
        """
        name = plain(name)
        if name in self.copies:
            return self.copies[name]
        if CONTENDERS[name].requirement is None:
            return None
        found = self.installed.get(name)
        if found is None or found.directory is None:
            raise LookupError(f"not installed: {found.error if found else 'not asked for'}")
        return found.directory

    def lacks(self, name: str) -> str | None:
        """Why a contender that is installed cannot take part all the same: this version has no such module."""
        directory, module = self.of(name), CONTENDERS[plain(name)].module if plain(name) in CONTENDERS else ""
        path = Path(directory or "", *module.split("."))
        if directory is None or not module or path.is_dir() or path.with_suffix(".py").is_file():
            return None
        return f"this version has no {module}"

    def as_json(self) -> dict[str, Any]:
        """By contender and copy, what the results say of it."""
        copies = {name: {"version": None, "requirement": "a copy", "installed": True} for name in self.copies}
        references = {
            one.name: {"version": None, "requirement": None, "installed": True}
            for one in ALL
            if one.requirement is None
        }
        return references | {name: one.as_json() for name, one in self.installed.items()} | copies


def install(names: Iterable[str], cache: Path, copies: Mapping[str, str]) -> Directories:
    """Install contenders, several at a time; those that are there already are left alone, but for this project."""
    wanted = [CONTENDERS[name] for name in dict.fromkeys(names) if CONTENDERS[name].requirement]
    folder = cache.expanduser() / (sys.implementation.cache_tag or sys.implementation.name)
    first = {one.requirement: one for one in wanted}
    with ThreadPoolExecutor(len(first) or 1) as several:
        done = dict(zip(first, several.map(lambda one: _install(one, folder), first.values()), strict=True))
    return Directories({one.name: done[one.requirement] for one in wanted}, dict(copies))


def _install(contender: Contender, folder: Path) -> Installed:
    assert contender.requirement is not None
    found = Installed(contender.requirement)
    checkout = contender.requirement == CHECKOUT
    directory = folder / contender.requirement.replace(" ", "-")
    if checkout or not directory.is_dir():
        found.error = _pip(_source() if checkout else [contender.requirement], directory)
    if found.error is None:
        found.directory = str(directory)
        found.version = version(directory, contender.distribution)
    return found


def _source() -> list[str]:
    """Arguments for this project: nothing is downloaded if its build backend is here already."""
    return ["--no-deps", *(["--no-build-isolation"] if find_spec("hatchling") else []), str(ROOT)]


def _pip(arguments: list[str], directory: Path) -> str | None:
    """Install into a fresh directory that takes its place when all is there.

    Returns:
        What went wrong, in a line; `None` if nothing did.
    """
    fresh = directory.with_name(f"{directory.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--target",
    ]
    try:
        fresh.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, str(fresh), *arguments], capture_output=True, text=True, timeout=120)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return lines[-1] if lines else f"pip ended with status {done.returncode}"
        shutil.rmtree(directory, ignore_errors=True)
        fresh.rename(directory)
    except subprocess.TimeoutExpired:
        return "pip took more than 120 s"
    except OSError as error:
        return str(error)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return None


def version(directory: Path, distribution: str) -> str | None:
    """A distribution's version, from the metadata in its directory."""
    for one in distributions(path=[str(directory)]):
        if one.metadata["Name"].lower().replace("_", "-") == distribution:
            return one.version
    return None
