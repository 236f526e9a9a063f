"""The whole path of ResNet20 of width 4 under BatchNorm and LayerNorm, at 25 alphas."""

from __future__ import annotations

from flows.presets.grids import r20
from flows.presets.preset import DEFAULT_MEASUREMENT, Preset
from flows.presets.sizes import small, smoke
from tasks.science.specs.overrides import override

_GRIDS = (r20("batch", 4), r20("layer", 4))

PRESET = Preset(
    name="r20-curves",
    question="What does the test loss do along the path, under BatchNorm and LayerNorm?",
    figure="resnet20_bnln_curves2",
    grids=_GRIDS,
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    measurement=override(DEFAULT_MEASUREMENT, alphas=25),
    sizes={"smoke": smoke(_GRIDS), "small": small(_GRIDS)},
    ran="at --size smoke, on a stand-in",
)
