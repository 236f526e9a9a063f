"""Barrier under every normalization with the spread over eight seeds: ResNet20 and MLPs of one width."""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.grids import MLP_WIDTH, r20
from flows.presets.preset import Grid, Preset
from flows.presets.sizes import small, smoke

R20 = tuple(r20(normalization, 4) for normalization in ("batch", "layer", "fixup"))

_GRIDS = (
    *R20,
    Grid(
        ("fashion_mnist",), (("mlp", "none"), ("mlp", "batch"), ("mlp", "batch-fused")), (128,), MLP_WIDTH[0].recipes,
        (11,),
    ),
)  # fmt: skip

PRESET = Preset(
    name="normalization",
    question="How does the barrier depend on normalization?",
    grids=_GRIDS,
    n_seeds=8,
    extras=Extras(ensembles=True),
    corrections=("none", "repair", "reset"),
    sizes={"smoke": smoke(_GRIDS), "small": small(R20)},
    ran="at --size smoke, on a stand-in",
)
