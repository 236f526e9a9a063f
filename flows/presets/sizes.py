"""Sizes that studies share: one that shows that everything runs, and one for a laptop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Size
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe

SMOKE_MEASUREMENT = override(DEFAULT_MEASUREMENT, alphas=3, statistics=100, evaluation=50)

SMALL_MEASUREMENT = override(DEFAULT_MEASUREMENT, alphas=5, statistics=5_000, evaluation=10_000)

_SMALL_TRAINING = {"epochs": 10, "precision": "bfloat16", "skip_nonfinite": False, "cutout": 0}

_STILL = {
    "cutout": 0,
    "label_smoothing": 0.0,
    "skip_nonfinite": False,
    "resized_crop": 0,
    "decayed_norms": "all",
    "clip_norm": 0.0,
}

SMOKE_TRAINING: Mapping[str, Any] = _STILL | {
    "optimizer": "adam", "schedule": "linear", "learning_rate": 0.0005, "warmup": 0.1, "warmup_from": 0.0,
    "batch_size": 25, "epochs": 2, "weight_decay": 0.0, "precision": "bfloat16",
}  # fmt: skip
"""A few hundred steps at which convolutional networks with and without a norm leave chance."""

SMOKE_MLP_TRAINING = {"optimizer": "adam", "learning_rate": 0.002, "batch_size": 100, "epochs": 6}
"""The same for MLPs."""


def small(grids: Sequence[Grid], widths: Sequence[int] = (1,), n_seeds: int = 4) -> Size:
    """Return the networks of `grids` at these widths on Fashion-MNIST: hours on a laptop, and no verdict.

    They train for ten epochs in bfloat16; the learning rate of LayerNorm and Fixup rises over five of them.
    """
    reduced = [
        dataclasses.replace(
            grid,
            datasets=("fashion_mnist",),
            networks=(network,),
            widths=tuple(widths),
            recipes=_retrained(
                grid.recipes,
                {**_SMALL_TRAINING, "warmup": 0.1 if network[1] in ("none", "batch") else 0.5},
                "small",
            ),
        )
        for grid in grids
        for network in grid.networks
    ]
    distinct = [grid for position, grid in enumerate(reduced) if grid not in reduced[:position]]
    return Size(tuple(distinct), n_seeds, SMALL_MEASUREMENT)


def _retrained(recipes: Mapping[str, Recipe], changes: Mapping[str, Any], size: str) -> dict[str, Recipe]:
    """Return `recipes` with these fields changed, named by the size, since the fields are too many for a name."""
    return {
        word: dataclasses.replace(override(recipe, **changes), name=f"{recipe.name}/{size}")
        for word, recipe in recipes.items()
    }


_STOOD_FOR = ("vgg16", "vgg19", "wide-resnet50-2")


def smoke(grids: Sequence[Grid], n_seeds: int = 2, sweep: Mapping[str, tuple[Any, ...]] | None = None) -> Size:
    """Return every kind of network of `grids` at its smallest, on few images: shows that a study runs, no result.

    Data are 5,000 images of Fashion-MNIST, in halves where the study's are; for networks that take longer,
    scikit-learn's digits, enlarged. Of the VGGs the two smaller ones stand for all, and ResNet50 for its wide form.
    """
    small: list[Grid] = []
    for grid in grids:
        for network in grid.networks:
            reduced = _smoke_of(grid, network)
            if network[0] not in _STOOD_FOR and reduced not in small:
                small.append(reduced)
    return Size(tuple(small), n_seeds, SMOKE_MEASUREMENT, sweep)


def _smoke_of(grid: Grid, network: tuple[str, str]) -> Grid:
    architecture, normalization = network
    training: dict[str, Any] = dict(SMOKE_MLP_TRAINING if architecture == "mlp" else SMOKE_TRAINING)
    if normalization == "none":
        training["initialization"] = "he-normal"
    dataset = "fashion_mnist_5k"
    if grid.datasets == ("cifar100_split",):
        dataset = "fashion_mnist_5k_split"
    elif architecture not in ("mlp", "resnet20"):
        dataset = "digits32"
        training["epochs"] = 1  # Enough for all of them to leave chance.
    return dataclasses.replace(
        grid,
        datasets=(dataset,),
        networks=(network,),
        widths=grid.widths[:1] if architecture == "mlp" else (1,),
        depths=grid.depths[:2],
        recipes=_retrained(grid.recipes, training, "smoke"),
    )
