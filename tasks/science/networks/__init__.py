"""The registry of networks: every architecture by its word, and the networks of cells.

A network here is a shape without weights, which are a `State` beside it: `torch.func.functional_call(network, state,
images)` evaluates it. Every activation of a network that ships is a module of its own, so that a hook can read it by
its path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import nn

from tasks.science.networks.architecture import Architecture, Shipped
from tasks.science.networks.fixup import FixupResNet20
from tasks.science.networks.initialization import initial_state
from tasks.science.networks.mlp import MLP
from tasks.science.networks.resnet import resnet20, small_resnet18
from tasks.science.networks.user_defined import UserDefined
from tasks.science.networks.vgg import MAX_SIDE, VGG
from tasks.science.specs.cell import Cell
from tasks.science.specs.checks import shown
from tasks.science.specs.state import State
from tasks.science.specs.user_code import names_code

__all__ = [
    "ARCHITECTURES",
    "build_network",
    "build_training_network",
    "draw_state",
    "find_architecture",
    "initial_state",
]

SMALL_SIDE = 64
"""Up to this many pixels a side, `resnet18` is the form for small images."""


def _make_mlp(cell: Cell, normalization: str) -> nn.Module:
    return MLP(math.prod(cell.data.shape), cell.width, cell.depth, cell.data.n_classes, normalization)


def _make_vgg(cell: Cell, normalization: str) -> nn.Module:
    return VGG(cell.data.shape[0], cell.depth, cell.width, cell.data.n_classes, normalization)


def _make_resnet20(cell: Cell, normalization: str) -> nn.Module:
    if normalization == "fixup":
        return FixupResNet20(cell.data.shape[0], cell.width, cell.data.n_classes)
    return resnet20(cell.data.shape[0], cell.width, cell.data.n_classes, normalization)


def _make_resnet18(cell: Cell, normalization: str) -> nn.Module:
    if max(cell.data.shape[1:]) <= SMALL_SIDE:
        return small_resnet18(cell.data.shape[0], cell.width, cell.data.n_classes)
    return _make_torchvision(cell, normalization)


def _make_torchvision(cell: Cell, _normalization: str) -> nn.Module:
    from tasks.science.networks import (
        imagenet,  # torchvision takes a second to import, and most studies need none of it
    )

    return imagenet.BUILDERS[cell.architecture](cell.data.shape[0], cell.data.n_classes)


ARCHITECTURES: Mapping[str, Shipped] = {
    known.word: known
    for known in (
        Shipped("mlp", ("none", "batch", "batch-fused"), _make_mlp, depth=None, width=None),
        Shipped("vgg11", ("none", "batch"), _make_vgg, depth=11, max_side=MAX_SIDE),
        Shipped("vgg13", ("none", "batch"), _make_vgg, depth=13, max_side=MAX_SIDE),
        Shipped("vgg16", ("none", "batch"), _make_vgg, depth=16, max_side=MAX_SIDE),
        Shipped("vgg19", ("none", "batch"), _make_vgg, depth=19, max_side=MAX_SIDE),
        Shipped("resnet20", ("batch", "layer", "fixup"), _make_resnet20, depth=20),
        Shipped("resnet18", ("batch",), _make_resnet18, depth=18, scalable_up_to=SMALL_SIDE),
        Shipped("resnet50", ("batch",), _make_torchvision, depth=50, scalable_up_to=0),
        Shipped("wide-resnet50-2", ("batch",), _make_torchvision, depth=50, scalable_up_to=0),
    )
}
"""Every architecture that ships, by its word.

The width of an MLP is the neurons of a hidden layer; elsewhere width multiplies the channels of every layer. `resnet18`
is two networks, as in the paper: for images of at most `SMALL_SIDE` pixels a side the form without a pool after its 3x3
stem, for larger ones torchvision's. `batch-fused` is trained with BatchNorm, which is then folded into the linear
layers: the plain network is stored, aligned and averaged.
"""


def find_architecture(word: str) -> Architecture:
    """Return the architecture of a word, or the user-defined one at a place `package.module:function`.

    Nothing is imported. ValueError, naming those there are, for an unknown word.
    """
    if names_code(word):
        return UserDefined(word)
    if word not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {shown(word)}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[word]


def build_network(cell: Cell) -> nn.Module:
    """Return the network whose weights an endpoint of `cell` holds, in evaluation mode.

    It is on the meta device, or for a user-defined network on the CPU, with weights of no meaning. Raises ValueError
    for a network that its architecture does not have, and UserCodeError as `UserDefined.build`.
    """
    return find_architecture(cell.architecture).build(cell)


def build_training_network(cell: Cell) -> nn.Module:
    """Return the network that is trained for `cell`: with its BatchNorm where that is folded away, else the same."""
    return find_architecture(cell.architecture).build_for_training(cell)


def draw_state(cell: Cell, rng: np.random.Generator) -> State:
    """Return the weights at which the training of an endpoint of `cell` starts, drawn by its recipe's initialization.

    ValueError for an initialization that the network cannot have.
    """
    return find_architecture(cell.architecture).draw(cell, rng)
