"""Barrier against depth with the spread over eight seeds: VGG with BatchNorm, and MLPs whose BatchNorm is folded."""

from __future__ import annotations

import dataclasses

from flows.declaration import Extras
from flows.presets.grids import VGG_DEPTH, mlp_depth
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset, Size
from flows.presets.sizes import smoke

_GRIDS = (
    dataclasses.replace(VGG_DEPTH, networks=tuple(n for n in VGG_DEPTH.networks if n[1] == "batch")),
    dataclasses.replace(mlp_depth(2, 6, 11, 16, 21, 26, 31), datasets=("fashion_mnist",)),
)

_SMALL = (dataclasses.replace(_GRIDS[1], depths=(2, 6, 11, 21, 31)),)

PRESET = Preset(
    name="depth",
    question="How does the barrier depend on depth?",
    grids=_GRIDS,
    n_seeds=8,
    extras=Extras(ensembles=True),
    sizes={"smoke": smoke(_GRIDS), "small": Size(_SMALL, 8, DEFAULT_MEASUREMENT)},
    ran="at --size smoke, on a stand-in",
)
