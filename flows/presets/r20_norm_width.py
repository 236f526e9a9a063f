"""Barrier of ResNet20 against width under BatchNorm, LayerNorm and Fixup: the ablation of the paper."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.grids import R20_WIDTH
from flows.presets.preset import Preset
from flows.presets.sizes import small, smoke

PRESET = Preset(
    name="r20-norm-width",
    question="How does the barrier of ResNet20 fall with width under BatchNorm, LayerNorm and Fixup?",
    figure="cifar10_resnet20_barrier2, cifar10_resnet20_testloss",
    grids=R20_WIDTH,
    n_seeds=5,
    extras=Extras(ensembles=True),
    corrections=("none", "repair", "reset"),
    sizes={"smoke": smoke(R20_WIDTH), "small": small(R20_WIDTH)},
    ran="at --size smoke, on a stand-in",
)
