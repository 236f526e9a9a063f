from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.science.statistics.contrasts import independent_difference, paired_difference
from tasks.science.statistics.jackknife import mean_estimate
from tasks.tables import schema
from tasks.tables.ablation import BARRIER_METRICS, CALIBRATED_BARRIERS
from tasks.tables.contrasts import tabulate_contrasts
from tasks.tables.factors import neighbours


def cell(**changes: Any) -> dict[str, Any]:
    plain = {
        "study": "s", "dataset": "digits", "architecture": "mlp", "normalization": "none", "width": 8, "depth": 2,
        "recipe": "r", "recipe_epochs": 3, "data_fingerprint": "f",
    }  # fmt: skip
    made = plain | changes
    return made | {"cell_id": "-".join(str(made[name]) for name in plain if name != "study")}


def barriers_of(cells: list[dict[str, Any]], n_seeds: int = 4, paths=(("none", "none"),), seed: int = 0):
    """Random barriers of every pair of every cell."""
    rng = np.random.default_rng(seed)
    rows = [
        {name: of[name] for name in schema.CELL}
        | {"kind": "pair", "seed_a": a, "seed_b": b, "matcher": matcher, "correction": correction}
        | {"measurement": "default", "split": split}
        | {metric: rng.normal() for metric in BARRIER_METRICS}
        | {metric: rng.normal() if split == "test" else np.nan for metric in CALIBRATED_BARRIERS}
        for of, (matcher, correction), split in product(cells, paths, ("train", "test"))
        for a, b in combinations(range(n_seeds), 2)
    ]
    return pd.DataFrame(rows)


def differ(cells: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(factor, str(a[factor]), str(b[factor])) for a, b, factor in neighbours(cells)]


def test_cells_are_compared_where_they_differ_in_one_factor_and_widths_with_their_neighbours():
    cells = [cell(width=width) for width in (32, 8, 16)] + [cell(normalization="batch", width=8)]
    assert differ(cells) == [("normalization", "none", "batch"), ("width", "8", "16"), ("width", "16", "32")]
    assert differ([cell(dataset=word, data_fingerprint=word) for word in "abc"]) == [
        ("dataset", "a", "b"), ("dataset", "a", "c"), ("dataset", "b", "c"),
    ]  # fmt: skip
    assert differ([cell(), cell(width=16, depth=3)]) == []


def test_epochs_are_compared_with_their_neighbours_and_the_end_is_the_last():
    nan = float("nan")
    cells = [cell(epoch=epoch) | {"cell_id": str(epoch)} for epoch in (None, 10, 2, 0)]
    assert differ(cells) == [("epoch", "0", "2"), ("epoch", "2", "10"), ("epoch", "10", "None")]
    assert differ([cell(epoch=nan), cell(width=16, epoch=None)]) == [("width", "8", "16")]
    spawned = [cell(spawn_seed=0.0, spawn_epoch=epoch) | {"cell_id": str(epoch)} for epoch in (4.0, 1.0)]
    assert differ([*spawned, cell()]) == [("spawn_epoch", "1.0", "4.0")]


def test_epochs_of_one_training_are_compared_over_the_pairs_that_both_have():
    cells = [cell(epoch=1) | {"cell_id": "early"}, cell(epoch=None) | {"cell_id": "late"}]
    barriers = barriers_of(cells)
    barriers = barriers[(barriers["cell_id"] == "late") | (barriers["seed_b"] < 3)]
    table = tabulate_contrasts(pd.DataFrame(cells), barriers)
    row = table.query("split == 'test' and metric == 'loss_barrier'").iloc[0]
    assert (row["factor"], row["value"], row["other_value"], row["n_pairs"]) == ("epoch", "1", "last", 3)
    pairs = [(0, 1), (0, 2), (1, 2)]
    early, late = (
        barriers[(barriers["cell_id"] == name) & (barriers["split"] == "test") & (barriers["seed_b"] < 3)]
        for name in ("early", "late")
    )
    expected = paired_difference(pairs, list(early["loss_barrier"]), list(late["loss_barrier"]))
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))


def test_cells_that_differ_in_what_no_name_tells_differ_all_the_same():
    assert differ([cell(), cell(width=16, data_fingerprint="other")]) == []
    assert differ([cell(), cell(recipe="r/epochs=9", recipe_epochs=9)]) == [("recipe", "r", "r/epochs=9")]


def test_a_depth_that_is_in_the_architectures_name_is_no_second_difference():
    nets = [cell(architecture="vgg11", depth=11), cell(architecture="vgg16", depth=16), cell()]
    assert differ(nets) == [("architecture", "vgg11", "vgg16")]


def test_the_table_grows_linearly_with_the_widths():
    sizes = []
    for n in (4, 8, 16):
        cells = [cell(width=2**k) for k in range(n)]
        sizes.append(len(tabulate_contrasts(pd.DataFrame(cells), barriers_of(cells))))
    assert sizes == [len(BARRIER_METRICS) * 2 * (n - 1) for n in (4, 8, 16)]


def test_paths_of_a_cell_are_compared_over_the_pairs_that_both_have():
    paths = (("activation", "repair"), ("none", "none"), ("activation", "none"))
    barriers = barriers_of([cell()], paths=paths)
    lacking = (barriers["correction"] == "repair") & (barriers["seed_a"] == 0) & (barriers["seed_b"] == 1)
    table = tabulate_contrasts(pd.DataFrame([cell()]), barriers[~lacking])
    assert len(table) == 3 * (4 + 6)
    factors = table[["factor", "value", "other_value"]].drop_duplicates().to_numpy().tolist()
    assert factors == [
        ["matcher", "none", "activation"],
        ["path", "none, none", "activation, repair"],
        ["correction", "none", "repair"],
    ]
    (row,) = table.query("factor == 'correction' and metric == 'loss_barrier' and split == 'test'").itertuples()
    of = barriers[~lacking].query("matcher == 'activation' and split == 'test'")
    both = of.pivot(index=["seed_a", "seed_b"], columns="correction", values="loss_barrier").dropna()
    wanted = paired_difference(list(both.index), list(both["none"]), list(both["repair"]))
    assert (row.difference, row.low, row.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert (row.n_pairs, row.other_n_pairs, row.n_seeds, row.other_n_seeds) == (5, 5, 4, 4)
    assert row.cell_id == row.other_cell_id


def test_cells_are_compared_path_by_path_as_independent():
    cells = [cell(), cell(width=16)]
    paths = (("none", "none"), ("activation", "repair"))
    barriers = pd.concat([barriers_of(cells[:1], 4, paths), barriers_of(cells[1:], 3, paths[:1], seed=1)])
    table = tabulate_contrasts(pd.DataFrame(cells), barriers).query("factor == 'width'")
    assert table["matcher"].tolist() == ["none"] * 8
    (row,) = table.query("metric == 'accuracy_barrier' and split == 'train'").itertuples()
    sides = [
        barriers[(barriers["cell_id"] == of["cell_id"]) & (barriers["split"] == "train")].query("matcher == 'none'")
        for of in cells
    ]
    wanted = independent_difference(
        *(
            mean_estimate(list(zip(side["seed_a"], side["seed_b"], strict=True)), list(side["accuracy_barrier"]))
            for side in sides
        )
    )
    assert (row.difference, row.low, row.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert (row.n_seeds, row.other_n_seeds, row.n_pairs, row.other_n_pairs) == (4, 3, 6, 3)
    assert (row.width, row.value, row.other_value) == (8, "8", "16")


def test_below_three_seeds_a_difference_has_no_interval():
    cells = [cell(), cell(width=16)]
    barriers = pd.concat([barriers_of(cells[:1], 2), barriers_of(cells[1:], 5)])
    table = tabulate_contrasts(pd.DataFrame(cells), barriers)
    assert table["difference"].notna().all()
    assert table[["low", "high"]].isna().all().all()


def test_every_row_has_a_key_of_its_own_and_nothing_measured_is_no_row():
    cells = [cell(width=w, depth=d, normalization=n) for w, d, n in product((8, 16), (1, 2), ("none", "layer"))]
    table = tabulate_contrasts(pd.DataFrame(cells), barriers_of(cells, 3, (("none", "none"), ("none", "repair"))))
    assert not table.duplicated(list(schema.CONTRASTS.key)).any()
    assert set(table["factor"]) == {"correction", "width", "depth", "normalization"}
    empty = tabulate_contrasts(pd.DataFrame(cells), barriers_of(cells)[:0])
    assert list(empty.columns) == list(schema.CONTRASTS.columns)
    assert empty.empty
