from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from flows.options import StudyOptions
from flows.presets import PRESETS
from tasks.data.datasets import DATASETS
from tasks.science.networks import ARCHITECTURES
from tasks.science.specs.data import DataSpec
from tasks.science.specs.recipes import RECIPES
from tasks.science.specs.request import Request
from tasks.science.training.training import check_trainable


def describe(name: str) -> DataSpec:
    known = DATASETS[name]
    return DataSpec(name, name, known.n_train, known.n_test, known.n_classes, known.shape, halves=known.halves)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_study_makes_a_request_as_it_comes(name: str):
    preset = PRESETS[name]
    request = StudyOptions(study=name).resolve(describe)
    assert preset.name == name
    wanted = {
        (data, architecture, normalization, width, depth)
        for grid in preset.grids
        for data in grid.datasets
        for architecture, normalization in grid.networks
        for width in grid.widths
        for depth in (grid.depths if architecture == "mlp" else [ARCHITECTURES[architecture].depth])
    }
    assert {(c.data.name, c.architecture, c.normalization, c.width, c.depth) for c in request.cells} == wanted
    assert len(request.seeds) == preset.n_seeds
    assert set(request.swept) == {*preset.sweep, *preset.times}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, preset in PRESETS.items() for size in preset.sizes])
def test_every_size_of_a_study_is_a_study_of_its_networks(name: str, size: str):
    own, other = (StudyOptions(study=name, size=word).resolve(describe) for word in (None, size))
    assert other.study == own.study
    assert {(c.architecture, c.normalization) for c in other.cells} <= {
        (c.architecture, c.normalization) for c in own.cells
    }
    if size != "paper":
        assert len(other.cells) <= len(own.cells)
        assert not {c.id for c in other.cells} & {c.id for c in own.cells} or size == "small"
    if size == "smoke":
        assert {c.data.name for c in other.cells} <= {"fashion_mnist_5k", "fashion_mnist_5k_split", "digits32"}
        assert all(c.recipe.name.endswith("/smoke") for c in other.cells)
    for cell in other.cells:
        check_trainable(cell.recipe, "cpu") if size != "paper" else None


def test_every_figure_of_the_paper_has_its_study():
    drawn = {figure.strip() for preset in PRESETS.values() for figure in preset.figure.split(",")}
    assert {
        "relative_twtr2", "cifar10_resnet20_barrier2", "cifar10_resnet20_layernorm_vsrebasin", "resnet20_bnln_curves2",
        "resnet20_datasets2", "mlp_datasets2", "mlp_50layer", "vgg_cifar_barrier2", "vgg_twtr2", "resnet18_barrier2",
        "acc_vs_barrier", "layerwise_allthree", "resnet50_repair", "resnet50x2_closed_vs_forward",
        "cifar100_split_training3",
    } <= drawn  # fmt: skip
    headline = {"width", "depth", "normalization"}
    assert {PRESETS[name].n_seeds for name in headline} == {8}
    assert all(preset.n_seeds >= 5 for preset in PRESETS.values() if preset.figure)


def test_a_study_over_the_endpoints_of_others_trains_none_of_its_own():
    def cells(name: str) -> set[str]:
        return {cell.id for cell in StudyOptions(study=name).resolve(describe).cells}

    assert cells("acc-vs-barrier") == cells("r20-norm-width") | cells("vgg-depth") | cells("r18-cifar")
    assert cells("r20-curves") <= cells("r20-norm-width")
    assert cells("r20-ln-width") <= cells("r20-norm-width") <= cells("summary-reduction")


def test_a_size_that_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="mlp-width has no size 'huge'; known: smoke, small"):
        StudyOptions(study="mlp-width", size="huge").resolve(describe)
    with pytest.raises(ValueError, match="digits-depth has no size 'small'"):
        StudyOptions(study="digits-depth", size="small").resolve(describe)
    assert StudyOptions(study="mlp-width", size="paper").resolve(describe) == StudyOptions(study="mlp-width").resolve(
        describe
    )


def test_a_sweep_crosses_fields_of_recipes_and_of_measurements():
    request = StudyOptions(
        study="digits-depth", depth=[2], sweep={"learning_rate": [0.01, 0.02], "optimizer": ["sgd", "adam"],
        "statistics": [100, None]},
    ).resolve(describe)  # fmt: skip
    assert {(cell.recipe.learning_rate, cell.recipe.optimizer) for cell in request.cells} == {
        (rate, optimizer) for rate in (0.01, 0.02) for optimizer in ("sgd", "adam")
    }
    assert [measurement.statistics for measurement in request.measurements] == [100, None]
    assert request.swept == ("learning_rate", "optimizer", "statistics")
    plain = StudyOptions(study="digits-depth", depth=[2]).resolve(describe)
    assert plain.cells[0].id in {cell.id for cell in request.cells}


def test_a_sweep_of_epochs_gives_a_cell_for_every_checkpoint():
    request = StudyOptions(
        study="digits-depth", depth=[2], epochs=20, sweep={"epoch": [0, 1, 20, "last"], "learning_rate": [0.01, 0.02]}
    ).resolve(describe)
    assert [(cell.epoch, cell.recipe.learning_rate) for cell in request.cells] == [
        (0, 0.01), (1, 0.01), (None, 0.01), (0, 0.02), (1, 0.02), (None, 0.02),
    ]  # fmt: skip
    assert request.swept == ("epoch", "learning_rate")
    plain = StudyOptions(study="digits-depth", depth=[2], epochs=20).resolve(describe)
    assert plain.cells[0] == request.cells[2]
    assert Request.from_fields(dataclasses.asdict(request)) == request


def test_a_size_may_have_matchers_of_its_own():
    preset = PRESETS["imagenet-curves"]
    assert preset.resized("smoke").matchers == ("none", "activation")
    assert preset.resized(None).matchers == ("none", "activation", "weight")
    assert PRESETS["r20-ln-width"].resized("smoke").matchers == PRESETS["r20-ln-width"].matchers


def test_a_studys_own_epochs_are_those_that_its_recipes_reach():
    def times(**options) -> dict[str, list]:
        found: dict[str, list] = {}
        for cell in StudyOptions(**options).resolve(describe).cells:
            found.setdefault(cell.architecture, []).append(cell.epoch if cell.spawn is None else cell.spawn)
        return found

    over_training = {"study": "barrier-over-training"}
    assert times(**over_training) == {"resnet20": [0, 1, 2, 5, None], "mlp": [0, 1, 2, 5, 10, 20, 50, None]}
    assert times(**over_training, epochs=5) == {name: [0, 1, 2, None] for name in ("resnet20", "mlp")}
    assert times(**over_training, size="smoke") == {"resnet20": [0, 1, None], "mlp": [0, 1, 2, 5, None]}
    assert times(study="stability", size="smoke") == {
        "resnet20": [(0, 0), (0, 1)], "mlp": [(0, 0), (0, 1), (0, 2), (0, 5)],
    }  # fmt: skip
    with pytest.raises(ValueError, match="from 0 to 10, the epochs of recipe r20-short, or last, got 20"):
        times(**over_training, sweep={"epoch": [1, 20]})
    request = StudyOptions(study="stability").resolve(describe)
    assert Request.from_fields(dataclasses.asdict(request)) == request


def test_an_option_takes_the_place_of_a_studys_own_sweep():
    request = StudyOptions(study="calibration-size", statistics=500).resolve(describe)
    assert {measurement.statistics for measurement in request.measurements} == {500}
    assert request.swept == ("augmented",)
    assert len(StudyOptions(study="calibration-size").resolve(describe).measurements) == 12


def test_a_data_set_of_the_studys_own_keeps_its_recipe_and_another_takes_the_first():
    recipes = {
        name: StudyOptions(study="r20-datasets", dataset=[name], width=[1]).resolve(describe).cells[0].recipe
        for name in ("cifar10", "svhn", "cifar100")
    }
    assert recipes["cifar100"] == recipes["cifar10"]
    assert (recipes["svhn"].flip, recipes["svhn"].cutout) == (False, 0)
    assert recipes["cifar10"].flip


def test_options_replace_what_they_name_and_only_that():
    request = StudyOptions(
        study="mlp-width", dataset=["mnist", "digits"], width=[8, 16, 8], seeds=2, epochs=3, alphas=5
    ).resolve(describe)
    assert {(cell.data.name, cell.width, cell.depth) for cell in request.cells} == {
        (data, width, 11) for data in ("mnist", "digits") for width in (8, 16)
    }
    assert {cell.recipe.name for cell in request.cells} == {"mlp/epochs=3"}
    assert [m.name for m in request.measurements] == ["default/alphas=5"]
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
    assert request.measurements[0].name.endswith("statistics=10,draw=2")
    with pytest.raises(ValueError, match=r"normalization and data set; it has vgg11 with none"):
        StudyOptions(study="networks-smoke", architecture=["vgg11"], normalization=["layer"]).resolve(describe)


def test_table_1_is_the_published_recipe():
    (cell,) = StudyOptions(study="mlp-width", dataset=["mnist"], width=[32], recipe="table1").resolve(describe).cells
    assert (cell.recipe.learning_rate, cell.recipe.batch_size, cell.recipe.epochs) == (0.2, 2000, 100)
    assert (cell.recipe.translate, cell.recipe.weight_decay, cell.recipe.momentum) == (4, 0, 0.9)


def test_precision_replaces_the_recipes_own_and_is_told():
    request = StudyOptions(study="mlp-width", dataset=["mnist"], width=[32], precision="bfloat16").resolve(describe)
    assert [(cell.recipe.precision, cell.recipe.name) for cell in request.cells] == [
        ("bfloat16", "mlp/precision=bfloat16")
    ]


def test_the_studies_of_mlps_have_table_1_beside_what_made_the_saved_points():
    for name, words in (("mlp-width", ("mlp", "table1", "table1-skip")), ("mlp-depth", ("mlp-batch", "table1"))):
        assert PRESETS[name].recipes == words
        assert PRESETS[name].grids[0].recipes["table1"] is RECIPES["mlp"]["table1"].recipe
    skipping = PRESETS["mlp-width"].grids[0].recipes["table1-skip"]
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
        ({"study": "nope"}, "there is no study 'nope'; known: digits-depth, width, "),
        ({"study": "mlp-width", "recipe": "r"}, "mlp-width has no recipe 'r'; known: mlp, table1"),
        ({"study": "mlp-width", "width": [-3]}, "width must be at least 1, got -3"),
        ({"study": "mlp-width", "alphas": 10}, "must be odd and at least 3"),
        ({"study": "mlp-width", "seeds": 1}, "seeds must be at least 2"),
        (
            {"study": "mlp-width", "precision": "half"},
            "precision must be float32, bfloat16 or float16, got 'half'",
        ),
        ({"study": "mlp-width", "epochs": 0}, "epochs must be at least 1, got 0"),
        ({"study": "mlp-width", "sweep": {"speed": [1]}}, "no field 'speed' to sweep; known, of recipes: batch_size, "),
        ({"study": "mlp-width", "sweep": {"speed": [1]}}, "draw, augmented, flip_averaged, evaluated_in; and epoch"),
        (
            {"study": "mlp-width", "sweep": {"epoch": [1, 101]}},
            "epoch must be a whole number from 0 to 100, the epochs of recipe mlp, or last, got 101",
        ),
        ({"study": "mlp-width", "sweep": {"epoch": ["lost"]}}, "or last, got 'lost'"),
        ({"study": "mlp-width", "sweep": {"epoch": [-1]}}, "or last, got -1"),
        ({"study": "mlp-width", "sweep": {"epoch": []}}, "a sweep of epoch needs at least one value"),
        ({"study": "stability", "sweep": {"epoch": [5]}}, "have checkpoints after it alone, got epoch 5"),
        ({"study": "mlp-width", "sweep": {"width": [1]}}, "width has an option of its own: --width"),
        ({"study": "mlp-width", "sweep": {"epochs": []}}, "a sweep of epochs needs at least one value"),
        ({"study": "mlp-width", "sweep": {"epochs": [1, -1]}}, "epochs must be a positive whole number, got -1"),
        (
            {"study": "digits-depth", "sweep": {"batch_size": list(range(1, 200_000))}},
            "at most 10000 combinations of values, got 199999",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(options: dict, text: str):
    with pytest.raises(ValueError, match=text):
        StudyOptions(**options).resolve(describe)


def test_a_reading_that_was_not_published_is_refused_before_anything_runs():
    preset = replace(PRESETS["networks-smoke"], matchers=("none", "activation/reading=published"))
    known = [grid for grid in preset.grids if grid.networks[0] in (("resnet20", "batch"), ("resnet18", "batch"))]
    with pytest.raises(ValueError, match="reading=published is for ResNet20 with BatchNorm and ResNet18 for small"):
        preset.request(describe)
    request = replace(preset, grids=tuple(known)).request(describe)
    assert request.matchers == ("none", "activation/reading=published")
