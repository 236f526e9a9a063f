"""Corrections: an interpolated network is given back the spread of activations that interpolation took from it.

At alpha, every unit's pre-activation is rescaled and shifted so that over the statistics samples it has the mean
(1 - alpha) mu_A + alpha mu_B and the standard deviation (1 - alpha) sd_A + alpha sd_B: the *goal*. Layers are corrected
front to back, each measured on what the corrected layers before it put out, so that in the end all goals hold at once.
The rescaling folds into the weights; the architecture stays. `correction_table` names every variant.

How the interpolated network's moments are found (the estimator):
- One vector per image in every layer (an MLP): exact, the whole statistics set goes through one layer at a time, which
  costs the same as one pass.
- Else *one pass*: a batch is standardised to the goal by its own moments wherever it passes a layer, so that every
  layer sees corrected input, and what is folded are the moments over all batches. In batches of 500 a trained ResNet20
  comes within .1 % of the goal's deviation in every layer, of 100 within 1 % (1,437 digits at 16x16, one pair).
- *Layerwise*: one pass per layer, through the layers already folded; exact for any network, and the reference.

Source: REPAIR (arXiv 2211.08403), section 4 and appendix B; the logits are not corrected.
Deviates: means and deviations are over all samples at once, where the authors average per-batch ones and add 1e-5 to
the variance; one pass thereby counts what lies between batches, which for the first layer is exact. BatchNorm's running
variance is the biased one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.science.correction_table import Correction, Part, find_correction
from tasks.science.evaluation import lay_out, mode, within
from tasks.science.first_layer import Between, FirstLayer
from tasks.science.layout import Layout, Site, find_layout, observing
from tasks.science.mlp_correction import Ramp, is_plain_mlp, mlp_moments, repair
from tasks.science.preactivations import (
    LayerMoments,
    LayerReport,
    Moments,
    RunningMoments,
    goal_moments,
    measure,
    reorder_layers,
    report_layers,
    unit_orders,
)
from tasks.science.specs import State

__all__ = [
    "Corrected",
    "Estimator",
    "LayerMoments",
    "LayerReport",
    "Moments",
    "check_layout",
    "correct",
    "extra_tensors",
    "goal_moments",
    "preactivation_moments",
    "reorder_layers",
    "repair",
    "report_layers",
    "unit_orders",
]

Estimator = Literal["one-pass", "layerwise"]

BATCH_SIZE = 500
"""Statistics samples that are standardised together in one pass: the authors' batch at 32x32."""

LARGE_IMAGE_BATCH_SIZE = 200
"""The authors' batch on ImageNet; for images of more than 64 pixels a side."""


@dataclass(frozen=True)
class Corrected:
    """A corrected network, and what its layers then do.

    `network` is the one that was given, or a copy that has the tensors `extra`, which its own class lacks; `state` are
    its weights. `achieved`: moments over the statistics samples, measured on these weights (of residual blocks too,
    where they were corrected); of an MLP that was corrected exactly they follow from those that it had before.
    `first`: of such an MLP, what became of its first layer's values.
    """

    network: nn.Module
    state: State
    extra: tuple[str, ...]
    achieved: LayerMoments
    first: Ramp | None = None


@torch.no_grad()
def preactivation_moments(
    network: nn.Module,
    state: State,
    images: Tensor,
    layout: Layout | None = None,
    *,
    blocks: bool = False,
    first: FirstLayer | Between | None = None,
) -> LayerMoments:
    """Exact moments of every layer of `network` over all of `images`; with `blocks`, of residual blocks' outputs too.

    `layout` is the network's, found where it is not given. `first` is the first layer of a plain MLP, where its values
    are kept.
    """
    if is_plain_mlp(network):
        return mlp_moments(network, state, images, first)
    layout = layout or find_layout(network, state, images)
    return measure(network, state, layout.layers + (layout.blocks if blocks else ()), images)


def check_layout(layout: Layout, correction: str) -> None:
    """ValueError, with the way out, where the correction has nothing to act on in a network of this layout."""
    chosen = find_correction(correction)
    if "none" not in chosen.normalizations and not layout.norms:
        raise ValueError(f"correction {correction} needs a network with BatchNorm, and this one has none; take repair")
    if chosen.blocks and not layout.blocks:
        raise ValueError(f"correction {correction} needs residual blocks, and this network has none; take repair")


def extra_tensors(layout: Layout, correction: str) -> tuple[str, ...]:
    """The tensors that the corrected weights would have beyond those of the network's own class; none for most."""
    lacking, blocks = _lacking(layout, find_correction(correction))
    affines = (f"{site.name}.block_correction.{part}" for site in blocks for part in ("weight", "bias"))
    return (*(f"{site.name}.bias" for site in lacking), *affines)


@torch.no_grad()
def correct(
    network: nn.Module,
    layout: Layout,
    state: State,
    correction: str,
    goal: LayerMoments,
    images: Tensor,
    *,
    predicted: LayerMoments | None = None,
    estimator: Estimator = "one-pass",
    batch_size: int | None = None,
    first: Between | None = None,
) -> Corrected:
    """`state`, an interpolated network, after `correction` (a name of `CORRECTIONS`) to `goal` on `images`.

    `predicted`: the moments in closed form, for the correction that measures none (`predicted_moments`). `batch_size`:
    the samples that one pass standardises together, at most; batches are of nearly equal size. `first` is the first
    layer of a plain MLP, where its values are kept.
    A unit without spread, here or in the goal, keeps its scale and has only its mean set. A layer with neither a bias
    nor a BatchNorm that reads it alone gets a bias, in a copy of the network; so does what a block's output needs.
    Raises ValueError where the correction has nothing to act on (no BatchNorm, no residual block, no prediction), for a
    batch of one image, and for a name that the table lacks.
    """
    chosen = find_correction(correction)
    check_layout(layout, correction)
    if chosen.closed_form and predicted is None:
        raise ValueError(f"correction {correction} needs predicted moments, as predicted_moments gives them")
    if correction == "none":
        return Corrected(network, state, (), preactivation_moments(network, state, images, layout, first=first))
    if is_plain_mlp(network) and not chosen.closed_form:
        repaired = repair(network, state, goal, images, chosen.part, first)
        return Corrected(network, repaired.state, (), repaired.moments, repaired.first)
    extended, corrected, layout = _extend(network, state, layout, chosen)
    sites = _sites(layout, chosen)
    shifts: dict[str, Tensor] = {}
    if predicted is not None and chosen.closed_form:
        for site in layout.layers:
            shifts[site.name] = _fold(corrected, site, predicted[site.name], goal.get(site.name), chosen)
    elif estimator == "layerwise":
        for site in sites:
            before = measure(extended, corrected, [site], images, stop=site.kind != "norm")[site.name]
            shifts[site.name] = _fold(corrected, site, before, goal.get(site.name), chosen)
    else:
        n_together = len(images) if layout.dense else batch_size or _batch_size(images)
        found = _one_pass(extended, corrected, layout, sites, goal, chosen, images, n_together)
        for site in sites:
            shifts[site.name] = _fold(corrected, site, found[site.name], goal.get(site.name), chosen)
    achieved = preactivation_moments(extended, corrected, images, layout, blocks=chosen.blocks)
    for site in layout.layers:
        if site.norm is not None and not site.bias and site.name in shifts:
            # The norm behind it takes the layer's shift; what it then reads is the corrected pre-activation.
            found_moments = achieved[site.name]
            achieved[site.name] = replace(found_moments, mean=found_moments.mean + shifts[site.name])
    return Corrected(extended, corrected, tuple(name for name in corrected if name not in state), achieved)


class ChannelAffine(nn.Module):
    """One scale and one shift per unit; units lie along `dim`."""

    def __init__(self, n_units: int, dim: int, like: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(like.new_ones(n_units))
        self.bias = nn.Parameter(like.new_zeros(n_units))

    def forward(self, values: Tensor) -> Tensor:
        return values * _along(self.weight, values, self.dim) + _along(self.bias, values, self.dim)


def _apply_block_correction(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return module.get_submodule("block_correction")(output)


def _lacking(layout: Layout, chosen: Correction) -> tuple[list[Site], tuple[Site, ...]]:
    """Layers that need a bias to take their shift, and blocks that need an affine behind them."""
    lacking = [site for site in layout.layers if chosen.layers and not site.bias and site.norm is None]
    return lacking, layout.blocks if chosen.blocks else ()


def _extend(network: nn.Module, state: State, layout: Layout, chosen: Correction) -> tuple[nn.Module, State, Layout]:
    """The network with what `chosen` needs beyond it, which as yet changes nothing: biases, affines behind blocks."""
    lacking, blocks = _lacking(layout, chosen)
    if not lacking and not blocks:
        return network, dict(state), layout
    network, extended = copy.deepcopy(network), dict(state)
    for site in lacking:
        layer = network.get_submodule(site.name)
        n_units = state[f"{site.name}.weight"].shape[0]
        layer.register_parameter("bias", nn.Parameter(next(layer.parameters()).new_zeros(n_units)))
        extended[f"{site.name}.bias"] = state[f"{site.name}.weight"].new_zeros(n_units)
    for site in blocks:
        block, weight = network.get_submodule(site.name), state[f"{site.units}.weight"]
        affine = ChannelAffine(weight.shape[0], site.dim, next(block.parameters()))
        block.register_module("block_correction", affine)
        block.register_forward_hook(_apply_block_correction)
        extended[f"{site.name}.block_correction.weight"] = weight.new_ones(weight.shape[0])
        extended[f"{site.name}.block_correction.bias"] = weight.new_zeros(weight.shape[0])
    biased = tuple(replace(site, bias=True) if site in lacking else site for site in layout.sites)
    return network, extended, replace(layout, sites=biased)


def _sites(layout: Layout, chosen: Correction) -> list[Site]:
    """Where `chosen` measures, in the order in which a pass reaches it."""
    sites: list[Site] = []
    for site in layout.sites:
        if site.kind == "layer" and chosen.layers:
            sites.append(site)
        elif site.kind == "layer" and site.norm is not None and not chosen.frozen:
            sites.append(Site(site.norm, "norm", 1))
        elif (site.kind == "norm" and not chosen.frozen) or (site.kind == "block" and chosen.blocks):
            sites.append(site)
    return sites


def _one_pass(
    network: nn.Module,
    state: State,
    layout: Layout,
    sites: Sequence[Site],
    goal: LayerMoments,
    chosen: Correction,
    images: Tensor,
    batch_size: int,
) -> LayerMoments:
    """The moments of every site, each measured while the sites before it are standardised batch by batch.

    A BatchNorm whose statistics are to be re-estimated normalises by those of the batch. Behind a layer that is brought
    to a goal, these follow from the layer's own: it is told them, and reads what the layer puts out as it is.
    """
    seen = {site.name: RunningMoments() for site in sites}
    norms = {norm: network.get_submodule(norm) for norm in layout.norms}
    working = {name: value.clone() if name.rpartition(".")[0] in norms else value for name, value in state.items()}

    def see(site: Site, values: Tensor) -> Tensor | None:
        batch = seen[site.name].add(values, site.dim)
        if site.kind == "norm":
            _tell(working, site.name, batch.mean, batch.sd.square())
            return None
        scale, shift = _affine(batch, goal[site.name], chosen.part)
        if site.norm is not None and not chosen.frozen:
            # Of scale x + shift the deviation is scale sd: (x - mean) scale / sqrt(scale^2 sd^2 + eps) is what
            # normalising it makes of x, hence as if x had this variance.
            eps: Any = norms[site.norm].eps
            _tell(working, site.norm, batch.mean, batch.sd.square() + eps * (scale.square().reciprocal() - 1))
            return None
        scale, shift = (_along(part.to(values.dtype), values, site.dim) for part in (scale, shift))
        return (values * scale).add_(shift)

    batches = images.tensor_split(math.ceil(len(images) / batch_size))
    if len(batches[-1]) < 2:
        raise ValueError(f"statistics need batches of at least 2 images, got {len(images)} in {len(batches)}")

    def run(loaded: nn.Module) -> None:
        for batch in batches:
            loaded(lay_out(loaded, batch))

    with mode(network, training=False), observing(network, sites, see):
        within(network, working, run, writes=True)
    return {name: running.result() for name, running in seen.items()}


def _tell(state: State, norm: str, mean: Tensor, variance: Tensor) -> None:
    """Writes statistics into the tensors that a running network has."""
    state[f"{norm}.running_mean"].copy_(mean)
    state[f"{norm}.running_var"].copy_(variance)


def _affine(before: Moments, goal: Moments, part: Part) -> tuple[Tensor, Tensor]:
    """Scale and shift (n_units,) that take a unit from the moments `before` to that `part` of `goal`."""
    dead = before.dead() | goal.dead()
    scale = torch.ones_like(before.sd)
    if part != "mean":
        scale = torch.where(dead, 1.0, goal.sd / torch.where(dead, 1.0, before.sd))
    mean = before.mean if part == "deviation" else goal.mean
    return scale, mean - scale * before.mean


def _fold(state: State, site: Site, before: Moments, goal: Moments | None, chosen: Correction) -> Tensor:
    """Writes into `state` what brings the site from the moments `before` to the goal; returns the shift."""
    if goal is None or site.kind == "norm":
        _set_statistics(state, site.name, before.mean, before.sd)
        return torch.zeros_like(before.mean)
    scale, shift = _affine(before, goal, chosen.part)
    path = f"{site.name}.block_correction" if site.kind == "block" else site.name
    weight = state[f"{path}.weight"]
    state[f"{path}.weight"] = (scale.view(-1, *[1] * (weight.ndim - 1)) * weight).to(weight.dtype)
    mean = scale * before.mean
    if site.kind == "block" or site.bias:
        bias = state[f"{path}.bias"]
        state[f"{path}.bias"] = (scale * bias + shift).to(bias.dtype)
        mean = mean + shift
    elif chosen.frozen:
        # (y + shift) - running_mean = y - (running_mean - shift)
        running = state[f"{site.norm}.running_mean"]
        state[f"{site.norm}.running_mean"] = (running - shift).to(running.dtype)
    if site.norm is not None and not chosen.frozen:
        _set_statistics(state, site.norm, mean, scale * before.sd)
    return shift


def _set_statistics(state: State, norm: str, mean: Tensor, sd: Tensor) -> None:
    for name, value in (("running_mean", mean), ("running_var", sd.square())):
        state[f"{norm}.{name}"] = value.to(state[f"{norm}.{name}"].dtype)


def _batch_size(images: Tensor) -> int:
    return BATCH_SIZE if max(images.shape[2:], default=0) <= 64 else LARGE_IMAGE_BATCH_SIZE


def _along(units: Tensor, values: Tensor, dim: int) -> Tensor:
    """`units` (n_units,) as it is multiplied with `values`, whose units lie along `dim`."""
    shape = [1] * values.ndim
    shape[dim] = -1
    return units.view(shape)
