"""The networks that a cell can name. A network here is a shape without weights: weights are a `State` beside it.

`build_network` makes the module on torch's meta device, so it costs nothing and draws no random numbers, and in
evaluation mode; `torch.func.functional_call(network, state, images)` evaluates it, and `initial_state` draws where
training starts. Every activation is a module of its own, so that a hook can read it by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tasks.science.networks.fixup import FixupResNet20
from tasks.science.networks.initialization import initial_state
from tasks.science.networks.mlp import MLP
from tasks.science.networks.resnet import resnet18, resnet20
from tasks.science.networks.user_defined import build_own, draw_own_state
from tasks.science.networks.vgg import MAX_SIDE, VGG
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import is_own, shown
from tasks.science.specs.state import State

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "build_network",
    "build_training_network",
    "draw_state",
    "find_architecture",
    "initial_state",
]


@dataclass(frozen=True)
class Architecture:
    """What a cell of this architecture may ask for.

    `depth`: the only one there is; None where a cell chooses, which an MLP does: it counts hidden layers.
    `width`: the published one; None where a cell has to choose. An MLP's width is the neurons of a hidden layer,
    elsewhere width multiplies the channels of every layer. `fixed_width`: no other width than the published one.
    """

    normalizations: tuple[str, ...]
    depth: int | None
    width: int | None = 1
    fixed_width: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "mlp": Architecture(("none", "batch", "batch-fused"), depth=None, width=None),
    "vgg11": Architecture(("none", "batch"), depth=11),
    "vgg13": Architecture(("none", "batch"), depth=13),
    "vgg16": Architecture(("none", "batch"), depth=16),
    "vgg19": Architecture(("none", "batch"), depth=19),
    "resnet20": Architecture(("batch", "layer", "fixup"), depth=20),
    "resnet18": Architecture(("batch",), depth=18),
    "resnet50": Architecture(("batch",), depth=50, fixed_width=True),
    "wide-resnet50-2": Architecture(("batch",), depth=50, fixed_width=True),
}
"""Every architecture by its word.

`resnet18` is two networks, as in the paper: for images of at most 64 pixels a side the form without a pool after its
3x3 stem, for larger ones torchvision's, of width 1 alone. `batch-fused` is trained with BatchNorm, which is then folded
into the linear layers: what is stored, aligned and averaged is the plain network.
"""


SMALL_SIDE = 64
"""Up to this many pixels a side, `resnet18` is the small images' form."""


def find_architecture(word: str) -> Architecture:
    """ValueError, naming those there are, for an unknown one; a person's own is none of them."""
    if word not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {shown(word)}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[word]


def build_network(cell: Cell) -> nn.Module:
    """The network whose weights an endpoint of `cell` holds: on the meta device, in evaluation mode; a person's own on
    the CPU, with weights of no meaning.

    Raises ValueError for an architecture, or a normalization, depth, width or size of image that it does not have, and
    for a person's own as `build_own`.
    """
    if is_own(cell.architecture):
        return build_own(cell)
    _check(cell)
    return _build(cell, "none" if cell.normalization == "batch-fused" else cell.normalization)


def build_training_network(cell: Cell) -> nn.Module:
    """The network that is trained for `cell`: with its BatchNorm where that is folded afterwards, else the same."""
    if is_own(cell.architecture):
        return build_own(cell)
    _check(cell)
    return _build(cell, "batch" if cell.normalization == "batch-fused" else cell.normalization)


def draw_state(cell: Cell, rng: np.random.Generator) -> State:
    """Where the training of an endpoint of `cell` starts: every parameter and buffer of the network that is trained, as
    its recipe's `initialization` has them. ValueError where that cannot be."""
    if is_own(cell.architecture) and cell.recipe.initialization == "published":
        return draw_own_state(cell, rng)
    return initial_state(build_training_network(cell), rng, cell.recipe.initialization)


def _check(cell: Cell) -> None:
    known = find_architecture(cell.architecture)
    if cell.normalization not in known.normalizations:
        raise ValueError(
            f"{cell.architecture} has no normalization {shown(cell.normalization)}; "
            f"known: {', '.join(known.normalizations)}"
        )
    if known.depth is not None and cell.depth != known.depth:
        raise ValueError(f"{cell.architecture} has depth {known.depth} and no other, got {cell.depth}")
    side = max(cell.data.shape[1:])
    fixed_width = known.fixed_width or (cell.architecture == "resnet18" and side > SMALL_SIDE)
    if fixed_width and cell.width != known.width:
        raise ValueError(
            f"{cell.architecture} for images of {side} pixels a side has width {known.width} and no other, "
            f"got {cell.width}"
        )
    if cell.architecture.startswith("vgg") and side > MAX_SIDE:
        raise ValueError(
            f"{cell.architecture} takes images of at most {MAX_SIDE} pixels a side, and those of {cell.data.name} "
            f"have {side}"
        )


def _build(cell: Cell, normalization: str) -> nn.Module:
    n_channels, height, width = cell.data.shape
    n_classes = cell.data.n_classes
    with torch.device("meta"):
        if cell.architecture == "mlp":
            network = MLP(n_channels * height * width, cell.width, cell.depth, n_classes, normalization)
        elif cell.architecture.startswith("vgg"):
            network = VGG(n_channels, cell.depth, cell.width, n_classes, normalization)
        elif cell.architecture == "resnet20" and normalization == "fixup":
            network = FixupResNet20(n_channels, cell.width, n_classes)
        elif cell.architecture == "resnet20":
            network = resnet20(n_channels, cell.width, n_classes, normalization)
        elif cell.architecture == "resnet18" and max(height, width) <= SMALL_SIDE:
            network = resnet18(n_channels, cell.width, n_classes)
        else:
            network = _build_torchvision(cell.architecture, n_channels, n_classes)
    return network.eval()


def _build_torchvision(architecture: str, n_channels: int, n_classes: int) -> nn.Module:
    # torchvision takes a second to import, which most studies need not wait for.
    from tasks.science.networks import imagenet

    builders = {
        "resnet18": imagenet.resnet18,
        "resnet50": imagenet.resnet50,
        "wide-resnet50-2": imagenet.wide_resnet50_2,
    }
    return builders[architecture](n_channels, n_classes)
