from __future__ import annotations

from dataclasses import replace

import pytest

from flows.options import StudyOptions
from flows.presets import PRESETS
from tasks.datasets import DATASETS
from tasks.science.recipes import RECIPES
from tasks.science.specs import DataSpec, Recipe


def describe(name: str) -> DataSpec:
    known = DATASETS[name]
    return DataSpec(name, "f", known.n_train, known.n_test, known.n_classes, known.shape)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_study_makes_a_request_as_it_comes(name: str):
    preset = PRESETS[name]
    request = StudyOptions(study=name).resolve(describe)
    assert preset.name == name
    n_depths = {architecture: len(preset.depths) if architecture == "mlp" else 1 for architecture, _ in preset.networks}
    per_size = sum(n_depths[architecture] for architecture, _ in preset.networks)
    assert len(request.cells) == len(preset.datasets) * len(preset.widths) * per_size
    assert len(request.seeds) == preset.n_seeds
    for word, recipe in preset.recipes.items():
        for each in [recipe] if isinstance(recipe, Recipe) else recipe.values():
            assert each.name.split("/")[0] == word


def test_options_replace_what_they_name_and_only_that():
    request = StudyOptions(
        study="mlp-width", dataset=["mnist", "digits"], width=[8, 16, 8], seeds=2, epochs=3, alphas=5
    ).resolve(describe)
    assert {(cell.data.name, cell.width, cell.depth) for cell in request.cells} == {
        (data, width, 11) for data in ("mnist", "digits") for width in (8, 16)
    }
    assert {cell.recipe.name for cell in request.cells} == {"mlp/epochs=3"}
    assert request.measurement.name == "default/alphas=5"
    assert request.seeds == (0, 1)


def test_networks_matchers_and_corrections_are_chosen_among_those_there_are():
    request = StudyOptions(
        study="networks-smoke", architecture=["resnet20", "vgg11"], normalization=["batch"],
        matcher=["weight/restarts=3", "activation"], correction=["repair"], statistics=10, draw=2,
    ).resolve(describe)  # fmt: skip
    assert {(cell.architecture, cell.normalization) for cell in request.cells} == {
        ("resnet20", "batch"), ("vgg11", "batch")
    }  # fmt: skip
    assert request.matchers == ("weight", "activation")
    assert request.corrections == ("repair",)
    assert request.measurement.name.endswith("statistics=10,draw=2")
    with pytest.raises(ValueError, match=r"no network of that architecture and normalization; it has vgg11 with none"):
        StudyOptions(study="networks-smoke", architecture=["vgg11"], normalization=["layer"]).resolve(describe)


def test_table_1_is_the_published_recipe():
    (cell,) = StudyOptions(study="mlp-width", width=[32], recipe="table1").resolve(describe).cells
    assert (cell.recipe.learning_rate, cell.recipe.batch_size, cell.recipe.epochs) == (0.2, 2000, 100)
    assert (cell.recipe.translate, cell.recipe.weight_decay, cell.recipe.momentum) == (4, 0, 0.9)


def test_precision_replaces_the_recipes_own_and_is_told():
    request = StudyOptions(study="mlp-width", width=[32], precision="bfloat16").resolve(describe)
    assert [(cell.recipe.precision, cell.recipe.name) for cell in request.cells] == [
        ("bfloat16", "mlp/precision=bfloat16")
    ]


def test_the_studies_of_mlps_have_table_1_beside_what_made_the_saved_points():
    for name, words in (("mlp-width", ["mlp", "table1", "table1-skip"]), ("mlp-depth", ["mlp-batch", "table1"])):
        assert list(PRESETS[name].recipes) == words
        assert PRESETS[name].recipes["table1"] is RECIPES["mlp"]["table1"].recipe
    skipping = PRESETS["mlp-width"].recipes["table1-skip"]
    assert isinstance(skipping, Recipe)
    assert replace(skipping, skip_nonfinite=False, name="table1") == RECIPES["mlp"]["table1"].recipe


def test_digits_depth_is_what_it_says():
    request = StudyOptions(study="digits-depth").resolve(describe)
    assert [cell.depth for cell in request.cells] == [4, 8, 12, 16]
    assert {cell.width for cell in request.cells} == {128}
    recipe = request.cells[0].recipe
    assert (recipe.learning_rate, recipe.batch_size, recipe.epochs, recipe.warmup) == (0.01, 128, 60, 0.05)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"study": "nope"}, "there is no study 'nope'; known: digits-depth, mlp-width, "),
        ({"study": "mlp-width", "recipe": "r"}, "mlp-width has no recipe 'r'; known: mlp, table1"),
        ({"study": "mlp-width", "width": [-3]}, "width must be a positive whole number, got -3"),
        ({"study": "mlp-width", "alphas": 10}, "must be odd and at least 3"),
        ({"study": "mlp-width", "seeds": 1}, "seeds must be at least 2"),
        (
            {"study": "mlp-width", "precision": "half"},
            "precision must be one of float32, bfloat16, float16",
        ),
        ({"study": "mlp-width", "epochs": 0}, "epochs must be a positive whole number, got 0"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(options: dict, text: str):
    with pytest.raises(ValueError, match=text):
        StudyOptions(**options).resolve(describe)


def test_a_reading_that_was_not_published_is_refused_before_anything_runs():
    preset = replace(PRESETS["networks-smoke"], matchers=("none", "activation/reading=published"))
    with pytest.raises(ValueError, match="reading=published is for ResNet20 with BatchNorm and ResNet18 for small"):
        preset.request(describe)
    request = replace(preset, networks=(("resnet20", "batch"), ("resnet18", "batch"))).request(describe)
    assert request.matchers == ("none", "activation/reading=published")
