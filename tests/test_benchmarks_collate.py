"""`python -m benchmarks.collate`: what README.md says of it is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("rich")

from benchmarks import collate

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_shows_the_results():
    """The table between the marks is made of the committed file alone."""
    result = json.loads((collate.RESULTS / "collate.json").read_text(encoding="utf-8"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.partition(collate.BEGIN)[2].partition(collate.END)[0].strip() == collate.table(result)


def test_each_contender_stacks_the_same():
    """What is compared is the same work."""
    stacked = collate.work_of("tokens", "ubatch")["collate"]()
    fresh = collate.work_of("tokens", "ubatch reuse=False")["collate"]()
    longest = max(len(example["input_ids"]) for example in collate.examples_of("tokens"))
    for name in collate.FEATURES:
        assert stacked[name].shape == (collate.COUNT, longest)
        assert (stacked[name] == fresh[name]).all()
        for row, example in zip(stacked[name], collate.examples_of("tokens"), strict=True):
            assert (row[: len(example[name])] == example[name]).all() and not row[len(example[name]) :].any()
    images = collate.work_of("images", "ubatch")["collate"]()["image"]
    assert (images == collate.work_of("images", "numpy.stack")["collate"]()).all()


def test_a_child_that_cannot_says_so():
    """A contender that is not there is in the results with the reason; the others are measured."""
    found = collate.measure("tokens", 1, {})
    assert "ModuleNotFoundError" in found["batched"]["error"]
    assert all(found["ubatch"][figure][0] > 0 for figure in ("collate", "with split"))
    assert collate.ratio(found, "ubatch", "memcpy", "collate") > 0
