"""What a person does with a study in pandas, on a store that a small study was run in."""

from __future__ import annotations

import io
import re
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from pipeline import make_request, run_all
from torch import nn

from flows.results import StudyResults, open_study
from infra.storage import Store, StoreError
from tasks.data.datasets import load_dataset
from tasks.science.evaluation.metrics import evaluate
from tasks.science.specs.cell import Cell
from tasks.science.specs.recipe import Recipe
from tasks.tables.schema import BARRIERS


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    store = Store(str(tmp_path_factory.mktemp("results") / "store"))
    recipe = Recipe("r", batch_size=128, epochs=4, learning_rate=0.02, warmup=0.1)
    digits = load_dataset("digits", tmp_path_factory.mktemp("none")).spec
    run_all(store, make_request(*(Cell(digits, "mlp", "none", width, 3, recipe) for width in (16, 32))))
    return open_study(store.url, "test")


def test_tables_are_those_that_lie_in_the_store(study: StudyResults):
    for name in ("cells", "endpoints", "merges", "paths", "barriers", "layers", "axes", "ablation", "contrasts"):
        wanted = pd.read_parquet(f"{study.store.url}/studies/test/{name}.parquet")
        pd.testing.assert_frame_equal(getattr(study, name), wanted)
    assert study.provenance["repairlab"]
    with pytest.raises(ValueError, match="there is no table 'barrier'; known: cells, "):
        study.table("barrier")


def test_a_table_is_described_by_its_own_file(study: StudyResults):
    described = study.describe("barriers")
    assert list(described["column"]) == list(study.barriers.columns)
    loss = described.set_index("column").loc["loss_barrier"]
    assert loss["type"] == "double"
    assert loss["description"] == BARRIERS.columns["loss_barrier"].description
    with pytest.raises(ValueError, match="there is no table 'barrier'; known: cells, "):
        study.describe("barrier")


def code_of_the_page(study: StudyResults, language: str, word: str) -> str:
    text = (Path(__file__).parent.parent.parent / "docs/tables.md").read_text()
    (code,) = (block for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL) if word in block)
    return code.replace("runs/studies/digits-depth", f"{study.store.url}/studies/test")


def test_pyarrow_reads_what_a_column_means(study: StudyResults, capsys: pytest.CaptureFixture[str]):
    exec(code_of_the_page(study, "python", "read_schema"), {})  # noqa: S102
    assert capsys.readouterr().out == BARRIERS.columns["loss_barrier"].description + "\n"


def test_duckdb_selects_from_a_table_what_pandas_does(study: StudyResults):
    found = duckdb.sql(code_of_the_page(study, "sql", "ablation.parquet")).df()
    wanted = study.ablation.query(
        "split == 'test' and metric == 'accuracy_barrier' and matcher == 'activation' and measurement == 'default'"
    ).sort_values(["width", "depth", "correction"], ignore_index=True)[list(found.columns)]
    assert len(found) == 4
    pd.testing.assert_frame_equal(found, wanted)


def test_duckdb_reads_what_the_columns_mean(study: StudyResults):
    found = duckdb.sql(code_of_the_page(study, "sql", "parquet_kv_metadata")).fetchall()
    assert found == list(study.describe("barriers")[["column", "description"]].itertuples(index=False, name=None))


def test_a_study_that_is_not_there_is_a_sentence_with_those_that_are(study: StudyResults):
    with pytest.raises(StoreError, match=r"has no tables of a study 'tset'; it has tables of test: "):
        open_study(study.store, "tset")


def test_a_contrast_is_the_difference_of_mean_barriers(study: StudyResults):
    found = study.contrast("repair", "none")
    assert list(found["width"]) == [16, 32]
    pairs = study.barriers.query("kind == 'pair' and matcher == 'activation' and split == 'test'")
    means = pairs.groupby(["width", "correction"])["accuracy_barrier"].mean().unstack()
    assert list(found["difference"]) == pytest.approx(list(means["repair"] - means["none"]))
    assert (found["low"] <= found["difference"]).all()
    assert (found["difference"] <= found["high"]).all()


def test_a_contrast_the_other_way_round_has_the_other_sign(study: StudyResults):
    one, other = study.contrast("repair", "none"), study.contrast("none", "repair")
    assert list(one["difference"]) == list(-other["difference"])
    assert list(one["low"]) == list(-other["high"])
    with pytest.raises(ValueError, match=r"no accuracy_barrier of reset and none .*measured: corrections none, repair"):
        study.contrast("reset", "none")


@pytest.mark.parametrize("metric", ["accuracy_barrier", "midpoint_loss"])
def test_the_plot_has_every_mean_at_its_width(study: StudyResults, metric: str):
    figure = study.plot_width(metric)
    (axes,) = figure.axes
    shown = study.ablation.query("split == 'test' and metric == @metric")
    scale = 100 if "accuracy" in metric else 1
    drawn = [float(y) for line in axes.lines if len(line.get_xdata()) == 2 for y in line.get_ydata()]  # pyright: ignore
    for mean in shown["mean"]:
        assert any(y == pytest.approx(mean * scale) for y in drawn)
    figure.savefig(io.BytesIO(), format="png")


def test_a_plot_of_what_was_not_measured_says_what_was(study: StudyResults):
    with pytest.raises(ValueError, match="there is no speed on the test split; there are accuracy_barrier, "):
        study.plot_width("speed")


@pytest.mark.parametrize(("correction", "alpha"), [("none", 0.0), ("none", 0.25), ("repair", 0.5), ("repair", 1.0)])
def test_the_network_of_a_point_has_the_loss_and_accuracy_of_its_row(
    study: StudyResults, correction: str, alpha: float
):
    rows = study.paths.query("matcher == 'activation' and correction == @correction and alpha == @alpha")
    merge_id = rows["merge_id"].iloc[-1]
    network = study.network(merge_id, alpha, correction)
    dataset = load_dataset("digits", Path("/nonexistent"))
    for split, examples in (("train", dataset.train), ("test", dataset.test)):
        of_split = rows[(rows["merge_id"] == merge_id) & (rows["split"] == split)]
        (row,) = of_split.to_dict(orient="records")
        seen = evaluate(network, network.state_dict(), examples)
        assert seen.loss == pytest.approx(row["loss"], rel=1e-5)
        assert seen.accuracy == pytest.approx(row["accuracy"], abs=2 / len(examples))


def test_what_no_path_has_is_a_sentence(study: StudyResults):
    merge_id = study.barriers["merge_id"].iloc[0]
    with pytest.raises(ValueError, match="test has no merge 'abc': take one from the column merge_id of barriers"):
        study.network("abc", 0.5)
    with pytest.raises(ValueError, match="has not measured correction 'reset' of this merge; measured: none, repair"):
        study.network(merge_id, 0.5, "reset")
    with pytest.raises(ValueError, match="this merge has no measurement 'wide'; it has default"):
        study.network(merge_id, 0.5, measurement="wide")


def test_what_the_readme_does_with_a_study_runs(study: StudyResults, tmp_path: Path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent.parent / "README.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "open_study" in block)
    monkeypatch.chdir(tmp_path)
    done: dict[str, object] = {}
    exec(code.replace('"runs", "digits-depth"', f'"{study.store.url}", "test"'), done)  # noqa: S102
    assert (tmp_path / "width.png").stat().st_size > 10_000
    assert "difference" in capsys.readouterr().out
    assert isinstance(done["network"], nn.Module)
