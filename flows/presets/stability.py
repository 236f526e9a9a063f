"""Barrier between children of one training, against the epoch at which they part.

Children share their parent's weights and optimizer memory at that epoch and differ in the order and augmentation of all
that follows. One parent stands for all: the spread over parents is not measured.
Source: Frankle et al. 2020 (arXiv 1912.05671), instability analysis.
"""

from __future__ import annotations

from flows.declaration import Extras
from flows.presets.grids import OVER_TIME
from flows.presets.preset import Preset
from flows.presets.sizes import smoke

PRESET = Preset(
    name="stability",
    question="From which epoch on do two trainings that part end in one basin, and does alignment help before?",
    grids=OVER_TIME,
    n_seeds=5,
    extras=Extras(controls=False),
    corrections=("none",),
    spawns=tuple((0, epoch) for epoch in (0, 1, 2, 5, 10, 20, 50)),
    sizes={"smoke": smoke(OVER_TIME)},
    ran="at --size smoke, on a stand-in",
)
