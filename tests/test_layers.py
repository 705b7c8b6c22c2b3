"""The import graph: which room may import which, and what `import ubatch` costs.

The package is parsed, not imported, so imports inside functions count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ubatch

PACKAGE = Path(ubatch.__file__).parent

# From the lowest up. A room imports rooms of lower rows only, none of its own row; so there are no cycles.
ROWS = (
    (
        "errors",
        "_native",
        "_binding",
        "_backoff",
        "_buckets",
        "_ceiling",
        "_cost",
        "_traffic",
        "_terms",
        "_arrays",
        "_blocks",
        "_resident",
        "_histogram",
    ),
    ("_process_stats",),
    ("stats",),
    (
        "_returns",
        "_bursts",
        "_schedule",
        "_attempt",
        "_alarm",
        "_padding",
        "_pad",
        "_log",
        "_observing",
        "_shm",
        "_tally",
        "_wire",
    ),
    ("_flow_stats", "_admission", "_policy", "_isolation", "_collate", "_recorder", "_typing", "_changes", "_parcels"),
    ("_lanes", "_prometheus", "_opentelemetry", "_stacks"),
    ("_waiters", "_records"),
    ("_executor", "_child"),
    ("_seats", "_options", "_future", "_streams", "_starts"),
    ("_intake", "_loop_intake", "_children"),
    ("_turns", "_crew", "_piecewise"),
    ("_driver",),
    ("_faces",),
    ("core",),
    ("decorators", "_loop", "_flights", "processes", "_trips"),
    ("_loop_faces", "inference", "_stations", "_steps"),
    ("aio.core", "_course"),
    ("aio.decorators",),
    ("aio", "aio.inference"),
    ("_cached", "metrics", "flow"),
    ("__init__",),
)
LEVELS = {room: level for level, row in enumerate(ROWS) for room in row}
PURE = {"stats", "_ceiling", "_cost", "_traffic", "_returns", "_bursts", "_policy", "_schedule", "_lanes", "_binding"}
PURE |= {"_admission", "_attempt", "_isolation", "_terms", "_padding", "_arrays", "_blocks", "_pad", "_collate"}
PURE |= {"_backoff", "_buckets", "_histogram", "_process_stats"}
IMPURE = {"threading", "_thread", "time", "asyncio", "gevent", "_native"}  # time comes as an argument
LAZY = {
    "_loop",
    "_loop_intake",
    "_loop_faces",
    "aio",
    "aio.core",
    "aio.decorators",
    "aio.inference",
}  # rooms that are loaded at first use, with the event loop that they are about
DEFERRED = {"asyncio", "multiprocessing", "gevent", "numpy", "torch"}  # imported only where they are used


class Import(NamedTuple):
    """One name that a room imports: a room of the package, or the first part of another module's name."""

    target: str
    own: bool
    deferred: bool  # inside a function, or seen by type checkers alone
    line: int


def rooms() -> dict[str, Path]:
    return {_room(path): path for path in PACKAGE.rglob("*.py")}


def _room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[Import]:
    packages = ("ubatch", *path.relative_to(PACKAGE).parts[:-1])
    return list(_imports(ast.parse(path.read_bytes()), packages, deferred=False))


def _imports(node: ast.AST, packages: tuple[str, ...], *, deferred: bool) -> Iterator[Import]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            deferred = True
        case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            deferred = True
        case ast.Import(names=names):
            yield from (_import(name.name, deferred, node.lineno) for name in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            inside = packages[: len(packages) + 1 - level] if level else ()
            origin = ".".join((*inside, module) if module else inside)
            for name in names:  # `from . import errors` names a room, `from .errors import Stopped` does not
                is_room = f"{origin}.{name.name}".removeprefix("ubatch.") in LEVELS
                yield _import(f"{origin}.{name.name}" if is_room else origin, deferred, node.lineno)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, packages, deferred=deferred)


def _import(module: str, deferred: bool, line: int) -> Import:
    first, _, rest = module.partition(".")
    own = first == "ubatch"
    return Import((rest or "__init__") if own else first, own, deferred, line)


def where(room: str, found: Import) -> str:
    return f"{room}.py:{found.line} imports {found.target}"


def test_every_file_is_a_room():
    """A new file gets its place among the rows before anything else."""
    assert set(rooms()) == set(LEVELS)


@pytest.mark.parametrize("room", LEVELS)
def test_arrows_go_down(room):
    """A room imports rooms of lower rows only; a package also loads its own parts, when they are asked for."""
    own = [found for found in imports(rooms()[room]) if found.own]
    own = [found for found in own if not (found.deferred and found.target.startswith(f"{room}."))]
    assert [where(room, found) for found in own if LEVELS.get(found.target, len(ROWS)) >= LEVELS[room]] == []


@pytest.mark.parametrize("room", sorted(PURE))
def test_pure_rooms_know_no_thread_lock_clock_or_loop(room):
    """What they decide can be tested with a virtual clock and used by any driver."""
    assert [where(room, found) for found in imports(rooms()[room]) if found.target in IMPURE] == []


@pytest.mark.parametrize("room", LEVELS)
def test_other_packages_and_loops_are_imported_where_they_are_used(room):
    """At module level there is the standard library alone, without its heavy parts."""
    at_module_level = [found for found in imports(rooms()[room]) if not found.own and not found.deferred]
    allowed = sys.stdlib_module_names - (DEFERRED - {"asyncio"} if room in LAZY else DEFERRED)
    assert [where(room, found) for found in at_module_level if found.target not in allowed] == []


def test_importing_ubatch_loads_the_standard_library_alone(run_python):
    """In a fresh interpreter, and neither event loops nor processes of it."""
    loaded = run_python(
        """
        import sys
        before = set(sys.modules)
        import ubatch
        print(*sorted(set(sys.modules) - before))
        """
    )
    names = {name.partition(".")[0] for name in loaded.split()}
    assert names - sys.stdlib_module_names == {"ubatch"}
    assert names & DEFERRED == set()
