"""The table of corrections: what each does, where it is defined, and whether it keeps the architecture.

A layer is a convolution, a linear layer or any other product with weights, attention projections among them; its
pre-activation is its output before any norm. Layers that make the logits are never changed. The goal at alpha is the
mean (1 - alpha) mu_A + alpha mu_B and the standard deviation (1 - alpha) sd_A + alpha sd_B of every unit over the
statistics samples.
Sources: REPAIR and RESET, arXiv 2211.08403; comments say which corrections are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.science.specs.checks import is_own, shown

NORMALIZATIONS = ("none", "batch", "layer", "fixup", "batch-fused")
"""The normalizations of networks; `batch-fused` is BatchNorm that was folded away after training."""

RESIDUAL_ARCHITECTURES = ("resnet20", "resnet18", "resnet50", "wide-resnet50-2")

Part = Literal["both", "deviation", "mean"]
"""The moments of the goal that units are given; the other one is left as it is."""


@dataclass(frozen=True)
class Correction:
    """A row of the table.

    `touches`: the layers and norms that change. `normalizations`: where it is defined. `extra_layers`: the
    normalizations for which the corrected weights no longer fit the class of the network, since they have biases for
    convolutions with neither a bias nor a BatchNorm to take a shift (Fixup), or a scale and a shift per channel behind
    every residual block.
    """

    does: str
    touches: str
    normalizations: tuple[str, ...] = NORMALIZATIONS
    extra_layers: tuple[str, ...] = ("fixup",)
    layers: bool = True
    """Whether layers are brought to a goal."""
    part: Part = "both"
    frozen: bool = False
    """Whether BatchNorm keeps its interpolated statistics; else they are estimated again from its new input."""
    closed_form: bool = False
    """Whether moments of the interpolated network are predicted from the endpoints' instead of measured."""
    blocks: bool = False
    """Whether the outputs of residual blocks are brought to a goal too."""


_EVERY_LAYER = "every layer; the BatchNorm behind one"

CORRECTIONS: Mapping[str, Correction] = {
    "none": Correction(
        does="leaves the network as interpolation made it, BatchNorm statistics interpolated too",
        touches="nothing",
        extra_layers=(),
        layers=False,
        frozen=True,
    ),
    "repair": Correction(
        does="gives every unit's pre-activation the goal's mean and deviation, folded into the weights; the statistics "
        "of a BatchNorm behind it become the moments of the corrected pre-activation, and take the shift of a layer "
        "without bias; every other BatchNorm is re-estimated",
        touches=_EVERY_LAYER,
    ),
    "repair/frozen": Correction(
        does="as repair, but BatchNorm keeps its interpolated statistics, moved only by the shift of a layer without "
        "bias",
        touches=_EVERY_LAYER,
        normalizations=("batch",),
        frozen=True,
    ),
    "reset": Correction(
        does="re-estimates the running statistics of every BatchNorm, cumulatively over the statistics samples",
        touches="every BatchNorm",
        normalizations=("batch",),
        layers=False,
    ),
    "repair-closed-form": Correction(
        does="as repair, with the interpolated network's moments predicted from the endpoints' moments and matched "
        "covariances: no pass over the interpolated network; exact in the first layer, approximate behind it",
        touches=_EVERY_LAYER,
        closed_form=True,
    ),
    "repair-block": Correction(
        does="as repair, and gives the output of every residual block the goal's mean and deviation, by a scale and a "
        "shift per channel behind it",
        touches=_EVERY_LAYER + "; every residual block's output",
        extra_layers=NORMALIZATIONS,
        blocks=True,
    ),
    # The two halves of repair are ours. With re-estimated statistics BatchNorm would undo either half, and both would
    # be reset: they are defined with the interpolated ones.
    "rescale": Correction(
        does="gives every unit's pre-activation the goal's deviation about the mean it has; BatchNorm keeps its "
        "interpolated statistics",
        touches=_EVERY_LAYER,
        part="deviation",
        frozen=True,
    ),
    "reshift": Correction(
        does="gives every unit's pre-activation the goal's mean with the deviation it has; BatchNorm keeps its "
        "interpolated statistics",
        touches=_EVERY_LAYER,
        part="mean",
        frozen=True,
    ),
}
"""Every correction by its name in tables and ids."""


def find_correction(name: str) -> Correction:
    """Return the row of that name. Raises ValueError, naming all corrections, if there is none."""
    if name not in CORRECTIONS:
        raise ValueError(f"there is no correction {shown(name)}; known: {', '.join(CORRECTIONS)}")
    return CORRECTIONS[name]


def is_defined(name: str, normalization: str, architecture: str | None = None) -> bool:
    """Whether the correction is defined for networks of this normalization (and architecture, where it is given).

    ValueError for a name that the table lacks.
    """
    return _undefined(name, normalization, architecture) is None


def check_correction(name: str, normalization: str, architecture: str | None = None) -> None:
    """Raise ValueError, with the way out, if the correction is not defined for networks of this normalization.

    Whether an `architecture` that the package names has residual blocks is known; of a person's own it is taken to.
    """
    if reason := _undefined(name, normalization, architecture):
        raise ValueError(reason)


def _undefined(name: str, normalization: str, architecture: str | None) -> str | None:
    correction = find_correction(name)
    if normalization not in correction.normalizations:
        others = [other for other, row in CORRECTIONS.items() if row.layers and normalization in row.normalizations]
        return (
            f"correction {name} is not defined for normalization {normalization}: it needs BatchNorm, normalization "
            f"{' or '.join(correction.normalizations)}; instead, {normalization} can take {', '.join(others)}"
        )
    if correction.blocks and architecture is not None and architecture not in RESIDUAL_ARCHITECTURES:
        if is_own(architecture):
            return None  # Whether it has residual blocks is seen when it is run.
        return (
            f"correction {name} is not defined for {architecture}, which has no residual blocks; take repair, or one "
            f"of {', '.join(RESIDUAL_ARCHITECTURES)}"
        )
    return None
