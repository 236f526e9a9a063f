"""ResNet20 with LayerNorm against width, aligned by activations and by weights, its blocks corrected as well."""

from __future__ import annotations

from flows.presets.grids import r20
from flows.presets.preset import Preset
from flows.presets.sizes import small, smoke

_GRID = r20("layer", 1, 2, 4, 8, 16, 32)

PRESET = Preset(
    name="r20-ln-width",
    question="What do correcting the blocks as well, and aligning by weights alone, leave of the barrier of LayerNorm?",
    figure="cifar10_resnet20_layernorm_barriers, cifar10_resnet20_layernorm_vsrebasin",
    grids=(_GRID,),
    n_seeds=5,
    matchers=("none", "activation", "weight"),
    corrections=("none", "repair", "repair-block"),
    sizes={"smoke": smoke([_GRID]), "small": small([_GRID])},
    ran="at --size smoke, on a stand-in",
)
