"""Statistics predicted from the endpoints alone against those measured on the interpolated network."""

from __future__ import annotations

import dataclasses

from flows.presets.grids import IMAGENET, VGG_RECIPES, mlp_depth
from flows.presets.preset import Grid, Preset
from flows.presets.sizes import smoke

_GRIDS = (
    mlp_depth(2, 6, 11, 16, 21, 26, 31, 36, 41),
    Grid(("cifar10",), (("vgg11", "none"),), (1,), VGG_RECIPES),
    dataclasses.replace(IMAGENET[1], networks=(("wide-resnet50-2", "batch"),)),
)

PRESET = Preset(
    name="closed-vs-forward",
    question="How far is a correction from the endpoints' moments alone behind one that looks at the merged network?",
    figure="resnet50x2_closed_vs_forward, resnet50x2_closed_layer27",
    grids=_GRIDS,
    n_seeds=5,
    corrections=("none", "repair", "repair-closed-form"),
    sizes={"smoke": smoke(_GRIDS)},
    ran="at --size smoke, on a stand-in",
)
