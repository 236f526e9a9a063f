"""The whole path of VGG11 of width 2 without a norm, at 25 alphas."""

from __future__ import annotations

from flows.presets.grids import VGG_RECIPES
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from flows.presets.sizes import smoke
from tasks.science.specs.overrides import override

_GRID = Grid(
    ("cifar10",), (("vgg11", "none"),), (2,),
    {"vgg-demo": VGG_RECIPES["vgg-demo"], "table1": VGG_RECIPES["table1"]},
)  # fmt: skip

PRESET = Preset(
    name="vgg11-curve",
    question="What does the error of VGG11 without a norm do along the path?",
    figure="vgg_twtr2",
    grids=(_GRID,),
    n_seeds=5,
    measurement=override(DEFAULT_MEASUREMENT, alphas=25),
    corrections=("none", "repair", "repair-closed-form"),
    sizes={"smoke": smoke([_GRID])},
    ran="at --size smoke, on a stand-in",
)
