"""ResNet20 with BatchNorm and LayerNorm on a short recipe: the normalization ablation at the size of a laptop."""

from __future__ import annotations

from flows.presets.preset import DEFAULT_MEASUREMENT, Preset
from tasks.science.recipes import R20_SHORT, R20_SHORT_LAYER
from tasks.science.specs import override

PRESET = Preset(
    name="r20-norm-short",
    question="How much of the aligned barrier of ResNet20 does a correction remove under BatchNorm and LayerNorm?",
    datasets=("fashion_mnist",),
    widths=(1,),
    depths=(),
    n_seeds=4,
    recipes={"r20-short": {"batch": R20_SHORT, "layer": R20_SHORT_LAYER}},
    networks=(("resnet20", "batch"), ("resnet20", "layer")),
    measurement=override(DEFAULT_MEASUREMENT, alphas=3, statistics=5_000, evaluation=10_000),
)
