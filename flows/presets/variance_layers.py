"""The collapse of variance, layer by layer, in three kinds of networks."""

from __future__ import annotations

import dataclasses

from flows.presets.grids import IMAGENET, VGG_RECIPES, mlp_depth
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from flows.presets.sizes import smoke
from tasks.science.specs.overrides import override

_GRIDS = (
    mlp_depth(36),
    Grid(("cifar10",), (("vgg11", "none"),), (1,), VGG_RECIPES),
    dataclasses.replace(IMAGENET[1], networks=(("resnet50", "batch"),)),
)

PRESET = Preset(
    name="variance-layers",
    question="By how much does the variance of each layer collapse, and does REPAIR bring it back?",
    figure="layerwise_allthree, resnet50_layerwise",
    grids=_GRIDS,
    n_seeds=5,
    measurement=override(DEFAULT_MEASUREMENT, alphas=3),
    sizes={"smoke": smoke(_GRIDS)},
    ran="at --size smoke, on a stand-in",
)
