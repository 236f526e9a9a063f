"""Networks trained on two halves of CIFAR-100 with other shares of its classes, merged."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.grids import R20_RECIPES
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from flows.presets.sizes import smoke
from tasks.science.specs.overrides import override

_GRID = Grid(("cifar100_split",), (("resnet20", "batch"),), (16,), R20_RECIPES["batch"])
"""A wide ResNet20 is our choice: the network of the saved points was not published."""

PRESET = Preset(
    name="cifar100-split",
    question="Can two networks that were trained on differently skewed halves of the data be merged into one for both?",
    figure="cifar100_split_training3",
    grids=(_GRID,),
    n_seeds=6,
    extras=Extras(ensembles=True, logit_shifts=True, joint_training=True),
    corrections=("none", "repair", "reset"),
    measurement=override(DEFAULT_MEASUREMENT, alphas=21),
    sizes={"smoke": smoke([_GRID], n_seeds=4)},
    ran="at --size smoke, on a stand-in",
)
