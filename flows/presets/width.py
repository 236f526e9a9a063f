"""Barrier against width with the spread over eight seeds: ResNet20 with BatchNorm, and MLPs without a norm."""

from __future__ import annotations

import dataclasses

from flows.declaration import Extras
from flows.presets.grids import MLP_WIDTH, r20
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset, Size
from flows.presets.sizes import smoke

_GRIDS = (r20("batch", 1, 2, 4, 8, 16), dataclasses.replace(MLP_WIDTH[0], datasets=("fashion_mnist",)))

_SMALL = (dataclasses.replace(_GRIDS[1], widths=(32, 64, 128, 256)),)

PRESET = Preset(
    name="width",
    question="How does the barrier depend on width?",
    grids=_GRIDS,
    n_seeds=8,
    extras=Extras(ensembles=True),
    sizes={"smoke": smoke(_GRIDS), "small": Size(_SMALL, 8, DEFAULT_MEASUREMENT)},
    ran="at --size smoke, on a stand-in",
)
