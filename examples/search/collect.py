"""Reads the standard library's source files and lists what they define. Nothing is imported or run.

Every module, class, function and method becomes one `Entry`: also those inside `if` or `try`, inside other
functions, and those of the library's own test suite where it is installed. Files that cannot be decoded or
parsed (the test suite holds some on purpose) are passed over.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})

_BLANK_LINE = "\n\n"

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# Expressions cannot hold a `def` or a `class`: only these fields of a node are worth a visit.
_BODIES = ("body", "orelse", "handlers", "finalbody", "cases")


class Entry(NamedTuple):
    """One definition in the library."""

    name: str
    """Qualified name: `json.decoder.JSONDecoder.decode`."""
    kind: str
    """`module`, `class`, `function` or `method`."""
    signature: str
    """Parameters as written, `(self, s, _w=WHITESPACE.match)`; the bases of a class; empty for a module."""
    doc: str
    """The docstring without its indentation, or an empty string."""
    line: int
    """Where it begins in its file, from 1."""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.partition("\n")[0].strip()

    @property
    def text(self) -> str:
        """What it is found by; the docstring's first paragraph says what it is for, the rest how it works."""
        return f"{self.name}\n{self.signature}\n{self.doc.partition(_BLANK_LINE)[0]}"


def library_root() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields (module name, path) of every Python file under `root`, in a fixed order."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_THE_LIBRARY)
        for name in sorted(files):
            if name.endswith(".py"):
                path = Path(folder, name)
                parts = path.relative_to(root).with_suffix("").parts
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or root.name, path


def read_module(module: str, path: Path) -> Iterator[Entry]:
    """Yields a module's own entry and one for each definition in it; nothing if it cannot be parsed."""
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are the library's own business
            tree = ast.parse(source)  # bytes: the parser itself looks for an encoding cookie
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    yield Entry(module, "module", "", _docstring(tree), 1)
    yield from _definitions(tree, module, inside_class=False)


def collect(root: Path | None = None) -> Iterator[Entry]:
    """Yields the entries of a whole library, module by module.

    Args:
        root: The library's folder; that of the running interpreter if left out.
    """
    for module, path in source_files(root or library_root()):
        yield from read_module(module, path)


def _definitions(parent: ast.AST, prefix: str, inside_class: bool) -> Iterator[Entry]:
    for field in _BODIES:
        for node in getattr(parent, field, ()):
            if not isinstance(node, _Definition):
                yield from _definitions(node, prefix, inside_class)
                continue
            name = f"{prefix}.{node.name}"
            is_class = isinstance(node, ast.ClassDef)
            kind = "class" if is_class else "method" if inside_class else "function"
            yield Entry(name, kind, _signature(node), _docstring(node), node.lineno)
            yield from _definitions(node, name, is_class)


def _signature(node: _Definition) -> str:
    try:
        if isinstance(node, ast.ClassDef):
            parts = [ast.unparse(part) for part in (*node.bases, *node.keywords)]
            return _printable(f"({', '.join(parts)})") if parts else ""
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return _printable(f"({ast.unparse(node.args)}){returns}")
    except (ValueError, RecursionError):  # a default value nested too deep to be written out
        return "(...)"


def _docstring(node: ast.Module | _Definition) -> str:
    raw = ast.get_docstring(node, clean=False)
    return _printable(inspect.cleandoc(raw)) if raw else ""


def _printable(text: str) -> str:
    """Replaces lone surrogates, which occur in the library's tests and cannot be encoded."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
