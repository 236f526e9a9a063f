"""Share of the aligned barrier that a correction removes, over all networks of the paper, whose endpoints it shares."""

from __future__ import annotations

import dataclasses

from flows.presets.grids import IMAGENET, MLP_WIDTH, R18_CIFAR, R20_DATASETS, R20_WIDTH, VGG_DEPTH, mlp_depth
from flows.presets.preset import Grid, Preset
from flows.presets.sizes import smoke


def _without_fashion(grid: Grid) -> Grid:
    return dataclasses.replace(grid, datasets=tuple(name for name in grid.datasets if name != "fashion_mnist"))


_GRIDS = (
    *R20_WIDTH,
    *map(_without_fashion, (*R20_DATASETS, *MLP_WIDTH)),
    mlp_depth(2, 6, 11, 16, 21, 26, 31, 36, 41),
    VGG_DEPTH,
    R18_CIFAR,
    *IMAGENET,
)

PRESET = Preset(
    name="summary-reduction",
    question="What share of the aligned barrier does a correction remove, over every network of the paper?",
    figure="relative_twtr2, relative_reductions",
    grids=_GRIDS,
    n_seeds=5,
    corrections=("none", "repair", "reset"),
    sizes={"smoke": smoke(_GRIDS)},
    ran="at --size smoke, on a stand-in",
)
