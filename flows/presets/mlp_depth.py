"""Barrier against depth for MLPs of width 128, trained with BatchNorm that is folded before they are aligned."""

from __future__ import annotations

from flows.presets.grids import mlp_depth
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset, Size
from flows.presets.sizes import smoke

_GRID = mlp_depth(2, 6, 11, 16, 21, 26, 31, 36, 41, 46, 51)

PRESET = Preset(
    name="mlp-depth",
    question="How does the barrier of BatchNorm-trained, folded MLPs of width 128 grow with depth?",
    figure="mlp_50layer, mlp_50layer_forward, mlp_layerwise",
    grids=(_GRID,),
    n_seeds=5,
    corrections=("none", "repair", "repair-closed-form"),
    sizes={
        "smoke": smoke([_GRID], n_seeds=3),
        "paper": Size((mlp_depth(*range(2, 52)),), 5, DEFAULT_MEASUREMENT),
    },
    ran="five depths on Fashion-MNIST, with its whole recipe; else at --size smoke",
)
