"""Barrier against width for MLPs of 11 hidden layers without normalization (REPAIR, the MLP data-set study)."""

from __future__ import annotations

import dataclasses

from flows.declaration import Extras
from flows.presets.grids import MLP_WIDTH
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset, Size
from flows.presets.sizes import smoke

_SMALL = (dataclasses.replace(MLP_WIDTH[0], datasets=("fashion_mnist",), widths=(32, 64, 128, 256)),)

PRESET = Preset(
    name="mlp-width",
    question="How does the barrier of MLPs of 11 hidden layers fall with width, and how much of it does REPAIR remove?",
    figure="mlp_datasets2",
    grids=MLP_WIDTH,
    n_seeds=5,
    extras=Extras(ensembles=True),
    sizes={"smoke": smoke(MLP_WIDTH, n_seeds=3), "small": Size(_SMALL, 4, DEFAULT_MEASUREMENT)},
    ran="widths 32 to 256 on Fashion-MNIST, with its whole recipe; else at --size smoke",
)
