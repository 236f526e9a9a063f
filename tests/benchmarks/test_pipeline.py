"""The benchmarks at a size that says nothing of speed: both sides of every row do the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parent.parent.parent / "benchmarks")

WITHIN = {"align": 1e-6, "pairs": 1e-6, "assign": 1e-6, "path": 1e-5, "repair": 0.05, "data": 0.0}
"""Largest difference of objectives, losses or weights. REPAIR's reference averages deviations over batches, and takes
them unbiased: of 64 images that shows."""


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """By the name of its folder, for a module of the tests has its own."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("benchmarks.pipeline")


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted(WITHIN))
def test_ours_and_the_published_schedule_agree(pipeline: Any, group: str):
    records = pipeline.measure([group], pipeline.TINY, n_rounds=1)
    assert records
    for one in records:
        assert min(*one["ours"], *one["reference"]) > 0
        gaps = [float(gap) for gap in re.findall(r"within ([0-9.e+-]+)", one["agreement"])]
        assert gaps or one["agreement"].startswith(("as many images", "not compared"))
        assert max(gaps, default=0.0) <= (0.05 if "bfloat16" in one["key"] else WITHIN[group]), one


@pytest.mark.slow
def test_a_page_keeps_what_stands_around_its_figures(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{pipeline.BEGIN}\nold\n{pipeline.END}\nafter\n")
    monkeypatch.setattr(pipeline, "PAGE", page)
    monkeypatch.setattr(pipeline, "HISTORY", tmp_path / "history")
    records = [pipeline.record("key", "a work", [1.0, 2.0], [4.0, 4.0], "equal", 5.0, 3.0)]
    pipeline.write({**pipeline.describe(), "commit": "abc"}, records, 2)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| a work | 1.500 | 4.000 |  | 3.0 (2.0-4.0) | 5 | 3 | yes | equal |" in text
    (raw,) = (tmp_path / "history").iterdir()
    assert raw.name in text
