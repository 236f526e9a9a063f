"""ResNet20 with BatchNorm and LayerNorm on a short recipe: the normalization ablation at the size of a laptop."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from tasks.science.specs.overrides import override
from tasks.science.specs.recipe import Recipe
from tasks.science.specs.recipes import R20_SHORT, R20_SHORT_LAYER


def _grid(normalization: str, recipe: Recipe) -> Grid:
    return Grid(("fashion_mnist",), (("resnet20", normalization),), (1,), {"r20-short": recipe})


PRESET = Preset(
    name="r20-norm-short",
    question="How much of the aligned barrier of ResNet20 does a correction remove under BatchNorm and LayerNorm?",
    grids=(_grid("batch", R20_SHORT), _grid("layer", R20_SHORT_LAYER)),
    n_seeds=4,
    extras=Extras(controls=False),
    measurement=override(DEFAULT_MEASUREMENT, alphas=3, statistics=5_000, evaluation=10_000),
    ran="whole, on its data",
)
