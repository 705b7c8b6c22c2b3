"""Stress: every face of one batcher at once, with cancels, errors, stops, starts and forks, in a hurry.

The body is `benchmarks/soak.py`, which runs for as long as one likes; here it runs for a moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"
SECONDS = float(os.environ.get("UBATCH_STRESS_SECONDS", "8"))


@pytest.mark.stress
@pytest.mark.parametrize("options", [[], ["--no-forks", "--switch", "0.005"]], ids=["forks, in a hurry", "at ease"])
def test_every_item_resolves_once(options, seed, tmp_path):
    """Whatever is mixed, each accepted item resolves exactly once, and every counter returns to zero."""
    out = tmp_path / "soak.json"
    process = subprocess.run(
        [sys.executable, SOAK, "--seconds", str(SECONDS), "--seed", str(seed), "--out", out, *options],
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads(out.read_text())
    assert result["violations"] == [], result
    assert result["seed"] == seed
