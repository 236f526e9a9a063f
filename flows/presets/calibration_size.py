"""Number of statistics images that a correction needs, with and without augmentation."""

from __future__ import annotations

from flows.presets.grids import MLP_WIDTH
from flows.presets.preset import DEFAULT_MEASUREMENT, Grid, Preset, Size
from flows.presets.sizes import SMOKE_MEASUREMENT, smoke
from tasks.science.specs.overrides import override
from tasks.science.specs.recipes import R20_SHORT

_GRIDS = (
    Grid(("fashion_mnist",), (("mlp", "none"),), (128,), MLP_WIDTH[0].recipes, (11,)),
    Grid(("fashion_mnist",), (("resnet20", "batch"),), (1,), {"r20-short": R20_SHORT}),
)

SWEEP = {"statistics": (100, 300, 1_000, 3_000, 10_000, 60_000), "augmented": (True, False)}

PRESET = Preset(
    name="calibration-size",
    question="How many images do alignment and REPAIR need, and does it matter that they are augmented?",
    grids=_GRIDS,
    n_seeds=5,
    measurement=override(DEFAULT_MEASUREMENT, alphas=3, evaluation=10_000),
    sweep=SWEEP,
    sizes={
        "smoke": Size(smoke(_GRIDS).grids, 3, SMOKE_MEASUREMENT, {"statistics": (100, 500), "augmented": (True, False)})
    },
    ran="at --size smoke, on a stand-in",
)
