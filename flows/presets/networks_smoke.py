"""Every convolutional architecture and normalization, on few images: shows that they run, not what is true."""

from __future__ import annotations

from flows.presets.preset import Preset
from tasks.science.networks import ARCHITECTURES
from tasks.science.recipes import SMOKE
from tasks.science.specs import Measurement

PRESET = Preset(
    name="networks-smoke",
    question="Does every network train, align, and take a correction?",
    datasets=("digits32",),
    widths=(1,),
    depths=(1,),
    n_seeds=2,
    recipes={"smoke": SMOKE},
    measurement=Measurement("ends-and-midpoint", alphas=3),
    networks=tuple(
        (architecture, normalization)
        for architecture, known in ARCHITECTURES.items()
        for normalization in known.normalizations
        if architecture != "mlp"
    ),
)
