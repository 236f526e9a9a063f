"""The tutorial's study, smaller, and what it does with the tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pipeline import run_all

from flows.options import StudyOptions, read_study
from infra.storage import Store
from tasks.data.datasets import describe_dataset
from tasks.tables import schema
from tasks.tables.ablation import BARRIER_METRICS, VALUE_METRICS

PAGE = (Path(__file__).parent.parent.parent / "docs/tutorial.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_pandas_of_the_tutorial_runs_on_its_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("learning-rate.toml").write_text(*blocks("toml"))
    own = read_study(Path("learning-rate.toml"))
    options = StudyOptions(study=own.name, own=own, epochs=4, seeds=3, alphas=3, width=[16], depth=[2])
    request = options.resolve(lambda name: describe_dataset(name, tmp_path))
    run_all(Store("runs"), request)
    done: dict[str, object] = {}
    for code in blocks("python"):
        exec(code, done)  # noqa: S102
        printed = capsys.readouterr().out
        assert "0.03" in printed
    assert len(done["across"]) == 3  # type: ignore[arg-type]
    assert len(done["barrier"]) == 6  # type: ignore[arg-type]


def test_every_name_that_the_tutorial_uses_is_one_of_the_tables():
    columns = {name for table in schema.TABLES for name in (table.name, *table.columns)}
    known = columns | {*BARRIER_METRICS, *VALUE_METRICS} | {"learning_rate", "epochs"}
    used = set(re.findall(r"`([a-z]+_[a-z_]+)`", PAGE)) | set(re.findall(r"table `([a-z_]+)`", PAGE))
    assert {"contrasts", "axes", "matched_correlation", "endpoint_loss"} <= used
    assert used <= known


def test_the_numbers_of_the_text_are_those_of_its_tables():
    """What is cited with its interval stands in a printed table, in points there or as a fraction."""
    printed = {float(number) for table in blocks("text") for number in re.findall(r"-?\d+\.?\d*", table)}
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    cited = re.findall(r"(\d+\.\d) (?:points )?\[(-?\d+\.\d), (\d+\.\d)\]", prose)
    assert len(cited) >= 2
    for numbers in cited:
        for number in map(float, numbers):
            assert number in printed or round(-number / 100, 3) in printed, number
