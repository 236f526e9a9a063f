"""Every architecture and normalization under every correction, on few images: shows that they run, not what is true."""

from __future__ import annotations

from flows.presets.preset import Preset
from tasks.science.networks import ARCHITECTURES
from tasks.science.recipes import SMOKE

PRESET = Preset(
    name="networks-smoke",
    question="Does every network train, align and take every correction that is defined for it?",
    datasets=("digits32",),
    widths=(1,),
    depths=(1,),
    n_seeds=2,
    recipes={"smoke": SMOKE},
    networks=tuple(
        (architecture, normalization)
        for architecture, known in ARCHITECTURES.items()
        for normalization in known.normalizations
        if architecture != "mlp"
    ),
)
