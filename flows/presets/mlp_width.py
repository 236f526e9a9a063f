"""Barrier against width for MLPs of 11 hidden layers without normalization (REPAIR, the MLP data-set study)."""

from __future__ import annotations

from flows.presets.preset import Preset
from tasks.science.recipes import MLP, TABLE1_MLP, TABLE1_MLP_SKIP

PRESET = Preset(
    name="mlp-width",
    question="How does the barrier of MLPs of 11 hidden layers fall with width, and how much of it does REPAIR remove?",
    datasets=("fashion_mnist",),
    widths=(32, 64, 128, 256, 512, 1024, 2048),
    depths=(11,),
    n_seeds=4,
    recipes={"mlp": MLP, "table1": TABLE1_MLP, "table1-skip": TABLE1_MLP_SKIP},
)
