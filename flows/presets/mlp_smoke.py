"""Every normalization of an MLP under every matcher and correction, on few images: shows that they run."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.matchers import MATCHERS
from tasks.science.specs.overrides import override
from tasks.science.specs.recipes import DIGITS

_GRID = Grid(
    ("digits",), (("mlp", "none"), ("mlp", "batch"), ("mlp", "batch-fused")), (32,),
    {"digits": override(DIGITS, epochs=10)}, (4,),
)  # fmt: skip

PRESET = Preset(
    name="mlp-smoke",
    question="Does an MLP train, align, and take a correction under every normalization?",
    grids=(_GRID,),
    n_seeds=3,
    extras=Extras(controls=False),
    matchers=tuple(MATCHERS),
    corrections=tuple(name for name, row in CORRECTIONS.items() if not row.blocks),
    measurement=override(DEFAULT_MEASUREMENT, alphas=3, statistics=500),
    ran="whole, on its data",
)
