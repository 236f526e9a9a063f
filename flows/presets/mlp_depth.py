"""Barrier against depth for MLPs of width 128, trained with BatchNorm that is folded before they are aligned."""

from __future__ import annotations

from flows.presets.preset import Preset
from tasks.science.recipes import MLP_BATCH, TABLE1_MLP

PRESET = Preset(
    name="mlp-depth",
    question="How does the barrier of BatchNorm-trained, folded MLPs of width 128 grow with depth?",
    datasets=("mnist",),
    widths=(128,),
    depths=(2, 6, 11, 16, 21, 26, 31, 36, 41, 46, 51),
    n_seeds=4,
    recipes={"mlp-batch": MLP_BATCH, "table1": TABLE1_MLP},
    networks=(("mlp", "batch-fused"),),
)
