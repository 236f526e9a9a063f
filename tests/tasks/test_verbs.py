"""The verbs on a store: what they write, what they leave alone, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from pipeline import align_all, make_request, measure_all, merges_of, run_all, train_all

from infra.paths import endpoint_key, permutation_key, row_key
from infra.storage import DamagedError, Store
from infra.tables import read_rows
from tasks.align import align
from tasks.gather import gather
from tasks.interpolate import interpolate
from tasks.repair import repair
from tasks.science.correction.layout import LeftOut
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.networks.permutation_spec import cell_permutation_spec
from tasks.science.paths.curves import Point
from tasks.science.specs.cell import Cell, Endpoint
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.measurement import Measurement
from tasks.science.symmetry.permutation import PermutationSpec
from tasks.stored.artifacts import as_member, load_permutation, read_endpoint
from tasks.stored.checkpoints import pack, read_checkpoint, read_header
from tasks.stored.expansion import MeasuredPath, UsableMatch
from tasks.stored.pairs import save_points
from tasks.tables.schema import LAYER_ROWS
from tasks.train import train


def made(store: Store) -> dict[str, bytes]:
    """Every file that verbs write, by key."""
    root = Path(store.url)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("endpoints", "permutations", "moments", "rows")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


def count_kinds(store: Store) -> dict[str, int]:
    """How many files verbs have written, by folder."""
    return dict(Counter(key.rpartition("/")[0] for key in made(store)))


def numbers(store: Store) -> dict[str, pd.DataFrame | dict]:
    """The same without what a clock measured."""
    out: dict[str, pd.DataFrame | dict] = {}
    for key in made(store):
        if key.endswith(".parquet"):
            out[key] = pd.read_parquet(f"{store.url}/{key}").drop(columns="match_seconds", errors="ignore")
        else:
            tensors, header = read_checkpoint(store, key)
            header.get("record", {}).pop("train_seconds", None)
            out[key] = {name: tensor.tolist() for name, tensor in tensors.items()} | {"header": repr(header)}
    return out


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, other[key], check_exact=True)
        else:
            assert value == other[key]


def test_an_endpoint_is_stored_with_its_spec_its_metrics_and_its_digest(store: Store, cell: Cell):
    train.fn(cell, [0], store, Path())
    header = read_header(store, endpoint_key(Endpoint(cell, 0).id))
    assert header["spec"]["cell"]["width"] == 16
    assert header["record"]["status"] == "trained"
    assert header["record"]["n_parameters"] == 36 * 16 + 16 + 2 * (16 * 16 + 16) + 16 * 4 + 4
    assert len(header["tensors_sha256"]) == 64
    assert header["versions"]["torch"] == torch.__version__


def test_what_the_store_has_is_not_made_again(store: Store, cell: Cell):
    request = make_request(cell)
    run_all(store, request)
    before = {key: (Path(store.url) / key).stat().st_mtime_ns for key in made(store)}
    run_all(store, request)
    assert {key: (Path(store.url) / key).stat().st_mtime_ns for key in made(store)} == before


def test_what_is_computed_together_changes_no_bit(store: Store, cell: Cell, tmp_path: Path):
    request = make_request(cell)
    train_all(store, request)
    align_all(store, request)
    measure_all(store, request)
    apart = Store(str(tmp_path / "apart"))
    for seed in (2, 0, 1):
        train.fn(cell, [seed], apart, Path())
    for pairing in merges_of(apart, request)[::-1]:
        if pairing.matcher != "none":
            align.fn([pairing], apart, Path())
    for path in request.paths(merges_of(apart, request))[::-1]:
        measure_all(apart, request, [path])
    assert_same(numbers(store), numbers(apart))


def test_more_alphas_train_and_match_nothing(store: Store, cell: Cell):
    run_all(store, make_request(cell))
    before = set(made(store))
    run_all(store, make_request(cell, alphas=7))
    added = set(made(store)) - before
    assert {key.split("/")[0] for key in added} == {"rows"}
    assert {key.split("/")[1] for key in added} == {"paths", "layers"}
    assert len(added) == 2 * 12


def test_another_correction_or_alpha_grid_costs_only_itself(store: Store, cell: Cell, monkeypatch):
    run_all(store, make_request(cell))
    measuring = ("science.paths.curves.preactivation_moments", "stored.pairs.evaluate_splits")
    for name in ("train.train_group", "align.match", *measuring):
        monkeypatch.setattr(f"tasks.{name}", lambda *_, **__: pytest.fail("what the store has is made again"))
    finer = make_request(cell, alphas=7)
    run_all(store, finer)
    other = dataclasses.replace(make_request(cell), corrections=("none", "rescale"))
    paths = [path for path in other.paths(merges_of(store, other)) if path.correction == "rescale"]
    repair.fn(paths, store, Path())
    assert len(paths) == 6
    assert all(MeasuredPath(path).is_in(store) for path in [*paths, *finer.paths(merges_of(store, finer))])


@pytest.mark.parametrize(
    ("architecture", "normalization", "depth", "width"), [("mlp", "none", 3, 16), ("resnet20", "batch", 20, 1)]
)
def test_a_path_from_stored_moments_and_evaluations_is_that_from_new_ones(
    store: Store,
    cell: Cell,
    tmp_path: Path,
    monkeypatch,
    architecture: str,
    normalization: str,
    depth: int,
    width: int,
):
    recipe = dataclasses.replace(cell.recipe, epochs=2)
    changed = dataclasses.replace(
        cell, architecture=architecture, normalization=normalization, depth=depth, width=width, recipe=recipe
    )
    request = make_request(changed, n_seeds=2, alphas=3)
    train_all(store, request)
    members = {e: as_member(e, read_endpoint(store, e) or {}) for e in request.endpoints(request.cells[0])}
    pairings = [m for m in request.pairings(request.cells[0], list(members.values())) if m.matcher == "none"]
    paths = request.paths(pairings)
    anew = Store(str(tmp_path / "anew"), store.url)
    measure_all(store, request, paths)
    assert count_kinds(store) == {"endpoints": 2, "moments": 2, "rows/ends": 2, "rows/layers": 2, "rows/paths": 2}
    for path in paths:
        for table in ("paths", "layers"):
            (Path(store.url) / row_key(table, path.id)).unlink()
    measure_all(store, request, paths)
    for name in ("load_moments", "load_evaluation"):
        monkeypatch.setattr(f"tasks.stored.pairs.{name}", lambda _store, _id: None)
    measured = {row_key(table, path.id) for path in paths for table in ("paths", "layers")}
    kept = {key: store.read(key) for key in measured}
    for key in measured:
        (Path(store.url) / key).unlink()
    measure_all(anew, request, paths)
    assert {key: anew.read(key) for key in measured} == kept


def test_fewer_images_give_their_own_permutations_and_paths(store: Store, cell: Cell):
    run_all(store, make_request(cell))
    few = dataclasses.replace(make_request(cell), measurements=(Measurement("few", 5, statistics=40, evaluation=30),))
    run_all(store, few)
    tables = {name: pd.read_parquet(f"{store.url}/studies/test/{name}.parquet") for name in ("paths", "merges")}
    counts = tables["paths"].groupby(["measurement", "split"])["n_examples"].unique().map(list)
    assert counts["few", "train"] == [30]
    assert counts["few", "test"] == [min(30, cell.data.n_test)]
    assert counts["default", "train"] == [cell.data.n_train]
    seen = tables["merges"].groupby("matcher")["n_statistics"].unique().map(sorted)
    assert seen["activation"] == [40, cell.data.n_train]
    assert tables["merges"].query("matcher == 'none'")["n_statistics"].isna().all()


def test_a_pair_whose_permutation_changes_the_function_stops_with_a_sentence(store: Store, cell: Cell, monkeypatch):
    request = make_request(cell)
    train_all(store, request)
    honest = PermutationSpec.apply

    def forgets_the_biases(self: PermutationSpec, state, permutation):
        permuted = honest(self, state, permutation)
        return {name: state[name] if name.endswith("bias") else tensor for name, tensor in permuted.items()}

    monkeypatch.setattr(PermutationSpec, "apply", forgets_the_biases)
    sentences = align_all(store, request)
    assert len(sentences) == 3
    assert "seeds 0 and 1: the permutation changes B's function (error" in sentences[0]
    for pairing in merges_of(store, request):
        if pairing.matcher != "none":
            assert not store.exists(permutation_key(pairing.id))
            assert not UsableMatch(pairing).is_in(store)
            row = pd.read_parquet(f"{store.url}/{row_key('merges', pairing.id)}").iloc[0]
            assert row["function_error"] > 1e-9
    gather.fn("test", store, {})
    gathered = pd.read_parquet(f"{store.url}/studies/test/merges.parquet").query("matcher == 'activation'")
    assert len(gathered) == 3
    assert (gathered["function_error"] > 1e-9).all()


def test_weights_that_were_changed_are_not_measured(store: Store, cell: Cell):
    request = make_request(cell)
    train_all(store, request)
    wanted = [pairing for pairing in merges_of(store, request) if pairing.matcher != "none"]
    key = endpoint_key(Endpoint(cell, 1).id)
    tensors, header = read_checkpoint(store, key)
    tensors["output.bias"] += 1
    store.replace(key, pack(key, tensors, header))
    before = made(store)
    with pytest.raises(DamagedError, match="its weights are not those that the pair was asked for with"):
        align.fn(wanted, store, Path())
    assert made(store) == before


def test_a_truncated_checkpoint_is_a_sentence_and_nothing_is_lost(store: Store, cell: Cell):
    request = make_request(cell)
    train_all(store, request)
    key = endpoint_key(Endpoint(cell, 1).id)
    os.truncate(Path(store.url) / key, 100)
    before = made(store)
    with pytest.raises(DamagedError, match=rf"{Endpoint(cell, 1).id}\.safetensors is damaged \(cut short\): delete it"):
        merges_of(store, request)
    assert made(store) == before
    (Path(store.url) / key).unlink()
    train_all(store, request)
    assert len(merges_of(store, request)) == 6


def test_a_diverged_endpoint_is_stored_counted_and_kept_out_of_pairs(store: Store, cell: Cell):
    wild = dataclasses.replace(cell, recipe=dataclasses.replace(cell.recipe, learning_rate=1e30))
    request = make_request(wild)
    run_all(store, request)
    assert merges_of(store, request) == []
    endpoints = pd.read_parquet(f"{store.url}/studies/test/endpoints.parquet")
    assert endpoints["status"].tolist() == ["diverged"] * 3
    assert endpoints["train_loss"].isna().all()
    ablation = pd.read_parquet(f"{store.url}/studies/test/ablation.parquet")
    assert (ablation["n_diverged"] == 3).all()
    assert ablation["mean"].isna().all()
    assert len(pd.read_parquet(f"{store.url}/studies/test/barriers.parquet")) == 0


def test_a_path_is_done_only_when_both_its_files_are(store: Store, cell: Cell):
    request = make_request(cell)
    train_all(store, request)
    align_all(store, request)
    measure_all(store, request)
    path = request.paths(merges_of(store, request))[0]
    assert MeasuredPath(path).is_in(store)
    (Path(store.url) / row_key("layers", path.id)).unlink()
    assert not MeasuredPath(path).is_in(store)
    measure_all(store, request)
    assert MeasuredPath(path).is_in(store)


@pytest.mark.slow
def test_every_correction_of_a_residual_network_is_stored_by_one_task(store: Store, cell: Cell):
    """One pair on tiny images; a chunk of paths may hold several corrections, and is the same as one by one."""
    small = dataclasses.replace(cell, architecture="resnet20", normalization="batch", width=1, depth=20)
    names = tuple(CORRECTIONS)
    request = dataclasses.replace(make_request(small, n_seeds=2, alphas=3), matchers=("none",), corrections=names)
    train_all(store, request)
    paths = request.paths(merges_of(store, request))
    assert [path.correction for path in paths] == list(names)
    interpolate.fn([path for path in paths if path.correction == "none"], store, Path())
    repair.fn([path for path in paths if path.correction != "none"], store, Path())
    frames = {path.correction: pd.read_parquet(f"{store.url}/{row_key('paths', path.id)}") for path in paths}
    layers = {path.correction: pd.read_parquet(f"{store.url}/{row_key('layers', path.id)}") for path in paths}
    for name in names:
        assert len(frames[name]) == 3 * 2
        assert (frames[name]["correction"] == name).all()
        assert len(layers[name]) == (21 if name == "none" else 3 * (21 + (9 if CORRECTIONS[name].blocks else 0)))
    assert not frames["repair"]["loss"].equals(frames["none"]["loss"])
    assert frames["repair"]["loss"].to_numpy() == pytest.approx(frames["reset"]["loss"].to_numpy(), rel=1e-2)
    (alone,) = [path for path in paths if path.correction == "repair"]
    kept = store.read(row_key("layers", alone.id))
    for table in ("paths", "layers"):
        (Path(store.url) / row_key(table, alone.id)).unlink()
    repair.fn([alone], store, Path())
    assert store.read(row_key("layers", alone.id)) == kept


@pytest.mark.parametrize(
    ("architecture", "normalization", "depth"),
    [("resnet20", "batch", 20), ("resnet20", "layer", 20), ("mlp", "batch", 3)],
)
def test_every_architecture_is_aligned(store: Store, cell: Cell, architecture: str, normalization: str, depth: int):
    width = 1 if architecture == "resnet20" else 12
    recipe = dataclasses.replace(cell.recipe, epochs=1)
    changed = dataclasses.replace(
        cell, architecture=architecture, normalization=normalization, width=width, depth=depth, recipe=recipe
    )
    request = dataclasses.replace(
        make_request(changed, n_seeds=2), matchers=("none", "activation", "activation-published/batch=100", "weight")
    )
    train_all(store, request)
    # Whether one epoch is enough to count as trained does not matter here.
    members = [as_member(e, record) for e in request.endpoints(changed) if (record := read_endpoint(store, e))]
    pairings = [pairing for pairing in request.pairings(changed, members) if pairing.matcher != "none"]
    assert align.fn(pairings, store, Path()) == []
    for pairing in pairings:
        assert UsableMatch(pairing).is_in(store)
        row = pd.read_parquet(f"{store.url}/{row_key('merges', pairing.id)}").iloc[0]
        assert row["function_error"] < 1e-12
        assert json.loads(row["matcher_options"]) == pairing.choice.options
        permutation = load_permutation(store, pairing, cell_permutation_spec(changed))
        assert permutation.keys() == cell_permutation_spec(changed).identity().keys()
        if pairing.matcher == "weight":
            assert len(read_header(store, permutation_key(pairing.id))["restarts"]) == 3


def test_a_layer_that_a_correction_does_not_reach_has_a_row_with_its_reason(tmp_path: Path):
    store = Store(str(tmp_path))
    seen = Evaluation(1.0, 0.5, 10)
    left_out = (LeftOut("gru.weight_hh_l0", 6, "it runs more than once"),)
    path = SimpleNamespace(id="p", pairing=SimpleNamespace(id="m"), correction="repair", method="weights")
    save_points(store, path, [Point(0.5, {"test": seen}, [], left_out)])  # type: ignore[arg-type]
    rows, _ = read_rows(store, [row_key("layers", "p")], LAYER_ROWS)
    (row,) = rows.to_pylist()
    assert (row["layer"], row["n_units"], row["left_out"]) == ("gru.weight_hh_l0", 6, "it runs more than once")
    assert row["variance_ratio"] is None
    assert row["position"] is None
