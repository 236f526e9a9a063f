"""Barrier after so many epochs of training: ResNet20 with BatchNorm and an MLP without a norm, on Fashion-MNIST."""

from __future__ import annotations

from flows.presets.grids import OVER_TIME
from flows.presets.preset import Preset
from flows.presets.sizes import smoke

PRESET = Preset(
    name="barrier-over-training",
    question="When in training does the barrier arise, and when do alignment and REPAIR begin to remove it?",
    grids=OVER_TIME,
    n_seeds=5,
    checkpoints=(0, 1, 2, 5, 10, 20, 50, None),
    sizes={"smoke": smoke(OVER_TIME)},
    ran="at --size smoke, on a stand-in",
)
