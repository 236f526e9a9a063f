"""Checks that a user's network puts out what can be merged: one finite tensor with a row per image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tasks.science.evaluation.functional import compute
from tasks.science.evaluation.modes import NetworkError
from tasks.science.evaluation.outputs import logits_in, way_to_logits
from tasks.science.evaluation.precision import InFloat64
from tasks.science.networks.fitting import MergeError, word_of
from tasks.science.networks.user_code import one_line
from tasks.science.specs.checks import is_own
from tasks.science.specs.data import DataSpec
from tasks.science.specs.state import State

CHECK_EXAMPLES = 16
"""Images on which outputs are checked, and a spec is proved before it is used."""


def check_outputs(network: nn.Module, state: State, images: Tensor, owner: str) -> Tensor:
    """Return the network's outputs for the first 16 of `images` with `state`, in float64.

    `owner` names the weights in messages. Raises MergeError where the output is not one finite tensor with a row per
    image, in float32 as in float64.
    """
    shown = images[:CHECK_EXAMPLES]
    _checked(lambda: compute(network, state, shown), shown, torch.float32, owner, "")
    where = " in float64, in which permutations are proved"
    return _checked(lambda: InFloat64(network).compute(state, shown), shown, torch.float64, owner, where)


def check_classes(network: nn.Module, state: State, images: Tensor, data: DataSpec, owner: str) -> None:
    """Raise MergeError where `check_outputs` does, or where the outputs are not one per class of `data`.

    There may be more outputs where the classes are counted from the labels of user-defined data.
    """
    shape, counted = tuple(check_outputs(network, state, images, owner).shape), is_own(data.name)
    if not (len(shape) == 2 and (shape[1] == data.n_classes or (shape[1] > data.n_classes and counted))):
        wanted = f"at least {data.n_classes}" if counted else f"{data.n_classes}"
        raise MergeError(
            f"the network puts out shape {shape} for {shape[0]} images, and {data.name} has {wanted} classes: "
            f"expected ({shape[0]}, {data.n_classes})"
        )


def _checked(run: Callable[[], Any], batch: Tensor, dtype: torch.dtype, owner: str, where: str) -> Tensor:
    try:
        outputs = logits_in(run())
    except NetworkError as error:
        raise MergeError(str(error)) from error
    except Exception as error:  # A user's forward pass may raise anything.
        raise MergeError(
            f"the network cannot compute images of shape {tuple(batch.shape[1:])}{where}: {one_line(error)}"
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
