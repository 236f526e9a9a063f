"""User-defined networks and data, and imported checkpoints, in studies."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from infra.paths import import_key, table_key
from infra.sealing import pack_document
from infra.storage import DamagedError, Store
from infra.tables import read_table
from tasks.data import datasets
from tasks.science.networks import build_network, initial_state
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.user_code import UserCodeError
from tasks.stored.imports import read_imports
from tasks.user_code import search_current_folder

MODULE = """
import torch
from torch import nn


def build(width=6, dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(width, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )


def dropping(width):
    return build(width, 0.3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 4)
        self.second.weight = self.first.weight

    def forward(self, images):
        return self.out(self.second(self.first(images.flatten(1)).relu()).relu())


def tied():
    return Tied()


def frozen():
    network = build()
    network[0].weight.requires_grad_(False)
    return network


def by_numpy():
    import numpy

    network = build()
    with torch.no_grad():
        network[0].weight += float(numpy.random.default_rng().random())
    return network


def no_default(width=None):
    return build(width or 6)


def on_meta():
    with torch.device("meta"):
        return build()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, 4)

    def forward(self, images):
        logits = self.layer(images.flatten(1))
        return logits if logits.sum() > 0 else -logits


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def load():
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 1, 6, 6, generator=generator)
    labels = torch.arange(240) % 4
    images = patterns[labels] + 0.3 * torch.randn(240, 1, 6, 6, generator=generator)
    return (images[:160], labels[:160]), (images[160:], labels[160:])
"""

TRAINED = {"epochs": 12, "batch_size": 20, "learning_rate": 0.05, "warmup": 0.1}


@pytest.fixture
def own(write_module: Callable[[str], str]) -> str:
    """The name of a module in the current folder."""
    return write_module(MODULE)


@pytest.fixture(scope="module")
def weights() -> dict[str, bytes]:
    """The files of four networks that were trained by a plain loop: run_10.pt to run_13.pt."""
    scope: dict = {}
    exec(MODULE, scope)  # noqa: S102
    (images, labels), _ = scope["load"]()
    files: dict[str, bytes] = {}
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = scope["build"]()
            optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
            for _ in range(30):
                for rows in torch.randperm(len(labels)).split(40):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
                    optimizer.step()
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        files[f"run_{10 + seed}.pt"] = file.getvalue()
    return files


@pytest.fixture
def trained(own: str, weights: dict[str, bytes]) -> None:
    """These files beside the module."""
    assert Path(f"{own}.py").exists()
    for name, data in weights.items():
        Path(name).write_bytes(data)


def words(own: str, function: str = "build") -> list[str]:
    return ["--network", f"{own}:{function}", "--data", f"{own}:load"]


@pytest.mark.usefixtures("prefect_server", "trained")
def test_checkpoints_from_elsewhere_are_a_study_that_trains_nothing(own: str, call):
    known = ["--set", "learning_rate=0.1", "--set", "momentum=0.9"]
    code, out, err = call("import", "run_*.pt", *words(own), *known, "--seed-from", "name", "--study", "mine")
    assert code == 0, err
    assert "next: repairlab run mine --network" in out
    code, out, err = call("run", "mine", *words(own), "--alphas", "3", "--correction", "none,repair,reset")
    assert code == 0, err
    store = Store("./runs")
    endpoints = read_table(store, table_key("mine", "endpoints"))
    assert set(endpoints["origin"]) == {"imported"}
    assert sorted(endpoints["seed"]) == [10, 11, 12, 13]
    assert set(endpoints["status"]) == {"trained"}
    assert endpoints[["train_seconds", "n_skipped_steps"]].isna().all(axis=None)
    (cell,) = read_table(store, table_key("mine", "cells")).to_dict("records")
    assert cell["recipe"] == "imported/learning_rate=0.1"  # .9 is what stands there anyway
    assert (cell["recipe_learning_rate"], cell["recipe_momentum"]) == (0.1, 0.9)
    unknown = {
        name for name, value in cell.items() if name.startswith("recipe_") and value is not None and value == value
    }
    assert unknown == {"recipe_learning_rate", "recipe_momentum"}
    merges = read_table(store, table_key("mine", "merges"))
    aligned = merges[merges["matcher"] == "activation"]
    assert len(aligned[aligned["kind"] == "pair"]) == 6
    assert (aligned["function_error"] <= 1e-9).all()
    paths = read_table(store, table_key("mine", "paths"))
    assert set(paths["correction"]) == {"none", "repair", "reset"}
    # A second import and run make nothing new.
    before = {path: path.stat().st_mtime_ns for path in Path("runs/rows").rglob("*.parquet")}
    assert call("import", "run_*.pt", *words(own), *known, "--seed-from", "name", "--study", "mine")[0] == 0
    assert call("run", "mine", *words(own), "--alphas", "3", "--correction", "none,repair,reset")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in Path("runs/rows").rglob("*.parquet")} == before


@pytest.mark.usefixtures("prefect_server", "trained")
def test_checkpoints_with_more_than_weights_are_imported_and_what_was_left_is_told(own: str, call):
    for number in (10, 11):
        state = {f"model.{key}": tensor for key, tensor in torch.load(f"run_{number}.pt").items()}
        torch.save({"net": state, "args": argparse.Namespace(lr=0.1)}, f"more_{number}.pt")
    code, out, err = call("import", "more_*.pt", *words(own))
    assert code == 0, err
    assert "more_10.pt: left out beside the weights: args\n" in out
    assert "more_11.pt: model. is taken off the name of every tensor\n" in out
    (first, second) = read_imports(Store("./runs"), "imported")
    assert (first.seed, second.seed) == (0, 1)


@pytest.mark.usefixtures("prefect_server")
def test_a_network_of_ones_own_is_trained_at_every_width_it_takes(own: str, call):
    recipe = ["--recipe", "small/digits", "--epochs", "12", "--sweep", "batch_size=20", "--sweep", "learning_rate=0.05"]
    given = ["--width", "4,8", "--seeds", "3", "--alphas", "3"]
    code, _, err = call("run", "wide", *words(own, "dropping"), *recipe, *given)
    assert code == 0, err
    store = Store("./runs")
    cells = read_table(store, table_key("wide", "cells"))
    assert sorted(cells["width"]) == [4, 8]
    assert set(cells["normalization"]) == {"batch"}
    assert set(cells["depth"]) == {2}
    first = read_table(store, table_key("wide", "endpoints")).set_index("endpoint_id")
    assert set(first["status"]) == {"trained"}
    assert (read_table(store, table_key("wide", "ablation")).query("metric == 'loss_barrier'")["n_pairs"] == 3).all()
    # What it drops out is drawn by the seed's own stream: another store, another process's state, the same weights.
    torch.manual_seed(99)
    one = ["--width", "4", "--seeds", "2", "--alphas", "3"]
    assert call("run", "wide", *words(own, "dropping"), *recipe, *one, "--store", "again")[0] == 0
    again = read_table(Store("again"), table_key("wide", "endpoints")).set_index("endpoint_id")
    assert len(again) == 2
    assert (again["weights_sha256"] == first["weights_sha256"].loc[again.index]).all()


@pytest.mark.usefixtures("trained")
def test_code_that_only_a_store_names_is_never_run(own: str, call):
    assert call("import", "run_*.pt", *words(own), "--study", "mine")[0] == 0
    code, _, err = call("run", "mine", "--dry-run")
    assert code == 2
    named = f"--network {own}:build --data {own}:load"
    assert f"mine names code, which runs only where you name it too: give {named}, or --trust-code to run" in err
    module = sys.modules.pop(own)
    assert call("run", "mine", "--network", f"{own}:build", "--dry-run")[0] == 2
    assert own not in sys.modules
    assert call("run", "mine", "--trust-code", "--dry-run")[0] == 0
    assert sys.modules.pop(own) is not module
    store = Store("./runs")
    endpoint = read_imports(store, "mine")[0]
    key = import_key("mine", endpoint.id)
    hostile = json.loads(store.read(key))
    hostile["cell"]["architecture"] = "antigravity:fly"
    store.replace(key, pack_document(key, hostile))
    with pytest.raises(DamagedError, match="is of no endpoint of mine"):
        read_imports(store, "mine")
    assert call("run", "mine", *words(own), "--dry-run")[0] == 1
    assert "antigravity" not in sys.modules


@pytest.mark.usefixtures("trained")
def test_a_network_or_data_that_changed_since_the_import_is_said(own: str, call):
    assert call("import", "run_*.pt", *words(own), "--study", "mine")[0] == 0
    module = sys.modules[own]
    build, load = module.build, module.load
    module.build = lambda width=6: build(width, 0.5)
    code, _, err = call("run", "mine", *words(own), "--dry-run")
    assert code == 2
    assert "makes another network than when mine was imported: import under another name" in err
    assert "take another --study" in call("import", "run_1*.pt", *words(own), "--study", "mine")[2]
    module.build = build
    datasets._load_user_data.cache_clear()
    module.load = lambda: tuple((images + 1, labels) for images, labels in load())
    code, _, err = call("run", "mine", *words(own), "--dry-run")
    assert code == 2
    assert "holds other data than when mine was imported" in err
    datasets._load_user_data.cache_clear()


@pytest.mark.usefixtures("trained")
def test_a_manifest_that_import_did_not_write_is_a_sentence(own: str, call):
    assert call("import", "run_*.pt", *words(own), "--study", "mine")[0] == 0
    store = Store("./runs")
    endpoint = read_imports(store, "mine")[0]
    key = import_key("mine", endpoint.id)
    good = json.loads(store.read(key))

    def changed(**fields: object) -> str:
        return json.dumps({**good, "cell": {**good["cell"], **fields}})

    hostile = [changed(origin=None), changed(epoch=0), changed(spawn=[0, 0]), changed(origin={"name": "other"})]
    hostile += [changed(origin={"name": "mine", "known": ["nothing"]}), json.dumps({**good, "seed": -1})]
    hostile += [json.dumps({**good, "seed": 1e999}), json.dumps({**good, "seed": True}), "[" * 100_000, "{}", "7"]
    for text in hostile:
        sealed = pack_document(key, json.loads(text)) if text.startswith('{"') else text.encode()
        store.replace(key, sealed)
        with pytest.raises(DamagedError, match=r"is damaged .*: delete it and import the weights again"):
            read_imports(store, "mine")


@pytest.mark.usefixtures("prefect_server", "trained")
def test_the_same_files_under_two_facts_are_two_cells_with_pairs_of_their_own(own: str, call):
    for rate in ("0.1", "0.2"):
        assert call("import", "run_*.pt", *words(own), "--study", "mine", "--set", f"learning_rate={rate}")[0] == 0
    assert call("run", "mine", *words(own), "--alphas", "3")[0] == 0
    store = Store("./runs")
    barriers = read_table(store, table_key("mine", "barriers")).query("kind == 'pair'")
    by_rate = barriers.groupby("learning_rate")["loss_barrier"]
    assert by_rate.size().tolist() == [6 * 2 * 2 * 2] * 2
    # The two groups may hold their pairs in different orders, so a sum would differ in its last digit.
    first, second = (sorted(barriers) for _, barriers in by_rate)
    assert first == second


@pytest.mark.usefixtures("prefect_server")
def test_a_network_with_one_tensor_under_two_names_can_be_imported(own: str, call):
    scope: dict = {}
    exec(MODULE, scope)  # noqa: S102
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(scope["tied"]().state_dict(), f"tied_{seed}[x].pt")
    code, out, err = call("import", "tied_*.pt", *words(own, "tied"), "--set", "resized_crop=3")
    assert code == 0, err
    assert "tied_0[x].pt" in out
    assert call("run", "imported", *words(own, "tied"), "--alphas", "3")[0] == 0
    endpoints = read_table(Store("./runs"), table_key("imported", "endpoints"))
    assert set(endpoints["status"]) <= {"trained", "untrained"}


@pytest.mark.usefixtures("trained")
def test_a_study_is_of_one_network_and_one_data_set_of_ones_own(own: str, call):
    assert call("import", "run_1[01].pt", *words(own), "--study", "mine")[0] == 0
    code, _, err = call("import", "run_1[23].pt", *words(own, "dropping"), "--study", "mine", "--set", "width=6")
    assert code == 2
    assert f"mine holds what was imported with --network {own}:build" in err
    for path in list(Path("runs/endpoints").iterdir())[:1]:
        path.unlink()
    code, _, err = call("run", "mine", *words(own), "--dry-run")
    assert code == 2
    assert "1 of the 2 endpoints that were imported as mine are not in" in err


def test_data_that_are_others_at_every_call_are_said(own: str):
    search_current_folder()
    asked = datasets.load_dataset(f"{own}:load", Path())
    other = dataclasses.replace(asked, spec=dataclasses.replace(asked.spec, fingerprint="other"))
    assert datasets.check_data(asked, asked.spec) is asked
    with pytest.raises(UserCodeError, match="returns other data each time it is called"):
        datasets.check_data(other, asked.spec)


@pytest.mark.usefixtures("trained")
def test_nothing_is_overwritten_by_other_weights(own: str, call):
    assert call("import", "run_10.pt", "run_11.pt", *words(own), "--study", "mine")[0] == 0
    code, _, err = call("import", "run_10.pt", "run_12.pt", *words(own), "--study", "mine")
    assert code == 1
    assert "seed 1 of" in err
    assert "with other weights: take another --study or --store" in err
    assert call("import", "run_11.pt", "run_12.pt", *words(own), "--study", "other")[0] == 0
    assert len(read_imports(Store("./runs"), "mine")) == len(read_imports(Store("./runs"), "other")) == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["nothing_*.pt"], "there is no file nothing_*.pt"),
        (["run_10.pt", "--set", "colour=red"], "there is no field 'colour' to set; known: width, depth, normalization"),
        (["run_10.pt", "--set", "learning_rate"], "--set takes FIELD=VALUE, got learning_rate"),
        (["run_10.pt", "--set", "learning_rate=fast"], "learning_rate takes numbers, got fast"),
        (["run_10.pt", "--set", "width=0"], "width must be a positive whole number of at most 2147483647, got 0"),
        (["run_10.pt", "--set", "width=²"], "width must be a positive whole number of at most 2147483647, got ²"),
        (["run_10.pt", "--set", "epochs=99999999999999999999"], "epochs must be at most 2147483647"),
        (["run_20240101123045.pt", "--seed-from", "name"], "seeds are at most 2147483647"),
        (["run_10.pt", "copy_10.pt"], "copy_10.pt holds the same weights as run_10.pt: a network is one endpoint"),
        (["a" * 300 + ".pt"], "cannot be looked for"),
        (["run_10.pt", "--set", "width=7"], "conv has shape"),
        (["run_10.pt", "--set", "normalization=layer"], "whose normalization is batch, not layer"),
        (["run_10.pt", "--seed-from", "hash"], "--seed-from must be order or name, got 'hash'"),
        (["run_10.pt", "copy_10.pt", "--seed-from", "name"], "both have seed 10"),
        (["plain.pt", "--seed-from", "name"], "plain.pt has no number in its name"),
        (["run_10.pt", "--study", "mlp-width"], "mlp-width is the name of a study that comes with repairlab"),
        (["run_10.pt", "--study", "../up"], "'../up' is no name"),
        (["run_10.pt", "wrong.safetensors"], "wrong.safetensors lacks 0.weight"),
    ],
)
@pytest.mark.usefixtures("trained")
def test_what_cannot_be_imported_is_one_sentence_and_nothing_is_stored(own: str, call, given: list[str], sentence: str):
    for name in ("copy_10.pt", "plain.pt", "run_20240101123045.pt"):
        Path(name).write_bytes(Path("run_10.pt").read_bytes())
    safetensors.torch.save_file({"x": torch.zeros(2)}, "wrong.safetensors")
    code, out, err = call("import", *given, *words(own))
    assert (code, out) == (2, "")
    assert sentence.replace("conv has", "0.weight has") in err
    assert len(err.strip().splitlines()) == 1
    assert not list(Path("runs").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("function", "given", "sentence"),
    [
        ("build", [], "needs a recipe: give --recipe"),
        ("build", ["--recipe", "small/nothing"], "there is no recipe 'nothing' of small"),
        ("dropping", ["--recipe", "small/digits"], "takes a width, and has no positive whole number for its default"),
        ("narrow", ["--recipe", "small/digits"], "has at least 4 classes"),
        ("narrow", ["--recipe", "small/digits", "--depth", "3"], "takes no depth"),
        ("Tied", ["--recipe", "small/digits"], "are one tensor, which is not trained here"),
        ("Branching", ["--recipe", "small/digits"], "cannot be traced"),
        ("missing", ["--recipe", "small/digits"], "has no function missing"),
        ("frozen", ["--recipe", "small/digits"], "whose 0.weight is frozen, and here every parameter is trained"),
        ("by_numpy", ["--recipe", "small/digits"], "makes other weights each time from the same random numbers"),
        ("no_default", ["--recipe", "small/digits"], "has no positive whole number for its default: give one"),
        ("on_meta", ["--recipe", "small/digits"], "makes a network on the meta device"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(own: str, call, function: str, given: list[str], sentence: str):
    code, _, err = call("run", *words(own, function), *given, "--dry-run")
    assert code == (1 if function == "on_meta" else 2)  # Words that cannot be, or code that does not do what it should.
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_a_network_needs_data_and_a_name_of_its_own(own: str, call):
    assert "go together" in call("run", "mine", "--network", f"{own}:build", "--dry-run")[2]
    assert "choose another name" in call("run", "mlp-width", *words(own), "--dry-run")[2]
    assert "there is no study 'own'" in call("run", "--dry-run")[2]


@pytest.mark.usefixtures("own")
def test_a_known_architecture_can_be_imported_too(call):
    data = DataSpec("digits", "f", 1437, 360, 10, (1, 8, 8))
    network = build_network(Cell(data, "mlp", "none", 8, 2, Recipe("r", 1, 1, 1.0, 0.0)))
    for seed in (0, 1):
        safetensors.torch.save_file(initial_state(network, stream("x", seed), "he-normal"), f"mlp_{seed}.safetensors")
    given = ["--network", "mlp", "--data", "digits", "--set", "width=8", "--set", "depth=2"]
    code, out, err = call("import", "mlp_?.safetensors", *given)
    assert code == 0, err
    assert "next: repairlab run imported\n" in out
    assert call("run", "imported", "--dry-run")[1].startswith("2 endpoints, 1 pairs")
    assert "an mlp needs its depth" in call("import", "mlp_0.safetensors", *given[:-2])[2]
    code, _, err = call("run", "imported", "--epochs", "3", "--dry-run")
    assert code == 2
    assert "none is trained here" in err
    assert "has width 9" in call("run", "imported", "--width", "9", "--dry-run")[2]
