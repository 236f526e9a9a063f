"""The whole path of ResNet18, ResNet50 and its wide form on ImageNet, at 51 alphas."""

from __future__ import annotations

import dataclasses

from flows.declaration import Extras
from flows.presets.grids import IMAGENET
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset
from flows.presets.sizes import smoke
from tasks.science.specs.overrides import override

PRESET = Preset(
    name="imagenet-curves",
    question="How much of the barrier do RESET and REPAIR of the blocks remove on ImageNet?",
    figure="resnet50_repair, imagenet_3resnets2, imagenet_vsrebasin, resnet50_filters",
    grids=IMAGENET,
    n_seeds=5,
    extras=Extras(ensembles=True),
    matchers=("none", "activation", "weight"),
    corrections=("none", "repair", "reset", "repair-block"),
    measurement=override(DEFAULT_MEASUREMENT, alphas=51, statistics=5_000, evaluation=5_000, flip_averaged=True),
    # Matching ResNet50 by its weights takes a quarter of an hour when these are hardly trained.
    sizes={"smoke": dataclasses.replace(smoke(IMAGENET), matchers=("none", "activation"))},
    ran="at --size smoke, on enlarged digits; ImageNet itself was not run",
)
