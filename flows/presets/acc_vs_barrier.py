"""Barrier against the error of the endpoints, over ResNet20, VGG and ResNet18: shares their endpoints."""

from __future__ import annotations

from flows.presets.grids import R18_CIFAR, R20_WIDTH, VGG_DEPTH
from flows.presets.preset import Preset
from flows.presets.sizes import smoke

_GRIDS = (*R20_WIDTH, VGG_DEPTH, R18_CIFAR)

PRESET = Preset(
    name="acc-vs-barrier",
    question="Do networks of smaller error have smaller barriers?",
    figure="acc_vs_barrier",
    grids=_GRIDS,
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    sizes={"smoke": smoke(_GRIDS)},
    ran="at --size smoke, on a stand-in",
)
