from __future__ import annotations

import dataclasses

import pytest

from tasks.science.specs import recipes
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.recipes import FAMILIES, RECIPES

TABLE1 = {
    "mlp": (2000, 100, "linear", 0.2, 0.0, "translate"),
    "mlp-depth": (2000, 100, "linear", 0.2, 0.0, "translate"),
    "vgg": (500, 100, "cosine", 0.08, 5e-4, "flip translate"),
    "resnet20-batch": (500, 200, "cosine", 0.4, 1e-4, "flip translate cutout"),
    "resnet20-layer": (500, 200, "cosine", 0.4, 1e-4, "flip translate cutout"),
    "resnet20-fixup": (500, 200, "cosine", 0.4, 1e-4, "flip translate cutout"),
    "resnet20-mnist-svhn": (500, 200, "cosine", 0.4, 1e-4, "translate"),
    "imagenet": (512, 300, "linear", 0.5, 1e-4, "flip resized_crop"),
}
"""The paper's Table 1, written out again, so that a number cannot change on one side alone."""

CODE = {
    ("mlp-depth", "mlp-batch"): (2000, 50, 5, "linear", 0.05, 0.0, {}),
    ("mlp", "mlp-demo"): (1000, 50, 5, "linear", 0.05, 0.0, {}),
    ("vgg", "vgg-demo"): (500, 100, 5, "linear", 0.08, 5e-4, {"flip": True, "translate": 4}),
    ("resnet20-batch", "r20-saved"): (
        500, 250, 5, "cosine", 0.4, 1e-4, {"flip": True, "translate": 4, "cutout": 12, "warmup_from": 1e-6},
    ),
    ("resnet20-batch", "r20-demo"): (500, 100, 5, "linear", 0.4, 5e-4, {"flip": True, "translate": 4}),
    ("resnet20-layer", "r20-saved"): (
        100, 250, 5, "cosine", 0.1, 1e-4, {"flip": True, "translate": 4, "cutout": 12, "warmup_from": 1e-6},
    ),
    ("resnet20-batch", "r20-adam"): (
        500, 100, 5, "linear", 0.05, 0.0, {"flip": True, "translate": 4, "optimizer": "adam"},
    ),
    ("resnet18", "r18-demo"): (
        512, 200, 5, "linear", 0.4, 5e-4, {"flip": True, "translate": 4, "cutout": 16, "label_smoothing": 0.1},
    ),
    ("imagenet", "r18-imagenet"): (
        1024, 100, 2, "linear", 0.5, 5e-5, {"flip": True, "resized_crop": 192, "decayed_norms": "shortcuts"},
    ),
}  # fmt: skip
"""What the authors' code trains with, likewise."""


@pytest.mark.parametrize("family", list(TABLE1))
def test_table_1_has_the_papers_numbers(family: str):
    recipe = RECIPES[family]["table1"].recipe
    batch, epochs, schedule, rate, decay, augmentation = TABLE1[family]
    assert (recipe.batch_size, recipe.epochs, recipe.schedule, recipe.learning_rate) == (batch, epochs, schedule, rate)
    assert (recipe.weight_decay, recipe.momentum, recipe.optimizer) == (decay, 0.9, "sgd")
    seen = [name for name in ("flip", "translate", "cutout", "resized_crop") if getattr(recipe, name)]
    assert seen == augmentation.split()


@pytest.mark.parametrize("row", list(CODE), ids="/".join)
def test_the_codes_recipes_have_the_codes_numbers(row: tuple[str, str]):
    family, name = row
    batch, epochs, warmup_epochs, schedule, rate, decay, others = CODE[row]
    recipe = RECIPES[family][name].recipe
    expected = Recipe(
        name, batch, epochs, rate, warmup_epochs / epochs, weight_decay=decay, schedule=schedule, **others
    )
    scaler = {"precision": recipe.precision, "skip_nonfinite": recipe.skip_nonfinite}
    assert recipe == dataclasses.replace(expected, **scaler)


def test_only_the_families_of_our_own_and_resnet18_lack_table_1():
    assert [family for family in FAMILIES if "table1" not in RECIPES[family]] == ["small", "resnet18"]


def test_every_recipe_is_in_the_registry_under_its_name_with_its_source():
    registered = [(name, known) for family in RECIPES.values() for name, known in family.items()]
    assert all(name == known.recipe.name and known.source for name, known in registered)
    named = [value for value in vars(recipes).values() if isinstance(value, Recipe)]
    assert {id(known.recipe) for _, known in registered} == {id(recipe) for recipe in named}


def test_what_trains_in_float16_skips_as_its_gradient_scaler_does():
    for family in RECIPES.values():
        for known in family.values():
            assert known.recipe.precision != "float16" or known.recipe.skip_nonfinite
