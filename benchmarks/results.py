"""Results files: small enough to be committed, one sample a line."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .child.case import Case
from .contenders import Directories
from .harness import Outcome, machine

WIDTH = 110


def now() -> str:
    """The time of day in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def head(group: str, title: str, command: str, quick: bool, directories: Directories) -> dict[str, Any]:
    """What every results file begins with; to be asked before anything is measured."""
    return {
        "group": group,
        "title": title,
        "started": now(),
        "seconds": 0.0,
        "command": command,
        "quick": quick,
        "machine": machine(),
        "contenders": directories.as_json(),
        "cells": [],
    }


def entry(outcome: Outcome, case: Case) -> dict[str, Any]:
    """One contender in one cell."""
    found: dict[str, Any] = {"settings": case.settings, "samples": outcome.samples}
    return found | ({"error": outcome.error} if outcome.error else {})


def write(path: Path, content: Any) -> None:
    """Write a results file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(pretty(_rounded(content)) + "\n", encoding="utf-8")
    fresh.replace(path)


def read(path: Path) -> Any:
    """A results file; `None` if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _rounded(value: Any) -> Any:
    """With six digits, which is more than any figure here is good for."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value


def pretty(value: Any, depth: int = 0, parent: str = "") -> str:
    """JSON with whatever fits on one line on one line, and each sample on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if parent == "samples" or len(flat) + depth < WIDTH or not isinstance(value, (dict, list)) or not value:
        return flat
    inner = depth + 1
    if isinstance(value, dict):
        parts = [f"{json.dumps(name)}: {pretty(part, inner, _of(name, part))}" for name, part in value.items()]
        begin, end = "{}"
    else:
        parts = [pretty(part, inner, parent[:-3] if parent.endswith("[]") else "") for part in value]
        begin, end = "[]"
    return f"{begin}\n{' ' * inner}" + f",\n{' ' * inner}".join(parts) + f"\n{' ' * depth}{end}"


def _of(name: str, part: Any) -> str:
    return f"{name}[]" if isinstance(part, Sequence) and not isinstance(part, str) else name
