"""Architectures, shipped and user-defined: which cells each describes, which it refuses, and what is imported when."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tasks.science.networks import ARCHITECTURES, build_network, draw_state, find_architecture
from tasks.science.networks.architecture import Factors
from tasks.science.networks.user_defined import UserDefined
from tasks.science.specs.cell import Cell
from tasks.science.specs.data import DataSpec
from tasks.science.specs.identity import stream, weights_digest
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.state import State
from tasks.science.specs.user_code import UserCodeError

DATA = DataSpec("toy", "0" * 64, 100, 100, 4, (1, 6, 6))
RECIPE = Recipe("plain", batch_size=8, epochs=1, learning_rate=0.1, warmup=0.1)

MODULE = """
from torch import nn

def build(width=5):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.ReLU(), nn.Linear(width, 4))

def deep(depth, normalization="batch"):
    norm = nn.BatchNorm1d(6) if normalization == "batch" else nn.Identity()
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(6, 6), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), norm, nn.ReLU(), *hidden, nn.Linear(6, 4))
"""


def never(_network: nn.Module, _state: State, _images: Tensor) -> int:
    raise AssertionError("layers are counted only where a network takes no depth")


def seven(_network: nn.Module, _state: State, _images: Tensor) -> int:
    return 7


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, and has not been."""
    name = re.sub(r"\W", "_", f"user_{tmp_path.name}")
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return name


def user_cell(place: str) -> Cell:
    return Cell(DATA, place, "none", 5, 1, RECIPE, graph="0" * 64)


def test_an_architecture_by_its_place_imports_nothing_until_it_is_asked(module: str):
    architecture = find_architecture(f"{module}:build")
    assert architecture == UserDefined(f"{module}:build")
    assert (architecture.default_normalization, architecture.depth) == ("", None)
    assert module not in sys.modules
    with pytest.raises(ValueError, match="user-defined, and its cells need the digest of its graph"):
        architecture.build(dataclasses.replace(user_cell(f"{module}:build"), graph=""))
    assert module not in sys.modules
    assert isinstance(architecture.build(user_cell(f"{module}:build")), nn.Sequential)
    assert module in sys.modules


@pytest.mark.parametrize("word", ARCHITECTURES)
def test_a_shipped_architecture_has_no_digest_of_its_graph(word: str):
    known = ARCHITECTURES[word]
    cell = Cell(DATA, word, known.default_normalization, known.width or 8, known.depth or 2, RECIPE)
    assert build_network(cell).training is False
    with pytest.raises(ValueError, match=f"{word} ships with the package and has no digest"):
        build_network(dataclasses.replace(cell, graph="0" * 64))


def test_a_shipped_architecture_reads_no_token_ids():
    cell = Cell(dataclasses.replace(DATA, shape=(36,)), "mlp", "none", 8, 2, RECIPE)
    with pytest.raises(ValueError, match="mlp reads images, and toy holds token ids"):
        build_network(cell)


def test_only_shipped_forward_passes_are_known():
    traits = ("stackable", "recordable", "holds_weights", "rounds_images")
    for word, known in ARCHITECTURES.items():
        assert all(getattr(known, trait) for trait in traits), word
        assert not known.draws
    unknown = find_architecture("some:where")
    assert not any(getattr(unknown, trait) for trait in traits)
    assert unknown.draws


def test_defaults_of_a_shipped_architecture_are_its_first_normalization_and_published_size():
    found = find_architecture("resnet20").describe(DATA, Factors(), never)
    assert found == {"architecture": "resnet20", "normalization": "batch", "width": 1, "depth": 20}
    mlp = find_architecture("mlp")
    assert mlp.describe(DATA, Factors(8, 2), never)["normalization"] == "none"
    with pytest.raises(ValueError, match="an mlp needs its width, the neurons of a hidden layer: give --width N"):
        mlp.describe(DATA, Factors(depth=2), never)
    with pytest.raises(ValueError, match="an mlp needs its depth, the number of hidden layers: give --depth N"):
        mlp.describe_grid(DATA, [8], [], "", never)


def test_a_grid_has_every_width_and_depth_once_and_fixed_depths_are_not_varied():
    mlp, vgg = find_architecture("mlp"), find_architecture("vgg11")
    grid = mlp.describe_grid(DATA, [8, 4, 8], [1, 2], "batch", never)
    assert [(each["width"], each["depth"]) for each in grid] == [(8, 1), (8, 2), (4, 1), (4, 2)]
    assert [each["depth"] for each in vgg.describe_grid(DATA, [2], [1, 2], "none", never)] == [11]
    assert [each["width"] for each in vgg.describe_grid(DATA, [], [], "none", never)] == [1]


def test_a_user_defined_network_is_described_by_its_defaults_and_what_is_found_in_it(module: str):
    found = find_architecture(f"{module}:build").describe(DATA, Factors(), seven)
    assert (found["width"], found["depth"], found["normalization"]) == (5, 7, "none")
    deep = find_architecture(f"{module}:deep")
    with pytest.raises(ValueError, match="takes a depth, and has no positive whole number for its default: give one"):
        deep.describe(DATA, Factors(), never)
    assert deep.describe(DATA, Factors(depth=3), never)["normalization"] == "batch"
    plain = deep.describe(DATA, Factors(depth=3, normalization="none"), never)
    assert (plain["depth"], plain["normalization"]) == (3, "none")
    assert plain["graph"] != deep.describe(DATA, Factors(depth=2, normalization="none"), never)["graph"]
    with pytest.raises(ValueError, match="takes no width: let it have an argument of that name"):
        deep.describe_grid(DATA, [4], [2], "", never)
    with pytest.raises(ValueError, match="has no function missing"):
        find_architecture(f"{module}:missing").describe(DATA, Factors(), never)


def test_cells_of_a_grid_build_the_networks_that_were_described(module: str):
    for fields in find_architecture(f"{module}:build").describe_grid(DATA, [3, 6], [], "", seven):
        cell = Cell(DATA, recipe=RECIPE, **fields)
        assert build_network(cell)[1].out_features == cell.width
        digests = {weights_digest(draw_state(cell, stream("initialization", seed))) for seed in (0, 0, 1)}
        assert len(digests) == 2


def test_a_module_that_raises_is_told_by_its_kind_and_first_line(module: str, tmp_path: Path):
    (tmp_path / f"{module}.py").write_text("raise KeyError('lost\\nand more')")
    with pytest.raises(UserCodeError, match=r"--network .*:build: importing it raised KeyError: 'lost"):
        find_architecture(f"{module}:build").describe(DATA, Factors(), never)


def test_science_leaves_pythons_path_alone():
    root = Path(__file__).parents[4] / "tasks" / "science"
    touching: list[str] = [str(path) for path in root.rglob("*.py") if re.search(r"\bsys\.path\b", path.read_text())]
    assert touching == []


def test_drawing_leaves_torchs_random_numbers_as_they_were(module: str):
    cell = user_cell(f"{module}:build")
    build_network(cell)
    before = torch.get_rng_state()
    build_network(cell)
    assert torch.equal(torch.get_rng_state(), before)
