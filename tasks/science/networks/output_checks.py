"""Checks of the outputs of a network for given weights and images, before it is measured or merged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.science.evaluation.functional import compute
from tasks.science.evaluation.modes import NetworkError
from tasks.science.evaluation.outputs import logits_in, way_to_logits
from tasks.science.evaluation.precision import CastsKept
from tasks.science.networks.fitting import MergeError, word_of
from tasks.science.specs.data import DataSpec
from tasks.science.specs.state import State
from tasks.science.specs.user_code import error_line

CHECK_EXAMPLES = 16
"""The number of images on which outputs are checked, and a permutation spec is proved before it is used."""


def check_outputs(network: nn.Module, state: State, images: Tensor, owner: str) -> Tensor:
    """Return the outputs of the network for the first 16 of `images` with `state`, in float64.

    Raises MergeError where that is not one finite tensor with a row per image, in float32 as in float64; `owner` says
    whose weights they are.
    """
    first = images[:CHECK_EXAMPLES]
    _check_pass(network, state, first, torch.float32, owner, "")
    if first.is_floating_point():
        first = first.double()
    with CastsKept(network):
        where = " in float64, in which permutations are proved"
        return _check_pass(network, in_float64(network, state), first, torch.float64, owner, where)


def check_classes(network: nn.Module, state: State, images: Tensor, data: DataSpec, owner: str) -> None:
    """Raise MergeError where `check_outputs` does, or where there is not one output for every class of `data`.

    The classes of user-defined data are counted from their labels, so there a network may have more outputs.
    """
    shape = tuple(check_outputs(network, state, images, owner).shape)
    if not (len(shape) == 2 and (shape[1] == data.n_classes or (shape[1] > data.n_classes and data.user_defined))):
        wanted = f"at least {data.n_classes}" if data.user_defined else f"{data.n_classes}"
        raise MergeError(
            f"the network puts out shape {shape} for {shape[0]} images, and {data.name} has {wanted} classes: "
            f"expected ({shape[0]}, {data.n_classes})"
        )


def in_float64(network: nn.Module, state: State) -> State:
    """Return `state`, and the buffers that no state dict holds, in float64."""
    loose = {key: buffer for key, buffer in network.named_buffers() if key not in state}
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in (loose | state).items()}


def _check_pass(
    network: nn.Module, weights: State, batch: Tensor, dtype: torch.dtype, owner: str, where: str
) -> Tensor:
    try:
        outputs = logits_in(compute(network, weights, batch))
    except NetworkError as error:
        raise MergeError(str(error)) from error
    except Exception as error:  # A user's forward pass may raise anything.
        raise MergeError(
            f"the network cannot compute images of shape {tuple(batch.shape[1:])}{where}: {error_line(error)}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != batch.shape[:1]:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        way_out = "" if isinstance(outputs, Tensor) else f": {way_to_logits(outputs)}"
        raise MergeError(
            f"the network must put out one tensor with a row per image, got {got} of {len(batch)} images{way_out}"
        )
    if outputs.dtype != dtype:
        raise MergeError(
            f"the network puts out {word_of(outputs.dtype)} for weights of {word_of(dtype)}{where}: let its forward "
            "pass keep to the type of its input"
        )
    if not bool(torch.isfinite(outputs).all()):
        raise MergeError(f"{owner} puts out values that are not finite on these images: are they normalised?")
    return outputs
