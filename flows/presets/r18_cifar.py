"""The whole path of ResNet18 on CIFAR-10, at 101 alphas."""

from __future__ import annotations

from flows.presets.grids import R18_CIFAR
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset
from flows.presets.sizes import small, smoke
from tasks.science.specs.overrides import override

PRESET = Preset(
    name="r18-cifar",
    question="How much of the barrier of ResNet18 is left once its statistics are estimated anew?",
    figure="resnet18_barrier2, resnet18_stats",
    grids=(R18_CIFAR,),
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    measurement=override(DEFAULT_MEASUREMENT, alphas=101),
    sizes={"smoke": smoke([R18_CIFAR]), "small": small([R18_CIFAR])},
    ran="at --size smoke, on a stand-in",
)
