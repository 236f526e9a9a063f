"""Controls through the verbs: what they find, and that no mean takes them."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
from pipeline import make_request, run_all

from flows.report.controls import independently_initialized, tell_controls
from infra.storage import Store
from tasks.science.alignment.matching import match
from tasks.science.networks import build_network, initial_state
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.specs.cell import Cell
from tasks.science.specs.identity import stream
from tasks.science.symmetry.controls import permuted_self, shuffle
from tasks.tables import schema

Tables = dict[str, pd.DataFrame]


def read_all(store: Store) -> Tables:
    return {table.name: pd.read_parquet(f"{store.url}/studies/test/{table.name}.parquet") for table in schema.TABLES}


@pytest.fixture
def tables(store: Store, cell: Cell) -> Tables:
    plain = make_request(cell)
    run_all(store, dataclasses.replace(plain, controls=True, matchers=("none", "activation", "weight")))
    return read_all(store)


def test_a_network_against_itself_has_no_barrier_under_any_matcher_and_every_unit_finds_itself(tables: Tables):
    barriers = tables["barriers"].query("control == 'permuted-self' and correction == 'none'")
    assert set(barriers["matcher"]) == {"activation", "weight"}
    assert (barriers["seed_a"] == barriers["seed_b"]).all()
    assert barriers[["loss_barrier", "accuracy_barrier"]].max().max() < 1e-6
    assert barriers["midpoint_loss_barrier"].abs().max() < 1e-6
    axes = tables["axes"].query("control == 'permuted-self'")
    assert (axes["matched_correlation"] > 1 - 1e-5).all()
    assert (axes["identity_correlation"] < 0.9).any()


def test_a_random_permutation_is_one_pair_of_a_cell_and_keeps_the_function(tables: Tables):
    (row,) = tables["merges"].query("control == 'random-permutation'").to_dict(orient="records")
    assert (row["kind"], row["matcher"], row["seed_a"], row["seed_b"]) == ("control", "random", 0, 1)
    assert row["function_error"] < 1e-12
    assert pd.isna(row["objective"])
    barriers = tables["barriers"].query("control == 'random-permutation'")
    assert len(barriers) == 2 * 2
    assert (barriers.query("correction == 'none'")["loss_barrier"] > 0).all()


def test_no_mean_takes_a_control(tables: Tables, store: Store, cell: Cell):
    assert "random" not in set(tables["ablation"]["matcher"])
    with_controls = tables["ablation"].query("matcher != 'weight'").reset_index(drop=True)
    assert (with_controls["n_pairs"] == 3).all()
    plain = Store(f"{store.url}-plain")
    run_all(plain, make_request(cell))
    pd.testing.assert_frame_equal(with_controls, read_all(plain)["ablation"], check_exact=True)


def test_ensembles_stand_beside_paths_and_change_no_mean(store: Store, cell: Cell):
    run_all(store, make_request(cell))
    before = read_all(store)
    run_all(store, dataclasses.replace(make_request(cell), ensembles=True))
    after = read_all(store)
    ensembles = after["paths"].query("method == 'ensemble'")
    assert len(ensembles) == 3 * 5 * 2
    assert set(zip(ensembles["matcher"], ensembles["correction"], strict=True)) == {("none", "none")}
    weights = after["paths"].query("method == 'weights'").reset_index(drop=True)
    pd.testing.assert_frame_equal(weights, before["paths"], check_exact=True)
    for name in ("barriers", "ablation", "layers", "contrasts"):
        pd.testing.assert_frame_equal(after[name], before[name], check_exact=True)
    ends = ensembles.query("alpha == 0").merge(weights.query("alpha == 0"), on=["merge_id", "split", "correction"])
    assert (ends["accuracy_x"] == ends["accuracy_y"]).all()


def test_the_report_tells_what_controls_show(tables: Tables):
    apart = independently_initialized(tables["cells"], tables["endpoints"])
    assert apart == set(tables["cells"]["cell_id"])
    itself, random = tell_controls(tables["barriers"], tables["ablation"], apart)
    assert itself.startswith("A network against itself, with its units shuffled and aligned again, in 1 cells")
    assert itself.endswith("should be below 1e-6.")
    off = tables["barriers"].assign(loss_barrier=4e-5)
    assert "It is not: a unit that is constant on" in tell_controls(off, tables["ablation"], apart)[0]
    assert "1 pairs have midpoint barriers that differ" in random
    assert tell_controls(tables["barriers"].query("kind == 'pair'"), tables["ablation"], apart) == []


def test_a_random_permutation_is_judged_only_between_independent_initial_weights(tables: Tables):
    direct = (tables["ablation"]["matcher"] == "none") & (tables["ablation"]["correction"] == "none")
    cell_ids = set(tables["cells"]["cell_id"])

    def told(low: float, high: float, apart: set[str]) -> str:
        ablation = tables["ablation"].copy()
        ablation.loc[direct, ["new_pair_low", "new_pair_high"]] = low, high
        return tell_controls(tables["barriers"], ablation, apart)[1]

    assert "Of 1 with independent initial weights, 1 lie in" in told(-2.0, 2.0, cell_ids)
    assert "Of 1 with independent initial weights, 0 lie in" in told(1.5, 2.0, cell_ids)
    assert "independent initial weights" not in told(-2.0, 2.0, set())
    spawned = tables["cells"].assign(spawn_seed=0)
    imported = tables["endpoints"].assign(origin="imported")
    assert (
        independently_initialized(spawned, tables["endpoints"])
        == independently_initialized(tables["cells"], imported)
        == set()
    )


def test_a_shuffle_is_that_of_the_weights_and_the_purpose(cell: Cell):
    spec, states = (
        cell_permutation_spec(cell),
        [initial_state(build_network(cell), stream("control", s)) for s in (0, 1)],
    )
    first = shuffle(spec, states[0], "one")
    assert first == shuffle(spec, states[0], "one")
    assert first != shuffle(spec, states[1], "one")
    assert first != shuffle(spec, states[0], "another")
    (found,) = match(build_network(cell), spec, [states[0], permuted_self(spec, states[0])], [(0, 1)], "weight")
    assert spec.compose(shuffle(spec, states[0], "permuted-self"), found.permutation) == spec.identity()
