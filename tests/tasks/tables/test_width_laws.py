from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tasks.science.statistics.width_law import fit
from tasks.tables import schema
from tasks.tables.width_laws import tabulate_width_laws

WIDTHS = (16, 32, 64, 128, 256, 512)
METRICS = ("accuracy_barrier", "loss_barrier")


def series(c: float = 10.0, p: float = 1.0, n_seeds: int = 8, widths=WIDTHS, **changes: Any):
    """A study's cells and ablation, as if every barrier followed the law, with standard errors of a hundredth."""
    plain = {
        "study": "s", "dataset": "digits", "architecture": "mlp", "normalization": "none", "depth": 3, "recipe": "r",
        "recipe_epochs": 3, "data_fingerprint": "f", "data_n_classes": 10, "data_halves": False,
    } | changes  # fmt: skip
    cells = [plain | {"width": w, "cell_id": f"{plain['dataset']}-{plain['depth']}-{w}"} for w in widths]
    degrees = n_seeds - (2 if plain["data_halves"] else 1)
    rows = []
    for cell in cells:
        path = {"matcher": "activation", "correction": "repair", "measurement": "default", "split": "test"}
        row = {name: cell[name] for name in schema.CELL} | path | {"n_seeds": n_seeds}
        rows.append(row | {"metric": "endpoint_accuracy", "mean": 0.95, "low": 0.95, "high": 0.95})
        mean = min(c * cell["width"] ** -p, 0.85)
        reach = 0.01 * mean * stats.t.ppf(0.975, degrees)
        rows += [row | {"metric": m, "mean": mean, "low": mean - reach, "high": mean + reach} for m in METRICS]
    return cells, rows


def tabulate(*of: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> pd.DataFrame:
    cells, rows = ([item for one in of for item in one[part]] for part in (0, 1))
    return tabulate_width_laws(pd.DataFrame(cells), pd.DataFrame(rows))


@pytest.mark.parametrize("changes", [{}, {"data_halves": True, "n_seeds": 6}])
def test_a_series_has_its_law_and_its_answer(changes: dict[str, Any]):
    table = tabulate(series(**changes)).set_index("metric")
    row = table.loc["accuracy_barrier"]
    assert row["p"] == pytest.approx(1, rel=1e-4)
    assert row["p_low"] < 1 < row["p_high"]
    assert (row["n_measured_widths"], row["n_widths"], row["answer"]) == (6, 6, "beyond")
    assert row["width"] == pytest.approx(1000, rel=1e-3)
    assert row["width_low"] < 1000 < row["width_high"]
    assert row["answer_text"].startswith(
        "The accuracy barrier of mlp of 3 hidden layers on digits (aligned by activation, corrected by repair, test "
        "split) is above 1 % up to the widest network measured, of width 512;"
    )


def test_every_epoch_has_a_law_of_its_own_and_the_end_has_the_one_it_had():
    early = tuple([row | {"cell_id": f"{row['cell_id']}-1", "epoch": 1} for row in part] for part in series(c=20.0))
    table = tabulate(series(), early)
    assert table.groupby("epoch", dropna=False)["series_id"].nunique().tolist() == [1, 1]
    end = table[table["epoch"].isna()]
    assert set(end["series_id"]) == set(tabulate(series())["series_id"])
    sentence = table[(table["epoch"] == 1) & (table["metric"] == "accuracy_barrier")]["answer_text"].iloc[0]
    assert "mlp of 3 hidden layers after epoch 1 on digits" in sentence


def test_widths_are_weighted_by_the_standard_errors_that_their_intervals_were_made_of():
    cells, rows = series()
    noisy = pd.DataFrame(rows)
    noisy.loc[noisy["metric"] == "loss_barrier", "mean"] *= np.array([1, 1.1, 0.9, 1.1, 0.9, 1.1])
    reach = np.array([1, 3, 1, 2, 1, 2]) * 0.01
    of_loss = noisy["metric"] == "loss_barrier"
    noisy.loc[of_loss, "low"] = noisy.loc[of_loss, "mean"] - reach
    noisy.loc[of_loss, "high"] = noisy.loc[of_loss, "mean"] + reach
    row = tabulate_width_laws(pd.DataFrame(cells), noisy).set_index("metric").loc["loss_barrier"]
    wanted = fit(np.array(WIDTHS, dtype=np.float64), noisy.loc[of_loss, "mean"].to_numpy()[None], reach)
    assert row["p"] == pytest.approx(wanted.p[0], rel=1e-6)


def test_losses_have_a_law_and_no_answer():
    row = tabulate(series()).set_index("metric").loc["loss_barrier"]
    assert row[["threshold", "answer", "width", "answer_text"]].isna().all()
    assert np.isfinite(row[["c", "p", "floor"]].astype(float)).all()


def test_networks_that_only_guess_halfway_are_no_part_of_the_law():
    row = tabulate(series(c=20.0)).set_index("metric").loc["accuracy_barrier"]  # .85 at width 16, .625 at 32
    assert (row["n_measured_widths"], row["n_widths"]) == (6, 5)


def test_every_series_has_its_own_rows_and_one_width_has_none():
    table = tabulate(series(), series(depth=5), series(dataset="mnist", data_fingerprint="m", widths=(8,)))
    assert sorted(table["depth"].unique()) == [3, 5]
    assert not table.duplicated(list(schema.WIDTH_LAWS.key)).any()
    assert table["series_id"].nunique() == 2
    again = tabulate(series(depth=5))
    pd.testing.assert_frame_equal(again, table[table["depth"] == 5].reset_index(drop=True))


def test_without_intervals_nothing_is_identifiable():
    cells, rows = series()
    rows = [row | {"low": np.nan, "high": np.nan} for row in rows]
    row = tabulate((cells, rows)).set_index("metric").loc["accuracy_barrier"]
    assert (row["answer"], row["n_measured_widths"]) == ("not identifiable", 0)
    assert row["answer_text"].endswith("cannot be told: no width has an interval, which takes three seeds.")
