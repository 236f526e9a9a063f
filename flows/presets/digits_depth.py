"""Barrier against depth on scikit-learn's digits: small enough for a laptop, deep enough for variance to collapse."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.preset import Grid, Preset
from tasks.science.specs.recipes import DIGITS

PRESET = Preset(
    name="digits-depth",
    question="How does the barrier of MLPs of width 128 grow with depth, and how much of it does REPAIR remove?",
    grids=(Grid(("digits",), (("mlp", "none"),), (128,), {"digits": DIGITS}, (4, 8, 12, 16)),),
    n_seeds=4,
    extras=Extras(controls=False),
    ran="whole, on its data",
)
