"""Every convolutional architecture and normalization, on few images: shows that they run, not what is true."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset
from tasks.science.networks import ARCHITECTURES
from tasks.science.specs.corrections import CORRECTIONS
from tasks.science.specs.overrides import override
from tasks.science.specs.recipes import SMOKE, SMOKE_FIXUP, SMOKE_LAYER, SMOKE_PLAIN

_RECIPES = {"none": SMOKE_PLAIN, "batch": SMOKE, "layer": SMOKE_LAYER, "fixup": SMOKE_FIXUP}

PRESET = Preset(
    name="networks-smoke",
    question="Does every network train, align, and take a correction?",
    grids=tuple(
        Grid(("digits32",), ((architecture, normalization),), (1,), {"smoke": _RECIPES[normalization]})
        for architecture, known in ARCHITECTURES.items()
        for normalization in known.normalizations
        if architecture != "mlp"
    ),
    n_seeds=2,
    extras=Extras(controls=False),
    corrections=tuple(CORRECTIONS),
    measurement=override(DEFAULT_MEASUREMENT, alphas=3, statistics=64, evaluation=64),
    ran="whole, on its data",
)
