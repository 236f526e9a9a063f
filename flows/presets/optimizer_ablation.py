"""ResNet20 of width 2 trained by SGD and by Adam."""

from __future__ import annotations

import dataclasses

from flows.presets.preset import Grid, Preset
from flows.presets.sizes import small, smoke
from tasks.science.specs.recipes import RECIPES

_KNOWN = RECIPES["resnet20-batch"]

_GRIDS = tuple(
    Grid(("cifar10",), (("resnet20", "batch"),), (2,), {word: _KNOWN[word].recipe}) for word in ("r20-demo", "r20-adam")
)

_SMOKE = smoke(_GRIDS)

# At their smoke size all networks take Adam: here one must not.
_BY_SGD = dataclasses.replace(
    _SMOKE.grids[0],
    recipes={
        word: dataclasses.replace(recipe, optimizer="sgd", learning_rate=0.05)
        for word, recipe in _SMOKE.grids[0].recipes.items()
    },
)

PRESET = Preset(
    name="optimizer-ablation",
    question="Does it matter to the barrier which optimizer found the endpoints?",
    figure="none: a demonstration of the authors' code",
    grids=_GRIDS,
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    sizes={"smoke": dataclasses.replace(_SMOKE, grids=(_BY_SGD, *_SMOKE.grids[1:])), "small": small(_GRIDS)},
    ran="at --size smoke, on a stand-in",
)
