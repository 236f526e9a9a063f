"""Barrier of ResNet20 with BatchNorm against width on four data sets."""

from __future__ import annotations

from flows.presets.grids import R20_DATASETS
from flows.presets.preset import Preset
from flows.presets.sizes import small, smoke

PRESET = Preset(
    name="r20-datasets",
    question="How does the barrier of ResNet20 with BatchNorm fall with width on four data sets?",
    figure="resnet20_datasets2",
    grids=R20_DATASETS,
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    sizes={"smoke": smoke(R20_DATASETS), "small": small(R20_DATASETS[:1], widths=(1, 2))},
    ran="at --size smoke, on a stand-in",
)
