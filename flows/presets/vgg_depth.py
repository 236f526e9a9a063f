"""Barrier of VGG against depth, with BatchNorm and without a norm."""

from __future__ import annotations

from flows.presets.grids import VGG_DEPTH
from flows.presets.preset import Preset
from flows.presets.sizes import small, smoke

PRESET = Preset(
    name="vgg-depth",
    question="How does the barrier of VGG grow with depth, with BatchNorm and without a norm?",
    figure="vgg_cifar_barrier2, vgg_cifar_loss_barrier, vgg_layerwise",
    grids=(VGG_DEPTH,),
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    sizes={"smoke": smoke([VGG_DEPTH]), "small": small([VGG_DEPTH])},
    ran="at --size smoke, on a stand-in",
)
